"""Masks as COCO's compressed run-length encoding, {"size": [height, width], "counts": text}.

Runs go down the columns, outside and inside by turns, outside first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from faster_coco_eval.core import mask as coco_mask

Rle = dict[str, Any]


def from_map(ids: np.ndarray) -> tuple[np.ndarray, list[Rle]]:
    """The masks of a map (H, W) in which every object has a number of its own.

    Returns:
        the numbers in ascending order without 0, and the mask of each.
    """
    values, lengths = runs(ids.T)
    ends = np.cumsum(lengths)
    order = np.argsort(values, kind="stable")
    numbers, firsts = np.unique(values[order], return_index=True)
    masks = []
    for places in np.split(order, firsts[1:]):
        inside = np.stack([ends[places] - lengths[places], ends[places]], axis=1).reshape(-1)
        counts = np.diff(np.concatenate([[0], inside, [ids.size]]))
        masks.append(_encoded(counts.tolist() if counts[-1] else counts[:-1].tolist(), ids.shape))
    kept = np.flatnonzero(numbers)
    return numbers[kept], [masks[place] for place in kept.tolist()]


def from_mask(mask: np.ndarray) -> Rle:
    """The RLE of one mask (H, W); what is not 0 is inside."""
    # coco_mask.encode() goes from pixel to pixel.
    inside, lengths = runs(mask.T.astype(bool, copy=False))
    return _encoded([0, *lengths.tolist()] if inside[0] else lengths.tolist(), mask.shape)


def turned(mask: Mapping[str, Any], orientation: int) -> Rle:
    """A mask of an image as it is stored where it is once the EXIF orientation (1 to 8) has turned the image."""
    across, down, swapped = orientation in (2, 3, 7, 8), orientation in (3, 4, 6, 7), orientation >= 5
    pixels = coco_mask.decode({"size": list(mask["size"]), "counts": mask["counts"].encode("ascii")})
    pixels = pixels[:: -1 if down else 1, :: -1 if across else 1]
    return from_mask(pixels.T if swapped else pixels)


def boxes_and_areas(masks: Sequence[Mapping[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    """The absolute xywh boxes (n, 4) around masks, and their areas (n,), float64."""
    if not masks:
        return np.zeros((0, 4)), np.zeros(0)
    rles = [{"size": mask["size"], "counts": mask["counts"].encode("ascii")} for mask in masks]
    return np.asarray(coco_mask.toBbox(rles), np.float64), np.asarray(coco_mask.area(rles), np.float64)


def runs(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The runs of equal values along a map, row by row: the value and the length of each."""
    flat = values.reshape(-1)
    if not len(flat):
        return flat, np.zeros(0, np.int64)
    changes = np.flatnonzero(flat[1:] != flat[:-1])
    # Half the time of numpy.concatenate and numpy.diff, which every mask of an evaluation would take.
    edges = np.empty(len(changes) + 2, np.int64)
    edges[0], edges[-1] = 0, len(flat)
    np.add(changes, 1, out=edges[1:-1])
    return flat[edges[:-1]], edges[1:] - edges[:-1]


def run_lengths(counts: str | bytes) -> np.ndarray:
    """The run lengths of compressed counts: six bits a letter, five of them of the number, least significant first;
    from the fourth on a number is the difference to the one before the last.

    Raises:
        ValueError: the text is no such thing.
    """
    counts = counts.encode("ascii") if isinstance(counts, str) else counts
    letters = np.frombuffer(counts, np.uint8).astype(np.int64) - 48
    last = (letters & 32) == 0
    if not len(letters) or letters.min() < 0 or letters.max() > 63 or not last[-1]:
        raise ValueError("no compressed counts")
    ends = np.flatnonzero(last)
    starts = np.concatenate([[0], ends[:-1] + 1])
    sizes = ends - starts + 1
    if sizes.max() > 7:
        raise ValueError("a number too large for a run length")
    shifts = 5 * (np.arange(len(letters)) - np.repeat(starts, sizes))
    numbers = np.add.reduceat((letters & 31) << shifts, starts)
    numbers -= np.where(letters[ends] & 16, 1 << (5 * sizes), 0)
    numbers[1::2] = np.cumsum(numbers[1::2])
    numbers[2::2] = np.cumsum(numbers[2::2])
    return numbers


def _encoded(counts: list[int], shape: tuple[int, ...]) -> Rle:
    rle = coco_mask.frPyObjects({"size": list(shape), "counts": counts}, *shape)
    return {"size": list(shape), "counts": rle["counts"].decode("ascii")}
