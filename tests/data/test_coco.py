"""COCO's JSON in every layout, against pycocotools, and hostile or damaged."""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO

from cv_hf.data import Findings, LabelMap, coco
from cv_hf.errors import CvHfError, DataError
from tests.data.boxed import load, rows, write
from tests.data.samples import SHARED

CATEGORIES = [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}]


def annotations(*names, first=10, **more):
    """Images with one box each but for the last, whose id is `first` and following in steps of 5."""
    images = [
        {"id": first + 5 * index, "file_name": name, "width": 60, "height": 40} for index, name in enumerate(names)
    ]
    boxes = [
        {"id": index, "image_id": image["id"], "category_id": 7, "bbox": [1.5, 2, 10 + index, 20], "area": 33.0}
        for index, image in enumerate(images[:-1] or images)
    ]
    return {"images": images, "annotations": boxes, "categories": CATEGORIES} | more


def stop(match, id, **options):
    with pytest.raises(DataError, match=match) as error:
        coco.read(str(id), **options)
    assert len(str(error.value).splitlines()) <= 2


LAYOUTS = {
    "official": ("annotations/instances_{}2017.json", "{}2017/", ""),
    "below images": ("annotations/{}.json", "images/{}/", ""),
    "above images": ("annotations/{}.json", "{}/images/", ""),
    "one folder of images": ("instances_{}.json", "images/", ""),
    "roboflow": ("{}/_annotations.coco.json", "{}/", ""),
    "split folders": ("{}/annotations/instances_default.json", "{}/images/", ""),
    "sub-folders": ("Annotations/{}.json", "some/{}/", "some/{}/"),
    "from the file's folder": ("annotations/{}.json", "images/{}/", "../images/{}/"),
    "beside": ("{}.json", "", ""),
    "of another machine": ("annotations/{}.json", "images/{}/", "/home/else/photos/"),
    "of Windows": ("{}_annotations.json", "{}/", "C:\\photos\\"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(tmp_path, layout):
    file, folder, prefix = LAYOUTS[layout]
    files, expected = {}, {}
    for split in ("train", "val"):
        names = [f"{split}{number}.jpg" for number in range(3)]
        files |= {folder.format(split) + name: None for name in names}
        files[file.format(split)] = annotations(*(prefix.format(split) + name for name in names))
        expected[split] = {
            folder.format(split) + name: [(7, [1.5, 2, 10 + number, 20])] if number < 2 else []
            for number, name in enumerate(names)
        }
    root = write(tmp_path / "set", files)
    source = coco.read(root)
    suffix = "2017" if layout == "official" else ""
    assert source.labels == LabelMap(("cat", "dog"), (3, 7))
    assert {name: rows(source, name) for name in source.splits} == {
        split + suffix: part for split, part in expected.items()
    }
    splits = load(root)
    assert (len(splits.train), len(splits.validation), splits.labels.sources) == (3, 3, (3, 7))
    assert not len(splits.findings) or list(splits.findings) == ["class-without-samples"]
    one = coco.read(str(Path(root) / file.format("val")))
    assert rows(one, f"val{suffix}") == {
        str(Path(root).joinpath(name).relative_to(one.root)): boxes for name, boxes in expected["val"].items()
    }


def test_the_folder_of_images_can_be_given(tmp_path):
    write(tmp_path, {"a/train.json": annotations("0.jpg", "1.jpg"), "b/c/0.jpg": None, "b/c/1.jpg": None})
    stop(r"as 0.jpg, are not in \. of .*\n.*data.images", tmp_path / "a")
    source = coco.read(str(tmp_path / "a"), images=str(tmp_path / "b" / "c"))
    assert [row["image"]["path"] for row in source.splits["train"]] == [str(tmp_path / f"b/c/{n}.jpg") for n in (0, 1)]
    stop("no folder .*/gone", tmp_path / "a", images=str(tmp_path / "gone"))


def test_equal_to_pycocotools(tmp_path):
    rng = np.random.default_rng(0)
    ids = rng.choice(10_000, 40, replace=False).tolist()
    content = {"images": [{"id": id, "file_name": f"{id}.jpg", "width": 60, "height": 40} for id in ids]}
    content["annotations"] = [
        {
            "id": number,
            "image_id": ids[rng.integers(30)],
            "category_id": int(rng.choice([1, 2, 90])),
            "bbox": rng.uniform(0, 30, 4).tolist(),
            "area": float(rng.uniform(1, 100)),
            "iscrowd": int(rng.integers(2)),
            "segmentation": [rng.uniform(0, 30, 8).tolist()],
        }
        for number in range(1, 301)
    ]
    content["categories"] = [{"id": id, "name": f"class {id}"} for id in (90, 2, 1)]
    file = tmp_path / "annotations" / "instances_train.json"
    write(tmp_path, {"annotations/instances_train.json": content} | {f"train/{id}.jpg": None for id in ids})
    reference = COCO(str(file))
    source = coco.read(str(tmp_path))
    assert source.labels.id2label == dict(enumerate(reference.cats[id]["name"] for id in (1, 2, 90)))
    assert source.splits["train"]["image_id"][:] == list(reference.imgs)
    for row in source.splits["train"]:
        expected = reference.loadAnns(reference.getAnnIds([row["image_id"]]))
        assert row["objects"] == {
            "bbox": [each["bbox"] for each in expected],
            "category": [each["category_id"] for each in expected],
            "area": [each["area"] for each in expected],
            "iscrowd": [bool(each["iscrowd"]) for each in expected],
        }
        assert (row["width"], row["height"]) == (60, 40)


def test_other_annotations_of_coco_are_not_mistaken(tmp_path):
    others = {"annotations": [{"id": 1, "image_id": 10, "caption": "a cat"}]}
    files = {f"annotations/{kind}_train2017.json": annotations("0.jpg", **others) for kind in ("captions", "stuff")}
    files["annotations/person_keypoints_train2017.json"] = annotations("0.jpg", categories=[])
    files["annotations/image_info_test2017.json"] = {"images": [], "categories": []}
    files["annotations/panoptic_train2017.json"] = {"images": [], "annotations": [{"segments_info": []}]}
    write(tmp_path, {"train2017/0.jpg": None} | files)
    stop("no COCO annotation file .*captions_train2017.json.* are no instances", tmp_path)
    stop("none of its 1 annotations is a box", tmp_path / "annotations" / "captions_train2017.json")
    write(tmp_path, {"annotations/instances_train2017.json": annotations("0.jpg")})
    assert rows(coco.read(str(tmp_path)), "train2017") == {"train2017/0.jpg": [(7, [1.5, 2, 10, 20])]}
    assert len(coco.read(str(tmp_path / "annotations" / "person_keypoints_train2017.json")).splits["train2017"]) == 1


def test_several_files_for_one_split(tmp_path):
    content = annotations("0.jpg")
    write(tmp_path, {"0.jpg": None, "annotations/train.json": content, "annotations/new_train.json": content})
    stop("several .* split train: annotations/new_train.json, annotations/train.json.\n", tmp_path)
    write(tmp_path, {"annotations/instances_train.json": content})
    assert list(coco.read(str(tmp_path)).splits) == ["train"]


def test_names_of_no_usual_split(tmp_path):
    write(tmp_path, {"0.jpg": None, "annotations/instances_default.json": annotations("0.jpg")})
    assert list(coco.read(str(tmp_path)).splits) == ["train"]
    write(tmp_path, {"annotations/night.json": annotations("0.jpg")})
    stop("named for a split: .*default.json, .*night.json.\nName that.*: data.splits.train=", tmp_path)
    assert list(coco.read(str(tmp_path), wanted=["night"]).splits) == ["night"]
    stop("no split 'nigth'", tmp_path, wanted=["nigth"])


def test_each_fault_loses_itself_alone(tmp_path):
    names = ["0.jpg", "1.jpg", "gone.jpg", "../outside.jpg", "/etc/passwd", "link.jpg"]
    content = annotations(*names)
    good = {"image_id": 10, "category_id": 3}
    content["annotations"] += [
        good | {"id": 20, "bbox": [1, 2, 3]},
        good | {"id": 21, "bbox": [1, 2, "x", 4]},
        good | {"id": 22},
        good | {"id": 23, "segmentation": {"counts": "abc", "size": [40, 60]}},
        good | {"id": 24, "bbox": [1, 2, 3, 4], "image_id": 999},
        good | {"id": 25, "bbox": [1, 2, 3, 4], "category_id": 4},
        good | {"id": 26, "bbox": [1, 2, 3, 4], "category_id": None},
        "text",
        good | {"id": 27, "bbox": [], "segmentation": [[5, 6, 15, 6, 15.5, 26], [30, 8, 31, 8, 31, 9]]},
        good | {"id": 28, "bbox": [0, 0, -1, float("nan")], "iscrowd": 1},
    ]
    root = Path(write(tmp_path / "set", {"train.json": content, "images/0.jpg": None, "images/1.jpg": None}))
    write(tmp_path, {"outside.jpg": None, "set/outside.jpg": None})
    (root / "images" / "link.jpg").symlink_to(tmp_path / "outside.jpg")
    findings = Findings()
    source = coco.read(str(root), findings=findings)
    found = rows(source)
    assert set(found) == {"images/0.jpg", "images/1.jpg", "outside.jpg"}  # images/../outside.jpg is within
    assert found["images/0.jpg"][:2] == [(7, [1.5, 2, 10, 20]), (3, [5, 6, 26, 20])]
    assert np.isnan(found["images/0.jpg"][2][1][3])  # judged where all formats are
    assert source.splits["train"][0]["objects"]["iscrowd"] == [False, False, True]
    assert source.splits["train"][0]["objects"]["area"] == [33.0, None, None]
    assert {code: findings.count(code) for code in findings} == {
        "missing-image": 1,
        "path-outside": 2,
        "unreadable-annotation": 6,
        "box-unknown-label": 1,
        "orphan-annotation": 1,
    }
    assert findings.to_dict()["orphan-annotation"]["files"] == ["train.json: annotation 24"]
    assert "train.json: annotation 5" not in findings.to_dict()["unreadable-annotation"]["files"]
    stop(r"gone.jpg: no such file \(missing-image\)", root, on_bad_sample="stop")
    # What is an orphan of an image that was dropped is none.
    write(root, {"train.json": annotations("0.jpg", "gone.jpg", "1.jpg")})
    findings = Findings()
    coco.read(str(root), findings=findings)
    assert list(findings) == ["missing-image"]


def test_polygons_are_read_where_there_is_no_box(tmp_path):
    """Polygons stay text while a file is parsed: also those over several lines, and beside text that looks alike."""
    content = annotations("0.jpg", info={"description": '"segmentation": [1, 2'})
    content["annotations"] = [
        {"id": 1, "image_id": 10, "category_id": 3, "segmentation": [[1, 2, 5.5, 2, 3, 1e1]]},
        {"id": 2, "image_id": 10, "category_id": 3, "segmentation": [[9, 9, 10, 9, 10, 11]], "bbox": [1, 2, 3, 4]},
        {"id": 3, "image_id": 10, "category_id": 3, "segmentation": []},
    ]
    write(tmp_path, {"0.jpg": None})
    for indent in (None, 2):
        (tmp_path / "train.json").write_text(json.dumps(content, indent=indent))
        findings = Findings()
        assert rows(coco.read(str(tmp_path), findings=findings)) == {"0.jpg": [(3, [1, 2, 4.5, 8]), (3, [1, 2, 3, 4])]}
        assert findings.to_dict()["unreadable-annotation"]["files"] == ["train.json: annotation 3"]


def test_text_ids_and_missing_names(tmp_path):
    content = {
        "images": [{"id": "a", "file_name": "0.jpg"}, {"id": "b", "file_name": "1.jpg", "height": 0, "width": 9.0}],
        "annotations": [{"image_id": "b", "category_id": "x", "bbox": [1, 2, 3, 4]}],
        "categories": [{"id": "x"}],
    }
    write(tmp_path, {"0.jpg": None, "1.jpg": None, "train.json": content})
    source = coco.read(str(tmp_path))
    assert source.labels == LabelMap(("x",), ("x",))
    assert source.splits["train"]["image_id"][:] == ["a", "b"]
    assert source.splits["train"]["width"][:] == [None, 9]
    assert rows(source) == {"0.jpg": [], "1.jpg": [("x", [1, 2, 3, 4])]}
    del content["categories"]
    write(tmp_path, {"train.json": content})
    assert coco.read(str(tmp_path)).labels is None
    content["images"] += [{"id": f"c{number}", "file_name": f"{number}.jpg"} for number in range(2, 9)]
    content["annotations"] *= 2
    content["annotations"][1] = content["annotations"][0] | {"image_id": "a"}
    write(tmp_path, {"train.json": content} | {f"{number}.jpg": None for number in range(2, 9)})
    assert load(tmp_path).labels == LabelMap(("x",), ("x",))


def test_a_parent_category_of_the_same_name_goes(tmp_path):
    parents = [{"id": 0, "name": "dog", "supercategory": "none"}, *CATEGORIES]
    write(tmp_path, {"0.jpg": None, "train.json": annotations("0.jpg", categories=parents)})
    assert coco.read(str(tmp_path)).labels == LabelMap(("cat", "dog"), (3, 7))


@pytest.mark.parametrize(
    ("match", "content"),
    [
        ("no COCO annotation file", []),
        ("no COCO annotation file", "{"),
        ("not COCO annotations: it has no list of annotations", {"images": [], "categories": []}),
        ("not COCO annotations: it has no list of annotations", {"images": [], "annotations": {}}),
        ("two images have the id 1: a.jpg and b.jpg", [("id", 1), ("id", 1)]),
        ("image 0 of the list has no id", [("id", None)]),
        ("image 0 of the list has no id", [("id", True)]),
        ("image 0 of the list has no id", [("id", 2**70)]),
        ("ids of images are numbers in some entries", [("id", 1), ("id", "1")]),
        ("a category has no id", {"images": [], "annotations": [], "categories": [{"name": "x"}]}),
        ("ids of categories are numbers in some", annotations("0.jpg", categories=[*CATEGORIES, {"id": "x"}])),
        ("none of its 1 annotations", annotations("0.jpg", annotations=[{"image_id": 11, "category_id": 7}])),
    ],
)
def test_what_is_not_coco(tmp_path, match, content):
    if isinstance(content, list) and content:
        images = [{"id": value, "file_name": "ab"[number] + ".jpg"} for number, (_, value) in enumerate(content)]
        content = {"images": images, "annotations": []}
    stop(match, write(tmp_path, {"train.json": content, "0.jpg": None, "a.jpg": None, "b.jpg": None}))


def test_damaged_and_other_files(tmp_path):
    root = Path(write(tmp_path, {"a.json": "{", "b.json": "[1]", "c.json": b"\xff\xfe{", "d.json": "[" * 100_000}))
    for name in "abcd":
        stop(f"{name}.json is not", root / f"{name}.json")
    write(tmp_path / "e", {"train.json": annotations("0.jpg"), "0.jpg": None, "val.json": annotations("0.jpg")})
    changed = annotations("0.jpg", categories=[{"id": 7, "name": "wolf"}])
    write(tmp_path / "e", {"val.json": changed})
    stop("category 7 is called 'wolf', and 'dog' elsewhere", tmp_path / "e")


def test_a_link_to_annotations_outside_is_refused(tmp_path):
    write(tmp_path, {"away/train.json": annotations("0.jpg"), "set/0.jpg": None})
    (tmp_path / "set" / "train.json").symlink_to(tmp_path / "away" / "train.json")
    stop("link that leads out", tmp_path / "set")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(["0.jpg", 10, 7]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)
PLACES = [
    ("images",), ("annotations",), ("categories",), ("images", 0), ("annotations", 0), ("categories", 0),
    ("images", 0, "id"), ("images", 0, "file_name"), ("images", 0, "width"), ("annotations", 0, "image_id"),
    ("annotations", 0, "category_id"), ("annotations", 0, "bbox"), ("annotations", 0, "bbox", 2),
    ("annotations", 0, "area"), ("annotations", 0, "iscrowd"), ("annotations", 0, "segmentation"),
    ("annotations", 0, "id"), ("categories", 0, "id"), ("categories", 0, "name"),
]  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(PLACES), JSON), min_size=1, max_size=3))
def test_any_json_is_read_or_refused_by_name(changes):
    content = annotations("0.jpg", "1.jpg", "2.jpg", categories=[dict(category) for category in CATEGORIES])
    for place, value in changes:
        parent = content
        try:
            for key in place[:-1]:
                parent = parent[key]
            parent[place[-1]] = value
        except (TypeError, KeyError, IndexError):
            continue
    with tempfile.TemporaryDirectory() as folder:
        files = {f"{number}.jpg": b"x" for number in range(3)}
        root = write(Path(folder), files | {"train.json": json.dumps(content)})
        for id in (root, f"{root}/train.json"):
            with suppress(CvHfError):
                source = coco.read(id)
                rows(source, next(iter(source.splits)))


