"""Masks read as class ids + 1 with 0 for ignored, against Pillow, numpy and arrays written out here."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from cv_hf.config import DataConfig
from cv_hf.data import LabelMap, check, load_split, semantic
from cv_hf.data import labels as label_maps
from cv_hf.data.findings import Findings
from cv_hf.data.sample import scattered_digits
from cv_hf.errors import DataError
from tests.data.boxed import photo, write
from tests.data.masked import HEIGHT, TASK, WIDTH, blocks, fitted, load, mask

GREY = LabelMap(("road", "car", "sky"), (0, 3, 7), 255)
COLOURS = LabelMap(("road", "car", "sky"), ("#804080", "#00008e", "#000000"))
ROAD, CAR, SKY = (128, 64, 128), (0, 0, 142), (0, 0, 0)


def folder(root, *values, images=None, **files):
    """images/ and masks/ of these values, one mask each, and other files."""
    written = {f"images/{number:02d}.jpg": photo(WIDTH, HEIGHT) for number in range(len(values))}
    written |= {
        f"masks/{number:02d}.png": value if isinstance(value, bytes) else mask(value)
        for number, value in enumerate(values)
    }
    return write(root, written | {name.replace("__", "."): text for name, text in files.items()})


def coloured(*colours):
    return np.array(colours, np.uint8)[blocks(*range(len(colours)))]


def read_as(splits):
    """The masks of train, fitted."""
    return [TASK.fit(row, (HEIGHT, WIDTH), splits.labels)[0]["mask"] for row in splits.train]


def short(value):
    """The name of a parameter, for which pytest would take the bytes of a file."""
    return "file" if isinstance(value, bytes) else None


# Modes of files


RAW = blocks(0, 3, 7, 255)
FITTED = blocks(1, 2, 3, 0)
PALETTE = [value for index in range(256) for value in (255 - index, index // 2, 7)]


@pytest.mark.parametrize(
    "content",
    [
        mask(RAW),
        mask(RAW, "BMP"),
        mask(RAW, "TIFF"),
        mask(RAW, "GIF"),
        mask(RAW, palette=PALETTE),
        mask(RAW, "TIFF", palette=PALETTE),
        mask(RAW, "PNG", palette=[value for index in range(256) for value in (255 - index,) * 3]),
        mask(RAW.astype(np.uint16)),
        mask(RAW.astype(np.uint16), "TIFF"),
        mask(RAW.astype(np.int32), "TIFF"),
        mask(RAW.astype(np.float32), "TIFF"),
        mask(RAW, mode="LA"),
        mask(RAW, mode="RGB"),
        mask(RAW, mode="RGBA"),
        mask(np.dstack([RAW, RAW, RAW, RAW // 2])),
    ],
    ids=short,
)
def test_values_of_every_mode(content):
    found, findings = fitted(content, GREY)
    assert findings == []
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, FITTED)


def test_a_palette_is_of_indices_as_pillow_has_them():
    few = mask(blocks(0, 1, 2), palette=[10, 20, 30, 200, 0, 0, 0, 0, 0])
    with PIL.Image.open(io.BytesIO(few)) as opened:
        assert opened.mode == "P"
        indices = np.asarray(opened)
    found, _ = fitted(few, LabelMap(("a", "b", "c"), (0, 1, 2), 255))
    np.testing.assert_array_equal(found, indices + 1)


@pytest.mark.parametrize(
    ("labels", "set_pixel"),
    [
        (LabelMap(("background", "cell"), (0, 255)), 2),
        (LabelMap(("background", "cell"), (0, 1), 255), 2),
        (LabelMap(("cell",), (0,), 255), 0),
    ],
)
def test_one_bit(labels, set_pixel):
    found, findings = fitted(mask(blocks(0, 1).astype(bool)), labels)
    assert findings == []
    np.testing.assert_array_equal(found, blocks(1, set_pixel))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_colours(mode):
    pixels = PIL.Image.fromarray(coloured(ROAD, CAR, SKY))
    content = io.BytesIO()
    (pixels.convert("P", palette=PIL.Image.Palette.ADAPTIVE) if mode == "P" else pixels.convert(mode)).save(
        content, "PNG"
    )
    found, findings = fitted(content.getvalue(), COLOURS)
    assert findings == []
    np.testing.assert_array_equal(found, blocks(1, 2, 3))
    # An all black mask that was saved in grey is one of colours too.
    np.testing.assert_array_equal(fitted(mask(blocks(0)), COLOURS)[0], blocks(3))


def test_sixteen_bits_and_more_than_254_classes():
    sources = tuple(range(1000, 1300))
    labels = LabelMap(tuple(map(str, sources)), sources, 0)
    found, findings = fitted(mask(blocks(0, 1000, 1299, kind=np.uint16)), labels)
    assert findings == []
    assert found.dtype == np.uint16
    np.testing.assert_array_equal(found, blocks(0, 1, 300, kind=np.uint16))
    for number, kind in ((254, np.uint8), (255, np.uint16)):
        labels = LabelMap(tuple(map(str, range(number))), tuple(range(number)))
        found, findings = fitted(mask(blocks(0, 253, 255)), labels)
        assert found.dtype == kind
        np.testing.assert_array_equal(found, blocks(1, 254, 0, kind=kind))
        assert [finding[2] for finding in findings] == ["255"]


# What is wrong with a mask


def test_unknown_values_are_ignored_and_named():
    found, findings = fitted(mask(blocks(0, 9, 3, 200, 9)), GREY)
    np.testing.assert_array_equal(found, blocks(1, 0, 2, 0, 0))
    assert findings == [("mask-unknown-value", "a.jpg", "9, 200")]
    _, findings = fitted(mask(coloured(ROAD, (1, 2, 3))), COLOURS)
    assert findings == [("mask-unknown-value", "a.jpg", "#010203")]
    _, findings = fitted(mask(blocks(*range(20), size=(6, 40))), GREY, (6, 40))
    assert findings == [("mask-unknown-value", "a.jpg", "1, 2, 4, 5, 6, 8, 9, 10, ...")]
    found, findings = fitted(mask(blocks(-1, 3, kind=np.int32), "TIFF"), GREY)
    np.testing.assert_array_equal(found, blocks(0, 2))
    assert findings == [("mask-unknown-value", "a.jpg", "-1")]


@pytest.mark.parametrize(
    ("content", "labels", "code", "reason"),
    [
        (b"nonsense", GREY, "unreadable-mask", "cannot identify image file"),
        (mask(RAW)[:60], GREY, "unreadable-mask", "truncated"),
        (b"", GREY, "missing-mask", "there is no mask"),
        (None, GREY, "missing-mask", "there is no mask"),
        (mask(RAW, "JPEG"), GREY, "lossy-mask", "JPEG"),
        (mask(coloured(ROAD, CAR), "JPEG"), COLOURS, "lossy-mask", "JPEG"),
        (mask(coloured(ROAD, CAR)), GREY, "unreadable-mask", "coloured, where the labels are numbers"),
        (mask(np.full((HEIGHT, WIDTH), 0.5, np.float32), "TIFF"), GREY, "unreadable-mask", "fractions"),
        (mask(RAW.T), GREY, "mask-size-mismatch", "the mask has 6x10 pixels, its image 10x6"),
        (mask(RAW[:5]), GREY, "mask-size-mismatch", "the mask has 10x5 pixels, its image 10x6"),
    ],
    ids=short,
)  # fmt: skip
def test_masks_that_cannot_be_used(tmp_path, content, labels, code, reason):
    image = tmp_path / "a.jpg"
    image.write_bytes(photo(WIDTH, HEIGHT))
    row = {"image": {"bytes": None, "path": str(image)}, "mask": {"bytes": content, "path": None}, "file": "a.jpg"}
    found, ((told, file, why),) = semantic.fit(row, (HEIGHT, WIDTH), labels)
    assert (found, told, file) == (None, code, "a.jpg")
    assert reason in why
    assert "EXIF" not in why


def test_a_file_that_is_not_there(tmp_path):
    assert fitted(None, GREY, path=str(tmp_path / "a.png")) == (None, [("missing-mask", "a.jpg", "there is no mask")])
    (tmp_path / "a.png").write_bytes(mask(RAW))
    np.testing.assert_array_equal(fitted(None, GREY, path=str(tmp_path / "a.png"))[0], FITTED)


def test_a_mask_with_exif_of_its_own_is_turned():
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    content = io.BytesIO()
    # Orientation 6 is shown turned by 90 degrees clockwise.
    PIL.Image.fromarray(np.rot90(RAW)).save(content, "PNG", exif=exif)
    np.testing.assert_array_equal(fitted(content.getvalue(), GREY)[0], FITTED)


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_gapped_and_huge_values(data):
    top = data.draw(st.sampled_from([255, 65535, 2**24, 2**31 - 1]))
    kind = {255: np.uint8, 65535: np.uint16}.get(top, np.int32)
    value = st.integers(0, top)
    sources = data.draw(st.lists(value, min_size=1, max_size=12, unique=True))
    ignored = data.draw(st.none() | value.filter(lambda each: each not in sources))
    known = [*sources, *([] if ignored is None else [ignored])]
    strays = data.draw(st.lists(value.filter(lambda each: each not in known), max_size=2))
    pixels = data.draw(arrays.arrays(kind, (4, 5), elements=st.sampled_from(known + strays)))
    labels = LabelMap(tuple(map(str, sources)), tuple(sources), ignored)
    found, findings = fitted(mask(pixels, "TIFF"), labels, (4, 5))
    expected = [[sources.index(each) + 1 if each in sources else 0 for each in row] for row in pixels.tolist()]
    np.testing.assert_array_equal(found, expected)
    lost = sorted({each for row in pixels.tolist() for each in row} - set(known))
    assert findings == ([("mask-unknown-value", "a.jpg", ", ".join(map(str, lost)))] if lost else [])


def test_classes_that_the_data_does_not_have():
    labels = LabelMap(("road", "car", "sky"), (None, 3, None), 255)
    np.testing.assert_array_equal(fitted(mask(blocks(3, 255)), labels)[0], blocks(2, 0))


# Labels


def labels_of(root, *values, **data):
    splits, lines = load(folder(root, *values), **data)
    (line,) = [line for line in lines if line.startswith("data: masks: ")]
    assert LabelMap.from_dict(json.loads(json.dumps(splits.labels.to_dict()))) == splits.labels
    return splits, line.removeprefix("data: masks: ")


def test_names_from_the_recipe(tmp_path):
    splits, line = labels_of(tmp_path, *[blocks(0, 1, 2, 255)] * 4, labels=["sky", "sea", "sand"])
    assert splits.labels == LabelMap(("sky", "sea", "sand"), (0, 1, 2), 255)
    assert line == "values 0 to 2, as data.labels names them; 255 ignored"
    np.testing.assert_array_equal(read_as(splits)[0], blocks(1, 2, 3, 0))


def test_names_that_skip_the_ignored_value(tmp_path):
    """ADE20K's: 0 is "other", 1 to 150 are the classes; reduced once, here."""
    names = [f"class {number}" for number in range(150)]
    splits, line = labels_of(tmp_path, *[blocks(0, 1, 2, 150)] * 4, labels=names, ignore_index=0)
    assert splits.labels == LabelMap(tuple(names), tuple(range(1, 151)), 0)
    assert line == "values 1 to 150, as data.labels names them; 0 ignored"
    np.testing.assert_array_equal(read_as(splits)[0], blocks(0, 1, 2, 150))
    splits, _ = labels_of(tmp_path / "b", *[blocks(0, 1, 3)] * 4, labels=["a", "b", "c"], ignore_index=1)
    assert splits.labels == LabelMap(("a", "b", "c"), (0, 2, 3), 1)


