"""Image files as they come: decoding, and the check of all files before training starts.

An image is read as `transformers.image_utils.load_image` reads it, because that is what pipeline() does: EXIF
orientation applied, then `convert("RGB")`, which drops an alpha channel without blending it. Only where that clips the
values (16-bit grey, floating point from 0 to 1) the image is scaled instead, and a finding says so.
"""

from __future__ import annotations

import io
import os
import re
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from functools import cache, partial
from pathlib import Path
from typing import Any

import cv2
import datasets
import numpy as np
import PIL.ExifTags
import PIL.Image
import PIL.ImageOps
import pyarrow.compute as pc

from cv_hf.data.findings import Findings
from cv_hf.errors import DataError

# Filters are process-wide, and decoding runs in threads: a filter per call would race. Pillow warns of images above
# 89 megapixels and refuses them above 179; it also warns of damaged metadata that nothing here reads.
warnings.filterwarnings("ignore", category=PIL.Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")

# How OpenCV reads a JPEG, by how many times smaller. Blue comes first, but for newer versions' IMREAD_COLOR_RGB.
_IN_COLOUR = {
    1: getattr(cv2, "IMREAD_COLOR_RGB", cv2.IMREAD_COLOR),
    2: cv2.IMREAD_REDUCED_COLOR_2,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    8: cv2.IMREAD_REDUCED_COLOR_8,
}
# What turns an array upright, by the EXIF orientation that it has.
_UPRIGHT = {
    2: partial(cv2.flip, flipCode=1),
    3: partial(cv2.rotate, rotateCode=cv2.ROTATE_180),
    4: partial(cv2.flip, flipCode=0),
    5: cv2.transpose,
    6: partial(cv2.rotate, rotateCode=cv2.ROTATE_90_CLOCKWISE),
    7: lambda pixels: cv2.flip(cv2.transpose(pixels), -1),
    8: partial(cv2.rotate, rotateCode=cv2.ROTATE_90_COUNTERCLOCKWISE),
}
_HEADER_BYTES = 16
_TAIL_BYTES = 64
_BITS_PER_SAMPLE = 258
_PHOTOMETRIC_INTERPRETATION = 262
_PLANAR_CONFIGURATION = 284
_READ_WHOLE = 1 << 26
# Headers are read by many threads, each of which could meet a small file that says to be a huge image.
_ONE_AT_A_TIME = threading.Lock()
_CHECKED_AT_ONCE = 10_000
# Photos of phones and cameras, which Pillow alone does not decode; as TIFF it would read a raw's thumbnail.
_NOT_DECODED = frozenset({".heic", ".heif", ".dng", ".cr2", ".cr3", ".nef", ".arw"})
# HEIC, told by one of its first brands.
_BRANDS = 8
_HEIC = re.compile(rb".{4}ftyp(.{4}){0,%d}?(hei[cxms]|hev[cxms])" % _BRANDS, re.DOTALL)
_WITH_ALPHA = frozenset({"RGBA", "RGBa", "LA", "La", "PA"})
_USUAL = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF")
_NOT_READ = frozenset({"EPS", "WMF", "MPEG", "HDF5", "GRIB", "BUFR", "PDF"})


class UnreadableImage(DataError):
    """An image that cannot be decoded; the message holds the file's name and the reason."""

    def __init__(self, name: str, reason: str, code: str = "unreadable-image") -> None:
        super().__init__(f"{name}: {reason}.")
        self.name, self.reason, self.code = name, reason, code

    def __reduce__(self) -> tuple[Any, ...]:
        # Exceptions cross from DataLoader workers by pickle, which would call __init__ with the message alone.
        return type(self), (self.name, self.reason, self.code)


def decode(
    image: Mapping[str, Any] | str | os.PathLike | PIL.Image.Image, name: str | None = None
) -> tuple[PIL.Image.Image, list[str]]:
    """Decode one image, upright.

    Args:
        image: a path; `{"path": ..., "bytes": ...}` as `datasets.Image(decode=False)` gives; or an image.
        name: what to call it in an error.

    Returns:
        an RGB image of 8 bits per channel, and the codes of the repairs made (see `findings.CODES`).

    Raises:
        UnreadableImage: missing, empty, truncated, not an image, or of values without an agreed range.
    """
    name, source = _source(image, name)
    with _decoding(source, name) as opened:
        opened.load()
        decoded, codes = _to_rgb(opened, name)
        # What was opened here need not be copied.
        return decoded.copy() if decoded is source else decoded, codes


def decode_array(
    image: Mapping[str, Any] | str | os.PathLike | PIL.Image.Image,
    name: str | None = None,
    *,
    reduction: Callable[[tuple[int, int]], int] | None = None,
) -> tuple[np.ndarray, tuple[int, int], list[str]]:
    """The pixels of `decode`'s image, which of a JPEG are had in three quarters of the time.

    Args:
        image, name: as `decode` takes them.
        reduction: (height, width) -> how many times smaller the image may be returned, which saves time where the
            format can be decoded so: JPEG at a half, a quarter or an eighth. None: as large as it is.

    Returns:
        uint8 RGB (H, W, 3); the (height, width) that it has, or would have if it were not smaller; and the codes.

    Raises:
        UnreadableImage: as `decode`.
    """
    name, source = _source(image, name)
    with _decoding(source, name) as opened:
        (width, height), times = opened.size, 1
        if reduction is not None and opened.format == "JPEG":
            times = min(reduction((height, width)), reduction((width, height)))
            opened.draft(None, (width // times, height // times))
        pixels, codes = _jpeg_pixels(opened, times), []
        if pixels is None:
            opened.load()
            decoded, codes = _to_rgb(opened, name)
            pixels = np.array(decoded)
        turned = _orientation(opened) in range(5, 9)
        return pixels, (width, height) if turned else (height, width), codes


def read_header(image: Mapping[str, Any] | str | os.PathLike, name: str | None = None) -> tuple[str, ...]:
    """Check one image without decoding it, and return the codes of findings that show so.

    A file that is shorter than it says, or lacks its end marker, is suspected to be truncated, and decoded after all:
    many a file that lacks only the marker can be read.

    Raises:
        UnreadableImage: as `decode` does, as far as the header shows it.
    """
    name, source = _source(image, name)
    try:
        with io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb") as stream:
            start = stream.read(_HEADER_BYTES)
            if not start:
                raise UnreadableImage(name, "the file is empty", "empty-image")
            stream.seek(0, os.SEEK_END)
            size = stream.tell()
            stream.seek(max(0, size - _TAIL_BYTES))
            early = _ends_early(start, stream.read(), size)
            stream.seek(0)
            with PIL.Image.open(stream, formats=image_formats()) as opened:
                _refuse_misread(opened, name)
                codes = _header_codes(opened, image)
    except (UnreadableImage, MemoryError):
        raise
    except Exception as error:
        raise _unreadable(error, source, name) from None
    if early:
        with _ONE_AT_A_TIME:
            decode(image, name)
    return codes


def check_images(dataset: datasets.Dataset, findings: Findings, on_bad_sample: str = "skip") -> datasets.Dataset:
    """Drop the samples whose image is a file on disk that cannot be read.

    Only headers are read. Images embedded in the dataset (parquet) are not looked at here, since that would read
    the whole dataset; they are checked when they are decoded.

    Args:
        dataset: columns `image` (undecoded) and `file`.
        findings: filled with what was found.
        on_bad_sample: "skip", or "stop" to raise at the first unreadable image.

    Raises:
        DataError: on_bad_sample is "stop", and an image cannot be read.
    """
    rows, paths = _images_on_disk(dataset)
    if not rows:
        return dataset
    names = dataset.select_columns("file").select(rows)["file"][:]
    dropped = set()
    with ThreadPoolExecutor(max_workers=min(16, 4 * (os.cpu_count() or 1))) as pool:
        # One future per image of a million would need a gigabyte.
        for start in range(0, len(rows), _CHECKED_AT_ONCE):
            part = slice(start, start + _CHECKED_AT_ONCE)
            outcomes = pool.map(_try_header, paths[part], names[part])
            for row, name, outcome in zip(rows[part], names[part], outcomes, strict=True):
                if isinstance(outcome, UnreadableImage):
                    findings.drop(outcome.code, name, outcome.reason, on_bad_sample)
                    dropped.add(row)
                else:
                    for code in outcome:
                        findings.add(code, name)
    return dataset.select([row for row in range(len(dataset)) if row not in dropped]) if dropped else dataset


def _try_header(path: str | None, name: str) -> tuple[str, ...] | UnreadableImage:
    try:
        return read_header({"path": path}, name)
    except UnreadableImage as error:
        return error


def _images_on_disk(dataset: datasets.Dataset) -> tuple[list[int], list[str | None]]:
    """The rows without embedded bytes, and their paths; embedded bytes are not read, only whether they are there."""
    column = dataset.data.column("image")
    embedded = pc.struct_field(column, "bytes").is_valid().to_pylist()
    paths = pc.struct_field(column, "path").to_pylist()
    indices = range(len(paths)) if dataset._indices is None else dataset._indices.column(0).to_pylist()
    rows = [row for row, index in enumerate(indices) if not embedded[index]]
    return rows, [paths[indices[row]] for row in rows]


@contextmanager
def _decoding(source: str | bytes | PIL.Image.Image, name: str) -> Iterator[PIL.Image.Image]:
    """The image, closed at the end unless it is the caller's; whatever goes wrong meanwhile is an UnreadableImage."""
    try:
        mine = not isinstance(source, PIL.Image.Image)
        with PIL.Image.open(in_memory(source), formats=image_formats()) if mine else nullcontext(source) as opened:
            _refuse_misread(opened, name)
            yield opened
    except (UnreadableImage, MemoryError):
        raise
    except Exception as error:  # decoders raise nearly anything on damaged bytes
        raise _unreadable(error, source, name) from None


def _to_rgb(opened: PIL.Image.Image, name: str) -> tuple[PIL.Image.Image, list[str]]:
    """A loaded image upright and as 8-bit RGB, and the codes of what was done to its values."""
    codes: list[str] = []
    upright = PIL.ImageOps.exif_transpose(opened) if _orientation(opened) in range(2, 9) else opened
    if upright.mode.startswith("I;16") or (upright.mode == "I" and not _is_8_bit(opened)):
        upright, codes = _from_16_bit(upright, opened, name), ["sixteen-bit"]
    elif upright.mode == "F":
        upright, codes = _from_float(upright, name)
    elif upright.mode == "P":
        # convert("RGB") drops transparency of a palette as well, but warns of it.
        upright = upright.copy()
        upright.info.pop("transparency", None)
    return upright if upright.mode == "RGB" else upright.convert("RGB"), codes


def _orientation(opened: PIL.Image.Image) -> int | None:
    return opened.getexif().get(PIL.ExifTags.Base.Orientation)


def _jpeg_pixels(opened: PIL.Image.Image, times: int) -> np.ndarray | None:
    """The pixels of a JPEG in grey or colour, upright and so many times smaller: the same that Pillow makes of it but
    in one piece; else None.

    None also of a damaged one, on which Pillow has the last word.
    """
    plain = opened.format in ("JPEG", "MPO") and opened.mode in ("RGB", "L")
    if not plain or not isinstance(opened.fp, io.BytesIO):
        return None
    how = _IN_COLOUR[times]
    try:
        pixels = cv2.imdecode(np.frombuffer(opened.fp.getbuffer(), np.uint8), how | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error:
        return None
    if pixels is None:
        return None
    if times > 1 or how == cv2.IMREAD_COLOR:
        cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB, pixels)
    upright = _UPRIGHT.get(_orientation(opened))
    return pixels if upright is None else upright(pixels)


def in_memory(source: str | bytes) -> str | io.BytesIO:
    """The content of an image; of a large file its path.

    Pillow asks for as many bytes as a damaged PNG says are left, gigabytes perhaps; of what is in memory it gets what
    there is.
    """
    if isinstance(source, bytes):
        return io.BytesIO(source)
    return io.BytesIO(Path(source).read_bytes()) if os.path.getsize(source) <= _READ_WHOLE else source


def _source(image: Any, name: str | None) -> tuple[str, str | bytes | PIL.Image.Image]:
    if isinstance(image, PIL.Image.Image):
        return name or getattr(image, "filename", "") or "image", image
    if isinstance(image, Mapping):
        path, content = image.get("path"), image.get("bytes")
        name = name or path or "image"
        if content is not None:
            if not content:
                raise UnreadableImage(name, "the image is empty", "empty-image")
            return name, bytes(content)
        if path is None:
            raise UnreadableImage(name, "there is no image", "missing-image")
    else:
        path = os.fspath(image)
        name = name or path
    if not os.path.isfile(path):
        raise UnreadableImage(name, "no such file", "missing-image")
    if os.path.getsize(path) == 0:
        raise UnreadableImage(name, "the file is empty", "empty-image")
    return name, path


def _header_codes(opened: PIL.Image.Image, image: Any) -> tuple[str, ...]:
    codes = []
    if opened.mode.startswith("I;16"):
        codes.append("sixteen-bit")
    # The second picture of a phone's MPO file is a preview or a depth map.
    if opened.format != "MPO" and getattr(opened, "is_animated", False):
        codes.append("first-frame")
    path = image.get("path") if isinstance(image, Mapping) else os.fspath(image)
    suffix = Path(path or "").suffix.lower()
    expected = PIL.Image.registered_extensions().get(suffix)
    # Phones name MPO files .jpg, and MPO begins as a JPEG does.
    if expected and opened.format not in (expected, "MPO" if expected == "JPEG" else expected):
        codes.append("suffix-mismatch")
    if opened.mode == "CMYK":
        codes.append("cmyk-image")
    if opened.mode in ("P", "PA"):
        codes.append("palette-image")
    if opened.mode in _WITH_ALPHA or "transparency" in opened.info:
        codes.append("alpha-image")
    # Turning the image upright fails on damaged EXIF. A PNG is decoded whole to look for EXIF after its pixels; before
    # them, where writers put it, it is in `info`.
    has_exif = opened.format != "PNG" or "exif" in opened.info
    if has_exif and opened.getexif().get(PIL.ExifTags.Base.Orientation) in range(2, 9):
        codes.append("exif-rotated")
    return tuple(codes)


def _tag(image: PIL.Image.Image, tag: int, default: Any) -> Any:
    """A tag of a TIFF; the default for other formats."""
    return getattr(image, "tag_v2", {}).get(tag, default)


def _refuse_misread(opened: PIL.Image.Image, name: str) -> None:
    if opened.format == "TIFF" and (reason := _not_decoded(name)):
        raise UnreadableImage(name, reason)
    planes = _tag(opened, _PLANAR_CONFIGURATION, 1) == 2 and len(opened.getbands()) > 1
    if planes and max(_tag(opened, _BITS_PER_SAMPLE, (8,))) > 8 and opened.info.get("compression") == "raw":
        raise UnreadableImage(name, "a TIFF of uncompressed 16-bit planes, which Pillow misreads; convert it to 8 bits")


def _is_8_bit(opened: PIL.Image.Image) -> bool:
    """Whether an image of 32-bit integers holds 8-bit values: only then is convert("RGB") right about it."""
    if opened.format == "PPM" or _tag(opened, _BITS_PER_SAMPLE, (32,)) == (16,):
        return False
    low, high = opened.getextrema()
    return low >= 0 and high <= 255


def _from_16_bit(upright: PIL.Image.Image, opened: PIL.Image.Image, name: str) -> PIL.Image.Image:
    values = np.asarray(upright)
    if values.min() < 0 or values.max() > 65535:
        raise UnreadableImage(name, "integers outside 0 to 65535 have no agreed range; convert the file to 8 bits")
    # The high byte, as Pillow takes of 16-bit RGB, so that grey and RGB of the same picture agree.
    grey = (values >> 8).astype(np.uint8)
    # Pillow inverts a TIFF whose zero is white at 8 bits, and not at 16.
    white_is_zero = _tag(opened, _PHOTOMETRIC_INTERPRETATION, 1) == 0
    return PIL.Image.fromarray(255 - grey if white_is_zero else grey)


def _from_float(image: PIL.Image.Image, name: str) -> tuple[PIL.Image.Image, list[str]]:
    values = np.asarray(image)
    if not np.isfinite(values).all() or values.min() < 0 or values.max() > 255:
        raise UnreadableImage(name, "floating-point values outside 0 to 255 have no agreed range; convert it to 8 bits")
    if values.max() > 1:
        return image, []
    return PIL.Image.fromarray(np.rint(values * 255).astype(np.uint8)), ["float-image"]


def _not_decoded(name: str) -> str | None:
    """Why a photo of a phone or a camera is not read; None for other suffixes, and where a plugin decodes it."""
    suffix = Path(name).suffix.lower()
    if suffix not in _NOT_DECODED or suffix in PIL.Image.registered_extensions():
        return None
    return f"{suffix[1:].upper()} is not decoded here: convert it to JPEG"


def _unreadable(error: Exception, source: str | bytes | PIL.Image.Image, name: str) -> UnreadableImage:
    """What a decoder's error means."""
    code = "unreadable-image"
    if isinstance(error, PIL.Image.DecompressionBombError):
        code = "decompression-bomb"
    elif _not_decoded(name):
        code = "photo-format"
    elif not isinstance(source, PIL.Image.Image):
        with io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb") as stream:
            start = stream.read(_HEADER_BYTES + 4 * _BRANDS)
            size = stream.seek(0, os.SEEK_END)
            stream.seek(max(0, size - _TAIL_BYTES))
            # As some programs save it: HEIC with the suffix of a JPEG.
            if _HEIC.match(start) and (reason := _not_decoded("x.heic")):
                return UnreadableImage(name, reason, "photo-format")
            if _ends_early(start, stream.read(), size) or "truncated" in str(error).lower():
                code = "truncated-image"
    return UnreadableImage(name, _reason(error, name), code)


def _ends_early(start: bytes, tail: bytes, size: int) -> bool:
    """Whether a file of `size` bytes, told by its first ones, is shorter than it says or lacks its end marker."""
    if start.startswith((b"BM", b"RIFF")):
        place, header = (2, 0) if start.startswith(b"BM") else (4, 8)
        return int.from_bytes(start[place : place + 4], "little") + header > size
    ends = {b"\xff\xd8": b"\xff\xd9", b"\x89PNG": b"IEND", b"GIF8": b";"}
    return any(start.startswith(magic) and end not in tail for magic, end in ends.items())


def _reason(error: Exception, name: str) -> str:
    if reason := _not_decoded(name):
        return reason
    if isinstance(error, PIL.UnidentifiedImageError):
        return "not an image, or of a format that Pillow cannot read"
    if isinstance(error, PIL.Image.DecompressionBombError):
        return "more than 179 million pixels, which Pillow refuses as a decompression bomb"
    text = str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
    return f"cannot be decoded ({text})"


@cache
def image_formats() -> tuple[str, ...]:
    """The formats that are read: Pillow's, but none that starts another program (EPS: Ghostscript) or has no pixels.

    In the order in which they are tried, the most usual first.
    """
    PIL.Image.init()
    known = (*_USUAL, *(format_ for format_ in PIL.Image.ID if format_ not in _USUAL))
    return tuple(format_ for format_ in known if format_ in PIL.Image.ID and format_ not in _NOT_READ)


@cache
def image_suffixes() -> frozenset[str]:
    """The suffixes of image files, lower case, with the dot; also those of photos that are refused by name."""
    suffixes = PIL.Image.registered_extensions()
    return _NOT_DECODED | {suffix for suffix, format_ in suffixes.items() if format_ in image_formats()}


def relative_name(path: str, root: Path | None) -> str:
    """What to call a file: its path from the dataset's folder, never a path of this machine."""
    if root is not None and path.startswith(f"{root}{os.sep}"):
        return path[len(str(root)) + 1 :].replace(os.sep, "/")
    parts = Path(path).parts
    # The Hub's cache: .../snapshots/<commit>/<path in the repository>.
    if "snapshots" in parts[:-2]:
        return "/".join(parts[parts.index("snapshots") + 2 :])
    return parts[-1] if os.path.isabs(path) or "::" in path or "://" in path else path
