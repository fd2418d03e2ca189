"""Every family behind AutoModelForObjectDetection: loaded, trained, saved, read by pipeline(), resized, frozen."""

from __future__ import annotations

import copy
import json
import math
import pickle
from collections import Counter

import numpy as np
import PIL.Image
import pytest
import torch
import transformers
from safetensors.torch import save_file
from torchvision.ops import box_iou
from transformers import AutoConfig, AutoImageProcessor, AutoModelForObjectDetection, pipeline
from transformers.models.auto.modeling_auto import MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES

from cv_hf.config import ModelConfig
from cv_hf.errors import ModelError
from cv_hf.models import build_model, freeze_backbone, head_parameters
from cv_hf.models.parts import backbone_name, output_parameters
from tests.tiny_detection import DETECTION_FAMILIES, UNTRAINABLE_DETECTORS

FAMILIES = list(DETECTION_FAMILIES)
NO_OBJECT = {"detr", "detr_timm", "table-transformer", "yolos"}
# In Transformers another model with `auxiliary_loss`.
OTHER_WITH_LAYERS = ("conditional_detr", "detr", "detr_timm", "table-transformer")
DENOISING = {"d_fine", "deimv2", "deimv2_dinov3", "rt_detr", "rt_detr_v2"}
BACKBONES = {
    "conditional_detr": "model.backbone.model",
    "d_fine": "model.backbone.model",
    "dab-detr": "model.backbone.conv_encoder.model",
    "deformable_detr": "model.backbone.model",
    "deformable_detr_two_stage": "model.backbone.model",
    "deimv2": "model.conv_encoder.model",
    "deimv2_dinov3": "model.conv_encoder.backbone",
    "detr": "model.backbone.model",
    "detr_timm": "model.backbone.model",
    "lw_detr": "model.backbone.backbone",
    "rf_detr": "model.backbone.backbone",
    "rt_detr": "model.backbone.model",
    "rt_detr_v2": "model.backbone.model",
    "table-transformer": "model.backbone.conv_encoder.model",
    "yolos": "vit",
}
LEARNT = ("deformable_detr", "lw_detr", "rt_detr")
NAMES = ["ant", "bee", "cat", "dog", "eel", "fox", "gnu"]
COLOURS = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255]], np.uint8)


def build(folder, classes=3, **model):
    names = dict(enumerate(NAMES[:classes]))
    fields = {"id2label": names, "label2id": {name: index for index, name in names.items()}}
    return build_model(ModelConfig(id=str(folder), **model), "AutoModelForObjectDetection", fields)


def scene(seed):
    """A grey image (64, 64) with two coloured boxes; their xyxy corners and classes."""
    rng = np.random.default_rng(seed)
    image = rng.integers(90, 130, (64, 64, 3)).astype(np.uint8)
    corners, classes = [], rng.permutation(3)[:2]
    for left, label in zip((2, 34), classes, strict=True):
        top, width, height = rng.integers((2, 16, 16), (30, 28, 28))
        image[top : top + height, left : left + width] = COLOURS[label]
        corners.append([left, top, left + width, top + height])
    return PIL.Image.fromarray(image), torch.tensor(corners, dtype=torch.float32), torch.from_numpy(classes)


def target(corners, classes, size=64):
    centres, sizes = (corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]
    return {"class_labels": classes, "boxes": torch.cat([centres, sizes], 1) / size}


def targets(*counts, classes=3):
    generator = torch.Generator().manual_seed(0)
    return [
        {
            "class_labels": torch.randint(0, classes, (count,), generator=generator),
            "boxes": 0.2 + 0.3 * torch.rand(count, 4, generator=generator),
        }
        for count in counts
    ]


def fit(folder, steps, learning_rate=2e-3):
    """Train on two images; returns the model, the losses, the scenes and the model's input."""
    torch.manual_seed(0)
    built = build(folder)
    model = built.model.train()
    scenes = [scene(seed) for seed in (1, 2)]
    inputs = built.processor([image for image, *_ in scenes], return_tensors="pt")
    labels = [target(corners, classes) for _, corners, classes in scenes]
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=learning_rate)
    losses = []
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = learning_rate * min(1.0, (step + 1) / 10)
        outputs = model(**inputs, labels=labels)
        optimizer.zero_grad()
        outputs.loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        losses.append(outputs.loss.item())
    model.eval()
    return built, losses, scenes, inputs


