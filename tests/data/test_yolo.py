"""YOLO folders in every layout, hostile or damaged."""

from __future__ import annotations

import tempfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from cv_hf.config import DataConfig
from cv_hf.data import Findings, LabelMap, decode, load_splits, yolo
from cv_hf.data.annotations import upright_size
from cv_hf.data.images import UnreadableImage
from cv_hf.errors import CvHfError, DataError
from cv_hf.starter import task_of
from cv_hf.tasks import get_task
from tests.data.boxed import load, photo, rows, write
from tests.data.samples import SHARED

# In a photo of 60 x 40: xywh 15, 10, 30, 20.
LINE = "1 0.5 0.5 0.5 0.5\n"
READ = (1, [15, 10, 30, 20])
NAMES = "names: [cat, dog]\n"
LABELS = LabelMap(("cat", "dog"), (0, 1))


def stop(match, id, **options):
    with pytest.raises(DataError, match=match) as error:
        yolo.read(str(id), **options)
    assert len(str(error.value).splitlines()) <= 2


NUMBERED = "names: {1: dog, 0: cat}\n"
OFFICIAL = "train: images/train\nval: images/val\n"
LISTS = {f"{split}.txt": "".join(f"./images/{split}{n}.jpg\n" for n in range(3)) for split in ("train", "val")}
DARKNET = {f"{split}.txt": "".join(f"data/obj/{split}{n}.jpg\n" for n in range(3)) for split in ("train", "val")}
LAYOUTS = {
    "official": ("images/{}/{}", "labels/{}/{}", {"data.yaml": "path: .\n" + OFFICIAL + NAMES}),
    "official without yaml": ("images/{}/{}", "labels/{}/{}", {"classes.txt": "cat\ndog\n"}),
    "roboflow": ("{}/images/{}", "{}/labels/{}", {"data.yaml": "train: ../train/images\nval: ../val/images\n" + NAMES}),
    "split folders": ("{}/images/{}", "{}/labels/{}", {"obj.names": "cat\r\ndog\r\n\r\n"}),
    "split folders, labels below": ("{}/{}", "{}/labels/{}", {"classes.txt": "cat\ndog"}),
    "labels of folders": ("{}/{}", "labels/{}/{}", {"labels/classes.txt": "cat\ndog"}),
    "beside": ("{}/{}", "{}/{}", {"train/classes.txt": "cat\ndog", "val/classes.txt": "cat\ndog"}),
    "lists in yaml": ("images/{}{}", "labels/{}{}", {"data.yaml": "train: train.txt\nval: val.txt\n" + NAMES} | LISTS),
    "lists": ("images/{}{}", "labels/{}{}", {"classes.names": "cat\ndog"} | LISTS),
    "darknet": ("obj/{}{}", "obj/{}{}", {"obj.names": "cat\ndog"} | DARKNET),
    "another machine": (
        "images/{}/{}",
        "labels/{}/{}",
        {"data.yaml": "path: /home/else/set\ntrain: /home/else/set/images/train\nval: [images/val]\n" + NAMES},
    ),
    "Windows": (
        "images/{}/{}",
        "labels/{}/{}",
        {"data.yaml": "path: C:\\set\ntrain: C:\\set\\images\\train\nval: images\\val\nnc: 2\n" + NUMBERED},
    ),
    "the folder below": (
        "set/images/{}/{}",
        "set/labels/{}/{}",
        {"any.yaml": "path: set\ntest: images/gone\n" + OFFICIAL + NAMES},
    ),
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(tmp_path, layout):
    image, label, more = LAYOUTS[layout]
    files, expected = dict(more), {}
    for split in ("train", "val"):
        for number, text in enumerate((LINE, "\n", None)):
            files[image.format(split, number) + ".jpg"] = None
            if text is not None:
                files[label.format(split, number) + ".txt"] = text
            expected.setdefault(split, {})[image.format(split, number) + ".jpg"] = [READ] if text == LINE else []
    root = write(tmp_path, files)
    findings = Findings()
    source = yolo.read(root, findings=findings)
    assert {name: rows(source, name) for name in source.splits} == expected
    assert source.labels == LABELS
    assert list(findings) == (["missing-split"] if layout == "the folder below" else [])
    assert (source.splits["val"]["width"][:], source.splits["val"]["image_id"][:]) == ([60] * 3, [0, 1, 2])
    for name in more:
        if name.endswith(".yaml"):
            assert rows(yolo.read(str(tmp_path / name))) == expected["train"]
    splits = load(root)
    assert (len(splits.train), len(splits.validation), splits.labels) == (3, 3, LABELS)


def test_flat_folders_are_one_split(tmp_path):
    files = {"images/0.jpg": None, "images/1.jpg": None, "labels/1.txt": LINE, "labels/2.txt": LINE}
    findings = Findings()
    source = yolo.read(write(tmp_path, files), findings=findings)
    assert rows(source) == {"images/0.jpg": [], "images/1.jpg": [READ]}
    assert source.labels is None
    assert findings.to_dict()["orphan-annotation"]["files"] == ["labels/2.txt"]
    write(tmp_path, {f"images/{n}.jpg": None for n in range(3, 9)} | {f"labels/{n}.txt": LINE for n in range(3, 6)})
    splits = load(tmp_path, format="yolo")
    assert (splits.labels.names, splits.labels.sources) == (("1",), (1,))


def test_polygons(tmp_path):
    lines = "0 0.25 0.5 0.5 0.25 0.75 0.75\n0 0.1 0.1 0.9 0.1 0.9 0.5 0.1 0.5\n"
    root = write(tmp_path, {"images/0.jpg": None, "labels/0.txt": lines})
    ((_, first), (_, second)) = rows(yolo.read(root))["images/0.jpg"]
    np.testing.assert_allclose(first, [15, 10, 30, 20], atol=1e-9)
    np.testing.assert_allclose(second, [6, 4, 48, 16], atol=1e-9)


def test_each_line_loses_itself_alone(tmp_path):
    lines = [
        "1 0.5 0.5 0.5", LINE, "", "1 0.5 0.5 0.5 0.5 0.9", "x 0.5 0.5 0.5 0.5", "-1 0.5 0.5 0.5 0.5",
        "1.5 0.5 0.5 0.5 0.5", "1.0 0.5 0.5 0.5 0.5", "1 0.5 0.5 0.5 0.5%", "1 nan 0.5 0.5 -0.5", "inf 0 0 1 1", "1",
    ]  # fmt: skip
    files = {"images/0.jpg": None, "labels/0.txt": "\n".join(line.strip() for line in lines), "images/1.jpg": b""}
    root = write(tmp_path, files | {"labels/1.txt": LINE, "images/2.jpg": None, "labels/2.txt": b"\xff\xfe\x00 1 2\n"})
    findings = Findings()
    found = rows(yolo.read(root, findings=findings))
    assert found["images/0.jpg"][:2] == [READ, READ]
    assert len(found["images/0.jpg"]) == 3
    assert set(found) == {"images/0.jpg", "images/2.jpg"}
    assert findings.to_dict()["unreadable-annotation"]["files"] == [
        *(f"labels/0.txt: line {number}" for number in (1, 4, 5, 6, 7, 9, 11, 12)),
        "labels/2.txt: line 1",
    ]
    assert findings.to_dict()["empty-image"]["files"] == ["images/1.jpg"]
    stop(r"labels/0.txt: line 1: 4 numbers are neither .* \(unreadable-annotation\)", root, on_bad_sample="stop")


def test_sizes_are_those_of_the_upright_image(tmp_path):
    formats = ("JPEG", "PNG", "WEBP", "TIFF")
    for orientation in (None, 1, 3, 6, 8):
        for format_ in formats:
            path = tmp_path / f"{orientation}.{format_}"
            path.write_bytes(photo(60, 40, format_, orientation))
            expected = decode(str(path))[0].size[::-1]
            assert upright_size(str(path)) == upright_size({"path": None, "bytes": path.read_bytes()}) == expected
            assert expected == ((60, 40) if orientation in (6, 8) else (40, 60))
    for image in (str(tmp_path / "gone.jpg"), {"path": "x.jpg", "bytes": b"text"}, {"path": None, "bytes": None}):
        with pytest.raises(UnreadableImage):
            upright_size(image)
    write(tmp_path, {"set/images/0.jpg": photo(60, 40, orientation=6), "set/labels/0.txt": LINE})
    source = yolo.read(str(tmp_path / "set"))
    assert rows(source) == {"images/0.jpg": [(1, [10, 15, 20, 30])]}
    assert (source.splits["train"]["width"][0], source.splits["train"]["height"][0]) == (40, 60)


@pytest.mark.skipif(not (SHARED / "odd").is_dir(), reason="shared data is absent")
def test_size_of_a_real_phone_photo():
    path = str(SHARED / "odd" / "phone_exif_rotated.jpg")
    with PIL.Image.open(path) as image:
        assert image.getexif()[0x0112] == 6
    assert upright_size(path) == decode(path)[0].size[::-1]


def test_names_are_text_as_written(tmp_path):
    files = {"images/train/0.jpg": None, "labels/train/0.txt": LINE}
    for names in ("[no, 1.0, 2024-01-01]", "{2: 2024-01-01, 0: no, 1: 1.0}", "['no', '1.0', 2024-01-01]"):
        root = write(tmp_path, files | {"data.yaml": f"train: images/train\nnames: {names}\nnc: 3\n"})
        assert yolo.read(root).labels == LabelMap(("no", "1.0", "2024-01-01"), (0, 1, 2))
    gapped = write(tmp_path, {"data.yaml": "train: images/train\nnames: {1: dog, 7: cat}\n"})
    assert yolo.read(gapped).labels == LabelMap(("dog", "cat"), (1, 7))


@pytest.mark.parametrize(
    ("match", "text"),
    [
        ("not valid YAML", "{"),
        ("not valid YAML", "a: [" * 3000),
        ("not the data.yaml of YOLO", "- a\n- b\n"),
        ("names must be a list", "train: images/train\nnames: 5\n"),
        ("names must be a list", "train: images/train\nnames: [[a], b]\n"),
        ("names must be a list", "train: images/train\nnames: {a: b}\n"),
        (r"an alias \(\*name\) of a list", "a: &a [x,x]\nb: &b [*a,*a]\ntrain: images/train\nnames: [*b]\n"),
        ("more than 100000 values", "train: images/train\nnames: [" + "a," * 100_000 + "]\n"),
        ("not valid YAML", "train: images/train\nnames: " + "[" * 5000),
        ("nc is 3, and there are 2 names", "train: images/train\nnc: 3\n" + NAMES),
        ("two labels have the name 'a'", "train: images/train\nnames: [a, a]\n"),
        ("train must be a folder", "train: {a: b}\n" + NAMES),
        ("train: there is no photos in the dataset's folder", "train: photos\n" + NAMES),
        ("train: there is no ../../away/images", "train: ../../away/images\n" + NAMES),
        ("no images in it", "train: empty\n" + NAMES),
        ("no image has a label file", "train: alone\n" + NAMES),
        ("no image of the split val has a label file", "train: images/train\nval: alone\n" + NAMES),
    ],
)
def test_what_is_no_dataset(tmp_path, match, text):
    write(tmp_path / "away", {"images/0.jpg": None, "labels/0.txt": LINE})
    files = {"images/train/0.jpg": None, "labels/train/0.txt": LINE, "empty/x.csv": "", "alone/0.jpg": None}
    stop(match, write(tmp_path / "deep" / "set", files | {"data.yaml": text}))


def test_a_test_split_without_labels_is_left_out(tmp_path):
    files = {"images/train/0.jpg": None, "labels/train/0.txt": LINE, "images/test/0.jpg": None}
    findings = Findings()
    assert list(yolo.read(write(tmp_path, files), findings=findings).splits) == ["train"]
    assert findings.to_dict()["missing-split"]["files"] == ["test"]


def test_paths_never_lead_outside(tmp_path):
    write(tmp_path, {"away/images/0.jpg": None, "away/labels/0.txt": LINE, "away/classes.txt": "a\nb\n"})
    listed = f"images/0.jpg\n../../away/images/0.jpg\n{tmp_path}/away/images/1.jpg\nimages/gone.jpg\nimages/link.jpg\n"
    files = {"data.yaml": f"path: {tmp_path}/away\ntrain: list.txt\n" + NAMES, "list.txt": listed}
    files |= {"images/0.jpg": None, "labels/0.txt": LINE, "images/9.jpg": None}
    root = Path(write(tmp_path / "deep" / "set", files))
    (root / "images/link.jpg").symlink_to(tmp_path / "away/images/0.jpg")
    findings = Findings()
    assert rows(yolo.read(str(root), findings=findings)) == {"images/0.jpg": [READ]}
    assert {code: findings.count(code) for code in findings} == {"missing-image": 1, "path-outside": 2}
    (root / "list.txt").write_text("images/0.jpg\nimages/9.jpg\n")
    (root / "labels/9.txt").symlink_to(tmp_path / "away/labels/0.txt")
    findings = Findings()
    assert rows(yolo.read(str(root), findings=findings)) == {"images/0.jpg": [READ]}
    assert findings.to_dict()["path-outside"]["files"] == ["labels/9.txt"]
    (root / "data.yaml").unlink()
    (root / "list.txt").unlink()
    (root / "images/more").symlink_to(tmp_path / "away/images")
    stop("link that leads out", root)
    (root / "images/more").unlink()
    (root / "classes.txt").symlink_to(tmp_path / "away/classes.txt")
    stop("link that leads out", root)
    (root / "data.yaml").symlink_to(tmp_path / "away/classes.txt")
    stop("link that leads out", root)


def test_the_folder_that_paths_start_from_can_be_given(tmp_path):
    write(tmp_path, {"set/images/train/0.jpg": None, "set/labels/train/0.txt": LINE})
    write(tmp_path, {"yamls/digits.yaml": "path: ../set\ntrain: images/train\n" + NAMES})
    stop("there is no images/train .*\n.*data.images", tmp_path / "yamls/digits.yaml")
    source = yolo.read(str(tmp_path / "yamls/digits.yaml"), images=str(tmp_path / "set"))
    assert source.splits["train"][0]["objects"]["category"] == [1]
    stop("no folder .*gone", tmp_path / "set", images=str(tmp_path / "gone"))


def test_other_splits_by_name(tmp_path):
    files = {f"images/{name}/0.jpg": None for name in ("train", "night")}
    files |= {f"labels/{name}/0.txt": LINE for name in ("train", "night")}
    root = write(tmp_path, files)
    assert set(yolo.read(root).splits) == {"train"}
    assert set(yolo.read(root, wanted=["night"]).splits) == {"train", "night"}
    stop("no split 'nigth'. Did you mean 'night'", root, wanted=["night", "nigth"])
    write(tmp_path, {"data.yaml": "train: images/train\nnight: images/night\n" + NAMES})
    assert set(yolo.read(root, wanted=["night"]).splits) == {"train", "night"}


FIELD = st.sampled_from(["0", "1", "0.5", "-0.5", "nan", "inf", "1e400", "x", "", "0x1", "\0", "٣"]) | st.text(
    max_size=3
)
LINES = st.lists(st.lists(FIELD, max_size=9).map(" ".join), max_size=5).map("\n".join)


@settings(max_examples=200, deadline=None)
@given(LINES)
def test_any_line_is_parsed_or_named(text):
    label = yolo.parse_label(text)
    written = [line for line in text.split("\n") if line.split()]
    assert len(label.boxes) == len(label.classes)
    assert len(label.boxes) + len(label.bad) == len(written)
    assert all(len(box) == 4 for box in label.boxes)


VALUE = st.recursive(
    st.none()
    | st.integers()
    | st.text(max_size=4)
    | st.sampled_from(["images/train", "..", "/", ".", "list.txt", "\0"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3) | st.integers(), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.sampled_from(["path", "train", "val", "names", "nc"]), VALUE), LINES, st.binary(max_size=30))
def test_any_dataset_is_read_or_refused_by_name(config, label, listed):
    with tempfile.TemporaryDirectory() as folder:
        files = {"data.yaml": yaml.safe_dump(config), "labels/train/0.txt": label.encode("utf-8", "surrogatepass")}
        root = write(Path(folder), files | {"images/train/0.jpg": None, "list.txt": listed})
        with suppress(CvHfError):
            for split in (source := yolo.read(root)).splits:
                assert set(rows(source, split)) == {"images/train/0.jpg"}


def test_boxes_in_pixels_are_no_data_without_objects(tmp_path):
    files = {f"images/{number}.jpg": None for number in range(4)}
    files |= {f"labels/{number}.txt": "0 30 20 20 20\n" for number in range(4)}
    with pytest.raises(DataError, match=r"none of the 4 boxes is one, read as cx cy w h, from 0 to 1: .*box-huge"):
        load(write(tmp_path, files))


POLYGONS = "1 0.25 0.25 0.75 0.25 0.75 0.5 0.5 0.75\n0 0.1 0.1 0.3 0.1 0.3 0.35\n"


def test_polygons_are_masks_of_instances(tmp_path):
    """Equal to those of the same polygons in COCO, whose masks are compared with pycocotools."""
    files = {f"images/{number}.jpg": None for number in range(4)} | {"classes.txt": "cat\ndog\n"}
    labels = {f"labels/{number}.txt": POLYGONS for number in range(4)}
    root = write(tmp_path, files | labels | {"labels/3.txt": ""})
    lines = []
    assert task_of(DataConfig(id=root), echo=lines.append).name == "instance-segmentation"
    assert "as 6 of 6 objects have masks; for their boxes alone: --task object-detection" in lines[0]
    polygons = [([15, 10, 45, 10, 45, 20, 30, 30], [15, 10, 30, 20]), ([6, 4, 18, 4, 18, 14], [6, 4, 12, 10])]
    content = {
        "images": [{"id": number, "file_name": f"{number}.jpg", "width": 60, "height": 40} for number in range(4)],
        "annotations": [
            {
                "id": 2 * number + place,
                "image_id": number,
                "category_id": 1 - place,
                "segmentation": [polygon],
                "bbox": box,
            }
            for number in range(3)
            for place, (polygon, box) in enumerate(polygons)
        ],
        "categories": [{"id": 0, "name": "cat"}, {"id": 1, "name": "dog"}],
    }
    write(tmp_path / "coco", {f"images/{number}.jpg": None for number in range(4)} | {"labels.json": content})
    task = get_task("instance-segmentation")
    read = [
        load_splits(DataConfig(id=id, splits={"validation": 1}), task, 0, lines.append)
        for id in (root, str(tmp_path / "coco"))
    ]
    for ours, theirs in zip(read[0].train, read[1].train, strict=True):
        boxes = ours["objects"].pop("bbox"), theirs["objects"].pop("bbox")
        np.testing.assert_allclose(*boxes, atol=1e-9)
        assert ours["objects"] == theirs["objects"]
        assert ours["file"] == theirs["file"]
    assert read[0].labels.names == ("cat", "dog")
    assert "masks: polygons, as yolo has them" in "\n".join(lines)


def test_objects_without_a_polygon_are_no_instances(tmp_path):
    root = write(tmp_path, {f"images/{number}.jpg": None for number in range(4)} | {"classes.txt": "cat\ndog\n"})
    write(tmp_path, {f"labels/{number}.txt": POLYGONS + LINE for number in range(4)})
    lines = []
    assert task_of(DataConfig(id=root), echo=lines.append).name == "object-detection"
    assert "as only 8 of 12 objects have masks; for these alone: --task instance-segmentation" in lines[0]
    splits = load_splits(DataConfig(id=root), get_task("instance-segmentation"), 0, lines.append)
    assert set(splits.findings) == {"object-without-mask"}
    assert "images/0.jpg object 2" in splits.findings.reasons("object-without-mask")
    assert all(len(row["objects"]["segmentation"]) == 2 for row in splits.train)
    # As some tools write every box.
    box = "1 0.25 0.25 0.75 0.25 0.75 0.5 0.25 0.5\n"
    write(tmp_path, {f"labels/{number}.txt": box for number in range(4)})
    lines.clear()
    assert task_of(DataConfig(id=root), echo=lines.append).name == "object-detection"
    assert not lines
