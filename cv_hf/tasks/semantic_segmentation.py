"""Semantic segmentation: a class for each pixel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cv_hf import segmentation
from cv_hf.data import LabelMap, semantic
from cv_hf.metrics import Accumulator
from cv_hf.task import Task


def metrics(labels: LabelMap | None, columns: Sequence[str]) -> dict[str, bool]:
    """Metric names, each with whether greater is better; the first chooses the best checkpoint."""
    return {"mean_iou": True, "dice": True, "pixel_accuracy": True, "mean_accuracy": True}


def metric(labels: LabelMap, columns: Sequence[str]) -> Accumulator:
    """An empty accumulator of the confusion matrix."""
    return segmentation.accumulators(labels)["semantic"]


def arguments(metrics: Mapping[str, Any], config: Any) -> dict[str, Any]:
    """Without the subtask, pipeline() takes the panoptic one of a model that has several."""
    return {"subtask": "semantic"}


TASK = Task(
    **segmentation.shared(semantic),
    name="semantic-segmentation",
    auto_class=("AutoModelForSemanticSegmentation", "AutoModelForUniversalSegmentation"),
    subtasks=("semantic",),
    default_model="nvidia/segformer-b0-finetuned-ade-512-512",
    train_defaults={
        **segmentation.TRAIN_DEFAULTS,
        "learning_rate": 6e-5,
        "backbone_lr": None,
        "weight_decay": 0.01,
        "max_grad_norm": 1.0,
    },
    formats=("masks", "panoptic"),
    metrics=metrics,
    metric=metric,
    update=segmentation.count,
    arguments=arguments,
    call_note="",
    complete={"threshold": 0.0},
)
