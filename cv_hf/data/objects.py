"""Where the objects of an image stand in a table, in which columns and lists, and these lists as Arrow.

Objects are a struct of lists, a list of structs, or list columns of their own, under any of the usual names.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cv_hf.data import box_rows, rle
from cv_hf.data.columns import is_list, listed
from cv_hf.data.findings import Findings
from cv_hf.data.labels import LabelMap
from cv_hf.errors import DataError, did_you_mean

COLUMNS = ("image", "objects", "bbox", "category", "area", "iscrowd", "image_id", "width", "height")
USUAL = {
    "objects": (
        "objects", "annotations", "object", "annotation", "instances", "detections", "labels", "label", "faces",
        "digits", "ground_truth",
    ),
    "bbox": ("bbox", "bboxes", "box", "boxes", "bounding_box", "bounding_boxes"),
    "category": (
        "category", "category_id", "label", "labels", "categories", "class", "class_id", "classes", "category_ids",
        "label_id", "label_ids", "class_ids", "class_label", "class_labels", "category_name", "label_name",
        "class_name", "category_names", "label_names", "class_names", "cls", "name", "names", "type", "types",
        "labelname", "classname", "classid",
    ),
    "segmentation": (
        "segmentation", "segmentations", "mask", "masks", "rle", "rles", "polygon", "polygons", "segment", "segments",
    ),
    "area": ("area", "areas"),
    "iscrowd": ("iscrowd", "is_crowd", "crowd", "isgroupof", "is_group_of"),
    "id": ("id", "segment_id", "ids", "segment_ids"),
    "isthing": ("isthing", "is_thing"),
    "image_id": ("image_id", "img_id", "id"),
    "width": ("width", "image_width", "img_width"),
    "height": ("height", "image_height", "img_height"),
}  # fmt: skip


@dataclass(frozen=True)
class Place:
    """Where the objects stand: the column that holds them (None: columns of their own), and the names in it."""

    container: str | None
    keys: dict[str, str]

    def column(self, canonical: str) -> str:
        key = self.keys[canonical]
        return key if self.container is None else f"{self.container}.{key}"


def has_masks(features: Mapping[str, Any], given: Mapping[str, str]) -> bool:
    """Whether there are objects with polygons or RLE among the columns."""
    return bool(containers_of(features, given, "segmentation"))


def containers_of(features: Mapping[str, Any], given: Mapping[str, str], anchor: str) -> list[str | None]:
    """The columns that could hold the objects, told by their member `anchor`; None: list columns of their own."""
    containers = [name for name in features if members_of(features, name)]
    if "objects" in given:
        name = given["objects"]
        if name not in features:
            raise DataError(
                f"data.columns.objects: there is no column {name!r}.{did_you_mean(name, features)} "
                f"Columns: {listed(features)}."
            )
        return [name]
    if anchor in given:
        name = given[anchor]
        outer = name.partition(".")[0]
        if outer in containers:
            return [outer]
        return [None] if name in features else [each for each in containers if name in members_of(features, each)]
    fits = FITTING[anchor]
    found: list[str | None] = [
        each for each in containers if find_member(members_of(features, each), anchor, given, each, fits) is not None
    ]
    if not found and find_member(members_of(features, None), anchor, given, None, fits):
        found = [None]
    if len(found) > 1:
        by_lower = {str(each).lower(): each for each in reversed(found)}
        found = [by_lower[name] for name in USUAL["objects"] if name in by_lower][:1] or found
    return found


def find_place(features: Mapping[str, Any], given: Mapping[str, str], anchor: str) -> Place:
    """Where the objects stand, told by their member `anchor`.

    Raises:
        DataError: no column holds them, or more than one could.
    """
    found = containers_of(features, given, anchor)
    things = "boxes" if anchor == "bbox" else "masks"
    if len(found) != 1:
        what = f"more than one column could hold the {things}" if found else f"no column of {things} was found"
        raise DataError(
            f"{what} among: {listed(features)}.\n"
            f"Name it: data.columns.objects=NAME; or, where these are columns of their own, data.columns.{anchor}=NAME "
            "data.columns.category=NAME."
        )
    container = found[0]
    members = members_of(features, container)
    key = find_member(members, anchor, given, container, FITTING[anchor])
    if key is None:
        where = f"column {container!r}" if container else "the dataset"
        raise DataError(
            f"{where} has no list of {things} ({', '.join(USUAL[anchor][:4])}) among: {listed(members)}.\n"
            f"Name it: data.columns.{anchor}=NAME."
        )
    keys = {anchor: key}
    others = {name: feature for name, feature in members.items() if name != key}
    for canonical, fits in FITTING.items():
        if canonical not in ("segmentation", anchor):
            key = find_member(others, canonical, given, container, fits)
            if key is not None:
                keys[canonical] = key
    return Place(container, keys)


def members_of(features: Mapping[str, Any], container: str | None) -> dict[str, Any]:
    """What one object consists of, {name: feature}, in a column of objects or (None) in list columns of their own."""
    feature = dict(features) if container is None else features.get(container)
    if isinstance(feature, dict):
        return {name: inner.feature for name, inner in feature.items() if is_list(inner)}
    return dict(feature.feature) if is_list(feature) and isinstance(feature.feature, dict) else {}


def find_member(
    members: Mapping[str, Any],
    canonical: str,
    given: Mapping[str, str],
    container: str | None,
    fits: Callable[[Any], bool],
) -> str | None:
    """The member that is a canonical one: as the recipe says, else by usual names; ClassLabel, then text first."""
    fitting = {name: feature for name, feature in members.items() if fits(feature)}
    if canonical in given:
        name = given[canonical]
        name = name.removeprefix(f"{container}.") if container else name
        if name not in fitting:
            near = did_you_mean(name, fitting)
            what = "is of a type that is not read" if name in members else "is not there"
            raise DataError(
                f"data.columns.{canonical}: {given[canonical]!r} {what}.{near} There are: {listed(members)}."
            )
        return name
    by_lower = {name.lower(): name for name in reversed(fitting)}
    found = [by_lower[name] for name in USUAL[canonical] if name in by_lower]
    return min(found, key=lambda name: _rank(fitting[name]), default=None)


def _rank(feature: Any) -> int:
    if isinstance(feature, datasets.ClassLabel):
        return 0
    return 1 if getattr(feature, "dtype", "") in ("string", "large_string") else 2


def find_value(features: Mapping[str, Any], canonical: str, given: Mapping[str, str]) -> str | None:
    """The column of an image's id, width or height, or None."""
    kinds = ("int", "uint", "string", "large_string") if canonical == "image_id" else ("int", "uint", "float")
    fitting = [
        name
        for name, feature in features.items()
        if isinstance(feature, datasets.Value) and feature.dtype.startswith(kinds)
    ]
    if canonical in given:
        if given[canonical] not in fitting:
            known = ", ".join(fitting) or "none"
            raise DataError(
                f"data.columns.{canonical}: {given[canonical]!r} is not one of the columns that fit: {known}."
            )
        return given[canonical]
    by_lower = {name.lower(): name for name in reversed(fitting)}
    return next((by_lower[name] for name in USUAL[canonical] if name in by_lower), None)


