"""Object detection: boxes with a class each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching

from cv_hf import boxes
from cv_hf.data import LabelMap, detection
from cv_hf.data.export import coco_answers
from cv_hf.metrics import Accumulator, DetectionAccumulator
from cv_hf.task import Task
from cv_hf.transforms import Scored, class_colour, draw_boxes

# pipeline("object-detection") shows what scores more than this, unless told otherwise.
THRESHOLD = 0.5
# Two answers agree where scores differ by no more than this, and corners by no more than this share of the image.
SCORE_TOLERANCE = 1e-4
BOX_TOLERANCE = 1e-3
CALL_NOTE = """This threshold has the best F1 (at IoU 0.5) over all classes on the validation split; `cv_hf.json` holds
it, and that of each class."""
# So many objects of an image are kept as evidence.
SUREST = 30


def model_fields(labels: LabelMap, columns: Sequence[str]) -> dict[str, Any]:
    """Configuration fields that decide the head."""
    return {"id2label": labels.id2label, "label2id": labels.label2id}


def metrics(labels: LabelMap | None, columns: Sequence[str]) -> dict[str, bool]:
    """Metric names, each with whether greater is better; the first chooses the best checkpoint."""
    return {"map": True, "map_50": True, "map_75": True, "mar_100": True, "loss": False}


def train_sample(image: np.ndarray, row: Mapping[str, Any], augment: Any) -> dict[str, Any]:
    """Augment the image with its boxes.

    Returns:
        `image`; `boxes` (n, 4) float32, cxcywh relative to the image; `classes` (n,); `area` (n,) in pixels; `iscrowd`
        (n,). What is cut away too far is left out of all of them.
    """
    objects = row["objects"]
    before = boxes.xywh_to_xyxy(objects["bbox"])
    augmented = augment(image, bboxes=before)
    kept = np.array(augmented["indices"], np.int64)
    after = boxes.xyxy_to_xywh(augmented["bboxes"])
    share = _extent(after) / _extent(boxes.xyxy_to_xywh(before[kept]))
    size = augmented["image"].shape[:2]
    return {
        "image": augmented["image"],
        "boxes": boxes.xywh_to_cxcywh_norm(after, size).astype(np.float32),
        "classes": np.array(objects["category"], np.int64)[kept],
        # The area of what is within the box (a mask's, where there was one) changes as the box's does.
        "area": np.array(objects["area"], np.float64)[kept] * share,
        "iscrowd": np.array(objects["iscrowd"], bool)[kept],
    }


def targets(rows: Sequence[Mapping[str, Any]], labels: LabelMap, needs: Any = None) -> dict[str, Any]:
    """`labels`: per image {`class_labels` (n,) int64, `boxes` (n, 4) float32, cxcywh relative to the model's input}.

    Crowd regions are no objects to be found, and left out, as in DETR (Carion et al., 2020).
    """
    found = []
    for row in rows:
        if "boxes" in row:
            relative, classes, crowd = row["boxes"], row["classes"], row["iscrowd"]
        else:
            objects = row["objects"]
            relative = boxes.xywh_to_cxcywh_norm(objects["bbox"], row["size"])
            classes, crowd = np.array(objects["category"], np.int64), np.array(objects["iscrowd"], bool)
        height, width = row.get("valid", (1.0, 1.0))
        relative = np.asarray(relative, np.float32) * np.array([width, height, width, height], np.float32)
        found.append({"class_labels": torch.from_numpy(classes[~crowd]), "boxes": torch.from_numpy(relative[~crowd])})
    return {"labels": found}


def metric(labels: LabelMap, columns: Sequence[str]) -> Accumulator:
    """An empty accumulator of COCO's average precision."""
    return DetectionAccumulator(labels.names)


def update(accumulator: Accumulator, outputs: Any, group: Any, processor: Any, labels: LabelMap) -> None:
    """Count one batch of model outputs against its rows, every box of them, however low its score."""
    found = _post_process(outputs, processor, [row["size"] for row in group.rows], 0.0)
    accumulator.update(found, [row["objects"] for row in group.rows], group.ids)


def arguments(metrics: Mapping[str, Any], config: Any) -> dict[str, Any]:
    """The score threshold of the best F1 over all classes."""
    threshold = metrics.get("threshold")
    return {} if threshold is None else {"threshold": threshold}


def predict(
    outputs: Any, config: Any, processor: Any, sizes: Sequence[tuple[int, int]], arguments: Mapping[str, Any]
) -> list[list[dict[str, Any]]]:
    """What pipeline("object-detection") answers: for each image [{score, label, box {xmin, ymin, xmax, ymax}}].

    In the model's order, as there, but pixels are not cut to whole ones.
    """
    threshold = arguments.get("threshold", THRESHOLD)
    return [
        [
            {
                "score": score,
                "label": config.id2label[label],
                "box": dict(zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)),
            }
            for score, label, box in zip(
                image["scores"].tolist(), image["labels"].tolist(), image["boxes"].tolist(), strict=True
            )
        ]
        for image in _post_process(outputs, processor, sizes, threshold)
    ]


