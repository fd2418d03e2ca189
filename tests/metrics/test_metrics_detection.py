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
from cv_hf.metrics import DetectionAccumulator, DetectionMetric, SingleLabelAccumulator

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