def is_number(feature: Any) -> bool:
    """Whether a column holds numbers, true or false, or nothing."""
    if not isinstance(feature, datasets.Value):
        return isinstance(feature, datasets.ClassLabel)
    return feature.dtype.startswith(("int", "uint", "float", "bool", "null"))


def is_box(feature: Any) -> bool:
    """A list of numbers, or a struct of four; or nothing, where no image of a split has a box."""
    if isinstance(feature, dict):
        return box_rows.edges(feature) is not None
    plain = feature.feature if is_list(feature) else feature
    return (
        is_number(plain) and not isinstance(plain, datasets.ClassLabel) and (is_list(feature) or plain.dtype == "null")
    )


def _is_segmentation(feature: Any) -> bool:
    """Polygons, a list of numbers or lists of them, as deep as they go; RLE, a struct; or either as text."""
    if isinstance(feature, dict):
        return {"counts", "size"} <= set(feature)
    while is_list(feature):
        feature = feature.feature
    return is_number(feature) or getattr(feature, "dtype", "") in ("string", "large_string")


def is_category(feature: Any) -> bool:
    """Whether a column can hold classes: numbers or text."""
    return is_number(feature) or getattr(feature, "dtype", "") in ("string", "large_string")


# What an object consists of, and whether a feature can be it.
FITTING: dict[str, Callable[[Any], bool]] = {
    "bbox": is_box,
    "segmentation": _is_segmentation,
    "category": is_category,
    "area": is_number,
    "iscrowd": is_number,
}


