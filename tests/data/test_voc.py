"""Pascal VOC's XML in every layout, hostile or damaged."""

from __future__ import annotations

import tempfile
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cv_hf.data import Findings, voc
from cv_hf.errors import CvHfError, DataError
from tests.data.boxed import load, photo, rows, write
from tests.data.samples import SHARED


def xml(filename="", *objects, size="<size><width>60</width><height>40</height><depth>3</depth></size>"):
    items = "".join(
        f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox><xmin>{x1}</xmin><ymin>{y1}</ymin>"
        f"<xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>"
        for name, x1, y1, x2, y2, difficult in objects
    )
    return f"<annotation><filename>{filename}</filename>{size}{items}</annotation>"


CAT = ("cat", 5, 6.5, 15, 26, 0)
CAT_READ = ("cat", [5, 6.5, 10, 19.5])


def stop(match, id, **options):
    with pytest.raises(DataError, match=match) as error:
        voc.read(str(id), **options)
    assert len(str(error.value).splitlines()) <= 2


LAYOUTS = {
    "official": ("Annotations/{}{}.xml", "JPEGImages/{}{}.jpg"),
    "annots": ("annots/{}{}.xml", "images/{}{}.jpg"),
    "annotations": ("annotations/{}{}.xml", "imgs/{}{}.JPEG"),
    "beside": ("{}{}.xml", "{}{}.png"),
    "beside, in images": ("images/{}{}.xml", "images/{}{}.png"),
    "beside the folder of annotations": ("annotations/{}{}.xml", "{}{}.jpg"),
    "roboflow": ("{}/{}.xml", "{}/{}.jpg"),
    "split folders": ("{}/Annotations/{}.xml", "{}/JPEGImages/{}.jpg"),
    "folders of annotations": ("annotations/{}/{}.xml", "images/{}/{}.jpg"),
    "xmls": ("annotations/xmls/{}{}.xml", "images/{}{}.jpg"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(tmp_path, layout):
    annotation, image = LAYOUTS[layout]
    files, expected = {}, {}
    for split in ("train", "valid"):
        for number in range(3):
            files[image.format(split, number)] = photo(format="PNG" if image.endswith("png") else "JPEG")
            boxes = [CAT] * number
            files[annotation.format(split, number)] = xml(f"{number}.jpg", *boxes)
            name = split if "{}/" in annotation else "train"
            expected.setdefault(name, {})[image.format(split, number)] = [CAT_READ] * number
    root = write(tmp_path, files | {"notes.xml": "<project/>"} if "beside" not in layout else files)
    findings = Findings()
    source = voc.read(root, findings=findings)
    assert {name: rows(source, name) for name in source.splits} == expected
    assert not len(findings)
    assert source.labels is None
    for row in source.splits["train"]:
        assert row["image_id"] == Path(row["image"]["path"]).stem or "/" in row["image_id"]
        assert (row["width"], row["height"]) == (60, 40)
        assert set(row["objects"]["area"]) <= {None}
        assert not any(row["objects"]["iscrowd"])
    splits = load(root)
    assert splits.labels.names == ("cat",)
    assert len(splits.train) + len(splits.validation) == 6


def image_sets(**lists):
    return {f"ImageSets/Main/{name}.txt": "\n".join(lines) + "\n" for name, lines in lists.items()}


def test_lists_of_splits(tmp_path):
    files = {f"Annotations/{name}.xml": xml("", CAT) for name in ("a", "b", "c d", "e", "f")}
    files |= {f"JPEGImages/{name}.jpg": None for name in ("a", "b", "c d", "e", "f", "g")}
    lists = image_sets(
        train=["a", "b  1", "b  1", "gone"], val=["c d", ""], trainval=["a", "b", "c d"], test=["x", "y"],
        cat_train=["f 1"], night=["f.jpg"],
    )  # fmt: skip
    write(tmp_path, files | lists)
    findings = Findings()
    source = voc.read(str(tmp_path), findings=findings)
    assert {name: list(rows(source, name)) for name in source.splits} == {
        "train": ["JPEGImages/a.jpg", "JPEGImages/b.jpg"],
        "val": ["JPEGImages/c d.jpg"],
    }
    assert {code: value["files"] for code, value in findings.to_dict().items()} == {
        "missing-label": ["train: gone"],
        "missing-split": ["ImageSets/Main/test.txt"],
        "unlisted": ["Annotations/e.xml", "Annotations/f.xml"],
    }
    assert list(rows(voc.read(str(tmp_path), wanted=["night"]), "night")) == ["JPEGImages/f.jpg"]
    stop("no split 'nigth'", tmp_path, wanted=["nigth"])
    (tmp_path / "ImageSets/Main/train.txt").unlink()
    source = voc.read(str(tmp_path))
    assert list(rows(source, "train")) == ["JPEGImages/a.jpg", "JPEGImages/b.jpg"]  # trainval without val
    write(tmp_path, image_sets(val=["q"], trainval=["q"]))
    stop("none of the images that ImageSets/Main lists", tmp_path)


def test_images_are_found_by_the_name_of_the_xml_then_by_filename(tmp_path):
    files = {
        "Annotations/a.xml": xml("b.jpg", CAT),
        "Annotations/b.xml": xml("a", CAT, CAT),
        "Annotations/c.xml": xml("C:\\photos\\other.jpg", CAT),
        "Annotations/d.xml": xml("two", CAT),
        "Annotations/e.xml": xml("e.png", CAT),
        "Annotations/f.xml": xml("", CAT),
        "Annotations/g.xml": xml("gone.jpg", CAT),
        "Annotations/h.xml": xml("../../secret.jpg", CAT),
        "JPEGImages/two.png": photo(format="PNG"),
        "JPEGImages/e.png": photo(format="PNG"),
    }
    files |= {f"JPEGImages/{name}.jpg": None for name in ("a", "b", "other", "e", "alone", "f")}
    files["JPEGImages/f.jpeg"] = None
    write(tmp_path, {"secret.jpg": None})
    write(tmp_path / "set", files)
    findings = Findings()
    found = {name: len(boxes) for name, boxes in rows(voc.read(str(tmp_path / "set"), findings=findings)).items()}
    assert found == {
        "JPEGImages/a.jpg": 1, "JPEGImages/b.jpg": 2, "JPEGImages/other.jpg": 1, "JPEGImages/two.png": 1,
        "JPEGImages/e.png": 1,
    }  # fmt: skip
    notes = findings.to_dict()
    assert notes["missing-image"]["files"] == [f"Annotations/{name}.xml" for name in "fgh"]
    assert "JPEGImages/f.jpeg, JPEGImages/f.jpg" in notes["missing-image"]["reasons"]["Annotations/f.xml"]
    assert notes["unannotated-image"]["files"] == ["JPEGImages/alone.jpg", "JPEGImages/other.jpg", "JPEGImages/two.png"]


def test_images_elsewhere(tmp_path):
    write(tmp_path, {"set/Annotations/a.xml": xml("", CAT), "photos/deep/a.jpg": None})
    findings = Findings()
    voc.read(str(tmp_path / "set"), findings=findings)
    assert findings.count("missing-image") == 1
    source = voc.read(str(tmp_path / "set"), images=str(tmp_path / "photos"))
    assert source.splits["train"][0]["image"]["path"] == str(tmp_path / "photos/deep/a.jpg")
    stop("no folder .*gone", tmp_path / "set", images=str(tmp_path / "gone"))
    stop("no XML files", tmp_path / "photos")
    stop("read from a folder", tmp_path / "set/Annotations/a.xml")


def test_each_fault_loses_itself_alone(tmp_path):
    bad = "<object><name>cat</name><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>q</xmax><ymax>4</ymax></bndbox></object>"
    part = "<object><part><name>hand</name><bndbox><xmin>1</xmin></bndbox></part></object>"
    nameless = bad.replace("cat", " ").replace("q", "3")
    size = "<size><width>0</width><height>x</height></size>"
    files = {f"{name}.jpg": None for name in "abcdefg"}
    files |= {
        "a.xml": xml("", CAT, ("dog", 9, 9, 9, 9, 1), ("rat", 20, 20, 10, 10, 0), size=bad + part + nameless + size),
        "b.xml": xml("", CAT)[:-5],
        "c.xml": "<annotations/>",
        "d.xml": xml("", CAT).encode("utf-16"),
        "e.xml": b'<?xml version="1.0" encoding="nonsense"?>' + xml().encode(),
        "f.xml": b"",
        "g.xml": xml("", ("cat", "nan", 2, 3, "1e999", 0)),
    }
    root = write(tmp_path, files)
    findings = Findings()
    source = voc.read(root, findings=findings)
    found = rows(source)
    assert found["a.jpg"] == [CAT_READ, ("dog", [9, 9, 0, 0]), ("rat", [20, 20, -10, -10])]
    assert found["d.jpg"] == [CAT_READ]
    assert str(found["g.jpg"]) == "[('cat', [nan, 2.0, nan, inf])]"
    assert set(found) == {"a.jpg", "d.jpg", "g.jpg"}
    assert source.splits["train"]["width"][:2] == [None, 60]
    assert findings.to_dict()["unreadable-annotation"]["files"] == [
        "a.xml: object 0", "a.xml: object 1", "a.xml: object 2", "b.xml", "c.xml", "e.xml", "f.xml"
    ]  # fmt: skip
    assert list(findings) == ["unreadable-annotation"]
    stop(r"a.xml: object 0: .*\(unreadable-annotation\)", root, on_bad_sample="stop")


def test_entities_are_never_expanded(tmp_path):
    laughs = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 10))
    bomb = f'<?xml version="1.0"?><!DOCTYPE annotation [<!ENTITY l0 "ha">{laughs}]>' + xml("&l9;", CAT)
    (tmp_path / "secret.txt").write_text("secret")
    steal = f'<!DOCTYPE annotation [<!ENTITY s SYSTEM "file://{tmp_path}/secret.txt">]>' + xml(
        "", ("&s;", 1, 2, 3, 4, 0)
    )
    files = {"a.xml": bomb, "b.xml": steal, "c.xml": bomb.encode("utf-16"), "d.xml": "<!DOCTYPE annotation>" + xml()}
    root = write(tmp_path / "set", files | {f"{name}.jpg": None for name in "abcd"})
    findings = Findings()
    assert not rows(voc.read(root, findings=findings))
    assert findings.count("unreadable-annotation") == 4
    reasons = findings.to_dict()["unreadable-annotation"]["reasons"].values()
    assert all("document type" in reason for reason in reasons)