def test_values_and_names(tmp_path):
    splits, line = labels_of(
        tmp_path, *[blocks(7, 11, 12, 0)] * 4, labels={7: "road", 11: "car", 12: "sky", 0: "void"}, ignore_index=0
    )
    assert splits.labels == LabelMap(("road", "car", "sky"), (7, 11, 12), 0)
    assert line == "values 7, 11, 12, as data.labels names them; 0 (void) ignored"
    np.testing.assert_array_equal(read_as(splits)[0], blocks(1, 2, 3, 0))


def test_255_can_be_a_label(tmp_path):
    splits, line = labels_of(tmp_path, *[blocks(0, 128, 255)] * 4, labels={0: "a", 128: "b", 255: "c"})
    assert splits.labels == LabelMap(("a", "b", "c"), (0, 128, 255), None)
    assert line == "values 0, 128, 255, as data.labels names them; no value is ignored"


def test_colours_from_the_recipe(tmp_path):
    splits, line = labels_of(
        tmp_path,
        *[mask(coloured(ROAD, CAR, SKY))] * 4,
        labels={"#804080": "road", "#00008E": "car", "#000000": "void"},
        ignore_index=0,
    )
    assert splits.labels == LabelMap(("road", "car"), ("#804080", "#00008e"), 0)
    assert line == "2 colours, as data.labels names them; #000000 (void) ignored"
    np.testing.assert_array_equal(read_as(splits)[0], blocks(1, 2, 0))