def test_every_family_of_transformers_is_here():
    covered = {family.model_type for family in DETECTION_FAMILIES.values()} | UNTRAINABLE_DETECTORS.keys()
    assert covered == MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES.keys()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_head_is_new_and_nothing_else(tiny, family):
    reference = AutoModelForObjectDetection.from_pretrained(tiny(family)).state_dict()
    # Five is the number that the checkpoint has, of other classes.
    for classes in (1, 2, 5, 7) if family in ("detr", "rt_detr") else (1, 5):
        built = build(tiny(family), classes)
        model, state = built.model, built.model.state_dict()
        outputs = output_parameters(model)
        assert set(built.report.new) == outputs != set()
        assert model.config.num_labels == classes
        width = classes + (family in NO_OBJECT)
        with torch.no_grad():
            assert model(torch.rand(1, 3, 96, 96)).logits.shape == (1, 12, width)
        pointers = {model.get_parameter(name).data_ptr() for name in outputs}
        for name, tensor in state.items():
            is_new = tensor.data_ptr() in pointers
            assert is_new or torch.equal(tensor, reference[name]), name
        for name in outputs:
            parameter = model.get_parameter(name)
            assert parameter.shape != reference[name].shape or not torch.equal(parameter, reference[name])
            if name.endswith("bias"):
                expected = 0.0 if family in NO_OBJECT else -math.log(99)
                proposals = family.endswith("two_stage") and name == "model.decoder.class_embed.2.bias"
                assert torch.allclose(parameter[1:] if proposals else parameter, torch.tensor(expected)), name


def with_its_labels(folder):
    labels = {index: f"class_{index}" for index in range(5)}
    fields = {"id2label": labels, "label2id": {name: index for index, name in labels.items()}}
    return build_model(ModelConfig(id=str(folder)), "AutoModelForObjectDetection", fields)


