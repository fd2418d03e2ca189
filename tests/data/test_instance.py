"""Instance segmentation: polygons, RLE and images of masks, against pycocotools, and damaged."""

from __future__ import annotations

import io
import json
import tracemalloc
import types
from pathlib import Path

import datasets
import numpy as np
import PIL.Image
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as reference
from pycocotools.coco import COCO
from transformers.models.mask2former import image_processing_mask2former

from cv_hf.config import DataConfig
from cv_hf.data import Findings, LabelMap, coco, instance, rle
from cv_hf.data.export import write_coco
from cv_hf.data.load import load_split, load_splits
from cv_hf.errors import DataError
from cv_hf.runs import boxes_and_areas, from_map, from_mask
from tests.data.boxed import photo, write
from tests.data.samples import SHARED

TASK = types.SimpleNamespace(
    name="instance-segmentation",
    canonical=instance.canonical,
    label_map=instance.label_map,
    clean=instance.clean,
    strata=instance.strata,
    encode=instance.encode,
    present=instance.present,
    formats=("coco",),
    moved="mask",
)
SIZE = (40, 60)
TRIANGLE = [[5, 5, 30, 6, 12, 33]]
TWO = [[1.5, 2, 20, 2.5, 20, 18, 2, 18], [30, 20, 50, 20, 50, 38.5, 31, 38]]


def load(id, **data):
    lines = []
    return load_splits(DataConfig(id=str(id), **data), TASK, 0, lines.append), lines


def dense(segmentation, size=SIZE):
    """What pycocotools makes of polygons or RLE."""
    if isinstance(segmentation, list):
        segmentation = reference.merge(reference.frPyObjects(segmentation, *size))
    elif isinstance(segmentation["counts"], list):
        segmentation = reference.frPyObjects(segmentation, *size)
    return reference.decode(segmentation).astype(bool)


def uncompressed(mask):
    flat = mask.T.reshape(-1)
    changes = np.flatnonzero(np.diff(np.concatenate([[0], flat])))
    return {"size": list(mask.shape), "counts": np.diff([0, *changes, len(flat)]).tolist()}


def compressed(mask):
    found = reference.encode(np.asfortranarray(mask, np.uint8))
    return {"size": list(mask.shape), "counts": found["counts"].decode()}


def picture(pixels, format="PNG"):
    content = io.BytesIO()
    PIL.Image.fromarray(pixels).save(content, format)
    return content.getvalue()


def codes(findings):
    return {code: entry["files"] for code, entry in findings.to_dict().items()}


RANDOM = np.random.default_rng(0).random(SIZE) < 0.3
EVERY_KIND = {
    "polygon": TRIANGLE,
    "polygons": TWO,
    "uncompressed": uncompressed(RANDOM),
    "compressed": compressed(RANDOM),
    "starts inside": uncompressed(np.ones(SIZE, bool)),
}


def annotations(segmentations, **more):
    objects = [
        {"id": number, "image_id": 7, "category_id": 3 + 4 * (number % 2), "bbox": [1, 2, 10, 20], "area": 33.5, **each}
        for number, each in enumerate(segmentations, 1)
    ]
    return {
        "images": [{"id": 7, "file_name": "a.jpg", "width": 60, "height": 40}],
        "annotations": objects,
        "categories": [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}],
        **more,
    }


def read(tmp_path, content, **options):
    findings = Findings()
    write(tmp_path, {"train.json": content, "images/a.jpg": None})
    source = coco.read(str(tmp_path), segmentation=True, findings=findings, **options)
    return source.splits["train"][0]["objects"], findings


def test_every_kind_of_mask_equals_pycocotools(tmp_path):
    given_ = [{"segmentation": value, "iscrowd": int(kind == "uncompressed")} for kind, value in EVERY_KIND.items()]
    objects, findings = read(tmp_path, annotations(given_))
    assert not len(findings)
    assert objects["iscrowd"] == [kind == "uncompressed" for kind in EVERY_KIND]
    assert objects["bbox"] == [[1, 2, 10, 20]] * len(EVERY_KIND)
    assert objects["area"] == [33.5] * len(EVERY_KIND)
    for mask, value in zip(objects["segmentation"], EVERY_KIND.values(), strict=True):
        assert mask["size"] == list(SIZE)
        assert (reference.decode(mask) == dense(value)).all()
        # pycocotools gives the same mask the same text.
        assert mask["counts"].encode() == reference.encode(np.asfortranarray(dense(value), np.uint8))["counts"]


