"""Which task a starter recipe is for."""

from __future__ import annotations

import json

import datasets
import pytest
import yaml

from cv_hf import cli
from cv_hf.config import DataConfig
from cv_hf.starter import task_of
from tests.data.boxed import photo, write

TRIANGLE = [[1, 1, 20, 1, 20, 30]]
RLE = {"size": [40, 60], "counts": [100, 50, 2250]}


def coco(segmentations):
    """COCO of one image, with an object for each segmentation; None: it has none."""
    annotations = [
        {"id": number, "image_id": 1, "category_id": 1, "bbox": [1, 1, 19, 29]}
        | ({} if mask is None else {"segmentation": mask})
        for number, mask in enumerate(segmentations, 1)
    ]
    return {
        "images": [{"id": 1, "file_name": "a.jpg", "width": 60, "height": 40}],
        "annotations": annotations,
        "categories": [{"id": 1, "name": "cat"}],
    }


@pytest.mark.parametrize(
    ("segmentations", "task"),
    [
        ([TRIANGLE, RLE], "instance-segmentation"),
        ([TRIANGLE] * 99 + [[]], "instance-segmentation"),
        ([TRIANGLE] * 9 + [[]], "object-detection"),
        ([None, []], "object-detection"),
        # As some exports write each box.
        ([[[1, 1, 20, 1, 20, 30, 1, 30]], [[1, 1, 20, 1, 20, 30, 1, 30, 1, 1]]], "object-detection"),
        ([[[1, 1, 20, 1, 20, 30, 1, 30]], TRIANGLE], "instance-segmentation"),
        ([[[1, 1, 20, 1, 20, 30, 2, 30]]], "instance-segmentation"),
        ([{"size": [40, 60], "counts": []}], "object-detection"),
        ([], "object-detection"),
    ],
)
def test_boxes_with_masks_are_instances(tmp_path, segmentations, task):
    write(tmp_path, {"train/a.jpg": None, "annotations/instances_train.json": coco(segmentations)})
    # What is trained on decides.
    other = [] if task == "instance-segmentation" else [TRIANGLE]
    write(tmp_path, {"val/a.jpg": None, "annotations/instances_val.json": coco(other)})
    for id in (tmp_path, tmp_path / "annotations/instances_train.json"):
        lines = []
        assert task_of(DataConfig(id=str(id)), echo=lines.append).name == task
        number = len(segmentations)
        assert len(lines) == (task == "instance-segmentation" or TRIANGLE in segmentations)
        if task == "object-detection" and lines:
            assert f"as only {number - 1} of {number} objects have masks; for these alone: --task inst" in lines[0]
        elif lines:
            assert f" of {number} objects have masks; for their boxes alone: --task object-detection" in lines[0]
        assert task_of(DataConfig(id=str(id)), "object-detection").name == "object-detection"


def test_init_and_check_say_it(tmp_path, capsys, shapes):
    out = tmp_path / "recipe.yaml"
    assert cli.main(["init", str(shapes), "--out", str(out)]) == 0
    assert "taken for instance-segmentation, as " in capsys.readouterr().out
    assert yaml.safe_load(out.read_text())["task"] == "instance-segmentation"
    cli.main(["check", str(shapes)])
    assert "taken for instance-segmentation, as " in capsys.readouterr().out


def test_one_box_for_each_image_may_be_of_classification(tmp_path):
    """As of cars and birds, whose class is that of the image."""
    images = [{"bytes": photo(60 + number), "path": None} for number in range(3)]
    columns = {"image": images, "bbox": [[1.0, 2, 30, 20]] * 3, "label": [0, 1, 0]}
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "bbox": datasets.List(datasets.Value("float64")),
            "label": datasets.ClassLabel(names=["cat", "dog"]),
        }
    )
    path = tmp_path / "t.parquet"
    datasets.Dataset.from_dict(columns, features=features).to_parquet(path)
    lines = []
    assert task_of(DataConfig(id=str(path)), echo=lines.append).name == "object-detection"
    (line,) = lines
    assert "--task image-classification" in line


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
@pytest.mark.parametrize(
    ("segmentations", "task"),
    [
        ([TRIANGLE, [[5.0, 5, 30, 5, 30, 30, 9, 9]]], "instance-segmentation"),
        ([TRIANGLE, []], "object-detection"),
        ([[[1, 1, 20, 1, 20, 30, 1, 30]], [[1, 1, 20, 1, 20, 30, 1, 30, 1, 1]]], "object-detection"),
        ([[1, 1, 20, 1, 20, 30, 1, 30]] * 2, "object-detection"),
        ([RLE, RLE], "instance-segmentation"),
        ([json.dumps([TRIANGLE])] * 2, "instance-segmentation"),
    ],
)
@pytest.mark.parametrize("boxed", [True, False])
def test_tables_with_masks_are_instances(tmp_path, segmentations, task, suffix, boxed):
    objects = {"category": ["cat"] * len(segmentations), "segmentation": segmentations}
    objects |= {"bbox": [[1, 1, 19, 29]] * len(segmentations)} if boxed else {}
    none = {name: [] for name in objects}
    rows = [{"file_name": f"{number}.jpg", "objects": objects if number else none} for number in range(8)]
    files = {f"{number}.jpg": None for number in range(8)}
    if suffix == "jsonl":
        write(tmp_path, files | {"metadata.jsonl": "\n".join(map(json.dumps, rows))})
    else:
        write(tmp_path, files)
        datasets.Dataset.from_list(rows[::-1]).to_parquet(tmp_path / "train.parquet")
    lines = []
    found = task_of(DataConfig(id=str(tmp_path)), echo=lines.append).name
    if boxed:
        assert found == task
        assert len(lines) == (task == "instance-segmentation" or TRIANGLE in segmentations)
        told = {"instance-segmentation": "as 14 of 14 objects", "object-detection": "as only 7 of 14 objects"}[task]
        assert not lines or f"data: taken for {task}, {told} have masks; for the" in lines[0]
    elif task == "instance-segmentation":
        assert found == task
        assert cli.main(["init", str(tmp_path), "--out", str(tmp_path / "recipe.yaml")]) == 0


def test_an_image_for_each_object_makes_instances(tmp_path):
    rows = [{"image": {"bytes": photo()}, "masks": [{"bytes": photo(format="PNG")}] * 2, "category": [0, 1]}] * 4
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "masks": datasets.List(datasets.Image()),
            "category": datasets.List(datasets.ClassLabel(names=["cat", "dog"])),
        }
    )
    datasets.Dataset.from_list(rows, features=features).to_parquet(tmp_path / "train.parquet")
    assert task_of(DataConfig(id=str(tmp_path))).name == "instance-segmentation"


def test_panoptic_rows_with_boxes_stay_panoptic(tmp_path):
    segments = [{"id": 1, "category_id": 3, "bbox": [1, 1, 19, 29], "area": 9, "iscrowd": 0}]
    rows = [{"image": {"bytes": photo()}, "label": {"bytes": photo(format="PNG")}, "segments_info": segments}] * 4
    features = datasets.Dataset.from_list(rows).features | {"image": datasets.Image(), "label": datasets.Image()}
    datasets.Dataset.from_list(rows, features=datasets.Features(features)).to_parquet(tmp_path / "train.parquet")
    assert task_of(DataConfig(id=str(tmp_path))).name == "panoptic-segmentation"
