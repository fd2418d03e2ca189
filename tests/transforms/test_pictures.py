"""Pictures stay readable for images of any size and labels of any length."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from PIL import Image, ImageColor

from cv_hf.data import from_class_names
from cv_hf.runs import from_mask
from cv_hf.tasks import get_task
from cv_hf.transforms import Scored, captioned, class_colour, contact_sheet, draw_boxes, pictures


@pytest.mark.parametrize("size", [(1, 1), (8, 8), (4000, 20), (20, 4000), (300, 200)])
def test_the_caption_is_below_the_image_and_inside_the_picture(size):
    picture = captioned(Image.new("RGB", size, "blue"), ["a label of far too many words to fit in" * 20, "x\ny"], "red")
    pixels = np.asarray(picture).astype(int)
    red = (pixels[..., 0] > 150) & (pixels[..., 1] < 100) & (pixels[..., 2] < 100)
    rows, columns = np.nonzero(red)
    assert rows.min() >= 200
    assert columns.max() < picture.width - 2
    assert (pixels[:200] == [0, 0, 255]).all(-1).any()


def test_the_sheet_shows_every_picture_once():
    pictures = [Image.new("RGB", (20, 10 + number), (number + 1, 0, 0)) for number in range(7)]
    sheet = np.asarray(contact_sheet(pictures, columns=3))
    for number, picture in enumerate(pictures):
        assert (sheet == [number + 1, 0, 0]).all(-1).sum() == picture.width * picture.height


def _lab(colour: str) -> np.ndarray:
    """CIE L*a*b* of an sRGB colour, where distances are those that an eye sees."""
    linear = np.array([c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in _rgb(colour) / 255])
    rows = [[0.4339, 0.3763, 0.1899], [0.2126, 0.7152, 0.0722], [0.0177, 0.1095, 0.8730]]
    x, y, z = np.cbrt(rows @ linear)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def _rgb(colour: str) -> np.ndarray:
    return np.array(ImageColor.getrgb(colour), float)


@pytest.mark.parametrize(
    ("names", "apart"),
    [(["red", "blue"], 60), (["building", "wall", "sky"], 60), ([f"class {n}" for n in range(13)], 20),
     ([f"class {n}" for n in range(39)], 10), (["#1eb428", "#1e28b4"], 60)],
)  # fmt: skip
def test_the_classes_of_a_label_map_are_told_apart_by_colour(names, apart):
    colours = [class_colour(name, names=names) for name in names]
    distances = [np.linalg.norm(_lab(one) - _lab(other)) for one, other in itertools.combinations(colours, 2)]
    assert min(distances) > apart
    assert len({class_colour(names[0], number, names) for number in range(5)}) == 5


def test_many_classes_have_as_many_colours_and_a_colour_has_its_own():
    names = [f"class {number}" for number in range(150)]
    assert len({class_colour(name, names=names) for name in names}) == 150
    assert class_colour("#1eb428", names=[*names, "#1eb428"]) == "#1eb428"
    assert np.linalg.norm(_lab(class_colour("wall")) - _lab(class_colour("building"))) > 10


def _dark(picture: Image.Image, *box: int) -> int:
    """Pixels of black text within (left, top, right, bottom)."""
    return (np.asarray(picture.crop(box)).max(-1) < 60).sum()


@pytest.mark.parametrize("size", [(3000, 2000), (640, 480), (60, 40)])
def test_a_sheet_of_segments_says_which_side_is_the_truth_and_has_a_legend_to_read(size):
    labels = from_class_names(["building", "wall"])
    left = np.zeros((size[1], size[0]), bool)
    left[:, : size[0] // 2] = True
    answer = [{"score": None, "label": "wall", "segmentation": from_mask(left)}]
    picture = get_task("semantic-segmentation").draw(Image.new("RGB", size, "white"), answer, answer, labels, 400)
    assert 380 <= picture.width <= 400
    pixels = np.asarray(picture)
    colour = _rgb(class_colour("wall", names=labels.names))
    for side in (0, 204):
        inked = np.flatnonzero((np.abs(pixels[:, side : side + 196] - (colour + 255) / 2) < 2).all(-1).any(1))
        top, bottom = inked.min(), inked.max()
        assert _dark(picture, side, 0, side + 196, top) > 50
        assert _dark(picture, side, bottom + 2, side + 196, picture.height) > 30
        swatch = np.argwhere((pixels[bottom + 2 :, side : side + 196] == colour).all(-1))
        assert (np.ptp(swatch, axis=0) >= 10).all()


@pytest.mark.parametrize("size", [(3000, 2000), (60, 40)])
def test_a_sheet_of_boxes_says_that_the_white_ones_are_the_truth(size):
    labels, task = from_class_names(["red", "blue"]), get_task("object-detection")
    found = [
        {"score": 0.5, "label": name, "box": dict(zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))}
        for name, box in (("red", [5, 5, 25, 25]), ("blue", [30, 5, 55, 25]))
    ]
    image = Image.new("RGB", size, "white")
    bare, told = (task.draw(image, found, truth, labels, 400) for truth in (None, []))
    assert bare.width == told.width == 400
    assert abs(bare.height - 400 * size[1] / size[0]) < 1
    assert _dark(told, 0, bare.height, 400, told.height) > 50
    for name in labels.names:
        assert (np.asarray(bare) == _rgb(class_colour(name, names=labels.names))).all(-1).sum() > 20


@pytest.mark.parametrize("size", [(200, 200), (60, 640)])
def test_a_long_name_leaves_room_for_its_score(size):
    image, name = Image.new("RGB", size, "white"), "a label of far too many words " * 20

    def caption(text):
        return captioned(image, [text], "black")

    def box(text):
        return draw_boxes(image, [[10, 10, 50, 50]], [text], ["#000000"])

    for draw in (caption, box):
        one, other = (np.asarray(draw(Scored(name, score))).astype(int) for score in (0.11, 0.98))
        differing = np.nonzero((one != other).any(-1))[1]
        assert differing.size
        # Nothing of the score is cut off at the right: there is a margin after its last letter.
        assert differing.max() < one.shape[1] - 2


def _is_green(picture: Image.Image) -> bool:
    text = np.asarray(picture)[200:].reshape(-1, 3).astype(int)
    green, red = (text[:, 1] - text[:, 0] > 60).sum(), (text[:, 0] - text[:, 1] > 60).sum()
    assert (green > 20) != (red > 20)
    return green > red


@pytest.mark.parametrize(
    ("scores", "truth", "right"),
    [
        ({"tench, Tinca tinca": 0.4, "cat": 0.3}, "tench, Tinca tinca", True),
        ({"tench": 0.4, "cat": 0.3}, "tench, Tinca tinca", False),
        ({"a": 0.9, "b": 0.7, "c": 0.2}, ["b", "a"], True),
        ({"a": 0.9, "b": 0.7, "c": 0.2}, ["a"], False),
        ({"a": 0.9, "b": 0.4, "c": 0.2}, ["a", "b"], False),
        ({"a": 0.4, "b": 0.3}, [], True),
        ({"a": 0.4, "b": 0.3}, ["a"], False),
        (dict.fromkeys("abcde", 0.9), list("abcdef"), True),  # pipeline() returns no more than five
    ],
)
def test_a_classified_picture_is_green_where_the_prediction_is_the_truth(scores, truth, right):
    answer = [{"label": label, "score": score} for label, score in scores.items()]
    picture = get_task("image-classification").draw(Image.new("RGB", (9, 9), "white"), answer, truth, None, None)
    assert _is_green(picture) == right


@pytest.mark.parametrize("fonts", [pictures._FONTS, ()])
def test_names_beyond_ascii_can_be_read(fonts, monkeypatch):
    """No letter is drawn as the box of one that the font lacks, with the fonts of this machine and without any."""
    monkeypatch.setattr(pictures, "_FONTS", fonts)
    pictures._font.cache_clear()
    for name in ("señal de tráfico", "Ärztin", "číslo"):
        text, font = pictures._written(Scored(name, 0.5), 15, 400)
        absent = bytes(font.getmask(chr(0x10FFFF)))
        assert text.endswith(" 0.50")
        assert not [letter for letter in text if bytes(font.getmask(letter)) == absent]
    assert text.startswith("číslo" if font is not pictures._font(15) else "cislo")
    pictures._font.cache_clear()
