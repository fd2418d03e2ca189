"""Masks of the pixels of photos as they are stored, which EXIF turns: turned with them, as Pillow turns a picture."""

from __future__ import annotations

import io

import datasets
import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest
from pycocotools import mask as coco_mask

from cv_hf import runs
from cv_hf.config import DataConfig
from cv_hf.data import LabelMap, check, instance, load_splits, panoptic, repair, semantic
from cv_hf.tasks.instance_segmentation import TASK
from tests.data.boxed import photo, write

# As stored; EXIF 5 to 8 swap these.
HEIGHT, WIDTH = 20, 30
ORIENTATIONS = range(1, 9)


def shape(seed=0):
    """A mask without any symmetry."""
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[2:9, 3:25] = 1
    mask[9:17, 18 + seed : 25] = 1
    return mask


def upright(pixels, orientation):
    """As Pillow turns a picture that has this orientation."""
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    content = io.BytesIO()
    PIL.Image.fromarray(pixels).save(content, "PNG", exif=exif)
    return np.asarray(PIL.ImageOps.exif_transpose(PIL.Image.open(content)))


def picture(pixels, orientation=None, palette=False):
    content, exif = io.BytesIO(), PIL.Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    image = PIL.Image.fromarray(pixels)
    if palette:
        image.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    image.save(content, "PNG", exif=exif)
    return {"bytes": content.getvalue(), "path": None}


def stored(orientation, height=HEIGHT, width=WIDTH):
    return {"bytes": photo(width, height, orientation=orientation), "path": None}


def size_of(orientation):
    return (WIDTH, HEIGHT) if orientation >= 5 else (HEIGHT, WIDTH)


def expected(pixels, orientation):
    """Where the sides stay as they are, nothing tells whether the mask was turned already."""
    return upright(pixels, orientation) if orientation >= 5 else pixels


def decoded(mask):
    return coco_mask.decode(mask)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_run_lengths_turn_as_pillow_does(orientation):
    found = runs.turned(runs.from_mask(shape()), orientation)
    np.testing.assert_array_equal(decoded(found), upright(shape(), orientation))


def classes(row, size):
    found, findings = semantic.fit(row, size, LabelMap(("zero", "one"), (0, 1)))
    return found["mask"] - 1, findings


def colours(row, size):
    found, findings = semantic.fit(row, size, LabelMap(("zero", "one"), ("#000000", "#0a1e28")))
    return found["mask"] - 1, findings


def segments(row, size):
    one = {"category_id": 0, "area": None, "iscrowd": False}
    row = {**row, "segments_info": [{"id": 7, **one}, {"id": 70000, **one}]}
    found, findings = panoptic.fit(row, size, LabelMap(("a",), (1,)))
    return found["mask"] - 1, findings


def red_and_green(row, size):
    found, findings = instance.fit(row, size, LabelMap(("a",), (1,)))
    return decoded(found["objects"]["segmentation"][0]), findings


def pictures(row, size):
    row = {"image": row["image"], "masks": [row["mask"]], "category": [0], "file": row["file"]}
    found, findings = instance.fit(row, size, LabelMap(("a",), (1,)))
    return decoded(found["objects"]["segmentation"][0]), findings


def three(*channels):
    return np.stack(np.broadcast_arrays(*channels), axis=-1).astype(np.uint8)


KINDS = {
    "classes": (classes, picture(shape())),
    "classes in a palette": (classes, picture(shape(), palette=True)),
    "classes of 16 bits": (classes, picture(shape().astype(np.uint16))),
    "colours": (colours, picture(three(shape() * 10, shape() * 30, shape() * 40))),
    # 7 outside, 70000 = 112 + 17 * 256 + 1 * 65536 inside.
    "segments": (segments, picture(three(shape() * 105 + 7, shape() * 17, shape()))),
    "red and green": (red_and_green, picture(three(shape(), shape(), 0))),
    "a picture for each": (pictures, picture(shape() * 255)),
}


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_pictures_of_masks(kind, orientation):
    fit, mask = KINDS[kind]
    row = {"image": stored(orientation), "mask": mask, "file": "a.jpg"}
    found, findings = fit(row, size_of(orientation))
    np.testing.assert_array_equal(found, expected(shape(), orientation))
    name = "a.jpg object 0" if kind == "a picture for each" else "a.jpg"
    turned = ("mask-turned", name, "30x20, as its image of 20x30 is stored")
    assert findings == ([turned] if orientation >= 5 else [])


