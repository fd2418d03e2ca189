"""Image classification: one label per image, or any number of them (multi-label)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from cv_hf.data import LabelMap, classification
from cv_hf.metrics import Accumulator, MultiLabelAccumulator, SingleLabelAccumulator
from cv_hf.metrics.classification import PREDICTED
from cv_hf.task import Task
from cv_hf.transforms import TILE, Scored, captioned

# pipeline("image-classification") returns so many classes unless told otherwise.
TOP_K = 5
SCORE_TOLERANCE = 1e-4


def model_fields(labels: LabelMap, columns: Sequence[str]) -> dict[str, Any]:
    """Configuration fields that decide the head and the loss.

    With a single class, softmax is always 1 and cross-entropy teaches nothing, so it is trained as a yes-or-no label,
    which is also how pipeline() scores it (by a sigmoid).
    """
    multi_label = "labels" in columns or len(labels.names) == 1
    return {
        "id2label": labels.id2label,
        "label2id": labels.label2id,
        "problem_type": "multi_label_classification" if multi_label else "single_label_classification",
    }


def metrics(labels: LabelMap | None, columns: Sequence[str]) -> dict[str, bool]:
    """Metric names, each with whether greater is better; the first chooses the best checkpoint."""
    multi_label = {"map": True, "f1_macro": True, "f1_micro": True, "loss": False}
    if "labels" in columns:
        return multi_label
    top5 = {"top5_accuracy": True} if labels is None or len(labels.names) > TOP_K else {}
    perhaps = multi_label if labels is None and "label" not in columns else {}
    return {"accuracy": True, "f1_macro": True, **top5, "loss": False, **perhaps}


def train_sample(image: np.ndarray, row: Mapping[str, Any], augment: Any) -> dict[str, Any]:
    """Augment the image; the label stays what it is."""
    return {"image": augment(image)["image"], **{key: row[key] for key in ("label", "labels") if key in row}}


def targets(rows: Sequence[Mapping[str, Any]], labels: LabelMap, needs: Any = None) -> dict[str, torch.Tensor]:
    """`labels`: class ids (B,), or float multi-hot (B, classes) for multi-label and for a single class."""
    if "labels" in rows[0] or len(labels.names) == 1:
        return {"labels": torch.from_numpy(_multi_hot(rows, len(labels.names)))}
    return {"labels": torch.tensor([row["label"] for row in rows])}


def metric(labels: LabelMap, columns: Sequence[str]) -> Accumulator:
    """An empty accumulator for the kind of labels that the columns hold."""
    kind = MultiLabelAccumulator if "labels" in columns else SingleLabelAccumulator
    return kind(labels.names)


def update(accumulator: Accumulator, outputs: Any, group: Any, processor: Any, labels: LabelMap) -> None:
    """Count one batch of model outputs against its rows."""
    logits = outputs.logits.float().cpu().numpy()
    if "labels" in group.rows[0]:
        references = _multi_hot(group.rows, logits.shape[1])
    else:
        references = np.array([row["label"] for row in group.rows])
    accumulator.update(logits, references, group.ids)


def predict(
    outputs: Any, config: Any, processor: Any, sizes: Sequence[tuple[int, int]], arguments: Mapping[str, Any]
) -> list[list[dict[str, Any]]]:
    """What pipeline("image-classification") answers: for each image its best classes, [{label, score}], best first."""
    logits = outputs.logits.float().cpu().numpy()
    if config.problem_type == "multi_label_classification" or logits.shape[1] == 1:
        with np.errstate(over="ignore"):  # exp overflows to infinity, whose score is 0
            scores = 1 / (1 + np.exp(-logits))
    else:
        exponent = np.exp(logits - logits.max(axis=-1, keepdims=True))
        scores = exponent / exponent.sum(axis=-1, keepdims=True)
    best = np.argsort(-scores, axis=-1, kind="stable")[:, :TOP_K]
    return [
        [{"label": config.id2label[int(i)], "score": float(row[i])} for i in order]
        for row, order in zip(scores, best, strict=True)
    ]


def compare(
    ours: Sequence[Mapping[str, Any]],
    theirs: Sequence[Mapping[str, Any]],
    size: tuple[int, int],
    arguments: Mapping[str, Any],
) -> tuple[float, str]:
    """How far two answers differ in the score of a class; of those that score alike, either may have the last place."""
    least = max(min(one["score"] for one in answer) for answer in (ours, theirs)) + SCORE_TOLERANCE
    scores = [{one["label"]: one["score"] for one in answer} for answer in (ours, theirs)]
    worst, words = 0.0, ""
    for label in scores[0].keys() | scores[1].keys():
        mine, other = (known.get(label) for known in scores)
        if mine is None or other is None:
            difference = max((mine or other) - least, 0.0) and (mine or other)
        else:
            difference = abs(mine - other) if abs(mine - other) > SCORE_TOLERANCE else 0.0
        if difference > worst or difference != difference:
            shown = ["none" if score is None else f"{score:.4f}" for score in (other, mine)]
            worst, words = difference, f"{label!r} {shown[0]} by pipeline(), {shown[1]}"
    return worst, words


def score_answers(
    answers: Sequence[Sequence[Mapping[str, Any]]],
    rows: Iterable[Mapping[str, Any]],
    labels: LabelMap,
    arguments: Mapping[str, Any],
) -> dict[str, float]:
    """Accuracy; nothing for several labels per image, whose metrics need the score of every class."""
    rows = list(rows)
    if "labels" in rows[0]:
        return {}
    right = [answer[0]["label"] == labels.names[row["label"]] for answer, row in zip(answers, rows, strict=True)]
    return {"accuracy": sum(right) / len(right)}


def truth(row: Mapping[str, Any], labels: LabelMap) -> str | list[str] | None:
    """The name of the row's class, or those of its classes where it may have several."""
    if "labels" in row:
        return [labels.names[i] for i in row["labels"]]
    return labels.names[row["label"]] if row.get("label") is not None else None


