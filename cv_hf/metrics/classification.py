"""Metrics of image classification, single-label and multi-label.

Precision, recall and F1 are 0 where they would divide by zero. Their macro averages are over the classes that occur in
the references or in the predictions, as in `sklearn.metrics.f1_score(average="macro")` of class ids: a class that is in
neither says nothing about the model, and a 0 for it would keep even a perfect model below 1. A class that is predicted
but nowhere true is an error, and does count as 0. The same rule holds for multi-label, where scikit-learn averages over
all columns.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import Any

import numpy as np

from cv_hf.errors import DataError
from cv_hf.metrics.base import SampleRecords, check_mergeable, checked_names, to_numpy

# A larger confusion matrix is neither read by anyone nor fit for a JSON file (ImageNet-21k: 477 million numbers).
CONFUSION_MATRIX_LABELS = 1000
# Of classes that do not exclude each other, those whose probability is greater are predicted.
PREDICTED = 0.5


class SingleLabelAccumulator:
    """Accuracy, top-5 accuracy, per-class scores and confusion matrix of class scores.

    Kept per sample: id, true class, predicted class, and whether the true class is among the five best; no scores.

    Args:
        label_names: the name of each class id, all different.
    """

    def __init__(self, label_names: Sequence[str]) -> None:
        self.label_names = checked_names(label_names)
        self._ranked = True
        self._records = SampleRecords(np.dtype([("reference", "i4"), ("prediction", "i4"), ("top5", "?")]))

    def update(self, predictions: Any, references: Any, sample_ids: Iterable[Hashable]) -> None:
        """Count one batch.

        Of equal scores the lower class id ranks first. A sample whose scores have no softmax (a NaN, an infinite
        maximum) has no predicted class: it is wrong, and counted in `num_invalid`.

        Args:
            predictions: logits or probabilities (batch, num_labels). Or predicted class ids (batch,), integer, as
                evaluate.evaluator gives them; there is no top-5 accuracy then.
            references: class ids (batch,), integer.
            sample_ids: one per sample, (batch,).

        Raises:
            DataError: shapes that do not fit, or a class id outside 0 ... num_labels - 1.
        """
        predictions, references = to_numpy(predictions), to_numpy(references)
        if len(references) == 0:
            return
        self._check_ids(references, "references")
        records = np.zeros(len(references), self._records.array.dtype)
        records["reference"] = references
        ranked = predictions.ndim != 1 or predictions.dtype.kind not in "iu"
        if not ranked:
            _check_shape("predictions", predictions, references.shape)
            self._check_ids(predictions, "predictions")
            records["prediction"] = predictions
        else:
            _check_shape("predictions", predictions, (len(references), len(self.label_names)))
            valid = np.isfinite(predictions.max(axis=1))
            records["prediction"] = np.where(valid, predictions.argmax(axis=1), -1)
            records["top5"] = valid & (_rank(predictions, references) < 5)
        self._records.add(sample_ids, records)
        self._ranked &= ranked

    def merge(self, other: SingleLabelAccumulator) -> None:
        """Count the other's samples, except those whose id is known here.

        Raises:
            DataError: the other is of another kind or has other label names.
        """
        check_mergeable(self, other, "label_names")
        self._ranked &= other._ranked
        self._records.merge(other._records)

    def compute(self) -> dict[str, Any]:
        """Return the metric as JSON-ready values.

        Keys: `accuracy`; `top5_accuracy` (for more than five classes); `f1_macro`, `precision_macro`, `recall_macro`
        (averaged as the module says); `num_samples`; `num_invalid` (samples without a predicted class); `per_class`
        {name: {precision, recall, f1, support}}; `confusion_matrix` (up to 1,000 classes): a list of rows, true classes
        down and predicted classes across, without the invalid samples.

        Raises:
            DataError: no sample was counted.
        """
        records = _not_empty(self._records)
        classes = len(self.label_names)
        reference, prediction = records["reference"], records["prediction"]
        valid = prediction >= 0
        right = reference == prediction
        hits = np.bincount(reference[right], minlength=classes)
        support = np.bincount(reference, minlength=classes)
        predicted = np.bincount(prediction[valid], minlength=classes)

        result: dict[str, Any] = {"accuracy": float(right.mean())}
        if classes > 5 and self._ranked:
            result["top5_accuracy"] = float(records["top5"].mean())
        per_class, macro = _by_class(hits, predicted, support)
        result |= {f"{name}_macro": macro[name] for name in ("f1", "precision", "recall")}
        result |= {"num_samples": len(records), "num_invalid": int((~valid).sum())}
        result["per_class"] = dict(zip(self.label_names, per_class, strict=True))
        if classes <= CONFUSION_MATRIX_LABELS:
            cells = reference[valid].astype(np.int64) * classes + prediction[valid]
            matrix = np.bincount(cells, minlength=classes**2).reshape(classes, classes)
            result["confusion_matrix"] = matrix.tolist()
        return result

    def __len__(self) -> int:
        return len(self._records)

    def _check_ids(self, ids: np.ndarray, name: str) -> None:
        if ids.ndim != 1 or ids.dtype.kind not in "iub":
            raise DataError(f"{name} must be integer class ids of shape (batch,), not {ids.dtype} {ids.shape}.")
        outside = (ids < 0) | (ids >= len(self.label_names))
        if outside.any():
            raise DataError(f"{name} hold class id {ids[outside][0]}, outside 0 ... {len(self.label_names) - 1}.")


class MultiLabelAccumulator:
    """Average precision, F1 and subset accuracy of independent labels.

    Kept per sample: id, one float32 logit and one bit per class. The logits cannot be left out, since exact average
    precision depends on the order of all samples.

    Args:
        label_names: the name of each class, all different.
        threshold: a class is predicted where the sigmoid of its logit is greater.
    """

    def __init__(self, label_names: Sequence[str], threshold: float = PREDICTED) -> None:
        self.label_names = checked_names(label_names)
        self.threshold = threshold
        classes = len(self.label_names)
        self._records = SampleRecords(
            np.dtype([("logits", "f4", (classes,)), ("labels", "u1", ((classes + 7) // 8,)), ("invalid", "?")])
        )

    def update(self, predictions: Any, references: Any, sample_ids: Iterable[Hashable]) -> None:
        """Count one batch.

        A NaN is taken for the wrong answer (the lowest score where the label is there, the highest where it is not),
        and its sample counted in `num_invalid`.

        Args:
            predictions: logits (batch, num_labels), not probabilities.
            references: multi-hot (batch, num_labels), 0 or 1.
            sample_ids: one per sample, (batch,).

        Raises:
            DataError: shapes that do not fit, or references other than 0 and 1.
        """
        logits, references = to_numpy(predictions), to_numpy(references)
        if len(references) == 0:
            return
        _check_shape("predictions", logits, (len(references), len(self.label_names)))
        _check_shape("references", references, logits.shape)
        if not np.isin(references, (0, 1)).all():
            raise DataError("references must be multi-hot: 0 or 1 for each label.")
        positive = references.astype(bool)
        unknown = np.isnan(logits)
        records = np.zeros(len(logits), self._records.array.dtype)
        records["logits"] = np.where(unknown, np.where(positive, -np.inf, np.inf), logits)
        records["labels"] = np.packbits(positive, axis=1)
        records["invalid"] = unknown.any(axis=1)
        self._records.add(sample_ids, records)

    def merge(self, other: MultiLabelAccumulator) -> None:
        """Count the other's samples, except those whose id is known here.

        Raises:
            DataError: the other is of another kind or has other label names or another threshold.
        """
        check_mergeable(self, other, "label_names", "threshold")
        self._records.merge(other._records)

    def compute(self) -> dict[str, Any]:
        """Return the metric as JSON-ready values.

        Keys: `map`, the mean over the classes of their average precision; `map_micro`, the average precision of all
        pairs of sample and class; `f1_macro` (averaged as the module says), `f1_micro`; `subset_accuracy`, the share of
        samples with every class right; `num_samples`; `num_invalid` (samples with a NaN); `per_class` {name:
        {average_precision, precision, recall, f1, support}}.

        A class without a positive sample has no average precision: it is None and left out of `map`. Where no class
        has any, `map` and `map_micro` are None.

        Raises:
            DataError: no sample was counted.
        """
        records = _not_empty(self._records)
        logits = records["logits"]
        positive = np.unpackbits(records["labels"], axis=1, count=len(self.label_names)).astype(bool)
        # As pipeline() computes it, in float32.
        with np.errstate(over="ignore"):
            predicted = 1 / (1 + np.exp(-logits)) > self.threshold
        hits, claimed, support = (flags.sum(axis=0) for flags in (positive & predicted, predicted, positive))

        average_precision = [_average_precision(*column) for column in zip(logits.T, positive.T, strict=True)]
        known = [value for value in average_precision if value is not None]
        per_class, macro = _by_class(hits, claimed, support)
        return {
            "map": float(np.mean(known)) if known else None,
            "map_micro": _average_precision(logits.ravel(), positive.ravel()),
            "f1_macro": macro["f1"],
            "f1_micro": float(_ratio(2 * hits.sum(), claimed.sum() + support.sum())),
            "subset_accuracy": float((positive == predicted).all(axis=1).mean()),
            "num_samples": len(records),
            "num_invalid": int(records["invalid"].sum()),
            "per_class": {
                name: {"average_precision": precision, **scores}
                for name, precision, scores in zip(self.label_names, average_precision, per_class, strict=True)
            },
        }

    def __len__(self) -> int:
        return len(self._records)


def _check_shape(name: str, array: np.ndarray, expected: tuple[int, ...]) -> None:
    if array.shape != expected:
        raise DataError(f"{name} have the shape {array.shape}; the references and labels need {expected}.")


def _not_empty(records: SampleRecords) -> np.ndarray:
    if not len(records):
        raise DataError("no sample was evaluated, so there is no metric; is the split empty?")
    return records.array


def _rank(scores: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """The 0-based rank (batch,) of each row's class among its scores (batch, num_labels), as a stable sort has it."""
    columns, ids = np.arange(scores.shape[1]), ids.astype(np.int64)[:, None]
    own = np.take_along_axis(scores, ids, axis=1)
    return ((scores > own) | ((scores == own) & (columns < ids))).sum(axis=1)


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.zeros(np.shape(whole)), where=np.asarray(whole) > 0)


def _by_class(
    hits: np.ndarray, predicted: np.ndarray, support: np.ndarray
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Scores of each class, and their means over the classes that occur, from counts (num_labels,)."""
    scores = {
        "precision": _ratio(hits, predicted),
        "recall": _ratio(hits, support),
        "f1": _ratio(2 * hits, predicted + support),
    }
    columns = [values.tolist() for values in (*scores.values(), support)]
    per_class = [dict(zip((*scores, "support"), row, strict=True)) for row in zip(*columns, strict=True)]
    occurs = (support > 0) | (predicted > 0)
    macro = {name: float(values[occurs].mean()) if occurs.any() else 0.0 for name, values in scores.items()}
    return per_class, macro


def _average_precision(scores: np.ndarray, positive: np.ndarray) -> float | None:
    """The area under the uninterpolated precision-recall curve; samples (n,) with the same score enter it together."""
    total = positive.sum()
    if total == 0:
        return None
    order = np.argsort(-scores)
    ranked = scores[order]
    ends = np.append(np.flatnonzero(ranked[1:] != ranked[:-1]), len(ranked) - 1)
    hits = np.cumsum(positive[order])[ends]
    return float((np.diff(hits, prepend=0) * hits / (ends + 1)).sum() / total)
