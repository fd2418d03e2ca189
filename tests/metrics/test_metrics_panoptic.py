"""Panoptic quality against hand-worked cases and loops over sets of pixels."""

from __future__ import annotations

import json
import pickle
from fractions import Fraction

import datasets
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import Mask2FormerImageProcessorPil
from transformers.models.mask2former.modeling_mask2former import Mask2FormerForUniversalSegmentationOutput

from cv_hf.errors import DataError
from cv_hf.metrics import PanopticAccumulator, PanopticMetric, SemanticAccumulator

FEW = settings(max_examples=60, deadline=None)


def names(classes):
    return [f"class {index}" for index in range(classes)]


def found(segmentation, **classes):
    """A prediction; `s3=0` says that segment 3 is of class 0."""
    infos = [{"id": int(name[1:]), "label_id": label, "score": 0.9} for name, label in classes.items()]
    return {"segmentation": np.array(segmentation), "segments_info": infos}


def truth(segmentation, crowd=(), **classes):
    infos = [
        {"id": int(name[1:]), "category_id": label, "iscrowd": int(name[1:]) in crowd}
        for name, label in classes.items()
    ]
    return {"segmentation": np.array(segmentation), "segments_info": infos}


def count(predictions, references, things, ids=None, batch=2):
    accumulator = PanopticAccumulator(names(len(things)), things)
    ids = range(len(references)) if ids is None else ids
    for start in range(0, len(references), batch):
        part = slice(start, start + batch)
        accumulator.update(predictions[part], references[part], ids[part])
    return accumulator


def pixels(entry):
    """The set of pixels of each segment id, void or not."""
    sets = {}
    for place, value in np.ndenumerate(np.asarray(entry["segmentation"])):
        sets.setdefault(int(value), set()).add(place)
    return sets


def counted_by_sets(predictions, references, classes):
    """Of each class its sum of IoUs, TP, FP, FN, as the paper and its reference implementation say it."""
    counts = [[Fraction(0), 0, 0, 0] for _ in range(classes)]
    for prediction, reference in zip(predictions, references, strict=True):
        ours, theirs = pixels(prediction), pixels(reference)
        void = theirs.get(0, set())
        taken = set()
        regions = []
        for info in reference["segments_info"]:
            target = theirs.get(info["id"], set())
            label = info["category_id"]
            if info["iscrowd"]:
                regions.append((label, target))
                continue
            hit = None
            for candidate in prediction["segments_info"]:
                segment = ours.get(candidate["id"], set())
                union = (segment - void) | target
                if candidate["label_id"] == label and union:
                    iou = Fraction(len(segment & target), len(union))
                    if iou > Fraction(1, 2):
                        assert hit is None
                        hit = candidate["id"]
                        counts[label][0] += iou
            if hit is None:
                counts[label][3] += 1
            else:
                assert hit not in taken
                taken.add(hit)
                counts[label][1] += 1
        for info in prediction["segments_info"]:
            segment, label = ours.get(info["id"], set()), info["label_id"]
            if info["id"] in taken or not segment:
                continue
            allowed = void.union(*[region for crowd_label, region in regions if crowd_label == label])
            if Fraction(len(segment & allowed), len(segment)) <= Fraction(1, 2):
                counts[label][2] += 1
    return counts


def check_against_sets(predictions, references, things, result=None):
    result = result or count(predictions, references, things).compute()
    rows = []
    for values, (iou, hits, extra, missed) in zip(
        result["per_class"].values(), counted_by_sets(predictions, references, len(things)), strict=True
    ):
        weight = hits + Fraction(extra + missed, 2)
        rows.append(
            {"pq": iou / weight, "sq": iou / hits if hits else 0, "rq": hits / weight}
            if hits + extra + missed
            else dict.fromkeys(("pq", "sq", "rq"))
        )
        assert values.pop("segments") == hits + missed
        assert values == {
            name: None if value is None else pytest.approx(float(value), abs=1e-12) for name, value in rows[-1].items()
        }
    for suffix, kinds in (("", (True, False)), ("_things", (True,)), ("_stuff", (False,))):
        for name in ("pq", "sq", "rq"):
            known = [
                row[name] for row, thing in zip(rows, things, strict=True) if thing in kinds and row[name] is not None
            ]
            expected = pytest.approx(float(sum(known)) / len(known), abs=1e-12) if known else None
            assert result[name + suffix] == expected
    assert result["num_samples"] == len(references)
    return result


