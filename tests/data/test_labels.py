from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cv_hf.data import LabelMap
from cv_hf.data.labels import from_class_names, from_recipe, from_values
from cv_hf.errors import DataError

names = st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=12, unique=True)


@st.composite
def label_maps(draw):
    drawn = draw(names)
    size = len(drawn)
    sources = st.one_of(
        st.just(list(range(size))),
        st.just(list(range(1, size + 1))),
        st.lists(st.integers(-(10**6), 10**6), min_size=size, max_size=size, unique=True),
        st.lists(st.text(max_size=5), min_size=size, max_size=size, unique=True),
        st.just([str(index) for index in range(size)]),
        st.just([False, True][:size] if size <= 2 else list(range(size))),
    )
    return LabelMap(tuple(drawn), tuple(draw(sources)), draw(st.none() | st.just(255)))


@given(label_maps())
def test_every_map_survives_json(labels):
    again = LabelMap.from_dict(json.loads(json.dumps(labels.to_dict())))
    assert again == labels
    assert [type(source) for source in again.sources] == [type(source) for source in labels.sources]


@given(label_maps())
def test_source_to_contiguous_to_name(labels):
    assert [labels.encode(source) for source in labels.sources] == list(range(len(labels)))
    assert labels.id2label == dict(enumerate(labels.names))
    assert {labels.label2id[name]: name for name in labels.names} == labels.id2label


@given(st.sets(st.integers(-100, 100), min_size=1), st.randoms())
def test_integers_seen_are_numbered_in_their_order(values, random):
    shuffled = list(values) * 2
    random.shuffle(shuffled)
    labels = from_values(shuffled)
    # 2 before 10, unlike as text; 0-based, 1-based and gapped ids alike.
    assert [labels.encode(value) for value in sorted(values)] == list(range(len(values)))
    assert labels.names == tuple(str(value) for value in sorted(values))


@given(st.sets(st.text(max_size=5), min_size=1))
def test_text_seen_is_numbered_alphabetically(values):
    assert from_values(values).names == tuple(sorted(values))


def test_booleans_seen():
    assert from_values([True, False, True]).sources == (False, True)
    assert from_values([True]).names == ("True",)


def test_the_ignored_value_is_no_class():
    labels = from_values([0, 1, 255], ignore_index=255)
    assert (labels.names, labels.ignore_index) == (("0", "1"), 255)


def test_labels_of_several_types_are_refused():
    with pytest.raises(DataError, match="several types"):
        from_values([1, "cat"])
    with pytest.raises(DataError, match="several types"):
        LabelMap(("a", "b"), (True, 1))


def test_unknown_labels_are_refused_with_a_suggestion():
    labels = from_values(["cat", "dog", "horse"])
    with pytest.raises(DataError) as error:
        labels.encode("hosre")
    assert str(error.value) == "label 'hosre' is not in the label map (cat, dog, horse). Did you mean 'horse'?"
    with pytest.raises(DataError, match=r"label 3 is not in the label map \(1: cat, 2: dog\)"):
        LabelMap(("cat", "dog"), (1, 2)).encode(3)
    many = from_values(range(1000))
    with pytest.raises(DataError, match=r"9, \.\.\.\)"):
        many.encode(1000)


@pytest.mark.parametrize("sources", [(0, 1), ("0", "1")])
def test_a_label_of_another_type_is_unknown(sources):
    labels = LabelMap(("no", "yes"), sources)
    for wrong in (True, "1" if sources == (0, 1) else 1):
        with pytest.raises(DataError):
            labels.encode(wrong)


def test_repeated_names_and_sources_are_refused():
    with pytest.raises(DataError, match="'cat'"):
        LabelMap(("cat", "cat"), (0, 1))
    with pytest.raises(DataError, match="''"):
        LabelMap(("", ""), (0, 1))
    with pytest.raises(DataError, match="0 stands twice"):
        LabelMap(("cat", "dog"), (0, 0))
    with pytest.raises(DataError, match="1 label names for 2"):
        LabelMap(("cat",), (0, 1))


