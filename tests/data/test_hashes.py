"""Images that look the same, against a comparison of all pairs."""

from __future__ import annotations

import io

import numpy as np
import PIL.Image
import pytest
from scipy.ndimage import gaussian_filter

from cv_hf.data.hashes import looks, near, same_looking


def all_pairs(hashes: list[int], distance: int) -> set[tuple[int, int]]:
    return {
        (one, other)
        for one in range(len(hashes))
        for other in range(one + 1, len(hashes))
        if bin(hashes[one] ^ hashes[other]).count("1") <= distance
    }


@pytest.mark.parametrize("distance", [0, 1, 4, 7])
def test_near_hashes_are_those_of_a_comparison_of_all_pairs(distance):
    rng = np.random.default_rng(distance)
    hashes = rng.integers(0, 2**64, 300, dtype=np.uint64).tolist()
    # Some that differ in 0 to 9 bits from another, and the two ends.
    for _ in range(200):
        flipped = rng.choice(64, rng.integers(0, 10), replace=False)
        hashes.append(hashes[rng.integers(300)] ^ sum(1 << int(bit) for bit in flipped))
    hashes += [0, 1, 3, 2**64 - 1, 2**64 - 2, 2**63]
    found = near(np.array(hashes, np.uint64), distance)
    expected = all_pairs(hashes, distance)
    assert len(expected) > 10
    assert set(map(tuple, found.tolist())) == expected
    assert len(found) == len(expected)


def test_smooth_pictures_crowd_and_none_is_missed():
    """Hashes of what has few details are no random numbers."""
    fields = gaussian_filter(np.random.default_rng(0).normal(size=(800, 8, 9)), (0, 1.5, 1.5))
    bits = (fields[:, :, 1:] > fields[:, :, :-1]).reshape(-1, 64)
    hashes = np.packbits(bits, axis=1).view(">u8").reshape(-1).astype(np.uint64)
    found = near(hashes)
    assert len(found) > 5
    assert set(map(tuple, found.tolist())) == all_pairs(hashes.tolist(), 4)


def test_few_and_many_of_one_hash():
    assert near(np.zeros(0, np.uint64)).shape == (0, 2)
    assert near(np.array([7], np.uint64)).shape == (0, 2)
    found = near(np.full(1000, 5, np.uint64))
    # Each but the first has one before it, and the pairs do not grow with the square.
    assert set(found[:, 1].tolist()) == set(range(1, 1000))
    assert len(found) < 32 * 1000


def smooth(seed: int) -> PIL.Image.Image:
    field = gaussian_filter(np.random.default_rng(seed).normal(size=(60, 80, 3)), (6, 6, 0))
    low, high = field.min(), field.max()
    return PIL.Image.fromarray((30 + 195 * (field - low) / (high - low)).astype(np.uint8))


def compressed(image: PIL.Image.Image) -> PIL.Image.Image:
    content = io.BytesIO()
    image.save(content, "JPEG", quality=60)
    return PIL.Image.open(content)


def test_versions_of_a_picture_look_the_same_and_other_pictures_do_not():
    pictures = [smooth(seed) for seed in range(12)]
    versions = [
        pictures[0].resize((160, 120)),
        compressed(pictures[1]),
        pictures[2].point(lambda value: int(value * 0.8)),
        pictures[3].convert("L"),
    ]
    known = [looks(image) for image in pictures + versions]
    pairs = same_looking(np.array([hash for hash, _ in known], np.uint64), np.stack([cells for _, cells in known]))
    assert sorted(map(tuple, pairs.tolist())) == [(0, 12), (1, 13), (2, 14), (3, 15)]


def test_flat_pictures_are_the_same_only_where_their_greys_are():
    """All have one hash, as none has any contrast."""
    known = [looks(PIL.Image.new("RGB", (40, 30), (grey, grey, grey))) for grey in (0, 1, 120, 255)]
    known.append(looks(PIL.Image.fromarray(np.pad(np.full((4, 4), 255, np.uint8), ((0, 26), (36, 0))))))
    assert len({hash for hash, _ in known[:4]}) == 1
    pairs = same_looking(np.array([hash for hash, _ in known], np.uint64), np.stack([cells for _, cells in known]))
    assert pairs.tolist() == [[0, 1]]


def test_pictures_of_one_hash_that_show_something_else_are_two():
    """From dark to light downwards, and upwards: no cell is brighter than the one to its left."""
    down = np.repeat(np.linspace(0, 255, 32).astype(np.uint8)[:, None], 40, axis=1)
    known = [looks(PIL.Image.fromarray(each)) for each in (down, down[::-1], down // 2)]
    hashes = np.array([hash for hash, _ in known], np.uint64)
    assert len(near(hashes)) == 3
    assert same_looking(hashes, np.stack([cells for _, cells in known])).tolist() == [[0, 2]]
