"""What the installed Transformers does otherwise than the papers of its detectors, mended for training.

Nothing here changes a module or the name of a weight: what is saved loads in plain Transformers. Every mend says what
it is for; tests/models/test_detection_upstream.py fails when Transformers no longer needs one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.loss.loss_d_fine import DFineLoss, _set_aux_loss, _set_aux_loss2
from transformers.loss.loss_deformable_detr import DeformableDetrHungarianMatcher, DeformableDetrImageLoss
from transformers.loss.loss_deimv2 import Deimv2Loss
from transformers.loss.loss_for_object_detection import HungarianMatcher, ImageLoss
from transformers.loss.loss_for_object_detection import _set_aux_loss as _by_layer
from transformers.loss.loss_lw_detr import LwDetrHungarianMatcher, LwDetrImageLoss
from transformers.loss.loss_utils import LOSS_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES

from cv_hf.errors import ModelError
from cv_hf.models.counts import mean_count
from cv_hf.models.parts import backbone_name
from cv_hf.models.pixels import output_sizes

# Their last class is "no object" and their scores a softmax; all others give a sigmoid for every class.
_WITH_NO_OBJECT = ("detr", "table-transformer", "yolos")
# Transformers gives each of their decoder layers the normalized output of the one before once `auxiliary_loss` is on.
_OTHER_WITH_LAYERS = ("conditional_detr", "detr", "table-transformer")
_FROZEN_STEM = ("conditional_detr", "dab-detr", "deformable_detr", "detr", "table-transformer")
# Of pretraining only: without a gradient, several processes would wait for it. And two constants of D-FINE's, which
# loading makes trainable, while the loss goes on with those of the configuration.
_NOT_TRAINED = ("mask_token", "reg_scale", "up")
_PRIOR = 0.01
# sigmoid(15) is the last of these that is well below 1 in float32.
_MOST_CERTAIN = 15.0


def refuse_untrainable(config: PreTrainedConfig, name: str) -> None:
    """Raise ModelError for the detectors whose forward() takes labels only to refuse them."""
    if config.model_type.startswith("pp_doclayout"):
        raise ModelError(f"{name}: {config.model_type} models cannot be trained: Transformers has no loss for them.")


def set_as_trained(config: PreTrainedConfig, chosen: Mapping[str, Any]) -> None:
    """Set, in place, the fields that the checkpoints were trained with, but for those that the user has chosen.

    Published configurations carry `auxiliary_loss: false` where the paper's loss is taken after every decoder layer,
    which matters in training only; but DETR, Conditional DETR and Table Transformer are another model with it, so that
    `mend` adds the loss of their layers. YOLOS has no decoder.

    Raises:
        ModelError: `auxiliary_loss` was chosen other than in the checkpoint, where that makes another model.
    """
    fields: dict[str, Any] = {}
    if config.model_type in _OTHER_WITH_LAYERS:
        if chosen.get("auxiliary_loss", config.auxiliary_loss) != config.auxiliary_loss:
            raise ModelError(
                f"model.config.auxiliary_loss: {config.model_type} models of Transformers are other models with it.\n"
                "Leave it out; the loss is taken after every decoder layer anyway."
            )
    elif getattr(config, "auxiliary_loss", None) is False and config.model_type != "yolos":
        fields["auxiliary_loss"] = True
    if config.model_type == "deformable_detr":
        # main.py of github.com/fundamentalvision/Deformable-DETR: --set_cost_class 2
        fields["class_cost"] = 2
    for name in ("eval_size", "anchor_image_size"):
        # RT-DETR and its kin leave out positions in evaluation mode, which they were trained with, once one is set, and
        # take anchors of that size alone; without they make both for the image that they are given.
        if getattr(config, name, None) is not None:
            fields[name] = None
    for name, value in fields.items():
        if name not in chosen:
            setattr(config, name, value)


def is_detector(config: PreTrainedConfig) -> bool:
    """Whether Transformers has a detector of this configuration and was asked for it."""
    return config.model_type in MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES


def is_square_only(config: PreTrainedConfig) -> bool:
    """Whether oblong images would be taken apart wrongly.

    RF-DETR's `window_partition` reads the grid of patches (height, width) as (width, height) in windows.
    """
    return config.model_type == "rf_detr" and config.backbone_config.num_windows > 1


def check_made_sizes(processor: Any, config: PreTrainedConfig, name: str) -> None:
    """Raise ModelError when the processor keeps an aspect ratio that the model cannot take."""
    sizes = output_sizes(processor) if is_square_only(config) else None
    if any(height != width for height, width in sizes or ()):
        raise ModelError(
            f"{name}: its preprocessor_config.json keeps the aspect ratio, and {config.model_type} models take "
            "square ones only here.\nSet model.image_size."
        )


def check_size(config: PreTrainedConfig, size: tuple[int, int]) -> None:
    """Raise ModelError when a detector cannot see all of an image of `size` (height, width) as it is.

    Vision transformers leave out the rows and columns beyond their last whole patch, to which the boxes still refer.
    """
    shown = "x".join(map(str, size))
    if is_square_only(config) and size[0] != size[1]:
        raise ModelError(f"model.image_size: {config.model_type} models take square images only here, not {shown}.")
    step = _step(config)
    if any(edge % step for edge in size):
        near = "x".join(str(max(1, round(edge / step)) * step) for edge in size)
        raise ModelError(f"model.image_size: {shown} is not a multiple of {step}; the nearest that is: {near}.")


def _step(config: PreTrainedConfig) -> int:
    if config.model_type == "yolos":
        return config.patch_size
    backbone = getattr(config, "backbone_config", None)
    if config.model_type == "lw_detr":
        return backbone.patch_size * backbone.num_windows_side
    if config.model_type == "rf_detr":
        return backbone.patch_size * backbone.num_windows
    return max(getattr(config, "feat_strides", None) or [1])


def check_processor(processor: Any, config: PreTrainedConfig, name: str) -> None:
    """Raise ModelError unless the processor makes boxes of the model's outputs, as `pipeline()` asks it to."""
    kind = type(processor).__name__
    if not hasattr(processor, "post_process_object_detection"):
        raise ModelError(
            f"{name}: its preprocessor_config.json names {kind}, which has no post_process_object_detection(), so "
            "pipeline() could not use the trained model.\n"
            "Take the preprocessor_config.json of a detector of its family."
        )
    if config.model_type not in MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES:
        return  # code of its own
    classes = 3
    logits = torch.full((1, 4, classes + (config.model_type in _WITH_NO_OBJECT)), -8.0)
    logits[0, 2, 1] = 1.0
    expected = logits.softmax(-1)[0, 2, 1] if config.model_type in _WITH_NO_OBJECT else logits.sigmoid()[0, 2, 1]
    outputs = _Outputs(logits, torch.tensor([0.5, 0.5, 0.25, 0.5]).expand(1, 4, 4))
    found = processor.post_process_object_detection(outputs, threshold=0.25, target_sizes=[(80, 40)])[0]
    right = (
        found["labels"].tolist() == [1]
        and torch.allclose(found["scores"], expected)
        and torch.allclose(found["boxes"], torch.tensor([[15.0, 20.0, 25.0, 60.0]]))
    )
    if not right:
        raise ModelError(
            f"{name}: its preprocessor_config.json names {kind}, which reads other scores or boxes than "
            f"{config.model_type} models give.\nTake the preprocessor_config.json of a detector of its family."
        )


