"""Metrics as mergeable accumulators, and as evaluate.Metric subclasses for use in other code."""

from __future__ import annotations

from cv_hf.metrics.base import Accumulator, SampleRecords, StreamingMetric, Tally
from cv_hf.metrics.classification import (
    ClassificationMetric,
    MultiLabelAccumulator,
    MultiLabelMetric,
    SingleLabelAccumulator,
)
from cv_hf.metrics.detection import DetectionAccumulator, DetectionMetric
from cv_hf.metrics.panoptic import PanopticAccumulator, PanopticMetric
from cv_hf.metrics.semantic import SemanticAccumulator, SemanticMetric

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
