"""What Transformers does otherwise than its detectors' papers, and what is done about it.

A test that fails at its "upstream" part tells that Transformers has been mended: the workaround can go.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from accelerate import PartialState
from accelerate.utils import DistributedType
from transformers import AutoConfig, AutoModelForObjectDetection
from transformers.loss.loss_utils import LOSS_MAPPING
from transformers.models.d_fine.modeling_d_fine import distance2bbox, weighting_function
from transformers.models.rf_detr.modeling_rf_detr import RfDetrDinov2Backbone, RfDetrDinov2Embeddings

from cv_hf.errors import ModelError
from cv_hf.models import detection, freeze_backbone
from cv_hf.models.counts import sharing
from tests.models.test_detection_families import OTHER_WITH_LAYERS, build, pretrained, targets, with_its_labels


def upstream(model, images, labels):
    """The model's output with the loss as Transformers has it."""
    ours = model.loss_function
    del model._loss_function
    try:
        return model(images, labels=labels)
    finally:
        model.loss_function = ours


@pytest.mark.parametrize("family", ["conditional_detr", "dab-detr", "deformable_detr", "detr", "table-transformer"])
def test_stages_of_a_resnet(tiny, family):
    def trained(model):
        names = {name for name, value in model.named_parameters() if "encoder.stages" in name and value.requires_grad}
        return {name.split("encoder.stages.")[1][0] for name in names}

    assert trained(AutoModelForObjectDetection.from_pretrained(tiny(family))) == {"0", "1", "2", "3"}
    model = build(tiny(family)).model
    assert trained(model) == {"1", "2", "3"}
    assert not any(value.requires_grad for name, value in model.named_parameters() if "embedder" in name)


def test_stages_of_timms_resnet(tiny):
    def trained(model):
        return {
            name.split("backbone.model.")[1].partition(".")[0]
            for name, value in model.named_parameters()
            if "backbone.model." in name and value.requires_grad
        }

    assert "layer1" in trained(AutoModelForObjectDetection.from_pretrained(tiny("detr_timm")))
    assert trained(build(tiny("detr_timm")).model) == {"layer2", "layer3", "layer4"}


def test_the_first_stage_of_deformable_detr_is_trained(tiny):
    def untrained(model):
        model(torch.rand(2, 3, 96, 96), labels=targets(3, 1)).loss.backward()
        return {name for name, value in model.named_parameters() if value.requires_grad and value.grad is None}

    theirs = AutoModelForObjectDetection.from_pretrained(tiny("deformable_detr_two_stage")).train()
    assert "model.decoder.bbox_embed.2.layers.0.weight" in untrained(theirs)
    model = build(tiny("deformable_detr_two_stage")).model.train()
    assert untrained(model) == set()
    outputs = model(torch.rand(2, 3, 96, 96), labels=targets(3, 1))
    weights = {"loss_ce": 2, "loss_bbox": 5, "loss_giou": 2}
    expected = sum(weights[k] * term for name, term in outputs.loss_dict.items() for k in weights if name.startswith(k))
    torch.testing.assert_close(outputs.loss, expected)


@pytest.mark.parametrize("family", OTHER_WITH_LAYERS)
def test_layers_are_judged_and_not_normalized_for_the_next(tiny, family, tmp_path):
    theirs = pretrained(tiny(family), tmp_path, decoder_layers=3)
    other = AutoModelForObjectDetection.from_pretrained(tmp_path, auxiliary_loss=True).eval()
    images, labels = torch.rand(2, 3, 64, 64), targets(3, 1, classes=5)
    kept = []
    for layer in theirs.model.decoder.layers:
        layer.register_forward_hook(lambda layer, args, output: kept.append(output))
    with torch.no_grad():
        outputs = theirs(images)
        assert not torch.allclose(other(images).logits, outputs.logits, atol=1e-2)
    states = [output[0] if isinstance(output, tuple) else output for output in kept]
    assert len(states) == 3
    is_conditional = family == "conditional_detr"
    expected, parts = 0.0, []
    for state in states:
        state = theirs.model.decoder.layernorm(state.detach())
        boxes = theirs.bbox_predictor(state)
        if is_conditional:
            query = theirs.model.query_position_embeddings.weight
            boxes[..., :2] += theirs.model.decoder.ref_point_head(query)
        function = LOSS_MAPPING["DeformableDetrForObjectDetection" if is_conditional else "ForObjectDetection"]
        _, terms, _ = function(
            theirs.class_labels_classifier(state), labels, theirs.device, boxes.sigmoid(), theirs.config
        )
        weights = {"loss_ce": 2 if is_conditional else 1, "loss_bbox": 5, "loss_giou": 2}
        parts.append(sum(weight * terms[name] for name, weight in weights.items()))
        expected = expected + parts[-1]
    torch.testing.assert_close(boxes.sigmoid(), outputs.pred_boxes)
    assert len({round(part.item(), 3) for part in parts}) == 3

    model = with_its_labels(tmp_path).model.train()
    found = model(images, labels=labels)
    torch.testing.assert_close(found.loss, expected)
    assert {"loss_bbox", "loss_bbox_0", "loss_bbox_1"} == {name for name in found.loss_dict if "bbox" in name}
    found.loss.backward()
    gradient = model.bbox_predictor.layers[0].weight.grad
    expected.backward()
    torch.testing.assert_close(gradient, theirs.bbox_predictor.layers[0].weight.grad)
    assert not any("kept" in module.__dict__ for module in model.modules())


