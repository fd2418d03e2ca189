from __future__ import annotations

import datasets
import pytest
from datasets import ClassLabel, Features, LargeList, List, Value

from cv_hf.config import DataConfig
from cv_hf.data import LabelMap, find_column, load_splits
from cv_hf.data.classification import canonical, encode, label_map, strata
from cv_hf.errors import DataError
from tests.data.samples import TASK, png

IMAGE = datasets.Image(decode=False)
CATS = ClassLabel(names=["cat", "dog", "owl"])


def dataset(image="image", **columns):
    """One embedded image per row; each column is (values, feature)."""
    rows = len(next(iter(columns.values()))[0])
    values = {image: [{"bytes": png(index), "path": None} for index in range(rows)]}
    features = {image: datasets.Image()}
    for name, (column, feature) in columns.items():
        values[name], features[name] = column, feature
    return datasets.Dataset.from_dict(values, features=Features(features))


def read(rows, **data):
    """Canonical, labelled, encoded."""
    data = DataConfig(id="x", **data)
    rows = canonical(rows, data)
    labels = label_map({"train": rows}, data)
    return encode(rows, labels), labels


@pytest.mark.parametrize(
    ("values", "feature", "expected", "names"),
    [
        ([2, 0, 2], CATS, [2, 0, 2], ("cat", "dog", "owl")),
        (["b", "a", "b"], Value("string"), [1, 0, 1], ("a", "b")),
        (["b", "a", "b"], Value("large_string"), [1, 0, 1], ("a", "b")),
        ([10, 2, 2], Value("int64"), [1, 0, 0], ("2", "10")),
        ([10, 2, 2], Value("uint8"), [1, 0, 0], ("2", "10")),
        ([-1, 0, 1], Value("int32"), [0, 1, 2], ("-1", "0", "1")),
        ([True, False, True], Value("bool"), [1, 0, 1], ("False", "True")),
        ([2.0, float("nan"), 3.0], Value("float64"), [0, None, 1], ("2", "3")),
        ([1, -1, None], CATS, [1, None, None], ("cat", "dog", "owl")),
        ([None, "a", "b"], Value("string"), [None, 0, 1], ("a", "b")),
        ([1, None, 5], Value("int64"), [0, None, 1], ("1", "5")),
    ],
)
def test_one_label_per_image(values, feature, expected, names):
    encoded, labels = read(dataset(label=(values, feature)))
    assert encoded["label"][:] == expected
    assert encoded.features["label"] == ClassLabel(names=list(names))
    assert labels.names == names
    assert encoded.features["image"] == IMAGE
    assert set(encoded.column_names) == {"image", "label"}


@pytest.mark.parametrize(
    ("values", "feature", "expected", "names"),
    [
        ([[2, 0], [], [1]], List(CATS), [[0, 2], [], [1]], ("cat", "dog", "owl")),
        ([[2, 0], [], [1]], LargeList(CATS), [[0, 2], [], [1]], ("cat", "dog", "owl")),
        ([["b", "a"], ["b", "b"], []], List(Value("string")), [[0, 1], [1], []], ("a", "b")),
        ([[7, 3], [3], [7]], List(Value("int64")), [[0, 1], [0], [1]], ("3", "7")),
        ([[0], None, [1, -1]], List(CATS), [[0], None, None], ("cat", "dog", "owl")),
    ],
)
def test_several_labels_per_image(values, feature, expected, names):
    encoded, labels = read(dataset(tags=(values, feature)))
    assert encoded["labels"][:] == expected
    assert encoded.features["labels"] == List(ClassLabel(names=list(names)))
    assert labels.names == names
    assert list(strata(encoded)) == [None] * 3


def test_multi_hot_vectors_are_refused():
    rows = dataset(labels=([[0, 1, 0], [1, 0, 1]], List(Value("int64"))))
    with pytest.raises(DataError, match="multi-hot"):
        read(rows)


