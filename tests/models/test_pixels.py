from __future__ import annotations

import pickle

import numpy as np
import PIL.Image
import pytest
import torch
from transformers import AutoImageProcessor, ConvNextImageProcessor, TextNetImageProcessor, ViTImageProcessor

from cv_hf.models import pixel_map
from tests.tiny import TINY_FAMILIES

# One family for every image processor class and way of setting it.
FAMILIES = {
    repr(recipe.processor or recipe.config["architecture"]): family
    for family, recipe in TINY_FAMILIES.items()
    if family not in ("imagegpt", "siglip2")
}.values()


def noise(size):
    return np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)


def arithmetic_alone(processor, image):
    """What the processor makes of an image when it neither resizes nor crops."""
    if hasattr(processor, "val_transforms"):
        for transform in processor.val_transforms.transforms[-2:]:
            image = transform(image)
        return image[None]
    return processor([image], return_tensors="pt", do_resize=False, do_center_crop=False)["pixel_values"]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_map_does_what_the_processor_does(tiny, family):
    processor = AutoImageProcessor.from_pretrained(tiny(family))
    pixels = pixel_map(processor)
    assert pixels.size == TINY_FAMILIES[family].size
    assert pixels.fixed
    image = noise(pixels.size)
    expected = arithmetic_alone(processor, PIL.Image.fromarray(image))
    got = pixels.apply(torch.from_numpy(image).permute(2, 0, 1)[None])
    assert got.dtype == torch.float32
    assert got.shape == expected.shape
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-6 * (expected.max() - expected.min()).item())
    assert pickle.loads(pickle.dumps(pixels)) == pixels


def test_against_the_formula():
    mean, std = [0.1, 0.2, 0.3], [0.5, 0.6, 0.7]
    pixels = pixel_map(ViTImageProcessor(size={"height": 20, "width": 28}, image_mean=mean, image_std=std))
    assert pixels.size == (20, 28)
    image = noise((20, 28))
    expected = (image / 255 - mean) / std
    got = pixels.apply(torch.from_numpy(image).permute(2, 0, 1)[None])[0].permute(1, 2, 0)
    np.testing.assert_allclose(got.numpy(), expected, atol=2e-6)


def test_batches_in_any_memory_format_give_the_same(tiny):
    pixels = pixel_map(AutoImageProcessor.from_pretrained(tiny("vit")))
    images = torch.from_numpy(np.stack([noise((5, 7)), 255 - noise((5, 7))])).permute(0, 3, 1, 2)
    assert images.is_contiguous(memory_format=torch.channels_last)
    together = pixels.apply(images)
    assert together.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(pixels.apply(images.contiguous()), together, rtol=0, atol=0)
    torch.testing.assert_close(torch.cat([pixels.apply(image[None]) for image in images]), together, rtol=0, atol=0)


def test_channels_that_are_flipped_are_seen(tiny):
    assert pixel_map(AutoImageProcessor.from_pretrained(tiny("mobilevit"))).channels == (2, 1, 0)
    assert pixel_map(AutoImageProcessor.from_pretrained(tiny("vit"))).channels == (0, 1, 2)


def test_a_size_that_follows_the_aspect_ratio_is_not_fixed():
    pixels = pixel_map(TextNetImageProcessor(size={"shortest_edge": 64}, size_divisor=32))
    assert not pixels.fixed
    assert pixels.size == (64, 64)
    assert pixel_map(ConvNextImageProcessor(size={"shortest_edge": 64}, crop_pct=0.875)).fixed


@pytest.mark.parametrize("family", ["imagegpt", "siglip2"])
def test_what_is_not_a_map_of_pixels_is_none(tiny, family):
    assert pixel_map(AutoImageProcessor.from_pretrained(tiny(family))) is None


def test_what_is_not_linear_is_none():
    class Squared(ViTImageProcessor):
        def _preprocess(self, images, **kwargs):
            out = super()._preprocess(images, **kwargs)
            out["pixel_values"] = out["pixel_values"] ** 2
            return out

    class Mixed(ViTImageProcessor):
        def _preprocess(self, images, **kwargs):
            out = super()._preprocess(images, **kwargs)
            out["pixel_values"] = out["pixel_values"].mean(1, keepdim=True).expand(-1, 3, -1, -1)
            return out

    class Framed(ViTImageProcessor):
        def _preprocess(self, images, **kwargs):
            out = super()._preprocess(images, **kwargs)
            out["pixel_values"][..., 0] = 0.5
            return out

    size = {"height": 16, "width": 16}
    for cls in (Squared, Mixed, Framed):
        assert pixel_map(cls(size=size)) is None
