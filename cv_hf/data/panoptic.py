"""What panoptic segmentation needs of a dataset: an image, a mask of segment ids, and what each segment is.

The mask's picture stays undecoded until `fit`. A pixel of an RGB picture is the segment red + 256 green + 65536 blue,
one of a grey picture its value, of 8 or more bits; 0 is void. A segment without a class, or not listed, is void too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import datasets
import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.compute as pc

from cv_hf.config import DataConfig
from cv_hf.data import detection
from cv_hf.data.annotations import upright_mask
from cv_hf.data.columns import check_given, find_column, find_image, is_image, keep_columns, listed
from cv_hf.data.findings import Findings
from cv_hf.data.images import UnreadableImage
from cv_hf.data.labels import LabelMap
from cv_hf.data.objects import (
    Place,
    as_numpy,
    category_name,
    contiguous_ids,
    find_member,
    flattened,
    is_category,
    is_number,
    list_lengths,
    members_of,
    rarest,
    source_categories,
    with_column,
    without_class,
)
from cv_hf.errors import DataError, did_you_mean
from cv_hf.runs import runs
from cv_hf.task import Finding

COLUMNS = ("image", "mask", "segments_info", "id", "category", "area", "iscrowd", "isthing")
_MASKS = (
    "mask", "label", "annotation", "panoptic", "panoptic_mask", "panoptic_map", "panoptic_label", "panoptic_image",
    "panoptic_seg", "panoptic_segmentation", "segmentation", "segmentation_map", "labels", "annotations", "masks",
)  # fmt: skip
_SEGMENTS = ("segments_info", "segments", "segment_info", "annotations", "annotation", "objects")
_HIGHEST_ID = 2**32 - 1


def canonical(dataset: datasets.Dataset, data: DataConfig) -> datasets.Dataset:
    """Keep the columns `image` and `mask`, undecoded, and `segments_info`, a list of {id, category_id, area, iscrowd}
    and, where the source has it, isthing; it is null where a row has none. No image is read.

    Raises:
        DataError: a column cannot be found, or has a type that is not read.
    """
    given, features = dict(data.columns), dataset.features
    check_given(given, COLUMNS)
    container = _find_segments(features, given)
    pictures = {name: feature for name, feature in features.items() if name != container}
    mask = given.get("mask") or next((name for name in _usual(pictures) if is_image(pictures[name])), None)
    image = find_image({name: feature for name, feature in pictures.items() if name != mask}, given)
    others = {name: feature for name, feature in pictures.items() if name != image and is_image(feature)}
    mask = find_column(others, "mask", kind=is_image, usual_names=_MASKS, given=given)
    kept = keep_columns(dataset, {"image": image, "mask": mask}).cast_column("mask", datasets.Image(decode=False))
    column, feature = _segments(dataset, container, given)
    kept = with_column(kept, "segments_info", column, feature)
    kept._source_columns = {"image": image, "mask": mask, "segments_info": container}
    return kept


def label_map(
    splits: Mapping[str, datasets.Dataset], data: DataConfig, source_labels: LabelMap | None = None
) -> LabelMap:
    """The classes of all splits, as detection decides them, and which of them are things: those that the recipe does
    not call stuff, else as the format or the segments say.

    Raises:
        DataError: labels that differ in type or do not fit the recipe's, stuff that is none of them, or a class that is
            a thing in some segments only.
    """
    features = {role: split.features["segments_info"].feature["category_id"] for role, split in splits.items()}
    flat = (_flat(split, "category_id") for split in splits.values())
    found = detection.classes(features, flat, data, source_labels)
    return replace(found, things=_things(found, splits, data, source_labels))


def clean(
    rows: Mapping[str, datasets.Dataset], labels: LabelMap, data: DataConfig, source_format: str, findings: Findings
) -> tuple[dict[str, datasets.Dataset], str]:
    """Drop segments without an id of their own, and make those without a known class void: their `category_id` is null.

    Args:
        rows: canonical splits, with `file`.
        labels: with `things`; segments of other classes are void.
        data: the data section.
        source_format: one of `config.FORMATS`.
        findings: filled with each bad segment.

    Raises:
        DataError: nothing says which classes are things; no segment has a label of the map; or on_bad_sample is "stop",
            and a segment is bad.
    """
    if labels.things is None:
        first = ", ".join(labels.names[:3])
        raise DataError(
            f"{data.id}: nothing says which classes are countable things and which are stuff.\n"
            f"Name those that are stuff: data.stuff=[...] (of {first}, ...), [] where all are things."
        )
    cleaned = {role: _clean_split(split, labels, findings, data.on_bad_sample) for role, split in rows.items()}
    number = len(labels.things)
    return cleaned, f"segments: {number} classes of things, {len(labels) - number} of stuff"


def encode(dataset: datasets.Dataset, labels: LabelMap) -> datasets.Dataset:
    """Replace `category_id` by contiguous ids, a ClassLabel of the map's names; null stays null.

    Raises:
        DataError: a category that is not in the map.
    """
    column = _column(dataset)
    fields = _fields(column)
    categories = fields["category_id"]
    ids = contiguous_ids(categories, labels)
    lost = ~as_numpy(categories.is_null(), bool) & (ids < 0)
    for place in np.flatnonzero(lost)[:1].tolist():
        feature = dataset.features["segments_info"].feature["category_id"]
        raise labels.unknown(category_name(categories[place].as_py(), feature))
    fields["category_id"] = pa.array(ids, mask=ids < 0)
    feature = datasets.ClassLabel(names=list(labels.names))
    return _with_segments(dataset, list_lengths(column), fields, feature)


def strata(dataset: datasets.Dataset) -> Sequence[str | None]:
    """The rarest class of each image of an encoded split, see detection; None without segments."""
    column = _column(dataset)
    categories = _fields(column)["category_id"]
    there = as_numpy(categories.is_valid(), bool)
    rows = np.repeat(np.arange(len(dataset)), list_lengths(column))[there]
    names = dataset.features["segments_info"].feature["category_id"].names
    return rarest(rows, as_numpy(categories.drop_null(), np.int64), len(dataset), names)


def present(dataset: datasets.Dataset) -> set[str]:
    """The names of the classes that an encoded split has segments of."""
    names = dataset.features["segments_info"].feature["category_id"].names
    found = _flat(dataset, "category_id").unique().to_pylist()
    return {names[index] for index in found if index is not None}


def fit(
    row: Mapping[str, Any], size: tuple[int, int], labels: LabelMap | None = None
) -> tuple[Mapping[str, Any] | None, list[Finding]]:
    """Decode the mask of one encoded row.

    Args:
        row: `mask` (undecoded), `segments_info` and `file`.
        size: (height, width) of its image, upright.

    Returns:
        the row with `mask` (height, width): the number of the segment, 1 to n in the order of segments_info, 0 where it
        is void; uint8, uint16 or int32, the smallest that holds n; and with `segments` {`category` (n,) int64,
        contiguous, `iscrowd` (n,) bool, `area` (n,) int64, in pixels}. None where the mask cannot be read, has another
        size than the image, or shows no segment that has a class. And findings as (code, name, reason).
    """
    name = row["file"]
    segments = row["segments_info"]
    # Void, too, is a segment that is known.
    listed_ids = np.array([*(segment["id"] for segment in segments), 0], np.int64)
    try:
        upright, findings = upright_mask(row["mask"], name, size, row.get("image"))
        ids = _decode(upright, name, listed_ids)
    except UnreadableImage as error:
        return None, [(error.code, name, error.reason)]
    if ids.shape != tuple(size):
        reason = f"{ids.shape[1]}x{ids.shape[0]}, in an image of {size[1]}x{size[0]}"
        return None, [("mask-size-mismatch", name, reason)]
    # Far fewer runs are looked up than there are pixels.
    values, lengths = runs(ids)
    order = np.argsort(listed_ids)
    places = order[np.minimum(np.searchsorted(listed_ids, values, sorter=order), len(order) - 1)]
    unlisted = listed_ids[places] != values
    places[unlisted] = len(segments)
    pixels = np.bincount(places, lengths, minlength=len(listed_ids))[:-1].astype(np.int64)
    if unlisted.any():
        several = np.unique(values[unlisted])
        shown = ", ".join(map(str, several[:5].tolist())) + (", ..." if len(several) > 5 else "")
        findings.append(("unlisted-segments", name, f"{lengths[unlisted].sum()} pixels of {shown}"))
    classed = np.array([segment["category_id"] is not None for segment in segments], bool)
    for place in np.flatnonzero(classed & (pixels == 0)).tolist():
        findings.append(("segment-without-pixels", f"{name} segment {segments[place]['id']}", ""))
    kept = np.flatnonzero(classed & (pixels > 0))
    if len(segments) and not len(kept):
        return None, findings
    kind = np.uint8 if len(kept) < 2**8 else np.uint16 if len(kept) < 2**16 else np.int32
    numbers = np.zeros(len(listed_ids), kind)
    numbers[kept] = np.arange(1, len(kept) + 1)
    found = {
        "category": np.array([segments[place]["category_id"] for place in kept], np.int64),
        "iscrowd": np.array([segments[place]["iscrowd"] for place in kept], bool),
        "area": pixels[kept],
    }
    return {**row, "mask": np.repeat(numbers[places], lengths).reshape(ids.shape), "segments": found}, findings


def unlisted_pixels(row: Mapping[str, Any], size: tuple[int, int]) -> np.ndarray:
    """The pixels (height, width), bool, of segments that a row does not list; `size` is that of its image.

    Raises:
        UnreadableImage: the mask cannot be read.
    """
    known = np.array([*(segment["id"] for segment in row["segments_info"]), 0], np.int64)
    upright, _ = upright_mask(row["mask"], row["file"], size, row["image"])
    return ~np.isin(_decode(upright, row["file"], known), known)


def _decode(image: PIL.Image.Image, name: str, listed_ids: np.ndarray) -> np.ndarray:
    """The segment ids (height, width) of a mask's picture."""
    if image.mode == "P":
        # Ids of 8 bits, written with colours for the eye; or RGB, which a program that makes files smaller rewrote.
        readings = (np.asarray(image), _packed(image))
        return min(readings, key=lambda ids: len(np.setdiff1d(ids, listed_ids)))
    if image.mode == "F" or image.mode in ("CMYK", "YCbCr", "LAB", "HSV"):
        raise UnreadableImage(name, f"its mode is {image.mode}, not RGB or grey", "unreadable-mask")
    if image.mode in ("RGB", "RGBA", "RGBX"):
        return _packed(image)
    pixels = np.asarray(image)
    return pixels[..., 0] if pixels.ndim == 3 else pixels


