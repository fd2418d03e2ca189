"""Every family of segmenters: loaded, trained, saved, read by pipeline(), resized, frozen; what processors show."""

from __future__ import annotations

import copy
import json
import pickle
import shutil
from functools import cache

import numpy as np
import PIL.Image
import pytest
import torch
import transformers
from torch.nn import functional as F
from transformers import AutoConfig, AutoImageProcessor, pipeline
from transformers.models.auto import modeling_auto

from cv_hf.config import ModelConfig
from cv_hf.errors import ModelError
from cv_hf.models import (
    build_model,
    freeze_backbone,
    head_parameters,
    pixel_map,
    resizer,
    segmentation,
    target_form,
)
from cv_hf.models.parts import backbone_name, output_parameters
from tests.tiny_segmentation import (
    INSTANCE_FAMILIES,
    SEGMENTATION_FAMILIES,
    SEMANTIC_FAMILIES,
    UNIVERSAL_FAMILIES,
    UNTRAINABLE_SEGMENTERS,
)

FAMILIES = [family for family in SEGMENTATION_FAMILIES if family != "eomt_split"]
UNIVERSAL = [family for family in UNIVERSAL_FAMILIES if family != "eomt_split"]
MASKS = [family for family in UNIVERSAL if family != "detr_panoptic"]
AUTO = {
    "semantic": ("AutoModelForSemanticSegmentation", "AutoModelForUniversalSegmentation"),
    "instance": ("AutoModelForUniversalSegmentation", "AutoModelForInstanceSegmentation"),
    "panoptic": ("AutoModelForUniversalSegmentation",),
}
NAMES = ["ant", "bee", "cat", "dog", "eel", "fox", "gnu"]
BACKBONES = {
    "beit_semantic": "beit",
    "data2vec_semantic": "data2vec_vision",
    "detr_panoptic": "detr.model.backbone.model",
    "dpt_semantic": "dpt",
    "eomt": "",
    "eomt_dinov3": "",
    "mask2former": "model.pixel_level_module.encoder",
    "maskformer": "model.pixel_level_module.encoder",
    "mobilenet_v2_semantic": "mobilenet_v2",
    "mobilevit_semantic": "mobilevit",
    "mobilevitv2_semantic": "mobilevitv2",
    "oneformer": "model.pixel_level_module.encoder",
    "rf_detr_instance": "model.model.backbone.backbone",
    "sapiens2_semantic": "model",
    "segformer_semantic": "segformer",
    "tipsv2_dpt_semantic": "backbone",
    "upernet_convnext": "backbone",
    "upernet_swin": "backbone",
}
SIZES = ((64, 64), (90, 120), (120, 50), (33, 95))


def fields(classes=3):
    names = dict(enumerate(NAMES[:classes]))
    return {"id2label": names, "label2id": {name: index for index, name in names.items()}}


def task_of(family):
    return "semantic" if family in SEMANTIC_FAMILIES else "instance" if family in INSTANCE_FAMILIES else "panoptic"


def build(folder, classes=3, task="panoptic", **model):
    return build_model(ModelConfig(id=str(folder), **model), AUTO[task], fields(classes))


@cache
def _built_once(folder, classes, task):
    torch.manual_seed(0)
    return build(folder, classes, task)


def built_for(tiny, family, classes=3, **model):
    """Built anew where the recipe says more than a family, else a copy of what was built once."""
    if model:
        return build(tiny(family), classes, task_of(family), **model)
    return copy.deepcopy(_built_once(tiny(family), classes, task_of(family)))


