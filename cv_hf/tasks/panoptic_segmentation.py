"""Panoptic segmentation: every pixel belongs to an object or to a class of stuff."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cv_hf import segmentation
from cv_hf.data import LabelMap, panoptic
from cv_hf.metrics import Accumulator
from cv_hf.task import Task


def metrics(labels: LabelMap | None, columns: Sequence[str]) -> dict[str, bool]:
    """Metric names, each with whether greater is better; the first chooses the best checkpoint."""
    return {"pq": True, "sq": True, "rq": True, "pq_things": True, "pq_stuff": True}


def metric(labels: LabelMap, columns: Sequence[str]) -> Accumulator:
    """An empty accumulator of panoptic quality."""
    return segmentation.accumulators(labels)["panoptic"]


def arguments(metrics: Mapping[str, Any], config: Any) -> dict[str, Any]:
    """The thresholds at which the model was measured."""
    return {"subtask": "panoptic", **segmentation.PANOPTIC_THRESHOLDS}


TASK = Task(
    **segmentation.shared(panoptic),
    name="panoptic-segmentation",
    auto_class="AutoModelForUniversalSegmentation",
    subtasks=("panoptic",),
    default_model="facebook/mask2former-swin-tiny-coco-panoptic",
    train_defaults=segmentation.TRAIN_DEFAULTS,
    formats=("panoptic",),
    metrics=metrics,
    metric=metric,
    update=segmentation.count,
    arguments=arguments,
    call_note=segmentation.PANOPTIC_NOTE,
    complete={"threshold": 0.0},
)
