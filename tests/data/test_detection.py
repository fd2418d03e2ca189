from __future__ import annotations

import io
import json
import types
from collections import Counter

import datasets
import numpy as np
import PIL.Image
import pytest
from datasets import ClassLabel, Features, LargeList, List, Value
from hypothesis import given, settings
from hypothesis import strategies as st

from cv_hf import boxes
from cv_hf.config import DataConfig
from cv_hf.data import Findings, LabelMap, detection, load_split, load_splits
from cv_hf.data.annotations import upright_size
from cv_hf.data.box_format import prove
from cv_hf.errors import DataError

TASK = types.SimpleNamespace(
    name="object-detection",
    formats=("coco", "voc", "yolo"),
    moved="bboxes",
    **{name: getattr(detection, name) for name in ("canonical", "clean", "label_map", "encode", "strata", "present")},
)
NAMES = ["cat", "dog", "owl"]
# Of images of 60x40 pixels. Only xywh fits all: the first starts right of its width.
BOXES = [[[50.0, 20.0, 10.0, 15.0], [0.0, 0.0, 60.0, 40.0]], [], [[5.5, 5.0, 20.0, 30.25]], [[30.0, 1.0, 5.0, 8.0]]]
CATEGORIES = [[2, 0], [], [2], [0]]
FLOATS = List(List(Value("float32")))


def photo(width=60, height=40, orientation=None):
    content, exif = io.BytesIO(), PIL.Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    PIL.Image.new("RGB", (width, height), (90, 120, 40)).save(content, "JPEG", exif=exif)
    return content.getvalue()


def dataset(columns, features, image=None, number=4):
    images = [{"bytes": image or photo(), "path": f"{index}.jpg"} for index in range(number)]
    return datasets.Dataset.from_dict(
        {"image": images, **columns}, features=Features({"image": datasets.Image(), **features})
    )


def nested(bbox=BOXES, category=CATEGORIES, feature=None, **data):
    objects = [{"bbox": b, "category": c} for b, c in zip(bbox, category, strict=True)]
    features = {"objects": {"bbox": FLOATS, "category": List(feature or ClassLabel(names=NAMES))}}
    return dataset({"objects": objects}, features, number=len(bbox), **data)


def prepared(rows, source_labels=None, source_format="hub", **data):
    """Canonical, cleaned, encoded; with the labels, the findings and the line."""
    data, findings = DataConfig(id="x", **data), Findings()
    rows = detection.canonical(rows, data)
    rows = rows.add_column("file", [f"{index}.jpg" for index in range(len(rows))])
    labels = detection.label_map({"train": rows}, data, source_labels)
    cleaned, line = detection.clean({"train": rows}, labels, data, source_format, findings)
    return detection.encode(cleaned["train"], labels), labels, findings, line


def objects_of(rows):
    """Per image [(class name, box)]."""
    names = rows.features["objects"]["category"].feature.names
    found = []
    for row in rows:
        objects = row["objects"]
        assert len({len(values) for values in objects.values()}) == 1
        assert objects["area"] == pytest.approx([box[2] * box[3] for box in objects["bbox"]])
        found.append(list(zip([names[index] for index in objects["category"]], objects["bbox"], strict=True)))
    return found


def expected(names=NAMES, values=CATEGORIES):
    return [[(names[value], box) for value, box in zip(v, b, strict=True)] for v, b in zip(values, BOXES, strict=True)]