def test_links_that_lead_outside(tmp_path):
    write(tmp_path, {"away/a.jpg": None, "away/b.xml": xml("", CAT), "set/images/b.jpg": None})
    write(tmp_path, {"set/annotations/a.xml": xml("", CAT), "set/images/c.jpg": None})
    write(tmp_path, {"set/annotations/c.xml": xml("", CAT)})
    (tmp_path / "set/images/a.jpg").symlink_to(tmp_path / "away/a.jpg")
    (tmp_path / "set/annotations/b.xml").symlink_to(tmp_path / "away/b.xml")
    (tmp_path / "set/images/again").symlink_to(tmp_path / "set/images")
    findings = Findings()
    assert list(rows(voc.read(str(tmp_path / "set"), findings=findings))) == ["images/c.jpg"]
    assert findings.to_dict()["path-outside"]["files"] == ["annotations/b.xml", "images/a.jpg"]
    (tmp_path / "set/annotations/all").symlink_to(tmp_path / "away")
    stop("link that leads out", tmp_path / "set")
    (tmp_path / "whole/images").mkdir(parents=True)
    (tmp_path / "whole/annotations").symlink_to(tmp_path / "away")
    stop("link that leads out", tmp_path / "whole")


PIECES = [
    *("<annotation>", "</annotation>", "<object>", "</object>", "<name>cat</name>", "<bndbox>", "</bndbox>", "<xmin>"),
    *("</xmin>", "<xmax>5</xmax><ymin>1</ymin><ymax>8</ymax>", "<size>", "</size>", "<width>", "7", "-1e400", "nan"),
    *("<filename>../../a.jpg</filename>", "<!DOCTYPE a>", "<?xml version='1.0' encoding='utf-7'?>", "&amp;", "&x;"),
]


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=12).map("".join) | st.text(max_size=30) | st.binary(max_size=30))
def test_any_xml_is_read_or_dropped_by_name(content):
    with tempfile.TemporaryDirectory() as folder:
        root = write(Path(folder), {"a.jpg": b"", "a.xml": content, "b.jpg": b"", "b.xml": xml("", CAT)})
        with suppress(CvHfError):
            assert rows(voc.read(root))["b.jpg"] == [CAT_READ]


@pytest.mark.skipif(not (SHARED / "bccd").is_dir(), reason="shared data is absent")
def test_real_blood_cells():
    findings = Findings()
    source = voc.read(str(SHARED / "bccd"), findings=findings)
    assert {name: len(split) for name, split in source.splits.items()} == {"train": 205, "val": 87, "test": 72}
    counts, flat = Counter(), set()
    for name in source.splits:
        for file, boxes in rows(source, name).items():
            counts.update(category for category, _ in boxes)
            flat.update(Path(file).stem for _, (_, _, width, height) in boxes if width <= 0 or height <= 0)
    assert counts == {"RBC": 4155, "WBC": 372, "Platelets": 361}
    assert flat == {"BloodImage_00338", "BloodImage_00343"}
    assert not len(findings)
