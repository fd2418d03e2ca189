"""What the readers of boxes share: the folders as they come, and rows of images with their objects as Arrow."""

from __future__ import annotations

import io
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import PIL.Image
import PIL.ImageOps
import pyarrow as pa
from PIL import ExifTags

from cv_hf.data import rle
from cv_hf.data.findings import Findings
from cv_hf.data.images import UnreadableImage, image_formats, in_memory, read_header, relative_name
from cv_hf.data.paths import Inside, check_name, is_hidden
from cv_hf.errors import DataError
from cv_hf.task import Finding

ANNOTATION_FOLDERS = ("annotations", "annots", "annotation", "annot")
_FEW_PIXELS = 1 << 22
# EXIF orientations that swap width and height.
SIDEWAYS = (5, 6, 7, 8)
_TURNS = {
    5: PIL.Image.Transpose.TRANSPOSE,
    6: PIL.Image.Transpose.ROTATE_270,
    7: PIL.Image.Transpose.TRANSVERSE,
    8: PIL.Image.Transpose.ROTATE_90,
}
IMAGE_FOLDERS = ("images", "jpegimages", "imgs", "image", "img", "data", "photos", "pictures")


def to_dataset(
    paths: Sequence[str],
    image_ids: Sequence[int] | Sequence[str],
    sizes: Sequence[tuple[int | None, int | None]],
    rows: Sequence[int] | np.ndarray,
    boxes: Sequence[Sequence[float]] | np.ndarray,
    categories: Sequence[int] | Sequence[str],
    category_type: type,
    areas: Sequence[float | None] | None = None,
    crowds: Sequence[bool] | None = None,
    masks: Sequence[Mapping[str, Any]] | None = None,
) -> datasets.Dataset:
    """Rows of images from flat lists of their boxes.

    Args:
        paths: of the images.
        image_ids: all int, or all str.
        sizes: (height, width) of each image; None where the source does not say.
        rows: for each box, the position of its image; in any order, which is kept within an image.
        boxes: absolute xywh.
        categories: source id of each box.
        category_type: int or str, what source ids are.
        areas: None where the source has none.
        crowds: None: no box is a crowd.
        masks: the compressed RLE of each object; None: they have boxes alone.

    Returns:
        columns `image` (undecoded), `image_id`, `width`, `height` and `objects` {bbox, category, area, iscrowd} and,
        with masks, `segmentation`.
    """
    number = len(rows)
    order = np.argsort(np.asarray(rows, np.int64), kind="stable")
    counts = np.bincount(np.asarray(rows, np.int64), minlength=len(paths))
    offsets = pa.array(np.concatenate([[0], np.cumsum(counts)]).astype(np.int32))
    flat = np.asarray(boxes, np.float64).reshape(number, 4)[order].reshape(-1)
    values = {
        "bbox": pa.ListArray.from_arrays(pa.array(np.arange(0, 4 * number + 1, 4, dtype=np.int32)), pa.array(flat)),
        "category": pa.array(categories, pa.string() if category_type is str else pa.int64()).take(pa.array(order)),
        "area": pa.array([None] * number if areas is None else areas, pa.float64()).take(pa.array(order)),
        "iscrowd": pa.array([False] * number if crowds is None else crowds, pa.bool_()).take(pa.array(order)),
    }
    if masks is not None:
        values["segmentation"] = rle.to_arrow(masks).take(pa.array(order))
    columns = {
        "image": pa.array(paths, pa.string()),
        "image_id": pa.array(image_ids, pa.string() if isinstance(next(iter(image_ids), 0), str) else pa.int64()),
        "width": pa.array([width for _, width in sizes], pa.int64()),
        "height": pa.array([height for height, _ in sizes], pa.int64()),
        "objects": pa.StructArray.from_arrays(
            [pa.ListArray.from_arrays(offsets, value) for value in values.values()], names=list(values)
        ),
    }
    segmentation = {} if masks is None else {"segmentation": datasets.List(rle.FEATURE)}
    features = datasets.Features(
        {
            "image": datasets.Image(decode=False),
            "image_id": datasets.Value(str(columns["image_id"].type)),
            "width": datasets.Value("int64"),
            "height": datasets.Value("int64"),
            "objects": {
                "bbox": datasets.List(datasets.List(datasets.Value("float64"))),
                "category": datasets.List(datasets.Value(str(values["category"].type))),
                "area": datasets.List(datasets.Value("float64")),
                "iscrowd": datasets.List(datasets.Value("bool")),
                **segmentation,
            },
        }
    )
    return datasets.Dataset.from_dict(columns, features=features)


