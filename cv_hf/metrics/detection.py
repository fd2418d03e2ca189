"""COCO's metrics of object detection and instance segmentation.

As defined by Lin et al., "Microsoft COCO: Common Objects in Context", 2014.

The numbers are those of pycocotools, the reference implementation. IoU and matching are computed by faster-coco-eval,
which does the same in C++. Where pycocotools says -1, since no ground truth defines a number, it is None here.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from faster_coco_eval import faster_eval_api_cpp as evaluator
from faster_coco_eval import mask_api_new_cpp as mask_api
from faster_coco_eval.core import mask

from cv_hf.errors import DataError
from cv_hf.metrics.base import check_mergeable, checked_names, plain_ids, to_numpy

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10).tolist()
RECALL_THRESHOLDS = np.linspace(0, 1, 101).tolist()
# In pixels of the original image, both ends included.
AREAS = {"all": (0, 1e10), "small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, 1e10)}
# How many detections of an image and class count, the best ones.
MAX_DETECTIONS = (1, 10, 100)
# What the evaluator gets in one call; it bounds the memory that matching takes.
IMAGES_AT_ONCE = 256

# Columns of equal length.
Rows = dict[str, np.ndarray]


class DetectionAccumulator:
    """COCO's average precision and recall of boxes or of masks, and the score thresholds with the best F1.

    Kept per sample: id, and of objects and of the at most 100 best detections of each class, which are all that COCO
    counts, class and area (24 bytes each), but neither box nor mask; and the IoU of those that can match (20 bytes a
    pair). Samples rank by id where scores are equal, so that the result does not depend on who counted which sample.

    Args:
        label_names: the name of each class id, all different.
        masks: whether objects are compared by their masks, which may overlap, instead of their boxes.
    """

    def __init__(self, label_names: Sequence[str], masks: bool = False) -> None:
        self.label_names = checked_names(label_names)
        self.masks = masks
        # Of each sample, the number of its invalid predictions; its place here is `image` in the rows.
        self._invalid: dict[Hashable, int] = {}
        self._detections: list[Rows] = []
        self._objects: list[Rows] = []
        # Of a detection and an object of an image that can match: the `near` of the one, the place of the other.
        self._pairs: list[Rows] = []

    def update(
        self,
        predictions: Sequence[Mapping[str, Any]],
        references: Sequence[Mapping[str, Any]],
        sample_ids: Iterable[Hashable],
    ) -> None:
        """Count one batch; the three have one entry per image.

        A prediction with a NaN or an infinity is dropped and counted in `num_invalid`.

        Args:
            predictions: {`boxes` (n, 4), xyxy in pixels of the original image, `scores` (n,), `labels` (n,), integer
                class ids} as `post_process_object_detection` gives them, best with a threshold of 0.
            references: {`bbox` (m, 4), xywh in pixels of the original image, `category` (m,), class ids, `area` (m,),
                width times height where it is missing, `iscrowd` (m,), false where it is missing}, the ground truth.
                Of masks: `masks` in place of `boxes`, and `segmentation` in place of `bbox`, a list of COCO's
                compressed RLE, {`size`: [height, width], `counts`: bytes or str}, of one size in an image. The area is
                that of the mask where it is missing.
            sample_ids: one per image, (batch,).

        Raises:
            DataError: lengths that do not fit, a class id outside 0 ... num_labels - 1, a ground truth box with a NaN
                or an infinity, a mask of another size than the others of its image, or an RLE that is none.
        """
        ids = plain_ids(sample_ids)
        if not len(predictions) == len(references) == len(ids):
            raise DataError(f"{len(ids)} sample ids for {len(predictions)} predictions and {len(references)} samples.")
        if not ids:
            return
        detections, invalid = self._best_detections(predictions)
        objects = self._ground_truth(references)
        if self.masks:
            _check_sizes(detections, objects)
        detections["near"], pairs = _pairs(detections, objects)
        for rows in (detections, objects):
            for name in rows.keys() & {"box", "mask", "size"}:
                del rows[name]
        self._add(ids, invalid, detections, objects, pairs)

    def merge(self, other: DetectionAccumulator) -> None:
        """Count the other's samples, except those whose id is known here.

        Raises:
            DataError: the other is of another kind or has other settings.
        """
        check_mergeable(self, other, "label_names", "masks")
        if len(other):
            tables = map(_concatenate, (other._detections, other._objects, other._pairs))
            self._add(list(other._invalid), list(other._invalid.values()), *tables)

    def compute(self) -> dict[str, Any]:
        """Return the metric as JSON-ready values.

        Keys: `map`, the average precision (AP) averaged over IoU thresholds 0.50, 0.55 ... 0.95 and classes; `map_50`
        and `map_75`, at one IoU threshold; `map_small`, `map_medium`, `map_large`, of objects up to 32 x 32 pixels, up
        to 96 x 96, and above; `mar_1`, `mar_10`, `mar_100`, the average recall (AR) with so many detections per image
        and class; `mar_small`, `mar_medium`, `mar_large`; `threshold` and `f1`, all classes pooled; `num_samples`;
        `num_objects` (crowd regions apart); `num_invalid` (predictions with a NaN or infinity); `per_class` {name:
        {map, map_50, mar_100, objects, threshold, f1}}.

        `threshold` is such that the detections with `score > threshold` have the best F1 at IoU 0.5 (of several such,
        the highest), matched as COCO does it: greedily, by descending score; what falls on a crowd region does not
        count, nor does an inverted box. It is None without any true positive.

        A class without objects has no AP, AR or F1: they are None and left out of the means. So is a mean over no
        class, such as `map_small` without small objects.

        Raises:
            DataError: no sample was counted.
        """
        if not len(self):
            raise DataError("no sample was evaluated, so there is no metric; is the split empty?")
        ranks = _ranks(list(self._invalid))
        classes = len(self.label_names)
        detections, objects, pairs = (
            _by_image(_concatenate(kept), ranks) for kept in (self._detections, self._objects, self._pairs)
        )
        near, near_hits, near_ignored = _match(detections, objects, pairs)
        number = np.full(len(detections["image"]), -1)
        number[near] = np.arange(len(near))

        # NaN is what no ground truth defines.
        precision = np.full((classes, len(AREAS), len(IOU_THRESHOLDS), len(RECALL_THRESHOLDS)), np.nan)
        recall = np.full((classes, len(AREAS), len(IOU_THRESHOLDS)), np.nan)
        recall_of_best = np.full((classes, len(MAX_DETECTIONS), len(IOU_THRESHOLDS)), np.nan)
        positives = np.bincount(objects["label"][~objects["crowd"]], minlength=classes).tolist()
        ranked = []
        for index, (own, sought) in enumerate(
            zip(*(_by_class(rows, classes) for rows in (detections, objects)), strict=True)
        ):
            order = np.argsort(-detections["score"][own], kind="stable")
            place, own = _places(detections["image"][own])[order], own[order]
            matched = number[own] >= 0
            ignored = np.repeat(_outside(detections["area"][own])[:, None], len(IOU_THRESHOLDS), axis=1)
            ignored[..., matched] = near_ignored[..., number[own[matched]]]
            hits = np.zeros(ignored.shape, bool)
            hits[..., matched] = near_hits[..., number[own[matched]]]
            ranked.append((detections["score"][own], hits[0, 0], ~ignored[0, 0]))
            totals = (~objects["crowd"][sought] & ~_outside(objects["area"][sought])).sum(axis=1).tolist()
            for area, total in enumerate(totals):
                if total:
                    precision[index, area] = _precision(hits[area], ~ignored[area], total)
                    recall[index, area] = hits[area].sum(axis=1) / total
            if totals[0]:
                best = [hits[0][:, place < most] for most in MAX_DETECTIONS]
                recall_of_best[index] = [kept.sum(axis=1) / totals[0] for kept in best]

        result: dict[str, Any] = {
            "map": _mean(precision[:, 0]),
            "map_50": _mean(precision[:, 0, 0]),
            "map_75": _mean(precision[:, 0, 5]),
        }
        sizes = list(AREAS)[1:]
        result |= {f"map_{size}": _mean(precision[:, area]) for area, size in enumerate(sizes, 1)}
        result |= {f"mar_{most}": _mean(recall_of_best[:, column]) for column, most in enumerate(MAX_DETECTIONS)}
        result |= {f"mar_{size}": _mean(recall[:, area]) for area, size in enumerate(sizes, 1)}
        pooled = [np.concatenate(columns) for columns in zip(*ranked, strict=True)]
        threshold, f1 = _best_f1(*pooled, sum(positives))
        result |= {"threshold": threshold, "f1": f1, "num_samples": len(self), "num_objects": sum(positives)}
        result["num_invalid"] = sum(self._invalid.values())
        result["per_class"] = {}
        for index, name in enumerate(self.label_names):
            threshold, f1 = _best_f1(*ranked[index], positives[index])
            result["per_class"][name] = {
                "map": _mean(precision[index, 0]),
                "map_50": _mean(precision[index, 0, 0]),
                "mar_100": _mean(recall[index, 0]),
                "objects": positives[index],
                "threshold": threshold,
                "f1": f1,
            }
        return result

    def __len__(self) -> int:
        return len(self._invalid)

    def _best_detections(self, predictions: Sequence[Mapping[str, Any]]) -> tuple[Rows, list[int]]:
        """The detections that can count, by image, class and descending score; and the invalid ones of each image."""
        rows = {
            "label": _column(predictions, "labels", np.int64),
            "score": _column(predictions, "scores", np.float32),
        }
        rows |= _masks(predictions, "masks") if self.masks else _boxes(predictions, "boxes", np.float32)
        rows["image"] = self._checked_images(rows, [len(entry["scores"]) for entry in predictions], "predictions")
        valid = np.isfinite(rows["score"])
        if not self.masks:
            valid &= np.isfinite(rows["box"]).all(axis=1)
        invalid = np.bincount(rows["image"][~valid], minlength=len(predictions)).tolist()
        rows = _take(rows, valid)
        rows = _take(rows, np.lexsort((-rows["score"], rows["label"], rows["image"])))
        group = rows["image"].astype(np.int64) * len(self.label_names) + rows["label"]
        rows = _take(rows, _places(group) < MAX_DETECTIONS[-1])
        rows["area"] = rows.pop("pixels") if self.masks else _xywh(rows["box"])[:, 2:].prod(axis=1)
        return rows, invalid

    def _ground_truth(self, references: Sequence[Mapping[str, Any]]) -> Rows:
        lengths = [len(entry.get("category", ())) for entry in references]
        references = [
            {"area": np.full(length, np.nan), "iscrowd": np.zeros(length, bool), **entry}
            for length, entry in zip(lengths, references, strict=True)
        ]
        rows = {
            "label": _column(references, "category", np.int64),
            "area": _column(references, "area", np.float64),
            "crowd": _column(references, "iscrowd", np.int64).astype(bool),
        }
        rows |= _masks(references, "segmentation") if self.masks else _boxes(references, "bbox", np.float64)
        rows["image"] = self._checked_images(rows, lengths, "references")
        if not self.masks and not np.isfinite(rows["box"]).all():
            raise DataError("references hold a box with a NaN or an infinity.")
        own = rows.pop("pixels") if self.masks else rows["box"][:, 2] * rows["box"][:, 3]
        rows["area"] = np.where(np.isnan(rows["area"]), own, rows["area"])
        return rows

    def _checked_images(self, rows: Rows, lengths: Sequence[int], name: str) -> np.ndarray:
        """The place in the batch of each row's image, if the columns fit each other and the label names."""
        if any(len(column) != sum(lengths) for column in rows.values()):
            raise DataError(f"{name} hold boxes, classes and the like of different numbers.")
        outside = (rows["label"] < 0) | (rows["label"] >= len(self.label_names))
        if outside.any():
            wrong = rows["label"][outside][0]
            raise DataError(f"{name} hold class id {wrong}, outside 0 ... {len(self.label_names) - 1}.")
        rows["label"] = rows["label"].astype(np.int32)
        return np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)

    def _add(
        self, ids: Sequence[Hashable], invalid: Sequence[int], detections: Rows, objects: Rows, pairs: Rows
    ) -> None:
        """Keep what belongs to new ids; `image` of the rows is a place in `ids`."""
        places = np.full(len(ids), -1, np.int32)
        for position, sample_id in enumerate(ids):
            if sample_id not in self._invalid:
                places[position] = len(self._invalid)
                self._invalid[sample_id] = invalid[position]
        for kept, rows in ((self._detections, detections), (self._objects, objects), (self._pairs, pairs)):
            rows = {**rows, "image": places[rows["image"]]}
            kept.append(_take(rows, rows["image"] >= 0))


