"""What semantic segmentation needs of a dataset: an image, and a mask whose pixels are values that stand for classes.

Masks of segments (with a column segments_info, see panoptic) serve as well: a pixel is of its segment's class.

A value is a whole number: of a grey or palette image the pixel itself (never the palette's colour), of 1 bit 0 or 255.
Where the labels are colours ("#rrggbb") it is the pixel's red, green and blue. One value is ignored.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import count
from pathlib import Path
from typing import Any

import cv2
import datasets
import numpy as np
import PIL.Image
import pyarrow.compute as pc

from cv_hf.config import DataConfig
from cv_hf.data import hub, panoptic
from cv_hf.data import labels as label_maps
from cv_hf.data.annotations import decode_mask, folders, upright_mask
from cv_hf.data.columns import (
    IMAGE_NAMES,
    MASK_NAMES,
    can_be_image,
    check_given,
    find_column,
    find_image,
    is_image,
    is_list,
    keep_columns,
    listed,
)
from cv_hf.data.findings import Findings
from cv_hf.data.images import UnreadableImage
from cv_hf.data.labels import BINARY, LabelMap, shortened
from cv_hf.data.paths import Inside
from cv_hf.errors import DataError
from cv_hf.task import Finding

COLUMNS = ("image", "mask")
# Files beside the data that name the values of its masks; palettes first, as they say the most.
LABEL_FILES = (
    "id2label.json", "class_dict.csv", "label_colors.txt", "labelmap.txt", "_classes.csv", "classes.txt", "labels.txt",
)  # fmt: skip
# The ignored value where the recipe names none and it is no label.
_IGNORED = 255
# Beyond so many values masks are pictures: no 8-bit mask has nearly all of them.
_MOST_OF_8_BITS = 250
_MOST = 1000
_TABLE = 1 << 24
_AT_ONCE = 64
_TRIED = 32
_COLOUR = re.compile(r"#[0-9a-f]{6}")
_PALETTE = "\nName the colours in data.labels: {'#rrggbb': name}, or a palette file."


def canonical(dataset: datasets.Dataset, data: DataConfig) -> datasets.Dataset:
    """Keep the columns `image` and `mask`, undecoded, and `segments_info` where there is one; no image is read.

    A list of classes, whose names may be those of the values, stays as `classes` until `clean`.

    Raises:
        DataError: a column cannot be found, or holds no images.
    """
    given = dict(data.columns)
    if "segments_info" in (*given, *dataset.features):
        return panoptic.canonical(dataset, data)
    check_given(given, COLUMNS)
    features = dataset.features
    mask = _find_mask(features, given)
    image = find_image({name: feature for name, feature in features.items() if name != mask}, given)
    sources = {"image": image, "mask": mask}
    named = [name for name, feature in features.items() if _class_names(feature)]
    kept = keep_columns(dataset, sources | ({"classes": named[0]} if len(named) == 1 else {}))
    kept = kept.cast_column("mask", datasets.Image(decode=False))
    if not is_image(features[mask]) and pc.struct_field(kept.data.column("mask"), "bytes").null_count:
        # Readers refuse paths that lead out of the dataset in columns that are declared as images.
        raise DataError(f"column {mask!r} is no column of images, and has paths instead of embedded masks.")
    kept._source_columns = sources
    return kept


def label_map(
    splits: Mapping[str, datasets.Dataset], data: DataConfig, source_labels: LabelMap | None = None
) -> LabelMap:
    """The classes and the values that stand for them: as the recipe names them, else as a file beside the data or in
    its Hub repository does, else by a ClassLabel, else the values in all masks of train.

    Names in a list stand for 0, 1, ..., the ignored value skipped; those of 0 and 1 stand for 0 and 255 where masks
    hold only these. A value that is named and ignored is no class.

    Raises:
        DataError: labels that cannot be read or do not fit the masks, or masks that hold too many values to be classes.
    """
    if all(map(_of_segments, splits.values())):
        return panoptic.label_map(splits, data, source_labels)
    ignored = data.ignore_index
    named, _ = _named(splits, data)
    if isinstance(named, dict):
        pairs = [(_source(value), str(name)) for value, name in named.items()]
        pairs = [(source, name) for source, name in pairs if _value(source) != ignored]
    elif named is not None:
        pairs = list(zip((value for value in count() if value != ignored), map(str, named), strict=False))
    else:
        values = _seen(splits, data)
        if (binary := _binary(values, ignored)) is not None:
            return LabelMap(BINARY, binary, _ignored(binary, ignored))
        # 255 is a label only where something says so.
        left_out = _IGNORED if ignored is None and isinstance(values[0], int) else ignored
        pairs = [(value, str(value)) for value in values if _value(value) != left_out]
    sources, names = tuple(source for source, _ in pairs), tuple(name for _, name in pairs)
    if sources == (0, 1):
        sources = _binary(_seen(splits, data), ignored) or sources
    return LabelMap(names, sources, _ignored(sources, ignored))


def clean(
    rows: Mapping[str, datasets.Dataset], labels: LabelMap, data: DataConfig, source_format: str, findings: Findings
) -> tuple[dict[str, datasets.Dataset], str]:
    """Look whether the labels are those of the masks, by some of these; masks are read one by one in `fit`.

    Returns:
        the splits with the columns `image`, `mask` and `file`, and a line that says which values are labels and why.

    Raises:
        DataError: no mask can be read, or most pixels are of no label.
    """
    if all(map(_of_segments, rows.values())):
        # Which classes can be counted does not matter here, and may not be known.
        cleaned, _ = panoptic.clean(rows, replace(labels, things=labels.names), data, source_format, findings)
        return cleaned, f"masks: segments of {len(labels)} classes; void ignored"
    kept = {
        role: split.remove_columns("classes") if "classes" in split.column_names else split
        for role, split in rows.items()
    }
    for split in kept.values():
        _prove(split, labels)
    named, origin = _named(rows, data)
    ignored = labels.ignore_index
    if ignored is None:
        return kept, f"masks: {_shown(labels)}, {origin}; no value is ignored"
    name = _by_value(named).get(ignored) if isinstance(named, dict) else None
    shown = f"#{ignored:06x}" if _is_coloured(labels) else str(ignored)
    return kept, f"masks: {_shown(labels)}, {origin}; {shown}{f' ({name})' if name else ''} ignored"


def encode(dataset: datasets.Dataset, labels: LabelMap) -> datasets.Dataset:
    """The split as it is, since `fit` gives the contiguous ids; or with those of its segments."""
    return panoptic.encode(dataset, labels) if _of_segments(dataset) else dataset


def strata(dataset: datasets.Dataset) -> Sequence[None]:
    """None for each sample, as an image shows several classes."""
    return [None] * len(dataset)


def present(dataset: datasets.Dataset) -> set[str] | None:
    """The names of the classes that segments have; else None, not known, as masks are not read for it."""
    return panoptic.present(dataset) if _of_segments(dataset) else None


def fit(
    row: Mapping[str, Any], size: tuple[int, int], labels: LabelMap
) -> tuple[Mapping[str, Any] | None, list[Finding]]:
    """Decode the mask of one row.

    Args:
        row: `mask` (undecoded), `image` and `file`.
        size: (height, width) of its image, upright.
        labels: pixels of other values are ignored, with a finding.

    Returns:
        the row with `mask` (height, width): 0 where it is ignored, else the contiguous id of the class + 1; uint8, or
        uint16 from 255 classes on. None where the mask cannot be read or is of another size. And findings.
    """
    if "segments_info" in row:
        fitting, findings = panoptic.fit(row, size, labels)
        if fitting is None:
            return None, findings
        kind = np.uint8 if len(labels) < 256 else np.uint16
        codes = np.array([0, *(fitting["segments"]["category"] + 1)], kind)
        return {**row, "mask": codes[fitting["mask"]]}, findings
    name, lookup = row["file"], _lookup(labels)
    try:
        upright, findings = upright_mask(row["mask"], name, size, row["image"])
        values = _values(upright, lookup.coloured, lookup.one, name)
    except UnreadableImage as error:
        return None, [(error.code, name, error.reason)]
    if values.shape != tuple(size):
        reason = f"the mask has {values.shape[1]}x{values.shape[0]} pixels, its image {size[1]}x{size[0]}"
        return None, [("mask-size-mismatch", name, reason)]
    mask = lookup(values)
    if mask.max() == lookup.unknown:
        lost = mask == lookup.unknown
        mask[lost] = 0
        findings = [*findings, ("mask-unknown-value", name, lookup.shown(values[lost]))]
    return {**row, "mask": mask}, findings


def unknown_pixels(row: Mapping[str, Any], labels: LabelMap, size: tuple[int, int]) -> np.ndarray:
    """The pixels (height, width), bool, of a row's mask whose value is neither a label nor ignored; `size` is that of
    its image.

    Raises:
        UnreadableImage: the mask cannot be read.
    """
    lookup = _lookup(labels)
    upright, _ = upright_mask(row["mask"], row["file"], size, row["image"])
    return lookup(_values(upright, lookup.coloured, lookup.one, row["file"])) == lookup.unknown


@dataclass(frozen=True)
class _Lookup:
    """Values of pixels -> contiguous ids + 1, and the ignored value -> 0.

    Attributes:
        coloured: values are colours.
        one: what a set pixel of 1 bit is.
        keys, codes: the values that are known, ascending, and what they become.
        table: the code of each value from 0 to beyond the last, where these are not too many.
        unknown: the code of all other values, the highest.
    """

    coloured: bool
    one: int
    keys: np.ndarray
    codes: np.ndarray
    table: np.ndarray | None
    unknown: int

    def __call__(self, values: np.ndarray) -> np.ndarray:
        if self.table is not None and values.dtype == np.uint8:
            # Several times as fast as NumPy.
            return cv2.LUT(values, self.table[:256])
        if self.table is not None and (values.dtype.kind == "u" or values.min() >= 0):
            return np.take(self.table, values, mode="clip")
        places = np.searchsorted(self.keys, values).clip(max=len(self.keys) - 1)
        return np.where(self.keys[places] == values, self.codes[places], self.codes.dtype.type(self.unknown))

    def shown(self, values: np.ndarray) -> str:
        distinct = np.unique(values).tolist()
        first = ", ".join(f"#{value:06x}" if self.coloured else str(value) for value in distinct[:8])
        return f"{first}, ..." if len(distinct) > 8 else first


@lru_cache(maxsize=8)
def _lookup(labels: LabelMap) -> _Lookup:
    codes = {_value(source): index for index, source in enumerate(labels.sources, 1) if source is not None}
    one = 1 if 1 in codes and _IGNORED not in codes else 255
    if labels.ignore_index is not None:
        codes.setdefault(labels.ignore_index, 0)
    unknown = len(labels) + 1
    kind = np.uint8 if unknown < 256 else np.uint16
    keys = np.array(sorted(codes), np.int64)
    values = np.array([codes[key] for key in keys.tolist()], kind)
    table = None
    if len(keys) and keys[-1] < _TABLE:
        table = np.full(max(keys[-1], 255) + 2, unknown, kind)
        table[keys[keys >= 0]] = values[keys >= 0]
    return _Lookup(_is_coloured(labels), one, keys, values, table, unknown)


class _Coloured(UnreadableImage):
    """A mask whose pixels are colours, where they should be numbers."""


def _values(image: PIL.Image.Image, coloured: bool, one: int, name: str) -> np.ndarray:
    """The values of a mask (H, W): whole numbers, or colours as 24-bit numbers.

    Raises:
        _Coloured: numbers are wanted, and its channels differ.
        UnreadableImage: fractions.
    """
    if coloured and not image.mode.startswith(("I", "F")):
        # convert("RGB") drops transparency of a palette as well, but warns of it.
        image.info.pop("transparency", None)
        # Four bytes, red, green, blue and one that is shifted away.
        plain = image if image.mode == "RGB" else image.convert("RGB")
        return np.asarray(plain.convert("RGBX")).view(">u4")[..., 0] >> 8
    if image.mode == "1":
        return np.asarray(image).astype(np.uint8) * np.uint8(one)
    if image.mode in ("LA", "La", "PA"):
        return np.asarray(image)[..., 0]
    if image.mode == "F":
        fractions = np.asarray(image)
        values = fractions.astype(np.int64)
        if not np.array_equal(values, fractions):
            raise UnreadableImage(name, "the mask holds fractions", "unreadable-mask")
        return values
    if len(image.getbands()) == 1:
        return np.asarray(image)
    channels = np.asarray(image.convert("RGB"))
    if (channels != channels[..., :1]).any():
        raise _Coloured(name, "the mask is coloured, where the labels are numbers", "unreadable-mask")
    return channels[..., 0]


def _of_segments(dataset: datasets.Dataset) -> bool:
    return "segments_info" in dataset.column_names


def _find_mask(features: Mapping[str, Any], given: Mapping[str, str]) -> str:
    def fits(feature: Any) -> bool:
        return is_image(feature) or (isinstance(feature, dict) and can_be_image(feature))

    others = {name: feature for name, feature in features.items() if name != given.get("image")}
    fitting = [name for name, feature in others.items() if fits(feature)]
    if "mask" not in given and not any(name.lower() in MASK_NAMES for name in fitting):
        # Of two columns of images that which is not the one with an image's name.
        rest = [name for name in fitting if name.lower() not in IMAGE_NAMES]
        if len(rest) == 1 and (len(fitting) == 2 or "image" in given):
            return rest[0]
    found = find_column(others, "mask", kind=lambda _: False, usual_names=MASK_NAMES, fits=fits, given=given)
    if found not in fitting:
        raise DataError(f"data.columns.mask: column {found!r} holds no images: {listed({found: features[found]})}.")
    return found


def _class_names(feature: Any) -> list[str] | None:
    """The names of a list of classes, as of those that an image shows; a single class is one of the whole image."""
    element = feature.feature if is_list(feature) else None
    return element.names if isinstance(element, datasets.ClassLabel) else None


def _named(
    splits: Mapping[str, datasets.Dataset], data: DataConfig
) -> tuple[list[str] | dict[int | str, str] | None, str]:
    """What the values are called, a list or {value: name}, or None; and who says so."""
    root = Path(data.id) if Path(data.id).is_dir() else Path(data.id).parent
    if data.labels is not None:
        by_file = isinstance(data.labels, str)
        named = label_maps.read_values(data.labels, root) if by_file else data.labels
        return named, "as data.labels names them"
    if Path(data.id).exists() and data.format != "hub":
        inside = Inside(root)
        for name in LABEL_FILES:
            inner = folders(root) if Path(data.id).is_dir() else []
            for path in (root / name, *(folder / name for folder in inner)):
                if path.is_file() and inside.holds(path):
                    return label_maps.read_values(str(path)), f"as {path.relative_to(root).as_posix()} names them"
    elif (path := hub.download(data.id, "id2label.json", splits)) is not None:
        return label_maps.read_values(str(path)), "as id2label.json of the dataset names them"
    for split in splits.values():
        if "classes" in split.column_names:
            return _class_names(split.features["classes"]), "as the dataset's classes name them"
    return None, "as the masks hold them"


def _by_value(named: Mapping[int | str, str]) -> dict[int, str]:
    return {_value(_source(value)): str(name) for value, name in named.items()}


def _source(value: int | str) -> int | str:
    """A value as the label map has it: a number, or "#rrggbb".

    Raises:
        DataError: it is neither.
    """
    text = str(value).strip().lower()
    if _COLOUR.fullmatch(text):
        return text
    try:
        return int(text)
    except ValueError:
        raise DataError(
            f"data.labels: {value!r} is no value of a mask, which is a whole number or a colour, '#rrggbb'.\n"
            "Write the labels as {value: name}."
        ) from None


def _value(source: Any) -> int:
    return int(source[1:], 16) if isinstance(source, str) else int(source)


def _is_coloured(labels: LabelMap) -> bool:
    return any(isinstance(source, str) for source in labels.sources)


def _ignored(sources: Sequence[int | str], given: int | None) -> int | None:
    """The ignored value: the recipe's, else 255 unless that is a label or labels are colours."""
    if given is not None or not sources or isinstance(sources[0], str):
        return given
    return None if _IGNORED in sources else _IGNORED


