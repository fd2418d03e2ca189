"""Instance segmentation: a mask and a class for each object.

Two answers are kept apart. Average precision is that of overlapping masks, every object by itself, as COCO and the
papers measure it. pipeline() shows one map, in which a pixel belongs to a single object, above a threshold.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cv_hf import segmentation
from cv_hf.data import LabelMap, instance
from cv_hf.data.export import coco_answers
from cv_hf.metrics import Accumulator
from cv_hf.task import Task

# Without any object found, no threshold has an F1.
THRESHOLD = 0.5
CALL_NOTE = """This threshold has the best F1 (at mask IoU 0.5) over all classes on the validation split; `cv_hf.json`
holds it, and that of each class. `pipeline()` answers with one map, in which a pixel belongs to a single object;
`mask_map` is measured on all objects, which may overlap, as the image processor gives them with
`return_binary_maps=True`."""


def metrics(labels: LabelMap | None, columns: Sequence[str]) -> dict[str, bool]:
    """Metric names, each with whether greater is better; the first chooses the best checkpoint."""
    return {"mask_map": True, "mask_map_50": True, "mask_map_75": True, "mask_mar_100": True}


def metric(labels: LabelMap, columns: Sequence[str]) -> Accumulator:
    """An empty accumulator of COCO's average precision of masks."""
    return segmentation.accumulators(labels)["instance"]


def arguments(metrics: Mapping[str, Any], config: Any) -> dict[str, Any]:
    """The score threshold of the best F1 over all classes, and where the model's masks are cut."""
    threshold = metrics.get("threshold")
    return {
        "subtask": "instance",
        "threshold": THRESHOLD if threshold is None else threshold,
        "mask_threshold": segmentation.MASK_THRESHOLDS.get(config.model_type, 0.5),
    }


def export(
    predictions: Mapping[str, Any], sizes: Mapping[str, tuple[int, int]], labels: LabelMap
) -> dict[str, dict[str, Any]]:
    """The segments shown as COCO annotations with scores: coco.json."""
    return {"coco.json": coco_answers(predictions, sizes, labels, segmentation.geometry)}


TASK = Task(
    **segmentation.shared(instance),
    name="instance-segmentation",
    auto_class=("AutoModelForUniversalSegmentation", "AutoModelForInstanceSegmentation"),
    subtasks=("instance",),
    default_model="facebook/mask2former-swin-tiny-coco-instance",
    train_defaults=segmentation.TRAIN_DEFAULTS,
    formats=("coco", "yolo"),
    metrics=metrics,
    metric=metric,
    update=segmentation.count,
    arguments=arguments,
    call_note=CALL_NOTE,
    complete={"threshold": 0.0},
    export=export,
)
