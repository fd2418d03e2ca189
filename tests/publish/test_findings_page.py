"""The page of findings: one file, whose names can do no harm, with a picture of what can be seen."""

from __future__ import annotations

import base64
import io
import json
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from cv_hf.cli import main
from cv_hf.config import DataConfig
from cv_hf.data import CODES, check
from cv_hf.publish.findings_page import write_findings
from cv_hf.tasks import get_task
from tests.data.defects import DEFECTS, FORMATS, HEIGHT, WIDTH

HOSTILE = "<script>alert(1)</script>"


class Page(HTMLParser):
    """What a browser makes of a page, as far as it matters here."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.texts: list[str] = []
        self.headings: list[str] = []
        self.pictures: list[PIL.Image.Image] = []
        self.links: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes.update(name for name, _ in attrs)
        values = dict(attrs)
        if tag == "h2":
            self.headings.append(values["id"])
        self.links += [value for name, value in attrs if name in ("src", "href")]
        if tag == "img":
            head, content = values["src"].split(",", 1)
            assert head == "data:image/jpeg;base64"
            self.pictures.append(PIL.Image.open(io.BytesIO(base64.b64decode(content))))

    def handle_data(self, data):
        self.texts.append(data)


def page(folder: Path, format: str, *names: str, task: str | None = None) -> Page:
    """The page of a set with some of its defects."""
    FORMATS[format].write(folder)
    chosen = [defect for defect in DEFECTS if defect.format == format and defect.name in names]
    assert len(chosen) == len(names)
    for defect in chosen:
        defect.make(folder)
    diagnosis = check(DataConfig(id=str(folder)), get_task(task or FORMATS[format].task), lambda line: None)
    write_findings(diagnosis, folder.parent / "deep" / "page.html")
    found = Page((folder.parent / "deep" / "page.html").read_text(encoding="utf-8"))
    assert found.headings == list(diagnosis.findings)
    return found


def reddish(image: PIL.Image.Image) -> np.ndarray:
    """Where a picture has the red that findings are drawn in."""
    red, green, blue = np.moveaxis(np.asarray(image.convert("RGB")).astype(int), -1, 0)
    return (red > 190) & (green < 90) & (blue < 90)


def test_names_do_no_harm(tmp_path):
    folder = tmp_path / "a&b'\"<i>"
    FORMATS["coco"].write(folder)
    for split in ("train", "val"):
        file = folder / "annotations" / f"instances_{split}.json"
        content = json.loads(file.read_text())
        content["categories"][0]["name"] = HOSTILE
        if split == "train":
            name = '"><img src=x onerror=alert(1)>.png'
            shutil.move(folder / "train" / "0.png", folder / "train" / name)
            content["images"][0]["file_name"] = name
            content["annotations"].append({"id": 7, "image_id": 0, "category_id": 1, "bbox": [1, 1, 0, 5]})
            content["annotations"].append({"id": HOSTILE, "image_id": 0, "category_id": HOSTILE, "bbox": [1, 1, 3, 5]})
        file.write_text(json.dumps(content))
    assert main(["check", str(folder), "--html", str(tmp_path / "page.html")]) == 1
    text = (tmp_path / "page.html").read_text()
    found = Page(text)
    assert found.tags <= {"html", "head", "meta", "title", "style", "body", "h1", "h2", "p", "table", "tr", "th", "td",
                          "bdi", "span", "code", "div", "figure", "img", "figcaption", "ul", "li"}  # fmt: skip
    assert found.attributes <= {"lang", "charset", "name", "http-equiv", "content", "class", "id", "alt", "src"}
    assert HOSTILE in found.texts
    assert "<script" not in text
    assert "onerror=alert(1)>" not in text
    assert all(link.startswith("data:image/jpeg") for link in found.links)
    assert "default-src 'none'" in text


def test_a_box_is_drawn_where_it_is(tmp_path):
    found = page(tmp_path / "set", "coco", "reaching out")
    (picture,) = found.pictures
    scale = picture.width / WIDTH
    _, columns = np.nonzero(reddish(picture))
    # The box is [40, 5, 20, 9], cut at the border; its text may stand left of it, above or below.
    assert columns.max() >= 0.97 * picture.width
    inside = reddish(picture)[round(5 * scale) : round(14 * scale) + 2, round(38 * scale) :]
    edges = np.nonzero(inside.any(axis=0))[0]
    assert abs(edges.min() / scale + 38 - 40) < 1.5
    assert abs(picture.height / picture.width - HEIGHT / WIDTH) < 0.02


def test_a_box_without_area_can_be_seen(tmp_path):
    found = page(tmp_path / "set", "voc", "no width")
    (picture,) = found.pictures
    assert reddish(picture).sum() > 100


def test_pixels_of_no_label_are_drawn_over(tmp_path):
    found = page(tmp_path / "set", "masks", "unknown value")
    (picture,) = found.pictures
    strip = np.asarray(picture.convert("RGB")).astype(int)
    clean = page(tmp_path / "other" / "set", "masks", "another size").pictures[0]
    # Of the first three rows of 36, which have the value 9.
    top = strip[: round(3 / HEIGHT * picture.width * HEIGHT / WIDTH) - 3]
    assert (top[..., 0] > 100).mean() > 0.99
    assert clean.width > clean.height * 1.8  # the image beside its mask


def test_copies_stand_beside_each_other(tmp_path):
    (picture,) = page(tmp_path / "set", "imagefolder", "copy in two splits").pictures
    pixels = np.asarray(picture.convert("RGB")).astype(int)
    half = (picture.width - 8) // 2
    assert np.abs(pixels[:, :half] - pixels[:, -half:]).mean() < 4


@pytest.mark.parametrize(
    ("format", "names", "pictures"),
    [
        ("imagefolder", ["image in no class", "text among images", "palette"], 2),
        ("imagefolder", ["truncated"], 0),
        ("instances", ["two points", "outside", "twice"], 1),
        ("panoptic", ["segment not listed", "id twice", "of no image"], 2),
        ("masks", ["image gone"], 1),
        ("masks", ["all ignored"], 1),
        ("boxes", ["ambiguous format"], 1),
    ],
)
def test_what_cannot_be_drawn_is_named(format, names, pictures, tmp_path):
    found = page(tmp_path / "set", format, *names)
    text = " ".join(found.texts)
    for defect in DEFECTS:
        if defect.format == format and defect.name in names:
            for code, files in defect.found.items():
                assert code in found.headings
                assert all(file in text for file in files)
                assert CODES[code].meaning[1:] in text
    assert len(found.pictures) == pictures


def test_a_clean_set_has_a_page_too(tmp_path):
    found = page(tmp_path / "set", "yolo")
    assert "Nothing found." in found.texts
    assert found.pictures == []
