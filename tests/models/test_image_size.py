from __future__ import annotations

import numpy as np
import PIL.Image
import pytest
import timm
import torch
from timm.layers import resample_abs_pos_embed
from transformers import (
    AutoModelForImageClassification,
    BeitConfig,
    LevitConfig,
    SiglipConfig,
    SiglipForImageClassification,
    SiglipImageProcessor,
    SwinConfig,
    ViTImageProcessor,
    pipeline,
)

from cv_hf.config import ModelConfig
from cv_hf.errors import ModelError
from cv_hf.models import build_model
from cv_hf.models.image_size import change_image_size
from tests.tiny import tiny_model


def resized(folder, size):
    return build_model(ModelConfig(id=str(folder), image_size=size), "AutoModelForImageClassification", {})


SQUARES = ("clip", "metaclip_2", "siglip")
OBLONGS = ("vit", "deit", "beit", "data2vec-vision", "ijepa", "vit_msn", "dinov2")


@pytest.mark.parametrize(
    ("family", "size"),
    [
        *((family, size) for family in (*SQUARES, *OBLONGS) for size in ((64, 64), (24, 24))),
        *((family, (48, 80)) for family in OBLONGS),
    ],
)
def test_positions_are_those_that_transformers_interpolates(tiny, family, size):
    images = torch.rand(2, 3, *size)
    original = AutoModelForImageClassification.from_pretrained(tiny(family))
    interpolate = {} if family == "dinov2" else {"interpolate_pos_encoding": True}
    built = resized(tiny(family), size).model
    # CLIP's checkpoint brings no classifier.
    built.classifier.load_state_dict(original.classifier.state_dict())
    with torch.no_grad():
        expected = original(images, **interpolate).logits
        torch.testing.assert_close(built(images).logits, expected, rtol=1e-4, atol=1e-5)


def test_timm_positions_are_those_that_timm_resamples(tiny):
    original = AutoModelForImageClassification.from_pretrained(tiny("timm_vit"))
    built = resized(tiny("timm_vit"), (64, 96)).model
    assert built.config.model_args == {"img_size": [64, 96]}
    tokens = original.timm_model.num_prefix_tokens
    expected = resample_abs_pos_embed(
        original.timm_model.pos_embed, (4, 6), (2, 2), num_prefix_tokens=tokens, antialias=False
    )
    torch.testing.assert_close(built.timm_model.pos_embed, expected)
    images = torch.rand(1, 3, 64, 96)
    own = timm.create_model("test_vit", num_classes=5, img_size=(64, 96)).eval()
    own.load_state_dict({**original.timm_model.state_dict(), "pos_embed": expected})
    with torch.no_grad():
        torch.testing.assert_close(built(images).logits, own(images))


def test_a_constant_table_stays_constant(tiny):
    original = AutoModelForImageClassification.from_pretrained(tiny("levit"))
    built = resized(tiny("levit"), 32)
    model = change_image_size(built.model, built.processor, 64)[0]
    with torch.no_grad():
        for name, parameter in original.named_parameters():
            if "attention_biases" in name:
                parameter.fill_(0.5)
        model = change_image_size(original, built.processor, 128)[0]
    tables = {name: tensor for name, tensor in model.named_parameters() if "attention_biases" in name}
    assert tables
    assert all(torch.allclose(tensor, torch.tensor(0.5)) for tensor in tables.values())
    assert isinstance(model.config, LevitConfig)
    assert model.config.image_size == 128


def test_relative_tables_of_beit_grow_with_the_window(tiny):
    model = resized(tiny("beit"), 64).model
    assert isinstance(model.config, BeitConfig)
    tables = [table for name, table in model.named_parameters() if "relative_position_bias_table" in name]
    assert [table.shape for table in tables] == [(15 * 15 + 3, 2)] * 2


@pytest.mark.parametrize("size", [16, 24, 64])
def test_swin_keeps_its_windows(tiny, size):
    model = resized(tiny("swin"), size).model
    assert isinstance(model.config, SwinConfig)
    original = AutoModelForImageClassification.from_pretrained(tiny("swin"))
    for name, tensor in original.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name


def test_pipeline_needs_no_argument_for_it(tiny, tmp_path):
    built = resized(tiny("vit"), (48, 80))
    built.model.save_pretrained(tmp_path)
    built.processor.save_pretrained(tmp_path)
    image = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 60, 3), dtype=np.uint8))
    with torch.no_grad():
        expected = built.model(**built.processor(image, return_tensors="pt")).logits.softmax(-1)[0]
    answer = pipeline("image-classification", model=str(tmp_path), device="cpu")(image)
    scores = {entry["label"]: entry["score"] for entry in answer}
    assert scores == pytest.approx({f"class_{index}": score for index, score in enumerate(expected.tolist())}, abs=1e-6)


def test_the_size_that_it_has_changes_nothing(tiny):
    original = AutoModelForImageClassification.from_pretrained(tiny("vit")).state_dict()
    model = resized(tiny("vit"), 32).model
    assert all(torch.equal(tensor, original[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("family", "size", "why"),
    [
        ("vit", 50, "50x50 is not a multiple of the patch size 8"),
        ("timm_vit", 40, "40. should be divisible by patch size .16"),
        ("swin", 8, "cannot take 8x8 images"),
        ("clip", (32, 64), "cannot take 32x64 images .try a square"),
        ("resnet", (32, 64), "image processor cannot be set to always give 32x64; try a square"),
        ("imagegpt", 16, "does not make images of one size"),
        ("siglip2", 64, "does not make images of one size"),
        ("timm_vgg", 16, "cannot take 16x16 images"),
    ],
)
def test_sizes_that_cannot_be(tiny, family, size, why):
    with pytest.raises(ModelError, match=why) as error:
        resized(tiny(family), size)
    assert "\n" not in str(error.value)


def test_the_share_that_is_cropped_stays(tmp_path):
    folder = tiny_model("bit", tmp_path)
    processor = resized(folder, 64).processor
    assert processor.size.shortest_edge == 72  # 36 of 32, as before
    ramp = np.tile(np.linspace(0, 255, 200, dtype=np.uint8)[None, :, None], (200, 1, 3))
    before = resized(folder, 32).processor(PIL.Image.fromarray(ramp), return_tensors="pt")["pixel_values"]
    after = processor(PIL.Image.fromarray(ramp), return_tensors="pt")["pixel_values"]
    assert before[0, 0, 0, 0].item() == pytest.approx(after[0, 0, 0, :2].mean().item(), abs=0.02)
    assert before[0, 0, 0, -1].item() == pytest.approx(after[0, 0, 0, -2:].mean().item(), abs=0.02)


def test_a_processor_without_one_size_gets_one(tiny):
    model = AutoModelForImageClassification.from_pretrained(tiny("vit"))
    processor = change_image_size(model, ViTImageProcessor(size={"shortest_edge": 32}), 64)[1]
    image = PIL.Image.new("RGB", (90, 30))
    assert processor([image], return_tensors="pt")["pixel_values"].shape == (1, 3, 64, 64)


def test_a_grid_that_does_not_fill_the_image(tmp_path):
    config = SiglipConfig(vision_config={"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
                                         "intermediate_size": 16, "image_size": 30, "patch_size": 8})  # fmt: skip
    model = SiglipForImageClassification(config)
    resized, _ = change_image_size(model, SiglipImageProcessor(size={"height": 30, "width": 30}), 48)
    assert resized.vision_model.embeddings.position_embedding.weight.shape == (36, 16)
