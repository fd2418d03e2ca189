"""What object detection needs of a dataset: its columns, boxes in one format, labels, and strata.

A sample is `image`, `image_id` and `objects` {bbox, category, area, iscrowd}, lists of one length, or empty; bbox is
absolute xywh in pixels of the upright image. In the source, objects are a struct of lists, a list of structs, or
columns of lists, under the names that are usual for them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cv_hf import boxes
from cv_hf.config import DataConfig
from cv_hf.data import labels as label_maps
from cv_hf.data.annotations import upright_size
from cv_hf.data.columns import check_given, find_image, keep_columns, listed
from cv_hf.data.findings import Findings
from cv_hf.data.images import UnreadableImage
from cv_hf.data.labels import LabelMap
from cv_hf.errors import DataError, did_you_mean

COLUMNS = ("image", "image_id", "objects", "bbox", "category", "area", "iscrowd", "width", "height")
_USUAL = {
    "objects": ("objects", "object", "annotations", "annotation", "instances", "detections", "labels", "label"),
    "bbox": ("bbox", "bboxes", "box", "boxes", "bounding_box", "bounding_boxes"),
    "category": (
        "category", "categories", "category_id", "category_ids", "label", "labels", "class", "classes", "class_id",
        "class_ids", "class_label", "class_labels", "cls", "name", "names", "category_name", "category_names",
    ),
    "area": ("area", "areas"),
    "iscrowd": ("iscrowd", "is_crowd", "crowd"),
    "image_id": ("image_id", "id", "img_id"),
    "width": ("width", "image_width", "img_width"),
    "height": ("height", "image_height", "img_height"),
}  # fmt: skip
# Formats whose readers give absolute xywh.
_READ_AS_XYWH = ("coco", "voc", "yolo")
# Of embedded images whose size no column tells, so many are looked into to tell the format of the boxes; the boxes of
# the others are judged when their image is decoded.
_SIZES_READ = 2000
# Annotations are rounded to whole pixels, and some tools count them from 1.
_OVERHANG = 1.0
_NOISE = 0.01


class _Objects(NamedTuple):
    """All objects of a split, flat: `row` (n,) says which sample each belongs to."""

    row: np.ndarray
    bbox: np.ndarray
    category: pa.Array
    area: np.ndarray
    iscrowd: np.ndarray


def canonical(dataset: datasets.Dataset, data: DataConfig) -> datasets.Dataset:
    """Keep `image` (undecoded), `image_id`, `width`, `height` (null where unknown) and `objects`; no image is read.

    Boxes keep the format that they have in the source; `clean` brings them to xywh.

    Raises:
        DataError: a column cannot be found, or has a type that is not read.
    """
    features, given = dataset.features, dict(data.columns)
    check_given(given, COLUMNS)
    image = find_image(features, given)
    others = {name: feature for name, feature in features.items() if name != image}
    paths = _find_paths(others, given, data)
    table = dataset.select_columns([name for name in others]).with_format("arrow")[:] if others else None
    lengths, flat = None, {}
    for name in ("bbox", "category", "area", "iscrowd"):
        if name in paths:
            counts, flat[name] = _flatten(table, paths[name])
            if lengths is not None and not np.array_equal(counts, lengths):
                bad = int(np.flatnonzero(counts != lengths)[0])
                raise DataError(
                    f"row {bad}: {'.'.join(paths[name])} has {counts[bad]} values for {lengths[bad]} boxes "
                    f"({'.'.join(paths['bbox'])})."
                )
            lengths = counts
    number = int(lengths.sum())
    category_feature = _leaf(features, paths["category"]) if "category" in paths else datasets.Value("int64")
    category = flat.get("category", pa.array(np.zeros(number, np.int64)))
    if not isinstance(category_feature, datasets.ClassLabel):
        category = category.cast(pa.string() if _is_text(category.type) else pa.int64())
        category_feature = datasets.Value(str(category.type))
    bbox = _box_array(flat["bbox"])
    area = flat["area"].cast(pa.float64()).to_numpy(zero_copy_only=False) if "area" in flat else np.full(number, np.nan)
    crowd = (
        pc.fill_null(flat["iscrowd"].cast(pa.bool_()), False).to_numpy(zero_copy_only=False)
        if "iscrowd" in flat
        else np.zeros(number, bool)
    )
    kept = keep_columns(dataset.select_columns([image]), {"image": image})
    for name in ("image_id", "width", "height"):
        found = _usual(others, name, given, lambda feature: isinstance(feature, datasets.Value))
        if found is not None and name == "image_id":
            column = table.column(found)
            column = column.cast(pa.string() if not pa.types.is_integer(column.type) else pa.int64())
        elif found is not None and not _is_text(table.column(found).type):
            column = table.column(found).cast(pa.int64(), safe=False)
        else:
            column = pa.array(range(len(dataset)) if name == "image_id" else [None] * len(dataset), pa.int64())
        kept = kept.add_column(name, column, feature=datasets.Value(str(column.type)))
    rows = np.repeat(np.arange(len(dataset)), lengths)
    kept = _with_objects(kept, _Objects(rows, bbox, category, area, crowd), category_feature)
    sources = {"image": image, **{name: ".".join(path) for name, path in paths.items()}}
    kept._source_columns = sources
    return kept


def clean(
    rows: Mapping[str, datasets.Dataset], data: DataConfig, source_format: str, findings: Findings
) -> tuple[dict[str, datasets.Dataset], str]:
    """Bring all boxes to absolute xywh, and drop or clip those that do not fit their image.

    Args:
        rows: canonical splits, with `file`.
        data: the data section; `box_format` states what is otherwise the format's own or proved from the boxes.
        source_format: one of `config.FORMATS`.
        findings: filled with each bad box, which loses itself and nothing else.

    Returns:
        the splits without `width` and `height`, and a line that says which format the boxes have and why.

    Raises:
        DataError: the format of the boxes cannot be told; or on_bad_sample is "stop", and a box is bad.
    """
    objects = {role: _objects(split) for role, split in rows.items()}
    sizes = {role: _sizes(split) for role, split in rows.items()}
    per_box = {role: sizes[role][objects[role].row] for role in rows}
    if source_format in _READ_AS_XYWH:
        chosen, why = "xywh", f"as {source_format} has them"
    elif data.box_format:
        chosen, why = data.box_format, "as the recipe says"
    else:
        chosen, why = _prove(
            np.concatenate([found.bbox for found in objects.values()]), np.concatenate(list(per_box.values()))
        )
    cleaned = {}
    for role, split in rows.items():
        found, size = objects[role], per_box[role]
        known = ~np.isnan(size).any(axis=1)
        if chosen.endswith("_norm") and not known.all():
            # These cannot be told in pixels without the size, so here every image is looked into.
            sizes[role] = _sizes(split, everything=True)
            size = sizes[role][found.row]
        with np.errstate(invalid="ignore"):
            xywh = boxes.TO_XYWH[chosen](found.bbox, size)
        xywh, codes = _judge(xywh, found.bbox, size)
        codes = np.where((codes == "") & _unlabelled(found.category, split), "box-without-label", codes)
        if (codes != "").any():
            names = split.select_columns("file")["file"][:]
            places = np.arange(len(found.row)) - np.searchsorted(found.row, found.row)
            for index in np.flatnonzero(codes != ""):
                code, row = str(codes[index]), found.row[index]
                name = f"{names[row]} box {places[index]}"
                shown = ", ".join(f"{edge:g}" for edge in found.bbox[index])
                reason = f"{chosen} [{shown}]" + ("" if np.isnan(size[index]).any() else _in_image(size[index]))
                if code == "box-clipped":
                    findings.add(code, name, reason)
                else:
                    findings.drop(code, name, reason, data.on_bad_sample)
        keep = (codes == "") | (codes == "box-clipped")
        area = np.where(np.isnan(found.area) | (found.area <= 0), xywh[:, 2] * xywh[:, 3], found.area)
        kept = _Objects(
            found.row[keep], xywh[keep], found.category.filter(pa.array(keep)), area[keep], found.iscrowd[keep]
        )
        feature = split.features["objects"]["category"].feature
        cleaned[role] = _with_objects(split.remove_columns(["objects", "width", "height"]), kept, feature)
    return cleaned, f"boxes: {chosen}, {why}"


def label_map(
    splits: Mapping[str, datasets.Dataset], data: DataConfig, source_labels: LabelMap | None = None
) -> LabelMap:
    """The classes: as the recipe names them, else as the format does, else by ClassLabel, else the values seen.

    Raises:
        DataError: labels that differ in type, or do not fit the recipe's.
    """
    features = [split.features["objects"]["category"].feature for split in splits.values()]
    class_names = features[0].names if isinstance(features[0], datasets.ClassLabel) else None
    if any(getattr(feature, "names", None) != class_names for feature in features):
        raise DataError(f"the splits {', '.join(splits)} have different lists of classes.")
    if data.labels is None and source_labels is not None:
        return source_labels
    if data.labels is None and class_names is not None:
        return label_maps.from_class_names(class_names)
    values = {value for split in splits.values() for value in _objects(split).category.unique().to_pylist()}
    seen = label_maps.from_values(values - {None})
    if data.labels is None:
        return seen
    folder = Path(data.id) if Path(data.id).is_dir() else Path(data.id).parent
    if source_labels is not None and isinstance(data.labels, list):
        renamed = label_maps.from_recipe(data.labels, class_names=source_labels.names, kind=int)
        return LabelMap(renamed.names, tuple(source_labels.sources[index] for index in renamed.sources))
    kind = type(seen.sources[0]) if seen.sources else int
    return label_maps.from_recipe(data.labels, folder=folder, class_names=class_names, kind=kind)


def encode(dataset: datasets.Dataset, labels: LabelMap) -> datasets.Dataset:
    """Replace the categories by contiguous ids.

    Raises:
        DataError: a label that is not in the map.
    """
    found = _objects(dataset)
    feature = dataset.features["objects"]["category"].feature
    ids = {}
    for value in found.category.unique().to_pylist():
        try:
            ids[value] = labels.encode(value)
        except DataError:
            names = getattr(feature, "names", None)
            raise labels.unknown(names[value] if names and 0 <= value < len(names) else value) from None
    encoded = found.category.dictionary_encode()
    table = np.array([ids[value] for value in encoded.dictionary.to_pylist()], np.int64)
    category = pa.array(table[encoded.indices.to_numpy()] if len(encoded) else np.zeros(0, np.int64))
    found = found._replace(category=category)
    return _with_objects(dataset.remove_columns("objects"), found, datasets.ClassLabel(names=list(labels.names)))


def strata(dataset: datasets.Dataset) -> Sequence[str]:
    """For each sample of an encoded split the rarest of its classes, "" where there is no object.

    So a share that is held out has its part of the rare classes too.
    """
    found = _objects(dataset)
    names = dataset.features["objects"]["category"].feature.names
    category = found.category.to_numpy(zero_copy_only=False).astype(np.int64)
    pairs = np.unique(np.stack([found.row, category], axis=1), axis=0).reshape(-1, 2)
    images = np.bincount(pairs[:, 1], minlength=len(names))
    rarest = np.full(len(dataset), -1)
    # The rarest is written last.
    for row, index in pairs[np.lexsort((pairs[:, 1], -images[pairs[:, 1]]))]:
        rarest[row] = index
    return ["" if index < 0 else names[index] for index in rarest]


def present(dataset: datasets.Dataset) -> set[str]:
    """The names of the classes that an encoded split has objects of."""
    names = dataset.features["objects"]["category"].feature.names
    return {names[index] for index in _objects(dataset).category.unique().to_pylist()}


def fit(row: Mapping[str, Any], size: tuple[int, int]) -> tuple[Mapping[str, Any], list[tuple[str, str, str]]]:
    """Make a row's boxes fit its decoded image, whose (height, width) the annotations may have got wrong.

    Returns:
        the row, and a finding (code, name, reason) for each box that was dropped or clipped.
    """
    objects = row["objects"]
    before = np.array(objects["bbox"], np.float64).reshape(-1, 4)
    ends = before[:, :2] + before[:, 2:]
    if not len(before) or ((before >= 0).all() and (ends <= (size[1] + _NOISE, size[0] + _NOISE)).all()):
        return row, []
    after, codes = _judge(before, before, np.broadcast_to(np.array(size, np.float64), (len(before), 2)))
    keep = (codes == "") | (codes == "box-clipped")
    findings = [
        (str(code), f"{row['file']} box {place}", "[" + ", ".join(f"{edge:g}" for edge in box) + "]" + _in_image(size))
        for place, (code, box) in enumerate(zip(codes, before, strict=True))
        if code
    ]
    kept = {
        name: [value for value, stays in zip(values, keep, strict=True) if stays] for name, values in objects.items()
    }
    return {**row, "objects": {**kept, "bbox": after[keep].tolist()}}, findings


def coco_ids(labels: LabelMap) -> list[int]:
    """A category id for each class: that of the data where these are numbers, else 1, 2, ..."""
    if any(isinstance(source, int) and not isinstance(source, bool) for source in labels.sources):
        free = iter(set(range(2 * len(labels) + 1)) - set(labels.sources))
        return [next(free) if source is None else int(source) for source in labels.sources]
    return list(range(1, len(labels) + 1))


def _find_paths(features: Mapping[str, Any], given: Mapping[str, str], data: DataConfig) -> dict[str, tuple[str, ...]]:
    """Where bbox, category, area and iscrowd are: (column,) or (column of objects, field)."""
    container = _container(features, given)
    fields = _fields(features[container]) if container else features
    paths: dict[str, tuple[str, ...]] = {}
    for name in ("bbox", "category", "area", "iscrowd"):
        found = None
        if name in given:
            path = tuple(given[name].split("."))
            if len(path) == 2 and path[0] in features and path[1] in (_fields(features[path[0]]) or {}):
                paths[name] = path
                continue
            found = path[-1]
            if found not in fields and found not in features:
                near = did_you_mean(found, [*fields, *features])
                raise DataError(f"data.columns.{name}: there is no {given[name]!r}.{near} Columns: {listed(features)}.")
            if container and found in fields:
                paths[name] = (container, found)
            else:
                paths[name] = (found,)
            continue
        candidates = {key: feature for key, feature in fields.items() if container or _is_list(feature)}
        if name == "category":
            taken = paths["bbox"][-1]
            candidates = {key: feature for key, feature in candidates.items() if key != taken}
            typed = [
                key
                for key, feature in candidates.items()
                if isinstance(_inner(feature), datasets.ClassLabel) and key not in _USUAL["area"] + _USUAL["iscrowd"]
            ]
            found = typed[0] if len(typed) == 1 else None
        found = found or _usual(candidates, name, {}, lambda feature: True)
        if found is not None:
            paths[name] = (container, found) if container else (found,)
        elif name == "bbox":
            raise DataError(
                f"no boxes were found among: {listed(features)}.\n"
                "Name them in the recipe: data.columns: {bbox: COLUMN} or {bbox: OBJECTS.FIELD}."
            )
    if "category" not in paths and not (isinstance(data.labels, list) and len(data.labels) == 1):
        raise DataError(
            f"the boxes have no class among: {listed(fields)}.\nName it in the recipe, data.columns: "
            "{category: FIELD}; or, where there is one class only, give its name: data.labels: [NAME]."
        )
    return paths


def _container(features: Mapping[str, Any], given: Mapping[str, str]) -> str | None:
    """The column of structs that hold boxes, if there is one."""
    if "objects" in given:
        name = given["objects"]
        if name not in features or not _fields(features[name]):
            raise DataError(f"data.columns.objects: {name!r} is no column of objects. Columns: {listed(features)}.")
        return name
    if "bbox" in given and "." not in given["bbox"] and given["bbox"] in features:
        return None
    boxed = [
        name
        for name, feature in features.items()
        if (fields := _fields(feature))
        and any(key.lower() in _USUAL["bbox"] or key == given.get("bbox") for key in fields)
    ]
    return next((name for name in _USUAL["objects"] if name in boxed), boxed[0] if boxed else None)


def _usual(features: Mapping[str, Any], name: str, given: Mapping[str, str], fits: Callable[[Any], bool]) -> str | None:
    if name in given:
        if given[name] not in features:
            raise DataError(f"data.columns.{name}: there is no column {given[name]!r}. Columns: {listed(features)}.")
        return given[name]
    by_lower = {key.lower(): key for key in reversed(features) if fits(features[key])}
    return next((by_lower[usual] for usual in _USUAL[name] if usual in by_lower), None)


def _is_list(feature: Any) -> bool:
    return isinstance(feature, (datasets.List, datasets.LargeList))


def _inner(feature: Any) -> Any:
    return feature.feature if _is_list(feature) else feature


def _fields(feature: Any) -> Mapping[str, Any] | None:
    inner = _inner(feature)
    return inner if isinstance(inner, dict) else None


def _leaf(features: Mapping[str, Any], path: tuple[str, ...]) -> Any:
    feature = features[path[0]]
    return _inner(feature if len(path) == 1 else _fields(feature)[path[1]])


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _flatten(table: pa.Table, path: tuple[str, ...]) -> tuple[np.ndarray, pa.Array]:
    """How many values each row has, and all of them."""
    column = table.column(path[0]).combine_chunks()
    if len(path) == 2 and pa.types.is_struct(column.type):
        column = pc.struct_field(column, path[1])
    if not (pa.types.is_list(column.type) or pa.types.is_large_list(column.type)):
        raise DataError(f"column {'.'.join(path)} does not hold a list per image ({column.type}).")
    counts = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False).astype(np.int64)
    flat = column.flatten()
    if len(path) == 2 and pa.types.is_struct(flat.type):
        flat = pc.struct_field(flat, path[1])
    return counts, flat


def _box_array(flat: pa.Array) -> np.ndarray:
    """(n, 4) float64; NaN for what is no list of four numbers."""
    kind = flat.type
    if pa.types.is_struct(kind):
        names = [field.name for field in kind]
        for keys in (("xmin", "ymin", "xmax", "ymax"), ("x1", "y1", "x2", "y2"), ("x", "y", "w", "h"),
                     ("x", "y", "width", "height"), ("left", "top", "width", "height")):  # fmt: skip
            if set(keys) <= set(names):
                parts = [pc.struct_field(flat, key).cast(pa.float64()).to_numpy(zero_copy_only=False) for key in keys]
                return np.stack(parts, axis=1)
        raise DataError(f"boxes of the fields {', '.join(names)} are not read; give lists of four numbers.")
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)):
        if len(flat) == 0:
            return np.zeros((0, 4))
        raise DataError(f"the boxes are {kind}, not lists of four numbers.")
    lengths = pc.fill_null(pc.list_value_length(flat), 0).to_numpy(zero_copy_only=False)
    numbers = flat.flatten().cast(pa.float64()).to_numpy(zero_copy_only=False)
    if pa.types.is_fixed_size_list(kind) and flat.null_count:
        numbers = flat.drop_null().flatten().cast(pa.float64()).to_numpy(zero_copy_only=False)
    result = np.full((len(flat), 4), np.nan)
    whole = lengths == 4
    result[whole] = numbers[np.repeat(whole, lengths)].reshape(-1, 4)
    return result


def _objects(split: datasets.Dataset) -> _Objects:
    """The objects of a canonical split."""
    column = split.select_columns("objects").with_format("arrow")[:].column("objects").combine_chunks()
    parts = {name: pc.struct_field(column, name) for name in ("bbox", "category", "area", "iscrowd")}
    counts = pc.fill_null(pc.list_value_length(parts["bbox"]), 0).to_numpy(zero_copy_only=False)
    return _Objects(
        np.repeat(np.arange(len(split)), counts),
        _box_array(parts["bbox"].flatten()),
        parts["category"].flatten(),
        parts["area"].flatten().to_numpy(zero_copy_only=False).astype(np.float64),
        pc.fill_null(parts["iscrowd"].flatten(), False).to_numpy(zero_copy_only=False).astype(bool),
    )


def _with_objects(dataset: datasets.Dataset, found: _Objects, category: Any) -> datasets.Dataset:
    counts = np.bincount(found.row, minlength=len(dataset)) if len(dataset) else np.zeros(0, np.int64)
    offsets = pa.array(np.concatenate([[0], np.cumsum(counts)]).astype(np.int32))
    fours = pa.array(np.arange(0, 4 * len(found.row) + 1, 4, dtype=np.int32))
    values = {
        "bbox": pa.ListArray.from_arrays(fours, pa.array(found.bbox.reshape(-1), pa.float64())),
        "category": found.category,
        "area": pa.array(found.area, pa.float64(), from_pandas=True),
        "iscrowd": pa.array(found.iscrowd, pa.bool_()),
    }
    lists = [pa.ListArray.from_arrays(offsets, value) for value in values.values()]
    features = {
        "bbox": datasets.List(datasets.List(datasets.Value("float64"))),
        "category": datasets.List(category),
        "area": datasets.List(datasets.Value("float64")),
        "iscrowd": datasets.List(datasets.Value("bool")),
    }
    return dataset.add_column("objects", pa.StructArray.from_arrays(lists, names=list(values)), feature=features)


def _unlabelled(category: pa.Array, split: datasets.Dataset) -> np.ndarray:
    missing = category.is_null().to_numpy(zero_copy_only=False)
    if isinstance(split.features["objects"]["category"].feature, datasets.ClassLabel):
        missing = missing | (pc.fill_null(category, 0).to_numpy(zero_copy_only=False) < 0)
    return missing


def _sizes(split: datasets.Dataset, everything: bool = False) -> np.ndarray:
    """(height, width) of each upright image, (n, 2): of its columns, else of the file's header; NaN where not read."""
    columns = split.select_columns(["height", "width"]).with_format("arrow")[:]
    sizes = np.stack([columns.column(name).cast(pa.float64()).to_numpy() for name in ("height", "width")], axis=1)
    sizes[~(sizes > 0).all(axis=1)] = np.nan
    unknown = np.flatnonzero(np.isnan(sizes).any(axis=1))
    if len(unknown):
        images = split.select_columns("image").with_format("arrow").select(unknown)[:].column("image")
        embedded = pc.struct_field(images, "bytes").is_valid().to_numpy()
        # Headers of files are read anyhow, by check_images; embedded images are as large as the dataset.
        spread = np.linspace(0, max(0, embedded.sum() - 1), min(_SIZES_READ, embedded.sum())).astype(int)
        few = np.zeros(len(unknown), bool)
        few[np.flatnonzero(embedded)[spread]] = True
        wanted = unknown if everything else unknown[~embedded | few]
        with ThreadPoolExecutor(8) as pool:
            found = pool.map(_size_of, (split[int(index)]["image"] for index in wanted))
            for index, size in zip(wanted, found, strict=True):
                sizes[index] = size
    return sizes