INT = Value("int64")
TEXT = [[NAMES[value] for value in row] for row in CATEGORIES]
SHAPES = {
    # cppe-5 and most others
    "dict of lists": (
        {
            "objects": [
                {"id": list(range(len(b))), "area": [w * h for _, _, w, h in b], "bbox": b, "category": c}
                for b, c in zip(BOXES, CATEGORIES, strict=True)
            ],
            "image_id": [10, 20, 30, 40],
            "width": [60] * 4,
            "height": [40] * 4,
        },
        {
            "objects": {
                "id": List(INT),
                "area": List(INT),
                "bbox": List(List(Value("float32"), length=4)),
                "category": List(ClassLabel(names=NAMES)),
            },
            "image_id": INT,
            "width": Value("int32"),
            "height": Value("int32"),
        },
    ),
    "list of dicts": (
        {
            "annotations": [
                [
                    {"bbox": box, "category_id": value, "id": 7, "segmentation": [[0.0, 1.0, 2.0, 3.0]], "iscrowd": 0}
                    for box, value in zip(b, c, strict=True)
                ]
                for b, c in zip(BOXES, CATEGORIES, strict=True)
            ]
        },
        {
            "annotations": List(
                {
                    "bbox": List(Value("float64")),
                    "category_id": ClassLabel(names=NAMES),
                    "id": INT,
                    "segmentation": FLOATS,
                    "iscrowd": INT,
                }
            )
        },
    ),
    # DocLayNet
    "columns of lists": (
        {"bboxes": BOXES, "category_id": CATEGORIES},
        {"bboxes": FLOATS, "category_id": List(ClassLabel(names=NAMES))},
    ),
    "large lists": (
        {"object": [{"boxes": b, "labels": c} for b, c in zip(BOXES, CATEGORIES, strict=True)]},
        {"object": {"boxes": LargeList(LargeList(Value("float64"))), "labels": LargeList(ClassLabel(names=NAMES))}},
    ),
    "text": (
        {"objects": [{"bbox": b, "label": c} for b, c in zip(BOXES, TEXT, strict=True)]},
        {"objects": {"bbox": FLOATS, "label": List(Value("large_string"))}},
    ),
    # Text names beside numbers are what the classes are called.
    "ids and names": (
        {
            "objects": [
                {"bbox": b, "category_id": c, "category_name": t}
                for b, c, t in zip(BOXES, CATEGORIES, TEXT, strict=True)
            ]
        },
        {"objects": {"bbox": FLOATS, "category_id": List(INT), "category_name": List(Value("string"))}},
    ),
    "structs": (
        {
            "objects": [
                [{"box": dict(zip("xywh", box, strict=True)), "class": t} for box, t in zip(b, c, strict=True)]
                for b, c in zip(BOXES, TEXT, strict=True)
            ]
        },
        {"objects": List({"box": {edge: Value("float64") for edge in "xywh"}, "class": Value("string")})},
    ),
}


def reason_of(shape, number):
    """Why the boxes are taken as xywh."""
    if shape == "structs":
        return "as the names of their numbers say"
    return f"proved: only xywh keeps all {number} boxes inside their images"


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_in_the_wild(shape):
    rows, labels, findings, line = prepared(dataset(*SHAPES[shape]))
    assert [sorted(image) for image in objects_of(rows)] == [sorted(image) for image in expected()]
    assert labels.names == (("cat", "dog", "owl") if "ClassLabel" in str(SHAPES[shape][1]) else ("cat", "owl"))
    assert set(rows.column_names) - {"width", "height"} == {"image", "image_id", "objects", "file"}
    assert rows["image_id"][:] == ([10, 20, 30, 40] if "image_id" in SHAPES[shape][0] else [0, 1, 2, 3])
    assert line == f"boxes: xywh, {reason_of(shape, 4)}"
    assert not len(findings)


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_by_the_hub(hub, shape):
    content = io.BytesIO()
    dataset(*SHAPES[shape]).to_parquet(content)
    name = f"tester/{shape.replace(' ', '-')}"
    hub.add_repo(name, type="dataset", files={"train.parquet": content.getvalue(), "test.parquet": content.getvalue()})
    lines = []
    splits = load_splits(DataConfig(id=name, splits={"validation": 0.25}), TASK, 0, lines.append)
    assert [sorted(image) for image in objects_of(splits.test)] == [sorted(image) for image in expected()]
    assert sorted(splits.train["file"][:] + splits.validation["file"][:]) == [
        f"train[{index}] {index}.jpg" for index in range(4)
    ]
    assert len(splits.train) + len(splits.validation) == 4
    assert any("bbox from" in line and "category from" in line for line in lines)
    assert f"data: boxes: xywh, {reason_of(shape, 8)}" in lines


def test_metadata_beside_images(tmp_path):
    lines = []
    for index, (b, c) in enumerate(zip(BOXES, TEXT, strict=True)):
        (tmp_path / f"{index}.jpg").write_bytes(photo())
        lines.append(json.dumps({"file_name": f"{index}.jpg", "objects": {"bbox": b, "category": c}}))
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    rows, _ = load_split(
        DataConfig(id=str(tmp_path)), TASK, LabelMap(("owl", "cat"), ("owl", "cat")), None, lines.append
    )
    assert objects_of(rows) == expected()
    assert rows[0]["objects"]["category"] == [0, 1]
    assert rows["file"][:] == ["0.jpg", "1.jpg", "2.jpg", "3.jpg"]


