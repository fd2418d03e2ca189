"""What object detection needs of a dataset: its canonical columns, its labels, its strata, and boxes that can be used.

A sample is `image`, `image_id` and `objects`, lists of equal length: `bbox` (absolute xywh in pixels of the upright
image), `category`, `area`, `iscrowd`. In the source, objects are a struct of lists, a list of structs, list columns of
their own, or a row each. A bad box loses itself and nothing else; an image without objects stays.

Where the objects have masks too (`instance`), `segmentation` goes along with the rest of them.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cv_hf import runs
from cv_hf.boxes import TO_XYWH, turned_xywh
from cv_hf.config import DataConfig
from cv_hf.data import box_rows
from cv_hf.data import labels as label_maps
from cv_hf.data.annotations import SIDEWAYS, orientation_of, upright_size
from cv_hf.data.box_format import fitting, prove, uncertain
from cv_hf.data.columns import check_given, find_image, is_list, keep_columns
from cv_hf.data.findings import Findings
from cv_hf.data.images import UnreadableImage
from cv_hf.data.labels import LabelMap
from cv_hf.data.objects import (
    COLUMNS,
    FITTING,
    USUAL,
    agreeing,
    as_lists,
    as_numpy,
    category_name,
    containers_of,
    contiguous_ids,
    distinct,
    find_member,
    find_place,
    find_value,
    flattened,
    float_lists,
    image_ids,
    is_box,
    list_lengths,
    lists_of,
    lose_mismatched,
    members_of,
    objects_column,
    rarest,
    source_categories,
    with_column,
    with_objects,
    without_class,
)
from cv_hf.errors import DataError
from cv_hf.task import Finding

# What these formats' files hold; their readers give absolute xywh.
_OWN_FORMATS = {"voc": "xyxy", "yolo": "cxcywh_norm"}
_SET_FORMAT = "Set data.box_format to what they are: xywh, xyxy, cxcywh_norm, xyxy_norm or xywh_norm."
# Rounding of an annotation. A box that leaves its image by less stays as it is, by more it is clipped.
_ROUNDING = 0.5
# So many times as wide or high as its image no box is one: cut at the border, it would be the whole image.
_HUGE = 10
_IMAGES_TRIED = 1000
# What an image has one of, and the column of the objects of rows that were joined.
_OF_IMAGE = ("image_id", "width", "height")
_JOINED = "_objects"
_HEADERS_AT_ONCE = 256
# With fewer boxes, losing most of them is no sign of a wrong box_format, nor are small ones.
_ENOUGH = 20


@dataclass(frozen=True)
class _Joined:
    """The objects of images that had a row for each.

    Attributes:
        objects: a struct of lists for each image.
        feature: of it.
        taken: the columns of the rows that it is from, {canonical: source}.
    """

    objects: pa.StructArray
    feature: dict[str, Any]
    taken: dict[str, str]


@dataclass(frozen=True)
class _Objects:
    """The objects of a split one after the other; a row whose lists are of different lengths has none.

    Attributes:
        counts: objects of each row.
        rows, numbers: of each object, its row and its place in it.
        boxes: (n, 4), NaN where a box is not four numbers, which `broken` tells.
        areas: NaN where there is none.
    """

    counts: np.ndarray
    rows: np.ndarray
    numbers: np.ndarray
    boxes: np.ndarray
    broken: np.ndarray
    categories: pa.Array
    areas: np.ndarray
    crowds: np.ndarray


def canonical(dataset: datasets.Dataset, data: DataConfig, masks: bool = False) -> datasets.Dataset:
    """Keep the columns `image` (undecoded), `image_id`, `width`, `height` and `objects`; no image is read.

    `objects` is a struct of lists: `bbox` as it stands in the source, `category` its source ids, `area` (null where
    there is none), `iscrowd`. `width` and `height` are null where the source has none. Rows of one image that hold a
    box each become one. Where the names of a box's numbers tell of their format, `box_formats` holds those that they
    leave open. With `masks`, objects are told by their masks, not by their boxes: `segmentation` is as it stands in the
    source, and boxes are empty where it has none.

    Raises:
        DataError: a column cannot be found, or has a type that is not read.
    """
    given = dict(data.columns)
    anchor = "segmentation" if masks else "bbox"
    check_given(given, (*COLUMNS, anchor))
    image = find_image(dataset.features, given)
    boxes = None if masks else _of_rows(dataset, image, given)
    joined = None
    if boxes is not None:
        dataset, joined = _joined(dataset, image, given, boxes)
        given = {"image": image, "objects": _JOINED} | {key: given[key] for key in _OF_IMAGE if key in given}
    others = {name: feature for name, feature in dataset.features.items() if name != image}
    sources = {name: find_value(others, name, given) for name in _OF_IMAGE}
    others |= {} if joined is None else {_JOINED: joined.feature}
    place = find_place(others, given, anchor)
    members = members_of(others, place.container)
    sources = {name: source for name, source in sources.items() if source is not None}
    columns = [*sources.values(), *([place.container] if place.container else place.keys.values())]
    columns = [name for name in dict.fromkeys(columns) if name != _JOINED]
    if joined is None:
        table = dataset.select_columns(columns).with_format("arrow")[:]
    else:
        table = pa.table(_columns(dataset, columns) | {_JOINED: joined.objects})
    counts, flat = flattened(table, place, anchor)
    lists = {anchor: as_lists(counts, flat)}
    if "bbox" in place.keys:
        of_each, flat = flattened(table, place, "bbox")
        lists["bbox"] = as_lists(of_each, float_lists(flat))
    else:
        lists["bbox"] = as_lists(counts, float_lists(pa.nulls(len(flat))))
    if "category" in place.keys:
        of_each, flat = flattened(table, place, "category")
        flat, feature = source_categories(flat, members[place.keys["category"]])
    else:
        (source,) = only_class(data, DataError if joined is None else box_rows.UnclearBoxes).sources
        of_each, flat, feature = counts, pa.array([source] * len(flat), pa.int64()), datasets.Value("int64")
    lists["category"] = as_lists(of_each, flat)
    for name, kind, absent in (("area", pa.float64(), None), ("iscrowd", pa.bool_(), False)):
        if name in place.keys:
            of_each, flat = flattened(table, place, name)
            flat = flat.cast(pa.float64(), safe=False)
            flat = flat if name == "area" else pc.fill_null(pc.not_equal(flat, 0), False)
        else:
            of_each, flat = counts, pa.array([absent] * int(counts.sum()), kind)
        lists[name] = as_lists(of_each, flat.cast(kind))
    kept = keep_columns(dataset, {"image": image})
    kept = with_column(kept, "image_id", *image_ids(table, sources.get("image_id"), len(dataset)))
    for name in ("width", "height"):
        column = table[sources[name]] if name in sources else pa.nulls(len(table), pa.int64())
        column = pc.fill_null(pc.round(column.cast(pa.float64(), safe=False)), -1).cast(pa.int64(), safe=False)
        column = pc.if_else(pc.greater(column, 0), column, pa.scalar(None, pa.int64()))
        kept = with_column(kept, name, column, datasets.Value("int64"))
    kept = with_objects(kept, lists, feature, members[place.keys[anchor]] if masks else None)
    if not masks and isinstance(box := members[place.keys["bbox"]], dict):
        boxes = box_rows.edges(box)
    if boxes is not None:
        kept = with_column(kept, "box_formats", [" ".join(boxes.formats)] * len(kept), datasets.Value("string"))
    taken = {name: place.column(name) for name in place.keys} if joined is None else joined.taken
    kept._source_columns = {"image": image} | taken
    return kept


def _of_rows(dataset: datasets.Dataset, image: str, given: Mapping[str, str]) -> box_rows.Edges | None:
    """The columns of the box that each row holds, four or a single one; None where rows hold lists of objects.

    Raises:
        DataError: `data.columns` does not fit, or it is not clear which columns they are.
    """
    features = {name: feature for name, feature in dataset.features.items() if name != image}
    if "objects" in given:
        return None
    if "bbox" in given:
        single = box_rows.Edges((given["bbox"],), tuple(TO_XYWH)) if _holds_box(features.get(given["bbox"])) else None
        return box_rows.given_boxes(features, given["bbox"]) or single
    if containers_of(features, given, "bbox"):
        return None
    if (found := box_rows.named_boxes(features)) is not None:
        return found
    by_lower = {name.lower(): name for name in reversed(features) if _holds_box(features[name])}
    named = [by_lower[name] for name in USUAL["bbox"] if name in by_lower]
    return box_rows.Edges((named[0],), tuple(TO_XYWH)) if named else None


def _holds_box(feature: Any) -> bool:
    """Whether a column may hold one box: four numbers in a list, a struct or text."""
    return (is_list(feature) or isinstance(feature, (dict, datasets.Value))) and (
        is_box(feature) or getattr(feature, "dtype", "") in ("string", "large_string")
    )


def _joined(
    dataset: datasets.Dataset, image: str, given: Mapping[str, str], boxes: box_rows.Edges
) -> tuple[datasets.Dataset, _Joined]:
    """The first row of each image, with what it has one of, and the objects of all of its rows."""
    values, empty = box_rows.box_values(dataset, boxes.names)
    images = box_rows.of_images(dataset, image)
    _, firsts = np.unique(images, return_index=True)
    # A box's own width and height are not those of its image.
    features = {name: each for name, each in dataset.features.items() if name not in (image, *boxes.names)}
    keys = {name: find_member(features, name, given, None, FITTING[name]) for name in ("category", "area", "iscrowd")}
    keys = {name: key for name, key in keys.items() if key is not None}
    order = np.argsort(images, kind="stable")
    order = order[~empty[order]]
    counts = np.bincount(images[order], minlength=len(firsts))
    columns = _columns(dataset, keys.values())
    members = {"bbox": values} | {name: columns[key].combine_chunks() for name, key in keys.items()}
    lists = [as_lists(counts, each.take(pa.array(order))) for each in members.values()]
    single = dataset.features[boxes.names[0]] if len(boxes.names) == 1 else None
    box = datasets.List(datasets.Value("float64")) if isinstance(single, (datasets.Value, type(None))) else single
    feature = {"bbox": datasets.List(box)} | {name: datasets.List(features[key]) for name, key in keys.items()}
    kept = dataset.select_columns([image, *(name for name in features if name not in keys.values())])
    kept = kept if len(firsts) == len(dataset) else kept.select(firsts)
    taken = {"bbox": ", ".join(boxes.names), **keys}
    return kept, _Joined(pa.StructArray.from_arrays(lists, names=[*members]), feature, taken)


def _columns(dataset: datasets.Dataset, names: Iterable[str]) -> dict[str, pa.ChunkedArray]:
    """Some columns as Arrow; they may be none, of which datasets makes no table."""
    return {name: dataset.select_columns(name).with_format("arrow")[:][name] for name in names}


def label_map(
    splits: Mapping[str, datasets.Dataset], data: DataConfig, source_labels: LabelMap | None = None
) -> LabelMap:
    """The classes of all splits: as the recipe names them, else the format's own, else by ClassLabel, else the values
    seen. A class without boxes keeps its place; negative numbers are no classes.

    Raises:
        DataError: labels that differ in type, or do not fit the recipe's.
    """
    features = {role: split.features["objects"]["category"].feature for role, split in splits.items()}
    return classes(features, (_flat(split).categories for split in splits.values()), data, source_labels)


def classes(
    features: Mapping[str, Any], categories: Iterable[pa.Array], data: DataConfig, source_labels: LabelMap | None
) -> LabelMap:
    """The classes of objects or segments, as `label_map` decides them.

    Args:
        features: that of the categories, by split.
        categories: those of each split; not asked for where the names are known.
    """
    class_names = {role: tuple(getattr(feature, "names", ())) for role, feature in features.items()}
    if len(set(class_names.values())) > 1:
        raise DataError(f"the splits {', '.join(features)} have different lists of classes for their objects.")
    names, sources = next(iter(class_names.values())) or None, None
    if source_labels is not None:
        names, sources = source_labels.names, source_labels.sources
    if names is not None and data.labels is None:
        return LabelMap(names, range(len(names)) if sources is None else sources, data.ignore_index)
    values = {value for each in categories for value in distinct(each)} - {None}
    seen = label_maps.from_values(
        (value for value in values if isinstance(value, str) or value >= 0), data.ignore_index
    )
    if data.labels is None:
        return seen
    kinds = {type(source) for source in (seen.sources if sources is None else sources)} or {str}
    return label_maps.from_recipe(
        data.labels,
        folder=folder_of(data),
        class_names=names,
        class_sources=sources,
        kind=kinds.pop(),
        ignore_index=data.ignore_index,
    )


def clean(
    rows: Mapping[str, datasets.Dataset], labels: LabelMap, data: DataConfig, source_format: str, findings: Findings
) -> tuple[dict[str, datasets.Dataset], str]:
    """Bring all boxes to absolute xywh, and drop or clip those that are wrong; each loses itself and nothing else.

    Args:
        rows: canonical splits, with `file`; what they prove together of the format of the boxes holds for all.
        labels: boxes of other classes are dropped.
        data: the data section; `box_format` states what is otherwise the format's own or proved from the boxes.
        source_format: one of `config.FORMATS`.
        findings: filled with each bad box.

    Returns:
        the splits, and a line that says which format the boxes have and why. `width` and `height` stay where boxes
        may be of an image as it is stored, which `fit` sees and turns with it.

    Raises:
        DataError: the format of the boxes is not certain; most are no boxes in it; no box has a label of the map; or
            on_bad_sample is "stop", and a box is bad.
    """
    objects = {role: _flat(split) for role, split in rows.items()}
    box_format, why = _box_format(rows, objects, data, source_format)
    cleaned = {
        role: _clean_split(split, objects[role], labels, data, box_format, findings) for role, split in rows.items()
    }
    number = sum(len(each.boxes) for each in objects.values())
    if number and not any(list_lengths(lists_of(objects_column(split))["bbox"]).any() for split in cleaned.values()):
        what = "cx cy w h, from 0 to 1" if source_format == "yolo" else box_format
        mend = "Correct the files." if source_format in _OWN_FORMATS else _SET_FORMAT
        worst = findings.summary().split("\n")[0]
        raise DataError(f"{data.id}: none of the {number} boxes is one, read as {what}: {worst}.\n{mend}")
    return cleaned, f"boxes: {box_format}, {why}"


def encode(dataset: datasets.Dataset, labels: LabelMap) -> datasets.Dataset:
    """Replace the categories by contiguous ids, a list of ClassLabel of the map's names.

    Raises:
        DataError: a category that is not in the map.
    """
    objects = _flat(dataset)
    ids = contiguous_ids(objects.categories, labels)
    for place in np.flatnonzero(ids < 0)[:1].tolist():
        raise labels.unknown(category_name(objects.categories[place].as_py(), _category(dataset)))
    lists = lists_of(objects_column(dataset))
    lists["category"] = as_lists(objects.counts, pa.array(ids))
    return with_objects(dataset.remove_columns("objects"), lists, datasets.ClassLabel(names=list(labels.names)))


def fit(
    row: Mapping[str, Any], size: tuple[int, int], labels: LabelMap | None = None
) -> tuple[Mapping[str, Any], list[Finding]]:
    """Make the objects of one encoded row fit its decoded image of (height, width), whatever the annotations say.

    Returns:
        the row, and findings as (code, name, reason).
    """
    row, found = turned(row, size)
    objects = row["objects"]
    height, width = size[0] + _ROUNDING, size[1] + _ROUNDING
    if all(
        x >= -_ROUNDING and y >= -_ROUNDING and x + w <= width and y + h <= height for x, y, w, h in objects["bbox"]
    ):
        return row, found
    boxes = np.array(objects["bbox"], np.float64)
    sizes = np.array([size] * len(boxes), np.float64)
    clipped, outside, cut = _clip(boxes, sizes)
    huge = _huge(boxes, sizes)
    areas = np.where(cut, np.minimum(objects["area"], clipped[:, 2] * clipped[:, 3]), objects["area"])
    for code, places in (("box-huge", huge), ("box-outside", outside & ~huge), ("box-clipped", cut & ~huge)):
        for number in np.flatnonzero(places).tolist():
            found.append((code, f"{row['file']} box {number}", "xywh " + _shown(objects["bbox"][number], size)))
    values = {**objects, "bbox": clipped.tolist(), "area": areas.tolist()}
    kept = np.flatnonzero(~outside & ~huge).tolist()
    return {**row, "objects": {name: [value[place] for place in kept] for name, value in values.items()}}, found


def turned(row: Mapping[str, Any], size: tuple[int, int]) -> tuple[Mapping[str, Any], list[Finding]]:
    """The row with the boxes and masks of the decoded image of (height, width), where they are of its pixels as stored:
    the size that is stated is that before EXIF swaps the sides; and findings."""
    stated, objects = (row.get("height"), row.get("width")), row["objects"]
    if stated == tuple(size) or stated != (size[1], size[0]) or not objects["bbox"]:
        return row, []
    orientation = orientation_of(row["image"])
    if orientation not in SIDEWAYS:
        return row, []
    objects = {**objects, "bbox": turned_xywh(objects["bbox"], stated, orientation).tolist()}
    if "segmentation" in objects:
        masks = objects["segmentation"]
        fitting = [runs.turned(mask, orientation) if tuple(mask["size"]) == stated else mask for mask in masks]
        objects["segmentation"] = fitting
        shown = f"{stated[1]}x{stated[0]}, as its image of {size[1]}x{size[0]} is stored"
        found = [("mask-turned", f"{row['file']} object {number}", shown) for number in range(len(objects["bbox"]))]
    else:
        found = [
            ("box-turned", f"{row['file']} box {number}", "xywh " + _shown(box, size))
            for number, box in enumerate(objects["bbox"])
        ]
    # With no size that is stated, nobody turns them again.
    return {**row, "height": None, "width": None, "objects": objects}, found


def strata(dataset: datasets.Dataset) -> Sequence[str | None]:
    """The rarest class of each image of an encoded split, by the number of images that show it; None without objects.

    A share that is held out of each of these holds the rare classes too.
    """
    objects = _flat(dataset)
    names = dataset.features["objects"]["category"].feature.names
    return rarest(objects.rows, as_numpy(objects.categories, np.int64), len(dataset), names)


def present(dataset: datasets.Dataset) -> set[str]:
    """The names of the classes that an encoded split has boxes of."""
    names = dataset.features["objects"]["category"].feature.names
    return {names[index] for index in distinct(_flat(dataset).categories)}


def coco_ids(labels: LabelMap) -> list[int]:
    """A category id for each class: that of the data where these are numbers, else 1, 2, ..."""
    if any(type(source) is int for source in labels.sources):
        free = iter(sorted(set(range(2 * len(labels) + 1)) - set(labels.sources)))
        return [next(free) if source is None else int(source) for source in labels.sources]
    return list(range(1, len(labels) + 1))


def only_class(data: DataConfig, error: type[DataError] = DataError) -> LabelMap:
    """The label map of boxes without classes; an error of this type where `data.labels` is not one."""
    found = None if data.labels is None else label_maps.from_recipe(data.labels, folder=folder_of(data), kind=int)
    if found is None or len(found) != 1:
        raise error(
            "the boxes have no classes. Name the class of all of them, as data.labels=[face],\n"
            "or say which column holds them: data.columns.category=NAME."
        )
    return found


def folder_of(data: DataConfig) -> Path:
    return Path(data.id) if Path(data.id).is_dir() else Path(data.id).parent


def _flat(dataset: datasets.Dataset) -> _Objects:
    fields = agreeing(objects_column(dataset))
    counts = list_lengths(fields["bbox"])
    lists = pc.list_flatten(fields["bbox"])
    lengths = list_lengths(lists)
    values = as_numpy(pc.list_flatten(lists), np.float64)
    broken = lengths != 4
    starts = np.cumsum(lengths) - lengths
    boxes = np.full((len(lengths), 4), np.nan)
    boxes[~broken] = values[starts[~broken][:, None] + np.arange(4)]
    return _Objects(
        counts=counts,
        rows=np.repeat(np.arange(len(counts)), counts),
        numbers=np.arange(len(lengths)) - np.repeat(np.cumsum(counts) - counts, counts),
        boxes=boxes,
        broken=broken,
        categories=pc.list_flatten(fields["category"]),
        areas=as_numpy(pc.list_flatten(fields["area"]), np.float64),
        crowds=as_numpy(pc.list_flatten(fields["iscrowd"]), bool),
    )


def _clean_split(
    dataset: datasets.Dataset,
    objects: _Objects,
    labels: LabelMap,
    data: DataConfig,
    box_format: str,
    findings: Findings,
) -> datasets.Dataset:
    files = dataset.select_columns("file").with_format("arrow")[:]["file"]
    kept = np.ones(len(objects.boxes), bool)
    sizes = np.full((len(kept), 2), np.nan)

    def name(place: int) -> str:
        return f"{files[int(objects.rows[place])]} box {objects.numbers[place]}"

    def shown(place: int) -> str:
        return f"{box_format} {_shown(objects.boxes[place], sizes[place])}"

    def lose(code: str, places: np.ndarray, reason: Callable[[int], str] = shown) -> None:
        for place in np.flatnonzero(places & kept).tolist():
            findings.drop(code, name(place), reason(place), data.on_bad_sample)
        kept[places] = False

    lose("box-not-finite", ~np.isfinite(objects.boxes).all(axis=1))
    ids = contiguous_ids(objects.categories, labels)
    feature = _category(dataset)
    lose("box-without-label", without_class(objects.categories, feature), lambda place: "")
    if kept.any() and (ids[kept] < 0).all():
        raise labels.unknown(category_name(objects.categories[int(np.flatnonzero(kept)[0])].as_py(), feature))
    lose("box-unknown-label", ids < 0, lambda place: repr(category_name(objects.categories[place].as_py(), feature)))
    whole = int(kept.sum())
    boxes, sizes, as_stored = _absolute(dataset, objects, kept, box_format, findings, files)
    # Relative boxes of an image whose size cannot be read are lost with the image.
    kept &= np.isfinite(boxes).all(axis=1)
    lose("box-inverted", (boxes[:, 2:] < 0).any(axis=1))
    lose("box-zero-area", (boxes[:, 2:] == 0).any(axis=1))
    clipped, outside, cut = _clip(boxes, sizes)
    lose("box-huge", _huge(boxes, sizes))
    lose("box-outside", outside)
    if whole >= _ENOUGH and 2 * kept.sum() < whole:
        raise DataError(
            f"{whole - kept.sum()} of {whole} boxes are none as {box_format}: "
            + findings.summary().split("\n")[0]
            + f".\n{_SET_FORMAT}"
        )
    for place in np.flatnonzero(cut & kept).tolist():
        findings.add("box-clipped", name(place), shown(place))
    with np.errstate(invalid="ignore", over="ignore"):
        extent = clipped[:, 2] * clipped[:, 3]
    areas = np.where(objects.areas > 0, objects.areas, extent)
    areas = np.where(cut, np.minimum(areas, extent), areas)
    counts = np.bincount(objects.rows[kept], minlength=len(dataset))
    lists = {
        "bbox": as_lists(counts, as_lists(np.full(int(kept.sum()), 4), pa.array(clipped[kept].reshape(-1)))),
        "category": as_lists(counts, objects.categories.filter(pa.array(kept))),
        "area": as_lists(counts, pa.array(areas[kept])),
        "iscrowd": as_lists(counts, pa.array(objects.crowds[kept])),
    }
    if "segmentation" in dataset.features["objects"]:
        masks = pc.list_flatten(agreeing(objects_column(dataset))["segmentation"])
        lists["segmentation"] = as_lists(counts, masks.filter(pa.array(kept)))
    gone = lose_mismatched(dataset, findings, data.on_bad_sample)
    gone_columns = {"objects", "box_formats", *(() if as_stored else ("width", "height"))} & {*dataset.column_names}
    cleaned = with_objects(dataset.remove_columns([*gone_columns]), lists, feature)
    return cleaned.select([row for row in range(len(cleaned)) if row not in gone]) if gone else cleaned


def _category(dataset: datasets.Dataset) -> Any:
    return dataset.features["objects"]["category"].feature


def _absolute(
    dataset: datasets.Dataset,
    objects: _Objects,
    kept: np.ndarray,
    box_format: str,
    findings: Findings,
    files: pa.ChunkedArray,
) -> tuple[np.ndarray, np.ndarray, bool]:
    """The boxes as absolute xywh, NaN where that cannot be known, and the sizes (n, 2) of their images.

    Sizes in the annotations may be wrong, or those of the image before it was turned upright. They are believed where
    all boxes fit; otherwise, and for relative boxes, the image itself is asked. Where nothing is known (NaN), `fit`
    looks at the boxes when the image is decoded: to open all embedded images is to read the whole dataset.

    Third, whether `fit` is to turn the objects of images whose stated size is that before they were turned: unless a
    box of the split shows that they are upright all the same.
    """
    annotated = annotated_sizes(dataset)
    as_stored = bool(np.isfinite(annotated).any())
    sizes = annotated.copy()
    relative = box_format.endswith("_norm")
    convert = TO_XYWH[box_format]
    with np.errstate(invalid="ignore", over="ignore"):
        doubtful = kept
        if not relative:
            _, outside, cut = _clip(convert(objects.boxes, sizes[objects.rows]), sizes[objects.rows])
            unknown = ~(np.isfinite(sizes).all(axis=1) | _embedded(dataset))
            doubtful = kept & (outside | cut | unknown[objects.rows])
        rows = np.unique(objects.rows[doubtful])
        real = upright_sizes(dataset, rows)
        known = np.isfinite(real).all(axis=1)
        sizes[rows[known]] = real[known]
        wrong = known & np.isfinite(annotated[rows]).all(axis=1) & (annotated[rows] != real).any(axis=1)
        if as_stored:
            swapped = rows[wrong & (annotated[rows] == real[:, ::-1]).all(axis=1)].tolist()
            images = dataset.select_columns("image").select(swapped)["image"] if swapped else ()
            stored = [row for row, image in zip(swapped, images, strict=True) if orientation_of(image) in SIDEWAYS]
            places = kept & np.isin(objects.rows, stored)
            as_stored = not _only_upright(
                convert(objects.boxes, annotated[objects.rows])[places], annotated[objects.rows][places]
            )
            if as_stored:
                sizes[stored] = annotated[stored]
                wrong &= ~np.isin(rows, stored)
        for row in rows[wrong].tolist():
            (height, width), (stated_height, stated_width) = sizes[row], annotated[row]
            reason = f"{width:g}x{height:g} pixels, not {stated_width:g}x{stated_height:g}"
            findings.add("size-mismatch", files[row].as_py(), reason)
        return convert(objects.boxes, sizes[objects.rows]), sizes[objects.rows], as_stored


def _only_upright(boxes: np.ndarray, stored: np.ndarray) -> bool:
    """Whether an xywh box can only be of the upright image: inside it, but not even half inside the stored one."""
    _, outside, cut = _clip(boxes, stored[:, ::-1])
    beyond = (boxes[:, :2] + boxes[:, 2:] / 2 > stored[:, ::-1]).any(axis=1)
    return bool((beyond & ~outside & ~cut).any())


def _box_format(
    splits: Mapping[str, datasets.Dataset], objects: Mapping[str, _Objects], data: DataConfig, format: str
) -> tuple[str, str]:
    """The format of the boxes, as `TO_XYWH` has them, and how it is known."""
    if format in _OWN_FORMATS:
        own = _OWN_FORMATS[format]
        if data.box_format not in (None, own):
            raise DataError(f"data.box_format: {format} files hold {own} boxes, not {data.box_format}; leave it out.")
        return "xywh", f"as {format} has them"
    if data.box_format is not None:
        return data.box_format, "as data.box_format says"
    if format == "coco":
        _refuse_other_than_coco(splits, objects)
        return "xywh", "as coco has them"
    if not any(len(each.boxes) for each in objects.values()):
        return "xywh", "as there are none"
    left = _formats_left(splits)
    if len(left) < len(TO_XYWH):
        left = fitting(left, np.concatenate([each.boxes for each in objects.values()]))
        if len(left) == 1:
            return left[0], "as the names of their numbers say"
    for limit in (_IMAGES_TRIED, None):
        boxes, sizes, names = _sampled(splits, objects, limit)
        proof = prove(boxes, sizes, left)
        if proof.format is not None:
            every = len(boxes) == sum(len(each.boxes) for each in objects.values())
            return proof.format, f"{proof}" + ("" if every else ", of those looked at")
    if not len(boxes):
        raise DataError("the format of the boxes is not certain: none of the images can be read.\nSet data.box_format.")
    raise uncertain(proof, names, boxes, sizes)


def _refuse_other_than_coco(splits: Mapping[str, datasets.Dataset], objects: Mapping[str, _Objects]) -> None:
    """Refuse boxes of COCO's files that are plainly no absolute xywh, as some converters write them.

    Raises:
        DataError: they are relative; or most leave their images, and would not as xyxy.
    """
    boxes = np.concatenate([each.boxes for each in objects.values()])
    sizes = np.concatenate([annotated_sizes(split)[objects[role].rows] for role, split in splits.items()])
    boxes, edges = boxes[there := np.isfinite(boxes).all(axis=1)], sizes[there][:, ::-1]
    if len(boxes) < _ENOUGH:
        return
    if (np.abs(boxes) <= 1).all():
        raise DataError(
            "the boxes are numbers from 0 to 1, relative to their images, and not pixels, as COCO has them.\n"
            "Set data.box_format=xywh_norm, or xyxy_norm or cxcywh_norm, whichever they are."
        )
    with np.errstate(invalid="ignore", over="ignore"):
        leaves = (boxes[:, :2] + boxes[:, 2:] > 1.05 * edges).any(axis=1)
        corners = (boxes[:, 2:] > boxes[:, :2]).all(axis=1) & (boxes[:, 2:] <= edges + 1).all(axis=1)
    if 2 * leaves.sum() > len(boxes) and corners.mean() > 0.99:
        raise DataError(
            f"{leaves.sum()} of {len(boxes)} boxes leave their images as xywh, as COCO has them, and hardly one as xyxy"
            ".\nSet data.box_format=xyxy (or xywh, if they are so after all)."
        )


def _formats_left(splits: Mapping[str, datasets.Dataset]) -> tuple[str, ...]:
    """The formats that the names of a box's numbers leave open in all splits."""
    left = tuple(TO_XYWH)
    for role, split in splits.items():
        if "box_formats" in split.column_names and len(split):
            open_here = split.select_columns("box_formats")[0]["box_formats"].split()
            left = tuple(name for name in left if name in open_here)
            if not left:
                raise DataError(
                    f"the boxes of {role} are named for {' or '.join(open_here)}, those of other splits for another "
                    "format.\nSet data.splits to splits of one format."
                )
    return left


