"""Exports of labelling tools: those that are read, wherever their images stand; those that are not, and are named."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest

from cv_hf import cli
from cv_hf.config import DataConfig
from cv_hf.data import detect_format
from cv_hf.errors import DataError
from cv_hf.starter import task_of
from tests.data.boxed import load, write

REGION = {"shape_attributes": {"name": "rect", "x": 1, "y": 2}, "region_attributes": {"class": "cat"}}
LABEL_STUDIO = [{"x": 10, "y": 10, "width": 30, "height": 30, "rectanglelabels": ["cat"], "original_width": 60}]
LABELME = {"version": "5", "shapes": [{"label": "cat", "points": [[1, 1], [9, 9]], "shape_type": "rectangle"}]}
CREATE_ML = [{"image": "0.jpg", "annotations": [{"label": "cat", "coordinates": {"x": 15, "y": 20}}]}]
COCO = {
    "images": [{"id": number, "file_name": f"{number}.jpg", "width": 60, "height": 40} for number in range(4)],
    "annotations": [
        {"id": number, "image_id": number, "category_id": 1, "bbox": [5, 6, 20, 30], "area": 600, "iscrowd": 0}
        for number in range(4)
    ],
    "categories": [{"id": 1, "name": "cat"}],
}
VOC = (
    "<annotation><filename>{}.jpg</filename><object><name>cat</name><bndbox><xmin>5</xmin><ymin>6</ymin><xmax>25</xmax>"
    "<ymax>36</ymax></bndbox></object></annotation>"
)


def array():
    content = io.BytesIO()
    np.save(content, np.zeros((40, 60)))
    return content.getvalue()


def photos(folder=""):
    return {f"{folder}{number}.jpg": None for number in range(4)}


@pytest.mark.parametrize(
    ("files", "told"),
    [
        (photos() | {"0.json": LABELME}, "0.json looks like labelme's own"),
        (photos("images/") | {"annotations/0.json": LABELME}, "annotations/0.json looks like labelme's own"),
        (photos("images/") | {"via_region_data.json": {"0.jpg1": {"regions": [REGION]}}}, "looks like VIA's own"),
        (photos() | {"via.csv": "filename,region_shape_attributes,region_attributes\n0.jpg,{},{}\n"}, "VIA's own"),
        (photos("images/") | {"annotations.xml": '<annotations><version>1.1</version><image id="0" />'}, "CVAT's own"),
        (photos("ds/img/") | {"ds/ann/0.jpg.json": {"objects": [{"geometryType": "rectangle"}]}}, "Give the inner"),
        (photos("img/") | {"ann/0.jpg.json": {"objects": [{"geometryType": "rectangle"}]}}, "Supervisely's own"),
        (photos("images/") | {"project.json": [{"id": 1, "label": LABEL_STUDIO}]}, "Label Studio's own"),
        (
            photos("images/") | {"p.csv": f'image,label\n0.jpg,"{json.dumps(LABEL_STUDIO)}"\n'.replace('"x"', '""x""')},
            "Label Studio's own",
        ),
        (
            photos("train/") | photos("valid/") | {"train/_annotations.createml.json": CREATE_ML},
            "train/_annotations.createml.json looks like CreateML's own",
        ),
        (photos("data/") | {"labels.json": {"classes": ["cat"], "labels": {"0": 0}}}, "FiftyOne's own"),
        (photos("data/") | {"samples.json": {"samples": [{"_cls": "Detection"}]}}, "FiftyOne's own"),
        (photos("images/") | {"export.ndjson": '{"data_row": {"external_id": "0.jpg"}}\n'}, "Labelbox's own"),
        (photos() | {"0.txt": "0 0.5 0.5 0.2 0.2\n"}, "0.txt looks like YOLO's: write the names of the classes"),
        (photos("images/") | {"masks/0.npy": array()}, "masks/0.npy is an array of NumPy"),
        (photos("images/") | {"a/labels.json": COCO}, "a/labels.json is COCO: give this file as data.id"),
        ({"photos.zip": b"PK"}, "photos.zip is an archive: unpack it"),
        (
            photos("1/images/") | photos("1/masks/") | photos("2/images/") | photos("2/masks/"),
            "a folder for each image",
        ),
        (photos("images/") | photos("masks/"), "a JPEG, whose compression changes its values.\nSave the masks as PNGs"),
        (photos("images/") | {"notes.txt": "taken in July"}, "no folders of classes"),
        (photos("train/images/") | photos("val/images/"), "no folders of classes"),
        (photos("images/train/") | photos("images/val/"), "no folders of classes"),
    ],
)
def test_what_is_not_read_is_named(tmp_path, files, told, capsys):
    root = write(tmp_path, files)
    for command in (["init", root, "--out", str(tmp_path / "recipe.yaml")], ["check", root]):
        assert cli.main(command) == 2
        error = capsys.readouterr().err
        assert told in error
        assert len(error.splitlines()) <= 2


@pytest.mark.parametrize(
    "files",
    [
        photos("train/car/") | photos("train/data/"),
        photos("train/car/") | photos("test/"),
        photos("train/") | photos("car/"),
        photos("photos/") | photos("drawings/2021/"),
        {f"cat/{number}.jpg": None for number in range(4)} | {f"dog/{number}.jpg": None for number in range(4)},
    ],
)
def test_folders_of_classes_stay_so(tmp_path, files):
    assert detect_format(DataConfig(id=write(tmp_path, files))) == "imagefolder"


@pytest.mark.parametrize(
    "files",
    [
        photos("images/default/") | {"annotations/instances_default.json": COCO},  # CVAT
        photos("data/") | {"labels.json": COCO},  # FiftyOne
        photos("data/") | {f"labels/{number}.xml": VOC.format(number) for number in range(4)},
    ],
)
def test_boxes_as_tools_lay_them_out(tmp_path, files):
    splits = load(write(tmp_path, files))
    assert len(splits.train) + len(splits.validation) == 4
    assert splits.labels.names == ("cat",)
    assert all(row["objects"]["bbox"] == [[5, 6, 20, 30]] for row in splits.train)


@pytest.mark.parametrize(
    ("photo", "mask", "told"),
    [
        ("images/{}.jpg", "labels_of_pixels/{}_mask.png", True),
        ("a/{}.jpg", "b/{}.png", True),
        ("images/{}.png", "b/{}.png", True),
        ("cat/{}.jpg", "dog/{}.jpg", False),
        ("cat/{}.png", "dog/{}.png", False),
    ],
)
def test_folders_called_alike_may_be_masks(tmp_path, photo, mask, told):
    data = DataConfig(id=write(tmp_path, {name.format(number): None for number in range(4) for name in (photo, mask)}))
    if not told:
        assert task_of(data).name == "image-classification"
        return
    folders = [tmp_path / name.split("/")[0] for name in (photo, mask)]
    with pytest.raises(DataError) as error:
        task_of(data)
    assert f"data.images={folders[0]} data.masks={folders[1]}; " in str(error.value)
    assert task_of(data.model_copy(update={"format": "imagefolder"})).name == "image-classification"
    told = data.model_copy(update={"images": str(folders[0]), "masks": str(folders[1])})
    assert task_of(told).name == "semantic-segmentation"
    assert detect_format(data, ("imagefolder",)) == "imagefolder", "whoever names the task has said it"