def _packed(image: PIL.Image.Image) -> np.ndarray:
    """red + 256 green + 65536 blue (height, width)."""
    # Pillow keeps the three in four bytes, which are read as one number without being taken apart.
    four = np.frombuffer(image.convert("RGB").tobytes("raw", "RGBX"), "<u4")
    return (four & 0xFFFFFF).reshape(image.height, image.width)


def _find_segments(features: Mapping[str, Any], given: Mapping[str, str]) -> str:
    if "segments_info" in given:
        name = given["segments_info"]
        if not _is_segments(features.get(name), name, given):
            near = did_you_mean(name, features)
            raise DataError(
                f"data.columns.segments_info: {name!r} is no column of segments, with an id and a category.{near}\n"
                f"Columns: {listed(features)}."
            )
        return name
    found = {name.lower(): name for name in reversed(features) if _is_segments(features[name], name, given)}
    named = [found[name] for name in _SEGMENTS if name in found] or list(found.values())
    if not named:
        raise DataError(
            f"no column of segments was found, each with an id and a category, among: {listed(features)}.\n"
            "Name it: data.columns.segments_info=NAME."
        )
    return named[0]


def _is_segments(feature: Any, name: str, given: Mapping[str, str]) -> bool:
    members = members_of({name: feature}, name)
    # Which members the recipe names is for the column that is chosen.
    fits = {"id": is_number, "category": is_category}
    named = {key: given[key] for key in fits if given.get(key, "").removeprefix(f"{name}.") in members}
    return all(find_member(members, key, named, name, fit) is not None for key, fit in fits.items())


