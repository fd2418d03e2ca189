"""Folders of images and masks: every layout, by a table of which mask is whose."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cv_hf.config import DataConfig
from cv_hf.data import detect_format, masks
from cv_hf.data.findings import Findings
from cv_hf.data.sample import scattered_digits
from cv_hf.errors import DataError
from tests.data.boxed import photo, write
from tests.data.masked import TASK, blocks, load, mask

COCO = {"images": [], "annotations": [], "categories": []}


def read(folder, **given):
    """{split: [(image, mask)]}, and {code: files}."""
    findings = Findings()
    source = masks.read(str(folder), findings=findings, **given)
    assert source.format == "masks"
    found = {
        name: [
            tuple(Path(row[kind]["path"]).relative_to(folder).as_posix() for kind in ("image", "mask")) for row in rows
        ]
        for name, rows in source.splits.items()
    }
    return found, {code: entry["files"] for code, entry in findings.to_dict().items()}


LAYOUTS = {
    "folders": (
        {"images/a.jpg": "masks/a.png", "images/b.c.jpeg": "masks/b.c.png", "images/d.png": "masks/d.tif"},
        {"train": ["images/a.jpg", "images/b.c.jpeg", "images/d.png"]},
    ),
    "splits above": (
        {"train/images/a.jpg": "train/masks/a.png", "valid/images/a.jpg": "valid/masks/a.png"},
        {"train": ["train/images/a.jpg"], "valid": ["valid/images/a.jpg"]},
    ),
    "splits below, as ADE20K": (
        {
            "images/training/a.jpg": "annotations/training/a.png",
            "images/validation/b.jpg": "annotations/validation/b.png",
        },
        {"training": ["images/training/a.jpg"], "validation": ["images/validation/b.jpg"]},
    ),
    "splits of two spellings": (
        {"images/train/a.jpg": "labels/training/a.png", "images/val/a.jpg": "labels/validation/a.png"},
        {"train": ["images/train/a.jpg"], "val": ["images/val/a.jpg"]},
    ),
    "splits of the images alone": (
        {"images/train/a.jpg": "masks/a.png", "images/test/b.jpg": "masks/b.png"},
        {"train": ["images/train/a.jpg"], "test": ["images/test/b.jpg"]},
    ),
    "splits of the masks alone": (
        {"images/a.jpg": "masks/train/a.png", "images/b.jpg": "masks/val/b.png"},
        {"train": ["images/a.jpg"], "val": ["images/b.jpg"]},
    ),
    "CamVid": (
        {"train/a.png": "train_labels/a_L.png", "val/b.png": "val_labels/b_L.png", "test/c.png": "test_labels/c_L.png"},
        {"train": ["train/a.png"], "val": ["val/b.png"], "test": ["test/c.png"]},
    ),
    "SegNet's CamVid": (
        {"train/a.png": "trainannot/a.png", "val/a.png": "valannot/a.png"},
        {"train": ["train/a.png"], "val": ["val/a.png"]},
    ),
    "Cityscapes": (
        {
            "leftImg8bit/train/aachen/a_leftImg8bit.png": "gtFine/train/aachen/a_gtFine_labelIds.png",
            "leftImg8bit/val/bonn/a_leftImg8bit.png": "gtFine/val/bonn/a_gtFine_labelIds.png",
        },
        {
            "train": ["leftImg8bit/train/aachen/a_leftImg8bit.png"],
            "val": ["leftImg8bit/val/bonn/a_leftImg8bit.png"],
        },
    ),
    "side by side, with an ending": (
        {"train/a.jpg": "train/a_mask.png", "train/b (1).png": "train/b (1)_mask.png", "test/c.jpg": "test/c-seg.png"},
        {"train": ["train/a.jpg", "train/b (1).png"], "test": ["test/c.jpg"]},
    ),
    "side by side, by format": (
        {"a.jpg": "a.png", "b.JPG": "b.png"},
        {"train": ["a.jpg", "b.JPG"]},
    ),
    "images beside the folder of masks": ({"a.jpg": "masks/a.png"}, {"train": ["a.jpg"]}),
    "endings in folders": (
        {"images/0_sat.jpg": "masks/0_mask.png", "images/1_L.jpg": "masks/1_L.png"},
        {"train": ["images/0_sat.jpg", "images/1_L.jpg"]},
    ),
    "folders below": (
        {"images/x/a.jpg": "masks/x/a.png", "images/y/a.jpg": "masks/y/a.png"},
        {"train": ["images/x/a.jpg", "images/y/a.jpg"]},
    ),
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(tmp_path, layout):
    pairs, expected = LAYOUTS[layout]
    write(tmp_path, dict.fromkeys((*pairs, *pairs.values()), "x"))
    found, findings = read(tmp_path)
    assert found == {name: [(image, pairs[image]) for image in images] for name, images in expected.items()}
    assert findings == {}
    assert detect_format(DataConfig(id=str(tmp_path)), TASK.formats) == "masks"


def test_what_is_no_mask_of_cityscapes(tmp_path):
    stem = "gtFine/train/aachen/a_gtFine_"
    others = [f"{stem}color.png", f"{stem}instanceIds.png"]
    write(tmp_path, dict.fromkeys(["leftImg8bit/train/aachen/a_leftImg8bit.png", f"{stem}labelIds.png", *others], "x"))
    found, findings = read(tmp_path)
    assert found == {"train": [("leftImg8bit/train/aachen/a_leftImg8bit.png", f"{stem}labelIds.png")]}
    assert findings == {}
    # Who has made the ids of training wants these.
    write(tmp_path, {f"{stem}labelTrainIds.png": "x"})
    assert read(tmp_path)[0]["train"][0][1] == f"{stem}labelTrainIds.png"


def voc(lists):
    files = {f"JPEGImages/{stem}.jpg": "x" for stem in "abcdef"}
    files |= {f"SegmentationClass/{stem}.png": "x" for stem in "abcde"}
    files |= {"SegmentationObject/a.png": "x", "Annotations/a.xml": "<annotation/>"}
    return files | {f"ImageSets/Segmentation/{name}.txt": text for name, text in lists.items()}


def test_pascal_voc(tmp_path):
    write(tmp_path, voc({"train": "a\nb\n", "val": "c\n\n", "trainval": "a\nb\nc\nd\n"}))
    found, findings = read(tmp_path)
    assert {name: [image[11] for image, _ in rows] for name, rows in found.items()} == {
        "train": ["a", "b"],
        "val": ["c"],
    }
    assert found["train"][0] == ("JPEGImages/a.jpg", "SegmentationClass/a.png")
    assert findings == {"unlisted": ["JPEGImages/d.jpg", "JPEGImages/e.jpg"]}
    assert detect_format(DataConfig(id=str(tmp_path)), TASK.formats) == "masks"
    assert detect_format(DataConfig(id=str(tmp_path)), ("coco", "voc", "yolo")) == "voc"


def test_lists_of_other_forms(tmp_path):
    write(tmp_path, voc({"trainval": "a.jpg\n/JPEGImages/b.jpg /SegmentationClass/b.png\nc\n", "val": "c\nf\n"}))
    found, findings = read(tmp_path)
    assert {name: [image[11] for image, _ in rows] for name, rows in found.items()} == {
        "val": ["c"],
        "train": ["a", "b"],
    }
    assert findings == {
        "missing-mask": ["val: f"],
        "unlisted": ["JPEGImages/d.jpg", "JPEGImages/e.jpg"],
    }
    with pytest.raises(DataError, match=r"val: f: listed in ImageSets.*missing-mask"):
        masks.read(str(tmp_path), on_bad_sample="stop")


def test_the_only_list_is_of_train(tmp_path):
    write(tmp_path, voc({"default": "a\nb\n"}))
    assert [image for image, _ in read(tmp_path)[0]["train"]] == ["JPEGImages/a.jpg", "JPEGImages/b.jpg"]


def test_folders_that_the_recipe_names(tmp_path):
    pairs = {
        "raw/train/a.png": "hand/training/a_L.png",
        "raw/val/b.png": "hand/val/b_L.png",
        "raw/val/c.png": "hand/c.png",
    }
    write(tmp_path, dict.fromkeys((*pairs, *pairs.values()), "x"))
    given = {"images": str(tmp_path / "raw"), "masks": str(tmp_path / "hand")}
    found, findings = read(tmp_path, **given)
    assert dict(pair for rows in found.values() for pair in rows) == pairs
    assert {name: len(rows) for name, rows in found.items()} == {"train": 1, "val": 2}
    assert findings == {}
    assert detect_format(DataConfig(id=str(tmp_path), **given), TASK.formats) == "masks"
    with pytest.raises(DataError, match=r"data.masks: there is no folder nowhere"):
        masks.read(str(tmp_path), masks="nowhere")
    with pytest.raises(DataError, match="no image has a mask of its name among 3 images and 0 masks"):
        masks.read(str(tmp_path), images=given["images"])


def test_one_folder_that_the_recipe_names(tmp_path):
    write(tmp_path, dict.fromkeys(("images/a.png", "masks/a.png", "fine/a.png"), "x"))
    assert read(tmp_path, masks=str(tmp_path / "fine"))[0] == {"train": [("images/a.png", "fine/a.png")]}
    write(tmp_path, {"photographs/a.png": "x"})
    assert read(tmp_path, images=str(tmp_path / "photographs"))[0] == {"train": [("photographs/a.png", "masks/a.png")]}


def test_images_without_masks_and_masks_without_images(tmp_path):
    names = ("images/a.jpg", "masks/a.png", "images/b.jpg", "masks/c.png", "images/d.jpg", "masks/d.png", "masks/d.tif")
    write(tmp_path, dict.fromkeys(names, "x"))
    found, findings = read(tmp_path)
    assert found == {"train": [("images/a.jpg", "masks/a.png")]}
    assert findings == {"missing-mask": ["images/d.jpg", "images/b.jpg"], "orphan-mask": ["masks/c.png"]}
    with pytest.raises(DataError, match=r"images/d.jpg: several masks are called so: masks/d.png, masks/d.tif"):
        masks.read(str(tmp_path), on_bad_sample="stop")
    (tmp_path / "images/d.jpg").unlink()
    with pytest.raises(DataError, match=r"images/b.jpg: .*missing-mask"):
        masks.read(str(tmp_path), on_bad_sample="stop")


def test_a_split_without_masks_is_left_out(tmp_path):
    names = ("train/images/a.jpg", "train/masks/a.png", "test/images/b.jpg", "test/images/c.jpg")
    write(tmp_path, dict.fromkeys(names, "x"))
    found, findings = read(tmp_path)
    assert list(found) == ["train"]
    assert findings == {"missing-split": ["test"]}


def test_splits_of_unusual_names(tmp_path):
    names = ("north/images/a.jpg", "north/masks/a.png", "masks/south/b.png", "images/south/b.jpg")
    write(tmp_path, dict.fromkeys(names, "x"))
    found, _ = read(tmp_path, wanted=["north", "south"])
    assert found == {"north": [names[:2]], "south": [(names[3], names[2])]}
    with pytest.raises(DataError, match=r"no split 'west'.*north"):
        masks.read(str(tmp_path), wanted=["north", "west"])


def test_other_folders_are_not_looked_at(tmp_path):
    write(
        tmp_path, dict.fromkeys(("images/a.jpg", "masks/a.png", "overlays/a.png", "panoptic/train/a.png", "x.png"), "x")
    )
    assert read(tmp_path) == ({"train": [("images/a.jpg", "masks/a.png")]}, {})


def test_links_that_lead_out(tmp_path):
    outside = tmp_path / "outside"
    write(outside, {"a.png": "x", "b.png": "x"})
    inside = tmp_path / "inside"
    write(inside, dict.fromkeys(("images/a.jpg", "images/b.jpg", "masks/b.png"), "x"))
    os.symlink(outside / "a.png", inside / "masks/a.png")
    found, findings = read(inside)
    assert found == {"train": [("images/b.jpg", "masks/b.png")]}
    assert findings == {"missing-mask": ["images/a.jpg"], "path-outside": ["masks/a.png"]}
    os.symlink(outside, inside / "labels")
    with pytest.raises(DataError, match="labels is a link that leads out"):
        masks.read(str(inside))


def test_nothing_to_pair(tmp_path):
    write(tmp_path, dict.fromkeys(("images/a.jpg", "masks/b.png"), "x"))
    with pytest.raises(DataError, match=r"among 1 images and 1 masks \(images/a.jpg, masks/b.png\)"):
        masks.read(str(tmp_path))
    with pytest.raises(DataError, match="masks are read from a folder"):
        masks.read(str(tmp_path / "images/a.jpg"))


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (("cat/0.jpg", "cat/1.jpg", "dog/0.jpg"), "imagefolder"),
        (("train/cat/0.jpg", "train/dog/0.jpg", "val/cat/0.jpg", "val/dog/0.jpg"), "imagefolder"),
        (("train/cat/0.jpg", "train/cat/1.png", "train/cat/2_mask.png"), "imagefolder"),
        (("images/0.jpg", "masks/1.png"), "imagefolder"),
        (("images/0.jpg", "masks/0.png"), "masks"),
        (("images/0.jpg", "masks/mask_0.png"), "masks"),
        (("images/image_0.jpg", "masks/mask_0.png"), "masks"),
    ],
)
def test_detection_of_the_format(tmp_path, files, expected):
    write(tmp_path, dict.fromkeys(files))
    assert detect_format(DataConfig(id=str(tmp_path)), TASK.formats) == expected
    assert detect_format(DataConfig(id=str(tmp_path))) == expected
    # To other tasks these are what they were.
    for formats in (("imagefolder",), ("coco", "voc", "yolo")):
        assert detect_format(DataConfig(id=str(tmp_path)), formats) == "imagefolder"


def test_labels_of_yolo_are_no_masks(tmp_path):
    write(tmp_path, {"images/0.jpg": None, "labels/0.txt": "0 0.5 0.5 0.1 0.1\n"})
    assert detect_format(DataConfig(id=str(tmp_path)), TASK.formats) == "yolo"


def test_a_dataset_of_several_forms(tmp_path):
    folder = scattered_digits(tmp_path / "digits", train=4, validation=2, test=2)
    for formats, expected in (
        (TASK.formats, "masks"),
        (("coco", "voc", "yolo"), "coco"),
        (("panoptic",), "panoptic"),
        ((), "coco"),
    ):
        assert detect_format(DataConfig(id=str(folder)), formats) == expected
    splits, lines = load(folder)
    assert splits.source.format == "masks"
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (4, 2, 2)
    assert splits.labels.names == ("background", *map(str, range(10)))
    assert "data: masks: values 0 to 10, as id2label.json names them; 255 ignored" in lines
    for row in splits.test:
        assert Path(row["mask"]["path"]).relative_to(folder / "masks") == Path(row["image"]["path"]).relative_to(
            folder / "images"
        )
    write(tmp_path / "both", {"train.json": COCO, "images/0.jpg": None, "masks/0.png": None})
    assert detect_format(DataConfig(id=str(tmp_path / "both")), TASK.formats) == "masks"
    assert detect_format(DataConfig(id=str(tmp_path / "both"))) == "coco"


def test_the_whole_road(tmp_path):
    files = {f"images/{name}.jpg": photo(10, 6) for name in "abcdefgh"}
    files |= {f"masks/{name}.png": mask(blocks(0, 1, 2)) for name in "abcdefg"}
    write(tmp_path, files)
    splits, lines = load(tmp_path, labels=["sky", "sea", "sand"])
    assert len(splits.train) + len(splits.validation) == 7
    assert splits.train.column_names == ["image", "mask", "file"]
    assert "data: masks: values 0 to 2, as data.labels names them; 255 ignored" in lines
    assert any("error: 1 missing-mask (dropped)" in line and "images/h.jpg" in line for line in lines)
