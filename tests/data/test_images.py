"""Every kind of image file against load_image, which pipeline() uses, or against values worked out by hand."""

from __future__ import annotations

import io
import pickle
import random
import re
import struct
import subprocess
import sys
import warnings
import zlib
from pathlib import Path

import datasets
import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest
from PIL.TiffImagePlugin import ImageFileDirectory_v2
from transformers.image_utils import load_image

from cv_hf import data
from cv_hf.data import Findings, UnreadableImage, check_images, decode_array, read_header
from cv_hf.errors import DataError
from tests.data.samples import SHARED

# pytest resets the filters that cv_hf.data.images sets.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*:UserWarning:PIL"),
    pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning"),
]

RGB = np.random.RandomState(0).randint(0, 256, (6, 9, 3), dtype=np.uint8)
SIXTEEN = np.array([[0, 255, 256, 300], [32767, 32768, 65279, 65535]], np.uint16)


def assert_same_code(one, other):
    assert one.code == other.code


def decode(image, name=None):
    """What `decode` and `decode_array` agree on, wherever a test here decodes anything."""
    try:
        picture, codes = data.decode(image, name)
    except UnreadableImage as error:
        with pytest.raises(UnreadableImage, match=f"^{re.escape(str(error))}$") as other:
            decode_array(image, name)
        assert_same_code(error, other.value)
        raise
    array, size, more = decode_array(image, name)
    assert array.dtype == np.uint8
    assert array.flags.c_contiguous
    assert array.flags.writeable
    np.testing.assert_array_equal(array, np.asarray(picture))
    assert (size, more) == ((picture.height, picture.width), codes)
    return picture, codes


def pixels(image):
    assert image.mode == "RGB"
    return np.asarray(image)