def draw(
    image: Any,
    prediction: Sequence[Mapping[str, Any]],
    truth: str | list[str] | None,
    labels: LabelMap,
    tile: int | None,
) -> Any:
    """The image above its classes and their scores; green where they are the truth, red where not.

    Of exclusive classes it is the best one. Of others all that score more than one half, as far as there are no more of
    them than pipeline() returns.
    """
    claimed = [one for one in prediction if one["score"] > PREDICTED]
    several = isinstance(truth, list)
    shown = claimed if claimed or several else prediction[:1]
    lines: list[str | Scored] = [Scored(one["label"], one["score"]) for one in shown] or ["none"]
    colour = "#222222"
    if truth is not None:
        known = set(truth) if several else {truth}
        found = {one["label"] for one in shown}
        right = found == known or (len(found) == TOP_K and found < known)
        colour = "#1a7f37" if right else "#c62828"
        if not right:
            lines.append(f"is {', '.join(sorted(known)) or 'none'}")
    return captioned(image, lines, colour)


def _multi_hot(rows: Sequence[Mapping[str, Any]], classes: int) -> np.ndarray:
    hot = np.zeros((len(rows), classes), dtype=np.float32)
    for line, row in zip(hot, rows, strict=True):
        line[row["labels"] if "labels" in row else [row["label"]]] = 1
    return hot


TASK = Task(
    name="image-classification",
    pipeline="image-classification",
    auto_class="AutoModelForImageClassification",
    subtasks=(),
    default_model="facebook/convnextv2-tiny-1k-224",
    augment=(
        {"RandomResizedCrop": {"scale": [0.35, 1.0]}},
        {"HorizontalFlip": {"p": 0.5}},
        {"ColorJitter": {"brightness": 0.2, "contrast": 0.2, "saturation": 0.2, "hue": 0.0, "p": 0.8}},
    ),
    formats=("imagefolder",),
    moved=None,
    train_defaults={
        "num_train_epochs": 10,
        "learning_rate": 1e-4,
        "weight_decay": 0.05,
        "warmup_steps": 0.05,
        "lr_scheduler_type": "cosine",
    },
    canonical=classification.canonical,
    clean=None,
    label_map=classification.label_map,
    strata=classification.strata,
    encode=classification.encode,
    present=classification.present,
    model_fields=model_fields,
    metrics=metrics,
    fit=None,
    train_sample=train_sample,
    targets=targets,
    eval_loss=True,
    metric=metric,
    update=update,
    arguments=lambda metrics, config: {},
    predict=predict,
    call_note="",
    complete={},
    shown=lambda prediction, arguments: prediction,
    surest=lambda prediction: (prediction, {}),
    compare=compare,
    score_answers=score_answers,
    truth=truth,
    draw=draw,
    tile=TILE,
)