def test_columns_that_the_recipe_names():
    feature = {"objects": {"bbox": FLOATS, "species": List(Value("string")), "label": List(INT)}}
    values = [{"bbox": b, "species": t, "label": [7] * len(t)} for b, t in zip(BOXES, TEXT, strict=True)]
    for name in ("species", "objects.species"):
        rows, *_ = prepared(dataset({"objects": values}, feature), columns={"category": name})
        assert objects_of(rows) == expected()
    odd = {"regions": BOXES, "kinds": TEXT, "other": BOXES}
    rows, *_ = prepared(
        dataset(odd, {"regions": FLOATS, "kinds": List(Value("string")), "other": FLOATS}),
        columns={"bbox": "regions", "category": "kinds"},
    )
    assert objects_of(rows) == expected()
    two = {
        "a": [{"bbox": b, "label": t} for b, t in zip(BOXES, TEXT, strict=True)],
        "b": [{"bbox": b, "label": t} for b, t in zip(BOXES[::-1], TEXT[::-1], strict=True)],
    }
    rows = dataset(two, {name: {"bbox": FLOATS, "label": List(Value("string"))} for name in two})
    with pytest.raises(DataError, match="more than one column could hold the boxes"):
        prepared(rows)
    assert objects_of(prepared(rows, columns={"objects": "a"})[0]) == expected()


@pytest.mark.parametrize(
    ("columns", "match"),
    [
        ({"objcts": "objects"}, "Did you mean 'objects'"),
        ({"objects": "objets"}, "no column 'objets'.*Did you mean 'objects'"),
        ({"category": "categry"}, "'categry' is not there.*Did you mean 'category'"),
        ({"bbox": "category"}, "'category' is of a type that is not read"),
        ({"image_id": "nope"}, "not one of the columns that fit"),
    ],
)
def test_wrong_columns_are_refused(columns, match):
    with pytest.raises(DataError, match=match) as error:
        prepared(nested(), columns=columns)
    assert len(str(error.value).splitlines()) <= 2


def test_no_boxes_at_all():
    with pytest.raises(
        DataError, match=r"no column of boxes was found among: label.*\nName it: data.columns.objects=NAME"
    ):
        prepared(dataset({"label": [0, 1, 0, 1]}, {"label": INT}))


def test_boxes_without_classes_need_the_name_of_one():
    rows = dataset({"faces": [{"bbox": b} for b in BOXES]}, {"faces": {"bbox": FLOATS}})
    with pytest.raises(DataError, match=r"have no classes.*data.labels=\[face\]"):
        prepared(rows)
    with pytest.raises(DataError, match="have no classes"):
        prepared(rows, labels=["face", "hand"])
    for given_labels in (["face"], {5: "face"}):
        encoded, labels, *_ = prepared(rows, labels=given_labels)
        assert labels.names == ("face",)
        assert [len(row["objects"]["category"]) for row in encoded] == [2, 0, 1, 1]


def test_area_and_crowds_are_kept():
    values = [
        {"bbox": [[50, 20, 10, 15], [0, 0, 60, 40]], "label": [0, 1], "area": [70.5, None], "iscrowd": [1, None]},
        {"bbox": [[0, 0, 10, 10]], "label": [0], "area": [0.0], "iscrowd": [0]},
    ]
    feature = {
        "objects": {"bbox": FLOATS, "label": List(INT), "area": List(Value("float64")), "iscrowd": List(Value("int8"))}
    }
    rows, *_ = prepared(dataset({"objects": values}, feature, number=2))
    assert [row["objects"]["area"] for row in rows] == [[70.5, 2400.0], [100.0]]
    assert [row["objects"]["iscrowd"] for row in rows] == [[True, False], [False]]


# The format of boxes.


@st.composite
def scattered(draw):
    """Boxes of random sizes in random images, as many as tell xywh from xyxy; (xywh (n, 4), sizes (n, 2))."""
    random = np.random.RandomState(draw(st.integers(0, 2**31)))
    number = draw(st.integers(60, 200))
    sizes = random.randint(50, 1000, (number, 2)).astype(np.float64)
    extent = random.uniform(0.05, 0.6, (number, 2)) * sizes[:, ::-1]
    corner = random.uniform(0, 1, (number, 2)) * (sizes[:, ::-1] - extent)
    return np.concatenate([corner, extent], axis=1), sizes


WRITTEN = {
    "xywh": lambda xywh, size: xywh,
    "xyxy": lambda xywh, size: boxes.xywh_to_xyxy(xywh),
    "cxcywh_norm": boxes.xywh_to_cxcywh_norm,
    "xyxy_norm": lambda xywh, size: boxes.xyxy_to_xyxy_norm(boxes.xywh_to_xyxy(xywh), size),
    "xywh_norm": boxes.xywh_to_xywh_norm,
}


