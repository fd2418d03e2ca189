"""COCO's detection metrics: cv_hf against torchmetrics with its default backend, fed the same tensors."""

from __future__ import annotations

import gc
import pickle
import statistics
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torchmetrics.detection import MeanAveragePrecision

from cv_hf.metrics import DetectionAccumulator

IMAGES, PREDICTIONS, CLASSES, BATCH = 1000, 100, 20, 16
RUNS = 5

Batches = list[tuple[list[dict[str, Any]], list[dict[str, Any]], range]]


def detection_metric(folder: Path) -> list[dict[str, Any]]:
    """One row per implementation: median seconds of update and compute together, the two alternating on one thread.

    Raises:
        RuntimeError: the two do not give the same mAP.
    """
    predictions, truth = _split(torch.Generator().manual_seed(0))
    objects = [_objects(entry) for entry in truth]
    batches = [slice(start, start + BATCH) for start in range(0, IMAGES, BATCH)]
    ours = [(predictions[part], objects[part], range(IMAGES)[part]) for part in batches]
    theirs = [(predictions[part], truth[part], range(IMAGES)[part]) for part in batches]

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    seconds: dict[str, list[float]] = {"cv_hf": [], "torchmetrics": []}
    for run in range(RUNS + 1):
        values = {}
        for name, function, batches in (("cv_hf", _cv_hf, ours), ("torchmetrics", _torchmetrics, theirs)):
            gc.collect()
            start = time.perf_counter()
            values[name] = function(batches)
            # The first run imports, and fills caches.
            if run:
                seconds[name].append(time.perf_counter() - start)
        if abs(values["cv_hf"] - values["torchmetrics"]) > 1e-4:
            raise RuntimeError(f"different mAP: {values}")
    memory = {"cv_hf": _peak(_cv_hf, ours), "torchmetrics": _peak(_torchmetrics, theirs)}
    torch.set_num_threads(threads)

    ratios = [slow / fast for fast, slow in zip(seconds["cv_hf"], seconds["torchmetrics"], strict=True)]
    faster = {"cv_hf": f"{statistics.median(ratios):.1f} ({min(ratios):.1f}-{max(ratios):.1f})", "torchmetrics": "1"}
    state = {"cv_hf": f"{len(pickle.dumps(_filled(ours))) / 1e6:.1f}", "torchmetrics": ""}
    return [
        {
            "metric": name,
            "mAP": f"{values[name]:.4f}",
            "seconds": f"{statistics.median(times):.2f} ({min(times):.2f}-{max(times):.2f})",
            "times as fast": faster[name],
            "peak MB": f"{memory[name]:.0f}",
            "state MB": state[name],
        }
        for name, times in seconds.items()
    ]


def _filled(batches: Batches) -> DetectionAccumulator:
    metric = DetectionAccumulator([f"class {index}" for index in range(CLASSES)])
    for batch in batches:
        metric.update(*batch)
    return metric


def _cv_hf(batches: Batches) -> float:
    return _filled(batches).compute()["map"]


def _torchmetrics(batches: Batches) -> float:
    metric = MeanAveragePrecision()
    for predictions, truth, _ in batches:
        metric.update(predictions, truth)
    return metric.compute()["map"].item()


def _peak(function: Callable[[Batches], float], batches: Batches) -> float:
    """What Python and NumPy had allocated at most, in MB; tensors and C++ are not seen."""
    tracemalloc.start()
    function(batches)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak / 1e6


def _split(generator: torch.Generator) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Predictions and ground truth, xyxy: 1 to 14 objects an image (COCO has 7), 70 in 100 predictions near one."""
    predictions, truth = [], []
    for _ in range(IMAGES):
        count = int(torch.randint(1, 15, (), generator=generator))
        corner = torch.rand(count, 2, generator=generator) * 400
        boxes = torch.cat([corner, corner + 5 + torch.rand(count, 2, generator=generator) * 200], dim=1)
        labels = torch.randint(CLASSES, (count,), generator=generator)
        picked = torch.randint(count, (PREDICTIONS,), generator=generator)
        noise = torch.randn(PREDICTIONS, 4, generator=generator) * 15
        right = torch.rand(PREDICTIONS, generator=generator) < 0.7
        others = torch.randint(CLASSES, (PREDICTIONS,), generator=generator)
        predictions.append(
            {
                "boxes": boxes[picked] + noise,
                "scores": torch.rand(PREDICTIONS, generator=generator),
                "labels": torch.where(right, labels[picked], others),
            }
        )
        truth.append({"boxes": boxes, "labels": labels})
    return predictions, truth


def _objects(truth: dict[str, Any]) -> dict[str, Any]:
    """The same ground truth as the rows of a dataset have it."""
    bbox = torch.cat([truth["boxes"][:, :2], truth["boxes"][:, 2:] - truth["boxes"][:, :2]], dim=1)
    return {
        "bbox": bbox.tolist(),
        "category": truth["labels"].tolist(),
        "area": bbox[:, 2:].prod(dim=1).tolist(),
        "iscrowd": [False] * len(bbox),
    }
