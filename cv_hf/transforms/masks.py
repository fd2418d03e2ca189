"""Maps of numbered segments: what augmentations move instead of one full-size mask for each object.

A map is (H, W), or (H, W, layers) where segments may overlap, uint8 or uint16: a pixel holds the number of its segment,
from 1, and 0 where there is none. So what an augmentation fills in belongs to nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np

from cv_hf.runs import run_lengths


def pack(segmentations: Sequence[Mapping[str, Any]], size: tuple[int, int]) -> np.ndarray:
    """Paint masks as numbers 1, 2, ... into as few layers as their overlaps ask for, one mask in memory at a time.

    Args:
        segmentations: COCO's compressed RLE, {"size": [height, width], "counts": text}, all of `size`.
        size: (height, width).

    Returns:
        the map, (H, W, layers).
    """
    kind = np.uint8 if len(segmentations) < 2**8 else np.uint16
    # Down the columns, as runs go, so that of each mask only what lies between its ends is looked at.
    layers = [np.zeros(size[0] * size[1], kind)]
    for number, segmentation in enumerate(segmentations, 1):
        lengths = run_lengths(segmentation["counts"])
        covered = lengths[1 : len(lengths) // 2 * 2]
        inside = np.repeat(np.arange(len(covered)) % 2 == 0, covered)
        there = slice(lengths[0], lengths[0] + len(inside))
        layer = next((layer for layer in layers if not (layer[there].astype(bool) & inside).any()), None)
        if layer is None:
            layer = np.zeros_like(layers[0])
            layers.append(layer)
        np.copyto(layer[there], kind(number), where=inside)
    return np.stack([cv2.transpose(layer.reshape(size[1], size[0])) for layer in layers], axis=-1)


def unpack(numbered: np.ndarray, numbers: Sequence[int]) -> np.ndarray:
    """The masks (n, H, W), bool, of the segments with these numbers in a map (H, W) or (H, W, layers)."""
    if not len(numbers):
        return np.zeros((0, *numbered.shape[:2]), bool)
    layers = numbered if numbered.ndim == 3 else numbered[..., None]
    return np.stack([(layers == number).any(axis=-1) for number in numbers])


def present(numbered: np.ndarray, count: int) -> np.ndarray:
    """Which of the segments 1 to `count` have a pixel in a map, bool (count,)."""
    return np.bincount(numbered.reshape(-1), minlength=count + 1)[1 : count + 1] > 0


def resize_map(numbered: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The map at another (height, width): each pixel takes the number at its centre, never one in between."""
    if numbered.shape[:2] == tuple(size):
        return numbered
    rows, columns = (
        np.minimum(((np.arange(new) + 0.5) * old / new).astype(np.int64), old - 1)
        for old, new in zip(numbered.shape[:2], size, strict=True)
    )
    return np.ascontiguousarray(numbered[rows][:, columns])