def targets(form, counts=(3, 1), size=(64, 64), classes=3, dtype=torch.bool):
    """Random targets of the form, for as many images as counts; every third row of a map has no class."""
    height, width = size
    generator = torch.Generator().manual_seed(0)
    if form.kind == "maps":
        maps = torch.randint(0, classes, (len(counts), height, width), generator=generator)
        maps[:, ::3] = form.ignore_index
        return {"labels": maps}
    class_labels = [torch.randint(0, classes, (count,), generator=generator) for count in counts]
    masks = [torch.zeros(count, height, width, dtype=dtype) for count in counts]
    boxes = []
    for each in masks:
        corners = torch.rand(len(each), 2, generator=generator) / 2
        for mask, (top, left) in zip(each, corners, strict=True):
            y, x = int(top * height), int(left * width)
            mask[y : y + height // 3, x : x + width // 3] = 1
        boxes.append(torch.cat([corners.flip(1) + 1 / 6, torch.full_like(corners, 1 / 3)], 1))
    if form.kind == "masks":
        return {"mask_labels": masks, "class_labels": class_labels}
    objects = zip(class_labels, boxes, masks, strict=True)
    return {"labels": [{"class_labels": c, "boxes": b, "masks": m} for c, b, m in objects]}


def prompt(built, wanted, count, subtask="panoptic"):
    """What a prompted model is given beside the image; the texts where there are targets."""
    if not hasattr(built.processor, "prompt"):
        return {}
    texts = {"text_inputs": built.processor.texts([subtask] * count, wanted["class_labels"])} if wanted else {}
    return {**built.processor.prompt(subtask, count), **texts}


def loss_of(built, images, wanted):
    return built.model(pixel_values=images, **wanted, **prompt(built, wanted, len(images))).loss


def predicted(outputs):
    names = ("logits", "pred_masks", "class_queries_logits", "masks_queries_logits")
    return [outputs[name] for name in names if outputs.get(name) is not None]


def outputs_of(model, inputs, built):
    with torch.no_grad():
        return predicted(model(**inputs, **prompt(built, None, len(inputs["pixel_values"]))))


def step(built, images, wanted, learning_rate=1e-3, steps=2):
    trained = [parameter for parameter in built.model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=learning_rate)
    losses = []
    for _ in range(steps):
        loss = loss_of(built, images, wanted)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_every_family_of_transformers_is_here():
    covered = {family.model_type for family in SEGMENTATION_FAMILIES.values()} | UNTRAINABLE_SEGMENTERS.keys()
    known = {
        model_type
        for kind in ("SEMANTIC", "INSTANCE", "UNIVERSAL")
        for model_type in getattr(modeling_auto, f"MODEL_FOR_{kind}_SEGMENTATION_MAPPING_NAMES")
    }
    assert covered == known


@pytest.mark.parametrize("family", FAMILIES)
def test_the_head_is_new_and_nothing_else(tiny, family):
    auto = getattr(transformers, SEGMENTATION_FAMILIES[family].architecture)
    reference = auto.from_pretrained(tiny(family)).state_dict()
    # Five is the number that the checkpoint has, of other classes.
    many = {"mask2former": (1, 2, 5, 7), "rf_detr_instance": (1, 5), "segformer_semantic": (2, 5, 7)}
    for classes in many.get(family, (5,)):
        built = built_for(tiny, family, classes)
        model = built.model
        outputs = output_parameters(model)
        assert set(built.report.new) == outputs != set()
        assert model.config.num_labels == classes
        pointers = {model.get_parameter(name).data_ptr() for name in built.report.new}
        for name, tensor in model.state_dict().items():
            is_new = tensor.data_ptr() in pointers or name == "criterion.empty_weight"
            assert is_new or torch.equal(tensor, reference[name]), name
        for name in built.report.new:
            parameter = model.get_parameter(name)
            assert parameter.shape != reference[name].shape or not torch.equal(parameter, reference[name])
        if target_form(model).kind == "masks":
            expected = [1.0] * classes + [model.config.no_object_weight]
            torch.testing.assert_close(model.criterion.empty_weight, torch.tensor(expected))


@pytest.mark.parametrize("family", ["detr_panoptic", "mask2former", "oneformer", "rf_detr_instance", "upernet_swin"])
def test_a_head_is_kept_for_the_labels_it_has(tiny, family):
    labels = {index: f"class_{index}" for index in range(5)}
    known = {"id2label": labels, "label2id": {name: index for index, name in labels.items()}}
    built = build_model(ModelConfig(id=str(tiny(family))), AUTO[task_of(family)], known)
    auto = getattr(transformers, SEGMENTATION_FAMILIES[family].architecture)
    reference = auto.from_pretrained(tiny(family)).state_dict()
    assert built.report.new == []
    assert all(torch.equal(tensor, reference[name]) for name, tensor in built.model.state_dict().items())


def test_target_forms(tiny):
    kinds = {}
    for family in FAMILIES:
        config = AutoConfig.from_pretrained(tiny(family))
        with torch.device("meta"):
            kinds[family] = target_form(getattr(transformers, SEGMENTATION_FAMILIES[family].architecture)(config))
    assert {kinds[family] for family in SEMANTIC_FAMILIES} == {("maps", 255)}
    assert {kinds[family] for family in MASKS} == {("masks", None)}
    assert kinds["detr_panoptic"] == kinds["rf_detr_instance"] == ("objects", None)
    assert pickle.loads(pickle.dumps(kinds)) == kinds


@pytest.mark.parametrize("family", ["segformer_semantic", "upernet_swin"])
def test_what_is_ignored_is_no_class(tiny, family):
    names = {index: f"c{index}" for index in range(300)}
    many = {"id2label": names, "label2id": {name: index for index, name in names.items()}}
    model = build_model(ModelConfig(id=str(tiny(family))), AUTO["semantic"], many).model
    assert target_form(model).ignore_index == -100
    images, labels = torch.rand(2, 3, 64, 64), torch.full((2, 64, 64), 255)
    assert model(images, labels=labels).loss > 0
    labels[:] = -100
    assert model(images, labels=labels).loss == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_saved_answers_the_same(tiny, family, tmp_path):
    built = built_for(tiny, family)
    size = SEGMENTATION_FAMILIES[family].size
    torch.manual_seed(0)
    built = built._replace(model=copy.deepcopy(built.model).train())  # as for a moving average
    step(built, torch.rand(2, 3, *size), targets(target_form(built.model), size=size))
    model = built.model.eval()
    model.save_pretrained(tmp_path)
    built.processor.save_pretrained(tmp_path)
    reloaded = getattr(transformers, SEGMENTATION_FAMILIES[family].architecture).from_pretrained(tmp_path).eval()
    rng = np.random.default_rng(0)
    image = PIL.Image.fromarray(rng.integers(0, 256, (90, 120, 3), dtype=np.uint8))
    inputs = built.processor(image, return_tensors="pt")
    again = outputs_of(model, inputs, built)
    twice, theirs = outputs_of(model, inputs, built), outputs_of(reloaded, inputs, built)
    assert all(torch.equal(one, other) for one, other in zip(again, twice, strict=True))
    for one, other in zip(again, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    answering = pipeline("image-segmentation", model=str(tmp_path), device="cpu")
    for subtask in ("semantic", "instance", "panoptic") if family in UNIVERSAL else (task_of(family),):
        more = {} if subtask == "semantic" else {"threshold": 0.0}
        first, second = (answering(image, subtask=subtask, **more) for _ in range(2))
        assert all(one["label"] in NAMES[:3] and one["mask"].size == (120, 90) for one in first)
        assert [{**one, "mask": np.array(one["mask"]).tolist()} for one in first] == [
            {**one, "mask": np.array(one["mask"]).tolist()} for one in second
        ]
        if subtask == "semantic":
            assert sum((np.array(one["mask"]) > 0).astype(int) for one in first).min() == 1
    if family in SEMANTIC_FAMILIES:
        logits = F.interpolate(again[0], size=(90, 120), mode="bilinear", align_corners=False)[0].argmax(0).numpy()
        for one in first:
            assert ((np.array(one["mask"]) > 0) == (logits == NAMES.index(one["label"]))).mean() > 0.99


@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss(tiny, family):
    built = built_for(tiny, family)
    model, form, size = built.model.train(), target_form(built.model), SEGMENTATION_FAMILIES[family].size
    cases = [(3, 1), (2,)] if form.kind == "maps" else [(3, 1), (2,), (2, 0), (0, 0), (30, 2)]
    for counts in cases:
        for bfloat16 in (False, True) if counts == (3, 1) else (False,):
            torch.manual_seed(0)
            model.zero_grad()
            images, wanted = torch.rand(len(counts), 3, *size), targets(form, counts, size)
            with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
                loss = loss_of(built, images, wanted)
            loss.backward()
            assert loss.shape == ()
            assert loss.dtype == torch.float32
            assert loss.isfinite()
            assert all(value.grad.isfinite().all() for value in model.parameters() if value.grad is not None)
    with torch.no_grad():
        assert loss_of(built._replace(model=model.eval()), images, wanted).isfinite()


@pytest.mark.parametrize("family", MASKS)
def test_masks_of_any_type(tiny, family):
    built = built_for(tiny, family)
    losses = []
    for dtype in (torch.bool, torch.uint8, torch.float32):
        torch.manual_seed(0)
        losses.append(loss_of(built, torch.rand(2, 3, 64, 64), targets(target_form(built.model), dtype=dtype)).item())
    assert len(set(losses)) == 1


def painted(wanted, size):
    """Images (B, 3, H, W) of grey noise that show their targets, a colour for each class."""
    maps = wanted.get("labels")
    if isinstance(maps, torch.Tensor):
        shown = [[maps[image] == index for index in range(3)] for image in range(len(maps))]
    else:
        objects = wanted.get("labels") or [
            {"class_labels": classes, "masks": masks}
            for classes, masks in zip(wanted["class_labels"], wanted["mask_labels"], strict=True)
        ]
        shown = [[(each["masks"][each["class_labels"] == index]).any(0) for index in range(3)] for each in objects]
    images = 0.05 * torch.randn(len(shown), 3, *size)
    for image, classes in zip(images, shown, strict=True):
        for channel, where in zip(image, classes, strict=True):
            channel[where] += 2.0
    return images


def halves(form, size):
    """Two images whose upper half is of class 0 and whose lower half of class 1, the second the other way round."""
    upper = torch.zeros(size, dtype=torch.bool)
    upper[: size[0] // 2] = True
    if form.kind == "maps":
        return {"labels": torch.stack([(~upper).long(), upper.long()])}
    classes = [torch.tensor([0, 1]), torch.tensor([1, 0])]
    return {"class_labels": classes, "mask_labels": [torch.stack([upper, ~upper])] * 2}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_falls(tiny, family):
    torch.manual_seed(0)
    size = SEGMENTATION_FAMILIES[family].size
    built = built_for(tiny, family)
    built.model.train()
    form = target_form(built.model)
    wanted = halves(form, size) if form.kind == "maps" else targets(form, size=size)
    losses = step(built, painted(wanted, size), wanted, learning_rate=5e-3, steps=8)
    assert sum(losses[-2:]) < 0.95 * sum(losses[:2])


@pytest.mark.parametrize(("family", "steps"), [("segformer_semantic", 40), ("mask2former", 40)])
def test_two_images_are_learnt(tiny, family, steps):
    torch.manual_seed(0)
    built = built_for(tiny, family)
    built.model.train()
    wanted = halves(target_form(built.model), (64, 64))
    images = painted(wanted, (64, 64))
    step(built, images, wanted, learning_rate=5e-3, steps=steps)
    built.model.eval()
    with torch.no_grad():
        outputs = built.model(images)
    maps = built.processor.post_process_semantic_segmentation(outputs, target_sizes=[(64, 64)] * 2)
    expected = torch.zeros(64, 64, dtype=torch.int64)
    expected[32:] = 1
    assert (maps[0] == expected).float().mean() > 0.9
    assert (maps[1] == 1 - expected).float().mean() > 0.9


@pytest.mark.parametrize("family", FAMILIES)
def test_neighbours_in_a_batch_do_not_matter(tiny, family):
    built = built_for(tiny, family)
    images = torch.rand(3, 3, *SEGMENTATION_FAMILIES[family].size)
    model = built.model.train().eval()
    together, alone = (outputs_of(model, {"pixel_values": each}, built) for each in (images, images[1:2]))
    for ours, theirs in zip(together, alone, strict=True):
        torch.testing.assert_close(ours[1:2], theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_frozen_backbone_stays_as_it_is(tiny, family):
    built = built_for(tiny, family)
    model, size = built.model, SEGMENTATION_FAMILIES[family].size
    assert backbone_name(model) == BACKBONES[family]
    head = head_parameters(model)
    inside = {name for name, _ in model.named_parameters()} - head
    assert inside
    assert output_parameters(model) <= head
    if family.startswith("eomt"):
        parts = {name.partition(".")[0] for name in head}
        assert parts == {"query", "upscale_block", "mask_head", "class_predictor"}
    freeze_backbone(model)
    before = {name: model.get_parameter(name).clone() for name in inside}
    model.train()
    step(built, torch.rand(2, 3, *size), targets(target_form(model), size=size), steps=1)
    assert all(torch.equal(model.get_parameter(name), tensor) for name, tensor in before.items())
    assert any(model.get_parameter(name).grad is not None for name in head)


@pytest.mark.parametrize("family", FAMILIES)
def test_image_size(tiny, family, tmp_path):
    recipe = SEGMENTATION_FAMILIES[family]
    keeps_aspect = family in ("detr_panoptic", "mask2former", "maskformer", "oneformer")
    auto = getattr(transformers, recipe.architecture)
    if recipe.square_only:
        with pytest.raises(ModelError, match=r"model\.image_size: .*square"):
            built_for(tiny, family, image_size=(64, 96))
    for size in (96, (64, 96)) if keeps_aspect else (96,) if recipe.square_only else ((64, 96),):
        built = built_for(tiny, family, image_size=size)
        built.model.save_pretrained(tmp_path)
        built.processor.save_pretrained(tmp_path)
        processor, model = AutoImageProcessor.from_pretrained(tmp_path), auto.from_pretrained(tmp_path).eval()
        for shape in ((200, 100), (100, 130)) if keeps_aspect else ((100, 130),):
            image = PIL.Image.new("RGB", shape[::-1], (200, 9, 90))
            inputs = built.processor(image, return_tensors="pt")
            pixels = inputs["pixel_values"]
            assert torch.equal(processor(image, return_tensors="pt")["pixel_values"], pixels)
            if keeps_aspect and size == 96:
                assert set(pixels.shape[2:]) & {96, 144}
                assert pixels.shape[2] / pixels.shape[3] == pytest.approx(shape[0] / shape[1], rel=0.35)
            else:
                assert tuple(pixels.shape[2:]) == ((96, 96) if size == 96 else size)
            inputs = {name: value for name, value in inputs.items() if isinstance(value, torch.Tensor)}
            expected = outputs_of(model, inputs, built)
            for ours, theirs in zip(outputs_of(built.model, inputs, built), expected, strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("family", "size", "why"),
    [
        ("beit_semantic", 36, "36x36 is not a multiple of 8; the nearest that is: 32x32"),
        ("dpt_semantic", (32, 50), "32x50 is not a multiple of 8; the nearest that is: 32x48"),
        ("eomt_dinov3", 70, "70x70 is not a multiple of 16; the nearest that is: 64x64"),
        ("mask2former", (64, 70), "64x70 is not a multiple of 32; the nearest that is: 64x64"),
        ("rf_detr_instance", 72, "72x72 is not a multiple of 16; the nearest that is: 64x64"),
        ("tipsv2_dpt_semantic", 60, "60x60 is not a multiple of 8; the nearest that is: 64x64"),
    ],
)
def test_sizes_that_no_patch_fits(tiny, family, size, why):
    with pytest.raises(ModelError, match=why):
        built_for(tiny, family, image_size=size)


def rectangle(size, seed=0):
    """A black image (H, W, 3) with a white rectangle, and where it is (H, W)."""
    height, width = size
    rng = np.random.default_rng(seed)
    top, left = rng.integers(0, (height // 2, width // 2))
    where = np.zeros(size, bool)
    where[top : top + height // 3, left : left + width // 3] = True
    return where[..., None] * np.full(3, 255, np.uint8), where


class Copying:
    """A model whose masks of class 1 are where its input is bright."""

    def __init__(self, kind, has_no_object):
        self.kind = kind
        self.has_no_object = has_no_object

    def __call__(self, pixel_values, **more):
        bright = pixel_values.mean(1) > (pixel_values.max() + pixel_values.min()) / 2
        masks = torch.where(torch.stack([~bright, bright], 1), 30.0, -30.0)
        classes = torch.full((1, 2, 2 + self.has_no_object), -30.0)
        classes[0, 0, 0] = classes[0, 1, 1] = 30.0
        self.logits = masks if self.kind == "maps" else classes
        self.class_queries_logits = classes
        self.masks_queries_logits = self.pred_masks = masks
        self.pred_boxes = torch.full((1, 2, 4), 0.5)
        self.patch_offsets = more.get("patch_offsets")
        return self


def found(processor, outputs, subtask, size):
    answer = getattr(processor, f"post_process_{subtask}_segmentation")(outputs, target_sizes=[size])[0]
    if subtask == "semantic":
        return (answer == 1).numpy()
    ids = [segment["id"] for segment in answer["segments_info"] if segment["label_id"] == 1]
    return np.isin(answer["segmentation"].numpy(), ids)


@pytest.mark.parametrize("family", SEGMENTATION_FAMILIES)
def test_masks_lie_where_things_are(tiny, family, tmp_path):
    for task in ("semantic", "panoptic", "instance") if family in UNIVERSAL_FAMILIES else (task_of(family),):
        built = _built_once(tiny(family), 3, task)
        built.processor.save_pretrained(tmp_path)
        processor = AutoImageProcessor.from_pretrained(tmp_path)
        model = Copying(target_form(built.model).kind, family != "rf_detr_instance")
        for seed, size in enumerate(SIZES):
            image, where = rectangle(size, seed)
            inputs = processor(images=[PIL.Image.fromarray(image)], return_tensors="pt")
            height, width = inputs["pixel_values"].shape[2:]
            assert len(inputs["pixel_values"]) == 1
            places = found(processor, model(**inputs), task, size)
            wrong = np.argwhere(places != where)
            edges = np.argwhere(where)
            # Wrong pixels lie at the edges, no further off than a pixel of the model's input, or of the image.
            reach = 1 + np.maximum(1, np.array(size) / (height, width))
            ends = (edges.min(0), edges.max(0))
            near = np.minimum(*(np.abs(wrong - end) for end in ends)).T
            assert ((near[0] <= reach[0]) | (near[1] <= reach[1])).all()
            assert places.any()
            assert len(wrong) < 0.5 * where.sum()


@pytest.mark.parametrize(
    ("family", "line"),
    [
        ("beit_semantic", "resizes to 32x32 instead of cropping the centre"),
        ("mobilevit_semantic", "resizes to 32x32 instead of cropping the centre"),
        ("mobilevitv2_semantic", "resizes to 64x64 instead of cropping the centre"),
        ("mobilenet_v2_semantic", "resizes to 33x33 instead of cropping the centre"),
        ("segformer_semantic", "do_reduce_labels is now false"),
        ("mask2former", "do_reduce_labels is now false"),
        ("eomt_split", "MaskFormerImageProcessor in the place of EomtImageProcessor"),
    ],
)
def test_what_is_changed_in_a_processor_is_said(tiny, family, line):
    built = built_for(tiny, family)
    assert [text for text in built.report.lines() if text.startswith("image processor: ")] == built.report.notes
    assert len(built.report.notes) == 1
    assert line in built.report.notes[0]
    settings = built.processor.to_dict()
    assert not settings.get("do_reduce_labels")
    assert not settings.get("do_center_crop")


def test_padding_that_pipeline_does_not_undo(tiny, tmp_path):
    shutil.copytree(tiny("dpt_semantic"), tmp_path, dirs_exist_ok=True)
    path = tmp_path / "preprocessor_config.json"
    settings = {**json.loads(path.read_text()), "size": {"height": 40, "width": 40}, "do_pad": True, "size_divisor": 32}
    path.write_text(json.dumps(settings))
    built = build(tmp_path, task="semantic")
    assert "image processor: does not pad, so that masks lie where they belong" in built.report.notes
    assert built.processor(PIL.Image.new("RGB", (90, 70)), return_tensors="pt")["pixel_values"].shape[2:] == (40, 40)


def test_eomt_keeps_its_processor_where_that_is_right(tiny):
    for task in ("panoptic", "instance"):
        assert type(build(tiny("eomt"), task=task).processor).__name__ == "EomtImageProcessor"
    assert type(build(tiny("eomt"), task="semantic").processor).__name__ == "MaskFormerImageProcessor"


@pytest.mark.parametrize("family", FAMILIES)
def test_pixels_are_learnt_of_the_processor(tiny, family):
    processor = built_for(tiny, family).processor
    assert pixel_map(processor) is not None
    resized = resizer(processor)(np.zeros((40, 90, 3), np.uint8))
    made = processor(PIL.Image.new("RGB", (90, 40)), return_tensors="pt")["pixel_values"].shape[2:]
    assert resized.shape == (*made, 3) or family.startswith("eomt")  # padded by the processor


@pytest.mark.parametrize(
    ("family", "classifier", "auto"),
    [
        ("segformer_semantic", "segformer", "SegformerForImageClassification"),
        ("mobilenet_v2_semantic", "mobilenet_v2", "MobileNetV2ForImageClassification"),
    ],
)
def test_a_classifier_lends_its_backbone(tiny, family, classifier, auto):
    built = build(tiny(classifier), task="semantic")
    model = built.model
    assert type(model).__name__ == SEGMENTATION_FAMILIES[family].architecture
    reference = getattr(transformers, auto).from_pretrained(tiny(classifier)).state_dict()
    name = backbone_name(model)
    assert all(not new.startswith(f"{name}.") for new in built.report.new)
    inside = [key for key in model.state_dict() if key.startswith(f"{name}.") and "num_batches" not in key]
    assert inside
    assert all(torch.equal(model.state_dict()[key], reference[key]) for key in inside)


@pytest.mark.parametrize("family", ["swin", "vit", "timm_vit"])
def test_classifiers_are_no_segmenters(tiny, family):
    with pytest.raises(ModelError, match=r"which has no SemanticSegmentation head.\nThose that have one: beit, "):
        build(tiny(family), task="semantic")
    with pytest.raises(ModelError, match=r"which has no UniversalSegmentation head.\nThose that have one: detr, eomt"):
        build(tiny(family), task="panoptic")


def test_models_of_another_segmentation(tiny):
    with pytest.raises(ModelError, match="is a segformer model, which has no UniversalSegmentation head"):
        build(tiny("segformer_semantic"), task="panoptic")
    with pytest.raises(ModelError, match="is a rf_detr model, which has no SemanticSegmentation head"):
        build(tiny("rf_detr_instance"), task="semantic")
    with pytest.raises(ModelError, match="backbone weights failed to load"):
        build(tiny("detr"), task="panoptic", config={"encoder_attention_heads": 8})


def test_one_class_is_no_semantic_segmentation(tiny):
    for family in SEMANTIC_FAMILIES:
        with pytest.raises(ModelError, match=r"so that it needs two.\nName the background as a class in data.labels"):
            built_for(tiny, family, 1)


def test_models_of_videos(tmp_path):
    AutoConfig.for_model("videomt").save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=UNTRAINABLE_SEGMENTERS["videomt"]):
        build(tmp_path)


def test_processors_of_another_task(tiny, tmp_path):
    shutil.copytree(tiny("segformer_semantic"), tmp_path, dirs_exist_ok=True)
    transformers.ViTImageProcessor(size={"height": 64, "width": 64}).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"names ViTImageProcessor, which has no post_process_semantic_segmentation"):
        build(tmp_path, task="semantic")


def test_a_processor_that_never_shows_all(tiny, monkeypatch):
    monkeypatch.setattr(segmentation, "_whole", lambda *_: iter(()))
    with pytest.raises(
        ModelError, match=r"does not show the model the whole image.*\nTake the preprocessor_config.json"
    ):
        build(tiny("mobilevit_semantic"), task="semantic")
