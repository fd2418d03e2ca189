"""The same arithmetic by faster kernels, put into a model for the time of its training.

Modules keep their classes, parameters and names; only the function that a module calls is another, so that what is
saved is plain.
"""

from __future__ import annotations

from types import MethodType

import torch
from torch import nn
from torch.nn import functional as F


def quicken(model: nn.Module, *, depthwise: bool) -> dict[str, int]:
    """Choose faster kernels for some modules, in place.

    Batch norms that are frozen are written as `x * scale + bias`, two passes over the features, which autocast takes in
    float32 as scale and bias are; as what they are, a batch norm, they are one pass in the features' own precision.

    Args:
        model: before it trains.
        depthwise: where gradients are to be taken, convolve each channel for itself in float32, whatever autocast
            says. oneDNN takes the gradients of such convolutions 3 to 6 times as long in bfloat16 as in float32 on a
            CPU.

    Returns:
        how many modules of each kind were changed.
    """
    changed = {"frozen batch norms": 0, "depthwise convolutions": 0}
    for module in model.modules():
        if "FrozenBatchNorm" in type(module).__name__ and _is_batch_norm(module):
            module.forward = MethodType(_frozen, module)
            changed["frozen batch norms"] += 1
        elif depthwise and isinstance(module, nn.Conv2d) and 1 < module.groups == module.in_channels:
            module.forward = MethodType(_depthwise, module)
            changed["depthwise convolutions"] += 1
    return changed


@torch.no_grad()
def _is_batch_norm(module: nn.Module) -> bool:
    """Whether a module gives what `_frozen` does, asked of it."""
    if not all(isinstance(getattr(module, name, None), torch.Tensor) for name in _STATE):
        return False
    mean = module.running_mean
    generator = torch.Generator(mean.device).manual_seed(0)
    features = mean[:, None, None] + torch.randn((2, len(mean), 3, 3), generator=generator, device=mean.device)
    training = module.training
    module.eval()  # of timm's, those that drop features in training
    same = torch.allclose(module(features), _frozen(module, features), rtol=1e-4, atol=1e-5)
    module.train(training)
    return same


_STATE = ("running_mean", "running_var", "weight", "bias")


def _frozen(module: nn.Module, features: torch.Tensor) -> torch.Tensor:
    mean, variance, weight, bias = (getattr(module, name) for name in _STATE)
    normed = F.batch_norm(features, mean, variance, weight, bias, training=False, eps=getattr(module, "eps", 1e-5))
    # timm's go on to drop some and to the activation.
    return module.act(module.drop(normed)) if hasattr(module, "act") else normed


def _depthwise(module: nn.Conv2d, features: torch.Tensor) -> torch.Tensor:
    kind = features.device.type
    if not torch.is_autocast_enabled(kind) or not torch.is_grad_enabled():
        return type(module).forward(module, features)
    with torch.autocast(kind, enabled=False):
        convolved = type(module).forward(module, features.float())
    return convolved.to(torch.get_autocast_dtype(kind))