def png16(values, colour_type):
    """A 16-bit PNG written by hand: `values` (height, width[, channels]) uint16."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    height, width = values.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def tiff(planes, bits, sample_format=1, photometric=1, planar=1, order="<"):
    """A TIFF written by hand, uncompressed: `planes` is a list of arrays, one strip each."""
    height, width = planes[0].shape[:2]
    samples = len(planes) if planar == 2 else (planes[0].shape[2] if planes[0].ndim == 3 else 1)
    strips = [plane.astype(plane.dtype.newbyteorder(order)).tobytes() for plane in planes]
    tags = [
        (256, "H", [width]),
        (257, "H", [height]),
        (258, "H", [bits] * samples),
        (259, "H", [1]),
        (262, "H", [photometric]),
        (273, "I", [0] * len(strips)),
        (277, "H", [samples]),
        (278, "H", [height]),
        (279, "I", [len(strip) for strip in strips]),
        (284, "H", [planar]),
        (339, "H", [sample_format] * samples),
    ]
    content = io.BytesIO()
    content.write((b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, 0))
    offsets = []
    for strip in strips:
        offsets.append(content.tell())
        content.write(strip + b"\0" * (len(strip) % 2))
    entries = []
    for tag, kind, values in tags:
        values = offsets if tag == 273 else values
        data = struct.pack(f"{order}{len(values)}{kind}", *values)
        if len(data) > 4:
            place = content.tell()
            content.write(data + b"\0" * (len(data) % 2))
            data = struct.pack(order + "I", place)
        entries.append(struct.pack(order + "HHI", tag, 3 if kind == "H" else 4, len(values)) + data.ljust(4, b"\0"))
    start = content.tell()
    content.write(struct.pack(order + "H", len(entries)) + b"".join(entries) + struct.pack(order + "I", 0))
    content.seek(4)
    content.write(struct.pack(order + "I", start))
    return content.getvalue()


def saved(image, path, **options):
    image.save(path, **options)
    return str(path)


def exif(orientation):
    tags = PIL.Image.Exif()
    tags[PIL.Image.ExifTags.Base.Orientation] = orientation
    return tags


def palette(transparency=None):
    image = PIL.Image.fromarray(RGB[..., 0]).convert("P")
    image.putpalette(np.random.RandomState(1).randint(0, 256, 768, dtype=np.uint8).tobytes())
    return image, {} if transparency is None else {"transparency": transparency}


# What the header of a file says that is good to know.
NOTED = {
    **{name: ["alpha-image"] for name in ("grey-alpha.png", "rgba.png", "rgba.webp", "key.png")},
    **{name: ["palette-image", "alpha-image"] for name in ("palette-key.png", "palette-alpha.png")},
    **{name: ["palette-image"] for name in ("palette.png", "palette.gif")},
    **{name: ["cmyk-image"] for name in ("cmyk.jpg", "cmyk.tif")},
}
ALPHA = np.dstack([RGB, RGB[..., :1]])
WRITTEN = {
    "rgb.png": (PIL.Image.fromarray(RGB), {}),
    "rgb.jpg": (PIL.Image.fromarray(RGB), {}),
    "progressive.jpg": (PIL.Image.fromarray(RGB), {"progressive": True}),
    "rgb.webp": (PIL.Image.fromarray(RGB), {}),
    "rgb.bmp": (PIL.Image.fromarray(RGB), {}),
    "rgb.tif": (PIL.Image.fromarray(RGB), {}),
    "grey.png": (PIL.Image.fromarray(RGB[..., 0]), {}),
    "grey.jpg": (PIL.Image.fromarray(RGB[..., 0]), {}),
    "grey-alpha.png": (PIL.Image.fromarray(RGB[..., :2], "LA"), {}),
    "rgba.png": (PIL.Image.fromarray(ALPHA, "RGBA"), {}),
    "rgba.webp": (PIL.Image.fromarray(ALPHA, "RGBA"), {"lossless": True}),
    "palette.png": palette(),
    "palette-key.png": palette(7),
    "palette-alpha.png": palette(bytes(range(0, 250, 10))),
    "palette.gif": palette(3),
    "one-bit.png": (PIL.Image.fromarray(RGB[..., 0] > 127), {}),
    "one-bit.tif": (PIL.Image.fromarray(RGB[..., 0] > 127), {}),
    "cmyk.jpg": (PIL.Image.fromarray(ALPHA, "CMYK"), {}),
    "cmyk.tif": (PIL.Image.fromarray(ALPHA, "CMYK"), {}),
    "key.png": (PIL.Image.fromarray(RGB), {"transparency": (1, 2, 3)}),
    "upright.jpg": (PIL.Image.fromarray(RGB), {"exif": exif(1)}),
    **{f"exif-{n}.jpg": (PIL.Image.fromarray(RGB), {"exif": exif(n)}) for n in range(2, 9)},
    "exif-6.png": (PIL.Image.fromarray(RGB), {"exif": exif(6)}),
    "exif-6.webp": (PIL.Image.fromarray(RGB), {"exif": exif(6)}),
    "exif-nonsense.jpg": (PIL.Image.fromarray(RGB), {"exif": exif(77)}),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_images_are_read_as_pipeline_reads_them(name, tmp_path):
    image, options = WRITTEN[name]
    path = saved(image, tmp_path / name, **options)
    content = Path(path).read_bytes()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = pixels(load_image(path))
    for source in (path, {"path": path, "bytes": None}, {"path": "x", "bytes": content}, PIL.Image.open(path)):
        decoded, codes = decode(source)
        assert codes == []
        np.testing.assert_array_equal(pixels(decoded), expected)
    assert read_header(path) == tuple(NOTED.get(name, ["exif-rotated"] if re.match("exif-[2-8]", name) else []))


@pytest.mark.parametrize("name", ["rgb.png", "palette.png", "rgb.bmp"])
def test_lossless_files_give_the_written_pixels(name, tmp_path):
    image, options = WRITTEN[name]
    decoded, _ = decode(saved(image, tmp_path / name, **options))
    expected = RGB
    if name == "palette.png":
        colours = np.array(image.getpalette()).reshape(-1, 3)
        expected = colours[np.asarray(image)]
    np.testing.assert_array_equal(pixels(decoded), expected)


def test_alpha_is_dropped_not_blended(tmp_path):
    decoded, _ = decode(saved(*WRITTEN["rgba.png"][:1], tmp_path / "a.png"))
    np.testing.assert_array_equal(pixels(decoded), RGB)


def test_exif_rotation_by_hand(tmp_path):
    decoded, _ = decode(saved(PIL.Image.fromarray(RGB), tmp_path / "a.png", exif=exif(6)))
    np.testing.assert_array_equal(pixels(decoded), np.rot90(RGB, k=-1))


def test_adobe_cmyk_is_inverted_once(tmp_path):
    # Adobe's JPEGs store 255 - ink; Pillow writes and reads them so. No ink at all is white.
    path = saved(PIL.Image.new("CMYK", (16, 16), (0, 0, 0, 0)), tmp_path / "white.jpg")
    assert b"Adobe" in Path(path).read_bytes()
    decoded, _ = decode(path)
    assert (pixels(decoded) == 255).all()
    decoded, _ = decode(saved(PIL.Image.new("CMYK", (16, 16), (0, 255, 255, 0)), tmp_path / "red.jpg"))
    np.testing.assert_allclose(pixels(decoded)[8, 8], [255, 0, 0], atol=3)


def sixteen_bit_files():
    high = (SIXTEEN // 256).astype(np.uint8)
    yield "grey.png", png16(SIXTEEN, 0), high
    yield "grey.tif", tiff([SIXTEEN], 16), high
    yield "grey-big-endian.tif", tiff([SIXTEEN], 16, order=">"), high
    yield "white-is-zero.tif", tiff([SIXTEEN], 16, photometric=0), 255 - high
    yield "signed.tif", tiff([(SIXTEEN // 2).astype(np.int16)], 16, sample_format=2), (SIXTEEN // 2 // 256)
    yield "int32.tif", tiff([SIXTEEN.astype(np.int32)], 32, sample_format=2), high
    yield "grey.pgm", b"P5 4 2 65535\n" + SIXTEEN.astype(">u2").tobytes(), high
    # A dark picture in a 16-bit file is dark, however bright its 16-bit values look to convert("RGB").
    yield "dark.pgm", b"P5 4 2 65535\n" + (SIXTEEN // 300).astype(">u2").tobytes(), SIXTEEN // 300 // 256


@pytest.mark.parametrize(
    ("name", "content", "expected"), [pytest.param(*file, id=file[0]) for file in sixteen_bit_files()]
)
def test_sixteen_bit_grey_is_scaled_not_clipped(name, content, expected, tmp_path):
    (tmp_path / name).write_bytes(content)
    decoded, codes = decode(tmp_path / name)
    np.testing.assert_array_equal(pixels(decoded), np.repeat(expected[..., None], 3, axis=2))
    assert codes == ["sixteen-bit"]
    assert not np.array_equal(pixels(load_image(str(tmp_path / name))), pixels(decoded)), "load_image is right by now"


@pytest.mark.parametrize("colour_type", [2, 4, 6])
def test_sixteen_bit_colour_is_read_as_pipeline_reads_it(colour_type, tmp_path):
    channels = {2: 3, 4: 2, 6: 4}[colour_type]
    path = tmp_path / "a.png"
    path.write_bytes(png16(np.stack([SIXTEEN] * channels, -1), colour_type))
    decoded, codes = decode(path)
    np.testing.assert_array_equal(pixels(decoded), np.repeat((SIXTEEN // 256)[..., None], 3, axis=2))
    np.testing.assert_array_equal(pixels(decoded), pixels(load_image(str(path))))
    assert codes == []


def test_tiffs_of_sixteen_bit_planes_are_refused_where_pillow_misreads_them(tmp_path):
    path = tmp_path / "planes.tif"
    path.write_bytes(tiff([SIXTEEN] * 3, 16, photometric=2, planar=2))
    misread = np.asarray(PIL.Image.open(path))
    assert not np.array_equal(misread[..., 0], SIXTEEN // 256), "Pillow reads these by now: read them"
    for read in (decode, read_header):
        with pytest.raises(UnreadableImage, match="planes"):
            read(path)
    path.write_bytes(tiff([RGB[..., channel] for channel in range(3)], 8, photometric=2, planar=2))
    np.testing.assert_array_equal(pixels(decode(path)[0]), RGB)


def test_integers_of_8_bits_in_a_file_of_32_are_left_as_they_are(tmp_path):
    path = tmp_path / "a.tif"
    path.write_bytes(tiff([RGB[..., 0].astype(np.int32)], 32, sample_format=2))
    decoded, codes = decode(path)
    np.testing.assert_array_equal(pixels(decoded)[..., 0], RGB[..., 0])
    assert codes == []


def test_floating_point(tmp_path):
    path = tmp_path / "a.tif"
    path.write_bytes(tiff([(RGB[..., 0] / 255).astype(np.float32)], 32, sample_format=3))
    decoded, codes = decode(path)
    np.testing.assert_array_equal(pixels(decoded)[..., 1], RGB[..., 0])
    assert codes == ["float-image"]
    path.write_bytes(tiff([RGB[..., 0].astype(np.float32)], 32, sample_format=3))
    decoded, codes = decode(path)
    np.testing.assert_array_equal(pixels(decoded), pixels(load_image(str(path))))
    np.testing.assert_array_equal(pixels(decoded)[..., 1], RGB[..., 0])
    assert codes == []


@pytest.mark.parametrize(
    "values",
    [
        pytest.param(np.array([[-5, 300]], np.int32), id="negative"),
        pytest.param(np.array([[0, 70_000]], np.int32), id="above 16 bits"),
        pytest.param(np.array([[0.0, np.nan]], np.float32), id="nan"),
        pytest.param(np.array([[0.0, 1000.0]], np.float32), id="large floats"),
    ],
)
def test_values_without_an_agreed_range_are_refused(values, tmp_path):
    path = tmp_path / "a.tif"
    path.write_bytes(tiff([values], 32, sample_format=3 if values.dtype == np.float32 else 2))
    with pytest.raises(UnreadableImage, match=r"a\.tif: .*convert"):
        decode(path)


def test_a_png_named_jpg_is_read_and_noted(tmp_path):
    path = saved(PIL.Image.fromarray(RGB), tmp_path / "a.jpg", format="PNG")
    np.testing.assert_array_equal(pixels(decode(path)[0]), RGB)
    assert read_header(path) == ("suffix-mismatch",)


@pytest.mark.parametrize("suffix", ["png", "webp"])
def test_damaged_exif_is_found_without_decoding(suffix, tmp_path):
    path = saved(PIL.Image.fromarray(RGB), tmp_path / f"a.{suffix}", exif=b"Exif\0\0garbage")
    for read in (decode, read_header):
        with pytest.raises(UnreadableImage, match="not a TIFF file"):
            read(path)


@pytest.mark.parametrize("suffix", ["HEIC", "heif", "dng", "cr2", "cr3", "nef", "arw"])
def test_photos_of_phones_and_cameras_are_refused_by_name(suffix, tmp_path):
    path = tmp_path / f"a.{suffix}"
    thumbnail = io.BytesIO()
    PIL.Image.fromarray(RGB).save(thumbnail, "TIFF")
    # A raw is a TIFF whose first picture is a thumbnail; of HEIC's brands, AVIF's decoder takes mif1 for its own.
    contents = [thumbnail.getvalue(), *(b"\0\0\0\x18ftyp%s\0\0\0\0mif1heic" % brand for brand in (b"heic", b"mif1"))]
    for content in contents:
        path.write_bytes(content)
        for read in (decode, read_header):
            with pytest.raises(UnreadableImage, match=rf"{suffix.upper()} is not decoded here: convert it to JPEG"):
                read(path)
    saved(PIL.Image.fromarray(RGB), path, format="PNG")
    np.testing.assert_array_equal(pixels(decode(path)[0]), RGB)


def test_a_decoder_for_heic_is_used_where_there_is_one(tmp_path, monkeypatch):
    monkeypatch.setitem(PIL.Image.registered_extensions(), ".heic", "TIFF")
    path = saved(PIL.Image.fromarray(RGB), tmp_path / "a.heic")
    np.testing.assert_array_equal(pixels(decode(path)[0]), RGB)


def test_frames_after_the_first_are_noted(tmp_path):
    frames = [PIL.Image.fromarray(RGB), PIL.Image.fromarray(255 - RGB)]
    for name in ("a.gif", "a.tif", "a.png"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
        assert read_header(tmp_path / name)[0] == "first-frame"
    np.testing.assert_array_equal(pixels(decode(tmp_path / "a.tif")[0]), RGB)


def test_a_callers_image_stays_open_and_unchanged(tmp_path):
    image = PIL.Image.open(saved(*WRITTEN["palette-alpha.png"][:1], tmp_path / "a.png", transparency=b"\0\1"))
    decode(image)
    assert image.info["transparency"] == b"\0\1"
    assert image.mode == "P"
    image.load()


NOISE = PIL.Image.fromarray(np.random.RandomState(2).randint(0, 256, (64, 64, 3), dtype=np.uint8))


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_jpeg_may_be_read_smaller(mode, orientation, tmp_path):
    picture = PIL.Image.effect_mandelbrot((240, 161), (-2, -1.5, 1, 1.5), 100).convert("RGB").convert(mode)
    picture.save(tmp_path / "a.jpg", quality=95, exif=exif(orientation))
    whole, _ = decode(tmp_path / "a.jpg")
    asked = []

    def reduction(size):
        asked.append(size)
        return 4

    smaller, size, _ = decode_array(tmp_path / "a.jpg", reduction=reduction)
    assert {(161, 240), (240, 161)} == set(asked)  # whichever way up it is
    assert smaller.shape == ((41, 60, 3) if orientation == 1 else (60, 41, 3))
    assert size == whole.size[::-1]
    expected = np.asarray(whole.resize(smaller.shape[1::-1], PIL.Image.Resampling.BOX)).astype(int)
    assert np.abs(smaller.astype(int) - expected).mean() < 4


@pytest.mark.parametrize("times", [2, 4, 8])
@pytest.mark.parametrize(("mode", "subsampling"), [("L", 0), ("RGB", 0), ("RGB", 1), ("RGB", 2)])
def test_a_jpeg_that_is_read_smaller_has_the_pixels_of_pillows_draft(mode, subsampling, times, tmp_path):
    picture = PIL.Image.effect_mandelbrot((243, 161), (-2, -1.5, 1, 1.5), 100).convert(mode)
    picture.save(tmp_path / "a.jpg", quality=80, subsampling=subsampling)
    with PIL.Image.open(tmp_path / "a.jpg") as opened:
        opened.draft(None, (243 // times, 161 // times))
        expected = np.asarray(opened.convert("RGB"))
    assert expected.shape == (-(-161 // times), -(-243 // times), 3)
    np.testing.assert_array_equal(decode_array(tmp_path / "a.jpg", reduction=lambda size: times)[0], expected)


def test_other_formats_are_read_as_large_as_they_are(tmp_path):
    PIL.Image.new("RGB", (64, 48)).save(tmp_path / "a.png")
    assert decode_array(tmp_path / "a.png", reduction=lambda size: 4)[0].shape == (48, 64, 3)


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("orientation", range(10))
def test_a_turned_jpeg_has_the_pixels_that_pillow_turns_upright(orientation, mode, times, tmp_path, monkeypatch):
    picture = PIL.Image.effect_mandelbrot((242, 161), (-2, -1.5, 1, 1.5), 100).convert(mode)
    picture.save(tmp_path / "a.jpg", exif=exif(orientation))
    with PIL.Image.open(tmp_path / "a.jpg") as opened:
        opened.draft(None, (242 // times, 161 // times))
        expected = np.asarray(PIL.ImageOps.exif_transpose(opened).convert("RGB"))
    monkeypatch.setattr(PIL.Image.Image, "load", None)
    pixels, size, _ = decode_array(tmp_path / "a.jpg", reduction=lambda size: times)
    np.testing.assert_array_equal(pixels, expected)
    assert size == ((242, 161) if orientation in range(5, 9) else (161, 242))


@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_rows": 1}, {"quality": 30}])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_every_usual_kind_of_jpeg_has_the_pixels_that_pillow_makes_of_it(mode, options, subsampling, tmp_path):
    photo = PIL.Image.effect_mandelbrot((241, 163), (-2, -1.5, 1, 1.5), 100).convert("RGB")
    noisy = PIL.Image.blend(photo, NOISE.resize(photo.size), 0.3).convert(mode)
    noisy.save(tmp_path / "a.jpg", subsampling=subsampling, **options)
    array, size, codes = decode_array(tmp_path / "a.jpg")
    with PIL.Image.open(tmp_path / "a.jpg") as opened:
        np.testing.assert_array_equal(array, np.asarray(opened.convert("RGB")))
    assert (size, codes) == ((163, 241), [])


def test_a_usual_jpeg_is_not_decoded_by_pillow(tmp_path, monkeypatch):
    NOISE.save(tmp_path / "a.jpg")
    monkeypatch.setattr(PIL.Image.core, "jpeg_decoder", None)
    monkeypatch.setattr(PIL.ImageFile.ImageFile, "load", lambda image: pytest.fail("decoded by Pillow"))
    assert decode_array(tmp_path / "a.jpg")[0].shape == (64, 64, 3)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "gif", "bmp", "tif"])
def test_truncated_files_are_refused_by_name(suffix, tmp_path):
    path = tmp_path / f"cut.{suffix}"
    NOISE.save(path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(UnreadableImage, match=rf"^cut\.{suffix}: "):
        decode(str(path), f"cut.{suffix}")
    with pytest.raises(UnreadableImage, match="shelf"):
        decode({"path": None, "bytes": content[: len(content) // 2]}, "shelf")
    with pytest.raises(UnreadableImage, match="cut") as error:
        read_header(path) if suffix != "tif" else decode(path)
    assert error.value.code == "truncated-image"


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_a_file_that_lacks_only_its_end_marker_is_read(suffix, tmp_path):
    path = tmp_path / f"a.{suffix}"
    NOISE.save(path)
    content = path.read_bytes()
    path.write_bytes(content[: -12 if suffix == "png" else -2])
    np.testing.assert_array_equal(pixels(decode(path)[0]), pixels(load_image(str(path))))
    assert read_header(path) == ()


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "empty"), (b"<html>404</html>", "not an image"), (b"\x89PNG\r\n\x1a\n", "not an image")],
)
def test_files_that_are_no_images(content, reason, tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(content)
    for read in (decode, read_header):
        with pytest.raises(UnreadableImage, match=f"a.png: .*{reason}"):
            read(path)
    with pytest.raises(UnreadableImage, match=reason):
        decode({"path": "a.png", "bytes": content})


def test_missing_images():
    for image in ("no/such.png", {"path": "no/such.png", "bytes": None}, {"path": None, "bytes": None}):
        with pytest.raises(UnreadableImage) as error:
            decode(image)
        assert error.value.code == "missing-image"


def test_decompression_bombs_are_refused_quietly(monkeypatch, tmp_path, recwarn):
    path = saved(PIL.Image.fromarray(RGB), tmp_path / "bomb.png")
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 20)
    for read in (decode, read_header):
        with pytest.raises(UnreadableImage, match="bomb") as error:
            read(path)
        assert error.value.code == "decompression-bomb"


def test_large_images_and_damaged_metadata_do_not_print(tmp_path):
    path = saved(PIL.Image.fromarray(RGB), tmp_path / "large.png")
    code = f"""
