"""Panoptic quality (Kirillov et al., "Panoptic Segmentation", 2019, arXiv 1801.00868).

PQ = SQ x RQ, with SQ the mean IoU of the matched segments and RQ = TP / (TP + FP / 2 + FN / 2), for each class. The
numbers are those of panopticapi, the reference implementation. (Of several crowd regions of one class in an image,
which COCO does not have, panopticapi sees one; here all count.)
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from cv_hf.errors import DataError
from cv_hf.metrics.base import Tally, check_mergeable, checked_names, plain_ids, to_numpy

Answer = Mapping[str, Any]


class PanopticAccumulator:
    """Panoptic, segmentation and recognition quality of all classes, of things and of stuff.

    Kept: four sums for each class, the ids, and the counts of the last 64 samples (see Tally).

    Args:
        label_names: the name of each class id, all different.
        things: of each class id, whether it is a thing, whose objects are told apart, or stuff.
    """

    def __init__(self, label_names: Sequence[str], things: Sequence[bool]) -> None:
        self.label_names = checked_names(label_names)
        self.things = tuple(bool(thing) for thing in things)
        if len(self.things) != len(self.label_names):
            raise DataError(f"{len(self.things)} values of things for {len(self.label_names)} label names.")
        # Of each class: the sum of IoUs, true positives, false positives, false negatives.
        self._tally = Tally(4 * len(self.label_names), np.float64)

    def update(
        self, predictions: Sequence[Answer], references: Sequence[Answer], sample_ids: Iterable[Hashable]
    ) -> None:
        """Count one batch; the three have one entry per image.

        Args:
            predictions: {`segmentation` (height, width), the segment id of each pixel, `segments_info` [{`id`,
                `label_id`, the class id}]}, as `post_process_panoptic_segmentation` gives them. A pixel whose id is not
                in `segments_info` has no segment; a segment without a pixel is none.
            references: {`segmentation` (height, width), 0 where there is no ground truth (void), `segments_info`
                [{`id`, `category_id`, the class id, `iscrowd`, false where it is missing}]}.
            sample_ids: one per image, (batch,).

        Raises:
            DataError: shapes that do not fit, a class id outside 0 ... num_labels - 1, an id that stands twice in
                `segments_info`, or a ground truth pixel whose id is missing there.
        """
        ids = plain_ids(sample_ids)
        if not len(predictions) == len(references) == len(ids):
            raise DataError(f"{len(ids)} sample ids for {len(predictions)} predictions and {len(references)} samples.")
        for prediction, reference, sample_id in zip(predictions, references, ids, strict=True):
            if sample_id not in self._tally:
                self._tally.add(sample_id, self._counts(prediction, reference))

    def merge(self, other: PanopticAccumulator) -> None:
        """Count the other's samples, except those whose id is known here.

        Raises:
            DataError: the other is of another kind or has other settings; or a sample that both have counted is among
                the last 64 of neither, so that it cannot be taken away.
        """
        check_mergeable(self, other, "label_names", "things")
        self._tally.merge(other._tally)

    def compute(self) -> dict[str, Any]:
        """Return the metric as JSON-ready values.

        Keys: `pq`, `sq`, `rq`, means over the classes that have a segment in the references or a false positive;
        `pq_things`, `sq_things`, `rq_things`, `pq_stuff`, `sq_stuff`, `rq_stuff`; `num_samples`; `per_class` {name:
        {pq, sq, rq, segments}}, with the number of segments in the references, crowd regions apart. A class without
        matched segments has SQ 0, as in panopticapi. Values of a class that is in neither are None, as is a mean over
        no class.

        Raises:
            DataError: no sample was counted.
        """
        if not len(self):
            raise DataError("no sample was evaluated, so there is no metric; is the split empty?")
        iou, hits, extra, missed = self._tally.total.reshape(4, -1)
        occurs = hits + extra + missed > 0
        weight = np.where(occurs, hits + extra / 2 + missed / 2, 1)
        scores = {"pq": iou / weight, "sq": iou / np.maximum(hits, 1), "rq": hits / weight}
        things = np.array(self.things)
        result: dict[str, Any] = {}
        for suffix, group in (("", occurs), ("_things", occurs & things), ("_stuff", occurs & ~things)):
            for name, values in scores.items():
                result[name + suffix] = float(values[group].mean()) if group.any() else None
        result["num_samples"] = len(self)
        result["per_class"] = {
            name: {
                **{key: float(values[index]) if occurs[index] else None for key, values in scores.items()},
                "segments": round(hits[index] + missed[index]),
            }
            for index, name in enumerate(self.label_names)
        }
        return result

    def __len__(self) -> int:
        return len(self._tally)

    def _counts(self, prediction: Answer, reference: Answer) -> np.ndarray:
        """Sum of IoUs, true positives, false positives and false negatives of one image, (4 x classes,)."""
        found, sought = to_numpy(prediction["segmentation"]), to_numpy(reference["segmentation"])
        if found.shape != sought.shape or sought.ndim != 2:
            raise DataError(
                f"a predicted segmentation of shape {found.shape} for a reference of shape {sought.shape}; both must "
                "be (height, width) of one image."
            )
        found_ids, found_classes, _ = self._segments(prediction["segments_info"], "label_id")
        sought_ids, sought_classes, crowd = self._segments(reference["segments_info"], "category_id")
        overlap = _overlaps(found, sought, found_ids, sought_ids)
        area, truth_area = overlap[1:, :].sum(axis=1), overlap[:, 1:].sum(axis=0)
        void, shared = overlap[1:, 0], overlap[1:, 1:]

        same = found_classes[:, None] == sought_classes
        union = (area - void)[:, None] + truth_area - shared
        iou = np.where(same & ~crowd, shared / np.maximum(union, 1), 0)
        # No segment can overlap two others by more than half.
        matched = iou > 0.5
        outside = void + (shared * (same & crowd)).sum(axis=1)
        extra = ~matched.any(axis=1) & (area > 0) & (2 * outside <= area)
        missed = ~matched.any(axis=0) & ~crowd
        row, column = np.nonzero(matched)
        classes = len(self.label_names)
        return np.concatenate(
            [
                np.bincount(sought_classes[column], iou[row, column], minlength=classes),
                np.bincount(sought_classes[column], minlength=classes),
                np.bincount(found_classes[extra], minlength=classes),
                np.bincount(sought_classes[missed], minlength=classes),
            ]
        )

    def _segments(self, infos: Sequence[Answer], key: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Ids in ascending order, and the class and the crowd flag of each; (segments,)."""
        infos = sorted(infos, key=lambda info: info["id"])
        ids = np.array([info["id"] for info in infos], np.int64)
        classes = np.array([info[key] for info in infos], np.int64)
        crowd = np.array([info.get("iscrowd", False) for info in infos], bool)
        if (ids[1:] == ids[:-1]).any():
            raise DataError(f"segments_info holds an id twice: {ids[1:][ids[1:] == ids[:-1]][0]}.")
        outside = (classes < 0) | (classes >= len(self.label_names))
        if outside.any():
            raise DataError(
                f"segments_info holds {key} {classes[outside][0]}, outside 0 ... {len(self.label_names) - 1}."
            )
        return ids, classes, crowd