ROAD_CAR_SKY = {"#804080": "road", "#00008e": "a car", "#000000": "sky"}
FILES = {
    "semicolons.csv": ("\ufeffname;r;g;b\nroad;128;64;128\na car;0;0;142\nsky;0;0;0\n", ROAD_CAR_SKY),
    "class_dict.csv": ("name,r,g,b\nroad,128,64,128\na car, 0, 0, 142\nsky,0,0,0\n", ROAD_CAR_SKY),
    "label_colors.txt": ("128 64 128\troad\n0 0 142\t\ta car\n\n0 0 0 sky\n", ROAD_CAR_SKY),
    "labelmap.txt": (
        "# label:color_rgb:parts:actions\nroad:128,64,128::\na car:0,0,142::\nsky:0,0,0::\n",
        ROAD_CAR_SKY,
    ),
    "id2label.json": ('{"0": "road", "3": "a car", "7": "sky"}', {0: "road", 3: "a car", 7: "sky"}),
    "_classes.csv": ("Pixel Value, Class\n0, road\n3, a car\n7, sky\n", {0: "road", 3: "a car", 7: "sky"}),
    "classes.txt": ("road\na car\nsky\n", {0: "road", 1: "a car", 2: "sky"}),
    "labels.txt": ("road\na car\nsky\n", {0: "road", 1: "a car", 2: "sky"}),
    "palette.json": ('{"road": [128, 64, 128], "a car": [0, 0, 142], "sky": [0, 0, 0]}', ROAD_CAR_SKY),
    "palette.yaml": ("'#804080': road\n'#00008E': a car\n'#000000': sky\n", ROAD_CAR_SKY),
    "palette.csv": ("r,g,b,label\n128,64,128,road\n0,0,142,a car\n0,0,0,sky\n", ROAD_CAR_SKY),
    "values.csv": ("0,road\n3,a car\n7,sky\n", {0: "road", 3: "a car", 7: "sky"}),
}