def random_case(rng, images, classes, noise=0.2, crowd=0.2, size=12):
    predictions, references = [], []
    for _ in range(images):
        height, width = rng.integers(1, size, 2)
        true = np.zeros((height, width), int)
        # Ids as large as those of COCO's colours.
        ids = np.append(rng.choice(2**24 - 1, int(rng.integers(0, 6)), replace=False) + 1, 0)
        for _ in range(8):
            top, left = rng.integers(0, height), rng.integers(0, width)
            true[top : top + rng.integers(1, size), left : left + rng.integers(1, size)] = rng.choice(ids)
        labels = rng.integers(0, classes, len(ids))
        crowded = [int(value) for value in ids if rng.random() < crowd]
        references.append(
            truth(true, crowded, **{f"i{value}": int(label) for value, label in zip(ids, labels, strict=True) if value})
        )
        numbers = rng.permutation(len(ids) + 1)
        guess = numbers[np.searchsorted(np.sort(ids), true)]
        guess = np.roll(guess, int(rng.integers(0, 2)), 1)
        guess = np.where(rng.random(true.shape) < noise, rng.integers(-1, len(ids) + 1, true.shape), guess)
        listed = np.unique(guess[guess >= 0])
        own = dict(zip(numbers.tolist(), [*labels[np.argsort(ids)].tolist(), 0], strict=True))
        predictions.append(
            found(
                guess,
                **{
                    f"i{value}": own[value] if rng.random() < 0.9 else int(rng.integers(classes))
                    for value in listed.tolist()
                    if rng.random() < 0.9
                },
            )
        )
    return predictions, references


@FEW
@given(
    st.integers(0, 2**32), st.integers(1, 4), st.sampled_from([0, 0.1, 0.5]), st.sampled_from([0, 0.3, 1]), st.data()
)
def test_equals_loops_over_sets_of_pixels(seed, classes, noise, crowd, data):
    things = data.draw(st.lists(st.booleans(), min_size=classes, max_size=classes))
    check_against_sets(*random_case(np.random.default_rng(seed), 4, classes, noise, crowd), things)


def scores(result, name="class 0"):
    return tuple(result["per_class"][name][key] for key in ("pq", "sq", "rq"))


ROW = [[1] * 10]


@pytest.mark.parametrize(
    ("prediction", "reference", "expected"),
    [
        (found(ROW, s1=0), truth(ROW, s1=0), (1, 1, 1)),
        # 8 of 12 pixels shared.
        (
            found([[0] * 2 + [7] * 10], s7=0),
            truth([[1] * 10 + [2] * 2], s1=0, s2=1),
            (2 / 3, 2 / 3, 1),
        ),
        # 5 of 10 is no more than half; one missed and one extra.
        (found([[3] * 5 + [0] * 5], s3=0), truth(ROW, s1=0), (0, 0, 0)),
        # 6 of 10 is, the rest is extra: IoU 0.6 / (1 + 1 / 2).
        (found([[3] * 6 + [4] * 4], s3=0, s4=0), truth(ROW, s1=0), (0.4, 0.6, 2 / 3)),
        # One segment for two: 6 of 10, and one missed.
        (found(ROW, s1=0), truth([[1] * 6 + [2] * 4], s1=0, s2=0), (0.4, 0.6, 2 / 3)),
        # The four pixels on void are not in the union.
        (found(ROW, s1=0), truth([[1] * 6 + [0] * 4], s1=0), (1, 1, 1)),
        # A segment with six of ten pixels on void is no false positive; with five it is one.
        (
            found([[5] * 10 + [6] * 4], s5=0, s6=0),
            truth([[0] * 6 + [2] * 4 + [1] * 4], s1=0, s2=1),
            (1, 1, 1),
        ),
        (
            found([[5] * 10 + [6] * 4], s5=0, s6=0),
            truth([[0] * 5 + [2] * 5 + [1] * 4], s1=0, s2=1),
            (2 / 3, 1, 2 / 3),
        ),
        # On a crowd region of its class it is no false positive, on one of another class it is; neither is a target.
        (
            found([[5] * 10 + [6] * 4], s5=0, s6=0),
            truth([[3] * 10 + [1] * 4], crowd=[3], s1=0, s3=0),
            (1, 1, 1),
        ),
        (
            found([[5] * 10 + [6] * 4], s5=0, s6=0),
            truth([[3] * 10 + [1] * 4], crowd=[3], s1=0, s3=1),
            (2 / 3, 1, 2 / 3),
        ),
        # Two crowd regions and void together: four and four and one of 12.
        (
            found([[5] * 12 + [6] * 4], s5=0, s6=0),
            truth([[3] * 4 + [4] * 4 + [2] * 4 + [1] * 4], crowd=[3, 4], s1=0, s2=1, s3=0, s4=0),
            (1, 1, 1),
        ),
        # Crowd is not taken from the union: 6 of 10.
        (found(ROW, s1=0), truth([[1] * 6 + [2] * 4], crowd=[2], s1=0, s2=0), (0.6, 0.6, 1)),
        # Wrong class: missed here, extra there.
        (found(ROW, s1=1), truth(ROW, s1=0), (0, 0, 0)),
        (found([[-1] * 10]), truth(ROW, s1=0), (0, 0, 0)),
        (found(ROW, s1=0), truth([[2] * 10], s2=1), (0, 0, 0)),
        # Nothing there, nothing wrong.
        (found(ROW, s1=0), truth([[0] * 10]), (None, None, None)),
        (found([[0] * 10]), truth([[0] * 10]), (None, None, None)),
        # Segment 0 is one if it is listed; 9 is not listed, so its pixels have no segment.
        (found([[0] * 8 + [9] * 2], s0=0), truth(ROW, s1=0), (0.8, 0.8, 1)),
        # A predicted segment without a pixel is none; a true one is missed.
        (found(ROW, s1=0, s2=0), truth(ROW, s1=0), (1, 1, 1)),
        (found(ROW, s1=0), truth(ROW, s1=0, s2=0), (2 / 3, 1, 2 / 3)),
    ],
    ids=[
        *("perfect", "shifted", "half", "split", "merged", "void in the union", "on void", "half on void"),
        *("on crowd", "on crowd of another class", "two crowd regions", "crowd in the union", "wrong class"),
        *("empty prediction", "other truth", "empty truth", "empty both", "segment 0", "predicted without a pixel"),
        "true without a pixel",
    ],
)
def test_worked_by_hand(prediction, reference, expected):
    result = count([prediction], [reference], [True, False]).compute()
    assert scores(result) == tuple(None if value is None else pytest.approx(value) for value in expected)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    check_against_sets([prediction], [reference], [True, False])


