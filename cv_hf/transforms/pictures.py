"""Pictures for people: an image with a caption, with boxes or with segments, and many of them on one sheet."""

from __future__ import annotations

import colorsys
import math
import re
import unicodedata
import zlib
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFont

TILE = 200
# Pictures with boxes or segments are enlarged to this edge: a text has to fit beside them.
SMALLEST = 640
# So many classes stand in a legend, the largest first.
_LEGEND = 16
# So long is a text beside a box, in its letters' heights.
_LONGEST = 20
# So wide at least is a legend, in pixels.
_NARROWEST = 190
# More hues than these look alike; the classes after them have another saturation and value.
_HUES = 13
_TONES = ((0.75, 0.95), (1.0, 0.55), (0.35, 1.0), (0.5, 0.7), (1.0, 0.3))
# Pillow's own font has ASCII alone; these are looked for among those of the system, for names in other letters.
_FONTS = (
    *("DejaVuSans.ttf", "LiberationSans-Regular.ttf", "NotoSans-Regular.ttf", "arial.ttf", "Arial Unicode.ttf"),
    *("NotoSansCJK-Regular.ttc", "wqy-zenhei.ttc", "msyh.ttc", "msgothic.ttc", "malgun.ttf", "PingFang.ttc"),
)
_HEX = re.compile(r"#[0-9a-fA-F]{6}")


class Segment(NamedTuple):
    """A mask (H, W), bool, its colour as "#rrggbb" and the name of its class."""

    mask: np.ndarray
    colour: str
    label: str


class Scored(NamedTuple):
    """A name and its score, of which the name alone is shortened where room is short."""

    name: str
    score: float


