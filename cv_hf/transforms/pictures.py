"""Pictures for people: an image with a caption, and many of them on one sheet."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

TILE = 200


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