def pretrained(folder, out, **config):
    """Save to `out` the model of `folder` with scales and shifts of its normalizations as if it had been trained."""
    model = AutoModelForObjectDetection.from_pretrained(folder, **config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "norm" in name and value.ndim == 1:
                value += 0.5 * torch.randn(value.shape, generator=generator)
    model.save_pretrained(out)
    AutoImageProcessor.from_pretrained(folder).save_pretrained(out)
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_the_model_of_the_checkpoint(tiny, family, tmp_path):
    reference = pretrained(tiny(family), tmp_path)
    built = with_its_labels(tmp_path)
    state = reference.state_dict()
    assert built.report.new == []
    assert all(torch.equal(tensor, state[name]) for name, tensor in built.model.state_dict().items())
    images = torch.rand(2, 3, 96, 96)
    with torch.no_grad():
        expected, *others = reference(images), built.model(images), built.model(images, labels=targets(3, 1))
    for outputs in others:
        assert torch.equal(outputs.logits, expected.logits)
        assert torch.equal(outputs.pred_boxes, expected.pred_boxes)


def test_two_stages_keep_what_ranks_the_proposals(tiny):
    reference = AutoModelForObjectDetection.from_pretrained(tiny("deformable_detr_two_stage"))
    for classes in (1, 5, 7):
        layer = build(tiny("deformable_detr_two_stage"), classes).model.model.decoder.class_embed[-1]
        kept = reference.model.decoder.class_embed[-1]
        assert torch.equal(layer.weight[0], kept.weight[0])
        assert torch.equal(layer.bias[0], kept.bias[0])


@pytest.mark.parametrize(
    ("family", "classes"),
    [*((family, 1) for family in FAMILIES), ("detr", 2), ("lw_detr", 2), ("rf_detr", 2), ("rt_detr", 2), ("yolos", 2)],
)
def test_what_is_saved_answers_the_same_through_pipeline(tiny, family, classes, tmp_path):
    built = build(tiny(family), classes)
    model = copy.deepcopy(built.model)  # as for a moving average
    pickle.dumps(model.loss_function)
    torch.manual_seed(0)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(2):
        optimizer.zero_grad()
        model(torch.rand(2, 3, 64, 64), labels=targets(3, 1, classes=classes)).loss.backward()
        optimizer.step()
    model.eval().save_pretrained(tmp_path)
    built.processor.save_pretrained(tmp_path)
    reloaded = AutoModelForObjectDetection.from_pretrained(tmp_path).state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(reloaded[name], tensor), name
    rng = np.random.default_rng(0)
    image = PIL.Image.fromarray(rng.integers(0, 256, (90, 120, 3), dtype=np.uint8))
    with torch.no_grad():
        outputs = model(**built.processor(image, return_tensors="pt"))
    width = classes + (family in NO_OBJECT)
    scores = (outputs.logits.softmax(-1)[..., :-1] if family in NO_OBJECT else outputs.logits.sigmoid())[0]
    assert scores.shape == (12, width - (family in NO_OBJECT))
    centres, sizes = outputs.pred_boxes[0].split(2, dim=-1)
    corners = torch.cat([centres - sizes / 2, centres + sizes / 2], -1) * torch.tensor([120, 90, 120, 90])
    best = scores.max(-1)
    expected = Counter(
        (NAMES[label], round(score, 4), tuple(int(edge) for edge in box))
        for label, score, box in zip(best.indices.tolist(), best.values.tolist(), corners.tolist(), strict=True)
    )
    answer = pipeline("object-detection", model=str(tmp_path), device="cpu")(image, threshold=0.0)
    found = Counter((one["label"], round(one["score"], 4), tuple(one["box"].values())) for one in answer)
    assert len(answer) >= 12
    # A box at the edge of a pixel, or a score at that of its last digit, may fall on either side of it.
    if classes == 1:
        assert (found & expected).total() >= 10
    else:
        surest = max(answer, key=lambda one: one["score"])
        assert surest["score"] == pytest.approx(scores.max().item(), abs=1e-4)
        assert surest["label"] == NAMES[scores.max(0).values.argmax()]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss(tiny, family):
    model = build(tiny(family)).model.train()
    images = torch.rand(2, 3, 64, 64)
    for counts in ((3, 1), (2, 0), (0, 0), (30, 2)):
        for bfloat16 in (False, True) if counts == (3, 1) else (False,):
            torch.manual_seed(0)
            model.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
                loss = model(images, labels=targets(*counts)).loss
            loss.backward()
            assert loss.dtype == torch.float32
            assert loss.isfinite()
            without = {name for name, value in model.named_parameters() if value.requires_grad and value.grad is None}
            assert without <= ({"model.denoising_class_embed.weight"} if counts == (0, 0) else set())
            assert all(value.grad.isfinite().all() for value in model.parameters() if value.grad is not None)
    with torch.no_grad():
        assert model.eval()(images, labels=targets(3, 1)).loss.isfinite()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_order_of_a_batch_does_not_matter(tiny, family):
    model = build(tiny(family), config={"num_denoising": 0} if family in DENOISING else {}).model.train()
    images, labels = torch.rand(3, 3, 96, 96), targets(3, 0, 2)
    order = [2, 0, 1]
    with torch.no_grad():
        loss = model(images, labels=labels).loss
        other = model(images[order], labels=[labels[index] for index in order]).loss
        torch.testing.assert_close(other, loss, rtol=1e-4, atol=1e-4)
        alone = model.eval()(images[1:2])
        together = model(images)
    for name in ("logits", "pred_boxes"):
        torch.testing.assert_close(together[name][1:2], alone[name], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "family", [family for family in FAMILIES if family not in ("deimv2", "deimv2_dinov3", "detr_timm", *LEARNT)]
)
def test_the_loss_falls(tiny, family):
    _, losses, *_ = fit(tiny(family), 60 if family == "d_fine" else 25)
    assert sum(losses[-3:]) < 0.85 * sum(losses[:3])


@pytest.mark.parametrize("family", LEARNT)
def test_two_images_are_learnt(tiny, family):
    built, _, scenes, inputs = fit(tiny(family), 120)
    with torch.no_grad():
        outputs = built.model(**inputs)
    found = built.processor.post_process_object_detection(outputs, threshold=0.0, target_sizes=[(64, 64)] * 2)
    for (_, corners, classes), answer in zip(scenes, found, strict=True):
        best = answer["scores"].argsort(descending=True)[:2]
        overlap = box_iou(corners, answer["boxes"][best])
        assert (overlap.max(1).values > 0.5).all()
        assert torch.equal(answer["labels"][best][overlap.argmax(1)], classes)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_frozen_backbone_stays_as_it_is(tiny, family):
    model = build(tiny(family)).model
    name = backbone_name(model)
    assert name == BACKBONES[family]
    inside = {key for key, _ in model.named_parameters() if key.startswith(f"{name}.")}
    assert 0 < len(inside) < len(list(model.parameters()))
    if family != "yolos":
        assert not inside & head_parameters(model)
    freeze_backbone(model)
    before = {key: tensor.clone() for key, tensor in model.get_submodule(name).state_dict().items()}
    optimizer = torch.optim.SGD([value for value in model.parameters() if value.requires_grad], lr=0.1)
    model.train()
    model(torch.rand(2, 3, 64, 64), labels=targets(2, 1)).loss.backward()
    optimizer.step()
    after = model.get_submodule(name).state_dict()
    assert all(torch.equal(after[key], tensor) for key, tensor in before.items())


@pytest.mark.parametrize("family", FAMILIES)
def test_image_size(tiny, family, tmp_path):
    keeps_aspect = "shortest_edge" in DETECTION_FAMILIES[family].processor[1]["size"]
    for size in (96, (64, 96)) if keeps_aspect or family == "rf_detr" else ((64, 96),):
        if family == "rf_detr" and size != 96:
            with pytest.raises(ModelError, match=r"model\.image_size: rf_detr models take square images only"):
                build(tiny(family), image_size=size)
            continue
        built = build(tiny(family), image_size=size)
        built.model.save_pretrained(tmp_path)
        built.processor.save_pretrained(tmp_path)
        processor, model = (
            auto.from_pretrained(tmp_path) for auto in (AutoImageProcessor, AutoModelForObjectDetection)
        )
        for shape in ((200, 100), (100, 130), (100, 100)):
            inputs = processor(PIL.Image.new("RGB", shape[::-1], (200, 9, 90)), return_tensors="pt")
            height, width = inputs["pixel_values"].shape[2:]
            if keeps_aspect and size == 96:
                assert {max(height, width), min(height, width)} & {144, 96}
                assert height / width == pytest.approx(shape[0] / shape[1], rel=0.15)
            else:
                assert (height, width) == ((96, 96) if size == 96 else size)
            with torch.no_grad():
                ours, theirs = built.model(**inputs), model(**inputs)
            torch.testing.assert_close(ours.pred_boxes, theirs.pred_boxes, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("family", "size", "why"),
    [
        ("rt_detr", 50, "50x50 is not a multiple of 32; the nearest that is: 64x64"),
        ("deimv2_dinov3", (64, 70), "64x70 is not a multiple of 32; the nearest that is: 64x64"),
        ("lw_detr", 72, "72x72 is not a multiple of 16; the nearest that is: 64x64"),
        ("rf_detr", 90, "90x90 is not a multiple of 16; the nearest that is: 96x96"),
        ("yolos", (64, 90), "64x90 is not a multiple of 16; the nearest that is: 64x96"),
    ],
)
def test_sizes_that_cannot_be(tiny, family, size, why):
    with pytest.raises(ModelError, match=why):
        build(tiny(family), image_size=size)


@pytest.mark.parametrize("family", FAMILIES)
def test_fields_that_it_was_trained_with(tiny, family):
    config = build(tiny(family)).model.config
    assert config.auxiliary_loss is not (family == "yolos" or family in OTHER_WITH_LAYERS)
    if family == "rt_detr":
        assert build(tiny(family), config={"auxiliary_loss": False}).model.config.auxiliary_loss is False
    if family == "deformable_detr":
        assert config.class_cost == 2


@pytest.mark.parametrize(
    ("family", "processor", "why"),
    [
        ("rt_detr", "DetrImageProcessor", "reads other scores or boxes than rt_detr models give"),
        ("detr", "DeformableDetrImageProcessor", "reads other scores or boxes than detr models give"),
        ("yolos", "ViTImageProcessor", r"has no post_process_object_detection\(\)"),
    ],
)
def test_processors_of_other_models(tiny, family, processor, why, tmp_path):
    for file in tiny(family).iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    getattr(transformers, processor)().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=why) as error:
        build(tmp_path)
    assert processor in str(error.value)
    assert str(error.value).count("\n") <= 1


def test_rf_detr_is_not_given_oblong_images(tiny, tmp_path):
    for file in tiny("rf_detr").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    transformers.RfDetrImageProcessor(size={"shortest_edge": 64, "longest_edge": 96}).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"Set model\.image_size"):
        build(tmp_path)
    processor = build(tmp_path, image_size=64).processor
    assert processor(PIL.Image.new("RGB", (90, 40)), return_tensors="pt")["pixel_values"].shape == (1, 3, 64, 64)


@pytest.mark.parametrize("model_type", UNTRAINABLE_DETECTORS)
def test_detectors_that_cannot_be_trained(model_type, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_processor_type": "DetrImageProcessor"}))
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match="cannot be trained") as error:
        build(tmp_path)
    assert str(error.value).count("\n") <= 1
    cls = getattr(transformers, MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES[model_type])
    assert cls.config_class is type(AutoConfig.for_model(model_type))
