"""What the tasks of segmentation share, on maps small enough to be written out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from faster_coco_eval.core import mask as coco_mask

from cv_hf import segmentation
from cv_hf.data import LabelMap
from cv_hf.models import Needs
from cv_hf.runs import from_mask
from cv_hf.training.samples import collate_train

LABELS = LabelMap(("sky", "cat", "dog"), (5, 7, 9), None, ("cat", "dog"))
# Segments: 1 sky, 2 a cat, 3 another cat, 4 a crowd of dogs; 0 is void.
MAP = np.array([[1, 1, 1, 0], [2, 2, 3, 3], [2, 4, 4, 3]], np.uint8)
SEGMENTS = {"category": [0, 1, 1, 2], "iscrowd": [False, False, False, True]}


def row(subtask: str) -> dict:
    return {"mask": MAP, "segments": SEGMENTS, "subtask": subtask, "size": MAP.shape}


def test_class_maps_leave_void_out_and_keep_crowds():
    found = segmentation.targets([row("semantic")], LABELS, Needs("maps", 255))["labels"]
    assert found.tolist() == [[[0, 0, 0, 255], [1, 1, 1, 1], [1, 2, 2, 1]]]


@pytest.mark.parametrize(
    ("subtask", "classes", "areas"),
    [("semantic", [0, 1, 2], [3, 6, 2]), ("instance", [1, 1], [3, 3]), ("panoptic", [0, 1, 1], [3, 3, 3])],
)
def test_masks_of_each_subtask(subtask, classes, areas):
    made = segmentation.targets([row(subtask)], LABELS, Needs("masks"))
    assert made["class_labels"][0].tolist() == classes
    assert made["mask_labels"][0].flatten(1).sum(1).tolist() == areas
    assert made["mask_labels"][0].shape == (len(classes), 3, 4)


def test_objects_have_the_boxes_of_their_masks():
    (made,) = segmentation.targets([{**row("instance"), "shape": (3, 4)}], LABELS, Needs("objects"))["labels"]
    assert made["class_labels"].tolist() == [1, 1]
    # The first cat fills rows 1 and 2 of columns 0 and 1; the second the last two columns.
    expected = [[1 / 4, 2 / 3, 2 / 4, 2 / 3], [3 / 4, 2 / 3, 2 / 4, 2 / 3]]
    torch.testing.assert_close(made["boxes"], torch.tensor(expected))
    assert made["masks"][1].int().tolist() == [[0, 0, 0, 0], [0, 0, 1, 1], [0, 0, 0, 1]]


def test_an_image_without_segments_has_empty_targets():
    empty = {"mask": np.zeros((3, 4), np.uint8), "segments": {"category": [], "iscrowd": []}, "subtask": "instance"}
    masks = segmentation.targets([empty], LABELS, Needs("masks"))
    assert masks["mask_labels"][0].shape == (0, 3, 4)
    (objects,) = segmentation.targets([empty], LABELS, Needs("objects"))["labels"]
    assert objects["boxes"].shape == (0, 4)
    assert objects["class_labels"].dtype == torch.int64


def test_what_is_cut_away_is_no_target():
    cut = {**row("panoptic"), "mask": MAP[:1]}
    made = segmentation.targets([cut], LABELS, Needs("masks"))
    assert made["class_labels"][0].tolist() == [0]


def test_instances_of_a_panoptic_map_are_its_things_crowds_among_them():
    found = segmentation.instances(row("instance"), LABELS)
    assert found["category"].tolist() == [1, 1, 2]
    assert found["iscrowd"].tolist() == [False, False, True]
    assert found["area"].tolist() == [3, 3, 2]
    assert np.array_equal(coco_mask.decode(found["segmentation"][2]), MAP == 4)


def test_batches_of_several_sizes_are_padded_with_nothing():
    """Below and right of the image, mask and picture alike; boxes of a model that is told what is padding refer to the
    image, of others to all of the batch."""
    items = [
        {"image": np.full((3, 4, 3), 9, np.uint8), "findings": [], "file": "a", **row("instance")},
        {"image": np.full((6, 2, 3), 9, np.uint8), "findings": [], "file": "b", **row("instance")}
        | {"mask": np.array([[2, 2]] * 6, np.uint8)},
    ]
    for masked, width in ((True, 1.0), (False, 0.5)):
        made = collate_train(items, targets=segmentation.targets, labels=LABELS, needs=Needs("objects"), masked=masked)
        assert made["pixel_values"].shape == (2, 3, 6, 4)
        first, second = made["labels"]
        assert first["masks"].shape == (2, 6, 4)
        assert first["masks"].sum() == 6
        assert second["boxes"].tolist() == [[width / 2, 0.5, width, 1.0]]


def answer(*found: tuple[str, float | None, np.ndarray]) -> list[dict]:
    return [{"score": score, "label": label, "segmentation": from_mask(mask)} for label, score, mask in found]


def square(top: int, left: int, edge: int, size: int = 100) -> np.ndarray:
    mask = np.zeros((size, size), bool)
    mask[top : top + edge, left : left + edge] = True
    return mask


ONE = answer(("cat", 0.8, square(0, 0, 50)), ("dog", 0.7, square(50, 50, 20)))


@pytest.mark.parametrize(
    ("other", "share"),
    [
        (ONE, 0.0),
        (ONE[::-1], 0.0),
        # A pixel on the border falls to either.
        (answer(("cat", 0.80005, square(0, 0, 50)), ("dog", 0.7, square(50, 50, 20) & ~square(50, 50, 1))), 0.0),
        (answer(("cat", 0.8, square(0, 0, 50))), 0.04),
        (answer(("cat", 0.8, square(0, 0, 50)), ("cat", 0.7, square(50, 50, 20))), 0.04),
        (answer(("cat", 0.801, square(0, 0, 50)), ("dog", 0.7, square(50, 50, 20))), 0.25),
        (answer(("cat", 0.8, square(0, 3, 50)), ("dog", 0.7, square(50, 50, 20))), 0.25),
        ([*ONE, *answer(("sky", 0.9, square(80, 80, 10)))], 0.01),
        # At the threshold, either answer is right.
        ([*ONE, *answer(("sky", 0.50003, square(80, 80, 10)))], 0.0),
        ([], 0.25),
    ],
)
def test_answers_differ_by_the_largest_segment_that_only_one_has(other, share):
    for mine, theirs in ((ONE, other), (other, ONE)):
        found, words = segmentation.compare(mine, theirs, (100, 100), {"threshold": 0.5})
        assert found == pytest.approx(share)
        assert bool(words) == (share > 0)


def test_instances_agree_in_whatever_order_they_were_painted():
    """Two that overlap: which has the pixels of both depends on an order that nobody promises; nothing else does."""
    low, high = square(0, 0, 50), square(0, 20, 50)
    first = answer(("cat", 0.8, low), ("dog", 0.7, high & ~low))
    last = answer(("dog", 0.7, high), ("cat", 0.8, low & ~high))
    moved = answer(("dog", 0.7, square(10, 20, 50)), ("cat", 0.8, low & ~square(10, 20, 50)))
    swapped = answer(("cat", 0.7, high), ("dog", 0.8, low & ~high))

    def share(mine: list, theirs: list, subtask: str = "instance") -> float:
        return segmentation.compare(mine, theirs, (100, 100), {"threshold": 0.5, "subtask": subtask})[0]

    assert share(first, last) == share(last, first) == 0.0
    assert share(first, last, "panoptic") == 0.25
    assert share(first, moved) > 0.0
    assert share(first, swapped) == 0.25
    assert share(first, first[:1]) == 0.1


def test_two_equal_segments_are_not_one():
    twice = answer(("cat", 0.8, square(0, 0, 50)), ("cat", 0.8, square(0, 0, 50)))
    assert segmentation.compare(twice, twice[:1], (100, 100), {"threshold": 0.5})[0] == 0.25


def test_truth_is_scored_as_perfect():
    """The ground truth as an answer: segments of a stuff class, which come in two pieces, are joined."""
    pieces = np.array([[1, 1, 2, 2], [3, 3, 4, 4]], np.uint8)
    known = {"mask": pieces, "segments": {"category": [1, 1, 2, 0], "iscrowd": [False] * 4}, "size": (2, 4)}
    perfect = segmentation.truth(known, LABELS)
    sky = [{**perfect[3], "segmentation": from_mask(part)} for part in ((pieces == 4) & ([[1, 1, 1, 0]] * 2),)]
    sky += [{**perfect[3], "segmentation": from_mask((pieces == 4) & ([[0, 0, 0, 1]] * 2))}]
    scored = [{**one, "score": 0.9} for one in [*perfect[:3], *sky]]
    for subtask, name in (("panoptic", "pq"), ("instance", "mask_map of the segments shown"), ("semantic", "mean_iou")):
        things = scored[:3] if subtask == "instance" else scored
        found = segmentation.score_answers([things], [known], LABELS, {"subtask": subtask})
        assert found[name] == 1.0
