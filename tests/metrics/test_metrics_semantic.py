"""Semantic metrics against a loop over the pixels and scikit-learn."""

from __future__ import annotations

import json
import pickle

import datasets
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score, confusion_matrix, f1_score, jaccard_score

from cv_hf.errors import DataError
from cv_hf.metrics import SemanticAccumulator, SemanticMetric, SingleLabelAccumulator, semantic

FEW = settings(max_examples=40, deadline=None)


def names(classes):
    return [f"class {index}" for index in range(classes)]


def count(predictions, references, classes, ids=None, ignore_index=255, batch=2):
    accumulator = SemanticAccumulator(names(classes), ignore_index)
    ids = range(len(references)) if ids is None else ids
    for start in range(0, len(references), batch):
        part = slice(start, start + batch)
        accumulator.update(predictions[part], references[part], ids[part])
    return accumulator


def counted_by_loop(predictions, references, classes, ignore_index):
    """Of each class the pixels that are rightly predicted, predicted and true; of valid pixels alone."""
    right, predicted, true = ([0] * classes for _ in range(3))
    for prediction, reference in zip(predictions, references, strict=True):
        for one, other in zip(prediction.ravel().tolist(), reference.ravel().tolist(), strict=True):
            if other == ignore_index:
                continue
            true[other] += 1
            if 0 <= one < classes:
                predicted[one] += 1
                right[one] += one == other
    return right, predicted, true


def check_against_a_loop(predictions, references, classes, ignore_index, result=None):
    result = result or count(predictions, references, classes, ignore_index=ignore_index).compute()
    right, predicted, true = counted_by_loop(predictions, references, classes, ignore_index)
    scores = {"iou": [], "dice": [], "accuracy": []}
    for values, hits, claimed, own in zip(result["per_class"].values(), right, predicted, true, strict=True):
        expected = {
            "iou": hits / (claimed + own - hits) if claimed + own else None,
            "dice": 2 * hits / (claimed + own) if claimed + own else None,
            "accuracy": hits / own if own else None,
        }
        assert values == {**expected, "pixels": own}
        for name, value in expected.items():
            scores[name] += [] if value is None else [value]
    for key, name in (("mean_iou", "iou"), ("dice", "dice"), ("mean_accuracy", "accuracy")):
        assert result[key] == (pytest.approx(np.mean(scores[name]), abs=1e-12) if scores[name] else None)
    assert result["pixel_accuracy"] == (pytest.approx(sum(right) / sum(true)) if sum(true) else None)
    assert result["num_pixels"] == sum(true)
    assert result["num_samples"] == len(references)
    assert np.sum(result["confusion_matrix"]) == sum(true) - result["num_invalid"] == sum(predicted)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    return result


def random_case(rng, images, classes, ignore_index=255, outside=0.0, used=None):
    """Maps of several sizes and blocks of a class, with ignored pixels; predictions with noise of all classes."""
    predictions, references = [], []
    for _ in range(images):
        height, width = rng.integers(1, 6, 2)
        reference = rng.integers(0, used or classes, (height, width)).repeat(3, 0).repeat(2, 1)
        prediction = np.where(rng.random(reference.shape) < 0.6, reference, rng.integers(0, classes, reference.shape))
        prediction[rng.random(reference.shape) < outside] = rng.choice([-1, classes, 1000])
        if ignore_index is not None:
            reference[rng.random(reference.shape) < 0.2] = ignore_index
        predictions.append(prediction)
        references.append(reference)
    return predictions, references


@st.composite
def cases(draw):
    classes = draw(st.integers(1, 5))
    ignore_index = draw(st.sampled_from([255, -1, None, 0, classes, 1000]))
    case = random_case(
        np.random.default_rng(draw(st.integers(0, 2**32))),
        draw(st.integers(1, 6)),
        classes,
        ignore_index,
        draw(st.sampled_from([0, 0.2])),
        draw(st.integers(1, classes)),
    )
    return *case, classes, ignore_index


@FEW
@given(cases())
def test_equals_a_loop_over_the_pixels(case):
    check_against_a_loop(*case)