@pytest.mark.parametrize("name", FILES)
def test_files_of_labels(tmp_path, name):
    text, expected = FILES[name]
    values = list(expected)
    pixels = coloured(ROAD, CAR, SKY) if isinstance(values[0], str) else blocks(*values)
    root = folder(tmp_path / "data", *[pixels] * 4)
    write(Path(root), {name: text})
    found = [(tmp_path / "data", {"labels": name})]
    if name in semantic.LABEL_FILES:
        found.append((tmp_path / "data", {}))
    for place, data in found:
        splits, lines = load(place, **data)
        assert dict(zip(splits.labels.sources, splits.labels.names, strict=True)) == expected
        np.testing.assert_array_equal(read_as(splits)[0], blocks(1, 2, 3))
        named = "data.labels" if data else name
        assert any(f"as {named} names them" in line for line in lines)


def test_a_file_in_the_folder_of_a_split(tmp_path):
    files = {}
    for split in ("train", "valid"):
        files |= {f"{split}/{name}.jpg": photo(WIDTH, HEIGHT) for name in "ab"}
        files |= {f"{split}/{name}_mask.png": mask(blocks(0, 1)) for name in "ab"}
        files[f"{split}/_classes.csv"] = "Pixel Value, Class\n0, background\n1, leaf\n"
    splits, lines = load(write(tmp_path, files))
    assert splits.labels == LabelMap(("background", "leaf"), (0, 1), 255)
    assert any("as train/_classes.csv names them" in line for line in lines)


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("class_dict.csv", "name,r,g,b\nroad,128,64,256\n", "'road' has no colour of three numbers from 0 to 255"),
        ("class_dict.csv", "name,r,g,b\nroad,1,2,3\ncar,1,2,3\n", "'road' and 'car' have the same colour"),
        ("class_dict.csv", "name,colour,shade,hue\nroad,red,0,0\n", "is no palette"),
        ("class_dict.csv", "", "is no palette"),
        ("class_dict.csv", "name,r,g,b\nroad,1\n", "is no palette"),
        ("label_colors.txt", "1 2 3 a\n4 5 6 a\n", "two labels have the name 'a'"),
        ("id2label.json", '{"road": "0", "car": "1"}', "'road' is no value of a mask"),
        ("id2label.json", '{"road": [0, 0]}', "'road' has no colour"),
        ("id2label.json", "[]", "must hold a list of names"),
    ],
)
def test_files_that_are_wrong(tmp_path, name, text, reason):
    root = folder(tmp_path, *[blocks(0, 1)] * 4)
    write(Path(root), {name: text})
    with pytest.raises(DataError, match=reason):
        load(root)


def test_values_of_all_masks(tmp_path):
    values = [blocks(0, 4)] * 9 + [blocks(0, 200)] + [blocks(4, 9, 255)]
    splits, line = labels_of(tmp_path, *values)
    assert splits.labels == LabelMap(("0", "4", "9", "200"), (0, 4, 9, 200), 255)
    assert line == "values 0, 4, 9, 200, as the masks hold them; 255 ignored"
    splits, line = labels_of(tmp_path, *values, ignore_index=4)
    assert splits.labels == LabelMap(("0", "9", "200", "255"), (0, 9, 200, 255), 4)


def test_values_of_train_alone(tmp_path):
    pairs = {}
    for split, value in (("train", 3), ("val", 5)):
        pairs |= {f"images/{split}/{name}.jpg": photo(WIDTH, HEIGHT) for name in "ab"}
        pairs |= {f"masks/{split}/{name}.png": mask(blocks(0, 0, value)) for name in "ab"}
    splits, _ = load(write(tmp_path, pairs))
    assert splits.labels.sources == (0, 3)
    _, findings = TASK.fit(splits.validation[0], (HEIGHT, WIDTH), splits.labels)
    assert findings == [("mask-unknown-value", "images/val/a.jpg", "5")]


def test_huge_values_seen(tmp_path):
    pixels = blocks(0, 70_000, 2_000_000_000, kind=np.int32)
    files = {f"images/{name}.jpg": photo(WIDTH, HEIGHT) for name in "abcd"}
    files |= {f"masks/{name}.tif": mask(pixels, "TIFF") for name in "abcd"}
    splits, _ = load(write(tmp_path, files))
    assert splits.labels == LabelMap(("0", "70000", "2000000000"), (0, 70_000, 2_000_000_000), 255)
    np.testing.assert_array_equal(read_as(splits)[0], blocks(1, 2, 3))


