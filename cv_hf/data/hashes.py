"""Images that look the same: a perceptual hash of 64 bits, a small picture that confirms it, and a search that scales.

The hash is a dHash: whether each of 8x8 cells of the grey picture is brighter than the one to its left. Scaling,
compression and exposure change few of its bits; but pictures with little in them differ in few bits as well, so that
two pictures of 16x16 cells have to agree too.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations, pairwise

import numpy as np
import PIL.Image

# Bits of 64 in which the hashes of images that look the same may differ.
NEAR = 4
# How well their cells have to correlate; and by how many grey levels the cells of images without any contrast may
# differ.
_CORRELATION = 0.98
_FLAT = 4.0
_CELLS = 16
# Of more images with one hash, each is compared with so many before it: the rest of a million blank pages adds nothing.
_SAME_HASH = 32
_PAIRS_AT_ONCE = 1 << 16


def looks(image: PIL.Image.Image) -> tuple[int, np.ndarray]:
    """The hash of an upright image, and its 16x16 cells (256,) uint8."""
    grey = image.convert("L")
    cells = np.asarray(grey.resize((_CELLS, _CELLS), PIL.Image.Resampling.BOX)).reshape(-1)
    columns = np.asarray(grey.resize((9, 8), PIL.Image.Resampling.BOX)).astype(np.int16)
    bits = np.packbits(columns[:, 1:] > columns[:, :-1])
    return int.from_bytes(bits.tobytes(), "big"), cells


def same_looking(hashes: np.ndarray, cells: np.ndarray) -> np.ndarray:
    """The pairs of images that look the same.

    Args:
        hashes: (n,) uint64.
        cells: (n, 256) uint8.

    Returns:
        (pairs, 2), the lesser index first, in ascending order.
    """
    pairs = near(hashes)
    kept = [_agree(cells[part[:, 0]], cells[part[:, 1]]) for part in _parts(pairs)]
    return pairs[np.concatenate(kept)] if kept else pairs


def near(hashes: np.ndarray, distance: int = NEAR) -> np.ndarray:
    """The pairs of hashes that differ in at most `distance` bits.

    The bits are divided into distance + 2 bands: at least two of these are equal in such a pair, so that only hashes
    with two equal bands are compared, for each two bands in turn.

    Args:
        hashes: (n,) uint64. Of more than 32 equal ones each is paired with the 32 before it alone.

    Returns:
        (pairs, 2), the lesser index first, in ascending order.
    """
    values, inverse = np.unique(hashes, return_inverse=True)
    order = np.argsort(inverse, kind="stable")
    members = np.split(order, np.cumsum(np.bincount(inverse, minlength=len(values)))[:-1]) if len(values) else []
    found = [_within(each) for each in members if len(each) > 1]
    edges = np.linspace(0, 64, distance + 3).astype(np.int64)
    bands = [(values >> np.uint64(start)) & np.uint64((1 << int(end - start)) - 1) for start, end in pairwise(edges)]
    close = [np.zeros((0, 2), np.int64)]
    for one, other in combinations(range(len(bands)), 2):
        keys = (bands[one] << np.uint64(32)) | bands[other]
        for candidates in _equal(keys):
            differing = values[candidates[:, 0]] ^ values[candidates[:, 1]]
            close.append(candidates[_bits(differing) <= distance])
    pairs = _distinct(np.concatenate(close), len(values))
    firsts = np.array([each[0] for each in members], np.int64)
    single = np.array([len(each) for each in members], np.int64)[pairs].max(axis=1, initial=0) == 1
    found.append(firsts[pairs[single]])
    for first, second in pairs[~single].tolist():
        ones, others = members[first][-_SAME_HASH:], members[second][-_SAME_HASH:]
        found.append(np.stack(np.meshgrid(ones, others), axis=-1).reshape(-1, 2))
    return _distinct(np.sort(np.concatenate(found), axis=1), len(hashes))


def _within(members: np.ndarray) -> np.ndarray:
    """The pairs of ascending indices that stand at most `_SAME_HASH` apart."""
    steps = range(1, min(len(members) - 1, _SAME_HASH) + 1)
    return np.concatenate([np.stack([members[:-step], members[step:]], axis=1) for step in steps])


def _equal(keys: np.ndarray) -> Iterator[np.ndarray]:
    """Pairs (n, 2) of places with equal keys, some at a time."""
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    # Places in that order whose key stands `step` further on as well; those of the next step are among them.
    places, step = np.arange(len(keys)), 1
    while len(places := places[places + step < len(keys)]):
        places = places[ordered[places] == ordered[places + step]]
        yield np.sort(np.stack([order[places], order[places + step]], axis=1), axis=1)
        step += 1


def _distinct(pairs: np.ndarray, number: int) -> np.ndarray:
    """The different pairs of numbers below `number`, ascending."""
    first, second = np.divmod(np.unique(pairs[:, 0] * number + pairs[:, 1]), max(1, number))
    return np.stack([first, second], axis=1)


def _bits(values: np.ndarray) -> np.ndarray:
    """How many bits of each uint64 are set."""
    return np.unpackbits(values.view(np.uint8).reshape(-1, 8), axis=1).sum(axis=1)


def _parts(pairs: np.ndarray) -> Iterator[np.ndarray]:
    return (pairs[start : start + _PAIRS_AT_ONCE] for start in range(0, len(pairs), _PAIRS_AT_ONCE))


def _agree(ones: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Which pairs of cells (n, 256) show the same: alike but for brightness and contrast, or both of one grey."""
    ones, others = ones.astype(np.float32), others.astype(np.float32)
    level = np.abs(ones.mean(1) - others.mean(1))
    ones -= ones.mean(1, keepdims=True)
    others -= others.mean(1, keepdims=True)
    spread = np.sqrt((ones**2).mean(1)), np.sqrt((others**2).mean(1))
    both_flat = (spread[0] < 1) & (spread[1] < 1) & (level < _FLAT)
    with np.errstate(invalid="ignore", divide="ignore"):
        correlation = (ones * others).mean(1) / (spread[0] * spread[1])
    return both_flat | ((spread[0] >= 1) & (spread[1] >= 1) & (correlation >= _CORRELATION))
