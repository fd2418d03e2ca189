"""Which parameters are the head, and what follows from it: freezing and learning rates of their own."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.backbone_utils import BackboneMixin
from transformers.initialization import meta_device_safe_creation_ops, no_init_weights

from cv_hf.models.oneformer import whole_config

# EoMT is a plain vision transformer with queries among its tokens: its parts lie side by side.
_PLAIN_ENCODERS = ("eomt", "eomt_dinov3")
_ENCODER = ("embeddings", "layers", "layernorm")


def output_parameters(model: PreTrainedModel) -> set[str]:
    """Return the names of the parameters whose shape follows from the number of labels."""
    config = whole_config(model)
    config.num_labels = model.config.num_labels + 1
    with torch.device("meta"), meta_device_safe_creation_ops(), no_init_weights():
        wider = type(model)(config)
    shapes = {name: parameter.shape for name, parameter in wider.named_parameters()}
    return {name for name, parameter in model.named_parameters() if shapes.get(name) != parameter.shape}


def backbone_name(model: PreTrainedModel) -> str:
    """Return the name of the submodule that encodes the image ("" when it is not a module of its own).

    That is the pretrained image encoder that a detector or a segmenter was built around, else the model's base model.
    """
    for name, module in model.named_modules():
        # DETR and its kin keep of timm's backbone the bare module.
        if name and (isinstance(module, BackboneMixin) or type(module).__module__.startswith("timm.models.")):
            return name
    return next((name for name, module in model.named_modules() if module is model.base_model), "")


def head_parameters(model: PreTrainedModel) -> set[str]:
    """Return the names of the parameters that a new task trains from scratch or nearly so.

    They are those outside of the backbone and, inside of it, those whose shape follows from the number of labels: timm
    models and Perceiver hold their classifier within.
    """
    return outside_backbone(model) | output_parameters(model)


def outside_backbone(model: PreTrainedModel) -> set[str]:
    """Return the names of the parameters outside of the backbone, or in its pooler, which pretraining may lack."""
    backbone = backbone_name(model)
    prefix = f"{backbone}." if backbone else ""
    if model.config.model_type in _PLAIN_ENCODERS:
        return {name for name, _ in model.named_parameters() if name.partition(".")[0] not in _ENCODER}
    return {
        name
        for name, _ in model.named_parameters()
        if not name.startswith(prefix) or name.removeprefix(prefix).startswith("pooler.")
    }


def freeze_backbone(model: PreTrainedModel) -> None:
    """Stop all training of the backbone, in place: gradients, running statistics and dropout.

    `model.train()` may be called as usual: at every forward pass the frozen part is put back into evaluation mode.
    Nothing of it is saved with the model.
    """
    head = head_parameters(model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(parameter.requires_grad and name in head)
    model.register_forward_pre_hook(partial(_hold_in_eval, names=tuple(_frozen_modules(model, head))))


def _hold_in_eval(model: nn.Module, inputs: Any, names: tuple[str, ...]) -> None:
    for name in names:
        module = model.get_submodule(name)
        if module.training:
            module.eval()


def _frozen_modules(model: PreTrainedModel, head: set[str]) -> list[str]:
    """Return the largest modules that belong to the backbone alone.

    A module without parameters (dropout) next to the head belongs to the backbone unless everything trained from
    before comes ahead of it: modules are registered in the order in which they run.
    """
    backbone = backbone_name(model)
    inside = [name for name, _ in model.named_modules() if not backbone or f"{name}.".startswith(f"{backbone}.")]
    own = {name.rpartition(".")[0] for name, _ in model.named_parameters() if name not in head}
    last = max((place for place, name in enumerate(inside) if name in own), default=-1)
    headed = {name.rpartition(".")[0] for name in head}

    def is_frozen(place: int, name: str) -> bool:
        below = f"{name}." if name else ""
        if any(module == name or module.startswith(below) for module in headed):
            return False
        return place <= last or any(module == name or module.startswith(below) for module in own)

    frozen: list[str] = []
    for place, name in enumerate(inside):
        within = any(name == outer or name.startswith(f"{outer}.") for outer in frozen)
        if not within and is_frozen(place, name):
            frozen.append(name)
    return frozen