def test_colours_seen(tmp_path):
    values = [mask(coloured(ROAD, SKY, CAR)), *[mask(blocks(0), mode="RGB")] * 5, mask(coloured(ROAD), palette=None)]
    splits, line = labels_of(tmp_path, *values)
    assert splits.labels == LabelMap(("#000000", "#00008e", "#804080"), ("#000000", "#00008e", "#804080"))
    assert line == "3 colours, as the masks hold them; no value is ignored"
    splits, line = labels_of(tmp_path, *values, ignore_index=0)
    assert splits.labels == LabelMap(("#00008e", "#804080"), ("#00008e", "#804080"), 0)
    assert line == "2 colours, as the masks hold them; #000000 ignored"


def test_one_coloured_mask_among_grey_ones(tmp_path):
    splits, _ = labels_of(tmp_path, *[blocks(0, 1, 2)] * 5, mask(coloured(ROAD, CAR)))
    assert splits.labels.sources == (0, 1, 2)


@pytest.mark.parametrize(
    ("values", "sources"),
    [
        ([blocks(0, 255), blocks(0)], (0, 255)),
        ([blocks(255)] * 2, (0, 255)),
        ([blocks(0, 1), blocks(0)], (0, 1)),
        ([blocks(0, 1, 255), blocks(0)], (0, 1)),
        ([mask(blocks(0, 1).astype(bool)), mask(blocks(0).astype(bool))], (0, 255)),
        ([mask(blocks(0, 1).astype(bool)), blocks(0, 255)], (0, 255)),
        ([mask(blocks(0, 1).astype(bool)), blocks(0, 1)], (0, 1)),
        ([mask(blocks(0, 255), mode="RGB"), blocks(0)], (0, 255)),
    ],
)
def test_two_values(tmp_path, values, sources):
    ignored = None if 255 in sources else 255
    for data, names in (
        ({}, ("background", "foreground")),
        ({"labels": ["background", "nucleus"]}, ("background", "nucleus")),
        ({"labels": {0: "background", 1: "nucleus"}}, ("background", "nucleus")),
    ):
        splits, _ = labels_of(tmp_path, *(value for value in values for _ in range(3)), **data)
        assert splits.labels == LabelMap(names, sources, ignored)


def test_two_values_one_of_which_is_ignored(tmp_path):
    splits, _ = labels_of(tmp_path, *[blocks(0, 255)] * 4, ignore_index=255)
    assert splits.labels == LabelMap(("0",), (0,), 255)


def test_pictures_are_no_masks(tmp_path):
    ramp = np.arange(256, dtype=np.uint8)[None].repeat(4, 0)
    with pytest.raises(DataError, match=r"the masks hold 256 different values.*\nIf not, name them in data.labels"):
        load(folder(tmp_path, *[ramp] * 4))
    noise = np.random.RandomState(0).randint(0, 256, (40, 40, 3), dtype=np.uint8)
    with pytest.raises(DataError, match="the masks hold 1600 different values"):
        load(folder(tmp_path / "b", *[noise] * 4))


def test_labels_that_are_not_those_of_the_masks(tmp_path):
    root = folder(tmp_path / "a", *[blocks(4, 5, 5, 0)] * 4)
    with pytest.raises(DataError, match=r"80% of the pixels .* they are 4, 5, the labels values 0 to 2.\nName them"):
        load(root, labels=["a", "b", "c"])
    root = folder(tmp_path / "b", *[coloured(ROAD, CAR)] * 4)
    with pytest.raises(DataError, match=r"images/00.jpg: the mask is coloured.*\nName the colours in data.labels"):
        load(root, labels=["a", "b", "c"])
    root = folder(tmp_path / "c", *[mask(blocks(0, 1), "JPEG")] * 4)
    for labels in (None, ["a", "b", "c"]):
        with pytest.raises(DataError, match=r"images/00.jpg: a JPEG"):
            load(root, labels=labels)


def test_another_dataset_with_other_values(tmp_path):
    """The model's classes stay; their values are those of each dataset."""
    model = LabelMap(("road", "car", "sky"), (0, 3, 7), 255)
    data = folder(tmp_path / "a", *[blocks(9, 1, 5)] * 2)
    text = json.dumps({"1": "sky", "5": "tree", "9": "road"})
    (tmp_path / "a/id2label.json").write_text(text)
    config = DataConfig(id=data)
    rows, findings = load_split(config, TASK, model, echo=lambda line: None)
    source = label_maps.LabelMap(("sky", "tree", "road"), (1, 5, 9), 255)
    known = model.with_sources_of(source)
    assert known == LabelMap(("road", "car", "sky"), (9, None, 1), 255)
    found, told = TASK.fit(rows[0], (HEIGHT, WIDTH), known)
    np.testing.assert_array_equal(found["mask"], blocks(1, 3, 0))
    assert told == [("mask-unknown-value", "images/00.jpg", "5")]
    assert not len(findings)


