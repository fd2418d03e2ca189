"""Classification metrics against scikit-learn and plain loops."""

from __future__ import annotations

import json
import math
import pickle
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from cv_hf.errors import DataError
from cv_hf.metrics import MultiLabelAccumulator, SingleLabelAccumulator

FEW = settings(max_examples=40, deadline=None)


def names(classes):
    return [f"class {index}" for index in range(classes)]


def single(scores, references, classes=None, ids=None):
    accumulator = SingleLabelAccumulator(names(classes or np.shape(scores)[1]))
    accumulator.update(scores, references, range(len(references)) if ids is None else ids)
    return accumulator


def multi(logits, references, ids=None):
    accumulator = MultiLabelAccumulator(names(np.shape(logits)[1]))
    accumulator.update(logits, references, range(len(references)) if ids is None else ids)
    return accumulator


@st.composite
def single_cases(draw):
    """Scores of few different values, so that ties are common, and classes that are often absent."""
    classes, samples = draw(st.integers(1, 12)), draw(st.integers(1, 30))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    present = rng.choice(classes, size=draw(st.integers(1, classes)), replace=False)
    scores = rng.integers(-2, 3, (samples, classes)) / draw(st.sampled_from([1, 2, 3]))
    return scores.astype(draw(st.sampled_from(["float16", "float32", "float64"]))), rng.choice(present, samples)


@st.composite
def multi_cases(draw):
    classes, samples = draw(st.integers(1, 9)), draw(st.integers(1, 30))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    if draw(st.booleans()):
        logits = rng.integers(-2, 3, (samples, classes)).astype(draw(st.sampled_from(["float16", "float32"])))
    else:
        logits = rng.normal(size=(samples, classes)).astype(np.float32)
    return logits, (rng.random((samples, classes)) < draw(st.sampled_from([0, 0.05, 0.3, 1]))).astype(int)


