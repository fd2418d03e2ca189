"""What a model's loss takes, told by its forward()."""

from __future__ import annotations

import inspect
from typing import Any, Literal, NamedTuple

from transformers import PreTrainedModel


class Needs(NamedTuple):
    """What the targets of a batch are made into.

    Attributes:
        kind: "maps" of class ids, `labels` (B, H, W); "masks", one for each segment, `mask_labels` and `class_labels`;
            or "objects", `labels` of {class_labels, boxes, masks} for each image.
        ignore_index: the value of a map that means no class.
        prompter: writes the texts of a model that is told its task in words, or None.
    """

    kind: Literal["maps", "masks", "objects"]
    ignore_index: int = 255
    prompter: Any = None


def loss_needs(model: PreTrainedModel, processor: Any) -> Needs:
    """Tell what a model's loss takes; of models without masks, what is told does not matter."""
    parameters = inspect.signature(model.forward).parameters
    if "mask_labels" in parameters:
        return Needs("masks", prompter=processor if hasattr(processor, "prompt") else None)
    if "pixel_mask" in parameters:
        return Needs("objects")
    return Needs("maps", getattr(model.config, "semantic_loss_ignore_index", 255))