def _usual(features: Mapping[str, Any]) -> list[str]:
    by_lower = {name.lower(): name for name in reversed(features)}
    return [by_lower[name] for name in _MASKS if name in by_lower]


def _segments(dataset: datasets.Dataset, container: str, given: Mapping[str, str]) -> tuple[pa.Array, Any]:
    """The column segments_info, its categories source ids, and its feature."""
    members = members_of(dataset.features, container)
    fits = {
        "id": is_number,
        "category": is_category,
        "area": is_number,
        "iscrowd": is_number,
        "isthing": is_number,
    }
    keys = {key: find_member(members, key, given, container, fit) for key, fit in fits.items()}
    keys = {key: name for key, name in keys.items() if name is not None}
    table = dataset.select_columns(container).with_format("arrow")[:]
    column = table[container].combine_chunks()
    if pa.types.is_struct(column.type):
        # Lists of one row that are of different lengths belong to no segments.
        each = [list_lengths(pc.struct_field(column, name)) for name in keys.values()]
        there = np.all([lengths == each[0] for lengths in each], axis=0)
        there &= as_numpy(pc.struct_field(column, keys["id"]).is_valid(), bool)
    else:
        there = as_numpy(column.is_valid(), bool)
    if not there.all():
        column = pc.if_else(pa.array(there), column, pa.scalar(None, column.type))
        table = pa.table({container: column})
    place = Place(container, keys)
    flat = {}
    for key in keys:
        numbers, flat[key] = flattened(table, place, key)
    categories, feature = source_categories(flat.pop("category"), members[keys["category"]])
    number = len(categories)
    area = flat["area"].cast(pa.float64(), safe=False) if "area" in flat else pa.nulls(number, pa.float64())
    crowd = _truths(flat["iscrowd"]) if "iscrowd" in flat else pa.nulls(number, pa.bool_())
    fields = {
        "id": flat["id"].cast(pa.float64(), safe=False).cast(pa.int64(), safe=False),
        "category_id": categories,
        "area": area,
        "iscrowd": pc.fill_null(crowd, False),
    }
    if "isthing" in flat:
        fields["isthing"] = _truths(flat["isthing"])
    return _listed(numbers, fields, ~there), _feature(feature, "isthing" in flat)


