"""What instance segmentation needs of a dataset: detection's columns, and for each object its mask.

A mask is COCO's compressed RLE, `objects.segmentation` {size: [height, width], counts}. In the source it is polygons or
RLE in the objects. Or it is in images, which stay undecoded until `fit` makes `objects` of them:

    mask                one image per sample, red the class and green the number of the object; green 0 is no object, as
                        in the example run_instance_segmentation of Transformers
    masks, category     a list of images, one for each object, and the list of their classes

No step makes more than one mask dense at a time. Boxes that the source lacks, and those of other sources than COCO's
files, whose format nothing would prove, are those around the masks.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import datasets
import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.compute as pc

from cv_hf.config import DataConfig
from cv_hf.data import detection, rle
from cv_hf.data import labels as label_maps
from cv_hf.data.annotations import decode_mask, upright_mask
from cv_hf.data.columns import check_given, find_image, is_image, is_list, keep_columns, listed
from cv_hf.data.detection import coco_ids
from cv_hf.data.findings import Findings
from cv_hf.data.images import UnreadableImage
from cv_hf.data.labels import LabelMap
from cv_hf.data.objects import (
    COLUMNS,
    agreeing,
    as_lists,
    as_numpy,
    category_name,
    contiguous_ids,
    find_member,
    find_value,
    has_masks,
    image_ids,
    is_category,
    list_lengths,
    lose_mismatched,
    members_of,
    objects_column,
    rarest,
    source_categories,
    with_column,
    with_objects,
    without_class,
)
from cv_hf.errors import DataError, did_you_mean
from cv_hf.runs import Rle, boxes_and_areas, from_map, from_mask, runs
from cv_hf.task import Finding

__all__ = ["canonical", "clean", "coco_ids", "encode", "fit", "label_map", "present", "strata"]

_IMAGE_LISTS = ("masks", "instance_masks", "mask", "segmentation_masks", "segmentations", "instances")
_IMAGES = ("annotation", "annotations", "instance_mask", "instances", "mask", "label", "segmentation")
# Columns that name the classes of red: {name: id}.
_CLASS_IDS = ("semantic_class_to_id", "label2id", "class_to_id")
_AT_ONCE = 256
_CONVERTED_AT_ONCE = 4096


def canonical(dataset: datasets.Dataset, data: DataConfig) -> datasets.Dataset:
    """Keep the columns of detection, with `objects.segmentation` as it stands in the source; or instead of `objects`,
    undecoded, `mask` and `class_ids` (what names its classes, where there is such a column), or `masks` and `category`.

    Raises:
        DataError: a column cannot be found, or has a type that is not read.
    """
    given, features = dict(data.columns), dataset.features
    if "mask" not in given and has_masks(features, given):
        return detection.canonical(dataset, data, masks=True)
    check_given(given, (*COLUMNS, "segmentation", "mask"))
    mask = _find_mask(features, given)
    others = {name: feature for name, feature in features.items() if name != mask}
    sources = {"image": find_image(others, given), "masks" if is_list(features[mask]) else "mask": mask}
    if "masks" in sources:
        kept = keep_columns(dataset, sources)
        kept = kept.cast_column("masks", datasets.List(datasets.Image(decode=False)))
        kept = with_column(kept, "category", *_categories(dataset, others, mask, data))
    else:
        named = next((name for name in _CLASS_IDS if isinstance(features.get(name), dict)), None)
        kept = keep_columns(dataset, sources | ({} if named is None else {"class_ids": named}))
        kept = kept.cast_column("mask", datasets.Image(decode=False))
    column = find_value(others, "image_id", given)
    table = dataset.select_columns([column] if column else []).with_format("arrow")[:] if column else None
    ids = image_ids(table, column, len(dataset))
    kept = with_column(kept, "image_id", *ids)
    kept._source_columns = sources
    return kept


def label_map(
    splits: Mapping[str, datasets.Dataset], data: DataConfig, source_labels: LabelMap | None = None
) -> LabelMap:
    """The classes of all splits, as detection decides them.

    Those of red in a mask are named by the recipe, else by a column {name: id}, else they are the values in all masks,
    which are read for that. Value 0 is no class where it is called background.

    Raises:
        DataError: labels that differ in type, or do not fit the recipe's.
    """
    columns = next(iter(splits.values())).column_names
    if "objects" in columns:
        return detection.label_map(splits, data, source_labels)
    if "masks" in columns:
        features = {role: split.features["category"].feature for role, split in splits.items()}
        return detection.classes(features, (_flat_categories(split) for split in splits.values()), data, source_labels)
    known = _class_ids(splits)
    if data.labels is not None:
        found = label_maps.from_recipe(
            data.labels,
            folder=detection.folder_of(data),
            class_names=tuple(known) or None,
            class_sources=tuple(known.values()) or None,
            kind=int,
            ignore_index=data.ignore_index,
        )
    elif known:
        found = LabelMap(tuple(known), tuple(known.values()), data.ignore_index)
    else:
        return label_maps.from_values(_seen(splits), data.ignore_index)
    pairs = [
        (name, source)
        for name, source in zip(found.names, found.sources, strict=True)
        if not (source == 0 and name.lower().strip("_") == "background")
    ]
    return LabelMap(tuple(name for name, _ in pairs), tuple(source for _, source in pairs), data.ignore_index)


def clean(
    rows: Mapping[str, datasets.Dataset], labels: LabelMap, data: DataConfig, source_format: str, findings: Findings
) -> tuple[dict[str, datasets.Dataset], str]:
    """Bring masks to compressed RLE, and drop what is wrong; each object loses itself and nothing else.

    Masks in images are left to `fit`.

    Args:
        rows: canonical splits, with `file`.
        labels: objects of other classes are dropped.
        data: the data section.
        source_format: one of `config.FORMATS`.
        findings: filled with each bad object.

    Raises:
        DataError: no object has a label of the map; or on_bad_sample is "stop", and an object is bad.
    """
    columns = next(iter(rows.values())).column_names
    if "masks" in columns:
        cleaned = {role: _clean_lists(split, labels, findings, data.on_bad_sample) for role, split in rows.items()}
        return cleaned, "masks: an image for each object"
    if "mask" in columns:
        cleaned = {
            role: split.remove_columns("class_ids") if "class_ids" in split.column_names else split
            for role, split in rows.items()
        }
        return cleaned, "masks: images, red the class and green the object"
    if source_format == "coco":
        cleaned, _ = detection.clean(rows, labels, data, source_format, findings)
        return cleaned, "masks: polygons and RLE, as coco has them"
    compressed = {role: _compressed(split, findings, data.on_bad_sample) for role, split in rows.items()}
    # Their boxes are those around the masks, whatever the recipe says of others.
    own = data.model_copy(update={"box_format": None})
    cleaned, _ = detection.clean(compressed, labels, own, "coco", findings)
    return cleaned, "masks: polygons and RLE; boxes: those around them"


def encode(dataset: datasets.Dataset, labels: LabelMap) -> datasets.Dataset:
    """Replace the categories by contiguous ids, null where the map has none; of `mask` alone they are all null.

    Raises:
        DataError: a category of `objects` that is not in the map.
    """
    if "objects" in dataset.column_names:
        return detection.encode(dataset, labels)
    feature = datasets.List(datasets.ClassLabel(names=list(labels.names)))
    if "masks" not in dataset.column_names:
        nothing = pa.nulls(len(dataset), pa.list_(pa.int64()))
        return with_column(dataset, "category", nothing, feature)
    ids = contiguous_ids(_flat_categories(dataset), labels)
    column = as_lists(_numbers(dataset), pa.array(ids, mask=ids < 0))
    return with_column(dataset.remove_columns("category"), "category", column, feature)


def strata(dataset: datasets.Dataset) -> Sequence[str | None]:
    """The rarest class of each image of an encoded split, see detection; None where that takes decoding."""
    if "objects" in dataset.column_names:
        return detection.strata(dataset)
    if "masks" not in dataset.column_names:
        return [None] * len(dataset)
    categories = _flat_categories(dataset)
    there = as_numpy(categories.is_valid(), bool)
    rows = np.repeat(np.arange(len(dataset)), _numbers(dataset))[there]
    known = as_numpy(categories.drop_null(), np.int64)
    return rarest(rows, known, len(dataset), dataset.features["category"].feature.names)


def present(dataset: datasets.Dataset) -> set[str]:
    """The names of the classes that an encoded split has objects of; all names where that takes decoding."""
    if "objects" in dataset.column_names:
        return detection.present(dataset)
    names = dataset.features["category"].feature.names
    if "masks" not in dataset.column_names:
        return set(names)
    return {names[index] for index in _flat_categories(dataset).unique().to_pylist() if index is not None}


def fit(
    row: Mapping[str, Any], size: tuple[int, int], labels: LabelMap
) -> tuple[Mapping[str, Any] | None, list[Finding]]:
    """Make the objects of one encoded row fit its decoded image of (height, width).

    Returns:
        the row with `objects`, whose masks all have the image's size; None where no mask has, or the image of the masks
        cannot be read; and findings as (code, name, reason).
    """
    if "mask" in row:
        row, findings = _from_map(row, size, labels)
    elif "masks" in row:
        row, findings = _from_images(row, size)
    else:
        row, findings = detection.turned(row, size)
    if row is None:
        return None, findings
    objects = row["objects"]
    masks = objects["segmentation"]
    fitting = [number for number, mask in enumerate(masks) if tuple(mask["size"]) == tuple(size)]
    if len(fitting) < len(masks):
        for number, mask in enumerate(masks):
            if tuple(mask["size"]) != tuple(size):
                findings.append(_mismatch(f"{row['file']} object {number}", mask["size"], size))
        if not fitting:
            return None, findings
        kept = {name: [values[number] for number in fitting] for name, values in objects.items()}
        row = {**row, "objects": kept}
    fitted, found = detection.fit(row, size, labels)
    return fitted, findings + found


def _find_mask(features: Mapping[str, Any], given: Mapping[str, str]) -> str:
    """The column of images of masks: a list of them for each sample first."""
    lists = [name for name, feature in features.items() if is_list(feature) and is_image(feature.feature)]
    images = [name for name, feature in features.items() if is_image(feature)]
    if "mask" in given:
        name = given["mask"]
        if name not in lists + images:
            near = did_you_mean(name, lists + images)
            raise DataError(f"data.columns.mask: {name!r} is no column of images or of lists of them.{near}")
        return name
    for usual, found in ((_IMAGE_LISTS, lists), (_IMAGES, images)):
        by_lower = {name.lower(): name for name in reversed(found)}
        named = [by_lower[name] for name in usual if name in by_lower]
        if named or len(lists) == 1:
            return (named or lists)[0]
    raise DataError(
        f"no masks were found among: {listed(features)}.\n"
        "Name them: data.columns.segmentation=NAME for polygons or RLE, data.columns.mask=NAME for images."
    )


def _categories(
    dataset: datasets.Dataset, features: Mapping[str, Any], mask: str, data: DataConfig
) -> tuple[pa.Array, Any]:
    """The list of classes beside a list of masks, and its feature."""
    given = dict(data.columns)
    key = find_member(members_of(features, None), "category", given, None, is_category)
    if key is None:
        (source,) = detection.only_class(data).sources
        numbers = list_lengths(_column(dataset, mask))
        flat, feature = pa.array([source] * int(numbers.sum()), pa.int64()), datasets.Value("int64")
        return as_lists(numbers, flat), datasets.List(feature)
    column = _column(dataset, key)
    flat, feature = source_categories(pc.list_flatten(column), features[key].feature)
    return as_lists(list_lengths(column), flat), datasets.List(feature)


def _column(dataset: datasets.Dataset, name: str) -> pa.Array:
    return dataset.select_columns(name).with_format("arrow")[:][name].combine_chunks()


def _flat_categories(dataset: datasets.Dataset) -> pa.Array:
    return pc.list_flatten(_column(dataset, "category"))


def _numbers(dataset: datasets.Dataset) -> np.ndarray:
    """How many classes each row lists."""
    return list_lengths(_column(dataset, "category"))


def _class_ids(splits: Mapping[str, datasets.Dataset]) -> dict[str, int]:
    """{name: value of red}, as the first row of each split says."""
    known: dict[str, int] = {}
    for split in splits.values():
        if "class_ids" in split.column_names and len(split):
            known |= {name: value for name, value in split[0]["class_ids"].items() if value is not None}
    return known


def _seen(splits: Mapping[str, datasets.Dataset]) -> set[int]:
    """The values of red in all masks that can be read, where there is an object."""

    def values(mask: Mapping[str, Any]) -> set[int]:
        try:
            numbers, _ = runs(_numbered(decode_mask(mask, ""), ""))
        except UnreadableImage:
            return set()
        return {int(number) & 255 for number in np.unique(numbers) if number}

    seen: set[int] = set()
    with ThreadPoolExecutor(max_workers=min(16, 4 * (os.cpu_count() or 1))) as pool:
        for split in splits.values():
            for batch in split.select_columns("mask").with_format("arrow").iter(_AT_ONCE):
                seen = seen.union(*pool.map(values, batch["mask"].to_pylist()))
    return seen


def _numbered(image: PIL.Image.Image, name: str) -> np.ndarray:
    """256 green + red of each pixel (height, width) that shows an object, else 0."""
    if image.mode not in ("RGB", "RGBA"):
        reason = f"not in red (the class) and green (the object), but of mode {image.mode}"
        raise UnreadableImage(name, reason, "unreadable-mask")
    pixels = np.asarray(image)
    red, green = pixels[..., 0], pixels[..., 1].astype(np.uint16)
    return np.where(green > 0, (green << 8) | red, 0).astype(np.uint16)


def _from_map(
    row: Mapping[str, Any], size: tuple[int, int], labels: LabelMap
) -> tuple[Mapping[str, Any] | None, list[Finding]]:
    """The row with `objects` of its `mask`, whose classes are source ids of the map."""
    name = row["file"]
    try:
        upright, findings = upright_mask(row["mask"], name, size, row.get("image"))
        ids = _numbered(upright, name)
    except UnreadableImage as error:
        return None, [(error.code, name, error.reason)]
    if ids.shape != tuple(size):
        return None, [_mismatch(name, ids.shape, size)]
    masks, categories = [], []
    known = {source: index for index, source in enumerate(labels.sources) if source is not None}
    for number, mask in zip(*from_map(ids), strict=True):
        green, red = divmod(int(number), 256)
        if red in known:
            masks.append(mask)
            categories.append(known[red])
        elif red not in (0, labels.ignore_index):
            findings.append(("box-unknown-label", f"{name} object {green}", repr(red)))
    return _with_objects(row, masks, categories), findings


def _from_images(row: Mapping[str, Any], size: tuple[int, int]) -> tuple[Mapping[str, Any] | None, list[Finding]]:
    """The row with `objects` of its `masks`, one decoded after the other."""
    findings: list[Finding] = []
    masks, categories, sized = [], [], not row["masks"]
    for number, (image, category) in enumerate(zip(row["masks"], row["category"], strict=True)):
        name = f"{row['file']} object {number}"
        if category is None:
            sized = True  # its class was lost, with a finding, and nothing is known of its mask
            continue
        try:
            # In a list paths are not checked to be within the dataset.
            upright, found = upright_mask(image and {"bytes": image["bytes"]}, name, size, row.get("image"))
            pixels = np.asarray(upright)
        except UnreadableImage as error:
            findings.append((error.code, name, error.reason))
            continue
        pixels = pixels.reshape(*pixels.shape[:2], -1)[..., :3].any(axis=-1)
        if pixels.shape != tuple(size):
            findings.append(_mismatch(name, pixels.shape, size))
            continue
        sized = True
        findings += found
        if pixels.any():
            masks.append(from_mask(pixels))
            categories.append(category)
        else:
            findings.append(("mask-empty", name, ""))
    return _with_objects(row, masks, categories) if sized else None, findings


def _with_objects(row: Mapping[str, Any], masks: Sequence[Rle], categories: Sequence[int]) -> dict[str, Any]:
    boxes, areas = boxes_and_areas(masks)
    objects = {
        "bbox": boxes.tolist(),
        "category": list(categories),
        "area": areas.tolist(),
        "iscrowd": [False] * len(masks),
        "segmentation": list(masks),
    }
    kept = {name: value for name, value in row.items() if name not in ("mask", "masks", "category")}
    return {**kept, "objects": objects}


def _mismatch(name: str, found: Sequence[int], size: Sequence[int]) -> Finding:
    return "mask-size-mismatch", name, f"{found[1]}x{found[0]}, in an image of {size[1]}x{size[0]}"


def _clean_lists(
    dataset: datasets.Dataset, labels: LabelMap, findings: Findings, on_bad_sample: str
) -> datasets.Dataset:
    """Name the objects whose class is none, which `encode` gives null, and drop rows of lists of unequal lengths."""
    files = dataset.select_columns("file")["file"][:]
    numbers = _numbers(dataset)
    pictures = dataset.data.column("masks")
    there = np.concatenate([list_lengths(chunk) for chunk in pictures.chunks] or [np.zeros(0, np.int64)])
    there = there if dataset._indices is None else there[dataset._indices.column(0).to_numpy()]
    gone = set(np.flatnonzero(numbers != there).tolist())
    for row in sorted(gone):
        reason = f"{there[row]} masks and {numbers[row]} classes"
        findings.drop("unreadable-annotation", files[row], reason, on_bad_sample)
    categories, feature = _flat_categories(dataset), dataset.features["category"].feature
    missing = without_class(categories, feature)
    unknown = ~missing & (contiguous_ids(categories, labels) < 0)
    rows = np.repeat(np.arange(len(dataset)), numbers)
    firsts = np.cumsum(numbers) - numbers
    for code, places in (("box-without-label", missing), ("box-unknown-label", unknown)):
        for place in np.flatnonzero(places).tolist():
            row = int(rows[place])
            if row not in gone:
                reason = "" if code == "box-without-label" else repr(category_name(categories[place].as_py(), feature))
                findings.drop(code, f"{files[row]} object {place - firsts[row]}", reason, on_bad_sample)
    return dataset.select([row for row in range(len(dataset)) if row not in gone]) if gone else dataset


def _compressed(dataset: datasets.Dataset, findings: Findings, on_bad_sample: str) -> datasets.Dataset:
    """The split with masks of compressed RLE, and the boxes around them; objects without a mask are dropped."""
    gone = lose_mismatched(dataset, findings, on_bad_sample)
    objects = agreeing(objects_column(dataset))
    numbers = list_lengths(objects["segmentation"])
    rows = np.repeat(np.arange(len(dataset)), numbers)
    firsts = np.cumsum(numbers) - numbers
    files = dataset.select_columns("file")["file"][:]
    features = dataset.features["objects"]
    sizes = detection.annotated_sizes(dataset)
    of_themselves = isinstance(features["segmentation"].feature, dict)
    if not of_themselves:
        # To ask embedded images for their size is to read the whole dataset; RLE says it of itself.
        unknown = np.flatnonzero((numbers > 0) & ~np.isfinite(sizes).all(axis=1))
        sizes[unknown] = detection.upright_sizes(dataset, unknown)
    known = np.isfinite(sizes).all(axis=1)
    flat = pc.list_flatten(objects["segmentation"])
    masks, kept = [], np.zeros(len(flat), bool)
    # Part by part, as the numbers of polygons take many times more room in Python.
    for start in range(0, len(flat), _CONVERTED_AT_ONCE):
        for place, value in enumerate(flat.slice(start, _CONVERTED_AT_ONCE).to_pylist(), start):
            row = int(rows[place])
            size = (int(sizes[row, 0]), int(sizes[row, 1])) if known[row] else None
            if size is None and not of_themselves:
                continue  # the image cannot be read, and is dropped for that
            name = f"{files[row]} object {place - firsts[row]}"
            mask = rle.read(value, size, name, findings, on_bad_sample)
            if mask is not None:
                kept[place] = True
                masks.append(mask)
    for row, mask in zip(rows[kept].tolist(), masks, strict=True):
        # What nothing else states, the first mask of an image does; others have to agree.
        if not known[row]:
            known[row], sizes[row] = True, mask["size"]
    boxes, around = boxes_and_areas(masks)
    stated = as_numpy(pc.list_flatten(objects["area"]), np.float64)[kept]
    counts = np.bincount(rows[kept], minlength=len(dataset))
    chosen = pa.array(kept)
    flat_boxes = as_lists(np.full(len(masks), 4), pa.array(boxes.reshape(-1)))
    lists = {
        "bbox": as_lists(counts, flat_boxes),
        "category": as_lists(counts, pc.list_flatten(objects["category"]).filter(chosen)),
        "area": as_lists(counts, pa.array(np.where(stated > 0, stated, around))),
        "iscrowd": as_lists(counts, pc.list_flatten(objects["iscrowd"]).filter(chosen)),
        "segmentation": as_lists(counts, rle.to_arrow(masks)),
    }
    dataset = with_objects(dataset.remove_columns("objects"), lists, features["category"].feature)
    for name, edges in zip(("height", "width"), sizes.T, strict=True):
        column = pa.array(edges, mask=~known).cast(pa.int64())
        dataset = with_column(dataset.remove_columns(name), name, column, datasets.Value("int64"))
    return dataset.select([row for row in range(len(dataset)) if row not in gone]) if gone else dataset
