from __future__ import annotations

import io

import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cv_hf import boxes

EDGE = st.integers(1, 10_000)
PART = st.floats(0, 1, allow_nan=False)


@st.composite
def images(draw):
    """(xywh boxes inside an image (n, 4), its (height, width)), n = 0 among them."""
    height, width = draw(EDGE), draw(EDGE)
    found = []
    for left, top, across, down in draw(st.lists(st.tuples(PART, PART, PART, PART), max_size=5)):
        x, y = left * width, top * height
        found.append([x, y, across * (width - x), down * (height - y)])
    return np.array(found, np.float64).reshape(-1, 4), (height, width)


@given(images())
def test_round_trips(image):
    xywh, size = image
    tolerance = {"rtol": 0, "atol": 1e-12 * max(size) * 10}
    np.testing.assert_allclose(boxes.xyxy_to_xywh(boxes.xywh_to_xyxy(xywh)), xywh, **tolerance)
    np.testing.assert_allclose(
        boxes.cxcywh_norm_to_xywh(boxes.xywh_to_cxcywh_norm(xywh, size), size), xywh, **tolerance
    )
    np.testing.assert_allclose(boxes.xywh_norm_to_xywh(boxes.xywh_to_xywh_norm(xywh, size), size), xywh, **tolerance)
    xyxy_norm = boxes.xyxy_to_xyxy_norm(boxes.xywh_to_xyxy(xywh), size)
    np.testing.assert_allclose(boxes.xyxy_norm_to_xywh(xyxy_norm, size), xywh, **tolerance)
    assert all(reading(xywh, size).shape == xywh.shape for reading in boxes.TO_XYWH.values())


@given(images())
def test_against_one_box_at_a_time(image):
    xywh, (height, width) = image
    corners = boxes.xywh_to_xyxy(xywh)
    centres = boxes.xywh_to_cxcywh_norm(xywh, (height, width))
    for (x, y, w, h), corner, centre in zip(xywh.tolist(), corners.tolist(), centres.tolist(), strict=True):
        assert corner == [x, y, x + w, y + h]
        expected = [(x + w / 2) / width, (y + h / 2) / height, w / width, h / height]
        assert centre == pytest.approx(expected)


def test_a_size_for_each_box():
    found = boxes.cxcywh_norm_to_xywh([[0.5, 0.5, 1, 1], [0.5, 0.25, 0.5, 0.5]], [(10, 20), (100, 50)])
    assert found.tolist() == [[0, 0, 20, 10], [12.5, 0, 25, 50]]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_turned_as_pillow_turns_the_picture(orientation):
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    for x, y, w, h in ([3, 1, 5, 4], [0, 0, 20, 3], [17, 2, 3, 12]):
        pixels, content = np.zeros((14, 20), np.uint8), io.BytesIO()
        pixels[y : y + h, x : x + w] = 255
        PIL.Image.fromarray(pixels).save(content, "PNG", exif=exif)
        left, top, right, bottom = PIL.ImageOps.exif_transpose(PIL.Image.open(content)).getbbox()
        found = boxes.turned_xywh([[x, y, w, h]], (14, 20), orientation).tolist()
        assert found == [[left, top, right - left, bottom - top]]


@pytest.mark.parametrize("empty", [[], np.zeros((0, 4)), np.zeros(0, np.float32)])
def test_no_boxes(empty):
    for reading in boxes.TO_XYWH.values():
        assert reading(empty, (10, 20)).shape == (0, 4)
        assert reading(empty, np.zeros((0, 2))).dtype == np.float64
    assert boxes.turned_xywh(empty, (10, 20), 6).shape == (0, 4)