@pytest.mark.parametrize("name", WRITTEN)
@settings(max_examples=25, deadline=None)
@given(data=scattered())
def test_each_format_is_proved(name, data):
    xywh, sizes = data
    source = WRITTEN[name](xywh, sizes)
    proof = prove(source, sizes)
    assert proof.format == name
    assert proof.kept[name] == proof.number == len(xywh)


@pytest.mark.parametrize("name", WRITTEN)
def test_a_few_bad_boxes_neither_hinder_a_proof_nor_make_a_wrong_one(name):
    random = np.random.RandomState(0)
    extent = random.uniform(5, 40, (2000, 2))
    xywh = np.concatenate([random.uniform(0, 1, (2000, 2)) * ([640, 480] - extent), extent], axis=1)
    sizes = np.full((2000, 2), (480, 640), np.float64)
    source = WRITTEN[name](xywh, sizes)
    scale = 1 if name.endswith("norm") else 640
    source[0] = np.nan
    source[1] = 0
    source[2:4] = np.array([0.5, 0.5, 0.1, 0.1]) * scale
    source[4:6] = np.array([0.1, 0.1, 0.9, 0.9]) * scale * 1.02
    source[6] = np.array([0.9, 0.9, 5, 5]) * scale
    assert prove(source, sizes).format == name


def test_a_careless_hand_does_not_refute_a_format():
    # Of 60x40 pixels; the second box leaves by two, and would fit as xyxy.
    source = np.array([[50, 20, 10, 15], [1, 1, 61, 39]], np.float64)
    assert prove(source, np.array([[40, 60]] * 2, np.float64)).format == "xywh"


def test_an_ambiguous_format_is_an_error_that_shows_a_box():
    rows = nested([[[10.0, 5.0, 30.0, 20.0]]], [[0]])
    with pytest.raises(DataError) as error:
        prepared(rows)
    first, second = str(error.value).splitlines()
    assert first.endswith("of 1 boxes xywh keeps 1, xyxy keeps 1 inside their images.")
    assert "Set data.box_format" in second
    assert "0.jpg box 0, [10, 5, 30, 20] of 60x40 pixels" in second
    assert "as xywh from (10, 5) to (40, 25), as xyxy from (10, 5) to (30, 20)" in second
    assert objects_of(prepared(rows, box_format="xywh")[0]) == [[("cat", [10, 5, 30, 20])]]
    rows, _, _, line = prepared(rows, box_format="xyxy")
    assert objects_of(rows) == [[("cat", [10, 5, 20, 15])]]
    assert line == "boxes: xyxy, as data.box_format says"


def test_no_format_fits():
    with pytest.raises(DataError, match="of 2 boxes xywh keeps 0, xyxy keeps 0"):
        prepared(nested([[[500.0, 500.0, 900.0, 900.0], [1000.0, 20.0, 5.0, 5.0]]], [[0, 0]]))


def test_the_proof_asks_the_images_not_the_annotations():
    # Stored as 40x60 with an orientation that turns it: upright it is 60x40, where the boxes lie.
    turned = photo(40, 60, orientation=6)
    values = [{"bbox": b, "category": c} for b, c in zip(BOXES, CATEGORIES, strict=True)]
    columns = {"objects": values, "width": [40, 0, 40, 1000], "height": [60, 0, 60, 1000]}
    features = {"objects": {"bbox": FLOATS, "category": List(ClassLabel(names=NAMES))}, "width": INT, "height": INT}
    rows, _, findings, _ = prepared(dataset(columns, features, image=turned))
    assert objects_of(rows) == expected()
    assert findings.to_dict()["size-mismatch"]["reasons"] == {"0.jpg": "60x40 pixels, not 40x60"}
    assert len(findings) == 1