def _column(entries: Sequence[Mapping[str, Any]], name: str, dtype: type, width: int | None = None) -> np.ndarray:
    """One column of all images' entries, of the dtype or a wider one of its kind; (rows,) or (rows, width)."""
    if any(name not in entry for entry in entries):
        raise DataError(f"the entry of each image needs {name!r}.")
    arrays = [to_numpy(entry[name]) for entry in entries]
    arrays = [array for array in arrays if array.size]
    shape = (-1,) if width is None else (-1, width)
    if any(array.ndim != len(shape) or array.shape[1:] != shape[1:] for array in arrays):
        raise DataError(f"{name} of each image must have the shape {'(n,)' if width is None else f'(n, {width})'}.")
    column = np.concatenate(arrays) if arrays else np.empty((0, *shape[1:]), dtype)
    if dtype is np.int64:
        if column.dtype.kind not in "iub":
            raise DataError(f"{name} must be integers, not {column.dtype}.")
        return column.astype(np.int64)
    # None becomes NaN.
    column = column.astype(np.float64) if column.dtype.kind not in "f" else column
    return column.astype(np.result_type(column, dtype), copy=False)


def _boxes(entries: Sequence[Mapping[str, Any]], name: str, dtype: type) -> Rows:
    return {"box": _column(entries, name, dtype, width=4)}