def _binary(values: Sequence[int | str], ignored: int | None) -> tuple[int, int] | None:
    """The two values of masks that hold only these: 0 and 255, or 0 and 1."""
    rest = set(values) - {ignored}
    if ignored != _IGNORED and _IGNORED in rest and rest <= {0, _IGNORED}:
        return (0, _IGNORED)
    return (0, 1) if rest - {_IGNORED} == {0, 1} else None


def _seen(splits: Mapping[str, datasets.Dataset], data: DataConfig) -> list[int] | list[str]:
    """The values in all masks of train, or of all splits where there is no train; ascending.

    Raises:
        DataError: no mask can be read, or there are too many values to be classes.
    """
    parts = [splits["train"]] if "train" in splits else list(splits.values())
    seen = np.zeros(_TABLE, bool)
    beyond: set[int] = set()

    def note(mask: Mapping[str, Any] | None, name: str, coloured: bool = False) -> int | UnreadableImage:
        """The number of channels, once the values are counted."""
        try:
            image = decode_mask(mask, name)
            values = _values(image, coloured, 255, name)
        except UnreadableImage as error:
            return error
        if values.dtype.kind == "u":
            seen[values] = True
        else:
            distinct = np.unique(values)
            seen[distinct[(distinct >= 0) & (distinct < _TABLE)]] = True
            beyond.update(distinct[(distinct < 0) | (distinct >= _TABLE)].tolist())
        return len(image.getbands())

    outcomes = [outcome for split in parts for outcome in _each(split, range(len(split)), note)]
    bad = [outcome for outcome in outcomes if isinstance(outcome, UnreadableImage)]
    coloured = sum(isinstance(outcome, _Coloured) for outcome in outcomes)
    values: list[Any] = sorted([*np.flatnonzero(seen).tolist(), *beyond])
    # Where masks of colours are among those of numbers, the greater part decides; the others are found wanting later.
    if coloured and coloured >= sum(outcome in (1, 2) for outcome in outcomes):
        seen[:] = False
        for split in parts:
            _each(split, range(len(split)), lambda mask, name: note(mask, name, True))
        values = [f"#{value:06x}" for value in np.flatnonzero(seen).tolist()]
    if not values:
        raise DataError(f"{data.id}: no mask can be read" + (f": {bad[0]}" if bad else "."))
    if len(values) > _MOST or (len(values) > _MOST_OF_8_BITS and values[-1] == 255):
        raise DataError(
            f"{data.id}: the masks hold {len(values)} different values, too many to be classes: are they pictures?\n"
            "If not, name them in data.labels."
        )
    return values