@pytest.mark.parametrize(
    "value",
    [
        TRIANGLE[0],
        [[5, 5], [30, 6], [12, 33]],
        [[[5, 5], [30, 6], [12, 33]]],
        json.dumps(TRIANGLE),
        json.dumps(compressed(dense(TRIANGLE))),
    ],
)
def test_other_ways_to_write_a_polygon(value):
    mask, bad = rle.compress(value, SIZE)
    assert not bad
    assert (reference.decode(mask) == dense(TRIANGLE)).all()


def test_what_is_missing_is_taken_from_the_mask(tmp_path):
    objects, findings = read(
        tmp_path,
        annotations([{"segmentation": TWO, "bbox": None, "area": None}, {"segmentation": TRIANGLE, "area": 0}]),
    )
    rows, columns = np.nonzero(dense(TWO))
    around = [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
    assert objects["bbox"] == [around, [1, 2, 10, 20]]
    assert objects["area"] == [dense(TWO).sum(), dense(TRIANGLE).sum()]
    assert not len(findings)


FAULTS = {
    "object-without-mask": [None, [], {}, "", {"counts": None, "size": [40, 60]}],
    "mask-unreadable": [
        "polygon", 5, [[1, 2, 3, 4, 5, 6, 7]], [[1, 2, None, 4, 5, 6]], [[1, 2, 3, 4, 5, 1e9]], [["x"] * 6],
        {"size": [40, 60], "counts": "no"}, {"size": [40, 60], "counts": [2399]},
        {"size": [40, 60], "counts": [-1, 2401]}, {"size": [40, 60], "counts": [2401]},
        {"size": [40, 60], "counts": "5"}, {"size": [40, 60], "counts": ""},
        {"size": [40, 60], "counts": [0.5, 2399.5]}, {"size": [40, 60], "counts": {"a": 1}},
        {"size": [40], "counts": [2400]}, {"size": "40x60", "counts": [2400]}, {"size": [40, 60], "counts": [1e300]},
    ],
    "mask-too-few-points": [[[1, 1, 9, 9]], [[]], [[1, 1, 9, 9], [2, 2]]],
    "mask-empty": [{"size": [40, 60], "counts": [2400]}, [[100, 100, 120, 100, 120, 120]]],
    "mask-size-mismatch": [compressed(np.ones((60, 40))), uncompressed(np.ones((39, 60)))],
}  # fmt: skip


@pytest.mark.parametrize(("code", "value"), [(code, value) for code, values in FAULTS.items() for value in values])
def test_an_object_with_a_bad_mask_loses_itself_only(tmp_path, code, value):
    content = annotations([{"segmentation": TRIANGLE}, {"segmentation": value}, {"segmentation": TWO}])
    objects, findings = read(tmp_path, content)
    assert codes(findings) == {code: ["train.json: annotation 2"]}
    masks = [reference.decode(mask).astype(bool) for mask in objects["segmentation"]]
    assert len(masks) == 2
    assert (masks[0] == dense(TRIANGLE)).all()
    assert (masks[1] == dense(TWO)).all()
    with pytest.raises(DataError, match="annotation 2.*" + code):
        read(tmp_path, content, on_bad_sample="stop")


def test_a_bad_polygon_loses_itself_only(tmp_path):
    objects, findings = read(tmp_path, annotations([{"segmentation": [*TWO, [1, 2, 3, 4]]}]))
    assert codes(findings) == {"mask-too-few-points": ["train.json: annotation 1"]}
    assert (reference.decode(objects["segmentation"][0]) == dense(TWO)).all()


def test_the_size_is_the_images_own_where_the_file_does_not_say(tmp_path):
    content = annotations([{"segmentation": TRIANGLE}])
    content["images"] = [{"id": 7, "file_name": "a.jpg"}]
    objects, _ = read(tmp_path, content)
    assert objects["segmentation"][0]["size"] == list(SIZE)
    with pytest.raises(DataError, match="none of its 1 annotations is a mask"):
        read(tmp_path, annotations([{"segmentation": None}]))


def test_a_large_file_that_begins_with_its_images(tmp_path):
    content = annotations([{"segmentation": TRIANGLE}])
    content["images"][0]["license"] = "x" * 70_000
    objects, _ = read(tmp_path, content)
    assert len(objects["segmentation"]) == 1


def test_a_hostile_size_of_image_takes_no_memory(tmp_path):
    content = annotations([{"segmentation": TRIANGLE}, {"segmentation": {"size": [10**9, 10**9], "counts": [10**18]}}])
    content["images"][0] |= {"width": 10**9, "height": 10**9}
    with pytest.raises(DataError, match="mask-unreadable"):
        read(tmp_path, content)


def test_detection_reads_no_masks(tmp_path):
    write(tmp_path, {"train.json": annotations([{"segmentation": TRIANGLE}]), "images/a.jpg": None})
    assert set(coco.read(str(tmp_path)).splits["train"].features["objects"]) == {"bbox", "category", "area", "iscrowd"}


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_masks_and_maps_of_any_shape_equal_pycocotools(data):
    height, width = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 12))
    values = data.draw(st.lists(st.integers(0, 3), min_size=height * width, max_size=height * width))
    ids = np.array(values).reshape(height, width)
    numbers, masks = from_map(ids)
    assert numbers.tolist() == sorted(set(values) - {0})
    for number, mask in zip(numbers, masks, strict=True):
        assert mask == compressed(ids == number) == from_mask(ids == number)
        assert rle.compress(mask, (height, width)) == (mask, [])
        assert rle.compress(uncompressed(ids == number), None) == (mask, [])
    boxes, areas = boxes_and_areas(masks)
    assert areas.tolist() == [(ids == number).sum() for number in numbers]
    for number, (left, top, wide, high) in zip(numbers, boxes.astype(int), strict=True):
        rows, columns = np.nonzero(ids == number)
        assert (left, top, wide, high) == (columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1)


