"""Batch normalization on a CPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel


def mend(model: PreTrainedModel) -> None:
    """Give batch norms gradients that PyTorch's CPU kernel reads rightly, in place.

    Of one image, it takes the gradient of a slice of a sequence, as detectors make of their feature maps, for one that
    lies in memory without gaps, and returns gradients of other values (seen in PyTorch 2.14; two images are right).
    """
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_hook(_close_gaps)


def _close_gaps(module: nn.Module, args: Any, output: torch.Tensor) -> None:
    if len(output) == 1 and output.requires_grad and output.device.type == "cpu":
        output.register_hook(torch.Tensor.contiguous)