@FEW
@given(st.integers(0, 2**32), st.integers(2, 6))
def test_equals_scikit_learn(seed, classes):
    predictions, references = random_case(np.random.default_rng(seed), 5, classes)
    result = count(predictions, references, classes).compute()
    prediction, reference = (np.concatenate([one.ravel() for one in maps]) for maps in (predictions, references))
    prediction, reference = prediction[reference != 255], reference[reference != 255]
    assert result["confusion_matrix"] == confusion_matrix(reference, prediction, labels=range(classes)).tolist()
    assert result["mean_iou"] == pytest.approx(jaccard_score(reference, prediction, average="macro"))
    assert result["dice"] == pytest.approx(f1_score(reference, prediction, average="macro"))
    assert result["pixel_accuracy"] == pytest.approx((reference == prediction).mean())
    if set(prediction) <= set(reference):
        assert result["mean_accuracy"] == pytest.approx(balanced_accuracy_score(reference, prediction))
    occurs = np.union1d(prediction, reference)
    ious = jaccard_score(reference, prediction, average=None, labels=occurs)
    assert [result["per_class"][f"class {index}"]["iou"] for index in occurs] == pytest.approx(ious.tolist())


def test_worked_by_hand():
    """Three classes: 2 of 3 pixels of class 0 right; 2 of 2 of class 1, which got another one; class 2 nowhere."""
    prediction, reference = np.array([[0, 0, 1], [1, 1, 0]]), np.array([[0, 0, 0], [1, 1, 255]])
    result = count([prediction], [reference], 3).compute()
    assert result["per_class"] == {
        "class 0": {"iou": 2 / 3, "dice": 4 / 5, "accuracy": 2 / 3, "pixels": 3},
        "class 1": {"iou": 2 / 3, "dice": 4 / 5, "accuracy": 1, "pixels": 2},
        "class 2": {"iou": None, "dice": None, "accuracy": None, "pixels": 0},
    }
    assert result["mean_iou"] == pytest.approx(2 / 3)
    assert result["mean_accuracy"] == pytest.approx(5 / 6)
    assert result["pixel_accuracy"] == 4 / 5
    assert result["confusion_matrix"] == [[2, 1, 0], [0, 2, 0], [0, 0, 0]]
    assert list(result) == [
        *("mean_iou", "dice", "pixel_accuracy", "mean_accuracy", "num_samples", "num_pixels", "num_invalid"),
        *("per_class", "confusion_matrix"),
    ]


@pytest.mark.parametrize("ignore_index", [0, 255])
def test_predictions_of_class_0_are_wrong_where_the_truth_is_another(ignore_index):
    result = count([np.zeros((2, 2), int)], [np.array([[1, 1], [1, ignore_index]])], 2, None, ignore_index).compute()
    assert result["per_class"]["class 1"]["accuracy"] == 0
    assert result["per_class"]["class 0"]["iou"] == 0
    assert result["pixel_accuracy"] == result["mean_iou"] == 0
    assert result["num_pixels"] == 3


def test_a_prediction_that_is_no_class_is_wrong():
    result = count([np.array([[0, 255, -7, 1]])], [np.array([[0, 0, 1, 255]])], 2).compute()
    assert result["per_class"]["class 0"] == {"iou": 1 / 2, "dice": 2 / 3, "accuracy": 1 / 2, "pixels": 2}
    assert result["per_class"]["class 1"]["iou"] == 0
    assert result["pixel_accuracy"] == 1 / 3
    assert result["num_invalid"] == 2
    assert result["confusion_matrix"] == [[1, 0], [0, 0]]


def test_no_valid_pixel_leaves_nothing_to_average():
    result = count([np.zeros((2, 2), int)], [np.full((2, 2), 255)], 2).compute()
    assert all(result[name] is None for name in ("mean_iou", "dice", "pixel_accuracy", "mean_accuracy"))
    assert result["num_pixels"] == 0
    assert result["num_samples"] == 1