def _truths(values: pa.Array) -> pa.Array:
    return pc.not_equal(values.cast(pa.float64(), safe=False), 0)


def _feature(category: Any, isthing: bool = False) -> Any:
    values = {
        "id": datasets.Value("int64"),
        "category_id": category,
        "area": datasets.Value("float64"),
        "iscrowd": datasets.Value("bool"),
    }
    return datasets.List({**values, "isthing": datasets.Value("bool")} if isthing else values)


def _listed(numbers: np.ndarray, fields: Mapping[str, pa.Array], missing: np.ndarray | None = None) -> pa.Array:
    offsets = pa.array(np.concatenate([[0], np.cumsum(numbers)]).astype(np.int32))
    values = pa.StructArray.from_arrays(list(fields.values()), names=list(fields))
    return pa.ListArray.from_arrays(offsets, values, mask=None if missing is None else pa.array(missing))


def _column(dataset: datasets.Dataset) -> pa.Array:
    return dataset.select_columns("segments_info").with_format("arrow")[:]["segments_info"].combine_chunks()


def _fields(column: pa.Array) -> dict[str, pa.Array]:
    """The members of all segments, one after the other."""
    flat = pc.list_flatten(column)
    return {field.name: pc.struct_field(flat, field.name) for field in flat.type}


def _flat(dataset: datasets.Dataset, name: str) -> pa.Array:
    return _fields(_column(dataset))[name]


def _with_segments(
    dataset: datasets.Dataset, numbers: np.ndarray, fields: Mapping[str, pa.Array], category: Any
) -> datasets.Dataset:
    column = _listed(numbers, fields)
    return with_column(dataset.remove_columns("segments_info"), "segments_info", column, _feature(category))


