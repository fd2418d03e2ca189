"""Universal segmentation: one model for semantic, instance and panoptic segmentation, from panoptic annotations.

OneFormer (Jain et al., "OneFormer: One Transformer to Rule Universal Image Segmentation", 2022) is told its task in
words: each training sample has one of the three, drawn uniformly, and each is evaluated. Other models of masks are
trained on panoptic segments, and their answers are read in all three ways.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cv_hf import segmentation
from cv_hf.data import LabelMap, panoptic
from cv_hf.task import Task


class UniversalAccumulator:
    """The metrics of all three subtasks, each of which counts every sample."""

    def __init__(self, labels: LabelMap) -> None:
        self.parts = segmentation.accumulators(labels)

    def merge(self, other: UniversalAccumulator) -> None:
        """Count what another has counted."""
        for subtask, part in self.parts.items():
            part.merge(other.parts[subtask])

    def compute(self) -> dict[str, Any]:
        """The metrics of all three; `per_class` is joined, other names differ but for `num_samples`."""
        result: dict[str, Any] = {}
        per_class: dict[str, dict[str, Any]] = {}
        for part in self.parts.values():
            measured = part.compute()
            for name, scores in measured.pop("per_class").items():
                per_class.setdefault(name, {}).update(scores)
            result |= measured
        return {**result, "per_class": per_class}

    def __len__(self) -> int:
        return max(map(len, self.parts.values()))


def update(accumulator: UniversalAccumulator, outputs: Any, group: Any, processor: Any, labels: LabelMap) -> None:
    """Count one batch for the subtask of its group."""
    segmentation.count(accumulator.parts[group.subtask], outputs, group, processor, labels)


def metrics(labels: LabelMap | None, columns: Sequence[str]) -> dict[str, bool]:
    """Metric names, each with whether greater is better; the first chooses the best checkpoint."""
    return {"pq": True, "mask_map": True, "mean_iou": True, "pq_things": True, "pq_stuff": True, "mask_map_50": True}


def metric(labels: LabelMap, columns: Sequence[str]) -> UniversalAccumulator:
    """An empty accumulator of all three."""
    return UniversalAccumulator(labels)


def arguments(metrics: Mapping[str, Any], config: Any) -> dict[str, Any]:
    """The panoptic subtask at the thresholds at which it was measured; for the others, only `subtask` changes."""
    return {"subtask": "panoptic", **segmentation.PANOPTIC_THRESHOLDS}


TASK = Task(
    **segmentation.shared(panoptic),
    name="universal-segmentation",
    auto_class="AutoModelForUniversalSegmentation",
    subtasks=("panoptic", "instance", "semantic"),
    default_model="shi-labs/oneformer_ade20k_swin_tiny",
    train_defaults=segmentation.TRAIN_DEFAULTS,
    formats=("panoptic",),
    metrics=metrics,
    metric=metric,
    update=update,
    arguments=arguments,
    call_note=segmentation.PANOPTIC_NOTE + " `subtask` may be `panoptic`, `instance` or `semantic`.",
    # A class map shows any change of the model, where an unsure one has no segments.
    complete={"threshold": 0.0, "subtask": "semantic"},
)
