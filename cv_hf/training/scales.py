"""Multi-scale training: each batch at a size of its own."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F
from transformers import PreTrainedModel

# What networks divide an image into: strides of 32, patches of 14 or 16 in windows of 4.
_STEPS = (32, 56, 64, 128)


@dataclass(frozen=True)
class Scales:
    """The sizes that a batch is resized to, on its device, after augmentation.

    Attributes:
        least, greatest: factors of the batch's own size.
        step: heights and widths are multiples of it.
    """

    least: float
    greatest: float
    step: int

    def apply(self, inputs: Mapping[str, Any], key: tuple[int, int]) -> dict[str, Any]:
        """Resize `pixel_values` (B, 3, H, W), and `pixel_mask` (B, H, W) if there is one, by a factor drawn from `key`.

        Args:
            key: (seed, optimizer step): the same in every process and after a resume. All micro-batches of a step
                share their factor, as one batch would.
        """
        factor = random.Random(f"scale {key}").uniform(self.least, self.greatest)
        pixels = inputs["pixel_values"]
        size = scaled(tuple(pixels.shape[-2:]), factor, self.step)
        resized = {"pixel_values": F.interpolate(pixels, size=size, mode="bilinear", antialias=factor < 1)}
        if "pixel_mask" in inputs:
            mask = inputs["pixel_mask"]
            resized["pixel_mask"] = F.interpolate(mask[:, None].float(), size=size, mode="nearest")[:, 0].to(mask.dtype)
        return {**inputs, **resized}


def scaled(size: tuple[int, int], factor: float, step: int) -> tuple[int, int]:
    """The size times the factor, rounded to multiples of `step`, at least one of them."""
    height, width = (max(step, round(edge * factor / step) * step) for edge in size)
    return height, width


@torch.no_grad()
def find_scales(model: PreTrainedModel, size: tuple[int, int], scales: tuple[float, float]) -> Scales | None:
    """The scales that a model can be trained at, found by trying; None for a model that takes one size only.

    Args:
        model: in evaluation mode.
        size: (height, width) of its usual input.
        scales: (least, greatest) factor.
    """
    device = next(model.parameters()).device
    for step in _STEPS:
        tried = {scaled(size, factor, step) for factor in (*scales, sum(scales) / 2)}
        try:
            for height, width in sorted(tried):
                model(pixel_values=torch.zeros(1, 3, height, width, device=device))
        except (RuntimeError, ValueError, IndexError, AssertionError):
            continue
        return Scales(*scales, step)
    return None
