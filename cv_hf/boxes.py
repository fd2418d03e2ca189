"""Pure geometry of boxes; the format is in every name.

Boxes are (n, 4), n = 0 included; results are float64. `xywh` is [left, top, width, height] and `xyxy` is [left, top,
right, bottom], in pixels; `cxcywh_norm` is [centre x, centre y, width, height], relative to the image's width and
height, as are `xyxy_norm` and `xywh_norm`. `size` is always (height, width): one for all boxes, or one for each (n, 2).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike


def xywh_to_xyxy(boxes: ArrayLike) -> np.ndarray:
    boxes = _array(boxes)
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)


def xyxy_to_xywh(boxes: ArrayLike) -> np.ndarray:
    boxes = _array(boxes)
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)


def xywh_to_xywh_norm(boxes: ArrayLike, size: ArrayLike) -> np.ndarray:
    return _array(boxes) / _scale(size)


def xywh_norm_to_xywh(boxes: ArrayLike, size: ArrayLike) -> np.ndarray:
    return _array(boxes) * _scale(size)


def xywh_to_cxcywh_norm(boxes: ArrayLike, size: ArrayLike) -> np.ndarray:
    boxes = _array(boxes)
    return np.concatenate([boxes[:, :2] + boxes[:, 2:] / 2, boxes[:, 2:]], axis=1) / _scale(size)


def cxcywh_norm_to_xywh(boxes: ArrayLike, size: ArrayLike) -> np.ndarray:
    boxes = _array(boxes)
    return np.concatenate([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, 2:]], axis=1) * _scale(size)


def xyxy_to_xyxy_norm(boxes: ArrayLike, size: ArrayLike) -> np.ndarray:
    return _array(boxes) / _scale(size)


def xyxy_norm_to_xywh(boxes: ArrayLike, size: ArrayLike) -> np.ndarray:
    return xyxy_to_xywh(_array(boxes) * _scale(size))


def turned_xywh(boxes: ArrayLike, size: ArrayLike, orientation: int) -> np.ndarray:
    """Absolute xywh boxes of an image of `size` where they are once its EXIF orientation (1 to 8) has turned it."""
    boxes = _array(boxes)
    across, down, swapped = orientation in (2, 3, 7, 8), orientation in (3, 4, 6, 7), orientation >= 5
    far = np.asarray(size, np.float64)[..., [1, 0]] - boxes[:, :2] - boxes[:, 2:]
    turned = np.concatenate([np.where([across, down], far, boxes[:, :2]), boxes[:, 2:]], axis=1)
    return turned[:, [1, 0, 3, 2]] if swapped else turned


# Each format that a dataset may hold -> its reading as absolute xywh.
TO_XYWH: dict[str, Callable[[ArrayLike, ArrayLike], np.ndarray]] = {
    "xywh": lambda boxes, size: _array(boxes),
    "xyxy": lambda boxes, size: xyxy_to_xywh(boxes),
    "cxcywh_norm": cxcywh_norm_to_xywh,
    "xyxy_norm": xyxy_norm_to_xywh,
    "xywh_norm": xywh_norm_to_xywh,
}


def _array(boxes: ArrayLike) -> np.ndarray:
    return np.asarray(boxes, np.float64).reshape(-1, 4)


def _scale(size: ArrayLike) -> np.ndarray:
    """[width, height, width, height] of each size."""
    return np.asarray(size, np.float64)[..., [1, 0, 1, 0]]