def source_categories(flat: pa.Array, feature: Any) -> tuple[pa.Array, Any]:
    """Source ids as int64, float64, text or booleans, and their feature; null where a split has no object."""
    if isinstance(feature, datasets.ClassLabel):
        return flat.cast(pa.int64()), feature
    kind = flat.type
    if pa.types.is_integer(kind):
        kind = pa.int64()
    elif pa.types.is_large_string(kind):
        kind = pa.string()
    elif pa.types.is_floating(kind):
        kind = pa.float64()
    names = {pa.float64(): "float64", pa.bool_(): "bool"}
    return flat.cast(kind), datasets.Value(names.get(kind, str(kind)))


def flattened(table: pa.Table, place: Place, canonical: str) -> tuple[np.ndarray, pa.Array]:
    """Objects per row, and one member of all objects one after the other."""
    key = place.keys[canonical]
    column = table[place.container or key].combine_chunks()
    if place.container is None:
        return list_lengths(column), pc.list_flatten(column)
    if pa.types.is_struct(column.type):
        column = pc.struct_field(column, key)
        return list_lengths(column), pc.list_flatten(column)
    return list_lengths(column), pc.struct_field(pc.list_flatten(column), key)


def list_lengths(lists: pa.Array) -> np.ndarray:
    """The length of each list, 0 of none: int64 (rows,)."""
    if pa.types.is_null(lists.type):
        return np.zeros(len(lists), np.int64)
    return pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False).astype(np.int64)


def as_lists(counts: np.ndarray, flat: pa.Array) -> pa.Array:
    """Lists of these lengths from values one after the other."""
    return pa.ListArray.from_arrays(pa.array(np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)), flat)


def float_lists(boxes: pa.Array) -> pa.Array:
    """Boxes as lists of float64, those without numbers empty."""
    if pa.types.is_null(boxes.type):
        return as_lists(np.zeros(len(boxes), np.int64), pa.array([], pa.float64()))
    if pa.types.is_struct(boxes.type):
        found = box_rows.edges([field.name for field in boxes.type])
        parts = [as_numpy(pc.struct_field(boxes, edge).cast(pa.float64()), np.float64) for edge in found.names]
        return as_lists(np.full(len(boxes), 4), pa.array(np.stack(parts, axis=1).reshape(-1)))
    return as_lists(list_lengths(boxes), pc.list_flatten(boxes).cast(pa.float64(), safe=False))


def image_ids(table: pa.Table | None, column: str | None, number: int) -> tuple[pa.Array, datasets.Value]:
    """The source's ids of the images where each has its own, else the numbers of the rows."""
    if table is not None and column is not None:
        ids = table[column].combine_chunks()
        ids = ids.cast(pa.int64() if pa.types.is_integer(ids.type) else pa.string())
        if not ids.null_count and len(ids.unique()) == len(ids):
            return ids, datasets.Value(str(ids.type))
    return pa.array(range(number), pa.int64()), datasets.Value("int64")


def with_column(dataset: datasets.Dataset, name: str, column: Any, feature: Any) -> datasets.Dataset:
    """The dataset with one more column, also where it has no rows."""
    if not len(dataset):
        features = datasets.Features({**dataset.features, name: feature})
        return datasets.Dataset.from_dict({each: [] for each in features}, features=features)
    return dataset.add_column(name, column, feature=feature)


def with_objects(
    dataset: datasets.Dataset, lists: Mapping[str, pa.Array], category: Any, segmentation: Any = None
) -> datasets.Dataset:
    """Add the column `objects`; the feature of masks is `segmentation`, None: compressed RLE."""
    feature = {
        "bbox": datasets.List(datasets.List(datasets.Value("float64"))),
        "category": datasets.List(category),
        "area": datasets.List(datasets.Value("float64")),
        "iscrowd": datasets.List(datasets.Value("bool")),
    }
    if "segmentation" in lists:
        feature["segmentation"] = datasets.List(segmentation or rle.FEATURE)
    column = pa.StructArray.from_arrays([lists[name] for name in feature], names=list(feature))
    return with_column(dataset, "objects", column, feature)