@pytest.mark.parametrize("family", OTHER_WITH_LAYERS)
def test_a_checkpoint_with_layers_stays_the_model_that_it_is(tiny, family, tmp_path):
    theirs = pretrained(tiny(family), tmp_path, auxiliary_loss=True)
    model = with_its_labels(tmp_path).model
    images, labels = torch.rand(1, 3, 64, 64), targets(3, classes=5)
    with torch.no_grad():
        assert torch.equal(model(images).logits, theirs(images).logits)
        assert {"loss_bbox", "loss_bbox_0"} == {n for n in model(images, labels=labels).loss_dict if "bbox" in n}
    for folder, chosen in ((tmp_path, False), (tiny(family), True)):
        with pytest.raises(ModelError, match=r"auxiliary_loss: .* are other models with it"):
            build(folder, config={"auxiliary_loss": chosen})
        assert build(folder, config={"auxiliary_loss": not chosen}).model.config.auxiliary_loss is not chosen


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_layers_are_judged_under_gradient_checkpointing(tiny, use_reentrant):
    model = build(tiny("detr"), config={"decoder_layers": 3}).model.train()
    images, labels = torch.rand(1, 3, 64, 64), targets(3)
    gradients = []
    for _ in range(2):
        model.zero_grad()
        model(images, labels=labels).loss.backward()
        gradients.append(next(model.model.decoder.layers[0].parameters()).grad.clone())
        model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    torch.testing.assert_close(*gradients)


def test_layers_that_are_dropped_are_not_judged(tiny):
    model = build(tiny("conditional_detr"), config={"decoder_layers": 3}).model.train()
    model.model.decoder.layerdrop = 0.5
    images, labels = torch.rand(1, 3, 64, 64), targets(3)
    torch.manual_seed(0)
    judged = {sum("bbox" in name for name in model(images, labels=labels).loss_dict) for _ in range(8)}
    assert len(judged) > 1


@pytest.mark.parametrize(
    ("family", "is_upstream_wrong"),
    [
        ("conditional_detr", True),
        ("dab-detr", True),
        ("deformable_detr_two_stage", True),
        ("detr", True),
        ("lw_detr", False),
        ("rf_detr", False),
        ("table-transformer", True),
        ("yolos", True),
    ],
)
def test_boxes_are_counted_once(tiny, family, is_upstream_wrong, monkeypatch):
    """Four boxes here and eight in another process are divided by six."""
    model = build(tiny(family)).model.train()
    images, labels = torch.rand(2, 3, 96, 96), targets(3, 1)
    alone = model(images, labels=labels).loss_dict
    upstream_alone = upstream(model, images, labels).loss_dict
    state = {"distributed_type": DistributedType.MULTI_CPU, "num_processes": 2, "device": torch.device("cpu")}
    monkeypatch.setattr(PartialState, "_shared_state", {"backend": "gloo", "debug": False, **state})
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor, op=None: tensor.mul_(3))
    upstream_together = upstream(model, images, labels).loss_dict
    with sharing(1.0):
        together = model(images, labels=labels).loss_dict
    terms = [name for name in together if name.startswith(("loss_bbox", "loss_giou"))]
    assert len(terms) >= (2 if family == "yolos" else 4)
    for name in terms:
        torch.testing.assert_close(together[name], alone[name] * 4 / 6)
    for name in ("loss_bbox", "loss_giou"):
        divided = 3 if is_upstream_wrong else 6
        torch.testing.assert_close(upstream_together[name], upstream_alone[name] * 4 / divided)
    # In evaluation, where processes have batches of their own, none waits for the others.
    monkeypatch.setattr(torch.distributed, "all_reduce", None)
    torch.testing.assert_close(model(images, labels=labels).loss_dict, alone)