@pytest.mark.parametrize("dtype", ["u1", "i1", "<u2", ">u2", "i2", ">i4", "u4", "i8", ">i8", "u8", "?"])
def test_takes_any_integers(dtype):
    predictions, references = random_case(np.random.default_rng(1), 4, 2, ignore_index=None)
    expected = check_against_a_loop(predictions, references, 2, None)
    cast = [[one.astype(dtype) for one in maps] for maps in (predictions, references)]
    assert count(*cast, 2, ignore_index=None).compute() == expected
    assert count(predictions, cast[1], 2, ignore_index=None).compute() == expected
    turned = [[np.asfortranarray(one)[::-1] for one in maps] for maps in cast]
    assert count(*turned, 2, ignore_index=None).compute() == expected


def test_takes_tensors_and_lists():
    predictions, references = random_case(np.random.default_rng(2), 4, 3)
    expected = count(predictions, references, 3).compute()
    tensors = [torch.tensor(one) for one in predictions]
    assert count(tensors, [one.tolist() for one in references], 3).compute() == expected
    batch = np.stack([references[0]] * 3)
    batched = SemanticAccumulator(names(3))
    batched.update(torch.tensor(batch), torch.tensor(batch, dtype=torch.uint8), torch.arange(3))
    assert len(batched) == 3


@pytest.mark.parametrize("classes", [127, 128, 255, 256, 257])
def test_class_ids_up_to_the_end_of_a_type(classes):
    rng = np.random.default_rng(3)
    most = min(classes, 256)
    reference, prediction = (rng.integers(0, most, (40, 40)).astype(np.uint8) for _ in range(2))
    reference[0, 0] = prediction[0, 0] = most - 1
    check_against_a_loop([prediction], [reference], classes, -1)


def test_counting_a_few_pixels_at_a_time_changes_nothing(monkeypatch):
    case = random_case(np.random.default_rng(4), 4, 3)
    expected = count(*case, 3).compute()
    for pixels in (1, 7, 36):
        monkeypatch.setattr(semantic, "PIXELS_AT_ONCE", pixels)
        assert count(*case, 3).compute() == expected


def test_a_map_without_pixels():
    assert count([np.zeros((0, 4), int)], [np.zeros((0, 4), int)], 2).compute()["num_pixels"] == 0


@pytest.mark.parametrize(
    ("prediction", "reference", "message"),
    [
        (np.zeros((2, 2), int), np.full((2, 2), 2), "references hold class id 2, outside 0 ... 1"),
        (np.zeros((2, 2), int), np.array([[255, -1], [0, 0]]), "references hold class id -1, outside"),
        (np.zeros((2, 3), int), np.zeros((3, 2), int), r"shape \(2, 3\) for a reference of shape \(3, 2\)"),
        (np.zeros((2, 2, 1), int), np.zeros((2, 2, 1), int), r"must be \(height, width\)"),
        (np.zeros((2, 2)), np.zeros((2, 2), int), "predictions must be integer class ids, not float64"),
        (np.zeros((2, 2), int), np.zeros((2, 2)), "references must be integer class ids, not float64"),
    ],
)
def test_inputs_that_do_not_fit(prediction, reference, message):
    accumulator = SemanticAccumulator(names(2))
    with pytest.raises(DataError, match=message):
        accumulator.update([prediction], [reference], [0])
    assert len(accumulator) == 0


def test_without_an_ignored_value_every_reference_pixel_needs_a_class():
    with pytest.raises(DataError, match="class id 255, outside 0"):
        count([np.zeros((1, 2), int)], [np.array([[0, 255]])], 2, ignore_index=None)


def test_numbers_of_entries_must_agree():
    with pytest.raises(DataError, match="2 sample ids for 1 predictions and 1 samples"):
        SemanticAccumulator(names(2)).update([np.zeros((1, 1), int)], [np.zeros((1, 1), int)], [0, 1])


def test_no_sample_is_an_error():
    with pytest.raises(DataError, match="no sample"):
        SemanticAccumulator(names(2)).compute()