def objects_column(dataset: datasets.Dataset) -> pa.Array:
    """The column `objects` as one struct of lists."""
    return dataset.select_columns("objects").with_format("arrow")[:]["objects"].combine_chunks()


def lists_of(objects: pa.Array) -> dict[str, pa.Array]:
    """{name: lists} of a struct of lists."""
    return {field.name: pc.struct_field(objects, field.name) for field in objects.type}


def _mismatched(objects: pa.Array) -> np.ndarray:
    """The rows whose lists are of different lengths, so that nobody knows which class is which box's."""
    counts = np.stack([list_lengths(values) for values in lists_of(objects).values()])
    return np.flatnonzero((counts != counts[0]).any(axis=0))


def agreeing(objects: pa.Array) -> dict[str, pa.Array]:
    """The lists of objects, null where those of a row are of different lengths."""
    if len(mismatched := _mismatched(objects)):
        agreed = np.ones(len(objects), bool)
        agreed[mismatched] = False
        objects = pc.if_else(pa.array(agreed), objects, pa.scalar(None, objects.type))
    return lists_of(objects)


def lose_mismatched(dataset: datasets.Dataset, findings: Findings, on_bad_sample: str) -> set[int]:
    """The rows to drop, with a finding, as their lists of objects are of different lengths."""
    gone = _mismatched(objects_column(dataset)).tolist()
    for name in dataset.select_columns("file").select(gone)["file"] if gone else ():
        reason = "its lists of boxes and of their classes are of different lengths"
        findings.drop("unreadable-annotation", name, reason, on_bad_sample)
    return set(gone)


def as_numpy(array: pa.Array, kind: type) -> np.ndarray:
    """An Arrow array as NumPy of that kind; a null is NaN, so that only floats may have any."""
    return array.to_numpy(zero_copy_only=False).astype(kind)


def _plain(value: Any) -> Any:
    """A category as the label map knows it, None for none."""
    if isinstance(value, float):
        if not math.isfinite(value):
            return None
        if not value.is_integer():
            raise DataError(f"category {value} is not a whole number; classes are text or integers.")
        return int(value)
    return value


def distinct(categories: pa.Array) -> set[Any]:
    """The categories that are seen, as the label map knows them; None for none."""
    return {_plain(value) for value in categories.unique().to_pylist()}


def without_class(categories: pa.Array, feature: Any) -> np.ndarray:
    """Which objects have no class: null, NaN, or -1 of a ClassLabel."""
    missing = categories.is_null(nan_is_null=True)
    if isinstance(feature, datasets.ClassLabel):
        missing = pc.or_(missing, pc.equal(pc.fill_null(categories, -1), -1))
    return as_numpy(missing, bool)


def category_name(category: Any, feature: Any) -> Any:
    """A category as an error calls it."""
    names = getattr(feature, "names", None)
    return names[category] if names and 0 <= category < len(names) else _plain(category)


def contiguous_ids(categories: pa.Array, labels: LabelMap) -> np.ndarray:
    """The contiguous id of each object's class, -1 where it has none that the map knows."""
    if pa.types.is_null(categories.type) or not len(categories):
        return np.full(len(categories), -1)
    encoded = categories.dictionary_encode(null_encoding="encode")
    ids = []
    for value in encoded.dictionary.to_pylist():
        try:
            ids.append(labels.encode(_plain(value)))
        except DataError:
            ids.append(-1)
    return np.array(ids, np.int64)[as_numpy(encoded.indices, np.int64)]


def rarest(rows: np.ndarray, categories: np.ndarray, number: int, names: Sequence[str]) -> list[str | None]:
    """The rarest class of each of `number` images, from the row and the contiguous class of each object."""
    rows, categories = np.divmod(np.unique(rows * len(names) + categories), len(names))
    frequency = np.bincount(categories, minlength=len(names))
    # Of each image the class of the lowest rank; of two as rare, the first in the map.
    rank = np.empty(len(names), np.int64)
    order = np.lexsort((np.arange(len(names)), frequency))
    rank[order] = np.arange(len(names))
    lowest = np.full(number, len(names), np.int64)
    np.minimum.at(lowest, rows, rank[categories])
    by_rank = [*(names[index] for index in order), None]
    return [by_rank[place] for place in lowest.tolist()]