def test_things_and_stuff():
    """A thing missed, another one found by 3/4; stuff of one class found, of another invented, and one nowhere."""
    prediction = found([[1] * 3 + [0] + [2] * 4 + [3] * 2], s1=1, s2=2, s3=3)
    reference = truth([[5] * 4 + [6] * 4 + [7] * 2], s5=1, s6=2, s7=0)
    result = count([prediction], [reference], [True, True, False, False, False]).compute()
    expected = {
        "pq": (0 + 3 / 4 + 1 + 0) / 4,
        "sq": (0 + 3 / 4 + 1 + 0) / 4,
        "rq": (0 + 1 + 1 + 0) / 4,
        "pq_things": 3 / 8,
        "sq_things": 3 / 8,
        "rq_things": 1 / 2,
        "pq_stuff": 1 / 2,
        "sq_stuff": 1 / 2,
        "rq_stuff": 1 / 2,
    }
    assert {name: result[name] for name in expected} == pytest.approx(expected)
    assert list(result) == [*expected, "num_samples", "per_class"]
    assert [values["segments"] for values in result["per_class"].values()] == [1, 1, 1, 0, 0]
    assert scores(result, "class 4") == (None, None, None)
    only_things = count([found(ROW, s1=0)], [truth(ROW, s1=0)], [True]).compute()
    assert only_things["pq_stuff"] is None
    assert only_things["pq_things"] == 1


def test_takes_tensors_and_what_transformers_answers():
    """Also its answer without a segment, a map of floats, -1."""
    processor = Mask2FormerImageProcessorPil()
    logits, masks = torch.zeros(2, 2, 3), torch.full((2, 2, 8, 8), -20.0)
    logits[0, 0, 1], logits[:, 1, 2], logits[1, 0, 2] = 20.0, 20.0, 20.0
    masks[:, 0, :4] = 20.0
    outputs = Mask2FormerForUniversalSegmentationOutput(class_queries_logits=logits, masks_queries_logits=masks)
    answers = processor.post_process_panoptic_segmentation(outputs, target_sizes=[(8, 8)] * 2)
    assert [len(answer["segments_info"]) for answer in answers] == [1, 0]
    reference = truth([[3] * 8] * 4 + [[0] * 8] * 4, s3=1)
    reference = {**reference, "segmentation": torch.from_numpy(reference["segmentation"])}
    result = count(answers, [reference] * 2, [True, True]).compute()
    assert scores(result, "class 1") == pytest.approx((2 / 3, 1, 2 / 3))


def test_crowd_may_be_missing():
    reference = truth(ROW, s1=0)
    del reference["segments_info"][0]["iscrowd"]
    assert scores(count([found(ROW, s1=0)], [reference], [True]).compute()) == (1, 1, 1)