def _overlaps(found: np.ndarray, sought: np.ndarray, found_ids: np.ndarray, sought_ids: np.ndarray) -> np.ndarray:
    """Pixels that a predicted and a true segment share, (1 + predicted, 1 + true); 0 is no segment, and void."""
    found, sought = found.ravel(), sought.ravel()
    # Segments are few long runs of pixels, much faster to look up than each pixel.
    changes = np.flatnonzero((found[1:] != found[:-1]) | (sought[1:] != sought[:-1])) + 1
    starts = np.concatenate([np.zeros(min(len(found), 1), np.int64), changes])
    lengths = np.diff(starts, append=len(found))
    rows, columns = _places(found_ids, found[starts]), _places(sought_ids, sought[starts])
    if len(unknown := sought[starts][(columns == 0) & (sought[starts] != 0)]):
        raise DataError(f"a reference has pixels of segment {unknown[0]}, which its segments_info does not list.")
    if 0 in sought_ids:
        raise DataError("a reference lists a segment 0 in segments_info; 0 is void, number its segments from 1.")
    width = len(sought_ids) + 1
    cells = np.bincount(rows * width + columns, lengths, minlength=(len(found_ids) + 1) * width)
    return cells.reshape(-1, width)


def _places(ids: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The place of each value among the sorted ids, from 1; 0 for a value that is none of them."""
    if not len(ids):
        return np.zeros(len(values), np.int64)
    places = np.searchsorted(ids, values)
    known = ids[np.minimum(places, len(ids) - 1)] == values
    return np.where(known, places + 1, 0)