def test_a_list_in_the_recipe_orders_or_names_the_classes():
    assert from_recipe(["dog", "cat"]).sources == ("dog", "cat")
    assert from_recipe(["zero", "one"], kind=int).sources == (0, 1)
    assert from_recipe(["no", "yes"], kind=bool).sources == (False, True)
    with pytest.raises(DataError, match="false and true"):
        from_recipe(["a", "b", "c"], kind=bool)


def test_a_list_in_the_recipe_against_class_names():
    classes = ["cat", "dog", "horse"]
    # Names that the data has are found by name, never by position: otherwise cats would be called dogs.
    assert from_recipe(["horse", "cat"], class_names=classes, kind=int).sources == (2, 0)
    assert from_recipe(["Katze", "Hund", "Pferd"], class_names=classes, kind=int).sources == (0, 1, 2)
    with pytest.raises(DataError, match="Did you mean 'horse'"):
        from_recipe(["cat", "dog", "hors"], class_names=classes, kind=int)
    with pytest.raises(DataError, match="2 names for the 3 classes"):
        from_recipe(["Katze", "Hund"], class_names=classes, kind=int)


def test_a_mapping_in_the_recipe():
    labels = from_recipe({1: "cat", "7": "dog"}, kind=int)
    assert (labels.sources, labels.names) == ((1, 7), ("cat", "dog"))
    assert from_recipe({"n01": "tench", 7: "seven"}, kind=str).sources == ("n01", "7")
    assert from_recipe({0: "no", "true": "yes"}, kind=bool).sources == (False, True)
    assert from_recipe({"dog": "Hund", 0: "Katze"}, class_names=["cat", "dog"], kind=int).sources == (1, 0)
    with pytest.raises(DataError, match="'n01' is not a number"):
        from_recipe({"n01": "tench"}, kind=int)
    with pytest.raises(DataError, match="neither true nor false"):
        from_recipe({"maybe": "x"}, kind=bool)


def test_files_of_labels(tmp_path):
    (tmp_path / "labels.txt").write_text("\ufeffcat\n\n  dog \n", encoding="utf-8")
    (tmp_path / "labels.json").write_text('["cat", "dog"]')
    (tmp_path / "ids.yaml").write_text("1: cat\n2: dog\n")
    (tmp_path / "ids.json").write_text('{"1": "cat", "2": "dog"}')
    assert from_recipe("labels.txt", folder=tmp_path).names == ("cat", "dog")
    assert from_recipe(str(tmp_path / "labels.json")).names == ("cat", "dog")
    for name in ("ids.yaml", "ids.json"):
        assert from_recipe(name, folder=tmp_path, kind=int) == LabelMap(("cat", "dog"), (1, 2))


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("gone.txt", None, "cannot be read"),
        ("bad.json", b"{", "not valid JSON"),
        ("bad.yaml", b"[", "not valid YAML"),
        ("text.yaml", b"cat", "list of names"),
        ("binary.txt", b"\xff\xfe\x00", "cannot be read"),
    ],
)
def test_bad_files_of_labels(name, content, match, tmp_path):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=match):
        from_recipe(name, folder=tmp_path)


def test_another_datasets_labels_are_matched_by_name():
    model = from_class_names(["cat", "dog", "horse"])
    other = model.with_sources_of(from_class_names(["dog", "zebra", "cat"]))
    assert other.names == model.names
    assert (other.encode(0), other.encode(2)) == (1, 0)
    with pytest.raises(DataError):
        other.encode(1)
    text = model.with_sources_of(from_values(["horse", "cat"]))
    assert (text.encode("horse"), text.encode("cat")) == (2, 0)


def test_another_datasets_numbers_are_matched_by_source_id():
    model = LabelMap(("cat", "dog"), (1, 7))
    assert model.with_sources_of(from_values([7])).encode(7) == 1
    codes = LabelMap(("tench", "shark"), ("n01", "n02"))
    assert codes.with_sources_of(from_values(["n02"])).encode("n02") == 1
    assert codes.with_sources_of(from_values(["shark"])).encode("shark") == 1
    with pytest.raises(DataError, match="label 8"):
        model.with_sources_of(from_values([7, 8])).encode(8)
