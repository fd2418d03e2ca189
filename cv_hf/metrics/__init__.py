"""Metrics as mergeable accumulators, and as evaluate.Metric subclasses for use in other code."""

from __future__ import annotations

from cv_hf.metrics.base import Accumulator, SampleRecords, StreamingMetric
from cv_hf.metrics.classification import (
    ClassificationMetric,
    MultiLabelAccumulator,
    MultiLabelMetric,
    SingleLabelAccumulator,
)

__all__ = [
    "Accumulator",
    "ClassificationMetric",
    "MultiLabelAccumulator",
    "MultiLabelMetric",
    "SampleRecords",
    "SingleLabelAccumulator",
    "StreamingMetric",
]
