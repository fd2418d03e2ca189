"""Pictures for people: an image with a caption, and many of them on one sheet."""

from __future__ import annotations

import math
from collections.abc import Sequence

from PIL import Image, ImageColor, ImageDraw, ImageFont

TILE = 200
# Pictures with boxes are enlarged to this edge: a text has to fit beside them.
SMALLEST = 640


def captioned(image: Image.Image, lines: Sequence[str], colour: str) -> Image.Image:
    """Fit the image into a tile and write the lines below it, each shortened to the tile's width."""
    font = ImageFont.load_default(size=15)
    height = 22 * len(lines) + 6
    tile = Image.new("RGB", (TILE, TILE + height), "white")
    scale = TILE / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    # Enlarged pixels stay pixels: what the model saw is not smoothed for the picture.
    small = image.convert("RGB").resize(size, Image.Resampling.NEAREST if scale > 2 else Image.Resampling.LANCZOS)
    tile.paste(small, ((TILE - small.width) // 2, (TILE - small.height) // 2))
    draw = ImageDraw.Draw(tile)
    for number, line in enumerate(lines):
        line = " ".join(line.split())
        while font.getlength(line) > TILE - 12:
            line = line[:-2] + "…"
        draw.text((6, TILE + 4 + 22 * number), line, fill=colour, font=font)
    return tile


def draw_boxes(
    image: Image.Image,
    boxes: Sequence[Sequence[float]],
    texts: Sequence[str],
    colours: Sequence[str],
    *,
    truth: Sequence[Sequence[float]] | None = None,
) -> Image.Image:
    """Draw boxes with their texts, of a size that can be read whatever the image's.

    Args:
        image: enlarged to an edge of at least 640 pixels; never made smaller.
        boxes: (n, 4), absolute xyxy in pixels of the image.
        texts: one per box.
        colours: one per box, as "#rrggbb".
        truth: boxes of the ground truth, drawn as thin white lines on black.
    """
    scale = max(1, math.ceil(SMALLEST / max(image.size)))
    picture = image.convert("RGB")
    if scale > 1:
        picture = picture.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)
    edge = max(picture.size)
    font = ImageFont.load_default(size=max(13, edge // 55))
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
        text = " ".join(text.split())[:40]
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
    return picture


def _corners(box: Sequence[float], scale: int, size: tuple[int, int]) -> tuple[float, float, float, float]:
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