def test_a_model_that_shares_no_class_or_one_is_not_scored(tmp_path):
    model = LabelMap(("background", "cell"), (0, 255))
    data = DataConfig(id=folder(tmp_path, *[blocks(0, 0, 0, 1, 2, 3)] * 2))
    alone = r"only that of 'background' has a label, and none have 1, 2, 3\.\n.*data\.labels"
    with pytest.raises(DataError, match=alone):
        load_split(data, TASK, model, echo=lambda line: None)
    with pytest.raises(DataError, match=r"no class of the masks is one of the model's, cat, dog\.\n.*data\.labels"):
        load_split(data, TASK, LabelMap(("cat", "dog"), (8, 9)), echo=lambda line: None)


def test_classes_that_model_and_data_do_not_share_are_named(tmp_path):
    lines = []
    data = DataConfig(id=folder(tmp_path, *[blocks(0, 1, 3)] * 2))
    load_split(data, TASK, LabelMap(("road", "car", "sky"), (0, 1, 2), 255), echo=lines.append)
    assert "labels: 3: of the data, but no class of the model; not scored" in lines
    assert "labels: sky: of the model, but not in the data" in lines


def test_a_few_masks_that_can_be_read_do_not_make_up_for_the_rest(tmp_path):
    colours = mask(coloured(ROAD, CAR, SKY))
    data = folder(tmp_path, colours, colours, colours, blocks(0, 1, 2), images=4)
    with pytest.raises(DataError, match=r"only 1 of the 3 masks tried can be read|only 1 of the 4 masks tried"):
        load(data, labels=["a", "b", "c"], splits={"validation": 1})


@pytest.mark.parametrize(
    ("model", "data", "expected"),
    [
        # Two values that nothing names, of two conventions.
        (LabelMap(("background", "cell"), (0, 255)), LabelMap(label_maps.BINARY, (0, 1), 255), (0, 1)),
        (LabelMap(("foreground", "background"), (0, 1)), LabelMap(label_maps.BINARY, (0, 255)), (255, 0)),
        (LabelMap(("a", "b", "c"), (0, 1, 2)), LabelMap(label_maps.BINARY, (0, 1), 255), (None, None, None)),
        # Values that nothing names, one of which the model does not know.
        (LabelMap(("a", "b"), (0, 1), 255), LabelMap(("0", "1", "7"), (0, 1, 7), 255), (0, 1)),
        # Colours and numbers of the same classes.
        (LabelMap(("a", "b"), ("#000000", "#ffffff")), LabelMap(("a", "b"), (0, 1), 255), (0, 1)),
    ],
)
def test_sources_of_other_data(model, data, expected):
    assert model.with_sources_of(data) == LabelMap(model.names, expected, data.ignore_index)


# Columns


def rows_of(columns, **features):
    features = datasets.Features({name: features.get(name, datasets.Image()) for name in columns})
    return datasets.Dataset.from_dict(columns, features=features)


def images(number=4, content=None):
    return [{"bytes": content or photo(WIDTH, HEIGHT), "path": f"{index}.jpg"} for index in range(number)]


def masks_of(*values, number=4):
    return [{"bytes": mask(blocks(*values)), "path": f"{index}.png"} for index in range(number)]


@pytest.mark.parametrize(
    ("image", "target", "given"),
    [
        ("image", "annotation", {}),
        ("image", "mask", {}),
        ("pixel_values", "label", {}),
        ("image", "labels", {}),
        ("img", "semantic_segmentation", {}),
        ("image", "ground", {}),
        ("photo", "Mask", {}),
        ("left", "right", {"mask": "right"}),
        ("left", "right", {"image": "left"}),
        ("mask", "image", {"mask": "image", "image": "mask"}),
    ],
)
def test_columns(image, target, given):
    dataset = rows_of({image: images(), target: masks_of(0, 1)})
    found = semantic.canonical(dataset, DataConfig(id="a/b", columns=given))
    assert found.column_names == ["image", "mask"]
    assert found.features["mask"] == datasets.Image(decode=False)
    assert found[0]["image"]["bytes"] == photo(WIDTH, HEIGHT)
    assert found[0]["mask"]["bytes"] == mask(blocks(0, 1))


def test_columns_that_cannot_be_told():
    dataset = rows_of({"image": images(), "left": images(), "right": images()})
    with pytest.raises(DataError, match=r"no mask column was found among.*\nName it: data\.columns\.mask=NAME\."):
        semantic.canonical(dataset, DataConfig(id="a/b"))
    with pytest.raises(DataError, match=r"data.columns: 'label' is not a column of this task \(image, mask\)"):
        semantic.canonical(dataset, DataConfig(id="a/b", columns={"label": "left"}))
    with pytest.raises(DataError, match="there is no column 'centre'"):
        semantic.canonical(dataset, DataConfig(id="a/b", columns={"mask": "centre"}))
    features = {"label": datasets.ClassLabel(names=["a"])}
    dataset = rows_of({"image": images(), "label": [0] * 4}, **features)
    with pytest.raises(DataError, match="no mask column was found"):
        semantic.canonical(dataset, DataConfig(id="a/b"))
    with pytest.raises(DataError, match=r"data.columns.mask: column 'label' holds no images"):
        semantic.canonical(dataset, DataConfig(id="a/b", columns={"mask": "label"}))