def test_the_ignored_value_means_no_label():
    encoded, labels = read(dataset(label=([0, 255, 1], Value("int64"))), ignore_index=255)
    assert encoded["label"][:] == [0, None, 1]
    assert labels == LabelMap(("0", "1"), (0, 1), 255)


def test_images_and_labels_called_the_other_way_round():
    rows = dataset(image="label", image_=([0, 1], CATS)).rename_column("image_", "image")
    encoded, _ = read(rows)
    assert encoded["label"][:] == [0, 1]
    assert encoded[0]["image"]["bytes"] == png(0)


def test_labels_that_are_not_in_the_map_are_named():
    rows = canonical(dataset(label=([0, 2], CATS)), DataConfig(id="x"))
    with pytest.raises(DataError, match=r"label 'owl' is not in the label map \(cat, dog\)"):
        encode(rows, LabelMap(("cat", "dog"), (0, 1)))
    # Only labels that occur count.
    assert encode(rows.select([0]), LabelMap(("cat", "dog"), (0, 1)))["label"][:] == [0]


def test_splits_must_agree():
    one = canonical(dataset(label=([0], CATS)), DataConfig(id="x"))
    other = canonical(dataset(label=([0], ClassLabel(names=["dog", "cat"]))), DataConfig(id="x"))
    many = canonical(dataset(label=([["a"]], List(Value("string")))), DataConfig(id="x"))
    with pytest.raises(DataError, match="different lists of classes"):
        label_map({"train": one, "test": other}, DataConfig(id="x"))
    with pytest.raises(DataError, match="one label per image, others a list"):
        label_map({"train": one, "test": many}, DataConfig(id="x"))


def test_numbers_with_names_of_the_recipe():
    rows = dataset(label=([1, 3, 1], Value("int64")))
    encoded, labels = read(rows, labels={1: "cat", 3: "dog"})
    assert (encoded["label"][:], labels.names) == ([0, 1, 0], ("cat", "dog"))
    with pytest.raises(DataError, match=r"label 3 is not in the label map \(0: cat, 1: dog\)"):
        read(rows, labels=["cat", "dog"])


def test_columns_are_found_by_type_then_by_name():
    labels, text = ([0, 1], CATS), (["x", "y"], Value("string"))
    _, found = read(dataset(image="scan", label=text, kind=labels))
    assert found.names == ("cat", "dog", "owl")
    # Several ClassLabel columns: the usual name among them.
    _, found = read(dataset(fine_label=labels, coarse=([0, 0], ClassLabel(names=["pet"])), name=text))
    assert found.names == ("cat", "dog", "owl")
    _, found = read(dataset(Category=text, name=text))
    assert found.names == ("x", "y")
    with pytest.raises(DataError, match=r"more than one column could be the label among: a \(ClassLabel\)"):
        read(dataset(a=labels, b=labels))
    assert read(dataset(a=labels, b=labels), columns={"label": "b"})[0]["label"][:] == [0, 1]


def test_columns_of_a_wrong_type():
    rows = dataset(label=([[[0.1, 0.2]]], List(List(Value("float32")))))
    with pytest.raises(DataError, match=r"no label column was found among: label \(list of list of float32\)"):
        read(rows)
    with pytest.raises(DataError, match="'label' has no labels that can be read"):
        read(rows, columns={"label": "label"})
    with pytest.raises(DataError, match="no image column"):
        read(dataset(label=([0], CATS)).remove_columns("image"))
    with pytest.raises(DataError, match="either label or labels"):
        read(rows, columns={"label": "label", "labels": "label"})


def test_a_column_by_kind():
    features = {"a": Value("string"), "Mask": Value("string"), "n": Value("int64")}

    def find(**more):
        return find_column(
            features,
            "mask",
            kind=lambda feature: isinstance(feature, datasets.Image),
            usual_names=("mask",),
            fits=lambda feature: feature.dtype == "string",
            **more,
        )

    assert find() == "Mask"
    assert find(given={"mask": "n"}) == "n"
    del features["Mask"]
    with pytest.raises(DataError, match=r"a \(string\), n \(int64\).\n.*data\.columns\.mask=NAME\."):
        find()


