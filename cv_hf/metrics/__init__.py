"""Metrics as mergeable accumulators, and as evaluate.Metric subclasses for use in other code."""

from __future__ import annotations

from cv_hf.metrics.base import Accumulator, SampleRecords, StreamingMetric
from cv_hf.metrics.classification import (
    ClassificationMetric,
    MultiLabelAccumulator,
    MultiLabelMetric,
    SingleLabelAccumulator,
)
from cv_hf.metrics.detection import DetectionAccumulator, DetectionMetric

__all__ = [
    "Accumulator",
    "ClassificationMetric",
    "DetectionAccumulator",
    "DetectionMetric",
    "MultiLabelAccumulator",
    "MultiLabelMetric",
    "SampleRecords",
    "SingleLabelAccumulator",
    "StreamingMetric",
]