def _things(
    labels: LabelMap, splits: Mapping[str, datasets.Dataset], data: DataConfig, source_labels: LabelMap | None
) -> tuple[str, ...] | None:
    if data.stuff is not None:
        for name in data.stuff:
            if name not in labels.names:
                raise DataError(f"data.stuff: {name!r} is none of the labels.{did_you_mean(name, labels.names)}")
        return tuple(name for name in labels.names if name not in data.stuff)
    countable: set[Any] = set()
    if source_labels is not None and source_labels.things is not None:
        countable = {source_labels.sources[source_labels.label2id[name]] for name in source_labels.things}
    elif all("isthing" in split.features["segments_info"].feature for split in splits.values()):
        said: dict[Any, set[bool]] = {}
        for split in splits.values():
            fields = _fields(_column(split))
            pairs = pa.table({"category": fields["category_id"], "isthing": fields["isthing"]})
            for pair in pairs.group_by(["category", "isthing"]).aggregate([]).to_pylist():
                if pair["isthing"] is not None:
                    said.setdefault(pair["category"], set()).add(pair["isthing"])
        for name, source in zip(labels.names, labels.sources, strict=True):
            if len(said.get(source, ())) > 1:
                raise DataError(f"{name!r} is a thing in some segments and stuff in others; set data.stuff.")
        countable = {source for source, values in said.items() if True in values}
    else:
        return None
    return tuple(name for name, source in zip(labels.names, labels.sources, strict=True) if source in countable)


def _clean_split(
    dataset: datasets.Dataset, labels: LabelMap, findings: Findings, on_bad_sample: str
) -> datasets.Dataset:
    files = dataset.select_columns("file")["file"][:]
    column = _column(dataset)
    gone = set(np.flatnonzero(as_numpy(column.is_null(), bool)).tolist())
    for row in sorted(gone):
        reason = "it has no segments_info, or lists of different lengths"
        findings.drop("unreadable-annotation", files[row], reason, on_bad_sample)
    fields = _fields(column)
    fields.pop("isthing", None)
    rows = np.repeat(np.arange(len(dataset)), list_lengths(column))
    ids = as_numpy(pc.fill_null(fields["id"], 0), np.int64)
    usable = (ids > 0) & (ids <= _HIGHEST_ID)
    _, firsts = np.unique(np.stack([rows, ids]), axis=1, return_index=True)
    repeated = np.ones(len(ids), bool)
    repeated[firsts] = False
    for place in np.flatnonzero(~usable | repeated).tolist():
        reason = "another segment of the image has this id" if usable[place] else "its id is void's, or none"
        findings.drop("segment-unreadable", f"{files[rows[place]]} segment {ids[place]}", reason, on_bad_sample)
    kept = usable & ~repeated
    fields = {name: values.filter(pa.array(kept)) for name, values in fields.items()}
    rows, ids = rows[kept], ids[kept]
    categories, feature = fields["category_id"], dataset.features["segments_info"].feature["category_id"]
    missing = without_class(categories, feature)
    lost = contiguous_ids(categories, labels) < 0
    unknown = lost & ~missing
    if unknown.any() and lost.all():
        place = int(np.flatnonzero(unknown)[0])
        raise labels.unknown(category_name(categories[place].as_py(), feature))
    if labels.ignore_index is not None and pa.types.is_integer(categories.type):
        unknown &= as_numpy(pc.fill_null(pc.not_equal(categories, labels.ignore_index), False), bool)
    for code, places in (("segment-without-label", missing), ("segment-unknown-label", unknown)):
        for place in np.flatnonzero(places).tolist():
            known = category_name(categories[place].as_py(), feature)
            reason = "" if code == "segment-without-label" else repr(known)
            findings.drop(code, f"{files[rows[place]]} segment {ids[place]}", reason, on_bad_sample)
    fields["category_id"] = pc.if_else(pa.array(lost), pa.scalar(None, categories.type), categories)
    cleaned = _with_segments(dataset, np.bincount(rows, minlength=len(dataset)), fields, feature)
    return cleaned.select([row for row in range(len(cleaned)) if row not in gone]) if gone else cleaned
