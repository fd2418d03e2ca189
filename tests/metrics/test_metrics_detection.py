"""Detection metrics against pycocotools and plain loops."""

from __future__ import annotations

import contextlib
import io
import json
import math
import pickle

import datasets
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from cv_hf.errors import DataError
from cv_hf.metrics import DetectionAccumulator, DetectionMetric, SingleLabelAccumulator, detection

FEW = settings(max_examples=40, deadline=None)
STATS = [
    *("map", "map_50", "map_75", "map_small", "map_medium", "map_large"),
    *("mar_1", "mar_10", "mar_100", "mar_small", "mar_medium", "mar_large"),
]


def names(classes):
    return [f"class {index}" for index in range(classes)]


def image(boxes=(), scores=(), labels=()):
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "scores": torch.tensor(scores, dtype=torch.float32),
        "labels": torch.tensor(labels, dtype=torch.int64),
    }


def truth(bbox=(), category=None, area=None, iscrowd=None):
    """Objects in xywh, by default of class 0 and not crowd."""
    bbox = [list(map(float, box)) for box in bbox]
    return {
        "bbox": bbox,
        "category": [0] * len(bbox) if category is None else list(category),
        "area": [box[2] * box[3] for box in bbox] if area is None else list(area),
        "iscrowd": [False] * len(bbox) if iscrowd is None else list(iscrowd),
    }


def count(predictions, references, classes, ids=None, batch=3):
    accumulator = DetectionAccumulator(names(classes))
    ids = range(len(references)) if ids is None else ids
    for start in range(0, len(references), batch):
        part = slice(start, start + batch)
        accumulator.update(predictions[part], references[part], ids[part])
    return accumulator