def of_turned(bbox, orientation, stated=(60, 40), **data):
    """Rows of images stored at 60x40 that EXIF turns, after clean() and fit(); their boxes, and the findings."""
    objects = [{"bbox": each, "category": [0] * len(each)} for each in bbox]
    columns = {"objects": objects, "width": [stated[0]] * len(bbox), "height": [stated[1]] * len(bbox)}
    features = {"objects": {"bbox": FLOATS, "category": List(ClassLabel(names=NAMES))}, "width": INT, "height": INT}
    image = photo(orientation=orientation)
    rows, _, findings, _ = prepared(dataset(columns, features, image=image, number=len(bbox)), **data)
    size, found = upright_size({"bytes": image, "path": None}), []
    for row in rows:
        row, more = detection.fit(row, size)
        found.append(row["objects"]["bbox"])
        for finding in more:
            findings.add(*finding)
    return found, findings


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("box_format", ["xywh", "cxcywh_norm"])
def test_boxes_of_the_stored_pixels_are_turned_with_the_image(orientation, box_format):
    stored = [[[50.0, 20.0, 8.0, 15.0], [1.0, 2.0, 20.0, 10.0]], []]
    given = [boxes.xywh_to_cxcywh_norm(each, (40, 60)).tolist() for each in stored] if "norm" in box_format else stored
    found, findings = of_turned(given, orientation, box_format=box_format)
    sideways = orientation >= 5
    expected = boxes.turned_xywh(stored[0], (40, 60), orientation if sideways else 1)
    np.testing.assert_allclose(found[0], expected, atol=1e-4)
    assert findings.count("box-turned") == len(findings) == 2 * sideways
    if orientation == 6 and box_format == "xywh":
        assert findings.reasons("box-turned")["0.jpg box 1"] == "xywh [28, 1, 10, 20] in an image of 40x60"


def test_a_box_that_leaves_the_stored_image_is_cut_there_and_turned():
    found, findings = of_turned([[[50.0, 30.0, 5.0, 14.0]]], 6, box_format="xywh")
    assert found == [[[0, 50, 10, 5]]]
    assert set(findings) == {"box-clipped", "box-turned"}


@pytest.mark.parametrize("stated", [(40, 60), (0, 0), (30, 45)])
def test_boxes_of_the_upright_image_stay(stated):
    found, findings = of_turned([[[20.0, 10.0, 12.0, 25.0]]], 6, stated=stated, box_format="xywh")
    assert found == [[[20, 10, 12, 25]]]
    assert "box-turned" not in findings


def test_a_box_that_only_the_upright_image_holds_speaks_for_its_split():
    upright = [[[20.0, 45.0, 12.0, 10.0]], [[20.0, 10.0, 12.0, 25.0]]]
    found, findings = of_turned(upright, 6, box_format="xywh")
    assert found == upright
    assert findings.to_dict()["size-mismatch"]["reasons"] == {"0.jpg": "40x60 pixels, not 60x40"}
    assert len(findings) == 1


def test_relative_boxes_become_pixels_of_the_upright_image():
    source = [[boxes.xywh_to_cxcywh_norm([box], (40, 60))[0].tolist() for box in image] for image in BOXES]
    rows, _, findings, line = prepared(nested(source, image=photo(40, 60, orientation=8)))
    for found, wanted in zip(objects_of(rows), expected(), strict=True):
        assert [name for name, _ in found] == [name for name, _ in wanted]
        np.testing.assert_allclose([b for _, b in found], [b for _, b in wanted], atol=1e-4)
    assert line.startswith("boxes: cxcywh_norm, proved")
    assert not len(findings)


@pytest.mark.parametrize(("source_format", "own"), [("yolo", "cxcywh_norm"), ("voc", "xyxy")])
def test_formats_with_a_box_format_of_their_own(source_format, own):
    rows, *_ = prepared(nested(), source_format=source_format, box_format=own)
    assert objects_of(rows) == expected()
    with pytest.raises(DataError, match=f"{source_format} files hold {own} boxes, not xywh"):
        prepared(nested(), source_format=source_format, box_format="xywh")


def test_a_stated_format_that_loses_most_boxes_is_refused():
    rows = nested([[[50.0, 20.0, 10.0, 15.0]]] * 30, [[0]] * 30)
    with pytest.raises(DataError, match=r"30 of 30 boxes are none as xyxy.*\nSet data.box_format"):
        prepared(rows, box_format="xyxy")


# Bad boxes.


def judged(box, width=60, height=40):
    """What becomes of an xywh box: (code or None, box or None); the reference, one number at a time."""
    x, y, w, h = box
    if not all(np.isfinite(box)):
        return "box-not-finite", None
    if w < 0 or h < 0:
        return "box-inverted", None
    if w == 0 or h == 0:
        return "box-zero-area", None
    if x >= -0.5 and y >= -0.5 and x + w <= width + 0.5 and y + h <= height + 0.5:
        return None, list(box)
    left, top, right, bottom = max(x, 0), max(y, 0), min(x + w, width), min(y + h, height)
    if right - left < min(w, 0.5) * 0.999 or bottom - top < min(h, 0.5) * 0.999:
        return "box-outside", None
    return "box-clipped", [left, top, right - left, bottom - top]