@pytest.mark.parametrize(("family", "weight"), [("conditional_detr", 2), ("deformable_detr", 2)])
def test_the_weight_of_classes(tiny, family, weight):
    model = build(tiny(family)).model.train()
    images, labels = torch.rand(2, 3, 96, 96), targets(3, 1)
    for expected, outputs in ((1, upstream(model, images, labels)), (weight, model(images, labels=labels))):
        weights = {"loss_ce": expected, "loss_bbox": 5, "loss_giou": 2}
        total = sum(
            weights[k] * term for name, term in outputs.loss_dict.items() for k in weights if name.startswith(k)
        )
        torch.testing.assert_close(outputs.loss, total)


@pytest.mark.parametrize("family", ["rt_detr", "rt_detr_v2", "d_fine", "deimv2", "dab-detr", "conditional_detr"])
def test_the_bias_of_one_class(tiny, family):
    theirs = AutoModelForObjectDetection.from_pretrained(tiny(family), num_labels=1, ignore_mismatched_sizes=True)
    layer = next(value for name, value in theirs.named_parameters() if "class" in name and name.endswith("bias"))
    assert layer.sigmoid().item() == 0.5
    chosen = {} if family == "conditional_detr" else {"initializer_bias_prior_prob": 0.2}
    for expected, config in ((0.01, {}), (0.2 if chosen else 0.01, chosen)):
        model = build(tiny(family), 1, config=config).model
        layer = next(value for name, value in model.named_parameters() if "class" in name and name.endswith("bias"))
        assert layer.sigmoid().item() == pytest.approx(expected)


def test_boxes_of_rt_detr_train_the_layer_before():
    torch.manual_seed(0)
    deltas = torch.randn(3, 7, 4, requires_grad=True)
    start, weights = torch.rand(7, 4), torch.randn(3, 7, 4)

    def boxes(forward_twice):
        before = reference = start
        made = []
        for delta in deltas:
            base = before if forward_twice else reference
            made.append(torch.sigmoid(delta + torch.logit(base, eps=1e-5)))
            before = torch.sigmoid(delta + torch.logit(reference, eps=1e-5))
            reference = before.detach()
        return torch.stack(made)

    original = boxes(True)
    expected = torch.autograd.grad((original * weights).sum(), deltas)[0]
    seen = {}

    def function(logits, labels, device, pred_boxes, config, outputs_class, outputs_coord):
        seen["boxes"], seen["last"] = outputs_coord[0], pred_boxes[0]

    detection._rt_detr_loss(function, None, None, None, None, None, None, boxes(False)[None])
    assert torch.equal(seen["boxes"], boxes(False))
    assert torch.equal(seen["last"], seen["boxes"][-1])
    torch.testing.assert_close(torch.autograd.grad((seen["boxes"] * weights).sum(), deltas)[0], expected)


def test_rt_detr_cuts_the_layer_before_off(tiny):
    model = AutoModelForObjectDetection.from_pretrained(tiny("rt_detr")).eval()
    model(torch.rand(1, 3, 64, 64)).pred_boxes.sum().backward()
    head = model.model.decoder.bbox_embed
    assert head[1].layers[2].bias.grad.any()
    assert head[0].layers[2].bias.grad is None or not head[0].layers[2].bias.grad.any()


