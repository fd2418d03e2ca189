"""Mask AP against pycocotools."""

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
from pycocotools import mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from cv_hf.errors import DataError
from cv_hf.metrics import DetectionAccumulator, DetectionMetric

FEW = settings(max_examples=40, deadline=None)
STATS = [
    *("map", "map_50", "map_75", "map_small", "map_medium", "map_large"),
    *("mar_1", "mar_10", "mar_100", "mar_small", "mar_medium", "mar_large"),
]


def names(classes):
    return [f"class {index}" for index in range(classes)]


def rle(pixels):
    return mask.encode(np.asfortranarray(np.asarray(pixels, np.uint8)))


def text(one):
    return {"size": list(one["size"]), "counts": one["counts"].decode()}


def area(top, left, height, width, size=(40, 50)):
    pixels = np.zeros(size, np.uint8)
    pixels[top : top + height, left : left + width] = 1
    return pixels


def image(masks=(), scores=(), labels=()):
    return {
        "masks": [rle(one) for one in masks],
        "scores": torch.tensor(scores, dtype=torch.float32),
        "labels": torch.tensor(labels, dtype=torch.int64),
    }


def truth(masks=(), category=None, area=None, iscrowd=None):
    """Objects, by default of class 0 and not crowd."""
    rles = [rle(one) for one in masks]
    return {
        "segmentation": [text(one) for one in rles],
        "category": [0] * len(rles) if category is None else list(category),
        "area": [float(mask.area(one)) for one in rles] if area is None else list(area),
        "iscrowd": [False] * len(rles) if iscrowd is None else list(iscrowd),
    }


def count(predictions, references, classes, ids=None, batch=3):
    accumulator = DetectionAccumulator(names(classes), masks=True)
    ids = range(len(references)) if ids is None else ids
    for start in range(0, len(references), batch):
        part = slice(start, start + batch)
        accumulator.update(predictions[part], references[part], ids[part])
    return accumulator