def captioned(image: Image.Image, lines: Sequence[str | Scored], colour: str) -> Image.Image:
    """Fit the image into a tile and write the lines below it, each shortened to the tile's width."""
    height = 22 * len(lines) + 6
    tile = Image.new("RGB", (TILE, TILE + height), "white")
    scale = TILE / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    # Enlarged pixels stay pixels: what the model saw is not smoothed for the picture.
    small = image.convert("RGB").resize(size, Image.Resampling.NEAREST if scale > 2 else Image.Resampling.LANCZOS)
    tile.paste(small, ((TILE - small.width) // 2, (TILE - small.height) // 2))
    draw = ImageDraw.Draw(tile)
    for number, line in enumerate(lines):
        text, font = _written(line, 15, TILE - 12)
        draw.text((6, TILE + 4 + 22 * number), text, fill=colour, font=font)
    return tile


def draw_boxes(
    image: Image.Image,
    boxes: Sequence[Sequence[float]],
    texts: Sequence[str | Scored],
    colours: Sequence[str],
    *,
    truth: Sequence[Sequence[float]] | None = None,
    note: str = "",
    tile: int | None = None,
) -> Image.Image:
    """Draw boxes with their texts, of a size that can be read whatever the image's.

    Args:
        image: brought to the edge of a tile, else enlarged to an edge of at least 640 pixels and never made smaller.
        boxes: (n, 4), absolute xyxy in pixels of the image.
        texts: one per box.
        colours: one per box, as "#rrggbb".
        truth: boxes of the ground truth, drawn as thin white lines on black.
        note: a line below the image.
        tile: the edge of the picture in pixels, where it is one of many on a sheet.
    """
    scale = tile / max(image.size) if tile else max(1, math.ceil(SMALLEST / max(image.size)))
    picture = image.convert("RGB")
    if scale != 1:
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        picture = picture.resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS)
    edge = max(picture.size)
    letters = max(13, edge // 55)
    line = max(2, edge // 400)
    draw = ImageDraw.Draw(picture)
    for box in truth or ():
        corners = _corners(box, scale, picture.size)
        draw.rectangle(corners, outline="black", width=line + 2)
        if min(corners[2] - corners[0], corners[3] - corners[1]) > 2:
            inner = [corners[0] + 1, corners[1] + 1, corners[2] - 1, corners[3] - 1]
            draw.rectangle(inner, outline="white", width=line)
    placed: list[tuple[float, float, float, float]] = []
    corners = [_corners(box, scale, picture.size) for box in boxes]
    for box, colour in zip(corners, colours, strict=True):
        draw.rectangle(box, outline=colour, width=line)
    # Texts last, so that no box crosses them.
    for box, text, colour in zip(corners, texts, colours, strict=True):
        text, font = _written(text, letters, min(picture.width - 6, _LONGEST * letters))
        width, height = font.getlength(text) + 6, sum(font.getmetrics()) + 2
        x = min(max(0, box[0]), max(0, picture.width - width))
        # Above the box, else within it, else below it: wherever no other text stands.
        places = [box[1] - height, box[1] + line, box[3] - height - line, box[3]]
        free = [y for y in places if 0 <= y <= picture.height - height]
        y = next((y for y in free if not any(_overlap((x, y, x + width, y + height), other) for other in placed)), None)
        if y is None:
            y = free[0] if free else 0
        placed.append((x, y, x + width, y + height))
        draw.rectangle(placed[-1], fill=colour)
        draw.text((x + 3, y + 1), text, fill="black" if _is_light(colour) else "white", font=font)
    return _with_line(picture, note, below=True) if note else picture


def draw_segments(
    image: Image.Image,
    answers: Sequence[Sequence[Segment]],
    *,
    titles: Sequence[str] = (),
    tile: int | None = None,
) -> Image.Image:
    """Lay translucent segments over an image, with a legend of their classes below it.

    Args:
        image: brought to the edge of a tile, else enlarged to an edge of at least 640 pixels and never made smaller.
        answers: the segments of one picture each, which stand beside one another; where segments overlap, the smaller
            one is in front.
        titles: a line above each picture.
        tile: the edge of the whole in pixels, where it is one of many on a sheet; titles and legends come on top.
    """
    scale = max(1, math.ceil(SMALLEST / max(image.size)))
    gap = 8
    pictures = [_overlaid(image.convert("RGB"), segments, scale) for segments in answers]
    if tile:
        for picture in pictures:
            picture.thumbnail(((tile - gap * (len(answers) - 1)) // len(answers), tile))
    # Texts last, since they do not shrink with the image.
    pictures = [_with_legend(picture, segments) for picture, segments in zip(pictures, answers, strict=True)]
    if titles:
        pictures = [_with_line(picture, title) for picture, title in zip(pictures, titles, strict=True)]
    sheet = Image.new("RGB", (sum(p.width + gap for p in pictures) - gap, max(p.height for p in pictures)), "white")
    left = 0
    for picture in pictures:
        sheet.paste(picture, (left, 0))
        left += picture.width + gap
    return sheet


def class_colour(label: str, number: int = 0, names: Sequence[str] = ()) -> str:
    """The colour of a class, the same in every picture of a run; a class named "#rrggbb" has that colour.

    Args:
        label: the name.
        number: of a segment among those of its class, which get shades of the colour.
        names: all classes, which are told apart by their place; one that is not among them has a colour by its name.
    """
    if _HEX.fullmatch(label):
        hue, saturation, value = colorsys.rgb_to_hsv(*(part / 255 for part in ImageColor.getrgb(label)))
    else:
        place = names.index(label) if label in names else zlib.crc32(label.encode("utf-8", "surrogatepass"))
        # The golden ratio leaves the largest gaps between hues, of however many classes.
        hue = (0.6 + place * 0.618034) % 1
        saturation, value = _TONES[place // _HUES % len(_TONES)]
    hue = (hue + 0.03 * (number * 0.618034 % 1)) % 1
    value *= 1 - 0.47 * (number * 0.381966 % 1)
    return "#" + "".join(f"{round(255 * part):02x}" for part in colorsys.hsv_to_rgb(hue, saturation, value))


def _overlaid(image: Image.Image, segments: Sequence[Segment], scale: int) -> Image.Image:
    # Each pixel keeps the number of the segment in front, so that all of it is drawn at once and at any size.
    front = np.zeros((image.height, image.width), np.int32)
    for number in sorted(range(len(segments)), key=lambda place: -segments[place].mask.sum()):
        front[segments[number].mask] = number + 1
    colours = np.array([[0, 0, 0], *(ImageColor.getrgb(segment.colour) for segment in segments)], np.float32)
    pixels = np.asarray(image).repeat(scale, 0).repeat(scale, 1).astype(np.float32)
    front = front.repeat(scale, 0).repeat(scale, 1)
    edge = np.zeros(front.shape, bool)
    width = max(1, max(front.shape) // 500)
    for step in range(1, width + 1):
        edge[step:] |= front[step:] != front[:-step]
        edge[:, step:] |= front[:, step:] != front[:, :-step]
    edge &= front > 0
    strength = np.where(front > 0, np.where(edge, 1.0, 0.5), 0.0)[..., None]
    return Image.fromarray(np.round(pixels * (1 - strength) + colours[front] * strength).astype(np.uint8))


def _with_legend(picture: Image.Image, segments: Sequence[Segment]) -> Image.Image:
    """The picture above the names of its classes, the largest first."""
    areas: Counter[str] = Counter()
    for segment in segments:
        areas[segment.label] += int(segment.mask.sum())
    counts = Counter(segment.label for segment in segments)
    colours = {segment.label: segment.colour for segment in reversed(segments)}
    labels = [label for label, _ in areas.most_common(_LEGEND)]
    size = max(13, max(picture.size) // 55)
    font = _font(size)
    line = sum(font.getmetrics()) + 6
    widest = max(picture.width, _NARROWEST)
    placed, x, y = [], 0, 0
    for label in [*labels, *([""] if len(areas) > _LEGEND else [])]:
        count = f" x{counts[label]}" if counts[label] > 1 else ""
        text, own = (_written(label[:40], size, widest - line - font.getlength(count))) if label else ("", font)
        text += count if label else f"and {len(areas) - _LEGEND} more"
        width = line + own.getlength(text) + 12
        if x and x + width > widest:
            x, y = 0, y + line
        placed.append((x, y, text, own, colours.get(label)))
        x += width
    whole = Image.new("RGB", (widest, picture.height + y + line + 4) if placed else picture.size, "white")
    whole.paste(picture, (0, 0))
    draw = ImageDraw.Draw(whole)
    for x, y, text, own, colour in placed:
        top = picture.height + 2 + y
        if colour is not None:
            draw.rectangle((x + 4, top + 4, x + line - 4, top + line - 4), fill=colour)
        draw.text((x + line, top + 2), text, fill="black", font=own)
    return whole


def _with_line(picture: Image.Image, text: str, *, below: bool = False) -> Image.Image:
    """The picture with a line of text above or below it."""
    font = _font(max(15, max(picture.size) // 50))
    height = sum(font.getmetrics()) + 6
    whole = Image.new("RGB", (max(picture.width, math.ceil(font.getlength(text))), picture.height + height), "white")
    whole.paste(picture, (0, 0 if below else height))
    ImageDraw.Draw(whole).text((0, 3 + picture.height * below), text, fill="black", font=font)
    return whole


def _written(text: str | Scored, size: int, width: float) -> tuple[str, ImageFont.FreeTypeFont]:
    """One line of text that is no wider than that, and the font to write it in: the first that has all its letters.

    Where none has, letters go without their accents.
    """
    name = text.name if isinstance(text, Scored) else text
    needed = frozenset(letter for letter in name if not letter.isascii() and letter.isprintable())
    font = _font(size, needed)
    if needed and font is _font(size):
        plain = unicodedata.normalize("NFKD", name)
        plain = "".join(letter for letter in plain if not unicodedata.combining(letter))
        text = Scored(plain, text.score) if isinstance(text, Scored) else plain
    return _shortened(text, font, width), font


@lru_cache(maxsize=256)
def _font(size: int, letters: frozenset[str] = frozenset()) -> ImageFont.FreeTypeFont:
    for name in _FONTS if letters else ():
        font = _system_font(name, size)
        # What a font does not have it draws as a box, as it does the last code point of all, which is no letter.
        if font is not None and bytes(font.getmask(chr(0x10FFFF))) not in {bytes(font.getmask(one)) for one in letters}:
            return font
    return _font(size) if letters else ImageFont.load_default(size=size)


@lru_cache(maxsize=256)
def _system_font(name: str, size: int) -> ImageFont.FreeTypeFont | None:
    try:
        return ImageFont.truetype(name, size)
    except OSError:
        return None


def _shortened(text: str | Scored, font: ImageFont.FreeTypeFont, width: float) -> str:
    """One line of text that is no wider than that."""
    if isinstance(text, Scored):
        score = f" {text.score:.2f}"
        return (_shortened(text.name, font, width - font.getlength(score)) + score).strip()
    text = " ".join(text.split())[: max(1, int(width))]  # no letter is narrower than a pixel
    while len(text) > 1 and font.getlength(text) > width:
        text = text[:-2] + "…"
    return text


def _corners(box: Sequence[float], scale: float, size: tuple[int, int]) -> tuple[float, float, float, float]:
    left, top, right, bottom = (edge * scale for edge in box)
    left, top = max(0, min(left, size[0] - 2)), max(0, min(top, size[1] - 2))
    return left, top, max(left, min(right, size[0] - 1)), max(top, min(bottom, size[1] - 1))


def _overlap(one: Sequence[float], other: Sequence[float]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _is_light(colour: str) -> bool:
    red, green, blue = ImageColor.getrgb(colour)[:3]
    return 0.299 * red + 0.587 * green + 0.114 * blue > 140


def contact_sheet(pictures: Sequence[Image.Image], columns: int = 5, gap: int = 8) -> Image.Image:
    """Lay pictures of about one size out in rows; each row is as high as its highest picture."""
    columns = min(columns, len(pictures))
    rows = [pictures[start : start + columns] for start in range(0, len(pictures), columns)]
    width = max(picture.width for picture in pictures)
    heights = [max(picture.height for picture in row) for row in rows]
    sheet = Image.new("RGB", (columns * (width + gap) + gap, sum(heights) + gap * (len(rows) + 1)), "white")
    top = gap
    for row, height in zip(rows, heights, strict=True):
        for column, picture in enumerate(row):
            sheet.paste(picture, (gap + column * (width + gap), top))
        top += height + gap
    return sheet
