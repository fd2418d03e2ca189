"""What the installed Transformers does otherwise than the papers of its segmenters, mended for training.

Nothing here changes a module or the name of a weight: what is saved loads in plain Transformers. Every mend says what
it is for; tests/models/test_segmentation_upstream.py fails when Transformers no longer needs one.

Pixels without a label are no target of their own where a loss takes masks (Mask2Former and its kin): as in the papers'
code they belong to no mask, and count as background of every mask.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from fractions import Fraction
from functools import partial
from types import SimpleNamespace
from typing import Any, Literal, NamedTuple

import numpy as np
import PIL.Image
import torch
import transformers
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.loss.loss_rf_detr import RfDetrHungarianMatcher, RfDetrImageLoss, _set_aux_loss

from cv_hf.errors import ModelError
from cv_hf.models import detection, oneformer
from cv_hf.models.counts import mean_count
from cv_hf.models.pixels import output_sizes

SEMANTIC = "AutoModelForSemanticSegmentation"
_IGNORED = 255
# Where 255 is a class: the value that cross-entropy leaves out by itself.
_IGNORED_OF_MANY = -100


class TargetForm(NamedTuple):
    """What the loss of a segmenter is taken from.

    Attributes:
        kind: "maps": `labels` (B, H, W) int64, a class for each pixel of the model's input;
            "masks": `mask_labels`, for each image (n, H, W) bool, and `class_labels`, for each image (n,) int64;
            "objects": `labels`, for each image {`class_labels` (n,) int64, `boxes` (n, 4) float32, cxcywh relative to
            the model's input, `masks` (n, H, W) bool}.
        ignore_index: of "maps": the value of pixels that do not count.
    """

    kind: Literal["maps", "masks", "objects"]
    ignore_index: int | None = None


def target_form(model: PreTrainedModel) -> TargetForm:
    """Return what the model's loss is taken from."""
    return _form(type(model), model.config)


def _form(model_class: type, config: PreTrainedConfig) -> TargetForm:
    if "mask_labels" in inspect.signature(model_class.forward).parameters:
        return TargetForm("masks")
    if detection.is_detector(config):
        return TargetForm("objects")
    return TargetForm("maps", getattr(config, _ignore_name(config), _IGNORED))


def _ignore_name(config: PreTrainedConfig) -> str:
    return "loss_ignore_index" if hasattr(config, "loss_ignore_index") else "semantic_loss_ignore_index"


def refuse_untrainable(config: PreTrainedConfig, name: str) -> None:
    """Raise ModelError for the segmenters that cannot be trained on images."""
    if config.model_type == "videomt":
        raise ModelError(
            f"{name}: videomt models take clips of a video and have no image processor; pipeline() cannot use them."
        )


def set_as_trained(config: PreTrainedConfig, chosen: Collection[str]) -> None:
    """Set, in place, the fields that the checkpoints were trained with, but for those that the user has chosen.

    Without the intermediate predictions, Transformers' Mask2Former raises; with them, its MaskFormer does. DPT raises
    in training without its auxiliary head. OneFormer has what reads texts only while `is_training`.
    """
    kind = config.model_type
    fields = {
        "dpt": {"use_auxiliary_head": True},
        "mask2former": {"use_auxiliary_loss": True},
        "maskformer": {"use_auxiliary_loss": False},
        "oneformer": {"use_auxiliary_loss": True, "is_training": True},
        "rf_detr": {"auxiliary_loss": True},
    }.get(kind, {})
    for name, value in fields.items():
        if name not in chosen or name == "is_training":
            setattr(config, name, value)


def set_classes(model_class: type, config: PreTrainedConfig, name: str) -> None:
    """Choose, in place, the value of pixels without a label so that it is no class.

    Raises:
        ModelError: one class only, which every pixel would be of.
    """
    if _form(model_class, config).kind != "maps":
        return
    if config.num_labels < 2:
        raise ModelError(
            f"{name}: a semantic {config.model_type} model gives each pixel one of its classes, so that it needs two.\n"
            "Name the background as a class in data.labels."
        )
    setattr(config, _ignore_name(config), _IGNORED if config.num_labels <= _IGNORED else _IGNORED_OF_MANY)


def check_size(config: PreTrainedConfig, processor: Any, size: tuple[int, int]) -> None:
    """Raise ModelError when a segmenter cannot see all of an image of `size` (height, width) as it is."""
    if detection.is_detector(config):
        detection.check_size(config, size)
        return
    backbone = getattr(config, "backbone_config", None)
    patches = config.model_type in ("beit", "data2vec-vision", "dpt", "eomt", "eomt_dinov3", "sapiens2", "tipsv2_dpt")
    patch = getattr(backbone if config.model_type == "tipsv2_dpt" else config, "patch_size", None) if patches else None
    if getattr(config, "is_hybrid", False):
        patch = None
    step = patch if isinstance(patch, int) else processor.to_dict().get("size_divisor") or 1
    if any(edge % step for edge in size):
        shown, near = (
            "x".join(str(edge) for edge in edges)
            for edges in (size, [max(1, round(edge / step)) * step for edge in size])
        )
        raise ModelError(f"model.image_size: {shown} is not a multiple of {step}; the nearest that is: {near}.")


def is_segmenter(model: PreTrainedModel) -> bool:
    """Whether it is a segmenter of Transformers."""
    return type(model).__name__.endswith("Segmentation")


def keeps_aspect(processor: Any, model: PreTrainedModel) -> bool:
    """Whether a segmenter takes images that keep their aspect ratio, between a shortest and a longest edge."""
    size = processor.to_dict().get("size") or {}
    both = isinstance(size, Mapping) and size.get("shortest_edge") and size.get("longest_edge")
    return bool(both) and is_segmenter(model) and not model.config.model_type.startswith("eomt")


def whole_image(processor: Any, model: PreTrainedModel, subtasks: Sequence[str], name: str) -> tuple[Any, list[str]]:
    """Return a processor whose masks lie where things are in the image, and in words what that took.

    pipeline() stretches the model's masks over the whole image, so the model must see the whole image and nothing else.

    Args:
        processor: the checkpoint's.
        model: whose configuration says what its outputs are like.
        subtasks: those that pipeline() will be asked for: "semantic", "instance", "panoptic".
        name: of the checkpoint.

    Raises:
        ModelError: the processor has no post-processing for the task, or masks cannot be brought into place.
    """
    lines = []
    able = [subtask for subtask in subtasks if hasattr(processor, f"post_process_{subtask}_segmentation")]
    if not able:
        raise ModelError(
            f"{name}: its preprocessor_config.json names {type(processor).__name__}, which has no "
            f"post_process_{subtasks[0]}_segmentation(), so pipeline() could not use the trained model.\n"
            "Take the preprocessor_config.json of a segmenter of its family."
        )
    settings = processor.to_dict()
    if settings.get("do_reduce_labels"):
        settings = {**settings, "do_reduce_labels": False}
        processor = type(processor)(**settings)
        lines.append("image processor: do_reduce_labels is now false, as class ids begin at 0 already")
    form = target_form(model)

    def lands(candidate: Any) -> bool:
        return all(_lands(candidate, form.kind, model.config, subtask) for subtask in able)

    if lands(processor):
        return processor, lines
    for change, make in _whole(processor, settings, model.config):
        try:
            candidate = make()
            if lands(candidate):
                return candidate, [*lines, f"image processor: {change}, so that masks lie where they belong"]
        except Exception:
            # Each processor class refuses in its own way the settings that it does not know.
            continue
    raise ModelError(
        f"{name}: its preprocessor_config.json ({type(processor).__name__}) does not show the model the whole image, "
        "so that pipeline() would misplace its masks.\nTake the preprocessor_config.json of a segmenter of its family."
    )


def _whole(
    processor: Any, settings: Mapping[str, Any], config: PreTrainedConfig
) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yield changes to a processor after which it may show the whole image, in words and as what makes it."""
    if config.model_type.startswith("eomt"):
        # Its own processor keeps the aspect ratio, and pads or splits, which only some of its post-processing undoes.
        kept = {
            name: settings[name]
            for name in ("image_mean", "image_std", "rescale_factor", "resample", "do_normalize", "do_rescale")
            if settings.get(name) is not None
        }
        size = {"height": config.image_size, "width": config.image_size}
        yield (
            f"MaskFormerImageProcessor in the place of {type(processor).__name__}, which resizes to "
            f"{config.image_size}x{config.image_size} and does not split or pad",
            lambda: transformers.MaskFormerImageProcessor(**kept, size=size, size_divisor=0, do_resize=True),
        )
        return
    made = output_sizes(processor)
    if settings.get("do_center_crop") and made and len(set(made)) == 1:
        height, width = made[0]
        exact = {"do_center_crop": False, "size": {"height": height, "width": width}}
        yield (
            f"resizes to {height}x{width} instead of cropping the centre",
            lambda: type(processor)(**{**settings, **exact}),
        )
    if settings.get("do_pad"):
        yield "does not pad", lambda: type(processor)(**{**settings, "do_pad": False})


def _lands(processor: Any, kind: str, config: PreTrainedConfig, subtask: str) -> bool:
    """Whether a mask that copies what the model sees lands on what it copies, at several aspect ratios."""
    return all(_lands_at(processor, kind, config, subtask, size) for size in ((64, 64), (48, 96), (100, 40), (37, 80)))


def _lands_at(processor: Any, kind: str, config: PreTrainedConfig, subtask: str, size: tuple[int, int]) -> bool:
    height, width = size
    box = (height // 4, width // 8, height // 2, 3 * width // 4)  # top, left, bottom, right
    image = np.zeros((height, width, 3), np.uint8)
    image[box[0] : box[2], box[1] : box[3]] = 255
    inputs = processor(images=[PIL.Image.fromarray(image)], return_tensors="pt")
    pixels = inputs["pixel_values"]
    if pixels.shape[0] != 1:
        return False
    seen = pixels[0].mean(0)
    seen = seen > (seen.max() + seen.min()) / 2
    map_ = segmented(processor, imitated(seen, kind, config), subtask, size)
    found = map_.nonzero()
    if not len(found):
        return False
    edges = torch.cat([found.min(0).values, found.max(0).values + 1]).tolist()
    scales = [max(1.0, edge / made) for edge, made in zip(size, seen.shape, strict=True)] * 2
    return all(abs(edge - expected) <= 1 + scale for edge, expected, scale in zip(edges, box, scales, strict=True))


def imitated(seen: torch.Tensor, kind: str, config: PreTrainedConfig) -> Any:
    """Outputs of a model that says with certainty: class 1 where `seen` (H, W) is true, class 0 elsewhere."""
    sure = 20.0
    both = sure * torch.stack([~seen, seen]).float()[None]
    if kind == "maps":
        return SimpleNamespace(logits=both)
    masks = 2 * both - sure
    has_no_object = kind == "masks" or config.model_type == "detr"
    classes = sure * (2 * torch.eye(2, 2 + has_no_object)[None] - 1)
    if kind == "masks":
        return SimpleNamespace(class_queries_logits=classes, masks_queries_logits=masks, patch_offsets=None)
    return SimpleNamespace(logits=classes, pred_masks=masks, pred_boxes=torch.full((1, 2, 4), 0.5))


def segmented(processor: Any, outputs: Any, subtask: str, size: tuple[int, int]) -> torch.Tensor:
    """Where (H, W) the processor finds class 1 in such outputs, as pipeline() asks it."""
    post_process = getattr(processor, f"post_process_{subtask}_segmentation")
    if subtask == "semantic":
        return post_process(outputs, target_sizes=[size])[0] == 1
    more = {"label_ids_to_fuse": set()} if "label_ids_to_fuse" in inspect.signature(post_process).parameters else {}
    answer = post_process(outputs, threshold=0.5, target_sizes=[size], **more)[0]
    ids = [segment["id"] for segment in answer["segments_info"] if segment["label_id"] == 1]
    return torch.isin(torch.as_tensor(answer["segmentation"]), torch.tensor(ids))


def mend(model: PreTrainedModel) -> None:
    """Make the model train as its paper says, in place; its predictions stay as they are."""
    form = target_form(model)
    kind = model.config.model_type
    if form.kind == "maps":
        model.register_forward_hook(_spare_void, with_kwargs=True)
    elif form.kind == "masks":
        model.criterion.get_num_masks = _count_masks
        model.criterion.forward = partial(_float32_loss, model.criterion.forward)
    else:
        model.loss_function = partial(_float32_loss, _OBJECT_LOSSES.get(kind, model.loss_function))
    if kind == "oneformer":
        oneformer.mend(model)
    elif kind == "maskformer":
        # Published configurations have it turned off, and turned on, Transformers raises.
        detection.judge_layers(model, model.model.transformer_module.decoder, _add_maskformer_layers)
    elif kind == "detr" and not model.config.auxiliary_loss:
        model.detr.loss_function = partial(_float32_loss, partial(detection.set_loss, True, 1.0))
        detection.judge_layers(model, model.detr.model.decoder, _add_detr_layers)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_pre_hook(_spare_single)
            module.register_forward_hook(_train_again, always_call=True)
    for name, parameter in model.named_parameters():
        if name.rpartition(".")[2] == "mask_token":
            # Of pretraining only: without a gradient, several processes would wait for it.
            parameter.requires_grad_(False)


def _spare_void(model: PreTrainedModel, args: Any, inputs: Mapping[str, Any], output: Any) -> None:
    """Take no loss from a batch without a labelled pixel: the mean over none is not a number."""
    labels = inputs.get("labels")
    if labels is not None and not (labels != target_form(model).ignore_index).any():
        output.loss = output.loss.nan_to_num()


def _spare_single(module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
    """Use running statistics where a batch has one value per channel: one image, pooled to one pixel.

    Batch normalization raises there, which would end an epoch whose last batch is of one image.
    """
    values = args[0]
    if module.training and values.numel() == values.shape[1]:
        module.training = False
        module.is_spared = True


def _train_again(module: nn.Module, args: Any, output: Any) -> None:
    if module.__dict__.pop("is_spared", False):
        module.training = True


def _float32_loss(function: Callable[..., Any], *outputs: Any, **more: Any) -> Any:
    """Take the loss in float32, whatever the precision of the model, of masks of any type.

    Matching needs more digits than bfloat16 has, and Transformers samples points of masks as they come, which
    grid_sample does for floats only.
    """
    device = next(value for value in (*outputs, *more.values()) if isinstance(value, torch.Tensor)).device
    with torch.autocast(device.type, enabled=False):
        return function(*_float32(outputs), **_float32(more))


def _float32(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.float() if value.is_floating_point() or value.dtype in (torch.bool, torch.uint8) else value
    if isinstance(value, dict):
        return {name: _float32(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_float32(item) for item in value]
    return value


def _count_masks(class_labels: Sequence[torch.Tensor], device: torch.device) -> float:
    """The masks of a batch, as a mean over the processes.

    Transformers divides that mean by the number of processes once more, so that on 8 of them masks weigh 8 times as
    much.
    """
    return mean_count(sum(len(classes) for classes in class_labels), device)


def _add_maskformer_layers(model: PreTrainedModel, args: Any, inputs: Mapping[str, Any], output: Any) -> None:
    states = detection.layer_states(model.model.transformer_module.decoder)
    if output.loss is None:
        return
    pixels = output.pixel_decoder_last_hidden_state.float()
    for state in states:
        masks = torch.einsum("bqc, bchw -> bqhw", model.mask_embedder(state), pixels)
        classes = model.class_predictor(state)
        terms = model.get_loss_dict(masks, classes, inputs["mask_labels"], inputs["class_labels"], None)
        output.loss = output.loss + model.get_loss(terms)


def _add_detr_layers(model: PreTrainedModel, args: Any, inputs: Mapping[str, Any], output: Any) -> None:
    """Classes and boxes only, as in segmentation.py of github.com/facebookresearch/detr: masks would be too costly."""
    states = detection.layer_states(model.detr.model.decoder)
    if output.loss is not None:
        detection.add_layer_losses(model.detr, states, inputs["labels"], output)


def _detr_loss(
    logits: torch.Tensor,
    labels: list[dict[str, torch.Tensor]],
    device: torch.device,
    pred_boxes: torch.Tensor,
    pred_masks: torch.Tensor,
    config: PreTrainedConfig,
    *outputs: torch.Tensor | None,
) -> Any:
    return detection.set_loss(True, 1.0, logits, labels, device, pred_boxes, config, *outputs, pred_masks=pred_masks)


class _RfDetrMatcher(RfDetrHungarianMatcher):
    """RF-DETR's matcher, with points by the size of the masks.

    Transformers takes their number from the shape of the boxes, (B * queries, 4), so that an image's matching would
    depend on how many others there are, and few queries have no point at all.
    """

    def forward(self, outputs: Mapping[str, torch.Tensor], targets: Any, group_detr: int) -> Any:
        height, width = outputs["pred_masks"].shape[-2:]
        points = max(1, height * width // self.points_share)
        boxes = 4 * outputs["pred_boxes"].shape[:2].numel()
        self.mask_point_sample_ratio = Fraction(boxes, points)  # boxes // this = points
        return super().forward(outputs, targets, group_detr)


class _RfDetrCriterion(detection.Counted, RfDetrImageLoss):
    """RF-DETR's loss, a number where no image has an object: Transformers returns empty masks there."""

    def loss_masks(self, *args: Any) -> dict[str, torch.Tensor]:
        return {name: term.sum() for name, term in super().loss_masks(*args).items()}


def _rf_detr_loss(
    logits: torch.Tensor,
    labels: list[dict[str, torch.Tensor]],
    device: torch.device,
    pred_boxes: torch.Tensor,
    pred_masks: torch.Tensor,
    config: PreTrainedConfig,
    outputs_class: torch.Tensor | None,
    outputs_coord: torch.Tensor | None,
    outputs_masks: Sequence[torch.Tensor],
    enc_outputs_class: torch.Tensor,
    enc_outputs_coord: torch.Tensor,
    enc_outputs_masks: torch.Tensor,
    **more: Any,
) -> Any:
    """RF-DETR's loss, with the mends of its matcher and its masks and, as for detection, of certain predictions and of
    the one group that evaluation mode has."""
    groups = 1 if logits.shape[1] == config.num_queries else config.group_detr
    matcher = _RfDetrMatcher(
        config.class_cost,
        config.bbox_cost,
        config.giou_cost,
        cost_mask_class_cost=config.mask_class_loss_coefficient,
        cost_mask_dice_cost=config.mask_dice_loss_coefficient,
    )
    matcher.points_share = config.mask_point_sample_ratio
    terms_of = ["labels", "boxes", "cardinality", "masks"]
    criterion = _RfDetrCriterion(
        matcher, config.num_labels, config.focal_alpha, terms_of, groups, config.mask_point_sample_ratio
    ).to(device)
    outputs: dict[str, Any] = {
        "logits": detection.bounded(logits),
        "pred_boxes": pred_boxes,
        "pred_masks": pred_masks,
        "enc_outputs": {
            "logits": detection.bounded(enc_outputs_class),
            "pred_boxes": enc_outputs_coord,
            "pred_masks": enc_outputs_masks,
        },
    }
    auxiliary = None
    if config.auxiliary_loss:
        auxiliary = _set_aux_loss(detection.bounded(outputs_class), outputs_coord, outputs_masks)
        outputs["auxiliary_outputs"] = auxiliary
    terms = criterion(outputs, labels)
    weights = {
        "loss_ce": config.class_loss_coefficient,
        "loss_bbox": config.bbox_loss_coefficient,
        "loss_giou": config.giou_loss_coefficient,
        "loss_mask_ce": config.mask_class_loss_coefficient,
        "loss_mask_dice": config.mask_dice_loss_coefficient,
    }
    return detection.weighted(terms, weights), terms, auxiliary


_OBJECT_LOSSES: dict[str, Callable[..., Any]] = {"detr": _detr_loss, "rf_detr": _rf_detr_loss}