def evaluated(predictions, references, classes):
    """pycocotools' COCOeval, evaluated and accumulated, of images numbered as they come."""
    annotations, results = [], []
    for number, objects in enumerate(references):
        for bbox, category, area, crowd in zip(*objects.values(), strict=True):
            entry = {"id": len(annotations) + 1, "image_id": number, "category_id": category}
            annotations.append({**entry, "bbox": bbox, "area": area, "iscrowd": int(crowd)})
    for number, detections in enumerate(predictions):
        boxes, scores, labels = (np.asarray(detections[name]) for name in ("boxes", "scores", "labels"))
        for box, score, label in zip(boxes.astype(float).tolist(), scores.astype(float), labels.tolist(), strict=True):
            bbox = [box[0], box[1], box[2] - box[0], box[3] - box[1]]
            results.append({"image_id": number, "category_id": label, "score": float(score), "bbox": bbox})
    with contextlib.redirect_stdout(io.StringIO()):
        ground_truth = COCO()
        ground_truth.dataset = {
            "images": [{"id": number} for number in range(len(references))],
            "categories": [{"id": index} for index in range(classes)],
            "annotations": annotations,
        }
        ground_truth.createIndex()
        if results:
            detected = ground_truth.loadRes(results)
        else:
            # loadRes fails on an empty list.
            detected = COCO()
            detected.dataset = {**ground_truth.dataset, "annotations": []}
            detected.createIndex()
        evaluation = COCOeval(ground_truth, detected, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


def check_against_pycocotools(predictions, references, classes, result=None):
    result = count(predictions, references, classes).compute() if result is None else result
    evaluation = evaluated(predictions, references, classes)

    def equal(ours, theirs):
        assert (-1 if ours is None else ours) == pytest.approx(theirs, abs=1e-6)

    for name, value in zip(STATS, evaluation.stats, strict=True):
        equal(result[name], value)
    precision, recall = evaluation.eval["precision"], evaluation.eval["recall"]
    for index, scores in enumerate(result["per_class"].values()):
        equal(scores["map"], precision[:, :, index, 0, -1].mean())
        equal(scores["map_50"], precision[0, :, index, 0, -1].mean())
        equal(scores["mar_100"], recall[:, index, 0, -1].mean())
        assert scores["objects"] == sum(
            label == index and not crowd
            for objects in references
            for label, crowd in zip(objects["category"], objects["iscrowd"], strict=True)
        )
    assert result["num_samples"] == len(references)
    assert result["num_objects"] == sum(scores["objects"] for scores in result["per_class"].values())
    return result


def random_case(rng, images, classes, most=12, detections=30, few_scores=False, scale=200.0, crowd=0.1, areas=0.3):
    """Detections around the objects and elsewhere, with images without either, crowd regions and areas of masks."""
    predictions, references = [], []
    for _ in range(images):
        objects = int(rng.integers(0, most + 1)) * int(rng.random() < 0.8)
        corner = rng.random((objects, 2)) * scale
        bbox = np.concatenate([corner, rng.random((objects, 2)) ** 2 * scale], axis=1).round(int(rng.integers(0, 3)))
        category = rng.integers(0, classes, objects)
        area = bbox[:, 2] * bbox[:, 3] * np.where(rng.random(objects) < areas, rng.random(objects), 1)
        references.append(
            truth(bbox.tolist(), category.tolist(), area.tolist(), (rng.random(objects) < crowd).tolist())
        )
        number = int(rng.integers(0, detections + 1)) * int(rng.random() < 0.9)
        boxes = rng.random((number, 4)) * scale
        boxes[:, 2:] = boxes[:, :2] + rng.random((number, 2)) * scale * (rng.random((number, 1)) > 0.1)
        labels = rng.integers(0, classes, number)
        if objects:
            near = np.flatnonzero(rng.random(number) < 0.7)
            picked = rng.integers(0, objects, len(near))
            xyxy = np.concatenate([bbox[:, :2], bbox[:, :2] + bbox[:, 2:]], axis=1)
            shift = rng.normal(size=(len(near), 4)) * rng.choice([0, 1, 10], (len(near), 1)) * scale / 200
            boxes[near] = xyxy[picked] + shift.round(int(rng.integers(0, 3)))
            labels[near] = np.where(rng.random(len(near)) < 0.9, category[picked], labels[near])
        scores = rng.integers(1, 6, number) / 5 if few_scores else rng.random(number)
        predictions.append(image(boxes.tolist(), scores.tolist(), labels.tolist()))
    return predictions, references


@st.composite
def cases(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    classes = draw(st.integers(1, 5))
    case = random_case(
        rng,
        draw(st.integers(1, 8)),
        classes,
        most=draw(st.sampled_from([0, 1, 4, 12])),
        detections=draw(st.sampled_from([0, 1, 10, 30])),
        few_scores=draw(st.booleans()),
        scale=draw(st.sampled_from([20.0, 200.0, 1000.0])),
        crowd=draw(st.sampled_from([0, 0.3, 1])),
    )
    return *case, classes


@FEW
@given(cases())
def test_equals_pycocotools(case):
    check_against_pycocotools(*case)


@pytest.mark.parametrize("few_scores", [False, True], ids=["scores", "ties"])
def test_equals_pycocotools_with_more_than_100_detections_per_class(few_scores):
    rng = np.random.default_rng(7)
    case = random_case(rng, 6, 2, detections=450, few_scores=few_scores)
    assert max(np.bincount(entry["labels"]).max() for entry in case[0] if len(entry["labels"])) > 100
    check_against_pycocotools(*case, 2)


def test_matching_a_few_images_at_a_time_changes_nothing(monkeypatch):
    case = random_case(np.random.default_rng(13), 20, 3)
    expected = count(*case, 3).compute()
    for images in (1, 7, 20):
        monkeypatch.setattr(detection, "IMAGES_AT_ONCE", images)
        assert count(*case, 3).compute() == expected


SQUARE = (10.0, 10.0, 20.0, 20.0)


def test_the_101st_detection_of_a_class_does_not_count():
    wrong = (100.0, 100.0, 5.0, 5.0)
    for others, expected in ((99, 1 / 100), (100, 0)):
        boxes, scores = xyxy(*[wrong] * others, SQUARE, SQUARE), [0.9] * others + [0.1, 0.05]
        case = [image(boxes, scores, [0] * (others + 1) + [1])], [truth([SQUARE, SQUARE], [0, 1])], 2
        result = check_against_pycocotools(*case)
        assert result["per_class"]["class 0"]["map_50"] == pytest.approx(expected)
        assert result["per_class"]["class 1"]["map_50"] == 1


def xyxy(*boxes):
    return [[x, y, x + width, y + height] for x, y, width, height in boxes]


@pytest.mark.parametrize(
    ("predictions", "references", "classes"),
    [
        ([image(), image()], [truth([SQUARE]), truth()], 2),
        ([image(xyxy(SQUARE), [0.5], [0]), image()], [truth(), truth()], 2),
        ([image()], [truth()], 1),
        ([image(xyxy(SQUARE), [0.5], [0])], [truth([SQUARE], [1])], 2),
        ([image(xyxy(SQUARE, SQUARE), [0.5, 0.5], [0, 0])], [truth([SQUARE, SQUARE])], 1),
        ([image(xyxy(SQUARE, SQUARE), [0.5, 0.4], [0, 0])], [truth([SQUARE], iscrowd=[True])], 1),
        ([image([[10, 10, 10, 10], [5, 9, 5, 40]], [0.5, 0.4], [0, 0])], [truth([SQUARE])], 1),
        ([image([[30, 30, 10, 10]], [0.5], [0])], [truth([SQUARE])], 1),
        ([image(xyxy(SQUARE), [0.5], [0])], [truth([SQUARE], area=[5000.0])], 1),
        ([image(xyxy(SQUARE), [0.5], [0])], [truth([(0, 0, 0, 0), SQUARE])], 1),
        ([image(xyxy((0, 0, 32, 32)), [0.5], [0])], [truth([(0, 0, 32, 32)])], 1),
        ([image(xyxy(SQUARE), [0.0], [0])], [truth([SQUARE])], 1),
    ],
    ids=[
        *("no prediction", "no ground truth", "nothing", "other class", "equal boxes", "crowd only", "no size"),
        *("inverted", "area of a mask", "object without size", "border of small and medium", "score 0"),
    ],
)
def test_degenerate_cases_equal_pycocotools(predictions, references, classes):
    result = check_against_pycocotools(predictions, references, classes)
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_no_prediction_is_zero_and_no_ground_truth_is_none():
    unseen = count([image()], [truth([SQUARE])], 2).compute()
    assert unseen["map"] == unseen["mar_100"] == unseen["f1"] == unseen["per_class"]["class 0"]["map"] == 0
    assert unseen["map_large"] is None
    assert unseen["threshold"] is None
    nothing = {"map": None, "map_50": None, "mar_100": None, "objects": 0, "threshold": None, "f1": None}
    assert unseen["per_class"]["class 1"] == nothing
    empty = count([image(xyxy(SQUARE), [0.5], [0])], [truth()], 1).compute()
    assert all(empty[name] is None for name in [*STATS, "threshold", "f1"])
    assert empty["num_samples"] == 1
    assert empty["num_objects"] == 0


def test_keys():
    result = count([image()], [truth()], 1).compute()
    assert list(result) == [*STATS, "threshold", "f1", "num_samples", "num_objects", "num_invalid", "per_class"]


def test_equals_pycocotools_on_float64():
    rng = np.random.default_rng(3)
    predictions, references = random_case(rng, 8, 2)
    for entry in predictions:
        for name in ("boxes", "scores"):
            exact = entry[name].double().numpy()
            entry[name] = exact + rng.random(exact.shape) * 1e-9
    check_against_pycocotools(predictions, references, 2)


def test_precisions_can_be_mixed():
    predictions, references = random_case(np.random.default_rng(4), 6, 2)
    expected = count(predictions, references, 2).compute()
    mixed = [
        {name: column.double().numpy() if name != "labels" and index % 2 else column for name, column in entry.items()}
        for index, entry in enumerate(predictions)
    ]
    assert count(mixed, references, 2, batch=1).compute() == expected


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_takes_half_precision_tensors_arrays_and_lists(dtype):
    predictions, references = random_case(np.random.default_rng(5), 6, 2)
    half = [
        {name: column.to(dtype) if name != "labels" else column for name, column in entry.items()}
        for entry in predictions
    ]
    lists = [{name: column.float().tolist() for name, column in entry.items()} for entry in half]
    for entry in lists:
        entry["labels"] = list(map(int, entry["labels"]))
    arrays = [{name: np.array(column) for name, column in entry.items()} for entry in references]
    expected = count(lists, references, 2).compute()
    assert count(half, arrays, 2).compute() == expected
    on_graph = [{name: value.requires_grad_(name != "labels") for name, value in entry.items()} for entry in half]
    assert count(on_graph, references, 2).compute() == expected


def test_area_and_crowd_may_be_missing():
    predictions, references = random_case(np.random.default_rng(6), 6, 2, crowd=0, areas=0)
    expected = count(predictions, references, 2).compute()
    bare = [{name: entry[name] for name in ("bbox", "category")} for entry in references]
    assert count(predictions, bare, 2).compute() == expected
    unknown = [{**entry, "area": [None] * len(entry["area"])} for entry in references]
    assert count(predictions, unknown, 2).compute() == expected


@pytest.mark.parametrize(
    "broken",
    [
        image([[math.nan, 0, 1, 1]], [0.9], [0]),
        image([[0, 0, math.inf, 1]], [0.9], [0]),
        image([[0, 0, 1, 1]], [math.nan], [0]),
        image([[0, 0, 1, 1]], [-math.inf], [1]),
    ],
)
def test_invalid_predictions_are_counted_and_dropped(broken):
    predictions, references = random_case(np.random.default_rng(8), 5, 2)
    expected = count(predictions, references, 2).compute()
    predictions[2] = {name: torch.cat([column, broken[name]]) for name, column in predictions[2].items()}
    for accumulator in (count(predictions, references, 2), DetectionAccumulator(names(2))):
        if not len(accumulator):
            for _ in range(2):
                accumulator.merge(count(predictions, references, 2))
        result = accumulator.compute()
        assert result.pop("num_invalid") == 1
        assert result == {name: value for name, value in expected.items() if name != "num_invalid"}


def test_all_predictions_invalid():
    broken = image([[math.nan] * 4] * 3, [math.nan] * 3, [0, 0, 1])
    result = count([broken], [truth([SQUARE])], 2).compute()
    assert result["num_invalid"] == 3
    assert result["map"] == 0


class TestMerging:
    @pytest.mark.parametrize("few_scores", [False, True], ids=["scores", "ties"])
    @pytest.mark.parametrize("ids", [lambda i: i, lambda i: f"{i:03}.jpg", lambda i: (i % 2, i // 2)])
    def test_three_processes_in_any_order_give_the_same(self, ids, few_scores):
        samples = 20
        predictions, references = random_case(np.random.default_rng(9), samples, 3, few_scores=few_scores)
        expected = count(predictions, references, 3, [ids(i) for i in range(samples)]).compute()
        if ids(0) == 0:
            check_against_pycocotools(predictions, references, 3, expected)
        # Padded as a distributed sampler does it: to equal shards, by samples from the start.
        padded = np.resize(np.arange(samples), 21)
        for order in ([0, 1, 2], [2, 0, 1], [1, 2, 0]):
            shards = []
            for process in order:
                own = padded[process::3][:: -1 if process else 1]
                shard = count(
                    [predictions[i] for i in own], [references[i] for i in own], 3, [ids(int(i)) for i in own], batch=4
                )
                shards.append(pickle.loads(pickle.dumps(shard)))
            for other in shards[1:]:
                shards[0].merge(other)
            assert len(shards[0]) == samples
            assert shards[0].compute() == expected

    def test_ids_that_do_not_compare_have_an_order_too(self):
        predictions, references = random_case(np.random.default_rng(10), 6, 2, few_scores=True)
        ids = [1, "a", None, 2, "b", 3]
        expected = count(predictions, references, 2, ids).compute()
        assert count(predictions[::-1], references[::-1], 2, ids[::-1]).compute() == expected

    def test_the_first_record_of_an_id_is_kept(self):
        right, wrong = image(xyxy(SQUARE), [0.5], [0]), image(xyxy(SQUARE), [0.9], [1])
        accumulator = count([right, wrong], [truth([SQUARE])] * 2, 2, ["a", "a"])
        accumulator.merge(count([wrong], [truth([SQUARE])], 2, ["a"]))
        assert len(accumulator) == 1
        assert accumulator.compute()["map"] == accumulator.compute()["f1"] == 1

    def test_with_an_empty_one(self):
        full, empty = count([image()], [truth([SQUARE])], 1), DetectionAccumulator(names(1))
        expected = full.compute()
        full.merge(empty)
        empty.merge(full)
        assert full.compute() == empty.compute() == expected

    def test_only_with_its_like(self):
        with pytest.raises(DataError, match="cannot be merged"):
            DetectionAccumulator(names(2)).merge(SingleLabelAccumulator(names(2)))
        with pytest.raises(DataError, match="different label_names"):
            DetectionAccumulator(names(2)).merge(DetectionAccumulator(names(3)))


def overlap(box, bbox, crowd):
    left, top = max(box[0], bbox[0]), max(box[1], bbox[1])
    right, bottom = min(box[2], bbox[0] + bbox[2]), min(box[3], bbox[1] + bbox[3])
    shared = max(right - left, 0) * max(bottom - top, 0)
    own = (box[2] - box[0]) * (box[3] - box[1])
    return shared / (own if crowd else own + bbox[2] * bbox[3] - shared) if shared else 0


def counts_above(threshold, predictions, references, label):
    """True and false positives of a class, of the detections that `score > threshold` keeps, matched in plain loops."""
    hits = misses = 0
    for detections, objects in zip(predictions, references, strict=True):
        keep = (detections["scores"] > threshold) & (detections["labels"] == label)
        boxes, scores = detections["boxes"][keep].double().tolist(), detections["scores"][keep].tolist()
        pairs = zip(objects["bbox"], objects["category"], objects["iscrowd"], strict=True)
        pairs = [(bbox, crowd) for bbox, category, crowd in pairs if category == label]
        taken = set()
        for position in sorted(range(len(boxes)), key=lambda index, scores=scores: -scores[index]):
            found, best = None, 0.5
            for number, (bbox, crowd) in enumerate(pairs):
                iou = overlap(boxes[position], bbox, crowd)
                if not crowd and number not in taken and iou >= best:
                    found, best = number, iou
            if found is not None:
                taken.add(found)
                hits += 1
            # COCO leaves out what is on a crowd region, and boxes of a negative area.
            elif not any(crowd and overlap(boxes[position], bbox, True) >= 0.5 for bbox, crowd in pairs):
                left, top, right, bottom = boxes[position]
                misses += (right - left) * (bottom - top) >= 0
    return hits, misses


def best_by_brute_force(predictions, references, labels):
    """The best F1, and the detections (scores) that the highest threshold with it keeps."""
    scores = np.concatenate([entry["scores"][np.isin(entry["labels"], labels)] for entry in predictions])
    objects = sum(
        category in labels and not crowd
        for entry in references
        for category, crowd in zip(entry["category"], entry["iscrowd"], strict=True)
    )
    best, kept = 0, None
    for lowest in np.unique(scores)[::-1]:
        below = float(np.nextafter(lowest, np.float32(-1)))
        counts = [counts_above(below, predictions, references, label) for label in labels]
        hits, misses = np.sum(counts, axis=0)
        f1 = 2 * hits / max(hits + misses + objects, 1)
        if f1 > best:
            best, kept = f1, scores[scores >= lowest]
    return (None if not objects else best), kept, torch.tensor(scores)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32), st.booleans(), st.sampled_from([0, 0.3, 1]), st.integers(1, 3))
def test_threshold_is_the_best_by_brute_force(seed, few_scores, crowd, classes):
    case = random_case(np.random.default_rng(seed), 3, classes, 6, 12, few_scores, crowd=crowd)
    result = count(*case, classes).compute()
    rows = [(result, list(range(classes)))]
    rows += [(scores, [index]) for index, scores in enumerate(result["per_class"].values())]
    for values, labels in rows:
        f1, kept, scores = best_by_brute_force(*case, labels)
        assert values["f1"] == (None if f1 is None else pytest.approx(f1, abs=1e-12))
        assert (values["threshold"] is None) == (kept is None)
        if kept is not None:
            threshold = values["threshold"]
            assert sorted(scores[scores > threshold].tolist()) == sorted(kept.tolist())
            assert sorted(scores.double()[scores.double() > threshold].tolist()) == sorted(kept.tolist())


@pytest.mark.parametrize(
    ("scores", "threshold"),
    [
        ([0.9, 0.6], 0.75),
        ([0.9], 0.45),
        ([0.5, 0.123456], 0.31),
        ([3e-12, 2e-12], np.float32(2e-12)),
        ([1e-20], 0),
        ([0.0], -0.5),
        ([1.0, 0.999], 0.9995),
    ],
)
def test_threshold_is_a_short_number_in_the_middle(scores, threshold):
    """The first detection is right, the second wrong."""
    boxes = xyxy(SQUARE, (100, 100, 5, 5))[: len(scores)]
    result = count([image(boxes, [float(score) for score in scores], [0] * len(scores))], [truth([SQUARE])], 1)
    assert result.compute()["threshold"] == float(threshold)
    assert result.compute()["f1"] == 1


def test_of_equal_f1_the_highest_threshold_counts():
    """One right of two objects: F1 2/3; with two wrong ones and one more right: 4/6."""
    far = [(100.0 * i, 200.0, 5.0, 5.0) for i in range(1, 3)]
    other = (50.0, 50.0, 20.0, 20.0)
    boxes = xyxy(SQUARE, *far, other)
    result = count([image(boxes, [0.8, 0.6, 0.4, 0.2], [0] * 4)], [truth([SQUARE, other])], 1).compute()
    assert result["f1"] == pytest.approx(2 / 3)
    assert result["threshold"] == 0.7


def test_threshold_is_between_neighbouring_floats():
    upper = torch.tensor(0.7)
    lower = torch.nextafter(upper, torch.tensor(0.0))
    boxes = xyxy(SQUARE, (100, 100, 5, 5))
    threshold = count([image(boxes, [upper, lower], [0, 0])], [truth([SQUARE])], 1).compute()["threshold"]
    assert upper > threshold
    assert not lower > threshold


@pytest.mark.parametrize(
    ("prediction", "reference", "message"),
    [
        (image(xyxy(SQUARE), [0.5], [2]), truth(), "predictions hold class id 2, outside 0 ... 1"),
        (image(), truth([SQUARE], [-1]), "references hold class id -1, outside 0 ... 1"),
        (image(xyxy(SQUARE, SQUARE), [0.5], [0]), truth(), "predictions hold .* different numbers"),
        (image(), truth([SQUARE], [0, 0]), "references hold .* different numbers"),
        (image(), truth([(0, 0, math.nan, 1)]), "references hold a box with a NaN"),
        ({**image(), "boxes": torch.zeros(1, 5)}, truth(), r"boxes .* shape \(n, 4\)"),
        ({**image(), "scores": torch.zeros(1, 5)}, truth(), r"scores .* shape \(n,\)"),
        ({**image(), "labels": torch.zeros(1)}, truth(), "labels must be integers, not float32"),
        ({"scores": [], "boxes": []}, truth(), "needs 'labels'"),
        ({"labels": [], "boxes": []}, truth(), "needs 'scores'"),
        (image(), {"boxes": [], "labels": []}, "needs 'category'"),
    ],
)
def test_inputs_that_do_not_fit(prediction, reference, message):
    accumulator = DetectionAccumulator(names(2))
    with pytest.raises(DataError, match=message):
        accumulator.update([prediction], [reference], [0])
    assert len(accumulator) == 0


def test_numbers_of_entries_must_agree():
    with pytest.raises(DataError, match="2 sample ids for 1 predictions and 1 samples"):
        DetectionAccumulator(names(2)).update([image()], [truth()], [0, 1])


def test_no_sample_is_an_error():
    accumulator = DetectionAccumulator(names(2))
    accumulator.update([], [], [])
    with pytest.raises(DataError, match="no sample"):
        accumulator.compute()


def test_keeps_few_bytes_of_the_best_100_of_a_class():
    images, classes, detections = 100, 2, 1000
    predictions, references = random_case(np.random.default_rng(11), images, classes, most=5, detections=detections)
    kept = sum(int(np.minimum(np.bincount(entry["labels"], minlength=2), 100).sum()) for entry in predictions)
    assert kept < sum(len(entry["labels"]) for entry in predictions) / 2
    objects = sum(len(entry["category"]) for entry in references)
    accumulator = count(predictions, references, classes, batch=16)
    assert len(pickle.dumps(accumulator)) < 28 * kept + 49 * objects + 10 * images + 10_000


def test_is_an_evaluate_metric():
    predictions, references = random_case(np.random.default_rng(12), 6, 2)
    expected = count(predictions, references, 2).compute()
    assert DetectionMetric(names(2)).compute(predictions=predictions, references=references) == expected
    one_by_one, halves = DetectionMetric(names(2)), [DetectionMetric(names(2)) for _ in range(2)]
    for prediction, reference in zip(predictions, references, strict=True):
        one_by_one.add(prediction=prediction, reference=reference)
    assert one_by_one.compute() == expected
    for half, start, end in ((halves[0], 0, 4), (halves[1], 3, 6)):
        half.add_batch(
            predictions=predictions[start:end], references=references[start:end], sample_ids=range(start, end)
        )
    halves[1].merge(pickle.loads(pickle.dumps(halves[0])))
    assert halves[1].compute() == expected


def test_features_are_those_of_the_inputs():
    metric = DetectionMetric(names(2))
    example = {
        "predictions": {name: column.tolist() for name, column in image(xyxy(SQUARE), [0.5], [1]).items()},
        "references": truth([SQUARE]),
    }
    table = datasets.Dataset.from_list([example], features=metric.features)
    assert table[0] == example
    expected = count([image(xyxy(SQUARE), [0.5], [1])], [truth([SQUARE])], 2).compute()
    assert metric.compute(predictions=table["predictions"], references=table["references"]) == expected