EDGE = st.one_of(
    st.sampled_from([0.0, 40.0, 60.0, -0.4, 0.3, float("nan"), float("inf")]), st.floats(-90, 90, width=32)
)
BOX = st.lists(EDGE, min_size=4, max_size=4)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(BOX, max_size=4), min_size=1, max_size=4), st.booleans())
def test_bad_boxes_lose_themselves_and_nothing_else(images, annotated):
    images = [*images, [[0.0, 0.0, 60.0, 40.0]]]
    columns = {"objects": [{"bbox": image, "label": ["a"] * len(image)} for image in images]}
    features = {"objects": {"bbox": List(List(Value("float64"))), "label": List(Value("string"))}}
    if annotated:
        columns |= {"width": [60] * len(images), "height": [40] * len(images)}
        features |= {"width": INT, "height": INT}
    rows, _, findings, _ = prepared(dataset(columns, features, number=len(images)), box_format="xywh")
    assert len(rows) == len(images)
    counted = Counter()
    for index, (row, image) in enumerate(zip(rows, images, strict=True)):
        # Embedded images without sizes in the annotations are judged when they are decoded.
        before = len(row["objects"]["bbox"])
        row, late = detection.fit(row, (40, 60))
        outcomes = [judged(box) for box in image]
        kept = [box for _, box in outcomes if box is not None]
        assert np.allclose(np.array(row["objects"]["bbox"]).reshape(-1, 4), np.array(kept).reshape(-1, 4), atol=1e-9)
        assert row["objects"]["area"] == pytest.approx([w * h for _, _, w, h in kept])
        assert all(len(values) == len(kept) for values in row["objects"].values())
        assert not annotated or (not late and before == len(kept))
        counted.update(code for code, _ in outcomes if code)
        for code, name, reason in late:
            assert name.startswith(f"{index}.jpg box ")
            assert "in an image of 60x40" in reason
            findings.add(code, f"late {len(findings)}")
    assert {code: findings.count(code) for code in findings} == dict(counted)


def test_findings_name_the_image_and_the_box():
    bbox = [[[0, 0, 60, 40], [5, 5, 0, 3], [1, 2, 3]], [[float("nan"), 0, 1, 1], [50, 30, 20, 20], [70, 50, 5, 5]]]
    columns = {"objects": [{"bbox": b, "label": [0] * 3} for b in bbox], "width": [60, 60], "height": [40, 40]}
    features = {"objects": {"bbox": FLOATS, "label": List(INT)}, "width": INT, "height": INT}
    rows = dataset(columns, features, number=2)
    encoded, _, findings, _ = prepared(rows, box_format="xywh")
    assert [row["objects"]["bbox"] for row in encoded] == [[[0, 0, 60, 40]], [[50, 30, 10, 10]]]
    found = findings.to_dict()
    assert found["box-zero-area"]["reasons"] == {"0.jpg box 1": "xywh [5, 5, 0, 3] in an image of 60x40"}
    assert found["box-not-finite"]["files"] == ["0.jpg box 2", "1.jpg box 0"]
    assert found["box-clipped"]["reasons"] == {"1.jpg box 1": "xywh [50, 30, 20, 20] in an image of 60x40"}
    assert found["box-outside"]["reasons"] == {"1.jpg box 2": "xywh [70, 50, 5, 5] in an image of 60x40"}
    with pytest.raises(DataError, match=r"0\.jpg box 2: .*box-not-finite"):
        prepared(rows, box_format="xywh", on_bad_sample="stop")


def test_lists_of_different_lengths_lose_their_image():
    rows = nested(category=[[2, 0], [], [2, 1], [0]])
    encoded, _, findings, _ = prepared(rows)
    assert encoded["file"][:] == ["0.jpg", "1.jpg", "3.jpg"]
    assert findings.to_dict()["unreadable-annotation"]["files"] == ["2.jpg"]
    with pytest.raises(DataError, match=r"2\.jpg: .*different lengths"):
        prepared(rows, on_bad_sample="stop")


def test_null_objects_are_no_objects():
    columns = {"objects": [{"bbox": [[50, 20, 10, 15]], "label": ["a"]}, None, {"bbox": None, "label": None}]}
    rows, *_ = prepared(dataset(columns, {"objects": {"bbox": FLOATS, "label": List(Value("string"))}}, number=3))
    assert objects_of(rows) == [[("a", [50, 20, 10, 15])], [], []]


