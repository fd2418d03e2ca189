"""The dataset doctor against a corpus of defects put into clean datasets, one at a time."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path

import datasets
import numpy as np
import PIL.Image
import pytest

from cv_hf.cli import main
from cv_hf.config import DataConfig
from cv_hf.data import CODES, check, export
from cv_hf.data.repair import repair
from cv_hf.errors import DataError
from cv_hf.tasks import get_task
from tests.data.defects import DEFECTS, FORMATS, class_map, encoded, photo, picture, write_table
from tests.data.samples import SHARED

needs_bccd = pytest.mark.skipif(not (SHARED / "bccd").is_dir(), reason="../shared/data/bccd is not there")


def examined(folder: Path, format: str, **data):
    return check(DataConfig(id=str(folder), **data), get_task(FORMATS[format].task), lambda line: None)


def found(diagnosis) -> dict[str, list[str]]:
    return {code: sorted(diagnosis.findings.reasons(code)) for code in diagnosis.findings}


@pytest.mark.parametrize("format", FORMATS)
def test_a_clean_set_has_no_findings(format, tmp_path):
    FORMATS[format].write(tmp_path / "set")
    diagnosis = examined(tmp_path / "set", format)
    assert found(diagnosis) == {}
    assert {name: len(split) for name, split in diagnosis.rows.items()} == {"train": 6, "val": 4}


@pytest.mark.parametrize("defect", DEFECTS, ids=[f"{defect.format}-{defect.name}" for defect in DEFECTS])
def test_each_defect_gives_its_finding_and_no_other(defect, tmp_path):
    FORMATS[defect.format].write(tmp_path / "set")
    defect.make(tmp_path / "set")
    assert found(examined(tmp_path / "set", defect.format, **defect.data)) == {
        code: sorted(names) for code, names in defect.found.items()
    }


def test_every_code_is_in_the_corpus():
    assert {code for defect in DEFECTS for code in defect.found} == CODES.keys()
    assert len(DEFECTS) >= 60


def tree(folder: Path) -> dict[str, str]:
    """Each file below a folder -> the hash of what is in it."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def seeded(folder: Path, format: str, *names: str) -> dict:
    """A set with some of its defects; returns what has to be said of it."""
    FORMATS[format].write(folder)
    chosen = [defect for defect in DEFECTS if defect.format == format and defect.name in names]
    assert len(chosen) == len(names)
    for defect in chosen:
        defect.make(folder)
    return {key: value for defect in chosen for key, value in defect.data.items()}


def targets(diagnosis) -> dict[str, list]:
    """What can be trained on in each split: classes, and what `fit` gives of each image, in any order."""
    found = {}
    for name, split in diagnosis.rows.items():
        rows = []
        for row in split:
            with PIL.Image.open(row["image"]["path"] or io.BytesIO(row["image"]["bytes"])) as image:
                size = (image.height, image.width)
            fitted = diagnosis.fit(row, size, diagnosis.labels)[0] if diagnosis.fit else row
            objects = {key: value for key, value in fitted.get("objects", {}).items() if key != "area"}
            mask = fitted["mask"].tolist() if isinstance(fitted.get("mask"), np.ndarray) else None
            boxes = np.round(np.reshape(objects.pop("bbox", []), (-1, 4)), 4).tolist()
            segments = {key: value.tolist() for key, value in fitted.get("segments", {}).items()}
            rows.append(repr((fitted.get("label"), boxes, objects, mask, segments)))
        found[name] = sorted(rows)
    return found


@pytest.mark.parametrize("format", FORMATS)
def test_the_copy_of_a_clean_set_says_the_same(format, tmp_path):
    FORMATS[format].write(tmp_path / "set")
    before = examined(tmp_path / "set", format)
    repair(before, tmp_path / "out", lambda line: None)
    after = examined(tmp_path / "out", format)
    assert found(after) == {}
    assert after.labels.names == before.labels.names
    assert after.labels.things == before.labels.things
    assert targets(after) == targets(before)
    own = {"metadata": "imagefolder", "labels": "imagefolder", "boxes": "coco", "instances": "coco"}
    assert after.source.format == own.get(format, format)