def test_paths_in_a_column_that_is_not_declared_as_images(tmp_path):
    secret = tmp_path / "secret.png"
    secret.write_bytes(mask(blocks(0)))
    struct = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
    dataset = rows_of({"image": images(1), "mask": [{"bytes": None, "path": str(secret)}]}, mask=struct)
    with pytest.raises(DataError, match="paths instead of embedded masks"):
        semantic.canonical(dataset, DataConfig(id="a/b"))
    dataset = rows_of({"image": images(), "mask": masks_of(0, 1)}, mask=struct)
    assert semantic.canonical(dataset, DataConfig(id="a/b"))[0]["mask"]["bytes"] == mask(blocks(0, 1))


def parquet(dataset):
    content = io.BytesIO()
    dataset.to_parquet(content)
    return content.getvalue()


def test_parquet(tmp_path):
    classes = datasets.List(datasets.ClassLabel(names=["sky", "sea", "sand"]))
    dataset = rows_of(
        {"image": images(8), "annotation": masks_of(0, 1, 2, number=8), "shown": [[0, 1, 2]] * 8, "scene": [0] * 8},
        shown=classes,
        scene=datasets.ClassLabel(names=["coast", "city"]),
    )
    (tmp_path / "train.parquet").write_bytes(parquet(dataset))
    splits, lines = load(tmp_path)
    assert splits.labels == LabelMap(("sky", "sea", "sand"), (0, 1, 2), 255)
    assert splits.train.column_names == ["image", "mask", "file"]
    assert "data: masks: values 0 to 2, as the dataset's classes name them; 255 ignored" in lines
    assert any("columns: image from image, mask from annotation" in line for line in lines)
    np.testing.assert_array_equal(read_as(splits)[0], blocks(1, 2, 3))


def test_tables_of_paths(tmp_path):
    files = {f"photos/{name}.jpg": photo(WIDTH, HEIGHT) for name in "abcd"}
    files |= {f"marks/{name}.png": mask(blocks(0, 1, 2)) for name in "abc"}
    table = "".join(f"photos/{name}.jpg,marks/{name}.png\n" for name in "abcd")
    outside = tmp_path / "outside.png"
    outside.write_bytes(mask(blocks(0)))
    table += "photos/a.jpg,../outside.png\n"
    root = write(tmp_path / "data", files | {"train.csv": "image,mask\n" + table})
    splits, _ = load(root)
    rows = [*splits.train, *splits.validation]
    fits = {row["file"]: TASK.fit(row, (HEIGHT, WIDTH), splits.labels) for row in rows}
    assert [name for name, (found, _) in sorted(fits.items()) if found] == [f"photos/{name}.jpg" for name in "abc"]
    assert fits["photos/d.jpg"][1] == [("missing-mask", "photos/d.jpg", "there is no mask")]
    assert splits.findings.to_dict()["path-outside"]["files"] == ["../outside.png"]


def test_metadata_of_an_image_folder(tmp_path):
    files = {f"train/{name}.jpg": photo(WIDTH, HEIGHT) for name in "abcd"}
    files |= {f"train/{name}0.png": mask(blocks(0, 1, 2)) for name in "abcd"}
    files["train/metadata.csv"] = "file_name,mask_file_name\n" + "".join(f"{n}.jpg,{n}0.png\n" for n in "abcd")
    splits, _ = load(write(tmp_path, files))
    assert splits.source.format == "imagefolder"
    np.testing.assert_array_equal(read_as(splits)[0], blocks(1, 2, 3))


def test_rows_without_a_mask(tmp_path):
    train = rows_of({"image": images(8), "mask": [*masks_of(0, 1, number=7), None]})
    test = rows_of({"image": images(2), "mask": [None, None]})
    for name, split in (("train", train), ("test", test)):
        (tmp_path / f"{name}.parquet").write_bytes(parquet(split))
    splits, lines = load(tmp_path)
    assert len(splits.train) + len(splits.validation) == 7
    assert splits.test is None
    assert "data: the split test has no labels, and is left out" in lines
    assert splits.findings.count("missing-label") == 1


def test_the_doctor_reads_every_mask(tmp_path):
    root = folder(tmp_path, *[blocks(0, 1, 2)] * 4, blocks(0, 9), blocks(0, size=(5, 5)), mask(blocks(0), "JPEG"))
    diagnosis = check(DataConfig(id=root, labels=["a", "b", "c"]), TASK, lambda line: None)
    found = {code: entry for code, entry in diagnosis.findings.to_dict().items() if entry["effect"] != "noted"}
    assert {code: entry["files"] for code, entry in found.items()} == {
        "mask-unknown-value": ["images/04.jpg"],
        "mask-size-mismatch": ["images/05.jpg"],
        "lossy-mask": ["images/06.jpg"],
    }
    assert found["mask-unknown-value"]["reasons"] == {"images/04.jpg": "9"}