@pytest.mark.parametrize(
    ("image", "mask", "size", "code"),
    [
        # Not turned by EXIF, only of another shape.
        (stored(None), shape(), (WIDTH, HEIGHT), "mask-size-mismatch"),
        (stored(3), shape().T, (HEIGHT, WIDTH), "mask-size-mismatch"),
        (stored(6), shape()[1:], (WIDTH, HEIGHT), "mask-size-mismatch"),
        # Upright already.
        (stored(6), upright(shape(), 6), (WIDTH, HEIGHT), None),
        # A square says nothing.
        (stored(6, 20, 20), shape()[:, :20], (20, 20), None),
    ],
)
def test_masks_that_are_not_turned(image, mask, size, code):
    row = {"image": image, "mask": picture(np.ascontiguousarray(mask)), "file": "a.jpg"}
    found, findings = semantic.fit(row, size, LabelMap(("zero", "one"), (0, 1)))
    assert [each[0] for each in findings] == ([] if code is None else [code])
    if code is None:
        np.testing.assert_array_equal(found["mask"] - 1, mask)


def test_a_mask_with_an_orientation_of_its_own_is_not_turned_twice():
    size = size_of(6)
    whole = {"image": stored(6), "mask": picture(shape(), orientation=6), "file": "a.jpg"}
    found, findings = classes(whole, size)
    np.testing.assert_array_equal(found, upright(shape(), 6))
    assert findings == []
    # Upright pixels with a copied orientation: what they are is not known.
    row = {**whole, "mask": picture(np.ascontiguousarray(upright(shape(), 6)), orientation=6)}
    found, findings = semantic.fit(row, size, LabelMap(("zero", "one"), (0, 1)))
    assert (found, findings[0][0]) == (None, "mask-size-mismatch")


# Instances: COCO and tables ------------------------------------------------------------------------------------------


def polygon():
    """The outline of `shape`, which pycocotools fills to just its pixels."""
    return [[3, 2, 25, 2, 25, 17, 18, 17, 18, 9, 3, 9]]


def uncompressed(mask):
    lengths = runs.run_lengths(runs.from_mask(mask)["counts"])
    return {"size": list(mask.shape), "counts": lengths.tolist()}


SEGMENTATIONS = {"polygons": polygon(), "runs": uncompressed(shape()), "compressed runs": runs.from_mask(shape())}
BOX = [3, 2, 22, 15]


def coco(segmentation, box=BOX, stated=(HEIGHT, WIDTH)):
    return {
        "images": [{"id": 1, "file_name": "a.jpg", "height": stated[0], "width": stated[1]}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "bbox": box, "segmentation": segmentation},
            {"id": 2, "image_id": 1, "category_id": 1, "bbox": box, "segmentation": segmentation, "iscrowd": 1},
        ],
        "categories": [{"id": 1, "name": "a"}],
    }


def read(root, orientation, content):
    files = {f"{split}/a.jpg": None for split in ("train", "val")}
    write(root, files | {f"annotations/instances_{split}.json": content for split in ("train", "val")})
    for split in ("train", "val"):
        (root / split / "a.jpg").write_bytes(photo(WIDTH, HEIGHT, orientation=orientation))
    splits = load_splits(DataConfig(id=str(root)), TASK, 0, lambda line: None)
    return fitted(splits, size_of(orientation))


def fitted(splits, size):
    (row,) = splits.train
    row, findings = instance.fit(row, size, splits.labels)
    for finding in findings:
        splits.findings.add(*finding)
    return row and row["objects"], splits.findings


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("kind", SEGMENTATIONS)
def test_instances_of_coco(tmp_path, kind, orientation):
    objects, findings = read(tmp_path, orientation, coco(SEGMENTATIONS[kind]))
    mask = expected(shape(), orientation)
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    box = [columns[0], rows[0], columns[-1] + 1 - columns[0], rows[-1] + 1 - rows[0]]
    assert len(objects["segmentation"]) == 2
    for found, around in zip(objects["segmentation"], objects["bbox"], strict=True):
        np.testing.assert_array_equal(decoded(found), mask)
        assert around == box
    assert objects["iscrowd"] == [False, True]
    assert objects["area"] == [shape().sum()] * 2
    turned = ["train/a.jpg object 0", "train/a.jpg object 1"] if orientation >= 5 else []
    assert list(findings.reasons("mask-turned")) == turned
    assert set(findings) - {"exif-rotated"} == ({"mask-turned"} if turned else set())