@settings(max_examples=50, deadline=None)
@given(JSON)
def test_any_tree_is_refused_by_name(content):
    with tempfile.TemporaryDirectory() as folder:
        root = write(Path(folder), {"train.json": json.dumps(content)})
        for id in (root, f"{root}/train.json"):
            with pytest.raises(CvHfError):
                coco.read(id)


@pytest.mark.skipif(not (SHARED / "nuclei").is_dir(), reason="shared data is absent")
def test_real_instances():
    source = coco.read(str(SHARED / "nuclei"))
    counted = defaultdict(int)
    for name, split in source.splits.items():
        for objects in split["objects"]:
            counted[name] += len(objects["bbox"])
    assert counted == {"train": 1386, "val": 392}
    assert source.labels == LabelMap(("nucleus",), (1,))


@pytest.mark.parametrize(
    ("scale", "number", "told"), [("norm", 24, "xywh_norm"), ("xyxy", 24, "xyxy"), ("xyxy", 4, None)]
)
def test_boxes_that_are_plainly_of_another_format(tmp_path, scale, number, told):
    """As converters write them; few of them prove nothing."""
    box = [0.5, 0.2, 0.4, 0.5] if scale == "norm" else [30, 8, 54, 28]
    annotations = [{"id": place, "image_id": place, "category_id": 1, "bbox": box} for place in range(number)]
    images = [{"id": place, "file_name": f"{place}.jpg", "width": 60, "height": 40} for place in range(number)]
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "cat"}]}
    root = write(tmp_path, {f"images/{place}.jpg": None for place in range(number)} | {"labels.json": content})
    validation = {"splits": {"validation": 0.5}}
    if told is None:
        assert "box-clipped" in load(root, **validation).findings
        return
    with pytest.raises(DataError, match=f"box_format={told}"):
        load(root, **validation)
    if told == "xyxy":
        assert load(root, box_format=told).train[0]["objects"]["bbox"] == [[30, 8, 24, 20]]
        assert "box-clipped" in load(root, box_format="xywh").findings