def _sampled(
    splits: Mapping[str, datasets.Dataset], objects: Mapping[str, _Objects], limit: int | None
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Boxes (n, 4), the sizes (n, 2) of their images as decoded, and a name; of `limit` images a split."""
    boxes, sizes, names = [], [], []
    for role, split in splits.items():
        each = objects[role]
        rows = np.flatnonzero(each.counts)
        if limit is not None and len(rows) > limit:
            rows = rows[np.linspace(0, len(rows) - 1, limit).astype(np.int64)]
        known = np.full((len(split), 2), np.nan)
        known[rows] = upright_sizes(split, rows)
        usable = np.isfinite(known[each.rows]).all(axis=1) & np.isfinite(each.boxes).all(axis=1)
        boxes.append(each.boxes[usable])
        sizes.append(known[each.rows][usable])
        for place in np.flatnonzero(usable)[:1].tolist():
            names.append(f"{split[int(each.rows[place])]['file']} box {each.numbers[place]}")
    return np.concatenate(boxes), np.concatenate(sizes), names


def upright_sizes(dataset: datasets.Dataset, rows: np.ndarray) -> np.ndarray:
    """(height, width) of the images in some rows, from their headers; NaN where it cannot be read."""
    found: list[tuple[float, float]] = []
    images = dataset.select_columns("image").select(rows).with_format("arrow")
    with ThreadPoolExecutor(max_workers=min(16, 4 * (os.cpu_count() or 1))) as pool:
        for batch in images.iter(_HEADERS_AT_ONCE):
            found += pool.map(_size_or_nan, batch["image"].to_pylist())
    return np.array(found, np.float64).reshape(-1, 2)


def _embedded(dataset: datasets.Dataset) -> np.ndarray:
    """Whether each image is embedded in the dataset; its bytes are not read."""
    found = pc.struct_field(dataset.data.column("image"), "bytes").is_valid().to_numpy(zero_copy_only=False)
    return found if dataset._indices is None else found[dataset._indices.column(0).to_numpy()]


def _size_or_nan(image: Mapping[str, Any] | None) -> tuple[float, float]:
    try:
        return upright_size(image or {"path": None})
    except UnreadableImage:
        return math.nan, math.nan


def annotated_sizes(dataset: datasets.Dataset) -> np.ndarray:
    columns = dataset.select_columns(["height", "width"]).with_format("arrow")[:]
    return np.stack([as_numpy(columns[name].combine_chunks(), np.float64) for name in ("height", "width")], axis=1)


def _clip(boxes: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Absolute xywh boxes clipped to their images, which of them lie outside, and which were clipped.

    A box that leaves its image by less than a rounded annotation may is not touched, and one of which less than that
    would remain is outside.
    """
    edges = sizes[:, ::-1]
    with np.errstate(invalid="ignore", over="ignore"):
        corner = boxes[:, :2] + boxes[:, 2:]
        leaves = ((boxes[:, :2] < -_ROUNDING) | (corner > edges + _ROUNDING)).any(axis=1)
        start = np.maximum(boxes[:, :2], 0)
        rest = np.minimum(corner, edges) - start
        outside = leaves & (rest < 0.999 * np.minimum(boxes[:, 2:], _ROUNDING)).any(axis=1)
    cut = leaves & ~outside
    return np.where(cut[:, None], np.concatenate([start, rest], axis=1), boxes), outside, cut


def _huge(boxes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Which absolute xywh boxes are many times as wide or high as their images."""
    with np.errstate(invalid="ignore"):
        return (boxes[:, 2:] > _HUGE * sizes[:, ::-1]).any(axis=1)


def _shown(box: Sequence[float], size: Sequence[float]) -> str:
    text = "[" + ", ".join(f"{edge:.6g}" for edge in box) + "]"
    return text if np.isnan(size).any() else f"{text} in an image of {size[1]:g}x{size[0]:g}"