def _masks(entries: Sequence[Mapping[str, Any]], name: str) -> Rows:
    """The masks of all images' entries: `mask`, run lengths (rows,), `size` (rows, 2) and `pixels`, areas (rows,)."""
    if any(name not in entry for entry in entries):
        raise DataError(f"the entry of each image needs {name!r}.")
    rles = [rle for entry in entries for rle in entry[name]]
    rows = {
        "mask": np.empty(len(rles), object),
        "size": np.empty((len(rles), 2), np.int32),
        "pixels": np.empty(len(rles)),
    }
    for index, rle in enumerate(rles):
        try:
            (height, width), counts = map(int, rle["size"]), rle["counts"]
            counts = counts if isinstance(counts, bytes) else counts.encode()
            runs = mask_api.RLE(counts.decode(), height, width).__getstate__()[3]
        except (LookupError, TypeError, ValueError, AttributeError, RuntimeError):
            runs = None
        # The IoU of masks whose runs do not fill the image would never end.
        if runs is None or sum(runs) != height * width:
            raise DataError(f"{name} hold a mask that is no compressed RLE of COCO: {str(rle)[:80]}.")
        rows["mask"][index], rows["size"][index], rows["pixels"][index] = counts, (height, width), sum(runs[1::2])
    return rows


def _check_sizes(detections: Rows, objects: Rows) -> None:
    """DataError unless the masks of an image have one size."""
    image, size = (np.concatenate([detections[name], objects[name]]) for name in ("image", "size"))
    _, first, inverse = np.unique(image, return_index=True, return_inverse=True)
    wrong = np.flatnonzero((size != size[first][inverse]).any(axis=1))
    if len(wrong):
        sizes = [tuple(size[index].tolist()) for index in (first[inverse][wrong[0]], wrong[0])]
        raise DataError(f"masks of one image have different sizes (height, width): {sizes[0]} and {sizes[1]}.")