class _Outputs:
    def __init__(self, logits: torch.Tensor, pred_boxes: torch.Tensor) -> None:
        self.logits, self.pred_boxes = logits, pred_boxes


def mend(model: PreTrainedModel) -> None:
    """Make the model train as its paper says, in place; its predictions stay as they are."""
    kind = model.config.model_type
    model.loss_function = partial(_loss, _LOSSES.get(kind, model.loss_function))
    if is_two_stage(model.config):
        model.register_forward_hook(_add_first_stage_loss, with_kwargs=True)
    if kind in _OTHER_WITH_LAYERS and not model.config.auxiliary_loss:
        judge_layers(model, model.model.decoder, _add_layers)
    if kind in _FROZEN_STEM:
        _free_stages(model)
    for name, parameter in model.named_parameters():
        if name.rpartition(".")[2] in _NOT_TRAINED:
            parameter.requires_grad_(False)


@torch.no_grad()
def initialize_outputs(model: PreTrainedModel, names: Collection[str]) -> None:
    """Give new class layers the bias with which their papers begin, in place: each class has a probability of 0.01.

    Transformers does so for LW-DETR and RF-DETR; RT-DETR, D-FINE, DEIMv2 and DAB-DETR begin at 1 / (classes + 1), which
    is a half for one class, Deformable and Conditional DETR at a half, and so with a loss from all queries that drowns
    that of the objects (Lin et al., "Focal Loss for Dense Object Detection", 2017, section 4.1).

    Args:
        model: the detector.
        names: the parameters whose shape follows from the number of labels, and that are new.
    """
    if model.config.model_type in _WITH_NO_OBJECT:
        return
    prior = getattr(model.config, "initializer_bias_prior_prob", None) or _PRIOR
    for name in names:
        if name.endswith("bias"):
            model.get_parameter(name).fill_(-math.log((1 - prior) / prior))