def evaluated(predictions, references, classes):
    """pycocotools' COCOeval, evaluated and accumulated, of images numbered as they come; masks bring their size."""
    annotations, results = [], []
    for number, objects in enumerate(references):
        for segmentation, category, size, crowd in zip(*objects.values(), strict=True):
            entry = {"id": len(annotations) + 1, "image_id": number, "category_id": category}
            annotations.append({**entry, "segmentation": segmentation, "area": size, "iscrowd": int(crowd)})
    for number, detections in enumerate(predictions):
        for one, score, label in zip(*detections.values(), strict=True):
            entry = {"image_id": number, "category_id": int(label), "score": float(score)}
            results.append({**entry, "segmentation": dict(one)})
    with contextlib.redirect_stdout(io.StringIO()):
        ground_truth = COCO()
        ground_truth.dataset = {
            "images": [{"id": number, "height": 1, "width": 1} for number in range(len(references))],
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
        evaluation = COCOeval(ground_truth, detected, "segm")
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
    return result


def random_case(rng, images, classes, most=5, detections=15, few_scores=False, size=60, crowd=0.1, areas=0.3):
    """Masks with ragged edges, of all sizes and empty ones; detections that shift them, or that are elsewhere."""

    def shape(height, width):
        box = area(*rng.integers(0, size, 2), *rng.integers(0, size, 2), (height, width))
        return box * (rng.random((height, width)) < 0.9)

    predictions, references = [], []
    for _ in range(images):
        height, width = rng.integers(size // 2, size * 2, 2).tolist()
        objects = [shape(height, width) for _ in range(int(rng.integers(0, most + 1)) * int(rng.random() < 0.8))]
        category = rng.integers(0, classes, len(objects))
        sizes = [float(one.sum()) * (rng.random() if rng.random() < areas else 1) for one in objects]
        crowded = (rng.random(len(objects)) < crowd).tolist()
        references.append(truth(objects, category.tolist(), sizes, crowded))
        masks, labels = [], []
        for _ in range(int(rng.integers(0, detections + 1)) * int(rng.random() < 0.9)):
            label, one = int(rng.integers(classes)), shape(height, width)
            if objects and rng.random() < 0.7:
                picked = int(rng.integers(len(objects)))
                one = np.roll(objects[picked], int(rng.integers(0, 4)), int(rng.integers(2)))
                label = int(category[picked]) if rng.random() < 0.9 else label
            masks.append(one)
            labels.append(label)
        scores = rng.integers(1, 6, len(masks)) / 5 if few_scores else rng.random(len(masks))
        predictions.append(image(masks, scores.tolist(), labels))
    return predictions, references


@st.composite
def cases(draw):
    classes = draw(st.integers(1, 4))
    case = random_case(
        np.random.default_rng(draw(st.integers(0, 2**32))),
        draw(st.integers(1, 5)),
        classes,
        most=draw(st.sampled_from([0, 1, 5])),
        detections=draw(st.sampled_from([0, 1, 15])),
        few_scores=draw(st.booleans()),
        size=draw(st.sampled_from([4, 60, 120])),
        crowd=draw(st.sampled_from([0, 0.3, 1])),
    )
    return *case, classes


@FEW
@given(cases())
def test_equals_pycocotools(case):
    check_against_pycocotools(*case)


@pytest.mark.parametrize("few_scores", [False, True], ids=["scores", "ties"])
def test_equals_pycocotools_with_more_than_100_detections_per_class(few_scores):
    case = random_case(np.random.default_rng(7), 4, 2, detections=450, few_scores=few_scores, size=20)
    assert max(np.bincount(entry["labels"]).max() for entry in case[0] if len(entry["labels"])) > 100
    check_against_pycocotools(*case, 2)


SQUARE = area(10, 10, 20, 20)
EMPTY = area(0, 0, 0, 0)
RING = SQUARE - area(15, 15, 10, 10)


@pytest.mark.parametrize(
    ("predictions", "references", "classes"),
    [
        ([image(), image()], [truth([SQUARE]), truth()], 2),
        ([image([SQUARE], [0.5], [0]), image()], [truth(), truth()], 2),
        ([image()], [truth()], 1),
        ([image([SQUARE], [0.5], [0])], [truth([SQUARE], [1])], 2),
        ([image([SQUARE, SQUARE], [0.5, 0.5], [0, 0])], [truth([SQUARE, SQUARE])], 1),
        ([image([SQUARE, RING], [0.5, 0.4], [0, 0])], [truth([RING, SQUARE])], 1),
        ([image([SQUARE, area(12, 12, 8, 8)], [0.5, 0.4], [0, 0])], [truth([SQUARE], iscrowd=[True])], 1),
        ([image([EMPTY, EMPTY], [0.5, 0.4], [0, 0])], [truth([SQUARE, EMPTY])], 1),
        ([image([SQUARE], [0.5], [0])], [truth([SQUARE], area=[5000.0])], 1),
        ([image([area(0, 0, 32, 32)], [0.5], [0])], [truth([area(0, 0, 32, 32)])], 1),
        ([image([area(0, 0, 40, 50)], [0.5], [0])], [truth([area(0, 0, 40, 50)])], 1),
        ([image([SQUARE], [0.0], [0])], [truth([SQUARE])], 1),
    ],
    ids=[
        *("no prediction", "no ground truth", "nothing", "other class", "equal masks", "overlapping", "crowd only"),
        *("empty masks", "given area", "border of small and medium", "whole image", "score 0"),
    ],
)
def test_degenerate_cases_equal_pycocotools(predictions, references, classes):
    result = check_against_pycocotools(predictions, references, classes)
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_masks_not_boxes_are_compared():
    """A ring and a disc in it have almost one box, and no pixel together."""
    result = count([image([RING], [0.9], [0])], [truth([area(15, 15, 10, 10)])], 1).compute()
    assert result["map"] == 0
    assert count([image([RING], [0.9], [0])], [truth([RING])], 1).compute()["map"] == 1


def test_area_and_crowd_may_be_missing():
    predictions, references = random_case(np.random.default_rng(6), 6, 2, crowd=0, areas=0)
    expected = count(predictions, references, 2).compute()
    bare = [{name: entry[name] for name in ("segmentation", "category")} for entry in references]
    assert count(predictions, bare, 2).compute() == expected
    unknown = [{**entry, "area": [None] * len(entry["area"])} for entry in references]
    assert count(predictions, unknown, 2).compute() == expected


def test_takes_bytes_and_text():
    predictions, references = random_case(np.random.default_rng(5), 6, 2)
    expected = count(predictions, references, 2).compute()
    other = [{**entry, "masks": [text(one) for one in entry["masks"]]} for entry in predictions]
    truths = [
        {**entry, "segmentation": [{**one, "counts": one["counts"].encode()} for one in entry["segmentation"]]}
        for entry in references
    ]
    assert count(other, truths, 2).compute() == expected


def test_scores_that_are_no_number_are_counted_and_dropped():
    predictions, references = random_case(np.random.default_rng(8), 5, 2)
    expected = count(predictions, references, 2).compute()
    number = next(index for index, entry in enumerate(predictions) if entry["masks"])
    one = predictions[number]
    predictions[number] = {
        "masks": [*one["masks"], rle(np.ones(one["masks"][0]["size"]))],
        "scores": torch.cat([one["scores"], torch.tensor([math.nan])]),
        "labels": torch.cat([one["labels"], torch.tensor([0])]),
    }
    assert count(predictions, references, 2).compute() == {**expected, "num_invalid": 1}


@pytest.mark.parametrize("few_scores", [False, True], ids=["scores", "ties"])
def test_three_processes_in_any_order_give_the_same(few_scores):
    samples = 14
    predictions, references = random_case(np.random.default_rng(9), samples, 3, few_scores=few_scores)
    expected = count(predictions, references, 3).compute()
    check_against_pycocotools(predictions, references, 3, expected)
    padded = np.resize(np.arange(samples), 15)
    for order in ([0, 1, 2], [2, 0, 1], [1, 2, 0]):
        shards = []
        for process in order:
            own = padded[process::3][:: -1 if process else 1].tolist()
            shard = count([predictions[i] for i in own], [references[i] for i in own], 3, own, batch=4)
            shards.append(pickle.loads(pickle.dumps(shard)))
        for other in shards[1:]:
            shards[0].merge(other)
        assert len(shards[0]) == samples
        assert shards[0].compute() == expected


def test_masks_do_not_merge_with_boxes():
    with pytest.raises(DataError, match="different masks"):
        DetectionAccumulator(names(1)).merge(DetectionAccumulator(names(1), masks=True))


def broken(**changes):
    return {**image([SQUARE], [0.5], [0]), "masks": [{**rle(SQUARE), **changes}]}


@pytest.mark.parametrize(
    ("prediction", "reference", "message"),
    [
        (image([SQUARE.T], [0.5], [0]), truth([SQUARE]), r"different sizes .*: \(50, 40\) and \(40, 50\)"),
        (image([SQUARE, SQUARE.T], [0.5, 0.4], [0, 0]), truth(), r"different sizes .*: \(40, 50\) and \(50, 40\)"),
        (image(), truth([SQUARE, SQUARE[:-1]]), "different sizes"),
        (broken(size=[40, 51]), truth(), "masks hold a mask that is no compressed RLE"),
        # Its IoU with another would be computed for ever.
        (broken(size=[5, 7], counts=b"zzz"), truth([np.ones((5, 7))]), "no compressed RLE"),
        (broken(counts=b""), truth(), "no compressed RLE"),
        (broken(counts=[1, 2]), truth(), "no compressed RLE"),
        (broken(counts="~~~~"), truth(), "no compressed RLE"),
        (broken(counts=b"\xff"), truth(), "no compressed RLE"),
        ({**image([SQUARE], [0.5], [0]), "masks": [SQUARE]}, truth(), "no compressed RLE"),
        (image(), {**truth([SQUARE]), "segmentation": [[[1.0, 1.0, 5.0, 1.0, 5.0, 5.0]]]}, "segmentation hold"),
        (image([SQUARE], [0.5, 0.4], [0, 0]), truth(), "different numbers"),
        ({"scores": [], "labels": []}, truth(), "needs 'masks'"),
        (image(), {"bbox": [], "category": []}, "needs 'segmentation'"),
    ],
)
def test_inputs_that_do_not_fit(prediction, reference, message):
    accumulator = DetectionAccumulator(names(2), masks=True)
    with pytest.raises(DataError, match=message):
        accumulator.update([prediction], [reference], [0])
    assert len(accumulator) == 0


def test_keeps_no_masks():
    predictions, references = random_case(np.random.default_rng(11), 30, 2, size=120)
    kept = [one["counts"] for entry in predictions for one in entry["masks"]]
    kept += [one["counts"] for entry in references for one in entry["segmentation"]]
    accumulator = count(predictions, references, 2, batch=8)
    assert len(pickle.dumps(accumulator)) < 50 * len(kept) + 10_000 < sum(map(len, kept)) / 2


def test_is_an_evaluate_metric():
    predictions, references = random_case(np.random.default_rng(12), 6, 2)
    expected = count(predictions, references, 2).compute()
    assert DetectionMetric(names(2), masks=True).compute(predictions=predictions, references=references) == expected


def test_features_are_those_of_the_inputs():
    metric = DetectionMetric(names(2), masks=True)
    prediction = {"masks": [text(rle(SQUARE))], "scores": [0.5], "labels": [1]}
    table = datasets.Dataset.from_list(
        [{"predictions": prediction, "references": truth([SQUARE], [1])}], features=metric.features
    )
    assert table[0] == {"predictions": prediction, "references": truth([SQUARE], [1])}
    assert metric.compute(predictions=table["predictions"], references=table["references"])["map"] == 1
