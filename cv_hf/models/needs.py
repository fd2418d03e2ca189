"""What a model's loss takes."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

from transformers import PreTrainedModel

from cv_hf.models.oneformer import PromptedProcessor
from cv_hf.models.segmentation import target_form


class Needs(NamedTuple):
    """What the targets of a batch are made into.

    Attributes:
        kind, ignore_index: as TargetForm has them.
        prompter: writes the texts of a model that is told its task in words, or None.
    """

    kind: Literal["maps", "masks", "objects"]
    ignore_index: int | None = None
    prompter: PromptedProcessor | None = None


def loss_needs(model: PreTrainedModel, processor: Any) -> Needs:
    """Tell what a model's loss takes; where there are no masks, what is told does not matter."""
    return Needs(*target_form(model), processor if isinstance(processor, PromptedProcessor) else None)
