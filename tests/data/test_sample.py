"""The scattered digits: read back pixel by pixel, the masks give every box, area and class."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cv_hf.data import sample
from cv_hf.data.sample import scattered_digits
from cv_hf.errors import DataError

COUNTS = {"train": 21, "validation": 10, "test": 10}

pytest.importorskip("sklearn")
pytest.importorskip("skimage")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return scattered_digits(tmp_path_factory.mktemp("sample") / "scattered", **COUNTS)


def _json(folder: Path, name: str) -> dict:
    return json.loads((folder / name).read_text(encoding="utf-8"))


def _digest(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _pixels_of(counts: list[int], size: list[int]) -> set[tuple[int, int]]:
    """Decode an uncompressed RLE one run at a time, as COCO defines it."""
    pixels, position, inside = set(), 0, False
    for count in counts:
        if inside:
            pixels |= {(index % size[0], index // size[0]) for index in range(position, position + count)}
        position, inside = position + count, not inside
    assert position == size[0] * size[1]
    return pixels


def test_the_same_seed_gives_the_same_bytes(folder, tmp_path):
    again = scattered_digits(tmp_path / "again", **COUNTS)
    assert _digest(again) == _digest(folder)
    other = scattered_digits(tmp_path / "other", seed=1, **COUNTS)
    assert _digest(other) != _digest(folder)


def test_unread_digits_are_the_same_ones_of_one_class(folder, tmp_path):
    unread = scattered_digits(tmp_path / "unread", read=False, **COUNTS)
    for file in (folder / "images").rglob("*.png"):
        assert (unread / file.relative_to(folder)).read_bytes() == file.read_bytes()
    for file in (folder / "masks").rglob("*.png"):
        expected = np.asarray(Image.open(file)) > 0
        assert (np.asarray(Image.open(unread / file.relative_to(folder))) == expected).all()
    assert _json(unread, "id2label.json") == {"0": "background", "1": "digit"}
    for name in ("annotations/train.json", "panoptic/train.json"):
        one, all_ = _json(unread, name), _json(folder, name)
        assert len(one["annotations"]) == len(all_["annotations"])
        assert {row["name"] for row in one["categories"]} <= {"background", "digit"}
    assert {row["category_id"] for row in _json(unread, "annotations/train.json")["annotations"]} == {1}


def test_an_image_does_not_depend_on_how_many_there_are(folder, tmp_path):
    few = _digest(scattered_digits(tmp_path / "few", train=3, validation=1, test=2))
    many = _digest(folder)
    shared = [name for name in few if name.endswith(".png")]
    assert len(shared) == 3 * 6
    assert all(few[name] == many[name] for name in shared)


@pytest.mark.parametrize("split", COUNTS)
def test_instance_semantic_and_panoptic_truth_are_one(folder, split):
    instances, panoptic = _json(folder, f"annotations/{split}.json"), _json(folder, f"panoptic/{split}.json")
    assert len(instances["images"]) == COUNTS[split]
    assert instances["images"] == panoptic["images"]
    segments_of = {row["image_id"]: row for row in panoptic["annotations"]}
    kinds = {category["id"]: category["isthing"] for category in panoptic["categories"]}
    names = {int(index): name for index, name in _json(folder, "id2label.json").items()}
    assert kinds == {0: 0, **dict.fromkeys(range(1, 11), 1)}
    assert {category["id"]: category["name"] for category in panoptic["categories"]} == names
    assert {category["id"]: category["name"] for category in instances["categories"]} == {
        index + 1: str(index) for index in range(10)
    }
    for row in instances["images"]:
        image = np.array(Image.open(folder / "images" / split / row["file_name"]))
        mask = np.array(Image.open(folder / "masks" / split / row["file_name"]))
        colours = np.array(Image.open(folder / "panoptic" / split / row["file_name"])).astype(int)
        assert image.shape == (row["height"], row["width"], 3)
        assert mask.shape == image.shape[:2]
        ids = colours[..., 0] + 256 * colours[..., 1] + 256**2 * colours[..., 2]
        segments = {segment["id"]: segment for segment in segments_of[row["id"]]["segments_info"]}
        assert set(np.unique(ids)) == set(segments)
        things = [segment for segment in segments.values() if segment["category_id"]]
        objects = [found for found in instances["annotations"] if found["image_id"] == row["id"]]
        assert len(objects) == len(things) == len(segments) - 1
        for segment_id, segment in segments.items():
            rows, columns = np.nonzero(ids == segment_id)
            box = [columns.min(), rows.min(), columns.max() - columns.min() + 1, rows.max() - rows.min() + 1]
            assert segment["bbox"] == box
            assert segment["area"] == len(rows)
            assert set(mask[rows, columns]) == {segment["category_id"]}
        for found, segment in zip(objects, things, strict=True):
            assert {key: found[key] for key in ("bbox", "area", "category_id", "iscrowd")} == {
                key: segment[key] for key in ("bbox", "area", "category_id", "iscrowd")
            }
            assert found["segmentation"]["size"] == [row["height"], row["width"]]
            pixels = _pixels_of(**found["segmentation"])
            assert pixels == set(zip(*map(np.ndarray.tolist, np.nonzero(ids == segment["id"])), strict=True))


def test_masks_are_read_as_coco_tools_read_them(folder):
    mask = pytest.importorskip("pycocotools.mask")
    for found in _json(folder, "annotations/train.json")["annotations"]:
        size = found["segmentation"]["size"]
        compressed = mask.frPyObjects(found["segmentation"], *size)
        assert mask.area(compressed) == found["area"]
        assert mask.toBbox(compressed).tolist() == found["bbox"]


def test_one_image_in_ten_is_empty_and_ids_are_unique(folder):
    image_ids = []
    for split, count in COUNTS.items():
        content = _json(folder, f"annotations/{split}.json")
        image_ids += [row["id"] for row in content["images"]]
        numbers = [sum(found["image_id"] == row["id"] for found in content["annotations"]) for row in content["images"]]
        assert numbers.count(0) == count // 10
        assert max(numbers) <= 12
    assert len(set(image_ids)) == sum(COUNTS.values())


def test_digits_overlap_but_at_least_two_fifths_stay_visible(monkeypatch):
    scans, classes = np.ones((2, 8, 8)), np.array([3, 5])
    photos = [np.zeros((512, 512, 3), np.uint8)]
    hidden = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        _, objects, categories = sample._scatter(rng, photos, scans, classes, np.array([0, 1] * 15))
        assert set(np.unique(objects)) == set(range(len(categories)))
        for number in range(1, len(categories)):
            rows, columns = np.nonzero(objects == number)
            side = max(rows.max() - rows.min(), columns.max() - columns.min()) + 1
            # A full square shows its whole side on one of its axes, or is covered on all of them.
            hidden.append(1 - len(rows) / side**2)
    assert 0.2 < max(hidden) <= 0.6


def test_no_scan_is_in_two_splits():
    parts = sample._split(sample._scans()[1], seed=0)
    together = np.concatenate(list(parts.values()))
    assert sorted(together) == list(range(1797))
    assert 0.69 < len(parts["train"]) / 1797 < 0.71


def test_an_interrupted_run_leaves_nothing_that_looks_complete(monkeypatch, tmp_path):
    def fail(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(sample, "_add_truth", fail)
        with pytest.raises(KeyboardInterrupt):
            scattered_digits(tmp_path / "scattered", train=1, validation=1, test=1)
    assert not (tmp_path / "scattered").exists()
    assert scattered_digits(tmp_path / "scattered", train=1, validation=1, test=1).is_dir()


def test_what_is_missing_is_said(monkeypatch, tmp_path):
    monkeypatch.setattr(sample.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match="scikit-image are not installed"):
        scattered_digits(tmp_path / "scattered")
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(DataError, match="digits are not installed"):
        scattered_digits(tmp_path / "scattered")