def test_a_rows_boxes_fit_its_decoded_image():
    objects = {
        "bbox": [[0, 0, 30, 20], [10, 10, 90, 90], [70, 0, 5, 5]],
        "category": [0, 1, 2],
        "area": [600.0, 30.0, 25.0],
        "iscrowd": [False, True, False],
    }
    row = {"file": "a.jpg", "objects": objects}
    fitting, found = detection.fit(row, (40, 60))
    assert fitting["objects"] == {
        "bbox": [[0, 0, 30, 20], [10, 10, 50, 30]], "category": [0, 1], "area": [600.0, 30.0], "iscrowd": [False, True],
    }  # fmt: skip
    assert sorted((code, name) for code, name, _ in found) == [
        ("box-clipped", "a.jpg box 1"),
        ("box-outside", "a.jpg box 2"),
    ]
    again, found = detection.fit(fitting, (40, 60))
    assert again is fitting
    assert found == []


# Labels.


@st.composite
def categories(draw):
    """Source ids of a few classes (0-based, 1-based, gapped, text), and per image the classes of its boxes."""
    sources = draw(
        st.one_of(
            st.integers(1, 6).map(lambda n: list(range(n))),
            st.integers(1, 6).map(lambda n: list(range(1, n + 1))),
            st.lists(st.integers(0, 10**6), min_size=1, max_size=6, unique=True),
            st.lists(st.text(max_size=5), min_size=1, max_size=6, unique=True),
        )
    )
    images = draw(st.lists(st.lists(st.sampled_from(sources), max_size=4), min_size=1, max_size=5))
    return sources, [*images, sources]


@settings(max_examples=25, deadline=None)
@given(categories(), st.booleans())
def test_source_ids_survive(drawn, reader_names):
    sources, images = drawn
    feature = Value("string" if isinstance(sources[0], str) else "int64")
    bbox = [[[0.0, 0.0, 60.0, 40.0]] * len(image) for image in images]
    source_labels = LabelMap([f"class {source!r}" for source in sources], sources) if reader_names else None
    rows, labels, findings, _ = prepared(nested(bbox, images, feature), source_labels, box_format="xywh")
    assert [[labels.sources[index] for index in row["objects"]["category"]] for row in rows] == images
    assert labels.sources == tuple(sources if reader_names else sorted(sources))
    assert not len(findings)
    ids = detection.coco_ids(labels)
    assert len(set(ids)) == len(ids)
    assert ids == (list(labels.sources) if feature.dtype == "int64" else list(range(1, len(sources) + 1)))


def test_classes_without_boxes_keep_their_place():
    rows, labels, *_ = prepared(nested())
    assert labels == LabelMap(tuple(NAMES), (0, 1, 2))
    assert detection.present(rows) == {"cat", "owl"}
    source = LabelMap(("a", "b", "c", "d"), (1, 3, 7, 90))
    rows, labels, *_ = prepared(nested(category=[[90, 3], [], [90], [3]], feature=INT), source)
    assert labels == source
    assert [row["objects"]["category"] for row in rows] == [[3, 1], [], [3], [1]]


def test_the_recipes_labels():
    source = LabelMap(("a", "b", "c"), (1, 3, 90))
    rows = nested(category=[[90, 3], [], [90], [3]], feature=INT)
    assert prepared(rows, source, labels=["x", "y", "z"])[1] == LabelMap(("x", "y", "z"), (1, 3, 90))
    assert prepared(rows, source, labels={3: "B", "c": "C"})[1] == LabelMap(("B", "C"), (3, 90))
    encoded, labels, findings, _ = prepared(rows, source, labels=["c"])
    assert labels == LabelMap(("c",), (90,))
    assert [len(row["objects"]["bbox"]) for row in encoded] == [1, 0, 1, 0]
    assert findings.to_dict()["box-unknown-label"]["reasons"] == {"0.jpg box 1": "3", "3.jpg box 0": "3"}
    with pytest.raises(DataError, match="no class 'd'"):
        prepared(rows, source, labels=["c", "d"])


@pytest.mark.parametrize(
    ("feature", "bad", "codes"),
    [
        (ClassLabel(names=NAMES), [-1, None], {"box-without-label": 2}),
        (INT, [-1, None], {"box-unknown-label": 1, "box-without-label": 1}),
        (Value("float64"), [float("nan"), None], {"box-without-label": 2}),
        (Value("string"), [None, None], {"box-without-label": 2}),
    ],
)
def test_boxes_without_a_class_are_dropped(feature, bad, codes):
    good = "a" if feature == Value("string") else 1
    rows, labels, findings, _ = prepared(nested(category=[[good, bad[0]], [], [bad[1]], [good]], feature=feature))
    assert [len(row["objects"]["bbox"]) for row in rows] == [1, 0, 0, 1]
    assert {code: findings.count(code) for code in findings} == codes
    assert labels.names == {"ClassLabel": tuple(NAMES)}.get(type(feature).__name__, (str(good),))


