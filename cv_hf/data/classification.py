"""What image classification needs of a dataset: its canonical columns, its labels, its strata.

A sample is `image` and either `label` (one class) or `labels` (a list of classes, which may be empty). In the source, a
label is a ClassLabel, text, an integer or a boolean, or a list of these. Multi-hot vectors are not read: a list holds
the labels that apply.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa

from cv_hf.config import DataConfig
from cv_hf.data import box_rows
from cv_hf.data import labels as label_maps
from cv_hf.data.columns import LABEL_NAMES, check_given, find_column, find_image, is_list, keep_columns, listed
from cv_hf.data.labels import LabelMap
from cv_hf.errors import DataError

COLUMNS = ("image", "label", "labels")


def canonical(dataset: datasets.Dataset, data: DataConfig) -> datasets.Dataset:
    """Keep only the columns `image` (undecoded) and `label` or `labels`, under these names; no image is read.

    Raises:
        DataError: a column cannot be found, or has a type that is not read; or rows are boxes of one image.
    """
    features = dataset.features
    given = dict(data.columns)
    check_given(given, COLUMNS)
    if {"label", "labels"} <= set(given):
        raise DataError("data.columns: give either label or labels (several labels per image), not both.")
    image = find_image(features, given)
    others = {name: feature for name, feature in features.items() if name != image}
    if (boxes := box_rows.named_boxes(others)) is not None:
        number = int(box_rows.of_images(dataset, image).max(initial=-1)) + 1
        if number < len(dataset):
            raise DataError(
                f"its {len(dataset)} rows are boxes ({', '.join(boxes.names)}) of {number} images, not an image each.\n"
                "That is for task: object-detection. To train on whole images, leave one row for each image."
            )
    label = find_column(
        others,
        "labels" if "labels" in given else "label",
        kind=lambda feature: isinstance(_element(feature), datasets.ClassLabel),
        usual_names=LABEL_NAMES,
        fits=lambda feature: _kind(feature) is not None,
        given=given,
    )
    if _kind(features[label]) is None:
        raise DataError(
            f"column {label!r} has no labels that can be read (a ClassLabel, text, integers, booleans, or a list of "
            f"them): {listed({label: features[label]})}."
        )
    target = "labels" if is_list(features[label]) else "label"
    if "labels" in given and target == "label":
        raise DataError(f"data.columns.labels: column {label!r} holds one label per image; name it as label instead.")
    return keep_columns(dataset, {"image": image, target: label})


def label_map(
    splits: Mapping[str, datasets.Dataset], data: DataConfig, source_labels: LabelMap | None = None
) -> LabelMap:
    """The classes of all splits: as the recipe names them, else by ClassLabel, else the values seen.

    Raises:
        DataError: labels that differ in type, or do not fit the recipe's.
    """
    column = _label_column(splits)
    elements = [_element(split.features[column]) for split in splits.values()]
    class_names = elements[0].names if isinstance(elements[0], datasets.ClassLabel) else None
    if any((getattr(element, "names", None)) != class_names for element in elements):
        raise DataError(f"the splits {', '.join(splits)} have different lists of classes in their column {column!r}.")
    if data.labels is None and class_names is not None:
        return label_maps.from_class_names(class_names, data.ignore_index)
    values = [value for split in splits.values() for value in _distinct(split, column, data.ignore_index)]
    seen = label_maps.from_values(values, data.ignore_index)
    if data.labels is None:
        return seen
    folder = Path(data.id) if Path(data.id).is_dir() else Path(data.id).parent
    kind = type(seen.sources[0]) if seen.sources else str
    return label_maps.from_recipe(
        data.labels, folder=folder, class_names=class_names, kind=kind, ignore_index=data.ignore_index
    )


def encode(dataset: datasets.Dataset, labels: LabelMap) -> datasets.Dataset:
    """Replace the labels by contiguous ids: `label` becomes a ClassLabel of the map's names, `labels` a list of it.

    A sample without a label (null, NaN, -1 of a ClassLabel, the ignored value, or a list with one of these) gets null.
    Ids in a list are ascending, each once.

    Raises:
        DataError: a label that is not in the map.
    """
    column = _label_column({"": dataset})
    feature = dataset.features[column]
    ids: dict[Any, int] = {}
    for value in _distinct(dataset, column, labels.ignore_index):
        try:
            ids[value] = labels.encode(value)
        except DataError:
            raise labels.unknown(_shown(value, feature)) from None
    names = datasets.ClassLabel(names=list(labels.names))
    rows = _values(dataset, column)
    if column == "label":
        encoded: list[Any] = [ids.get(_plain(value, feature)) for value in rows]
        new_feature: Any = names
    else:
        element = _element(feature)
        encoded = []
        for row in rows:
            found = None if row is None else {ids.get(_plain(value, element)) for value in row}
            encoded.append(None if found is None or None in found else sorted(found))
        new_feature = datasets.List(names)
    array = pa.array(encoded, type=pa.int64() if column == "label" else pa.list_(pa.int64()))
    return dataset.remove_columns(column).add_column(column, array, feature=new_feature)


def unknown(dataset: datasets.Dataset, labels: LabelMap) -> dict[int, str]:
    """The rows of a canonical split with a label that is not in the map, and that label."""
    column = _label_column({"": dataset})
    feature = dataset.features[column]
    strange = set()
    for value in _distinct(dataset, column, labels.ignore_index):
        try:
            labels.encode(value)
        except DataError:
            strange.add(value)
    found = {}
    for row, value in enumerate(_values(dataset, column) if strange else ()):
        each = [value] if column == "label" else value or []
        first = [one for one in each if _plain(one, _element(feature)) in strange]
        if first:
            found[row] = repr(_shown(_plain(first[0], _element(feature)), feature))
    return found


def strata(dataset: datasets.Dataset) -> Sequence[str | None]:
    """The class name of each sample of an encoded split, or None throughout if samples have several labels."""
    if "labels" in dataset.column_names:
        return [None] * len(dataset)
    names = dataset.features["label"].names
    return [None if index is None else names[index] for index in _values(dataset, "label")]


def present(dataset: datasets.Dataset) -> set[str]:
    """The names of the classes that an encoded split has samples of."""
    column = _label_column({"": dataset})
    names = _element(dataset.features[column]).names
    values = _array(dataset, column)
    values = values.combine_chunks().flatten() if column == "labels" else values
    return {names[index] for index in values.unique().to_pylist() if index is not None}


def _label_column(splits: Mapping[str, datasets.Dataset]) -> str:
    found = {name for split in splits.values() for name in ("label", "labels") if name in split.column_names}
    if len(found) != 1:
        raise DataError("some splits have one label per image, others a list of labels.")
    return found.pop()


def _element(feature: Any) -> Any:
    return feature.feature if is_list(feature) else feature


def _kind(feature: Any) -> type | None:
    """The type of a label in such a column; None if it holds no labels."""
    feature = _element(feature)
    if isinstance(feature, datasets.ClassLabel):
        return int
    if not isinstance(feature, datasets.Value):
        return None
    if feature.dtype in ("string", "large_string"):
        return str
    if feature.dtype == "bool":
        return bool
    # A column of integers with empty cells is read from CSV as floating-point numbers.
    return int if feature.dtype.startswith(("int", "uint", "float")) else None


def _array(dataset: datasets.Dataset, column: str) -> pa.ChunkedArray:
    return dataset.select_columns(column).with_format("arrow")[:][column]


def _values(dataset: datasets.Dataset, column: str) -> list[Any]:
    return _array(dataset, column).to_pylist()


def _distinct(dataset: datasets.Dataset, column: str, ignore_index: int | None) -> set[Any]:
    """The different labels, as they are encoded; without those that mean "no label"."""
    element = _element(dataset.features[column])
    if column == "labels":
        rows = _values(dataset, column)
        _refuse_multi_hot(rows)
        values = {value for row in rows if row is not None for value in row}
    else:
        values = set(_array(dataset, column).unique().to_pylist())
    plain = {_plain(value, element) for value in values}
    return plain - {None} - ({ignore_index} if not any(isinstance(value, bool) for value in plain) else set())


def _plain(value: Any, feature: Any) -> Any:
    """A label as the label map knows it, None for no label."""
    if isinstance(value, float):
        if math.isnan(value):
            return None
        if not value.is_integer():
            raise DataError(f"label {value} is not a whole number; class labels are text, integers or booleans.")
        return int(value)
    if value == -1 and isinstance(feature, datasets.ClassLabel):
        return None
    return value


def _shown(value: Any, feature: Any) -> Any:
    names = getattr(_element(feature), "names", None)
    return names[value] if names and isinstance(value, int) and 0 <= value < len(names) else value


def _refuse_multi_hot(rows: Sequence[Sequence[Any] | None]) -> None:
    for row in rows:
        if row and len(row) > len(set(row)) and set(row) <= {0, 1}:
            raise DataError(
                f"the labels look like multi-hot vectors ({list(row)[:8]}); "
                "give each image the list of its labels, as [2, 5] or [cat, dog]."
            )