class TestMerging:
    @pytest.mark.parametrize("processes", [1, 2, 3])
    @pytest.mark.parametrize("samples", [1, 20, 400])
    def test_padded_shards_in_any_order_give_the_same(self, samples, processes):
        predictions, references = random_case(np.random.default_rng(5), samples, 3)
        expected = check_against_a_loop(predictions, references, 3, 255)
        # Padded as distributed samplers do it: to equal shards of whole batches, by samples from the start.
        padded = np.resize(np.arange(samples), -(-samples // (4 * processes)) * 4 * processes)
        for first in range(processes):
            shards = []
            for process in np.roll(range(processes), first):
                own = padded[process::processes].tolist()
                shard = count([predictions[i] for i in own], [references[i] for i in own], 3, own, batch=4)
                shards.append(pickle.loads(pickle.dumps(shard)))
            for other in shards[1:]:
                shards[0].merge(other)
            assert len(shards[0]) == samples
            assert shards[0].compute() == expected

    def test_an_id_counts_once(self):
        right, wrong, reference = np.zeros((2, 2), int), np.ones((2, 2), int), np.zeros((2, 2), int)
        accumulator = count([right, wrong], [reference] * 2, 2, ["a", "a"])
        accumulator.update([wrong], [reference], ["a"])
        assert accumulator.compute()["pixel_accuracy"] == 1
        accumulator.merge(count([wrong], [reference], 2, ["a"]))
        assert accumulator.compute()["pixel_accuracy"] == 1
        assert len(accumulator) == 1

    def test_samples_that_cannot_be_taken_away_are_an_error(self):
        maps = [np.zeros((1, 1), int)] * 100
        one, other = count(maps, maps, 2), count(maps, maps, 2)
        expected = one.compute()
        with pytest.raises(DataError, match=r"both counted sample \d+"):
            one.merge(other)
        assert one.compute() == expected

    def test_with_an_empty_one(self):
        full, empty = count([np.zeros((2, 2), int)], [np.zeros((2, 2), int)], 2), SemanticAccumulator(names(2))
        expected = full.compute()
        full.merge(empty)
        empty.merge(full)
        assert full.compute() == empty.compute() == expected

    def test_only_with_its_like(self):
        with pytest.raises(DataError, match="cannot be merged"):
            SemanticAccumulator(names(2)).merge(SingleLabelAccumulator(names(2)))
        with pytest.raises(DataError, match="different label_names"):
            SemanticAccumulator(names(2)).merge(SemanticAccumulator(names(3)))
        with pytest.raises(DataError, match="different ignore_index"):
            SemanticAccumulator(names(2)).merge(SemanticAccumulator(names(2), 0))


def test_keeps_no_more_than_ids_of_many_images():
    rng = np.random.default_rng(6)
    sizes = []
    for images in (100, 300):
        maps = [rng.integers(0, 20, (30, 30)) for _ in range(images)]
        sizes.append(len(pickle.dumps(count(maps, maps[::-1], 20))))
    assert sizes[1] - sizes[0] < 10 * 200


def test_is_an_evaluate_metric():
    predictions, references = random_case(np.random.default_rng(7), 6, 3)
    expected = count(predictions, references, 3).compute()
    assert SemanticMetric(names(3)).compute(predictions=predictions, references=references) == expected
    one_by_one, halves = SemanticMetric(names(3)), [SemanticMetric(names(3)) for _ in range(2)]
    for prediction, reference in zip(predictions, references, strict=True):
        one_by_one.add(prediction=prediction, reference=reference)
    assert one_by_one.compute() == expected
    for half, start, end in ((halves[0], 0, 4), (halves[1], 3, 6)):
        part = slice(start, end)
        half.add_batch(predictions=predictions[part], references=references[part], sample_ids=range(start, end))
    halves[1].merge(pickle.loads(pickle.dumps(halves[0])))
    assert halves[1].compute() == expected
    assert SemanticMetric(names(3), ignore_index=-1).accumulator.ignore_index == -1


def test_features_are_those_of_the_inputs():
    metric = SemanticMetric(names(2))
    example = {"predictions": [[0, 1]], "references": [[0, 255]]}
    table = datasets.Dataset.from_list([example], features=metric.features)
    assert table[0] == example
    assert metric.compute(predictions=table["predictions"], references=table["references"])["num_pixels"] == 1
