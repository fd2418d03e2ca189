"""Every format written and read back: the same boxes, classes and images; and COCO's tools read what is written."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from xml.sax.saxutils import escape

import datasets
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from cv_hf.data import LabelMap, export
from cv_hf.data.annotations import to_dataset
from cv_hf.errors import DataError
from tests.data.boxed import load, photo, write

SIZES = {"train": [(40, 60), (60, 40), (40, 60)], "val": [(40, 60)]}


def found(splits):
    """{split: {stem of the image: [(name, box), ...]}}, and the flags of crowds must be false."""
    result = {}
    for name, split in (("train", splits.train), ("val", splits.validation)):
        for row in split:
            objects = row["objects"]
            assert not any(objects["iscrowd"])
            np.testing.assert_allclose(objects["area"], [w * h for _, _, w, h in objects["bbox"]], rtol=1e-9)
            names = [splits.labels.names[category] for category in objects["category"]]
            stem = Path(row["image"]["path"]).stem
            result.setdefault(name, {})[stem] = list(zip(names, objects["bbox"], strict=True))
    return result


def assert_same(one, other):
    assert {name: set(part) for name, part in one.items()} == {name: set(part) for name, part in other.items()}
    for split, part in one.items():
        for stem, objects in part.items():
            assert [name for name, _ in objects] == [name for name, _ in other[split][stem]]
            boxes = [np.array([box for _, box in each]).reshape(-1, 4) for each in (objects, other[split][stem])]
            np.testing.assert_allclose(boxes[0], boxes[1], rtol=0, atol=1e-6)


def voc(root, content, names):
    files = {}
    for split, images in content.items():
        files[f"ImageSets/Main/{split}.txt"] = "\n".join(f"{split}{number}" for number in range(len(images)))
        for number, objects in enumerate(images):
            height, width = SIZES[split][number]
            # An upright image of another shape than its pixels are stored in.
            files[f"JPEGImages/{split}{number}.jpg"] = photo(60, 40, orientation=6 if height > width else None)
            items = "".join(
                f"<object><name>{escape(names[category % len(names)])}</name><bndbox><xmin>{x1!r}</xmin><ymin>{y1!r}"
                f"</ymin><xmax>{x2!r}</xmax><ymax>{y2!r}</ymax></bndbox></object>"
                for category, x1, y1, x2, y2 in absolute(objects, width, height)
            )
            files[f"Annotations/{split}{number}.xml"] = f"<annotation>{items}</annotation>"
    return write(root, files)


def absolute(objects, width, height):
    for category, x, y, w, h in objects:
        left, top = x * (width - 1), y * (height - 1)
        yield category, left, top, left + 0.5 + w * (width - left - 0.5), top + 0.5 + h * (height - top - 0.5)


SHARE = st.floats(0, 1)
OBJECTS = st.lists(st.tuples(st.integers(0, 3), SHARE, SHARE, SHARE, SHARE), max_size=4)
NAME = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Zs", "Zl", "Zp", "Cn"]), min_size=1)


@settings(max_examples=5, deadline=None)
@given(
    st.lists(NAME, min_size=1, max_size=4, unique=True),
    st.tuples(OBJECTS.filter(bool), OBJECTS, OBJECTS),
    st.tuples(OBJECTS.filter(bool)),
)
def test_all_formats_hold_the_same_boxes(names, train, val):
    with tempfile.TemporaryDirectory() as folder:
        first = load(voc(Path(folder) / "voc", {"train": train, "val": val}, names))
        expected = found(first)
        assert sum(len(objects) for objects in expected["train"].values()) == sum(map(len, train))
        splits = first
        for format_, writer in (
            ("coco", export.write_coco),
            ("yolo", export.write_yolo),
            ("voc", export.write_voc),
            ("coco", export.write_coco),
        ):
            target = Path(tempfile.mkdtemp(dir=folder))
            writer({"train": splits.train, "val": splits.validation}, splits.labels, target)
            splits = load(target)
            assert splits.source.format == format_
            assert splits.labels.names == first.labels.names
            assert not set(splits.findings) - {"class-without-samples", "exif-rotated"}
            assert_same(found(splits), expected)


def canonical(root, sources=(3, 90), crowd=False):
    """Two images, three boxes; classes a and b."""
    paths = [f"{root}/{name}" for name in ("0.jpg", "deep/0.jpg")]
    write(root, {"0.jpg": photo(60, 40), "deep/0.jpg": photo(60, 40, orientation=6)})
    boxes = [[1, 2, 10, 20], [5.5, 6, 12, 10], [0, 0, 40, 60]]
    areas = [100.0, None, 7.0]
    split = to_dataset(
        paths, [5, 8], [(40, 60), (60, 40)], [0, 0, 1], boxes, [0, 1, 1], int, areas, [crowd, False, False]
    )
    return split.add_column("file", ["0.jpg", "deep/0.jpg"]), LabelMap(("a", "b"), sources)


def test_category_ids_are_those_of_the_source(tmp_path):
    for sources, ids in (((3, 90), [3, 90]), (("x", "y"), [1, 2]), ((False, True), [1, 2])):
        content = export.to_coco(*canonical(tmp_path, sources))
        assert content["categories"] == [{"id": ids[0], "name": "a"}, {"id": ids[1], "name": "b"}]
        assert [each["category_id"] for each in content["annotations"]] == [ids[0], ids[1], ids[1]]
    assert content["images"] == [
        {"id": 5, "file_name": "0.jpg", "width": 60, "height": 40},
        {"id": 8, "file_name": "deep/0.jpg", "width": 40, "height": 60},
    ]
    assert [each["area"] for each in content["annotations"]] == [100.0, 120.0, 7.0]


def test_images_of_one_name_and_embedded_ones_get_their_own(tmp_path):
    split, labels = canonical(tmp_path / "a")
    images = [{"path": None, "bytes": photo()}, split[1]["image"]]
    features = split.features
    split = datasets.Dataset.from_dict({**split[:], "image": images}, features=features)
    for writer in (export.write_coco, export.write_yolo, export.write_voc):
        target = tmp_path / writer.__name__
        writer({"train": split, "val": canonical(tmp_path / "b")[0]}, labels, target)
        splits = load(target)
        assert (len(splits.train), len(splits.validation)) == (2, 2)
        assert set(splits.findings) == {"exif-rotated"}
        assert sorted(len(row["objects"]["bbox"]) for row in splits.train) == [1, 2]


def test_crowds_stay_in_coco_and_leave_formats_without_them(tmp_path):
    split, labels = canonical(tmp_path / "a", crowd=True)
    assert [each["iscrowd"] for each in export.to_coco(split, labels)["annotations"]] == [1, 0, 0]
    assert export.write_yolo({"train": split}, labels, tmp_path / "yolo") == 1
    assert export.write_voc({"train": split}, labels, tmp_path / "voc") == 1
    assert (tmp_path / "yolo/labels/train/0.txt").read_text().count("\n") == 1


def test_names_that_xml_cannot_hold(tmp_path):
    split, _ = canonical(tmp_path / "a")
    for name in ("a\0", " a", "", "a\nb", "\ud800"):
        with pytest.raises(DataError, match="cannot be written to XML"):
            export.write_voc({"train": split}, LabelMap((name, "b"), (0, 1)), tmp_path / "voc")


def test_results_are_scored_by_pycocotools(tmp_path, capsys):
    split, labels = canonical(tmp_path)
    predictions = []
    for objects in split["objects"]:
        boxes = torch.tensor(objects["bbox"], dtype=torch.float64)
        boxes[:, 2:] += boxes[:, :2]
        scores = torch.linspace(0.9, 0.5, len(boxes))
        predictions.append({"boxes": boxes, "scores": scores, "labels": torch.tensor(objects["category"])})
    (tmp_path / "truth.json").write_text(json.dumps(export.to_coco(split, labels)))
    results = export.coco_results(split["image_id"][:], predictions, labels)
    (tmp_path / "results.json").write_text(json.dumps(results))
    assert [result["category_id"] for result in results] == [3, 90, 90]
    truth = COCO(str(tmp_path / "truth.json"))
    scored = COCOeval(truth, truth.loadRes(str(tmp_path / "results.json")), "bbox")
    scored.evaluate()
    scored.accumulate()
    scored.summarize()
    assert scored.stats[0] == pytest.approx(1.0)
    nothing = {"boxes": np.zeros((0, 4)), "scores": [], "labels": []}
    assert export.coco_results([1], [nothing], labels) == []