# The Hub


def test_a_dataset_of_the_hub(hub):
    dataset = rows_of({"image": images(8), "annotation": masks_of(0, 1, 2, number=8)})
    files = {"data/train-00000-of-00001.parquet": parquet(dataset)}
    names = {"0": "background", "1": "hat", "2": "hair"}
    repository = hub.add_repo("tester/parsing", type="dataset", files=files | {"id2label.json": json.dumps(names)})
    splits, lines = load("tester/parsing")
    assert splits.labels == LabelMap(("background", "hat", "hair"), (0, 1, 2), 255)
    assert "data: masks: values 0 to 2, as id2label.json of the dataset names them; 255 ignored" in lines
    np.testing.assert_array_equal(read_as(splits)[0], blocks(1, 2, 3))
    # The names are those of the commit that is read.
    old = splits.source.commit
    repository.commit({"id2label.json": json.dumps({**names, "2": "wig"})})
    assert load("tester/parsing")[0].labels.names[2] == "wig"
    assert load("tester/parsing", revision=old)[0].labels.names[2] == "hair"
    assert load("tester/parsing", labels=["a", "b", "c"])[0].labels.names == ("a", "b", "c")
    offline = "from tests.data.masked import load\nsplits, lines = load('tester/parsing')\nprint(splits.labels.names)\n"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    answer = subprocess.run([sys.executable, "-c", offline], capture_output=True, text=True, env=environment)
    assert answer.stdout.splitlines()[-1:] == ["('background', 'hat', 'wig')"], answer.stderr


def test_a_dataset_of_the_hub_without_names(hub):
    dataset = rows_of({"image": images(8), "label": masks_of(0, 255, number=8)})
    hub.add_repo("tester/cells", type="dataset", files={"train.parquet": parquet(dataset)})
    splits, lines = load("tester/cells")
    assert splits.labels == LabelMap(("background", "foreground"), (0, 255))
    assert "data: masks: values 0, 255, as the masks hold them; no value is ignored" in lines
    assert any("columns: image from image, mask from label" in line for line in lines)
    assert semantic.present(splits.train) is None
    assert list(semantic.strata(splits.train)) == [None] * len(splits.train)
    assert "class-without-samples" not in splits.findings


# Segments


def test_classes_of_segments():
    pixels = np.array([0, 1000, 70_000, 5], np.uint32)[blocks(0, 1, 2, 3)]
    content = mask(np.dstack([pixels & 255, pixels >> 8 & 255, pixels >> 16]).astype(np.uint8))
    segments = [{"id": 1000, "category_id": 9}, {"id": 70_000, "category_id": 4}, {"id": 5, "category_id": None}]
    feature = datasets.List({"id": datasets.Value("int64"), "category_id": datasets.Value("int64")})
    rows = {"image": images(1), "mask": [{"bytes": content, "path": None}], "segments_info": [segments]}
    data = DataConfig(id="a/b", labels={4: "sea", 9: "sky"})
    split = semantic.canonical(rows_of(rows, segments_info=feature), data).add_column("file", ["a.jpg"])
    assert set(split.column_names) == {"image", "mask", "segments_info", "file"}
    labels = semantic.label_map({"train": split}, data)
    assert (labels.names, labels.sources) == (("sea", "sky"), (4, 9))
    cleaned, line = semantic.clean({"train": split}, labels, data, "hub", Findings())
    assert line == "masks: segments of 2 classes; void ignored"
    encoded = semantic.encode(cleaned["train"], labels)
    assert semantic.present(encoded) == {"sea", "sky"}
    found, findings = semantic.fit(encoded[0], (HEIGHT, WIDTH), labels)
    assert findings == []
    assert found["mask"].dtype == np.uint8
    np.testing.assert_array_equal(found["mask"], blocks(0, 2, 1, 0))
    assert semantic.fit(encoded[0], (HEIGHT, HEIGHT), labels)[1][0][0] == "mask-size-mismatch"


def test_segments_and_masks_of_one_dataset_agree(tmp_path):
    root = scattered_digits(tmp_path / "digits", train=6, validation=2, test=2)
    by_masks, _ = load(root)
    by_segments, lines = load(root, format="panoptic")
    assert by_masks.labels.names == by_segments.labels.names
    assert "data: masks: segments of 11 classes; void ignored" in lines
    for name in ("train", "test"):
        one, other = getattr(by_masks, name), getattr(by_segments, name)
        assert len(one) == len(other) > 0
        for row, same in zip(one, other, strict=True):
            values = np.asarray(PIL.Image.open(row["mask"]["path"]))
            for splits, each in ((by_masks, row), (by_segments, same)):
                fitting, findings = TASK.fit(each, values.shape, splits.labels)
                assert findings == []
                np.testing.assert_array_equal(fitting["mask"], values + 1)