def _ious(detections: Rows, found: slice, objects: Rows, sought: slice) -> np.ndarray:
    """IoU (detections, objects) of some detections and objects of one image, 0 between classes; of crowds as COCO's."""
    labels, wanted, crowd = detections["label"][found], objects["label"][sought], objects["crowd"][sought]
    if "mask" not in detections:
        # A call takes longer than most of what it does.
        iou = mask.iou(_xywh(detections["box"][found]), objects["box"][sought], crowd)
        return iou * (labels[:, None] == wanted)
    iou = np.zeros((len(labels), len(wanted)))
    first, second = (
        [{"size": size, "counts": counts} for size, counts in zip(rows["size"][part], rows["mask"][part], strict=True)]
        for rows, part in ((detections, found), (objects, sought))
    )
    for label in np.intersect1d(labels, wanted):
        rows, columns = np.flatnonzero(labels == label), np.flatnonzero(wanted == label)
        own = mask.iou([first[row] for row in rows], [second[column] for column in columns], crowd[columns])
        iou[np.ix_(rows, columns)] = own
    return iou


def _places(groups: np.ndarray) -> np.ndarray:
    """The place of each row in its group, from the sorted groups of the rows (n,)."""
    return np.arange(len(groups)) - np.searchsorted(groups, groups)


def _take(rows: Rows, index: np.ndarray) -> Rows:
    return {name: column[index] for name, column in rows.items()}


