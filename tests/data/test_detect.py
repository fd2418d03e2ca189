"""Formats of boxes told apart from each other and from what only looks like them.

That each layout is told is tested with its reader, where the recipe names no format.
"""

from __future__ import annotations

import pytest

from cv_hf.config import DataConfig
from cv_hf.data import detect_format
from cv_hf.errors import DataError
from tests.data.boxed import write
from tests.data.samples import SHARED

COCO = {"images": [], "annotations": [], "categories": []}
CLASSES = {f"{name}/{number}.jpg": None for name in ("cat", "dog") for number in range(2)}
YOLO = {"images/0.jpg": None, "labels/0.txt": "0 0.5 0.5 0.1 0.1\n"}


def told(tmp_path, files):
    return detect_format(DataConfig(id=write(tmp_path, files)))


@pytest.mark.parametrize(
    "more",
    [
        {"classes.txt": "cat\ndog\n"},
        {"cat/classes.txt": "cat\ndog\n", "cat/notes.txt": "0 0.5 0.5 0.1 0.1"},
        {"notes.xml": "<project/>", ".idea/a.xml": "<annotation/>"},
        {"run.json": {"images": 5, "annotations": 3}, "list.json": [1]},
        {"names.yaml": "names: [cat, dog]\n", "settings.yaml": "{"},
        {"labels/0.txt": "a label\n", "labels/1.txt": ""},
    ],
)
def test_class_folders_with_files_beside_stay_class_folders(tmp_path, more):
    assert told(tmp_path, CLASSES | more) == "imagefolder"


@pytest.mark.parametrize(
    ("expected", "files"),
    [
        ("coco", {"annotations/instances_val2017.json": COCO, "annotations/captions_val2017.json": COCO}),
        ("coco", {"train.json": COCO, "panoptic.json": {"annotations": [{"segments_info": []}]}}),
        ("panoptic", {"panoptic_train.json": {"images": [], "annotations": [{"segments_info": []}]}}),
        ("coco", {"train.json": '{"annotations": [{"image_id": 1, "category_id": 1, "x": "' + "x" * 70_000 + '"}]}'}),
        ("voc", {"images/a.xml": "<?xml version='1.0'?>\n<!-- made -->\n<annotation verified='yes'/>"}),
        ("yolo", {"any.yaml": "train: images\nnames: [a]\n", "images/0.jpg": None}),
        ("yolo", YOLO),
        ("yolo", {"data.yaml": "", "images/0.jpg": None, "labels/0.txt": ""}),
        ("parquet", {"labels.csv": "image,label\n0.jpg,a\n", "0.jpg": None}),
    ],
)
def test_formats(tmp_path, expected, files):
    assert told(tmp_path, files) == expected


def test_files(tmp_path):
    write(tmp_path, {"a.json": COCO, "b.json": [{"image": "0.jpg"}], "data.yaml": ""})
    for name, expected in (("a.json", "coco"), ("b.json", "parquet"), ("data.yaml", "yolo")):
        assert detect_format(DataConfig(id=str(tmp_path / name))) == expected


def test_a_dataset_in_two_formats_is_an_error(tmp_path, capsys):
    files = YOLO | {"Annotations/0.xml": "<annotation/>"}
    with pytest.raises(DataError, match=r"could be voc or yolo.\nSet data.format"):
        told(tmp_path, files)
    with pytest.raises(DataError, match="could be coco or voc or yolo"):
        told(tmp_path, files | {"annotations/train.json": COCO})
    assert capsys.readouterr() == ("", "")


@pytest.mark.skipif(not SHARED.is_dir(), reason="shared data is absent")
def test_real_datasets():
    for name, expected in (("bccd", "voc"), ("nuclei", "coco"), ("clothing", "imagefolder")):
        assert detect_format(DataConfig(id=str(SHARED / name))) == expected