@pytest.mark.parametrize(
    ("prediction", "reference", "message"),
    [
        (found(ROW), truth([[1] * 9]), r"shape \(1, 10\) for a reference of shape \(1, 9\)"),
        (found([1]), truth([1]), r"must be \(height, width\)"),
        (found(ROW, s1=2), truth(ROW, s1=0), "label_id 2, outside 0 ... 1"),
        (found(ROW), truth(ROW, s1=-1), "category_id -1, outside 0 ... 1"),
        (found(ROW), truth([[4] * 10], s1=0), "pixels of segment 4, which its segments_info does not list"),
        (found(ROW), truth(ROW, s0=0, s1=0), "0 is void"),
        (found(ROW, s1=0, s01=1), truth(ROW, s1=0), "holds an id twice: 1"),
    ],
)
def test_inputs_that_do_not_fit(prediction, reference, message):
    accumulator = PanopticAccumulator(names(2), [True, False])
    with pytest.raises(DataError, match=message):
        accumulator.update([prediction], [reference], [0])
    assert len(accumulator) == 0


def test_numbers_of_entries_must_agree():
    with pytest.raises(DataError, match="2 sample ids for 1 predictions and 1 samples"):
        PanopticAccumulator(names(1), [True]).update([found(ROW)], [truth(ROW, s1=0)], [0, 1])
    with pytest.raises(DataError, match="1 values of things for 2 label names"):
        PanopticAccumulator(names(2), [True])


def test_no_sample_is_an_error():
    with pytest.raises(DataError, match="no sample"):
        PanopticAccumulator(names(1), [True]).compute()


class TestMerging:
    @pytest.mark.parametrize("samples", [1, 20, 200])
    @pytest.mark.parametrize("processes", [2, 3])
    def test_padded_shards_in_any_order_give_the_same(self, samples, processes):
        things = [True, False, True]
        predictions, references = random_case(np.random.default_rng(5), samples, 3, size=6)
        expected = check_against_sets(predictions, references, things)
        padded = np.resize(np.arange(samples), -(-samples // (4 * processes)) * 4 * processes)
        for first in range(processes):
            shards = []
            for process in np.roll(range(processes), first):
                own = padded[process::processes].tolist()
                shard = count([predictions[i] for i in own], [references[i] for i in own], things, own, batch=4)
                shards.append(pickle.loads(pickle.dumps(shard)))
            for other in shards[1:]:
                shards[0].merge(other)
            result = shards[0].compute()
            assert len(shards[0]) == samples
            for name in expected.keys() - {"per_class"}:
                assert result[name] == (None if expected[name] is None else pytest.approx(expected[name], abs=1e-9))
            check_against_sets(predictions, references, things, result)

    def test_an_id_counts_once(self):
        right, wrong, reference = found(ROW, s1=0), found(ROW, s1=1), truth(ROW, s1=0)
        accumulator = count([right, wrong], [reference] * 2, [True, True], ["a", "a"])
        accumulator.merge(count([wrong], [reference], [True, True], ["a"]))
        assert scores(accumulator.compute()) == (1, 1, 1)
        assert len(accumulator) == 1

    def test_only_with_its_like(self):
        with pytest.raises(DataError, match="cannot be merged"):
            PanopticAccumulator(names(1), [True]).merge(SemanticAccumulator(names(1)))
        with pytest.raises(DataError, match="different things"):
            PanopticAccumulator(names(1), [True]).merge(PanopticAccumulator(names(1), [False]))


def test_is_an_evaluate_metric():
    things = [True, False]
    predictions, references = random_case(np.random.default_rng(7), 6, 2)
    expected = count(predictions, references, things).compute()
    assert PanopticMetric(names(2), things).compute(predictions=predictions, references=references) == expected
    one_by_one = PanopticMetric(names(2), things)
    for prediction, reference in zip(predictions, references, strict=True):
        one_by_one.add(prediction=prediction, reference=reference)
    assert one_by_one.compute() == expected


def test_features_are_those_of_the_inputs():
    metric = PanopticMetric(names(1), [True])
    example = {
        "predictions": {"segmentation": ROW, "segments_info": [{"id": 1, "label_id": 0}]},
        "references": {"segmentation": ROW, "segments_info": [{"id": 1, "category_id": 0, "iscrowd": False}]},
    }
    table = datasets.Dataset.from_list([example], features=metric.features)
    assert table[0] == example
    assert metric.compute(predictions=table["predictions"], references=table["references"])["pq"] == 1