class TestSingleLabel:
    @pytest.mark.filterwarnings("ignore:A single label was found")
    @FEW
    @given(single_cases())
    def test_equals_scikit_learn(self, case):
        scores, references = case
        classes = scores.shape[1]
        predicted = [max(range(classes), key=lambda i, row=row: (row[i], -i)) for row in scores.tolist()]
        result = single(scores, references).compute()

        everything = {"labels": range(classes), "zero_division": 0}
        precision, recall, f1, support = sk.precision_recall_fscore_support(references, predicted, **everything)
        for index, values in enumerate(result["per_class"].values()):
            expected = (precision[index], recall[index], f1[index], support[index])
            assert tuple(values.values()) == pytest.approx(expected, abs=1e-12)
        assert list(result["per_class"]) == names(classes)
        assert list(result["per_class"]["class 0"]) == ["precision", "recall", "f1", "support"]

        macro = {"average": "macro", "zero_division": 0}
        assert result["accuracy"] == pytest.approx(sk.accuracy_score(references, predicted))
        assert result["f1_macro"] == pytest.approx(sk.f1_score(references, predicted, **macro))
        assert result["precision_macro"] == pytest.approx(sk.precision_score(references, predicted, **macro))
        assert result["recall_macro"] == pytest.approx(sk.recall_score(references, predicted, **macro))
        matrix = sk.confusion_matrix(references, predicted, labels=range(classes))
        assert result["confusion_matrix"] == matrix.tolist()
        assert result["num_samples"] == len(references)
        assert result["num_invalid"] == 0

    @FEW
    @given(single_cases())
    def test_top5_is_membership_in_the_stable_order(self, case):
        scores, references = case
        classes = scores.shape[1]
        result = single(scores, references).compute()
        if classes <= 5:
            assert "top5_accuracy" not in result
            return
        best = [sorted(range(classes), key=lambda i, row=row: (-row[i], i))[:5] for row in scores.tolist()]
        expected = np.mean([label in five for label, five in zip(references, best, strict=True)])
        assert result["top5_accuracy"] == pytest.approx(expected)

    def test_top5_equals_scikit_learn_without_ties(self):
        rng = np.random.default_rng(0)
        scores, references = rng.normal(size=(200, 20)), rng.integers(0, 20, 200)
        expected = sk.top_k_accuracy_score(references, scores, k=5, labels=range(20))
        assert single(scores, references).compute()["top5_accuracy"] == pytest.approx(expected)

    def test_absent_class_does_not_lower_the_mean_unless_predicted(self):
        perfect = single(np.eye(4)[[0, 1, 1]], [0, 1, 1]).compute()
        assert perfect["f1_macro"] == perfect["precision_macro"] == perfect["recall_macro"] == 1
        assert perfect["per_class"]["class 3"] == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 0}
        astray = single(np.eye(4)[[0, 1, 3]], [0, 1, 1]).compute()
        assert astray["f1_macro"] == pytest.approx((1 + 2 / 3 + 0) / 3)

    @pytest.mark.parametrize(
        ("scores", "references", "accuracy"),
        [
            ([[1.0, 0.0]], [0], 1.0),
            ([[0.3], [-2.0]], [0, 0], 1.0),
            (np.eye(3)[[1, 2, 0]], [0, 1, 2], 0.0),
            (np.eye(3)[[1, 1, 1]], [0, 1, 2], 1 / 3),
            ([[0.5, 0.5], [0.5, 0.5]], [0, 1], 0.5),
        ],
        ids=["one sample", "one label", "all wrong", "one class predicted", "ties"],
    )
    def test_degenerate(self, scores, references, accuracy):
        assert single(scores, references).compute()["accuracy"] == pytest.approx(accuracy)

    @pytest.mark.parametrize("references", [0, 6])
    @pytest.mark.parametrize(
        "scores", [[math.nan] * 7, [1.0] * 6 + [math.nan], [math.inf] + [0.0] * 6, [-math.inf] * 7]
    )
    def test_scores_without_a_softmax_are_wrong(self, scores, references):
        result = single([scores], [references]).compute()
        assert result["accuracy"] == result["top5_accuracy"] == result["f1_macro"] == 0
        assert result["num_invalid"] == 1
        assert np.sum(result["confusion_matrix"]) == 0
        assert result["per_class"][f"class {references}"]["support"] == 1

    def test_masked_out_class_is_just_last(self):
        scores = [[-math.inf, 1.0, 2.0]]
        assert single(scores, [2]).compute()["accuracy"] == 1
        assert single(scores, [0]).compute()["accuracy"] == 0
        assert single(scores, [2]).compute()["num_invalid"] == 0

    def test_class_ids_instead_of_scores(self):
        scores = np.random.default_rng(0).normal(size=(50, 8))
        references = np.random.default_rng(1).integers(0, 8, 50)
        from_scores = single(scores, references).compute()
        from_ids = single(scores.argmax(axis=1), references, classes=8).compute()
        from_scores.pop("top5_accuracy")
        assert from_ids == from_scores
        mixed = single(scores, references)
        mixed.merge(single(scores.argmax(axis=1), references, classes=8, ids=range(50, 100)))
        assert "top5_accuracy" not in mixed.compute()

    @pytest.mark.parametrize(
        ("scores", "references", "message"),
        [
            (np.eye(3), [0, 1, 3], "class id 3, outside 0 ... 2"),
            (np.eye(3), [0, -100, 1], "class id -100"),
            (np.eye(3), [0.0, 1.0, 2.0], "integer class ids"),
            (np.eye(3), np.eye(3, dtype=int), "integer class ids"),
            (np.ones((3, 4)), [0, 1, 2], r"\(3, 4\); the references and labels need \(3, 3\)"),
            (np.ones((2, 3)), [0, 1, 2], r"need \(3, 3\)"),
            (np.array([0, 1, 3]), [0, 1, 2], "predictions hold class id 3"),
            (np.array([0, 1]), [0, 1, 2], r"need \(3,\)"),
            (np.array([0.0, 1.0, 2.0]), [0, 1, 2], r"need \(3, 3\)"),
        ],
    )
    def test_inputs_that_do_not_fit(self, scores, references, message):
        accumulator = SingleLabelAccumulator(names(3))
        with pytest.raises(DataError, match=message):
            accumulator.update(scores, references, range(3))
        assert len(accumulator) == 0

    def test_keeps_no_scores(self):
        samples, classes, batch = 10_000, 1000, 500
        rng = np.random.default_rng(0)
        accumulator = SingleLabelAccumulator(names(classes))
        for start in range(0, samples, batch):
            scores = rng.random((batch, classes), dtype=np.float32)
            accumulator.update(scores, rng.integers(0, classes, batch), range(start, start + batch))
        assert len(accumulator) == samples
        assert len(pickle.dumps(accumulator)) < 20 * samples

    def test_large_label_sets_have_no_confusion_matrix(self):
        assert len(single([[0.0] * 1000], [0]).compute()["confusion_matrix"]) == 1000
        result = single([[0.0] * 21_841], [21_840]).compute()
        assert "confusion_matrix" not in result
        assert result["per_class"]["class 21840"]["support"] == 1


def sk_average_precision(references, logits):
    return [
        sk.average_precision_score(truth, scores) if truth.any() else None
        for truth, scores in zip(references.T, logits.T, strict=True)
    ]