def dataset_of(tmp_path, number=6, categories=None):
    """COCO files of `number` images with the masks of EVERY_KIND, category 3 and 7 by turns."""
    images = [{"id": 10 + n, "file_name": f"{n}.jpg", "width": 60, "height": 40} for n in range(number)]
    objects = [
        {"id": 10 * n + k, "image_id": 10 + n, "category_id": (categories or [3, 7])[k % 2], "segmentation": value}
        for n in range(number)
        for k, value in enumerate(EVERY_KIND.values())
    ]
    names = [{"id": id, "name": f"class {id}"} for id in (categories or [3, 7])]
    content = {"images": images, "annotations": objects, "categories": names}
    return write(tmp_path, {"train.json": content} | {f"images/{n}.jpg": None for n in range(number)})


def test_from_files_to_samples_and_back_to_files(tmp_path):
    splits, lines = load(dataset_of(tmp_path / "in"))
    assert "data: masks: polygons and RLE, as coco has them" in lines
    assert splits.labels == LabelMap(("class 3", "class 7"), (3, 7))
    assert not len(splits.findings)
    assert len(splits.train) == 5
    assert instance.present(splits.train) == {"class 3", "class 7"}
    row = splits.train[0]
    fitted, found = instance.fit(row, SIZE, splits.labels)
    assert fitted == row
    assert not found
    write_coco({"train": splits.train, "validation": splits.validation}, splits.labels, tmp_path / "out")
    written = COCO(str(tmp_path / "out" / "annotations" / "instances_train.json"))
    for row in splits.train:
        found = written.loadAnns(written.getAnnIds([row["image_id"]]))
        assert [each["category_id"] for each in found] == [3, 7, 3, 7, 3]
        for each, value in zip(found, EVERY_KIND.values(), strict=True):
            assert (written.annToMask(each) == dense(value)).all()
    again, _ = load(tmp_path / "out")
    assert [row["objects"] for row in again.train] == [row["objects"] for row in splits.train]


@settings(max_examples=10, deadline=None)
@given(st.lists(st.integers(-5, 10**6), min_size=2, max_size=2, unique=True).map(sorted))
def test_gapped_category_ids_round_trip(tmp_path_factory, ids):
    splits, _ = load(dataset_of(tmp_path_factory.mktemp("gapped"), 2, categories=ids))
    assert splits.labels.sources == tuple(ids)
    assert splits.train[0]["objects"]["category"] == [0, 1, 0, 1, 0]
    assert instance.coco_ids(splits.labels) == ids


