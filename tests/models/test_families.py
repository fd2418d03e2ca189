"""Every family behind AutoModelForImageClassification: loaded, trained a step, frozen, saved, resized."""

from __future__ import annotations

import copy
import json

import numpy as np
import PIL.Image
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoImageProcessor, AutoModelForImageClassification, ViTForImageClassification, pipeline
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES

from cv_hf.config import ModelConfig
from cv_hf.errors import ModelError
from cv_hf.models import build_model, freeze_backbone, head_parameters
from tests.tiny import TINY_FAMILIES, UNTRAINABLE, tiny_model

TRAINABLE = [family for family, recipe in TINY_FAMILIES.items() if recipe.model_type not in UNTRAINABLE]
# Checkpoints that load as the same class as another family's differ from it only in how they load.
DISTINCT = [
    family
    for family in TRAINABLE
    if family not in ("deit_distilled", "dinov2_bare", "levit_teacher", "vit_bare", "vit_mae")
]
NAMES = ["ant", "bee", "cat", "dog", "eel", "fox", "gnu"]


def build(folder, classes=3, **model):
    names = dict(enumerate(NAMES[:classes]))
    fields = {"id2label": names, "label2id": {name: index for index, name in names.items()}}
    return build_model(ModelConfig(id=str(folder), **model), "AutoModelForImageClassification", fields)


def pictures(size=(50, 40), count=2):
    rng = np.random.default_rng(0)
    return [PIL.Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)) for _ in range(count)]


def inputs_for(built, count=2):
    return built.processor(pictures(count=count), return_tensors="pt")


def step(model, inputs):
    """One step of plain gradient descent."""
    torch.manual_seed(0)
    model.train()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=0.01)
    model(**inputs, labels=torch.tensor([0, 2])).loss.backward()
    optimizer.step()


def same_answers(reloaded, model, inputs):
    for name, tensor in model.state_dict().items():
        assert torch.equal(reloaded.state_dict()[name], tensor), name
    with torch.no_grad():
        expected, logits = model(**inputs).logits, reloaded(**inputs).logits
    # Not bit by bit: convolutions choose their algorithm by the alignment of the weights in memory.
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())