def is_int64(value: object) -> bool:
    """Whether a value of a file can be an id that is a number."""
    return type(value) is int and -(2**63) <= value < 2**63


def folder_named(parent: Path, names: Collection[str]) -> Path | None:
    """The folder in `parent` with one of the names, in any case of letters; of several, the first name's."""
    found = {path.name.lower(): path for path in folders(parent)}
    return next((found[name] for name in names if name in found), None)


def folders(parent: Path) -> list[Path]:
    """The folders in a folder, hidden ones left out, in alphabetical order."""
    return [Path(entry.path) for entry in _entries(parent) if entry.is_dir()]


def files_in(parent: Path, suffixes: Collection[str]) -> list[Path]:
    """The files in a folder, not below it, with one of the suffixes (lower case), in alphabetical order."""
    return [
        Path(entry.path)
        for entry in _entries(parent)
        if os.path.splitext(entry.name)[1].lower() in suffixes and entry.is_file()
    ]


def files_below(
    folder: Path, suffixes: Collection[str], inside: Inside, root: Path, findings: Findings, on_bad_sample: str
) -> Iterator[str]:
    """The files in a folder and below it with one of the suffixes (lower case), in alphabetical order.

    A link to a file that lies outside is dropped with a finding.

    Raises:
        DataError: a link to a folder that lies outside; or on_bad_sample is "stop", and a file does.
    """
    if not inside.holds(folder):
        raise DataError(
            f"{folder} is a link that leads out of the dataset's folder.\n"
            "Give the folder that it leads to as data.images, or put the files in its place."
        )
    yield from _below(str(folder), suffixes, inside, root, findings, on_bad_sample, frozenset())


def _below(
    folder: str,
    suffixes: Collection[str],
    inside: Inside,
    root: Path,
    findings: Findings,
    on_bad_sample: str,
    above: frozenset[str],
) -> Iterator[str]:
    real = os.path.realpath(folder)
    if real in above:
        return
    for entry in _entries(folder):
        if entry.is_dir():
            if entry.is_symlink() and not inside.holds(entry.path):
                raise DataError(
                    f"{entry.path} is a link that leads out of the dataset's folder.\n"
                    "Give the folder that it leads to as data.images, or put the files in its place."
                )
            yield from _below(entry.path, suffixes, inside, root, findings, on_bad_sample, above | {real})
        elif os.path.splitext(entry.name)[1].lower() in suffixes:
            if entry.is_symlink() and not inside.holds(entry.path):
                name = relative_name(entry.path, root)
                findings.drop("path-outside", name, "the link leads out of the dataset's folder", on_bad_sample)
            elif entry.is_file() or not os.path.exists(entry.path):  # to open a pipe would never end
                yield entry.path