@pytest.mark.parametrize("family", ["d_fine", "deimv2"])
def test_layers_are_judged_with_their_own_corners(tiny, family):
    model = build(tiny(family)).model.train()
    images, labels = torch.rand(2, 3, 64, 64), targets(3, 1)
    kind = "vfl" if family == "d_fine" else "mal"
    terms = upstream(model, images, labels).loss_dict
    assert "loss_fgl" not in terms
    assert f"loss_{kind}_dn_2" not in terms
    terms = model(images, labels=labels).loss_dict
    # The last layer; the one before, the plain head and the proposals; all but these for the denoising queries.
    assert {name for name in terms if f"loss_{kind}" in name} == {
        f"loss_{kind}{end}" for end in ("", "_aux_0", "_aux_1", "_aux_2", "_dn_0", "_dn_1", "_dn_2")
    }
    assert {name for name in terms if "loss_fgl" in name} == {
        f"loss_fgl{end}" for end in ("", "_aux_0", "_dn_0", "_dn_1")
    }
    seen = {}

    def criterion(config):
        class Spy(torch.nn.Module):
            def forward(self, outputs, targets):
                seen.update(outputs)
                return {"loss": outputs["logits"].sum()}

        return Spy()

    model.loss_function = lambda *args, **more: detection._fine_loss(criterion, *args, **more)
    model(images, labels=labels)
    decoder = model.model.decoder
    project = weighting_function(decoder.max_num_bins, decoder.up, decoder.reg_scale)
    layers = [seen, *seen["auxiliary_outputs"], *seen["dn_auxiliary_outputs"]]
    judged = [layer for layer in layers if "pred_corners" in layer]
    assert len(judged) == 4
    for layer in judged:
        distances = decoder.integral(layer["pred_corners"], project)
        boxes = distance2bbox(layer["ref_points"], distances, decoder.reg_scale).clamp(0, 1)
        torch.testing.assert_close(layer["pred_boxes"], boxes, rtol=1e-4, atol=1e-4)
    assert seen["logits"].shape[1] == 12


@pytest.mark.parametrize("family", ["lw_detr", "rf_detr"])
def test_certain_predictions_have_a_finite_loss(tiny, family):
    model = build(tiny(family)).model.train()
    images, labels = torch.rand(2, 3, 64, 64), targets(3, 1)
    with torch.no_grad():
        before = upstream(model, images, labels).loss
        torch.testing.assert_close(model(images, labels=labels).loss, before)
        model.class_embed.bias.fill_(40.0)
    assert not upstream(model, images, labels).loss.isfinite()
    loss = model(images, labels=labels).loss
    loss.backward()
    assert loss.isfinite()
    assert (model.class_embed.bias.grad > 0).all()


@pytest.mark.parametrize("family", ["lw_detr", "rf_detr"])
def test_evaluation_has_one_group(tiny, family):
    model = build(tiny(family)).model.eval()
    images, labels = torch.rand(2, 3, 64, 64), targets(3, 1)
    with torch.no_grad():
        loss = model(images, labels=labels).loss
        assert not torch.allclose(upstream(model, images, labels).loss, loss)
        model.config.group_detr = 1
        torch.testing.assert_close(upstream(model, images, labels).loss, loss)


@pytest.mark.parametrize("family", ["d_fine", "deimv2"])
def test_constants_of_the_loss_stay(tiny, family):
    theirs = AutoModelForObjectDetection.from_pretrained(tiny(family)).model.decoder
    assert theirs.up.requires_grad
    assert theirs.reg_scale.requires_grad
    ours = build(tiny(family)).model
    for _ in range(2):
        assert not ours.model.decoder.up.requires_grad
        assert not ours.model.decoder.reg_scale.requires_grad
        freeze_backbone(ours)


def test_rt_detr_with_a_size_for_evaluation(tiny):
    calls = []
    config = AutoConfig.from_pretrained(tiny("rt_detr"))
    for size in (None, 64):
        config.eval_size = size
        model = AutoModelForObjectDetection.from_config(config).eval()
        model.model.encoder.aifi[0].position_embedding.register_forward_hook(lambda *_: calls.append(size))  # noqa: B023
        model(torch.rand(1, 3, 64, 64))
    assert calls == [None]
    detection.set_as_trained(config, {})
    assert config.eval_size is None


def test_rf_detr_takes_oblong_images_apart_wrongly():
    def round_trip(height, width):
        owner = SimpleNamespace(config=SimpleNamespace(num_windows=2, patch_size=1), patch_size=1)
        tokens = torch.arange(height * width).float().view(1, -1, 1)
        windows = RfDetrDinov2Embeddings.window_partition(
            owner, torch.cat([torch.zeros(1, 1, 1), tokens], 1), height, width
        )
        grid = RfDetrDinov2Backbone.window_unpartition(owner, windows[:, 1:], height, width)
        return torch.equal(grid.reshape(-1), tokens.view(-1))

    assert round_trip(4, 4)
    assert not round_trip(4, 8)
