"""Masks as COCO's compressed run-length encoding, {"size": [height, width], "counts": text}, from what datasets hold.

Runs go down the columns, outside and inside by turns, outside first. No mask is made dense on the way.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
from faster_coco_eval.core import mask as coco_mask

from cv_hf.data.findings import Findings
from cv_hf.runs import Rle, run_lengths

FEATURE = {"size": datasets.List(datasets.Value("int64")), "counts": datasets.Value("string")}
# An outline is traced point by point, five for each pixel, so that a coordinate of 1e9 would fill the memory, and so
# would a few points far apart that are joined again and again.
_FARTHEST = 10
_LONGEST = 4e6
_MOST_PIXELS = 2**31


class BadMask(ValueError):
    """Why a mask, or a part of it, is none: the code of a finding, and the reason."""

    def __init__(self, code: str, reason: str = "") -> None:
        super().__init__(reason)
        self.code, self.reason = code, reason


def compress(segmentation: Any, size: tuple[int, int] | None) -> tuple[Rle, list[BadMask]]:
    """Bring a mask to compressed RLE.

    Args:
        segmentation: polygons [[x1, y1, x2, y2, ...], ...] in pixels, or one, whose points may be pairs [x, y]; RLE
            with its counts as a list or compressed; or any of these as JSON text.
        size: (height, width) of the image; None: not known, that of the RLE is taken.

    Returns:
        the mask, and what is wrong with those of its polygons that were left out.

    Raises:
        BadMask: there is no mask, it cannot be read, has another size than the image, or no pixels.
    """
    if isinstance(segmentation, str):
        try:
            segmentation = json.loads(segmentation) if segmentation.strip() else None
        except (ValueError, RecursionError):
            raise BadMask("mask-unreadable", "it is neither polygons nor RLE") from None
    bad: list[BadMask] = []
    if isinstance(segmentation, Mapping):
        if segmentation.get("counts") is None:
            raise BadMask("object-without-mask")
        rle = _from_runs(segmentation, size)
    elif isinstance(segmentation, (list, tuple)):
        if not segmentation:
            raise BadMask("object-without-mask")
        if size is None:
            raise BadMask("mask-unreadable", "the size of its image is not known")
        rle, bad = _from_polygons(segmentation, _drawable(size))
    elif segmentation is None:
        raise BadMask("object-without-mask")
    else:
        raise BadMask("mask-unreadable", "it is neither polygons nor RLE")
    if not coco_mask.area(rle):
        raise BadMask("mask-empty")
    return {"size": list(rle["size"]), "counts": rle["counts"].decode("ascii")}, bad


def read(
    segmentation: Any, size: tuple[int, int] | None, name: str, findings: Findings, on_bad_sample: str = "skip"
) -> Rle | None:
    """As `compress`, with what is wrong among the findings, and None where there is no mask.

    Args:
        name: what to call the object.

    Raises:
        DataError: on_bad_sample is "stop", and something is wrong.
    """
    try:
        mask, bad = compress(segmentation, size)
    except BadMask as error:
        mask, bad = None, [error]
    for error in bad:
        findings.drop(error.code, name, error.reason, on_bad_sample)
    return mask


def to_arrow(masks: Sequence[Mapping[str, Any]]) -> pa.Array:
    """Masks as a column of `FEATURE`."""
    sizes = pa.array([edge for mask in masks for edge in mask["size"]], pa.int64())
    offsets = pa.array(np.arange(0, 2 * len(masks) + 1, 2, dtype=np.int32))
    counts = pa.array([mask["counts"] for mask in masks], pa.string())
    return pa.StructArray.from_arrays([pa.ListArray.from_arrays(offsets, sizes), counts], names=list(FEATURE))


def _drawable(size: Sequence[int]) -> tuple[int, int]:
    if size[0] * size[1] >= _MOST_PIXELS:
        raise BadMask("mask-unreadable", f"its image is said to have {size[1]}x{size[0]} pixels")
    return size[0], size[1]


def _from_runs(segmentation: Mapping[str, Any], size: tuple[int, int] | None) -> dict[str, Any]:
    stated, counts = segmentation.get("size"), segmentation["counts"]
    stated = size if stated is None else stated
    if not isinstance(stated, (list, tuple)) or len(stated) != 2 or not all(_is_edge(edge) for edge in stated):
        raise BadMask("mask-unreadable", "its size is not [height, width]")
    if size is not None and list(stated) != list(size):
        raise BadMask("mask-size-mismatch", f"{stated[1]}x{stated[0]}, in an image of {size[1]}x{size[0]}")
    size = _drawable(stated)
    try:
        if isinstance(counts, (str, bytes)):
            lengths = run_lengths(counts)
        else:
            lengths = np.array([int(count) for count in counts], np.int64)
            if (lengths != np.array(counts, np.float64)).any():
                raise ValueError
    except (TypeError, ValueError, OverflowError):
        raise BadMask("mask-unreadable", "its counts are no run lengths") from None
    if len(lengths) and lengths.min() < 0:
        raise BadMask("mask-unreadable", "its counts are no run lengths")
    if lengths.sum() != size[0] * size[1]:
        raise BadMask("mask-unreadable", f"its runs are {lengths.sum()} pixels, of {size[0] * size[1]}")
    return coco_mask.frPyObjects({"size": list(size), "counts": lengths.tolist()}, *size)


def _is_edge(value: object) -> bool:
    return type(value) is int and value > 0


def _from_polygons(segmentation: Sequence[Any], size: tuple[int, int]) -> tuple[dict[str, Any], list[BadMask]]:
    polygons, bad = [], []
    for number, polygon in enumerate(polygons_of(segmentation)):
        try:
            polygons.append(_checked(polygon, size))
        except BadMask as error:
            bad.append(BadMask(error.code, f"polygon {number}: {error.reason}"))
    if not polygons:
        raise bad[0]
    rles = coco_mask.frPyObjects(polygons, *size)
    return (rles[0] if len(rles) == 1 else coco_mask.merge(rles)), bad


def polygons_of(segmentation: Sequence[Any]) -> list[Any]:
    """The polygons, each a flat list of coordinates where it is one at all."""
    first = segmentation[0]
    if not isinstance(first, (list, tuple)):
        return [segmentation]
    if all(isinstance(part, (list, tuple)) and len(part) == 2 for part in segmentation):
        numbers = not any(isinstance(edge, (list, tuple)) for part in segmentation for edge in part)
        if numbers:
            return [[edge for point in segmentation for edge in point]]
    return [_flat(polygon) for polygon in segmentation]


def _flat(polygon: Any) -> Any:
    if isinstance(polygon, (list, tuple)) and polygon and all(isinstance(point, (list, tuple)) for point in polygon):
        return [edge for point in polygon for edge in point]
    return polygon


def _checked(polygon: Any, size: tuple[int, int]) -> list[float]:
    try:
        edges = list(map(float, polygon)) if not isinstance(polygon, (str, Mapping)) else None
    except (TypeError, ValueError, OverflowError):
        edges = None
    if edges is None or len(edges) % 2 or not math.isfinite(sum(edges)):
        raise BadMask("mask-unreadable", "it is no list of coordinates in pixels")
    farthest = _FARTHEST * (sum(size) + 100)
    if edges and (min(edges) < -farthest or max(edges) > farthest):
        raise BadMask("mask-unreadable", "its coordinates are none in pixels")
    if len(edges) < 6:
        raise BadMask("mask-too-few-points", f"it has {len(edges) // 2} points")
    if len(edges) * farthest > _LONGEST:
        points = np.reshape(edges, (-1, 2))
        outline = np.abs(points - np.roll(points, 1, axis=0)).max(axis=1).sum()
        if outline > _LONGEST:
            raise BadMask("mask-unreadable", f"its outline is {outline:.3g} pixels long")
    return edges
