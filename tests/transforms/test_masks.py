"""Maps of numbered segments against one mask for each object."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cv_hf.runs import from_mask
from cv_hf.transforms import build_augment, pack, present, resize_map, unpack


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), count=st.integers(0, 12))
def test_what_is_packed_is_unpacked(seed, count):
    rng = np.random.default_rng(seed)
    height, width = rng.integers(1, 20, 2).tolist()
    masks = rng.random((count, height, width)) < rng.random()
    numbered = pack([from_mask(mask) for mask in masks], (height, width))
    assert np.array_equal(unpack(numbered, range(1, count + 1)), masks)
    assert present(numbered, count).tolist() == [mask.any() for mask in masks]


def test_three_hundred_objects_apart_take_one_layer():
    masks = np.zeros((300, 20, 15), bool)
    masks.reshape(300, 300)[range(300), range(300)] = True
    numbered = pack([from_mask(mask) for mask in masks], (20, 15))
    assert numbered.shape == (20, 15, 1)
    assert numbered.dtype == np.uint16
    assert numbered.max() == 300


@settings(max_examples=40, deadline=None)
@given(st.tuples(*[st.integers(1, 40)] * 4), st.integers(0, 10**6))
def test_resizing_is_nearest_at_the_centres_as_torch_has_it(sizes, seed):
    numbered = np.random.default_rng(seed).integers(0, 9, sizes[:2]).astype(np.uint8)
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(numbered)[None, None].double(), size=sizes[2:], mode="nearest-exact"
    )[0, 0]
    assert np.array_equal(resize_map(numbered, sizes[2:]), expected.numpy())


def test_augmentation_moves_numbers_with_the_image_and_invents_none():
    """Each segment is a grey level of its own, so a moved map says of every pixel which level it should have."""
    numbered = np.kron(np.arange(12).reshape(3, 4), np.ones((20, 20))).astype(np.uint8)
    image = (20 * numbered)[..., None].repeat(3, -1)
    names = [
        {"RandomResizedCrop": {"scale": [0.3, 1.0], "interpolation": 0}},
        {"HorizontalFlip": {"p": 0.5}},
        {"Affine": {"rotate": 20, "interpolation": 0}},
    ]
    augment = build_augment(names, (48, 64), 0, moved="mask")
    for trial in range(20):
        moved = augment((0, trial), image, mask=numbered)
        assert moved["mask"].shape == (48, 64)
        assert set(np.unique(moved["mask"])) <= set(range(12))
        # At the border of two cells the image is a blend of them, the mask one or the other.
        mask = moved["mask"]
        inner = np.zeros(mask.shape, bool)
        inner[1:-1, 1:-1] = [
            [len(np.unique(mask[y - 1 : y + 2, x - 1 : x + 2])) == 1 for x in range(1, 63)] for y in range(1, 47)
        ]
        assert inner.mean() > 0.3
        assert np.array_equal(moved["image"][inner][:, 0], 20 * mask[inner])
    layers = np.stack([numbered, numbered[::-1], numbered, numbered, numbered[:, ::-1]], -1)
    moved = augment((1, 0), image, mask=layers)["mask"]
    assert np.array_equal(moved[..., 0], augment((1, 0), image, mask=numbered)["mask"])
    assert moved.shape[-1] == 5