def test_an_image_of_another_size_than_its_masks(tmp_path):
    splits, _ = load(dataset_of(tmp_path))
    row = splits.train[0]
    name = row["file"]
    nothing, found = instance.fit(row, (60, 40), splits.labels)
    assert nothing is None
    assert found[0] == ("mask-size-mismatch", f"{name} object 0", "60x40, in an image of 40x60")
    assert len(found) == 5
    other = {**row["objects"], "segmentation": [compressed(np.ones((3, 4))), *row["objects"]["segmentation"][1:]]}
    fitted, found = instance.fit({**row, "objects": other}, SIZE, splits.labels)
    assert [code for code, *_ in found] == ["mask-size-mismatch"]
    assert fitted["objects"] == {key: values[1:] for key, values in row["objects"].items()}
    bare = {**row, "objects": {key: [] for key in other}}
    assert instance.fit(bare, (1, 1), splits.labels) == (bare, [])


def table(columns, features, split="train"):
    content = io.BytesIO()
    datasets.Dataset.from_dict(columns, features=datasets.Features(features)).to_parquet(content)
    return {f"data/{split}-00000-of-00001.parquet": content.getvalue()}


NUMBER = datasets.Value("float64")
RLE = {"size": datasets.List(datasets.Value("int32")), "counts": datasets.Value("string")}
NAMES = datasets.ClassLabel(names=["cat", "dog"])
SHAPES = {
    "polygons in a struct of lists": (
        lambda key, objects: {key: {name: [each[name] for each in objects] for name in objects[0]}},
        lambda key, mask: {key: {"segmentation": datasets.List(mask), "category": datasets.List(NAMES)}},
        datasets.List(datasets.List(NUMBER)),
        {"segmentation": TWO},
    ),
    "RLE in a list of structs": (
        lambda key, objects: {key: objects},
        lambda key, mask: {key: datasets.List({"segmentation": mask, "category": NAMES})},
        RLE,
        {"segmentation": compressed(dense(TWO))},
    ),
    "text in a list of structs": (
        lambda key, objects: {key: objects},
        lambda key, mask: {key: datasets.List({"segmentation": mask, "category": NAMES})},
        datasets.Value("string"),
        {"segmentation": json.dumps(TWO)},
    ),
    "columns of their own": (
        lambda key, objects: {name: [each[name] for each in objects] for name in objects[0]},
        lambda key, mask: {"segmentation": datasets.List(mask), "category": datasets.List(NAMES)},
        datasets.List(datasets.List(NUMBER)),
        {"segmentation": TWO},
    ),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("sized", [True, False])
def test_tables(tmp_path, shape, sized):
    rows, features, mask, value = SHAPES[shape]
    objects = [{**value, "category": 1}, {**value, "category": 0}]
    columns = {"image": [{"bytes": photo(), "path": f"{n}.jpg"} for n in range(8)]}
    columns |= {name: [each] * 8 for name, each in rows("objects", objects).items()}
    features = {"image": datasets.Image(), **features("objects", mask)}
    if sized:
        columns |= {"width": [60] * 8, "height": [40] * 8}
        features |= {"width": datasets.Value("int32"), "height": datasets.Value("int32")}
    splits, lines = load(write(tmp_path, table(columns, features)))
    assert "data: masks: polygons and RLE; boxes: those around them" in lines
    assert splits.labels == LabelMap(("cat", "dog"), (0, 1))
    assert not len(splits.findings)
    fitted, found = instance.fit(splits.train[0], SIZE, splits.labels)
    assert not found
    assert fitted["objects"]["category"] == [1, 0]
    rows, columns = np.nonzero(dense(TWO))
    around = [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
    assert fitted["objects"]["bbox"] == [around] * 2
    assert fitted["objects"]["area"] == [dense(TWO).sum()] * 2
    for found in fitted["objects"]["segmentation"]:
        assert found == compressed(dense(TWO))


def test_a_table_with_bad_objects(tmp_path):
    mask = datasets.List(datasets.List(NUMBER))
    objects = {"segmentation": datasets.List(mask), "category": datasets.List(datasets.Value("string"))}
    features = {"image": datasets.Image(), "objects": objects | {"bbox": datasets.List(datasets.List(NUMBER))}}
    good = {"segmentation": [TWO, TRIANGLE], "category": ["dog", "cat"], "bbox": [[0, 0, 1, 1]] * 2}
    bad = {"segmentation": [TWO, [], TRIANGLE, TWO], "category": ["dog", "cat", None, "cow"], "bbox": [[0] * 4] * 4}
    uneven = {"segmentation": [TWO], "category": ["dog", "cat"], "bbox": [[0] * 4]}
    columns = {"image": [{"bytes": photo(), "path": f"{n}.jpg"} for n in range(6)]}
    columns["objects"] = [good, bad, uneven, None, good, good]
    root = write(tmp_path, table(columns, features))
    # A format of boxes says nothing of those around masks.
    splits, _ = load(root, labels=["cat", "dog"], box_format="cxcywh_norm", splits={"validation": 0.2})
    assert codes(splits.findings) == {
        "object-without-mask": ["1.jpg object 1"],
        "box-without-label": ["1.jpg box 1"],
        "box-unknown-label": ["1.jpg box 2"],
        "unreadable-annotation": ["2.jpg"],
    }
    rows = [row["objects"] for part in (splits.train, splits.validation) for row in part]
    assert sorted(len(each["bbox"]) for each in rows) == [0, 1, 2, 2, 2]
    with pytest.raises(DataError, match=r"2.jpg: its lists.*different lengths"):
        load(root, labels=["cat", "dog"], on_bad_sample="stop")


def test_tables_without_masks_are_refused(tmp_path):
    features = {"image": datasets.Image(), "label": datasets.Value("int64")}
    columns = {"image": [{"bytes": photo(), "path": None}] * 2, "label": [0, 1]}
    root = write(tmp_path, table(columns, features))
    with pytest.raises(DataError, match=r"no masks were found among: image .*\n.*segmentation=NAME.*mask=NAME"):
        load(root)
    with pytest.raises(DataError, match=r"data.columns.mask: 'imag' is no column of images.*Did you mean 'image'"):
        load(root, columns={"mask": "imag"})
    with pytest.raises(DataError, match="'outline' is not a column of this task"):
        load(root, columns={"outline": "label"})


def red_green(objects, size=SIZE):
    """The PNG of Transformers' example: red the class, green the object. `objects`: [(class, mask), ...]."""
    pixels = np.zeros((*size, 3), np.uint8)
    for number, (category, mask) in enumerate(objects, 1):
        pixels[mask] = (category, number, 0)
    return pixels


BLOCK = np.zeros(SIZE, bool)
BLOCK[3:9, 20:50] = True
OTHER = np.zeros(SIZE, bool)
OTHER[20:30, 5:15] = True
CLASS_IDS = {"background": 0, "person": 1, "car": 2}


def red_green_table(number=8, named=True, masks=None):
    """Images as the example's dataset has them."""
    mask = picture(red_green([(2, BLOCK), (1, OTHER), (2, BLOCK & ~OTHER & (np.arange(60) > 40))]))
    columns = {
        "image": [{"bytes": photo(), "path": f"{n}.jpg"} for n in range(number)],
        "annotation": [{"bytes": each, "path": None} for each in masks or [mask] * number],
    }
    features = {"image": datasets.Image(), "annotation": datasets.Image()}
    if named:
        columns["semantic_class_to_id"] = [CLASS_IDS] * number
        features["semantic_class_to_id"] = {name: datasets.Value("int64") for name in CLASS_IDS}
    return table(columns, features)


def test_the_red_and_green_png_of_the_example_from_the_hub(hub, monkeypatch):
    hub.add_repo("tester/redgreen", type="dataset", files=red_green_table())
    monkeypatch.setattr(instance, "decode_mask", None)  # the labels are known: nothing is decoded
    splits, lines = load("tester/redgreen")
    monkeypatch.undo()
    assert splits.labels == LabelMap(("person", "car"), (1, 2))
    assert "columns: image from image, mask from annotation" in lines[-3]
    assert set(splits.train.column_names) == {"image", "mask", "image_id", "file", "category"}
    assert splits.train[0]["mask"]["bytes"]
    assert instance.strata(splits.train) == [None] * len(splits.train)
    fitted, found = instance.fit(splits.train[0], SIZE, splits.labels)
    right = BLOCK & (np.arange(60) > 40)
    expected = [(1, BLOCK & ~right), (0, OTHER), (1, right)]
    objects = fitted["objects"]
    assert not found
    assert "mask" not in fitted
    assert objects["category"] == [category for category, _ in expected]
    assert objects["segmentation"] == [compressed(mask) for _, mask in expected]
    assert objects["area"] == [mask.sum() for _, mask in expected]
    assert objects["bbox"][1] == [5, 20, 10, 10]
    assert objects["iscrowd"] == [False] * 3
    split, _ = load_split(DataConfig(id="tester/redgreen"), TASK, LabelMap(("car", "person"), (5, 6)), "train")
    assert len(split) == 8


def test_the_red_and_green_png_as_the_processor_of_transformers_reads_it():
    pixels = red_green([(2, BLOCK), (1, OTHER)])
    green = torch.from_numpy(pixels[..., 1].astype(np.int64))
    masks, classes = image_processing_mask2former.convert_segmentation_map_to_binary_masks_fast(
        green, {0: 0, 1: 2, 2: 1}, ignore_index=255, do_reduce_labels=True
    )
    row = {"mask": {"bytes": picture(pixels), "path": None}, "file": "a", "category": None}
    fitted, _ = instance.fit(row, SIZE, LabelMap(("person", "car"), (1, 2)))
    objects = fitted["objects"]
    assert objects["category"] == classes.tolist()
    for mask, each in zip(objects["segmentation"], masks, strict=True):
        assert (reference.decode(mask) == each.numpy()).all()


def test_labels_of_red_and_green_pngs(tmp_path):
    root = write(tmp_path / "named", red_green_table())
    assert load(root, labels={1: "human", 2: "vehicle"})[0].labels == LabelMap(("human", "vehicle"), (1, 2))
    assert load(root, labels=["nothing", "human", "vehicle"])[0].labels.names == ("nothing", "human", "vehicle")
    assert load(root, labels=["background", "person", "car"])[0].labels.sources == (1, 2)
    masks = [picture(red_green([(9, BLOCK), (4, OTHER)]))] * 7 + [b"no image"]
    root = write(tmp_path / "unnamed", red_green_table(named=False, masks=masks))
    # The values are looked up in all masks that can be read.
    splits, _ = load(root)
    assert splits.labels == LabelMap(("4", "9"), (4, 9))
    fitted, _ = instance.fit(splits.train[0], SIZE, splits.labels)
    assert fitted["objects"]["category"] == [1, 0]
    # The only class may be 0, where the object alone tells it from the background.
    only = {"mask": {"bytes": picture(red_green([(0, BLOCK)])), "path": None}, "file": "a"}
    assert instance.fit(only, SIZE, LabelMap(("shrimp",), (0,)))[0]["objects"]["category"] == [0]


@pytest.mark.parametrize(
    ("mask", "code"),
    [
        (b"no image", "unreadable-mask"),
        (None, "missing-mask"),
        (picture(red_green([(1, BLOCK)]), "JPEG"), "lossy-mask"),
        (picture(np.zeros(SIZE, np.uint8)), "unreadable-mask"),
        (picture(red_green([(1, BLOCK.T)], (60, 40))), "mask-size-mismatch"),
    ],
)
def test_a_red_and_green_png_that_cannot_be_used(mask, code):
    row = {"mask": {"bytes": mask, "path": None}, "file": "a.jpg"}
    fitted, found = instance.fit(row, SIZE, LabelMap(("person",), (1,)))
    assert fitted is None
    assert [each[:2] for each in found] == [(code, "a.jpg")]


def test_unknown_classes_of_red_and_green(tmp_path):
    row = {"mask": {"bytes": picture(red_green([(1, BLOCK), (8, OTHER)])), "path": None}, "file": "a.jpg"}
    fitted, found = instance.fit(row, SIZE, LabelMap(("person",), (1,)))
    assert found == [("box-unknown-label", "a.jpg object 2", "8")]
    assert fitted["objects"]["segmentation"] == [compressed(BLOCK)]
    assert instance.fit(row, SIZE, LabelMap(("person",), (1,), ignore_index=8))[1] == []


def masks_table(rows, category="category", feature=None):
    """A list of mask images and a list of classes for each image."""
    columns = {
        "image": [{"bytes": photo(), "path": f"{n}.jpg"} for n in range(len(rows))],
        "masks": [[{"bytes": mask, "path": None} for mask in masks] for masks, _ in rows],
        category: [classes for _, classes in rows],
    }
    feature = feature or datasets.Value("string")
    return table(
        columns,
        {"image": datasets.Image(), "masks": datasets.List(datasets.Image()), category: datasets.List(feature)},
    )


def test_a_list_of_masks_from_the_hub(hub):
    grey, binary = picture(BLOCK.astype(np.uint8) * 255), picture(OTHER)
    rows = [([grey, binary], ["dog", "cat"])] * 7 + [([], [])]
    hub.add_repo("tester/lists", type="dataset", files=masks_table(rows))
    splits, lines = load("tester/lists")
    assert splits.labels == LabelMap(("cat", "dog"), ("cat", "dog"))
    assert not len(splits.findings)
    assert "data: masks: an image for each object" in lines
    assert instance.present(splits.train) == {"cat", "dog"}
    assert set(instance.strata(splits.train)) <= {"cat", "dog", None}
    for row in splits.train:
        fitted, found = instance.fit(row, SIZE, splits.labels)
        expected = [] if not row["masks"] else [compressed(BLOCK), compressed(OTHER)]
        assert not found
        assert fitted["objects"]["segmentation"] == expected
        assert fitted["objects"]["category"] == [1, 0][: len(expected)]
        assert set(fitted) == {"image", "image_id", "file", "objects"}


def test_lists_of_masks_that_are_wrong(tmp_path):
    good = picture(BLOCK)
    rows = [([good], ["dog"])] * 5
    rows += [([good, good, good], ["dog", None, "cow"]), ([good], ["dog", "cat"])]
    splits, _ = load(write(tmp_path, masks_table(rows)), labels=["cat", "dog"], splits={"validation": 0.2})
    assert codes(splits.findings) == {
        "box-without-label": ["5.jpg object 1"],
        "box-unknown-label": ["5.jpg object 2"],
        "unreadable-annotation": ["6.jpg"],
        "class-without-samples": ["cat"],
    }
    row = next(row for part in (splits.train, splits.validation) for row in part if row["file"] == "5.jpg")
    assert row["category"] == [1, None, None]
    assert instance.fit(row, SIZE, splits.labels)[0]["objects"]["category"] == [1]
    pictures = [good, picture(np.zeros(SIZE, bool)), b"x", None, picture(BLOCK.T)]
    row = {"masks": [{"bytes": each, "path": None} for each in pictures], "category": [0] * 5, "file": "a"}
    fitted, found = instance.fit(row, SIZE, splits.labels)
    assert [each[:2] for each in found] == [
        ("mask-empty", "a object 1"),
        ("unreadable-mask", "a object 2"),
        ("missing-mask", "a object 3"),
        ("mask-size-mismatch", "a object 4"),
    ]
    assert fitted["objects"]["segmentation"] == [compressed(BLOCK)]
    assert instance.fit(row, (7, 7), splits.labels)[0] is None


def test_masks_of_the_only_class(tmp_path):
    rows = [([picture(BLOCK)], [0])] * 4
    content = masks_table(rows, "score", datasets.Value("float32"))
    splits, _ = load(write(tmp_path, content), labels=["nucleus"])
    assert splits.labels.names == ("nucleus",)
    assert instance.fit(splits.train[0], SIZE, splits.labels)[0]["objects"]["category"] == [0]


def test_paths_in_a_list_of_masks_are_not_read(tmp_path):
    (tmp_path / "secret.png").write_bytes(picture(BLOCK))
    row = {"masks": [{"bytes": None, "path": str(tmp_path / "secret.png")}], "category": [0], "file": "a"}
    fitted, found = instance.fit(row, SIZE, LabelMap(("x",), (0,)))
    assert fitted is None
    assert found[0][0] == "missing-mask"


def test_two_hundred_objects_need_no_two_hundred_masks(tmp_path, monkeypatch):
    height, width = 480, 640
    one = height * width
    pixels = np.zeros((height, width, 3), np.uint8)
    for number in range(200):
        top, left = 48 * (number // 20), 32 * (number % 20)
        pixels[top : top + 40, left : left + 28] = (1 + number % 3, number + 1, 0)
    polygons = [
        [[32 * (n % 20), 48 * (n // 20), 32 * (n % 20) + 28, 48 * (n // 20), 32 * (n % 20) + 28, 48 * (n // 20) + 40]]
        for n in range(200)
    ]
    content = annotations([{"segmentation": each, "bbox": None, "area": None} for each in polygons])
    content["images"][0] |= {"width": width, "height": height}
    content["images"].append({"id": 8, "file_name": "b.jpg", "width": width, "height": height})
    content["annotations"] += [{**each, "id": 1000 + each["id"], "image_id": 8} for each in content["annotations"]]
    files = {"images/a.jpg": photo(width, height), "images/b.jpg": photo(width, height)}
    root = write(tmp_path, {"train.json": content} | files)
    load(root)  # what is imported and cached stays out of the count
    row = {"mask": {"bytes": picture(pixels), "path": None}, "file": "a", "category": None}
    labels = LabelMap(("1", "2", "3"), (1, 2, 3))
    instance.fit(row, (height, width), labels)

    def peak(function):
        tracemalloc.start()
        result = function()
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return result, most

    (splits, _), most = peak(lambda: load(root))
    assert len(splits.train[0]["objects"]["bbox"]) == 200
    assert most < 10 * one
    (fitted, _), most = peak(lambda: instance.fit(row, (height, width), labels))
    assert len(fitted["objects"]["bbox"]) == 200
    assert most < 20 * one
    assert [mask["size"] for mask in fitted["objects"]["segmentation"]] == [[height, width]] * 200
    rows = [([picture(pixels[..., 1] == number + 1)], number) for number in range(200)]
    row = {"masks": [{"bytes": mask, "path": None} for (mask,), _ in rows], "category": [0] * 200, "file": "a"}
    (fitted, _), most = peak(lambda: instance.fit(row, (height, width), labels))
    assert len(fitted["objects"]["bbox"]) == 200
    assert most < 10 * one
    assert fitted["objects"]["area"] == [1120] * 200


@pytest.mark.skipif(not (SHARED / "nuclei").is_dir(), reason="the nuclei are not here")
def test_nuclei_equal_pycocotools():
    splits, _ = load(SHARED / "nuclei")
    assert (len(splits.train), len(splits.validation), splits.labels.names) == (45, 20, ("nucleus",))
    assert not len(splits.findings)
    for split, name in ((splits.train, "train"), (splits.validation, "val")):
        known = COCO(str(SHARED / "nuclei" / f"instances_{name}.json"))
        for row in split:
            found = known.loadAnns(known.getAnnIds([row["image_id"]]))
            size = tuple(known.imgs[row["image_id"]][key] for key in ("height", "width"))
            fitted, findings = instance.fit(row, size, splits.labels)
            assert not findings
            assert len(found) == len(fitted["objects"]["bbox"])
            for mask, each in zip(fitted["objects"]["segmentation"], found, strict=True):
                assert mask["counts"] == each["segmentation"]["counts"]
    assert Path(splits.train[0]["image"]["path"]).is_file()


def test_red_without_green_is_no_object():
    pixels = red_green([(1, BLOCK)])
    pixels[OTHER, 0] = 2
    row = {"mask": {"bytes": picture(pixels), "path": None}, "file": "a"}
    fitted, found = instance.fit(row, SIZE, LabelMap(("person", "car"), (1, 2)))
    assert not found
    assert fitted["objects"]["segmentation"] == [compressed(BLOCK)]


def test_a_mask_goes_with_its_box(tmp_path):
    content = annotations(
        [{"segmentation": TRIANGLE}, {"segmentation": EVERY_KIND["compressed"], "bbox": [1, 2, 0, 5]}]
    )
    content["annotations"].append({**content["annotations"][0], "id": 9, "segmentation": TWO})
    content["images"].append({"id": 8, "file_name": "b.jpg", "width": 60, "height": 40})
    content["annotations"].append({**content["annotations"][0], "id": 10, "image_id": 8})
    files = {"train.json": content, "images/a.jpg": None, "images/b.jpg": None}
    splits, _ = load(write(tmp_path, {**files, "val.json": annotations([{"segmentation": TRIANGLE}])}))
    assert splits.findings.count("box-zero-area") == 1
    assert splits.train[0]["objects"]["segmentation"] == [compressed(dense(TRIANGLE)), compressed(dense(TWO))]