@pytest.mark.parametrize("kind", ["runs", "compressed runs"])
def test_run_lengths_state_their_size_where_the_file_does_not(tmp_path, kind):
    objects, findings = read(tmp_path, 6, coco(SEGMENTATIONS[kind], stated=(None, None)))
    np.testing.assert_array_equal(decoded(objects["segmentation"][0]), upright(shape(), 6))
    assert findings.count("mask-turned") == 2
    (tmp_path / "other").mkdir()
    objects, findings = read(tmp_path / "other", 3, coco(SEGMENTATIONS[kind], stated=(None, None)))
    np.testing.assert_array_equal(decoded(objects["segmentation"][0]), shape())


def test_masks_that_are_stated_upright_stay(tmp_path):
    mask = upright(shape(), 6)
    objects, findings = read(tmp_path, 6, coco(runs.from_mask(mask), [3, 3, 15, 22], (WIDTH, HEIGHT)))
    np.testing.assert_array_equal(decoded(objects["segmentation"][0]), mask)
    assert set(findings) == {"exif-rotated"}


def test_a_box_that_only_the_upright_image_holds_speaks_against_turning(tmp_path):
    """As of boxes alone: polygons of the upright image are not turned, though its size is stated as it is stored."""
    objects, findings = read(tmp_path, 6, coco(polygon(), [3, 22, 10, 8]))
    assert objects is None
    assert "mask-turned" not in findings
    assert findings.count("mask-size-mismatch") == 2


@pytest.mark.parametrize("stated", [True, False])
@pytest.mark.parametrize("orientation", [1, 5, 6, 7, 8])
def test_instances_of_a_table(tmp_path, orientation, stated):
    """Run lengths state their size themselves."""
    objects = [{"segmentation": [runs.from_mask(shape()), runs.from_mask(shape(2))], "category": [0, 0]}]
    sizes = {"height": [HEIGHT], "width": [WIDTH]} if stated else {}
    rle = {"size": datasets.List(datasets.Value("int64")), "counts": datasets.Value("string")}
    features = {
        "image": datasets.Image(),
        "objects": {
            "segmentation": datasets.List(rle),
            "category": datasets.List(datasets.ClassLabel(names=["a"])),
        },
        **dict.fromkeys(sizes, datasets.Value("int64")),
    }
    rows = datasets.Dataset.from_dict(
        {"image": [stored(orientation)], "objects": objects, **sizes}, features=datasets.Features(features)
    )
    for name in ("train", "val"):
        rows.to_parquet(tmp_path / f"{name}.parquet")
    found, findings = fitted(
        load_splits(DataConfig(id=str(tmp_path)), TASK, 0, lambda line: None), size_of(orientation)
    )
    for mask, seed in zip(found["segmentation"], (0, 2), strict=True):
        np.testing.assert_array_equal(decoded(mask), expected(shape(seed), orientation))
    assert findings.count("mask-turned") == len(findings) == 2 * (orientation >= 5)


def test_check_finds_it_and_its_copy_has_it_no_more(tmp_path):
    read(tmp_path / "data", 6, coco(polygon()))
    diagnosis = check(DataConfig(id=str(tmp_path / "data")), TASK, lambda line: None)
    assert diagnosis.findings.count("mask-turned") == 4
    repair.repair(diagnosis, tmp_path / "copy", lambda line: None)
    copy = check(DataConfig(id=str(tmp_path / "copy")), TASK, lambda line: None)
    assert "mask-turned" not in copy.findings
    (mask,) = copy.rows["val"][0]["objects"]["segmentation"][:1]
    np.testing.assert_array_equal(decoded(mask), upright(shape(), 6))


def test_pixels_of_no_label_are_turned_for_their_picture():
    odd = shape() * 9
    row = {"image": stored(6), "mask": picture(odd), "file": "a.jpg"}
    found = semantic.unknown_pixels(row, LabelMap(("zero",), (0,)), size_of(6))
    np.testing.assert_array_equal(found, upright(shape(), 6).astype(bool))
    row |= {"segments_info": []}
    np.testing.assert_array_equal(panoptic.unlisted_pixels(row, size_of(6)), upright(shape(), 6).astype(bool))