class TestMultiLabel:
    @pytest.mark.filterwarnings("ignore:A single label was found")
    @FEW
    @given(multi_cases())
    def test_equals_scikit_learn(self, case):
        logits, references = case
        classes = logits.shape[1]
        result = multi(logits, references).compute()
        predicted = (torch.from_numpy(logits).float().sigmoid().numpy() > 0.5).astype(int)

        expected = sk_average_precision(references, logits)
        known = [value for value in expected if value is not None]
        assert [values["average_precision"] for values in result["per_class"].values()] == [
            value if value is None else pytest.approx(value) for value in expected
        ]
        if known:
            assert result["map"] == pytest.approx(np.mean(known))
            assert result["map_micro"] == pytest.approx(sk.average_precision_score(references.ravel(), logits.ravel()))
        else:
            assert result["map"] is None
            assert result["map_micro"] is None

        columns = list(zip(references.T, predicted.T, strict=True))
        for values, (truth, claim) in zip(result["per_class"].values(), columns, strict=True):
            assert values["precision"] == pytest.approx(sk.precision_score(truth, claim, zero_division=0))
            assert values["recall"] == pytest.approx(sk.recall_score(truth, claim, zero_division=0))
            assert values["f1"] == pytest.approx(sk.f1_score(truth, claim, zero_division=0))
            assert values["support"] == truth.sum()
        f1_of_occurring = [sk.f1_score(t, c, zero_division=0) for t, c in columns if t.any() or c.any()]
        assert result["f1_macro"] == pytest.approx(np.mean(f1_of_occurring) if f1_of_occurring else 0)
        micro = sk.f1_score(references.ravel(), predicted.ravel(), zero_division=0)
        assert result["f1_micro"] == pytest.approx(micro)
        assert result["subset_accuracy"] == pytest.approx(np.mean([*map(np.array_equal, references, predicted)]))
        assert result["num_samples"] == len(references)
        assert list(result["per_class"]) == names(classes)

    def test_equals_scikit_learns_own_averages_where_every_class_occurs(self):
        rng = np.random.default_rng(0)
        logits, references = rng.normal(size=(300, 5)).astype("f4"), rng.integers(0, 2, (300, 5))
        result = multi(logits, references).compute()
        assert result["map"] == pytest.approx(sk.average_precision_score(references, logits, average="macro"))
        assert result["map_micro"] == pytest.approx(sk.average_precision_score(references, logits, average="micro"))
        assert result["f1_macro"] == pytest.approx(sk.f1_score(references, logits > 0, average="macro"))
        assert result["f1_micro"] == pytest.approx(sk.f1_score(references, logits > 0, average="micro"))
        assert result["subset_accuracy"] == pytest.approx(sk.accuracy_score(references, logits > 0))

    def test_perfect_despite_a_class_without_positives(self):
        references = np.array([[1, 0, 0], [0, 1, 0], [1, 1, 0]])
        result = multi(references * 2.0 - 1, references).compute()
        assert result["map"] == result["map_micro"] == result["f1_macro"] == result["subset_accuracy"] == 1
        assert result["per_class"]["class 2"]["average_precision"] is None

    def test_saturated_logits_keep_their_order(self):
        """Their sigmoids are both 1 in float32; as a tie, average precision would be 1/2."""
        assert multi([[30.0], [40.0]], [[0], [1]]).compute()["map"] == 1

    def test_threshold_is_on_the_sigmoid_and_exclusive(self):
        accumulator = MultiLabelAccumulator(["a"], threshold=0.9)
        accumulator.update([[math.log(9) - 0.01], [math.log(9) + 0.01]], [[1], [1]], range(2))
        assert accumulator.compute()["per_class"]["a"]["recall"] == 0.5
        assert multi([[0.0]], [[1]]).compute()["per_class"]["class 0"]["recall"] == 0

    def test_nan_is_the_wrong_answer(self):
        references = np.array([[1, 0], [0, 1], [1, 1]])
        logits = np.where(references, 5.0, -5.0)
        logits[0] = math.nan
        result = multi(logits, references).compute()
        assert result["num_invalid"] == 1
        assert result["subset_accuracy"] == pytest.approx(2 / 3)
        assert result["per_class"]["class 0"]["recall"] == 0.5
        assert result["per_class"]["class 1"]["precision"] == pytest.approx(2 / 3)
        ranked = np.array([[-9.0, 9.0], *logits[1:].tolist()])
        assert result["map"] == pytest.approx(sk.average_precision_score(references, ranked))

    def test_infinite_logits_are_certain_answers(self):
        references = np.array([[1, 0], [0, 1]])
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            result = multi(np.where(references, math.inf, -math.inf), references).compute()
        assert result["map"] == result["f1_micro"] == 1
        assert result["num_invalid"] == 0

    @pytest.mark.parametrize(
        ("logits", "references", "message"),
        [
            (np.ones((2, 4)), np.ones((2, 3)), r"predictions have the shape \(2, 4\)"),
            (np.ones((2, 3)), np.ones((2, 4)), r"references have the shape \(2, 4\)"),
            (np.ones((2, 3)), [0, 2], r"references have the shape \(2,\)"),
            (np.ones((2, 3)), np.full((2, 3), 2), "multi-hot"),
            (np.ones((2, 3)), np.full((2, 3), math.nan), "multi-hot"),
        ],
    )
    def test_inputs_that_do_not_fit(self, logits, references, message):
        accumulator = MultiLabelAccumulator(names(3))
        with pytest.raises(DataError, match=message):
            accumulator.update(logits, references, range(2))
        assert len(accumulator) == 0

    def test_keeps_a_float_and_a_bit_per_class(self):
        samples, classes = 1000, 80
        rng = np.random.default_rng(0)
        accumulator = MultiLabelAccumulator(names(classes))
        for start in range(0, samples, 50):
            accumulator.update(
                rng.normal(size=(50, classes)), rng.integers(0, 2, (50, classes)), range(start, start + 50)
            )
        assert len(pickle.dumps(accumulator)) < samples * (4 * classes + classes / 8 + 10) + 5000