import PIL.Image
from cv_hf.data.images import decode
PIL.Image.MAX_IMAGE_PIXELS = 30
decode({path!r})
"""
    run = subprocess.run([sys.executable, "-W", "default", "-c", code], capture_output=True, text=True, check=True)
    assert "Bomb" not in run.stderr


def test_postscript_never_runs(tmp_path, monkeypatch):
    ran = []
    monkeypatch.setattr(
        "PIL.EpsImagePlugin.Ghostscript", lambda *_, **__: ran.append(1) or PIL.Image.new("RGB", (9, 9)).im
    )
    path = tmp_path / "a.jpg"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n")
    PIL.Image.open(path).load()
    assert ran == [1]
    with pytest.raises(UnreadableImage):
        decode(path)
    assert ran == [1]


def test_errors_cross_processes():
    error = pickle.loads(pickle.dumps(UnreadableImage("a.jpg", "no such file", "missing-image")))
    assert (str(error), error.name, error.code) == ("a.jpg: no such file.", "a.jpg", "missing-image")
    assert isinstance(error, DataError)


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "webp", "tif", "bmp"])
def test_damaged_bytes_give_an_image_or_an_error_that_names_it(suffix, tmp_path):
    rng = random.Random(suffix)
    content = io.BytesIO()
    NOISE.save(content, PIL.Image.registered_extensions()[f".{suffix}"], exif=exif(6))
    for _ in range(60):
        damaged = bytearray(content.getvalue())
        for _ in range(rng.randint(1, 12)):
            damaged[rng.randrange(min(len(damaged), 400))] = rng.randrange(256)
        try:
            outcome = decode({"path": None, "bytes": bytes(damaged)}, "shelf")[0].mode
        except UnreadableImage as error:
            outcome = str(error)
        assert outcome == "RGB" or (outcome.startswith("shelf: ") and "\n" not in outcome)


@pytest.mark.skipif(not (SHARED / "odd").is_dir(), reason="shared data is absent")
def test_a_photo_of_a_phone():
    path = str(SHARED / "odd" / "phone_exif_rotated.jpg")
    decoded, codes = decode(path)
    assert codes == []
    raw = np.asarray(PIL.Image.open(path))
    np.testing.assert_array_equal(pixels(decoded), np.rot90(raw, k=-1))


def dataset_of(images):
    features = datasets.Features({"image": datasets.Image(decode=False), "file": datasets.Value("string")})
    names = [f"sample {index}" for index in range(len(images))]
    return datasets.Dataset.from_dict({"image": images, "file": names}, features=features)


@pytest.fixture
def shelf(tmp_path):
    good = saved(NOISE, tmp_path / "good.jpg")
    cut = tmp_path / "cut.jpg"
    cut.write_bytes(Path(good).read_bytes()[:500])
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "deep.png").write_bytes(png16(SIXTEEN, 0))
    embedded = {"path": "/no/such/file.jpg", "bytes": b"never looked at"}
    paths = [good, str(cut), str(tmp_path / "empty.png"), str(tmp_path / "deep.png"), str(tmp_path / "gone.png")]
    return dataset_of([*({"path": path, "bytes": None} for path in paths), embedded, None])


def test_check_images_drops_what_cannot_be_read(shelf):
    findings = Findings()
    kept = check_images(shelf, findings)
    assert kept["file"][:] == ["sample 0", "sample 3", "sample 5"]
    assert {code: entry["files"] for code, entry in findings.to_dict().items()} == {
        "truncated-image": ["sample 1"],
        "empty-image": ["sample 2"],
        "missing-image": ["sample 4", "sample 6"],
        "sixteen-bit": ["sample 3"],
    }


def test_check_images_looks_at_the_selected_rows(shelf):
    findings = Findings()
    assert check_images(shelf.select([5, 2, 0]), findings)["file"][:] == ["sample 5", "sample 0"]
    assert findings.count("empty-image") == 1
    assert len(findings) == 1


def test_check_images_stops_where_asked(shelf):
    with pytest.raises(DataError, match=r"sample 1: (.|\n)*data\.on_bad_sample") as error:
        check_images(shelf, Findings(), "stop")
    assert len(str(error.value).splitlines()) == 2


def test_tags_are_written_as_pillow_reads_them():
    # The TIFFs above are only as good as their writer.
    image = PIL.Image.open(io.BytesIO(tiff([RGB], 8, photometric=2)))
    np.testing.assert_array_equal(np.asarray(image), RGB)
    assert isinstance(image.tag_v2, ImageFileDirectory_v2)
