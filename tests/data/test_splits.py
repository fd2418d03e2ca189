from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cv_hf.data.splits import choose_splits, hold_out, subset
from cv_hf.errors import DataError


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["train", "validation", "test"], {"train": "train", "validation": "validation", "test": "test"}),
        (["training", "val", "testing"], {"train": "training", "validation": "val", "test": "testing"}),
        (["Train", "Valid"], {"train": "Train", "validation": "Valid"}),
        (["train2017", "val2017", "test2017"], {"train": "train2017", "validation": "val2017", "test": "test2017"}),
        (["train", "dev"], {"train": "train", "validation": "dev"}),
        (["train", "dev", "validation"], {"train": "train", "validation": "validation"}),
        (["full"], {"train": "full"}),
    ],
)
def test_usual_names(names, expected):
    chosen, held_out = choose_splits(names)
    assert chosen == expected
    assert held_out == ({} if "validation" in expected else {"validation": 0.15})


def test_the_recipe_decides():
    chosen, held_out = choose_splits(
        ["train", "validation", "extra"], {"train": "extra", "validation": 0.2, "test": "validation"}
    )
    assert chosen == {"train": "extra", "test": "validation"}
    assert held_out == {"validation": 0.2}
    chosen, held_out = choose_splits(["train", "test"], {"validation": "test", "test": 5})
    assert (chosen, held_out) == ({"train": "train", "validation": "test"}, {"test": 5})


@pytest.mark.parametrize(
    ("names", "given", "match"),
    [
        (
            ["train", "test"],
            {"train": "trian"},
            r"splits.train: .*'trian'. Did you mean 'train'\? Splits: train, test",
        ),
        (["a", "b"], None, "no split to train on among: a, b"),
        (["test"], {"test": "test"}, "no split to train on"),
        (["train"], {"train": "train", "validation": "train"}, "two roles"),
        ([], None, "none"),
    ],
)
def test_wrong_splits(names, given, match):
    with pytest.raises(DataError, match=match):
        choose_splits(names, given)


strata = st.lists(st.sampled_from("abcde"), min_size=1, max_size=80)


@given(strata, st.sampled_from([0.15, 0.2, 0.5, 0.9]), st.integers(0, 5))
def test_a_share_takes_of_every_class(keys, share, seed):
    parts = hold_out(keys, {"validation": share}, seed)
    assert sorted(parts["validation"] + parts["train"]) == list(range(len(keys)))
    assert parts["validation"] == sorted(parts["validation"])
    for key, total in Counter(keys).items():
        held = sum(keys[index] == key for index in parts["validation"])
        if total == 1:
            assert held == 0
        else:
            assert 1 <= held <= total - 1
            assert abs(held - share * total) <= 1


@given(strata, st.integers(0, 5))
def test_two_parts_do_not_overlap(keys, seed):
    parts = hold_out(keys, {"validation": 0.3, "test": 0.3}, seed)
    assert sorted(parts["validation"] + parts["test"] + parts["train"]) == list(range(len(keys)))
    assert {keys[index] for index in parts["train"]} == set(keys)


def test_a_number_takes_exactly_so_many_of_each_class():
    keys = ["a"] * 4 + ["b"] * 9
    parts = hold_out(keys, {"validation": 3}, 0)
    assert Counter(keys[index] for index in parts["validation"]) == {"a": 3, "b": 3}
    with pytest.raises(DataError, match="4 per class, but class a has 4 samples"):
        hold_out(keys, {"validation": 4}, 0)


def test_the_seed_decides_and_nothing_else():
    keys = list("ab") * 20
    assert hold_out(keys, {"validation": 0.2}, 1) == hold_out(keys, {"validation": 0.2}, 1)
    assert hold_out(keys, {"validation": 0.2}, 1) != hold_out(keys, {"validation": 0.2}, 2)


def test_samples_of_several_labels_are_drawn_plainly():
    parts = hold_out([None] * 20, {"validation": 0.15}, 0)
    assert len(parts["validation"]) == 3
    with pytest.raises(DataError, match="give a share"):
        hold_out([None] * 20, {"validation": 2}, 0)


@given(strata, st.integers(1, 100), st.integers(0, 3))
def test_a_subset_keeps_the_proportions(keys, size, seed):
    chosen = subset(keys, size, seed)
    assert chosen == sorted(set(chosen))
    assert len(chosen) == min(size, len(keys))
    counts, totals = Counter(keys[index] for index in chosen), Counter(keys)
    if size >= len(totals):
        assert set(counts) == set(totals)
    for key, total in totals.items():
        assert abs(counts[key] - total * len(chosen) / len(keys)) <= len(totals)
