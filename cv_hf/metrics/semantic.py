"""Metrics of semantic segmentation, all from one confusion matrix of pixels.

Means are over the classes that occur in the references or in the predictions, at valid pixels: a class that is in
neither says nothing about the model. A class that is predicted but nowhere true is an error, and does count as 0;
accuracy alone, the share of a class's own pixels that are right, is not defined for it, and its mean is over the
classes that occur in the references.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import Any

import numpy as np

from cv_hf.errors import DataError
from cv_hf.metrics.base import Tally, check_mergeable, checked_names, plain_ids, to_numpy
from cv_hf.metrics.classification import CONFUSION_MATRIX_LABELS

# What is counted at a time: it bounds the memory that large maps take, and stays in the processor's cache.
PIXELS_AT_ONCE = 2**16


class SemanticAccumulator:
    """IoU, Dice and accuracy of maps of class ids.

    Kept: one confusion matrix of all pixels, the ids, and the counts of the last 64 samples (see Tally).

    Args:
        label_names: the name of each class id, all different.
        ignore_index: the reference's value for pixels without a class; None: every pixel has one. It removes pixels by
            their true value alone, never what a model predicts.
    """

    def __init__(self, label_names: Sequence[str], ignore_index: int | None = 255) -> None:
        self.label_names = checked_names(label_names)
        self.ignore_index = ignore_index
        # True classes down; predicted classes across, and last what is no class.
        self._tally = Tally(len(self.label_names) * (len(self.label_names) + 1), np.int64)

    def update(self, predictions: Iterable[Any], references: Iterable[Any], sample_ids: Iterable[Hashable]) -> None:
        """Count one batch; the three have one entry per image.

        A predicted value outside 0 ... num_labels - 1 is wrong, and counted in `num_invalid`.

        Args:
            predictions: class ids (height, width), integer, of each image; images may differ in size.
            references: class ids (height, width), integer, of each image.
            sample_ids: one per image, (batch,).

        Raises:
            DataError: shapes that do not fit, or a reference value that is neither a class id nor `ignore_index`.
        """
        predictions, references, ids = list(predictions), list(references), plain_ids(sample_ids)
        if not len(predictions) == len(references) == len(ids):
            raise DataError(f"{len(ids)} sample ids for {len(predictions)} predictions and {len(references)} samples.")
        for prediction, reference, sample_id in zip(predictions, references, ids, strict=True):
            if sample_id not in self._tally:
                self._tally.add(sample_id, self._confusion(to_numpy(prediction), to_numpy(reference)))

    def merge(self, other: SemanticAccumulator) -> None:
        """Count the other's samples, except those whose id is known here.

        Raises:
            DataError: the other is of another kind or has other settings; or a sample that both have counted is among
                the last 64 of neither, so that it cannot be taken away.
        """
        check_mergeable(self, other, "label_names", "ignore_index")
        self._tally.merge(other._tally)

    def compute(self) -> dict[str, Any]:
        """Return the metric as JSON-ready values.

        Keys: `mean_iou`, `dice`, `mean_accuracy`, means over classes as the module says of I / (A + B - I),
        2 I / (A + B) and I / B, with A the predicted, B the true and I the rightly predicted pixels of a class;
        `pixel_accuracy`; `num_samples`; `num_pixels`, of the references, without the ignored ones; `num_invalid`, those
        of them with a prediction that is no class; `per_class` {name: {iou, dice, accuracy, pixels}}, None where not
        defined; `confusion_matrix` (up to 1,000 classes): a list of rows, true classes down and predicted classes
        across, without the invalid predictions.

        Without any pixel that counts, the metrics are None.

        Raises:
            DataError: no sample was counted.
        """
        if not len(self):
            raise DataError("no sample was evaluated, so there is no metric; is the split empty?")
        classes = len(self.label_names)
        table = self._tally.total.reshape(classes, classes + 1)
        matrix = table[:, :classes]
        right, predicted, true = matrix.diagonal(), matrix.sum(axis=0), table.sum(axis=1)
        scores = {
            "iou": _ratio(right, predicted + true - right),
            "dice": _ratio(2 * right, predicted + true),
            "accuracy": _ratio(right, true),
        }
        total = int(true.sum())
        result: dict[str, Any] = {
            "mean_iou": _mean(scores["iou"]),
            "dice": _mean(scores["dice"]),
            "pixel_accuracy": int(right.sum()) / total if total else None,
            "mean_accuracy": _mean(scores["accuracy"]),
            "num_samples": len(self),
            "num_pixels": total,
            "num_invalid": int(table[:, classes].sum()),
        }
        columns = [[None if np.isnan(value) else value for value in values.tolist()] for values in scores.values()]
        result["per_class"] = {
            name: dict(zip((*scores, "pixels"), row, strict=True))
            for name, *row in zip(self.label_names, *columns, true.tolist(), strict=True)
        }
        if classes <= CONFUSION_MATRIX_LABELS:
            result["confusion_matrix"] = matrix.tolist()
        return result

    def __len__(self) -> int:
        return len(self._tally)

    def _confusion(self, prediction: np.ndarray, reference: np.ndarray) -> np.ndarray:
        """The confusion matrix of one image, flat as it is kept."""
        if prediction.shape != reference.shape or reference.ndim != 2:
            raise DataError(
                f"a prediction of shape {prediction.shape} for a reference of shape {reference.shape}; both must be "
                "(height, width) of one image."
            )
        for name, ids in (("predictions", prediction), ("references", reference)):
            if ids.dtype.kind not in "iub":
                raise DataError(f"{name} must be integer class ids, not {ids.dtype}.")
        classes = len(self.label_names)
        prediction, reference = prediction.ravel(), reference.ravel()
        cells = np.zeros((classes + 1) ** 2, np.int64)
        for start in range(0, len(reference), PIXELS_AT_ONCE):
            part = slice(start, start + PIXELS_AT_ONCE)
            places = np.multiply(_clipped(reference[part], classes), classes + 1, dtype=np.int64)
            places += _clipped(prediction[part], classes)
            cells += np.bincount(places, minlength=len(cells))
        table = cells.reshape(classes + 1, classes + 1)
        if self.ignore_index in range(classes):
            table[self.ignore_index] = 0
        if table[classes].any():
            outside = reference[_clipped(reference, classes) == classes]
            wrong = outside[outside != self.ignore_index]
            if len(wrong):
                raise DataError(
                    f"references hold class id {wrong[0]}, outside 0 ... {classes - 1} and not the ignored value "
                    f"{self.ignore_index}."
                )
        return table[:classes].ravel()


def _clipped(ids: np.ndarray, classes: int) -> np.ndarray:
    """The ids, and `classes` for those outside 0 ... classes - 1; of any integer type."""
    # As unsigned numbers, negative ones are large.
    unsigned = ids.view(f"{ids.dtype.byteorder}u{ids.itemsize}")
    if classes <= np.iinfo(unsigned.dtype).max:
        unsigned = np.minimum(unsigned, classes)
    return unsigned.view(np.int64) if unsigned.itemsize == 8 else unsigned


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.full(len(part), np.nan), where=whole > 0)


def _mean(values: np.ndarray) -> float | None:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else None