def shown(prediction: Sequence[Mapping[str, Any]], arguments: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The objects that score more than the threshold."""
    return [one for one in prediction if one["score"] > arguments.get("threshold", THRESHOLD)]


def surest(prediction: Sequence[Mapping[str, Any]]) -> tuple[list[Mapping[str, Any]], dict[str, Any]]:
    """The objects of the highest scores, and the threshold that shows them."""
    found = sorted(prediction, key=lambda one: -one["score"])
    return found[:SUREST], {"threshold": found[SUREST]["score"] if len(found) > SUREST else 0.0}


def compare(
    ours: Sequence[Mapping[str, Any]],
    theirs: Sequence[Mapping[str, Any]],
    size: tuple[int, int],
    arguments: Mapping[str, Any],
) -> tuple[float, str]:
    """The score of the surest object that only one of two answers has, and which it is.

    Objects are the same that have a class, and within the tolerances score and corners; corners in whole pixels, as
    pipeline() returns them, must be what such corners are cut to. Objects at the score below which an answer is cut off
    may be missing.
    """
    least = arguments.get("threshold", THRESHOLD)
    if arguments == TASK.complete and len(ours) == len(theirs) > 0:
        # A model answers with so many boxes; which of those that score alike are the last of them is chance.
        least = min(one["score"] for one in [*ours, *theirs])
    lists = [sorted(answer, key=lambda one: -one["score"]) for answer in (ours, theirs)]
    corners = [np.array([list(one["box"].values()) for one in found], np.float64).reshape(-1, 4) for found in lists]
    scores = [np.array([one["score"] for one in found]) for found in lists]
    labels = [np.array([one["label"] for one in found], object) for found in lists]
    tolerance = BOX_TOLERANCE * max(size)
    near = np.abs(scores[0][:, None] - scores[1]) <= SCORE_TOLERANCE
    near &= labels[0][:, None] == labels[1]
    mine, other = corners[0][:, None], corners[1][None]
    if all(isinstance(edge, int) for one in theirs for edge in one["box"].values()):
        fits = (np.trunc(mine - tolerance) <= other) & (other <= np.trunc(mine + tolerance))
    else:
        fits = np.abs(mine - other) <= tolerance
    near &= fits.all(axis=2)
    # Boxes lie so close to each other that the nearest is not always the same one: as many pairs as there can be.
    partners = maximum_bipartite_matching(csr_array(near), perm_type="column")
    left = set(range(len(lists[1]))) - set(partners.tolist())
    lone = [(lists[0][index], "not by pipeline(), but") for index in np.flatnonzero(partners < 0)]
    lone += [(lists[1][index], "by pipeline() alone, not") for index in left]
    lone = [(one, whose) for one, whose in lone if one["score"] > least + SCORE_TOLERANCE]
    if not lone:
        return 0.0, ""
    one, whose = max(lone, key=lambda found: found[0]["score"])
    box = ", ".join(f"{edge:.1f}" for edge in one["box"].values())
    words = f"{one['label']!r} {one['score']:.4f} [{box}]"
    return one["score"], f"{words} {whose}"


def score_answers(
    answers: Sequence[Sequence[Mapping[str, Any]]],
    rows: Iterable[Mapping[str, Any]],
    labels: LabelMap,
    arguments: Mapping[str, Any],
) -> dict[str, float]:
    """COCO's average precision of complete predictions."""
    accumulator = DetectionAccumulator(labels.names)
    ids = labels.label2id
    for index, (answer, row) in enumerate(zip(answers, rows, strict=True)):
        found = {
            "boxes": np.array([list(one["box"].values()) for one in answer], np.float64).reshape(-1, 4),
            "scores": np.array([one["score"] for one in answer], np.float64),
            "labels": np.array([ids[one["label"]] for one in answer], np.int64),
        }
        accumulator.update([found], [row["objects"]], [index])
    measured = accumulator.compute()
    return {name: measured[name] for name in ("map", "map_50") if measured[name] is not None}


def export(
    predictions: Mapping[str, Any], sizes: Mapping[str, tuple[int, int]], labels: LabelMap
) -> dict[str, dict[str, Any]]:
    """The predictions as COCO annotations with scores: coco.json."""

    def geometry(one: Mapping[str, Any]) -> dict[str, Any]:
        left, top, right, bottom = one["box"].values()
        return {"bbox": [left, top, right - left, bottom - top], "area": (right - left) * (bottom - top)}

    return {"coco.json": coco_answers(predictions, sizes, labels, geometry)}


def truth(row: Mapping[str, Any], labels: LabelMap) -> list[list[float]]:
    """The boxes of the row, absolute xyxy."""
    return boxes.xywh_to_xyxy(row["objects"]["bbox"]).tolist()


def draw(
    image: Any,
    prediction: Sequence[Mapping[str, Any]],
    truth: Sequence[Sequence[float]] | None,
    labels: LabelMap,
    tile: int | None,
) -> Any:
    """The image with its boxes, a colour for each class, the most certain in front; the truth as thin white lines."""
    found = sorted(prediction, key=lambda one: one["score"])
    return draw_boxes(
        image,
        [list(one["box"].values()) for one in found],
        [Scored(one["label"], one["score"]) for one in found],
        [class_colour(one["label"], names=labels.names) for one in found],
        truth=truth,
        note="" if truth is None else "white: truth",
        tile=tile,
    )


def _post_process(
    outputs: Any, processor: Any, sizes: Sequence[tuple[int, int]], threshold: float
) -> list[dict[str, torch.Tensor]]:
    """The processor's own post-processing, as pipeline() calls it: absolute xyxy boxes in pixels of the image."""
    for name in ("logits", "pred_boxes"):
        outputs[name] = outputs[name].float()
    found = processor.post_process_object_detection(
        outputs, threshold, torch.tensor(sizes, device=outputs.logits.device)
    )
    return [{name: image[name].cpu() for name in ("scores", "labels", "boxes")} for image in found]


def _extent(xywh: np.ndarray) -> np.ndarray:
    return xywh[:, 2] * xywh[:, 3]


TASK = Task(
    name="object-detection",
    pipeline="object-detection",
    auto_class="AutoModelForObjectDetection",
    subtasks=(),
    default_model="PekingU/rtdetr_v2_r18vd",
    augment=(
        {"HorizontalFlip": {"p": 0.5}},
        {"BBoxSafeRandomCrop": {"p": 0.5}},
        {"ColorJitter": {"brightness": 0.2, "contrast": 0.2, "saturation": 0.2, "hue": 0.0, "p": 0.5}},
    ),
    # As DETR's family is trained: clipped gradients, a backbone that moves ten times slower, an average of the weights.
    train_defaults={
        "num_train_epochs": 30,
        "batch_size": 8,
        "learning_rate": 1e-4,
        "backbone_lr": 1e-5,
        "weight_decay": 1e-4,
        "max_grad_norm": 0.1,
        "warmup_steps": 0.05,
        "lr_scheduler_type": "cosine",
        "ema": 0.999,
        "multi_scale": [0.75, 1.25],
    },
    formats=("coco", "voc", "yolo"),
    moved="bboxes",
    canonical=detection.canonical,
    clean=detection.clean,
    label_map=detection.label_map,
    strata=detection.strata,
    encode=detection.encode,
    present=detection.present,
    model_fields=model_fields,
    metrics=metrics,
    fit=detection.fit,
    train_sample=train_sample,
    targets=targets,
    eval_loss=True,
    metric=metric,
    update=update,
    arguments=arguments,
    predict=predict,
    call_note=CALL_NOTE,
    complete={"threshold": 0.0},
    shown=shown,
    surest=surest,
    compare=compare,
    score_answers=score_answers,
    export=export,
    truth=truth,
    draw=draw,
    tile=400,
)
