"""The checkpoint folders of EfficientNet-Lite0: complete, loaded offline, and the backbone that they say."""

from __future__ import annotations

import pytest
import timm
import torch
from transformers import AutoImageProcessor, AutoModelForObjectDetection

from cv_hf.models import sample
from cv_hf.models.sample import efficientnet_lite0, rt_detr_efficientnet_lite0


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    pretrained = sample.importlib.util.find_spec(sample._PACKAGE) is not None
    return rt_detr_efficientnet_lite0(tmp_path_factory.mktemp("models") / "rt_detr", pretrained=pretrained)


def test_the_folder_is_complete(folder):
    _, report = AutoModelForObjectDetection.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert not report["mismatched_keys"]
    processor = AutoImageProcessor.from_pretrained(folder)
    values = processor(torch.zeros(3, 50, 70, dtype=torch.uint8), return_tensors="pt")["pixel_values"]
    assert values.shape == (1, 3, 320, 320)
    assert torch.equal(values, -torch.ones_like(values))


def test_the_backbone_computes_what_timm_computes(folder, tmp_path):
    pytest.importorskip(sample._PACKAGE)
    detector = AutoModelForObjectDetection.from_pretrained(folder)
    reference = timm.create_model("tf_efficientnet_lite0", features_only=True, out_indices=(2, 3, 4)).eval()
    weights = torch.load(sample._weights_file(), weights_only=True)
    classifier = timm.create_model("tf_efficientnet_lite0").state_dict()
    # By position, as their shapes agree: independent of the names that the folder was written with.
    by_position = dict(zip(classifier, weights.values(), strict=True))
    reference.load_state_dict({name: by_position[name] for name in reference.state_dict()})
    pixels = torch.rand(2, 3, 64, 96) * 2 - 1
    with torch.no_grad():
        expected = reference(pixels)
        # In training too: its batch normalisation is frozen, and its activations are there.
        found = detector.train().model.backbone.model(pixels).feature_maps
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_it_takes_a_training_step_and_leaves_the_frozen_statistics(folder):
    model = AutoModelForObjectDetection.from_pretrained(folder).train()
    before = {name: value.clone() for name, value in model.model.backbone.named_buffers()}
    labels = [{"class_labels": torch.tensor([1]), "boxes": torch.tensor([[0.5, 0.5, 0.25, 0.5]])}]
    model(pixel_values=torch.rand(1, 3, 96, 96), labels=labels).loss.backward()
    stem = model.model.backbone.model._backbone.conv_stem.weight
    assert stem.grad.abs().sum() > 0
    assert before
    assert all(torch.equal(value, before[name]) for name, value in model.model.backbone.named_buffers())


def test_a_folder_that_is_there_is_left_alone(folder):
    stamp = (folder / "model.safetensors").stat().st_mtime_ns
    assert rt_detr_efficientnet_lite0(folder) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == stamp


def test_random_weights_differ_from_pretrained_ones(tmp_path):
    pytest.importorskip(sample._PACKAGE)
    from safetensors.torch import load_file

    both = [efficientnet_lite0(tmp_path / str(flag), pretrained=flag) for flag in (True, False)]
    one, other = (load_file(path / "model.safetensors") for path in both)
    assert not torch.equal(one["conv_stem.weight"], other["conv_stem.weight"])