def _each(split: datasets.Dataset, rows: Sequence[int], act: Callable[[Any, str], Any]) -> list[Any]:
    """What `act` gives for the mask and the file name of some rows, in threads."""
    found: list[Any] = []
    chosen = split.select_columns(["mask", "file"]).select(rows).with_format("arrow")
    with ThreadPoolExecutor(max_workers=min(16, 4 * (os.cpu_count() or 1))) as pool:
        for batch in chosen.iter(_AT_ONCE):
            found += pool.map(act, batch["mask"].to_pylist(), batch["file"].to_pylist())
    return found


def _prove(split: datasets.Dataset, labels: LabelMap) -> None:
    """Refuse masks that are not of these labels, judged by some of them."""
    lookup = _lookup(labels)
    known = [name for name, source in zip(labels.names, labels.sources, strict=True) if source is not None]
    if not known:
        raise DataError(
            f"no class of the masks is one of the model's, {shortened(labels.names, quote=False)}.\n"
            "Name their values in data.labels as {value: name}."
        )

    def judged(mask: Mapping[str, Any] | None, name: str) -> tuple[int, np.ndarray] | UnreadableImage:
        """The number of pixels, and the values of those that are of no label."""
        try:
            values = _values(decode_mask(mask, name), lookup.coloured, lookup.one, name)
        except UnreadableImage as error:
            return error
        return values.size, values[lookup(values) == lookup.unknown]

    rows = np.unique(np.linspace(0, len(split) - 1, min(len(split), _TRIED)).astype(np.int64))
    outcomes = _each(split, rows, judged) if len(split) else []
    read = [outcome for outcome in outcomes if not isinstance(outcome, UnreadableImage)]
    bad = [error for error in outcomes if isinstance(error, UnreadableImage) and error.code != "missing-mask"]
    if 2 * len(bad) > len(outcomes):
        more = _PALETTE if isinstance(bad[0], _Coloured) else ""
        many = "none" if not read else f"only {len(read)}"
        raise DataError(f"{many} of the {len(outcomes)} masks tried can be read: {bad[0]}{more}")
    pixels, lost = sum(size for size, _ in read), sum(values.size for _, values in read)
    if lost and len(known) == 1:
        # All else is ignored, so that there is nothing to tell it from.
        raise DataError(
            f"of the values of masks only that of {known[0]!r} has a label, and none have "
            f"{lookup.shown(np.concatenate([values for _, values in read]))}.\n"
            "Name them in data.labels as {value: name}."
        )
    if 2 * lost > pixels:
        raise DataError(
            f"{lost / pixels:.0%} of the pixels of masks are of no label: they are "
            f"{lookup.shown(np.concatenate([values for _, values in read]))}, the labels {_shown(labels)}.\n"
            "Name them in data.labels as {value: name}, or one of them as data.ignore_index."
        )


def _shown(labels: LabelMap) -> str:
    """The values of the labels, runs of them shortened."""
    if _is_coloured(labels):
        return f"{sum(source is not None for source in labels.sources)} colours"
    values = sorted(source for source in labels.sources if source is not None)
    starts = [value for value in values if value - 1 not in set(values)]
    ends = [value for value in values if value + 1 not in set(values)]
    runs = [
        str(start) if start == end else f"{start} to {end}" if end > start + 1 else f"{start}, {end}"
        for start, end in zip(starts, ends, strict=True)
    ]
    return f"values {', '.join(runs[:8])}{', ...' if len(runs) > 8 else ''}"
