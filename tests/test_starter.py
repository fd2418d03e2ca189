"""Which task a starter recipe is for."""

from __future__ import annotations

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
        assert len(lines) == (task == "instance-segmentation")
        if lines:
            assert f" of {number} annotations have masks; for their boxes alone: --task object-detection" in lines[0]
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