def single_batch(rng, samples):
    return rng.normal(size=(samples, 7)), rng.integers(0, 7, samples)


def multi_batch(rng, samples):
    return rng.integers(-3, 4, (samples, 7)) / 2, rng.integers(0, 2, (samples, 7))


@pytest.mark.parametrize(
    ("kind", "batch_of"),
    [(SingleLabelAccumulator, single_batch), (MultiLabelAccumulator, multi_batch)],
    ids=["single", "multi"],
)
class TestBoth:
    @pytest.mark.parametrize("samples", [1, 2, 29, 30])
    def test_one_two_or_three_processes_give_the_same(self, kind, batch_of, samples):
        predictions, references = batch_of(np.random.default_rng(samples), samples)
        results = []
        for processes in (1, 2, 3):
            # Padded as a distributed sampler does it: to equal shards, by samples from the start.
            padded = np.resize(np.arange(samples), math.ceil(samples / processes) * processes)
            shards = []
            for process in range(processes):
                shard = kind(names(7))
                for ids in np.array_split(padded[process::processes], 3):
                    shard.update(predictions[ids], references[ids], ids)
                shards.append(pickle.loads(pickle.dumps(shard)))
            for other in shards[1:]:
                shards[0].merge(other)
            results.append(shards[0].compute())
        assert results[0]["num_samples"] == samples
        assert results[0] == results[1] == results[2]

    def test_is_json_ready_with_plain_types(self, kind, batch_of):
        accumulator = kind(names(7))
        accumulator.update(*batch_of(np.random.default_rng(0), 9), range(9))
        result = accumulator.compute()
        assert json.loads(json.dumps(result, allow_nan=False)) == result
        assert type(result["num_samples"]) is int
        assert type(result["f1_macro"]) is float
        assert result == accumulator.compute()

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
    def test_takes_tensors(self, kind, batch_of, dtype):
        predictions, references = batch_of(np.random.default_rng(0), 9)
        predictions = torch.from_numpy(predictions).to(dtype)
        from_tensors, from_arrays = kind(names(7)), kind(names(7))
        from_tensors.update(predictions.requires_grad_(), torch.from_numpy(references), torch.arange(9))
        from_arrays.update(predictions.detach().float().numpy(), references.tolist(), range(9))
        assert from_tensors.compute() == from_arrays.compute()

    def test_no_sample_is_an_error(self, kind, batch_of):
        accumulator = kind(names(7))
        predictions, references = batch_of(np.random.default_rng(0), 3)
        accumulator.update(predictions[:0], references[:0], [])
        accumulator.update([], [], [])
        assert len(accumulator) == 0
        with pytest.raises(DataError, match="no sample"):
            accumulator.compute()

    def test_merges_only_its_like(self, kind, batch_of):
        other_kind = MultiLabelAccumulator if kind is SingleLabelAccumulator else SingleLabelAccumulator
        with pytest.raises(DataError, match="cannot be merged"):
            kind(names(7)).merge(other_kind(names(7)))
        with pytest.raises(DataError, match="different label_names"):
            kind(names(7)).merge(kind(names(7)[::-1]))

    @pytest.mark.parametrize("labels", [[], ["a", "a"]])
    def test_label_names_are_different(self, kind, batch_of, labels):
        with pytest.raises(DataError, match="all different"):
            kind(labels)


def test_thresholds_must_agree():
    with pytest.raises(DataError, match="different threshold"):
        MultiLabelAccumulator(["a"], 0.5).merge(MultiLabelAccumulator(["a"], 0.6))