def _concatenate(parts: Sequence[Rows]) -> Rows:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _ranks(ids: Sequence[Hashable]) -> np.ndarray:
    """The place of each id in sorted order, (ids,); ids that do not compare, by what they look like."""
    try:
        order = sorted(range(len(ids)), key=ids.__getitem__)
    except TypeError:
        order = sorted(range(len(ids)), key=lambda index: repr(ids[index]))
    ranks = np.empty(len(ids), np.int64)
    ranks[order] = np.arange(len(ids))
    return ranks


def _by_image(rows: Rows, ranks: np.ndarray) -> Rows:
    """The rows by the rank of their image, then by descending score, if there are scores, then as they were."""
    rows = {**rows, "image": ranks[rows["image"]]}
    return _take(rows, np.lexsort((-rows["score"], rows["image"]) if "score" in rows else (rows["image"],)))


def _by_class(rows: Rows, classes: int) -> list[np.ndarray]:
    """The places of the rows of each class, in their order."""
    order = np.argsort(rows["label"], kind="stable")
    return np.split(order, np.searchsorted(rows["label"][order], np.arange(1, classes)))


def _bounds(images: np.ndarray, *columns: np.ndarray) -> np.ndarray:
    """Where each image begins and ends in each of some sorted columns, (images, 2 for each column)."""
    sides = [np.searchsorted(column, images, side) for column in columns for side in ("left", "right")]
    return np.stack(sides, axis=1)


def _pairs(detections: Rows, objects: Rows) -> tuple[np.ndarray, Rows]:
    """What can match: detections and objects of a class whose IoU reaches the lowest threshold; rows by image.

    Returns:
        of each detection, its number among those of its image that have a pair, or -1; and the pairs.
    """
    images = np.intersect1d(detections["image"], objects["image"])
    rows, numbers, ious = [np.empty(0, np.int64)], [np.empty(0, np.int32)], [np.empty(0)]
    for first, last, top, end in _bounds(images, detections["image"], objects["image"]).tolist():
        iou = _ious(detections, slice(first, last), objects, slice(top, end))
        found, sought = np.nonzero(iou >= IOU_THRESHOLDS[0])
        rows.append(first + found)
        numbers.append(sought.astype(np.int32))
        ious.append(iou[found, sought])
    paired = np.concatenate(rows)
    own = np.unique(paired)
    near = np.full(len(detections["image"]), -1, np.int32)
    near[own] = _places(detections["image"][own])
    pairs = {"image": detections["image"][paired], "near": near[paired]}
    return near, {**pairs, "object": np.concatenate(numbers), "iou": np.concatenate(ious)}


def _match(detections: Rows, objects: Rows, pairs: Rows) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """COCO's greedy matching; rows by image, detections of an image by descending score.

    Returns:
        the places (n,) of the detections that have a pair. And of these, whether each is a true positive, and whether
        it does not count, being on a crowd region or, it or its object, of another size; both (areas, IoU thresholds,
        n).
    """
    near = np.flatnonzero(detections["near"] >= 0)
    cells = _bounds(np.unique(pairs["image"]), detections["image"][near], objects["image"], pairs["image"])
    matches = [np.empty((2, len(AREAS), len(IOU_THRESHOLDS), 0), bool)]
    for start in range(0, len(cells), IMAGES_AT_ONCE):
        found, sought, ious = [], [], []
        for first, last, top, end, low, high in cells[start : start + IMAGES_AT_ONCE].tolist():
            # Classes are kept apart by an IoU of 0 between them: an image at a time takes far fewer calls than a class.
            iou = np.zeros((last - first, end - top))
            iou[pairs["near"][low:high], pairs["object"][low:high]] = pairs["iou"][low:high]
            ious.append([iou[detections["near"][near[first:last]]]])
            found.append([{"id": 1}] * (last - first))
            truth = zip(objects["area"][top:end].tolist(), objects["crowd"][top:end].tolist(), strict=True)
            sought.append([{"id": 1, "area": area, "iscrowd": flag, "ignore": flag} for area, flag in truth])
        matches.append(_evaluate(found, sought, ious))
    matched, ignored = np.concatenate(matches, axis=-1)
    outside = _outside(detections["area"][near])[:, None]
    return near, matched & ~ignored, np.where(matched, ignored, outside)


