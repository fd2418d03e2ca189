"""Metrics as mergeable accumulators, and as evaluate.Metric subclasses for use in other code."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cv_hf.metrics.base import Accumulator, SampleRecords, Tally
from cv_hf.metrics.classification import MultiLabelAccumulator, SingleLabelAccumulator
from cv_hf.metrics.detection import DetectionAccumulator
from cv_hf.metrics.panoptic import PanopticAccumulator
from cv_hf.metrics.semantic import SemanticAccumulator

if TYPE_CHECKING:
    from cv_hf.metrics.adapters import (
        ClassificationMetric,
        DetectionMetric,
        MultiLabelMetric,
        PanopticMetric,
        SemanticMetric,
        StreamingMetric,
    )

__all__ = [
    "Accumulator",
    "ClassificationMetric",
    "DetectionAccumulator",
    "DetectionMetric",
    "MultiLabelAccumulator",
    "MultiLabelMetric",
    "PanopticAccumulator",
    "PanopticMetric",
    "SampleRecords",
    "SemanticAccumulator",
    "SemanticMetric",
    "SingleLabelAccumulator",
    "StreamingMetric",
    "Tally",
]


def __getattr__(name: str) -> Any:
    # evaluate takes half a second to import, and training needs none of it.
    if not (name in __all__ and name.endswith("Metric")):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from cv_hf.metrics import adapters

    return getattr(adapters, name)