def is_two_stage(config: PreTrainedConfig) -> bool:
    """Whether the first stage scores its proposals by one row of a class layer."""
    return config.model_type == "deformable_detr" and config.two_stage


def first_stage_scorer(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Return what the first stage of such a model scores its proposals with.

    Two-stage Deformable DETR ranks its proposals by the first class of a class layer of their own, trained to mean "an
    object". It is lost when the number of classes changes, though it has nothing to do with them.
    """
    layer = model.model.decoder.class_embed[-1]
    return {"weight": layer.weight[0].detach().clone(), "bias": layer.bias[0].detach().clone()}


@torch.no_grad()
def restore_first_stage_scorer(model: PreTrainedModel, scorer: Mapping[str, torch.Tensor]) -> None:
    """Put back what `first_stage_scorer` returned of the model as it was in the checkpoint."""
    layer = model.model.decoder.class_embed[-1]
    layer.weight[0] = scorer["weight"]
    layer.bias[0] = scorer["bias"]


def bounded(logits: torch.Tensor) -> torch.Tensor:
    """The logits within ±15, with the gradient of what they were; RF-DETR's loss is infinite beyond ±17."""
    return logits + (logits.clamp(-_MOST_CERTAIN, _MOST_CERTAIN) - logits).detach()


def _free_stages(model: PreTrainedModel) -> None:
    """Train the stages of a ResNet but the stem and the first, as DETR does.

    Transformers freezes its own ResNet whole (it looks for "stage.1" in "stages.1"), until loading undoes all freezing.
    """
    backbone = model.config.backbone_config
    is_timm = backbone.model_type == "timm_backbone"
    if "resnet" not in (backbone.backbone if is_timm else backbone.model_type):
        return
    trained = ("layer2.", "layer3.", "layer4.") if is_timm else ("stages.1.", "stages.2.", "stages.3.")
    for name, parameter in model.get_submodule(backbone_name(model)).named_parameters():
        parameter.requires_grad_(any(stage in name for stage in trained))


def _loss(
    function: Callable[..., Any],
    logits: torch.Tensor,
    labels: list[dict[str, torch.Tensor]],
    device: torch.device,
    pred_boxes: torch.Tensor,
    config: PreTrainedConfig,
    *outputs: Any,
    **more: Any,
) -> tuple[torch.Tensor, dict[str, torch.Tensor], Any]:
    """Take the loss in float32, whatever the precision of the model.

    Box matching and the logarithms of LW-DETR's class loss need more digits than bfloat16 has: sigmoid(6.3) is 1 there.
    """
    with torch.autocast(logits.device.type, enabled=False):
        return function(
            _float32(logits),
            labels,
            device,
            _float32(pred_boxes),
            config,
            *(_float32(output) for output in outputs),
            **{name: _float32(output) for name, output in more.items()},
        )


def _float32(value: Any) -> Any:
    return value.float() if isinstance(value, torch.Tensor) and value.is_floating_point() else value


def judge_layers(model: PreTrainedModel, decoder: nn.Module, add: Callable[..., None]) -> None:
    """Take the loss after every decoder layer, as DETR does (Carion et al., 2020, section 3.2), with hooks.

    Args:
        model: whose forward hook `add` becomes, called with its keyword arguments.
        decoder: of which `add` asks for the `layer_states`.
        add: adds to the output's loss that of each of these.
    """
    for layer in decoder.layers:
        layer.register_forward_hook(_keep_output)
    model.register_forward_hook(add, with_kwargs=True)


def _keep_output(layer: nn.Module, args: Any, output: Any) -> None:
    layer.kept = output[0] if isinstance(output, tuple) else output


def layer_states(decoder: nn.Module) -> list[torch.Tensor]:
    """The normalized outputs of all layers but the last, (B, queries, channels) each; they are kept no longer."""
    kept = [layer.__dict__.pop("kept", None) for layer in decoder.layers]
    passed = [state for state in kept if state is not None]  # others were dropped for this batch (LayerDrop)
    return [decoder.layernorm(state.to(decoder.layernorm.weight.dtype)) for state in passed[:-1]]


def _add_layers(model: PreTrainedModel, args: Any, inputs: Mapping[str, Any], output: Any) -> None:
    states = layer_states(model.model.decoder)
    if output.loss is not None:
        add_layer_losses(model, states, inputs["labels"], output)


def add_layer_losses(
    detector: PreTrainedModel, states: Sequence[torch.Tensor], labels: list[dict[str, torch.Tensor]], output: Any
) -> None:
    """Add to an output, in place, the loss of classes and boxes after each layer, by the detector's `loss_function`.

    Args:
        detector: DETR, Conditional DETR or Table Transformer.
        states: what `layer_states` returns.
        labels: the targets.
        output: the detector's, or that of a segmenter with it inside.
    """
    for index, state in enumerate(states):
        logits, boxes = detector.class_labels_classifier(state), detector.bbox_predictor(state)
        if detector.config.model_type == "conditional_detr":
            points = detector.model.decoder.ref_point_head(detector.model.query_position_embeddings.weight)
            boxes[..., :2] += torch.logit(points.sigmoid(), eps=1e-5)
        loss, terms, _ = detector.loss_function(logits, labels, detector.device, boxes.sigmoid(), detector.config)
        output.loss = output.loss + loss
        output.loss_dict = {**output.loss_dict, **{f"{name}_{index}": term for name, term in terms.items()}}


class Counted:
    """For the losses of DETR and its kin: divided by the objects of the batch as `mean_count` says.

    Transformers divides the mean over the processes by their number once more, so that on 8 of them boxes weigh 8 times
    as much, and waits for the others in evaluation too, where each process has batches of its own.
    """

    def forward(
        self, outputs: Mapping[str, Any], targets: Sequence[Mapping[str, torch.Tensor]]
    ) -> dict[str, torch.Tensor]:
        groups = {"group_detr": self.group_detr} if hasattr(self, "group_detr") else {}
        objects = sum(len(target["class_labels"]) for target in targets) * groups.get("group_detr", 1)
        count = mean_count(objects, outputs["logits"].device)
        layers = {"": outputs}
        layers.update((f"_{index}", layer) for index, layer in enumerate(outputs.get("auxiliary_outputs") or ()))
        if "enc_outputs" in outputs:
            layers["_enc"] = outputs["enc_outputs"]
        terms = {}
        for end, layer in layers.items():
            indices = self.matcher(layer, targets, **groups)
            for kind in self.losses:
                if kind != "masks" or "pred_masks" in layer:
                    found = self.get_loss(kind, layer, targets, indices, count)
                    terms.update((f"{name}{end}", term) for name, term in found.items())
        return terms


class _SoftmaxLoss(Counted, ImageLoss):
    pass


class _FocalLoss(Counted, DeformableDetrImageLoss):
    pass


class _GroupedLoss(Counted, LwDetrImageLoss):
    pass


def weighted(terms: Mapping[str, torch.Tensor], weights: Mapping[str, float]) -> torch.Tensor:
    """The sum of the terms, those of a layer ("loss_bbox_0") weighed as those of the last ("loss_bbox")."""
    ends = {name: name if name in weights else name.rpartition("_")[0] for name in terms}
    return sum(weights[ends[name]] * term for name, term in terms.items() if ends[name] in weights)


def set_loss(
    is_softmax: bool,
    class_weight: float | None,
    logits: torch.Tensor,
    labels: list[dict[str, torch.Tensor]],
    device: torch.device,
    pred_boxes: torch.Tensor,
    config: PreTrainedConfig,
    outputs_class: torch.Tensor | None = None,
    outputs_coord: torch.Tensor | None = None,
    pred_masks: torch.Tensor | None = None,
) -> tuple[torch.Tensor, dict[str, torch.Tensor], Any]:
    """DETR's loss, or Deformable DETR's with a sigmoid for every class.

    Args:
        is_softmax: DETR's.
        class_weight: of the class terms, None: the configuration's. Transformers weighs them by 1 whatever it says.
        logits, pred_boxes, pred_masks: of the last layer; (B, queries, ...) each.
        labels, device, config: as in Transformers' `loss_function`.
        outputs_class, outputs_coord: of all layers, where the configuration says `auxiliary_loss`.

    Returns:
        the loss, its terms by name, and the outputs of the layers but the last.
    """
    costs = config.class_cost, config.bbox_cost, config.giou_cost
    outputs = {"logits": logits, "pred_boxes": pred_boxes}
    kinds = ["labels", "boxes", "cardinality"]
    weights = {
        "loss_ce": config.cls_loss_coefficient if class_weight is None else class_weight,
        "loss_bbox": config.bbox_loss_coefficient,
        "loss_giou": config.giou_loss_coefficient,
    }
    if pred_masks is not None:
        outputs["pred_masks"] = pred_masks
        kinds.append("masks")
        weights.update(loss_mask=config.mask_loss_coefficient, loss_dice=config.dice_loss_coefficient)
    if config.auxiliary_loss:
        outputs["auxiliary_outputs"] = _by_layer(outputs_class, outputs_coord)
    if is_softmax:
        criterion = _SoftmaxLoss(HungarianMatcher(*costs), config.num_labels, config.eos_coefficient, kinds)
    else:
        criterion = _FocalLoss(DeformableDetrHungarianMatcher(*costs), config.num_labels, config.focal_alpha, kinds)
    terms = criterion.to(device)(outputs, labels)
    return weighted(terms, weights), terms, outputs.get("auxiliary_outputs")


def _rt_detr_loss(
    function: Callable[..., Any],
    logits: torch.Tensor,
    labels: Any,
    device: torch.device,
    pred_boxes: torch.Tensor,
    config: PreTrainedConfig,
    outputs_class: torch.Tensor,
    outputs_coord: torch.Tensor,
    **more: Any,
) -> Any:
    """Let a layer's boxes train the layer before it as well ("look forward twice"), which Transformers cuts off.

    Boxes (B, layers, queries, 4) keep their values; rtdetrv2_decoder.py of github.com/lyuwenyu/RT-DETR, `ref_points`.
    """
    before, after = outputs_coord[:, :-1], outputs_coord[:, 1:]
    offset = torch.logit(before, eps=1e-5)
    slope = (after * (1 - after)).detach()
    after = after + slope * (offset - offset.detach())
    outputs_coord = torch.cat([outputs_coord[:, :1], after], dim=1)
    return function(logits, labels, device, outputs_coord[:, -1], config, outputs_class, outputs_coord, **more)


class _DFineCriterion(DFineLoss):
    """D-FINE's loss, whose boxes are matched by all layers together (Peng et al., "D-FINE", 2024, section 4.2)."""

    use_dense_one_to_one = True
    _get_dense_o2o_indices = Deimv2Loss._get_dense_o2o_indices
    forward = Deimv2Loss.forward


def _fine_loss(
    criterion: type[DFineLoss],
    logits: torch.Tensor,
    labels: Any,
    device: torch.device,
    pred_boxes: torch.Tensor,
    config: PreTrainedConfig,
    outputs_class: torch.Tensor,
    outputs_coord: torch.Tensor,
    enc_topk_logits: torch.Tensor,
    enc_topk_bboxes: torch.Tensor,
    denoising_meta_values: Mapping[str, Any] | None,
    predicted_corners: torch.Tensor,
    initial_reference_points: torch.Tensor,
    **more: Any,
) -> Any:
    """D-FINE's and DEIMv2's loss, each layer's classes and boxes with that layer's own distributions of corners.

    In training, classes and boxes (B, layers + 1, queries, ...) begin with those of a plain head on the first layer.
    Transformers' losses overlook it, so every layer is judged with the corners of the next, the last but one and the
    last layer's denoising queries not at all; and they leave out the corner loss of the last layer. As in
    dfine_decoder.py and dfine_criterion.py of github.com/Peterande/D-FINE (`pre_outputs`, `loss_local`).
    """
    layers = predicted_corners.shape[1]
    split = denoising_meta_values["dn_num_split"] if denoising_meta_values else [0, outputs_class.shape[2]]
    outputs_coord = outputs_coord.clamp(0, 1)
    (dn_class, classes), (dn_coord, coords), (dn_corners, corners), (dn_refs, refs) = (
        torch.split(output, split, dim=2)
        for output in (outputs_class, outputs_coord, predicted_corners, initial_reference_points)
    )

    def by_layer(classes: Any, coords: Any, corners: Any, refs: Any) -> tuple[list[dict], list[dict]]:
        firsts = [output.transpose(0, 1) for output in (classes, coords)]
        plain = _set_aux_loss(*(output[:-layers] for output in firsts))
        own = [output.transpose(0, 1) for output in (corners, refs)]
        return _set_aux_loss2(*(output[-layers:] for output in firsts), *own, corners[:, -1], classes[:, -1]), plain

    of_layers, plain = by_layer(classes, coords, corners, refs)
    outputs = dict(of_layers[-1])
    auxiliary = None
    if config.auxiliary_loss:
        auxiliary = [*of_layers[:-1], *plain, *_set_aux_loss([enc_topk_logits], [enc_topk_bboxes.clamp(0, 1)])]
        outputs["auxiliary_outputs"] = auxiliary
        if denoising_meta_values:
            of_layers, plain = by_layer(dn_class, dn_coord, dn_corners, dn_refs)
            outputs["dn_auxiliary_outputs"] = [*of_layers, *plain]
            outputs["denoising_meta_values"] = denoising_meta_values
    terms = criterion(config).to(device)(outputs, labels)
    return sum(terms.values()), terms, auxiliary


def _grouped_loss(
    logits: torch.Tensor,
    labels: Any,
    device: torch.device,
    pred_boxes: torch.Tensor,
    config: PreTrainedConfig,
    outputs_class: torch.Tensor | None,
    outputs_coord: torch.Tensor | None,
    enc_outputs_class: torch.Tensor,
    enc_outputs_coord: torch.Tensor,
) -> Any:
    """LW-DETR's and RF-DETR's loss, finite for certain predictions, and in evaluation mode of the one group there is.

    Transformers takes log(1 - sigmoid(x)), infinite from x = 17 (github.com/roboflow/rf-detr takes logsigmoid), and
    matches in `group_detr` groups the queries that evaluation mode makes of one.
    """
    groups = 1 if logits.shape[1] == config.num_queries else config.group_detr
    outputs: dict[str, Any] = {
        "logits": bounded(logits),
        "pred_boxes": pred_boxes,
        "enc_outputs": {"logits": bounded(enc_outputs_class), "pred_boxes": enc_outputs_coord},
    }
    if config.auxiliary_loss:
        outputs["auxiliary_outputs"] = _by_layer(bounded(outputs_class), outputs_coord)
    matcher = LwDetrHungarianMatcher(config.class_cost, config.bbox_cost, config.giou_cost)
    kinds = ["labels", "boxes", "cardinality"]
    terms = _GroupedLoss(matcher, config.num_labels, config.focal_alpha, kinds, groups).to(device)(outputs, labels)
    weights = {
        "loss_ce": config.class_loss_coefficient,
        "loss_bbox": config.bbox_loss_coefficient,
        "loss_giou": config.giou_loss_coefficient,
    }
    return weighted(terms, weights), terms, outputs.get("auxiliary_outputs")


def _add_first_stage_loss(model: nn.Module, args: Any, inputs: Mapping[str, Any], output: Any) -> None:
    """Train the proposals of two-stage Deformable DETR: Transformers returns them, but leaves them out of the loss.

    Every object is of the one class "object" there, as in deformable_detr.py of
    github.com/fundamentalvision/Deformable-DETR (`bin_targets`).
    """
    labels = inputs.get("labels")
    if labels is None or getattr(output, "loss", None) is None:
        return
    config = model.config
    outputs = {
        "logits": output.enc_outputs_class.float(),
        "pred_boxes": output.enc_outputs_coord_logits.float().sigmoid(),
    }
    objects = [{**target, "class_labels": torch.zeros_like(target["class_labels"])} for target in labels]
    matcher = DeformableDetrHungarianMatcher(config.class_cost, config.bbox_cost, config.giou_cost)
    criterion = _FocalLoss(matcher, config.num_labels, config.focal_alpha, ["labels", "boxes"])
    with torch.autocast(model.device.type, enabled=False):
        terms = criterion(outputs, objects)
    output.loss_dict = {**output.loss_dict, **{f"{name}_enc": term for name, term in terms.items()}}
    output.loss = (
        output.loss
        + _DEFORMABLE_CLASS_WEIGHT * terms["loss_ce"]
        + config.bbox_loss_coefficient * terms["loss_bbox"]
        + config.giou_loss_coefficient * terms["loss_giou"]
    )


# main.py of github.com/fundamentalvision/Deformable-DETR: --cls_loss_coef 2
_DEFORMABLE_CLASS_WEIGHT = 2.0
_LOSSES: dict[str, Callable[..., Any]] = {
    "conditional_detr": partial(set_loss, False, None),
    "d_fine": partial(_fine_loss, _DFineCriterion),
    "dab-detr": partial(set_loss, False, 1.0),
    "deformable_detr": partial(set_loss, False, _DEFORMABLE_CLASS_WEIGHT),
    "deimv2": partial(_fine_loss, Deimv2Loss),
    "detr": partial(set_loss, True, 1.0),
    "lw_detr": _grouped_loss,
    "rf_detr": _grouped_loss,
    "rt_detr": partial(_rt_detr_loss, LOSS_MAPPING["RTDetrForObjectDetection"]),
    "rt_detr_v2": partial(_rt_detr_loss, LOSS_MAPPING["RTDetrV2ForObjectDetection"]),
    "table-transformer": partial(set_loss, True, 1.0),
    "yolos": partial(set_loss, True, 1.0),
}
