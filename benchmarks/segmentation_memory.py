"""What evaluating segmentation keeps in memory: peaks with 100 and with 1,000 images, each in a process of its own."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from faster_coco_eval.core import mask

from cv_hf.metrics import DetectionAccumulator, PanopticAccumulator, SemanticAccumulator

FEW, MANY, BATCH = 100, 1000, 4
HEIGHT, WIDTH = 480, 640
# Most that COCO counts, of an image and class; evaluation gives as many of all classes.
DETECTIONS = 100

Batch = tuple[list[Any], list[Any]]


def segmentation_memory(folder: Path) -> list[dict[str, Any]]:
    """One row per metric and number of classes.

    The peak is what Python and NumPy had allocated at most since the first image (tracemalloc), maps of the batch
    included; not the resident memory of the process, whose peak differs by 2 MB from run to run.

    Raises:
        RuntimeError: 1,000 more images take 1 MB or more, for a metric that keeps no detections.
    """
    rows = []
    for name, classes in (("mean IoU", 20), ("mean IoU", 150), ("PQ", 20), ("PQ", 150), ("mask AP", 20)):
        few, many = (_measure(name, classes, images) for images in (FEW, MANY))
        slope = (many["peak"] - few["peak"]) / (MANY - FEW) * 1000
        if name != "mask AP" and slope >= 1e6:
            raise RuntimeError(f"{name} of {classes} classes takes {slope / 1e6:.1f} MB per 1,000 images")
        rows.append(
            {
                "metric": name,
                "classes": classes,
                f"peak MB, {FEW} images": f"{few['peak'] / 1e6:.2f}",
                f"peak MB, {MANY:,} images": f"{many['peak'] / 1e6:.2f}",
                "MB per 1,000 images": f"{slope / 1e6:.2f}",
                "pickled kB": f"{many['state'] / 1e3:.0f}",
                "bytes per detection": f"{many['state'] / many['detections']:.0f}" if many["detections"] else "",
            }
        )
    return rows


def _measure(name: str, classes: int, images: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.segmentation_memory", name, str(classes), str(images)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def _evaluate(name: str, classes: int, images: int) -> dict[str, Any]:
    names = [f"class {index}" for index in range(classes)]
    accumulator, batches = {
        "mean IoU": lambda: (SemanticAccumulator(names), _semantic),
        "PQ": lambda: (PanopticAccumulator(names, [index % 2 == 0 for index in range(classes)]), _panoptic),
        "mask AP": lambda: (DetectionAccumulator(names, masks=True), _masks),
    }[name]()
    detections = 0
    tracemalloc.start()
    for start, (predictions, references) in zip(range(0, images, BATCH), batches(classes), strict=False):
        accumulator.update(predictions, references, range(start, start + BATCH))
        detections += sum(len(entry["scores"]) for entry in predictions) if name == "mask AP" else 0
    accumulator.compute()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return {"peak": peak, "state": len(pickle.dumps(accumulator)), "detections": detections}


def _blocks(rng: np.random.Generator, values: int) -> np.ndarray:
    """A map (height, width) of blocks of some of the values 0 ... values - 1."""
    some = rng.permutation(values)[:12]
    return rng.choice(some, (6, 8)).repeat(HEIGHT // 6, 0).repeat(WIDTH // 8, 1)


def _noisy(rng: np.random.Generator, truth: np.ndarray, values: int) -> np.ndarray:
    """The map shifted, and with a tenth of its pixels drawn from all values, as of a badly trained model."""
    return np.where(rng.random(truth.shape) < 0.1, rng.integers(0, values, truth.shape), np.roll(truth, 9, (0, 1)))


def _semantic(classes: int) -> Iterator[Batch]:
    rng = np.random.default_rng(0)
    while True:
        references = [_blocks(rng, classes) for _ in range(BATCH)]
        predictions = [_noisy(rng, reference, classes) for reference in references]
        for reference in references:
            reference[:20] = 255
        yield predictions, [reference.astype(np.uint8) for reference in references]


def _panoptic(classes: int) -> Iterator[Batch]:
    rng = np.random.default_rng(0)
    while True:
        predictions, references = [], []
        for _ in range(BATCH):
            truth = _blocks(rng, 20)
            labels = rng.integers(0, classes, 20).tolist()
            found = [{"id": index, "label_id": label} for index, label in enumerate(labels)]
            sought = [
                {"id": index, "category_id": label, "iscrowd": False} for index, label in enumerate(labels) if index
            ]
            predictions.append({"segmentation": _noisy(rng, truth, 20), "segments_info": found})
            references.append({"segmentation": truth, "segments_info": sought})
        yield predictions, references


def _masks(classes: int) -> Iterator[Batch]:
    """100 ellipses with ragged edges an image, and seven objects."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    ellipses = []
    for _ in range(200):
        row, column, height, width = rng.random(4) * (HEIGHT, WIDTH, HEIGHT / 3, WIDTH / 3) + (0, 0, 5, 5)
        distance = ((y - row) / height) ** 2 + ((x - column) / width) ** 2 + rng.random((HEIGHT, WIDTH)) * 0.05
        rle = mask.encode(np.asfortranarray(distance < 1, np.uint8))
        ellipses.append({"size": rle["size"], "counts": rle["counts"].decode()})
    while True:
        predictions, references = [], []
        for _ in range(BATCH):
            picked = rng.permutation(len(ellipses))[:DETECTIONS]
            labels = rng.integers(0, classes, DETECTIONS)
            masks = [ellipses[index] for index in picked]
            predictions.append({"masks": masks, "scores": rng.random(DETECTIONS, np.float32), "labels": labels})
            references.append({"segmentation": masks[:7], "category": labels[:7]})
        yield predictions, references


if __name__ == "__main__":
    print(json.dumps(_evaluate(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))))
