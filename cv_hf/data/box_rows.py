"""Tables with a row for each box: what four columns of numbers are, told by their names, and rows joined by image.

A row whose box is empty says that its image is there, and nothing else.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from cv_hf.boxes import TO_XYWH
from cv_hf.data.columns import listed
from cv_hf.errors import DataError, did_you_mean, printable

_CORNERS = ("xyxy", "xyxy_norm")
_EXTENT = ("xywh", "xywh_norm")
# Relative ones are often those of YOLO, from the centre.
_ANY_EXTENT = (*_EXTENT, "cxcywh_norm")
# Plain names (see `_plain`) in the order of the format -> the formats that they leave open. Of those that begin alike
# the first is taken: beside corners, width and height are the image's.
_KNOWN: dict[tuple[str, ...], tuple[str, ...]] = {
    ("xmin", "ymin", "xmax", "ymax"): _CORNERS,
    ("x1", "y1", "x2", "y2"): _CORNERS,
    ("x0", "y0", "x1", "y1"): _CORNERS,
    ("left", "top", "right", "bottom"): _CORNERS,
    ("xtl", "ytl", "xbr", "ybr"): _CORNERS,
    ("minx", "miny", "maxx", "maxy"): _CORNERS,
    ("xmin", "ymin", "w", "h"): _EXTENT,
    ("xmin", "ymin", "width", "height"): _EXTENT,
    ("left", "top", "w", "h"): _EXTENT,
    ("left", "top", "width", "height"): _EXTENT,
    ("colx", "rowy", "width", "height"): _EXTENT,
    ("x", "y", "w", "h"): _ANY_EXTENT,
    ("x", "y", "width", "height"): _ANY_EXTENT,
    ("cx", "cy", "w", "h"): ("cxcywh_norm",),
    ("cx", "cy", "width", "height"): ("cxcywh_norm",),
    ("xcenter", "ycenter", "w", "h"): ("cxcywh_norm",),
    ("xcenter", "ycenter", "width", "height"): ("cxcywh_norm",),
}
_PREFIX = re.compile(r"^(bbox|bndbox|boundingbox|box)(?=.)")
_TRIED = 100


class UnclearBoxes(DataError):
    """There are boxes, but which columns they are is not clear; a dataset of boxes is not to be taken for another."""


@dataclass(frozen=True)
class Edges:
    """The four numbers of a box.

    Attributes:
        names: theirs, in the order of the formats.
        formats: those of `TO_XYWH` that the names leave open.
    """

    names: tuple[str, ...]
    formats: tuple[str, ...]


def edges(names: Collection[str]) -> Edges | None:
    """The four names of a box among others, None where there are none.

    Raises:
        UnclearBoxes: several fours, or the corners of a quadrilateral.
    """
    plain: dict[str, str] = {}
    for name in names:
        plain.setdefault(_plain(name), name)
    found: dict[tuple[str, ...], Edges] = {}
    for keys, formats in _KNOWN.items():
        if plain.keys() >= set(keys):
            found.setdefault(keys[:2], Edges(tuple(plain[key] for key in keys), formats))
    if found and plain.keys() >= {"x2", "y2", "x3", "y3"}:
        corners = [name for key, name in plain.items() if re.fullmatch(r"[xy]\d", key)]
        raise UnclearBoxes(
            f"{', '.join(corners)} are corners of quadrilaterals, which are not read.\n"
            "Add the box around each, as columns xmin, ymin, xmax, ymax, and leave the corners out."
        )
    if len(found) > 1:
        several = " or ".join(", ".join(each.names) for each in found.values())
        first = ",".join(next(iter(found.values())).names)
        raise UnclearBoxes(f"the boxes could be {several}.\nName the columns of one: data.columns.bbox='{first}'.")
    return next(iter(found.values()), None)


def named_boxes(features: Mapping[str, Any]) -> Edges | None:
    """The columns of numbers, or of text that should be, that are a box by their names; see `edges`."""
    return edges([name for name, feature in features.items() if _is_plain(feature)])


def given_boxes(features: Mapping[str, Any], given: str) -> Edges | None:
    """The columns that `data.columns.bbox` lists, as "left,top,right,bottom"; None where it names a single one.

    Raises:
        DataError: they are not four columns of the dataset.
    """
    names = tuple(name.strip() for name in given.split(","))
    if len(names) == 1 or given in features:
        return None
    for name in names:
        if not _is_plain(features.get(name)):
            what = "holds no numbers" if name in features else "is not there"
            near = did_you_mean(name, features)
            raise DataError(f"data.columns.bbox: column {name!r} {what}.{near} Columns: {listed(features)}.")
    if len(set(names)) != 4:
        raise DataError(f"data.columns.bbox: {given!r} are not four columns; write them as left,top,right,bottom.")
    formats = _KNOWN.get(tuple(map(_plain, names)), tuple(TO_XYWH))
    return Edges(names, formats)


def says_boxes(names: Sequence[str]) -> bool:
    """Whether four of the names in the head of a table are those of a box, or one is."""
    try:
        return edges(names) is not None or not {"bbox", "bboxes"}.isdisjoint(name.lower() for name in names)
    except UnclearBoxes:
        return True


def refuse_unnamed(dataset: datasets.Dataset, image: str) -> None:
    """Refuse rows that seem to hold a box each, as there are several of an image, with numbers of no known name.

    Raises:
        UnclearBoxes: they do.
    """
    numbers = [
        name for name, each in dataset.features.items() if _is_plain(each) and each.dtype.startswith(("int", "float"))
    ]
    if len(numbers) >= 4 and len(set(of_images(dataset, image).tolist())) < len(dataset):
        shown = ", ".join(map(printable, numbers[:8])) + (", ..." if len(numbers) > 8 else "")
        raise UnclearBoxes(
            f"several rows are of the same image, and have numbers ({shown}). If these are boxes, name their columns:\n"
            f"data.columns.bbox={','.join(numbers[:4])} data.box_format=xyxy (or xywh). If not: --task "
            "image-classification."
        )


def box_values(dataset: datasets.Dataset, columns: Sequence[str]) -> tuple[pa.Array, np.ndarray]:
    """The box of each row, a list of numbers or a struct, and which rows have none.

    Args:
        dataset: the rows.
        columns: four columns of numbers; or one of lists of them, of structs, or of text as "[1, 2, 3, 4]".

    Raises:
        UnclearBoxes: text that is no list of numbers.
    """
    table = dataset.select_columns(list(columns)).with_format("arrow")[:]
    parts = [table[name].combine_chunks() for name in columns]
    if len(parts) == 4:
        numbers = np.stack([_numbers(part) for part in parts], axis=1)
        empty = np.all([_is_empty(part) for part in parts], axis=0)
        offsets = pa.array(np.arange(0, 4 * len(numbers) + 1, 4, dtype=np.int32))
        return pa.ListArray.from_arrays(offsets, pa.array(numbers.reshape(-1))), empty
    (boxes,) = parts
    empty = _is_empty(boxes)
    if not (pa.types.is_string(boxes.type) or pa.types.is_large_string(boxes.type)):
        return boxes, empty
    lists = [None if none else _parsed(text) for text, none in zip(boxes.to_pylist(), empty, strict=True)]
    first = [each for each in lists if each is not None][:_TRIED]
    if first and not any(len(each) == 4 for each in first):
        raise UnclearBoxes(
            f"column {columns[0]!r} holds text, but not the four numbers of a box, as [12, 8, 40, 31].\n"
            "Write a row for each box: with columns xmin, ymin, xmax, ymax, or x, y, width, height."
        )
    return pa.array(lists, pa.list_(pa.float64())), empty


def of_images(dataset: datasets.Dataset, image: str) -> np.ndarray:
    """A number for the image of each row, the same for the same image; they ascend with the first row of each.

    Images are told apart by their path, embedded ones by their bytes; a row without an image has one of its own.
    """
    keys: list[Any] = []
    chosen = dataset.select_columns(image).cast_column(image, datasets.Image(decode=False)).with_format("arrow")
    for batch in chosen.iter(_TRIED):
        content, path = (pc.struct_field(batch[image].combine_chunks(), name) for name in ("bytes", "path"))
        for embedded, name in zip(content, path.to_pylist(), strict=True):
            if embedded.is_valid:
                keys.append(hashlib.blake2b(embedded.as_buffer(), digest_size=16).digest())
            else:
                keys.append(len(keys) if name is None else name)
    return pd.factorize(pd.Series(keys, dtype=object))[0]


def _plain(name: str) -> str:
    """Lower case, without punctuation and a "bbox" before it."""
    return _PREFIX.sub("", re.sub(r"[\W_]+", "", name.lower()))


def _is_plain(feature: Any) -> bool:
    """Whether a column holds numbers, or text, as one of numbers does in which a cell is none."""
    kinds = ("int", "uint", "float", "decimal", "string", "large_string", "null")
    return isinstance(feature, datasets.Value) and feature.dtype.startswith(kinds)


def _numbers(values: pa.Array) -> np.ndarray:
    return pd.to_numeric(values.to_pandas(), errors="coerce").to_numpy(np.float64, na_value=np.nan)


def _is_empty(values: pa.Array) -> np.ndarray:
    if pa.types.is_list(values.type) or pa.types.is_large_list(values.type):
        return pc.equal(pc.fill_null(pc.list_value_length(values), 0), 0).to_numpy(zero_copy_only=False)
    if pa.types.is_struct(values.type):
        return np.all([_is_empty(pc.struct_field(values, field.name)) for field in values.type], axis=0)
    if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
        return pc.equal(pc.fill_null(pc.utf8_trim_whitespace(values), ""), "").to_numpy(zero_copy_only=False)
    return values.is_null(nan_is_null=True).to_numpy(zero_copy_only=False)


def _parsed(text: str) -> list[float]:
    """The numbers of a box in text; [] where it is none."""
    try:
        numbers = json.loads("[" + re.sub(r"[\[\](){}]", "", re.sub(r"[\s,;]+", ",", text.strip())).strip(",") + "]")
        return [float(number) for number in numbers]
    except (TypeError, ValueError):
        return []