@pytest.mark.parametrize(
    ("format", "names", "images"),
    [
        ("imagefolder", ["truncated", "image in no class"], (5, 4)),
        ("imagefolder", ["JPEG called PNG", "copy in another class"], (4, 4)),
        ("imagefolder", ["16 bits", "no such class in val", "link out of the folder"], (6, 2)),
        ("metadata", ["unknown label", "path outside"], (6, 4)),
        ("labels", ["empty label"], (5, 4)),
        ("boxes", ["NaN"], (6, 4)),
        ("coco", ["no width", "twice", "of no image", "another size", "listed twice", "copy in two splits"], (5, 4)),
        ("instances", ["two points", "outside", "twice", "no mask"], (6, 4)),
        ("voc", ["no XML", "zero bytes", "in no list", "look-alike in two splits"], (5, 4)),
        ("yolo", ["labels of no image", "reaching out", "bomb"], (5, 4)),
        ("masks", ["unknown value"], (6, 4)),
        ("masks", ["another size", "image gone"], (5, 4)),
        ("panoptic", ["segment not listed", "id twice", "of no image"], (6, 4)),
    ],
)  # fmt: skip
def test_a_repaired_copy_has_no_errors_and_the_original_is_as_it_was(format, names, images, tmp_path):
    data = seeded(tmp_path / "set", format, *names)
    before = tree(tmp_path / "set")
    lines = []
    diagnosis = examined(tmp_path / "set", format, **data)
    repair(diagnosis, tmp_path / "out", lines.append)
    after = examined(tmp_path / "out", format)
    left = {code for code in after.findings if CODES[code].severity == "error" or CODES[code].fix}
    assert left == set()
    assert tuple(len(split) for split in after.rows.values()) == images
    assert tree(tmp_path / "set") == before
    told = [line for line in lines if line.startswith("fix: ")]
    assert all(any(f" {code}: " in line or code in line for line in told) for code in diagnosis.findings)
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []


def test_a_copy_is_refused_where_it_would_touch_anything(tmp_path, capsys):
    seeded(tmp_path / "set", "coco", "no width")
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "set")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    file = "annotations/instances_train.json"
    for data, out, reason in (
        ("set", "there", "is there already"),
        ("set", "dangling", "is there already"),
        ("set", "set/out", "inside the dataset"),
        ("set", "link/out", "inside the dataset"),
        (f"set/{file}", "set/out", "inside the dataset"),
    ):
        before = tree(tmp_path / "set")
        assert main(["check", str(tmp_path / data), "--fix", str(tmp_path / out)]) == 2
        assert reason in capsys.readouterr().err
        assert tree(tmp_path / "set") == before
    seeded(tmp_path / "boxes", "boxes", "ambiguous format")
    assert main(["check", str(tmp_path / "boxes"), "--fix", str(tmp_path / "out")]) == 2
    assert "set data.box_format first" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_copy_that_fails_leaves_nothing(tmp_path, monkeypatch):
    FORMATS["coco"].write(tmp_path / "set")
    diagnosis = examined(tmp_path / "set", "coco")
    monkeypatch.setattr(export, "write_coco", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        repair(diagnosis, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_exit_codes_and_json(tmp_path, capsys):
    """Errors are 1, warnings only with --strict, notes never, and what cannot be read at all is 2."""
    seeded(tmp_path / "error", "coco", "no width", "reaching out")
    seeded(tmp_path / "warning", "coco", "reaching out")
    seeded(tmp_path / "note", "imagefolder", "lying by EXIF")
    FORMATS["voc"].write(tmp_path / "clean")
    codes = {name: main(["check", str(tmp_path / name)]) for name in ("error", "warning", "note", "clean", "gone")}
    assert codes == {"error": 1, "warning": 0, "note": 0, "clean": 0, "gone": 2}
    captured = capsys.readouterr()
    assert "error: 1 box-zero-area (dropped): a box without width or height: train/0.png box 2" in captured.out
    assert "2 findings" not in captured.err
    assert f"{tmp_path / 'error'}: 1 error, 1 warning." in captured.err
    assert "nothing found" in captured.out
    codes = {name: main(["check", str(tmp_path / name), "--strict"]) for name in ("warning", "note", "clean")}
    assert codes == {"warning": 1, "note": 0, "clean": 0}
    capsys.readouterr()
    assert main(["check", str(tmp_path / "error"), "--json", "-"]) == 1
    printed = json.loads(capsys.readouterr().out)
    assert main(["check", str(tmp_path / "error"), "--json", str(tmp_path / "found.json")]) == 1
    assert json.loads((tmp_path / "found.json").read_text()) == printed
    assert [printed[key] for key in ("schema", "format", "task", "labels")] == [
        1,
        "coco",
        "object-detection",
        ["a", "b"],
    ]
    assert printed["splits"] == {
        "train": {"images": 6, "classes": {"a": 7, "b": 6}},
        "val": {"images": 4, "classes": {"a": 4, "b": 4}},
    }
    assert [printed[key] for key in ("error", "warning", "note")] == [1, 1, 0]
    zero = printed["findings"]["box-zero-area"]
    assert (zero["severity"], zero["effect"], zero["count"]) == ("error", "dropped", 1)
    assert zero["files"] == ["train/0.png box 2"]
    assert zero["reasons"] == {"train/0.png box 2": "xywh [9, 9, 0, 5] in an image of 48x36"}


def test_help_says_the_rule(capsys):
    with pytest.raises(SystemExit):
        main(["check", "--help"])
    words = " ".join(capsys.readouterr().out.split())
    assert "Exit codes: 0 no errors; 1 errors, or with --strict warnings; notes never count" in words


def test_a_test_split_without_labels_is_no_defect(tmp_path):
    """Nor is it left out of the search for copies, or of the counts; a repaired copy does without it."""
    mask = {"bytes": encoded(PIL.Image.fromarray(class_map())), "path": None}
    photos = {
        "train": [photo(index, "train") for index in range(4)],
        "validation": [photo(index, "val") for index in range(4)],
        "test": [photo(0, "train"), encoded(picture(900))],
    }
    for split, each in photos.items():
        masks = [None if split == "test" else mask] * len(each)
        write_table(tmp_path / "set", split, {"image": each, "mask": masks}, mask=datasets.Image(decode=False))
    diagnosis = examined(tmp_path / "set", "masks")
    assert found(diagnosis) == {"duplicate-across-splits": ["train[0]"]}
    assert diagnosis.counts["test"] == {"0": 0, "1": 0, "2": 0}
    lines = []
    repair(diagnosis, tmp_path / "out", lines.append)
    assert "fix: the split test has no labels or no image left, and is left out" in lines
    after = examined(tmp_path / "out", "masks")
    assert {name: len(split) for name, split in after.rows.items()} == {"train": 3, "validation": 4}
    assert found(after) == {}


@needs_bccd
def test_the_two_bad_boxes_of_bccd(tmp_path, capsys):
    assert main(["check", str(SHARED / "bccd"), "--json", str(tmp_path / "found.json")]) == 1
    content = json.loads((tmp_path / "found.json").read_text())
    assert content["error"] == 2
    assert content["findings"]["box-zero-area"]["count"] == 2
    named = [name.split("/")[-1].split(".")[0] for name in content["findings"]["box-zero-area"]["files"]]
    assert sorted(named) == ["BloodImage_00338", "BloodImage_00343"]


def test_a_split_without_any_object_has_no_missing_labels(tmp_path):
    FORMATS["yolo"].write(tmp_path / "set")
    for file in (tmp_path / "set" / "labels" / "val").iterdir():
        file.write_text("")
    diagnosis = examined(tmp_path / "set", "yolo")
    assert found(diagnosis) == {}
    assert diagnosis.counts["val"] == {"a": 0, "b": 0}
    repair(diagnosis, tmp_path / "out", lambda line: None)
    assert targets(examined(tmp_path / "out", "yolo")) == targets(diagnosis)


def test_one_class_and_no_images(tmp_path):
    for name in ("one", "none"):
        (tmp_path / name / "a").mkdir(parents=True)
    for number in range(3):
        (tmp_path / "one" / "a" / f"{number}.png").write_bytes(photo(number, "train"))
    assert found(examined(tmp_path / "one", "imagefolder")) == {"only-one-class": ["a"]}
    with pytest.raises(DataError, match="there are no images in it"):
        examined(tmp_path / "none", "imagefolder")
