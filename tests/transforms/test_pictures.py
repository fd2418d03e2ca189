"""Pictures stay readable for images of any size and labels of any length."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from cv_hf.transforms import captioned, contact_sheet


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