def state(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_every_family_of_transformers_is_here():
    covered = {recipe.model_type for recipe in TINY_FAMILIES.values()} | UNTRAINABLE.keys()
    assert MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES.keys() <= covered


@pytest.mark.parametrize("family", TRAINABLE)
def test_only_the_head_is_new(tiny, family):
    folder = tiny(family)
    cls = ViTForImageClassification if family == "vit_mae" else AutoModelForImageClassification
    reference = cls.from_pretrained(folder).state_dict()
    for classes in (1, 2, 7):
        built = build(folder, classes)
        with torch.no_grad():
            logits = built.model(**inputs_for(built)).logits
        assert logits.shape == (2, classes)
        assert built.model.dtype == torch.float32
        assert built.report.new
        assert set(built.report.new) <= head_parameters(built.model)
        reused = built.model.state_dict().keys() - set(built.report.new)
        assert len(reused) == built.report.reused > 0
        for name in reused:
            assert torch.equal(built.model.state_dict()[name], reference[name]), name


@pytest.mark.parametrize("family", TRAINABLE)
def test_what_is_saved_answers_the_same_through_pipeline(tiny, family, tmp_path):
    built = build(tiny(family))
    inputs = inputs_for(built)
    before = state(built.model)
    step(built.model, inputs)
    moved = {name for name, tensor in built.model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert set(built.report.new) <= moved
    assert len(moved) > len(built.report.new)
    built.model.eval().save_pretrained(tmp_path)
    built.processor.save_pretrained(tmp_path)
    reloaded = AutoModelForImageClassification.from_pretrained(tmp_path)
    same_answers(reloaded, built.model, inputs)
    with torch.no_grad():
        alone = built.model(**inputs_for(built, count=1)).logits.softmax(-1)[0]
    assert reloaded.config.id2label == dict(enumerate(NAMES[:3]))
    answer = pipeline("image-classification", model=str(tmp_path), device="cpu")(pictures()[0])
    scores = {entry["label"]: entry["score"] for entry in answer}
    assert scores == pytest.approx(dict(zip(NAMES[:3], alone.tolist(), strict=True)), abs=1e-6)


@pytest.mark.parametrize("family", DISTINCT)
def test_a_frozen_backbone_stays_as_it_is(tiny, family, tmp_path):
    built = build(tiny(family))
    freeze_backbone(built.model)
    model = copy.deepcopy(built.model)  # as for an exponential moving average
    head = head_parameters(model)
    own = {name.rpartition(".")[0] for name in head}
    before = state(model)
    step(model, inputs_for(built))
    after = model.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved
    assert {name for name in moved if name.rpartition(".")[0] not in own} == set()
    assert before.keys() == after.keys()
    assert model.training
    for name, _ in model.named_parameters():
        module = model.get_submodule(name.rpartition(".")[0])
        if not list(module.children()):
            assert module.training == (name in head), name


@pytest.mark.parametrize("family", TRAINABLE)
def test_a_backbone_that_does_not_load_is_an_error(tiny, family, tmp_path):
    folder = tiny(family)
    model = build(folder).model
    head = head_parameters(model)
    backbone = [parameter for name, parameter in model.named_parameters() if name not in head]
    tensors = load_file(folder / "model.safetensors")
    lost = next(
        key
        for key, tensor in tensors.items()
        if "mask_token" not in key
        and tensor.ndim > 1
        and any(tensor.shape == parameter.shape and torch.equal(tensor, parameter) for parameter in backbone)
    )
    for file in folder.iterdir():
        if file.suffix == ".json":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    renamed = {f"{key}_renamed" if key == lost else key: tensor for key, tensor in tensors.items()}
    reshaped = {key: torch.cat([tensor, tensor]) if key == lost else tensor for key, tensor in tensors.items()}
    for damaged in (renamed, reshaped):
        save_file(damaged, tmp_path / "model.safetensors", {"format": "pt"})
        with pytest.raises(ModelError, match=r"backbone weights failed to load: 1 tensors, e\.g\. ") as error:
            build(tmp_path)
        assert lost.rpartition(".")[2] in str(error.value)
        assert str(error.value).count("\n") <= 1


@pytest.mark.parametrize("family", DISTINCT)
def test_image_size(tiny, family, tmp_path):
    recipe = TINY_FAMILIES[family]
    height, width = (2 * edge for edge in recipe.size)
    if recipe.fixed_size:
        with pytest.raises(ModelError, match=r"model\.image_size"):
            build(tiny(family), image_size=height)
        return
    built = build(tiny(family), image_size=height)
    built.model.save_pretrained(tmp_path)
    built.processor.save_pretrained(tmp_path)
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    for size in ((40, 200), (150, 150)):
        assert processor(pictures(size), return_tensors="pt")["pixel_values"].shape == (2, 3, height, width)
    inputs = processor(pictures(), return_tensors="pt")
    same_answers(AutoModelForImageClassification.from_pretrained(tmp_path), built.model, inputs)


@pytest.mark.parametrize("family", [family for family in DISTINCT if not TINY_FAMILIES[family].fixed_size])
def test_oblong_images_are_made_or_refused(tiny, family):
    size = (2 * TINY_FAMILIES[family].size[0], 3 * TINY_FAMILIES[family].size[1])
    if TINY_FAMILIES[family].square_only:
        with pytest.raises(ModelError, match=r"model\.image_size"):
            build(tiny(family), image_size=size)
        return
    built = build(tiny(family), image_size=size)
    inputs = inputs_for(built)
    assert inputs["pixel_values"].shape == (2, 3, *size)
    with torch.no_grad():
        assert built.model(**inputs).logits.shape == (2, 3)


@pytest.mark.parametrize("family", UNTRAINABLE)
def test_families_that_cannot_be_trained(family, tmp_path):
    config = {
        "shieldgemma2": {
            "text_config": {"hidden_size": 16, "num_hidden_layers": 1, "vocab_size": 32, "head_dim": 8},
            "vision_config": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2},
        },
    }
    if family in TINY_FAMILIES:
        tiny_model(family, tmp_path)
    else:
        (tmp_path / "config.json").write_text(json.dumps({"model_type": family, **config[family]}))
        (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_processor_type": "ViTImageProcessor"}))
        save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors", {"format": "pt"})
    why = {
        "pp_lcnet": "forward\\(\\) takes no labels",
        "shieldgemma2": "has no output layer of one value per class",
    }
    with pytest.raises(ModelError, match=why[family]) as error:
        build(tmp_path)
    assert str(error.value).count("\n") <= 1
