"""Resizing as the processor does, against the processor itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers

from cv_hf.models import pixel_map, resizer
from cv_hf.transforms import shrink

ONE_STEP = 1.001


@pytest.mark.parametrize(
    "name",
    [
        "ConditionalDetrImageProcessor",
        "DeformableDetrImageProcessor",
        "DetrImageProcessor",
        "DetrImageProcessorPil",
        "RTDetrImageProcessor",
        "RTDetrImageProcessorPil",
        "RfDetrImageProcessor",
        "YolosImageProcessor",
    ],
)
@pytest.mark.parametrize("size", [(90, 131), (200, 70), (64, 64)])
@pytest.mark.parametrize("faster", [None, shrink])
def test_resized_then_mapped_is_what_the_processor_makes(name, size, faster):
    kind = getattr(transformers, name)
    sizes = {"shortest_edge": 96, "longest_edge": 160} if "RTDetr" not in name else {"height": 96, "width": 128}
    processor = kind(size=sizes, do_pad=False)
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    resized = resizer(processor, faster)(image)
    assert resized.dtype == np.uint8
    pixels = pixel_map(processor)
    ours = pixels.apply(torch.from_numpy(resized).permute(2, 0, 1)[None])[0]
    theirs = processor(images=image, return_tensors="pt")["pixel_values"][0]
    assert ours.shape == theirs.shape
    step = torch.tensor(pixels.scale).view(3, 1, 1)
    # RF-DETR's resizes in floating point, so it differs by less than a step of 8 bits.
    assert ((ours - theirs).abs() / step).max() < ONE_STEP


@pytest.mark.parametrize(
    ("options", "taken"),
    [
        ({"size": {"height": 96, "width": 128}}, True),
        ({"size": {"height": 96, "width": 128}, "resample": 3}, False),  # bicubic
        ({"size": {"shortest_edge": 96, "longest_edge": 160}}, False),
    ],
)
def test_a_faster_function_is_taken_where_it_gives_the_same(options, taken):
    asked = []

    def watched(image, size):
        asked.append(size)
        return shrink(image, size)

    resize = resizer(transformers.DetrImageProcessor(**options, do_pad=False), watched)
    asked.clear()
    resize(np.zeros((50, 70, 3), np.uint8))
    assert asked == ([(96, 128)] if taken else [])


def test_padding_is_left_out():
    processor = transformers.DetrImageProcessor(
        size={"shortest_edge": 32, "longest_edge": 64}, pad_size={"height": 64, "width": 64}
    )
    assert resizer(processor)(np.zeros((40, 50, 3), np.uint8)).shape == (32, 40, 3)
    assert processor(images=np.zeros((40, 50, 3), np.uint8), return_tensors="pt")["pixel_values"].shape[2:] == (64, 64)


def test_what_makes_no_images_has_no_resizer():
    assert resizer(transformers.ImageGPTImageProcessor(clusters=np.zeros((4, 3)))) is None