def _entries(folder: str | Path) -> list[os.DirEntry]:
    try:
        with os.scandir(folder) as entries:
            kept = [entry for entry in entries if not is_hidden(check_name(entry.name))]
            return sorted(kept, key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({error.strerror}).") from None


def decode_mask(mask: Mapping[str, Any] | None, name: str, size: tuple[int, int] | None = None) -> PIL.Image.Image:
    """Decode the picture of a mask, upright, in its own mode: its pixels are values, not colours.

    Args:
        mask: `{"path": ..., "bytes": ...}`.
        name: what to call it in an error.
        size: (height, width) of its image. A mask that says to have many more pixels is not decoded.

    Raises:
        UnreadableImage: missing, not an image, or a JPEG, whose values are not those that were written.
    """
    path, content = ((mask or {}).get(key) for key in ("path", "bytes"))
    if not content and not (path and os.path.isfile(path)):
        raise UnreadableImage(name, "there is no mask", "missing-mask")
    try:
        with PIL.Image.open(in_memory(content or path), formats=image_formats()) as opened:
            if opened.format in ("JPEG", "MPO"):
                raise UnreadableImage(name, "a JPEG, whose compression changes its values", "lossy-mask")
            if size is not None and opened.width * opened.height > 4 * size[0] * size[1] + _FEW_PIXELS:
                reason = f"{opened.width}x{opened.height}, in an image of {size[1]}x{size[0]}"
                raise UnreadableImage(name, reason, "mask-size-mismatch")
            PIL.ImageOps.exif_transpose(opened, in_place=True)
            if opened.format == "GIF" and opened.mode == "P":
                # GIF has no grey but as a palette, whose order is the writer's.
                colours = np.reshape(opened.getpalette("RGB"), (-1, 3))
                return opened if (colours != colours[:, :1]).any() else opened.convert("L")
            return opened
    except (UnreadableImage, MemoryError):
        raise
    except Exception as error:  # decoders raise nearly anything on damaged bytes
        raise UnreadableImage(name, str(error).splitlines()[0][:200], "unreadable-mask") from None


def upright_mask(
    mask: Mapping[str, Any] | None, name: str, size: tuple[int, int], image: Mapping[str, Any] | None
) -> tuple[PIL.Image.Image, list[Finding]]:
    """As `decode_mask`, turned with its image where it is of the pixels as stored: its sides are those before EXIF
    swaps them, and it has no orientation of its own.

    Args:
        mask: as `decode_mask` takes it.
        name: what to call it.
        size: (height, width) of its image, upright.
        image: `{"path": ..., "bytes": ...}`; None: not known, and nothing is turned.

    Returns:
        the mask, and a finding where it was turned.

    Raises:
        UnreadableImage: see `decode_mask`.
    """
    decoded = decode_mask(mask, name, size)
    if decoded.size == (size[1], size[0]) or decoded.size != tuple(size):
        return decoded, []
    orientation = orientation_of(image)
    if orientation not in SIDEWAYS or orientation_of(mask) not in (None, 1):
        return decoded, []
    shown = f"{decoded.width}x{decoded.height}, as its image of {size[1]}x{size[0]} is stored"
    return decoded.transpose(_TURNS[orientation]), [("mask-turned", name, shown)]


def orientation_of(image: Mapping[str, Any] | None) -> int | None:
    """The EXIF orientation of an image; None where it has none, or cannot be read."""
    try:
        return None if image is None else stored_size(image)[1]
    except UnreadableImage:
        return None


def upright_size(image: Mapping[str, Any] | str, name: str | None = None) -> tuple[int, int]:
    """(height, width) of an image as `decode` gives it, EXIF orientation applied, from its header alone.

    Args:
        image: a path, or `{"path": ..., "bytes": ...}`.
        name: what to call it in an error.

    Raises:
        UnreadableImage: missing, or not an image.
    """
    size, orientation = stored_size(image, name)
    return size[::-1] if orientation in SIDEWAYS else size


def stored_size(image: Mapping[str, Any] | str, name: str | None = None) -> tuple[tuple[int, int], int | None]:
    """(height, width) of an image as its pixels are stored, and its EXIF orientation; see `upright_size`."""
    path, content = (image, None) if isinstance(image, str) else (image.get("path"), image.get("bytes"))
    try:
        source = io.BytesIO(content) if content is not None else path
        if content is None and not os.path.isfile(path):
            # Of a pipe, opening would not return.
            raise FileNotFoundError("there is no such file")
        with PIL.Image.open(source, formats=image_formats()) as opened:
            # A PNG is decoded whole to look for EXIF after its pixels; before them it is in `info`.
            has_exif = opened.format != "PNG" or "exif" in opened.info
            orientation = opened.getexif().get(ExifTags.Base.Orientation) if has_exif else None
            width, height = opened.size
            if opened.format == "TIFF":
                # Some versions of Pillow give the size of a TIFF turned already.
                width, height = (opened.tag_v2[tag] for tag in (ExifTags.Base.ImageWidth, ExifTags.Base.ImageLength))
    except MemoryError:
        raise
    except Exception as error:  # decoders raise nearly anything on damaged bytes
        read_header(image, name)
        raise UnreadableImage(name or path or "image", f"its size cannot be read ({error})") from None
    return (height, width), orientation