def _evaluate(
    found: list[list[dict[str, Any]]], sought: list[list[dict[str, Any]]], ious: list[list[np.ndarray]]
) -> np.ndarray:
    """The evaluator's answer on the detections and objects of some images, none of them empty.

    Annotations need an id, where 0 would mean no match; otherwise ids do not matter. Nor do scores, if the order is
    that of descending scores, since it is kept.

    Args:
        found: one annotation per detection of each image.
        sought: one annotation per object of each image.
        ious: of each image, one array (detections, objects).

    Returns:
        what is matched, and what is matched to something that does not count: (2, areas, IoU thresholds, detections).
    """
    stores = []
    for cells in (sought, found):
        store = evaluator.Dataset()
        store.load_tuple((len(cells), [(index, 0, annotations) for index, annotations in enumerate(cells)]))
        stores.append(store)
    sizes = [len(annotations) for annotations in found]
    # Not through the package's COCOeval: that wants a dict for each box of the split, which takes most of the time.
    evaluations = evaluator.COCOevalEvaluateImages(
        list(AREAS.values()), max(sizes), IOU_THRESHOLDS, ious, *stores, list(range(len(found))), [0], True
    )
    result = np.empty((2, len(AREAS), len(IOU_THRESHOLDS), sum(sizes)), bool)
    # Areas are outside images, and in the flat state of each, IoU thresholds outside detections.
    ends = np.cumsum(sizes).tolist()
    for index, evaluation in enumerate(evaluations):
        area, image = divmod(index, len(sizes))
        matches, _, _, _, ignored, _ = evaluation.__getstate__()
        flags = np.frombuffer(bytes(matches) + bytes(ignored), bool).reshape(2, len(IOU_THRESHOLDS), -1)
        result[:, area, :, ends[image] - sizes[image] : ends[image]] = flags
    return result


def _xywh(boxes: np.ndarray) -> np.ndarray:
    """Boxes (n, 4) from xyxy, in float64."""
    boxes = boxes.astype(np.float64)
    boxes[:, 2:] -= boxes[:, :2]
    return boxes


def _outside(areas: np.ndarray) -> np.ndarray:
    """Whether each area (n,) is outside each of AREAS, (areas, n)."""
    low, high = np.array(list(AREAS.values())).T[..., None]
    return (areas < low) | (areas > high)


def _precision(hits: np.ndarray, counted: np.ndarray, positives: int) -> np.ndarray:
    """Interpolated precision (IoU thresholds, recall thresholds) of detections by descending score.

    Args:
        hits: the true positives, (IoU thresholds, detections).
        counted: the true and false positives, of the same shape.
        positives: the number of objects.
    """
    # Precision is highest at a hit, and recall rises there alone.
    rising = np.flatnonzero(hits.any(axis=0))
    true = hits[:, rising].cumsum(axis=1)
    precision = true / np.maximum(counted.cumsum(axis=1)[:, rising], 1)
    # The best precision at this recall or a higher one, and 0 at recalls that are not reached.
    best = np.zeros((len(hits), len(rising) + 1))
    best[:, :-1] = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    reached = [np.searchsorted(row, RECALL_THRESHOLDS) for row in true / positives]
    return np.take_along_axis(best, np.stack(reached), axis=1)


def _mean(values: np.ndarray) -> float | None:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else None


def _best_f1(
    scores: np.ndarray, hits: np.ndarray, counted: np.ndarray, positives: int
) -> tuple[float | None, float | None]:
    """The highest threshold with the best F1, and that F1.

    Args:
        scores: of detections in any order, (n,).
        hits: the true positives (n,).
        counted: the true and false positives (n,).
        positives: the number of objects.
    """
    if positives == 0:
        return None, None
    if not hits.any():
        return None, 0.0
    order = np.argsort(-scores)
    ranked = scores[order].astype(np.float64)
    true, claimed = np.cumsum(hits[order]), np.cumsum(counted[order])
    # A threshold keeps all detections of a score or none.
    ends = np.append(np.flatnonzero(ranked[1:] != ranked[:-1]), len(ranked) - 1)
    f1 = 2 * true[ends] / (claimed[ends] + positives)
    best = ends[f1.argmax()]
    kept = float(ranked[best])
    dropped = float(ranked[best + 1]) if best + 1 < len(ranked) else (0.0 if kept > 0 else kept - 1)
    return _between(dropped, kept), float(f1.max())


def _between(dropped: float, kept: float) -> float:
    """A short number t near the middle with kept > t and not dropped > t, in float64 and in float32."""
    for digits in range(2, 10):
        middle = round((dropped + kept) / 2, digits)
        if all(dropped <= value < kept for value in (middle, float(np.float32(middle)))):
            return middle
    return dropped