def test_several_labels_from_disk_to_splits(tmp_path):
    rows = dataset(labels=([["a"], ["a", "b"], [], None] * 5, List(Value("string"))))
    rows.to_parquet(tmp_path / "train.parquet")
    lines = []
    splits = load_splits(DataConfig(id=str(tmp_path)), TASK, 0, lines.append)
    assert (len(splits.train), len(splits.validation)) == (13, 2)
    assert splits.labels.names == ("a", "b")
    assert splits.findings.count("missing-label") == 5
    assert "class-without-samples" not in splits.findings
    with pytest.raises(DataError, match="give a share"):
        load_splits(DataConfig(id=str(tmp_path), splits={"validation": 2}), TASK, 0, lines.append)


def test_embedded_images_stay_on_disk(tmp_path):
    rows = dataset(label=([0, 1] * 50, CATS))
    rows.to_parquet(tmp_path / "train.parquet")
    splits = load_splits(DataConfig(id=str(tmp_path), max_samples=20), TASK, 0, lambda line: None)
    for split in (splits.train, splits.validation):
        # Selecting goes by indices; the bytes are those of the cached file.
        assert split.cache_files
        assert len(split.data) == 100


@pytest.mark.parametrize(
    ("text", "lists"),
    [
        (["cat,dog", "cat", "dog", ""], [[0, 1], [0], [1], []]),
        (["dog; cat", "cat ", "dog;", None], [[0, 1], [0], [1], None]),
        (["['cat', 'dog']", '["cat"]', "[dog]", "[]"], [[0, 1], [0], [1], []]),
        (["cat|dog", "big cat", "dog", "dog"], [[1, 2], [0], [2], [2]]),
    ],
)
def test_text_of_several_labels_is_read_where_the_recipe_says_so(text, lists):
    rows = dataset(tags=(text, Value("string")))
    encoded, labels = read(rows, columns={"labels": "tags"})
    assert encoded["labels"][:] == lists
    assert labels.names == (("big cat", "cat", "dog") if "big cat" in text else ("cat", "dog"))


def test_text_of_several_labels_is_no_class_of_its_own():
    rows = dataset(tags=(["cat, dog", "cat", "dog", "hot, cold"], Value("string")))
    with pytest.raises(DataError, match=r"'cat, dog' is several others.*data\.columns\.labels=NAME"):
        read(rows)
    assert read(rows, columns={"label": "tags"})[1].names == ("cat", "cat, dog", "dog", "hot, cold")
    rows = dataset(tags=(["hot, cold", "cat", "dog"], Value("string")))
    assert read(rows)[1].names == ("cat", "dog", "hot, cold")


@pytest.mark.parametrize("kind", ["int64", "float64", "bool"])
def test_columns_of_classes(kind):
    values = {"cat": [1, 0, 1, 0], "dog": [0, 0, 1, 1], "weight": [3, 4, 1, 0]}
    rows = dataset(**{name: (column, Value(kind if name != "weight" else "int64")) for name, column in values.items()})
    if kind != "bool":
        with pytest.raises(DataError, match=r"data\.columns\.labels='cat,dog'"):
            read(rows)
    encoded, labels = read(rows, columns={"labels": "cat, dog"})
    assert labels.names == ("cat", "dog")
    assert encoded["labels"][:] == [[0], [], [0, 1], [1]]
    with pytest.raises(DataError, match="'weight' holds other values than 0 and 1"):
        read(rows, columns={"labels": "cat,weight"})
    with pytest.raises(DataError, match=r"no column 'dgo'\. Did you mean 'dog'"):
        read(rows, columns={"labels": "cat,dgo"})