def _size_of(image: Mapping[str, Any]) -> tuple[float, float]:
    try:
        return upright_size(image)
    except UnreadableImage:
        return (np.nan, np.nan)


def _judge(xywh: np.ndarray, source: np.ndarray, size: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Boxes clipped to their images, and for each what is wrong with it, "" for nothing."""
    known = ~np.isnan(size).any(axis=1)
    codes = np.full(len(xywh), "", dtype="U32")
    with np.errstate(invalid="ignore"):
        clipped = np.where(known[:, None], _clipped(xywh, size), xywh)
        outside = known & (clipped[:, 2:] <= 0).any(axis=1)
        overhang = known & (np.abs(boxes.xywh_to_xyxy(clipped) - boxes.xywh_to_xyxy(xywh)) > _NOISE).any(axis=1)
        codes[overhang] = "box-clipped"
        codes[outside] = "box-outside"
        codes[(xywh[:, 2:] == 0).any(axis=1)] = "box-zero-area"
        codes[(xywh[:, 2:] < 0).any(axis=1)] = "box-inverted"
    codes[~np.isfinite(source).all(axis=1) | ~np.isfinite(xywh).all(axis=1)] = "box-not-finite"
    return clipped, codes


def _clipped(xywh: np.ndarray, size: np.ndarray) -> np.ndarray:
    """The part of each box in its image; of one outside, a width or height of zero or less."""
    corners = boxes.xywh_to_xyxy(xywh)
    return boxes.xyxy_to_xywh(
        np.concatenate([np.maximum(corners[:, :2], 0), np.minimum(corners[:, 2:], size[:, ::-1])], axis=1)
    )


def _in_image(size: Any) -> str:
    return f" in an image of {size[1]:g}x{size[0]:g}"


def _prove(source: np.ndarray, size: np.ndarray) -> tuple[str, str]:
    """The only format in which the boxes lie inside their images, and why it is that one.

    Raises:
        DataError: there is none, or more than one.
    """
    judged = np.isfinite(source).all(axis=1) & ~np.isnan(size).any(axis=1)
    source, size = source[judged], size[judged]
    if not len(source):
        return "xywh", "as there are none"
    # A box within the first pixel of its image is no box, so boxes of 0 to 1 are shares of it.
    shares = (np.abs(source) <= 1.01).all(axis=1).mean() > 0.99
    readings = ("cxcywh_norm", "xyxy_norm", "xywh_norm") if shares else ("xywh", "xyxy")
    outside = {}
    for reading in readings:
        corners = boxes.xywh_to_xyxy(boxes.TO_XYWH[reading](source, size))
        fits = (corners[:, 2:] >= corners[:, :2]) & (corners[:, :2] >= -_OVERHANG)
        fits &= corners[:, 2:] <= size[:, ::-1] + _OVERHANG
        outside[reading] = int((~fits.all(axis=1)).sum())
    best = min(readings, key=outside.__getitem__)
    others = [outside[reading] for reading in readings if reading != best]
    # One wrong box of thousands is no proof against the format of the others, nor for another.
    alone = outside[best] == 0 and min(others) >= max(1, 0.01 * len(source))
    if alone or (min(others) >= max(3, 10 * outside[best]) and outside[best] <= 0.05 * len(source)):
        kept = "all" if outside[best] == 0 else f"{len(source) - outside[best]} of"
        return best, f"the only reading that keeps {kept} {len(source)} boxes inside their images"
    example = source[np.argmax(np.abs(source).sum(axis=1))]
    height, width = size[np.argmax(np.abs(source).sum(axis=1))]
    counts = ", ".join(f"{reading} leaves {outside[reading]} of {len(source)} outside" for reading in readings)
    raise DataError(
        f"the format of the boxes cannot be told: {counts} (one is [{', '.join(f'{edge:g}' for edge in example)}] "
        f"in an image of {width:g}x{height:g}).\nState it in the recipe: data.box_format: {' or '.join(readings)}."
    )