def test_evaluation_matches_classes_by_name(tmp_path):
    nested(category=TEXT, feature=Value("string")).to_parquet(tmp_path / "test.parquet")
    lines = []
    rows, findings = load_split(
        DataConfig(id=str(tmp_path)), TASK, LabelMap(("bee", "owl"), (4, 9)), None, lines.append
    )
    assert [row["objects"]["category"] for row in rows] == [[1], [], [1], []]
    assert findings.count("box-unknown-label") == 2
    with pytest.raises(DataError, match="'owl' is not in the labels of the model"):
        load_split(DataConfig(id=str(tmp_path)), TASK, LabelMap(("bee",), (4,)), None, lines.append)


# Splits.


def rarest(images, names):
    """By brute force."""
    frequency = {name: sum(name in image for image in images) for name in names}
    return [min(image, key=lambda name: (frequency[name], names.index(name)), default=None) for image in images]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(st.sampled_from(NAMES), max_size=5), min_size=1, max_size=12))
def test_strata_are_the_rarest_classes(images):
    images = [*images, NAMES]
    bbox = [[[0.0, 0.0, 60.0, 40.0]] * len(image) for image in images]
    values = [[NAMES.index(name) for name in image] for image in images]
    rows, *_ = prepared(nested(bbox, values), box_format="xywh")
    assert list(detection.strata(rows)) == rarest(images, NAMES)
    assert detection.present(rows) == set(NAMES)


def many(number=60):
    """Images of cats; every tenth is of an owl too, and every fifth shows nothing."""
    category = [[] if index % 5 == 1 else [0, 2] if index % 10 == 0 else [0] for index in range(number)]
    return nested([[[40.0, 20.0, 10.0, 15.0]] * len(image) for image in category], category)


@pytest.mark.parametrize("part", [0.2, 2])
def test_held_out_shares_hold_rare_classes_and_images_without_objects(tmp_path, part):
    many().to_parquet(tmp_path / "train.parquet")
    data = DataConfig(id=str(tmp_path), splits={"validation": part})
    splits = load_splits(data, TASK, 0, lambda line: None)
    kinds = [Counter(detection.strata(split)) for split in (splits.train, splits.validation)]
    if part == 2:
        assert kinds[1] == {"cat": 2, "owl": 2, None: 2}
    else:
        assert kinds[1] == {"cat": 8, "owl": 1, None: 2}
    assert kinds[0] + kinds[1] == {"cat": 42, "owl": 6, None: 12}
    assert splits.findings.to_dict()["class-without-samples"]["files"] == ["dog"]
    few = load_splits(DataConfig(id=str(tmp_path), max_samples=10), TASK, 0, lambda line: None)
    assert len(few.train) == 10
    assert set(detection.strata(few.train)) == {"cat", "owl", None}


def test_images_without_objects_stay_and_a_split_of_nothing_else_has_no_labels(tmp_path):
    many().to_parquet(tmp_path / "train.parquet")
    nested([[]] * 4, [[]] * 4).to_parquet(tmp_path / "test.parquet")
    lines = []
    splits = load_splits(DataConfig(id=str(tmp_path)), TASK, 0, lines.append)
    assert splits.test is None
    assert "data: the split test has no labels, and is left out" in lines
    assert len(splits.train) + len(splits.validation) == 60


def test_unreadable_photos_lose_themselves(tmp_path):
    lines = []
    for index, (b, t) in enumerate(zip(BOXES * 2, TEXT * 2, strict=True)):
        (tmp_path / f"{index}.jpg").write_bytes(b"broken" if index == 3 else photo())
        lines.append(json.dumps({"file_name": f"{index}.jpg", "objects": {"bbox": b, "category": t}}))
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    splits = load_splits(DataConfig(id=str(tmp_path)), TASK, 0, lambda line: None)
    names = splits.train["file"][:] + splits.validation["file"][:]
    assert sorted(names) == [f"{index}.jpg" for index in range(8) if index != 3]
    assert splits.findings.to_dict()["unreadable-image"]["files"] == ["3.jpg"]
