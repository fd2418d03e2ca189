"""Whatever stands in the files of a dataset, reading it ends soon and in little memory: with samples or a CvHfError.

A small valid dataset of each format is damaged at random: bytes, values of JSON, words of text, headers of images, and
the files themselves. `FUZZ=2000 python -m pytest tests/data/test_fuzz.py -m slow` looks at so many of each format.
"""

from __future__ import annotations

import base64
import contextlib
import copy
import functools
import gc
import json
import os
import resource
import shutil
import signal
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cv_hf.config import DataConfig
from cv_hf.data import decode, load_splits
from cv_hf.data.labels import from_recipe, read_values
from cv_hf.errors import CvHfError
from cv_hf.runs import from_mask
from cv_hf.tasks import get_task
from tests.data.boxed import photo
from tests.data.samples import png
from tests.data.test_hub_reader import parquet

# What one dataset may take beyond what Python and its libraries have taken already, and how long.
MEMORY = 1 << 31  # of which a third is for the largest image that Pillow decodes
SECONDS, WAITING = 30, 300
FEW, MANY = 40, int(os.environ.get("FUZZ", "1000"))

Files = dict[str, bytes]
counted: dict[str, int] = {}


@pytest.fixture(autouse=True, scope="module")
def _limits() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_AS)
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)
    print("cases:", {**counted, "all": sum(counted.values())})


@contextlib.contextmanager
def bounded() -> Iterator[None]:
    """Fail where a step takes more memory or time than anything that is read here may."""

    def too_long(*_: object) -> None:
        raise TimeoutError(f"more than {SECONDS} s of processor time, or {WAITING} s in all")

    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY, hard))
    old = [signal.signal(number, too_long) for number in (signal.SIGPROF, signal.SIGALRM)]
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    signal.alarm(WAITING)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.alarm(0)
        for number, handler in zip((signal.SIGPROF, signal.SIGALRM), old, strict=True):
            signal.signal(number, handler)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def read_all(folder: Path, task_name: str, **data: Any) -> str:
    """Read a dataset and all of its images and targets; return what became of it."""
    task = get_task(task_name)
    try:
        splits = load_splits(DataConfig(id=str(folder), **data), task, 0, echo=lambda line: None)
    except CvHfError as error:
        text = str(error)
        assert text.replace("\n", "").isprintable(), ascii(text)
        assert len(text.splitlines()) <= 3, text
        return "refused"
    for split in (splits.train, splits.validation, splits.test):
        for row in split or ():
            try:
                image, _ = decode(row["image"], row["file"])
            except CvHfError:
                continue
            if task.fit is not None:
                task.fit(row, (image.height, image.width), splits.labels)
    json.dumps(splits.findings.to_dict())
    assert splits.findings.summary().replace("\n", "").isprintable()
    return "read"


# The datasets ---------------------------------------------------------------------------------------------------------


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()


def _mask(*values: int) -> bytes:
    import io

    content = io.BytesIO()
    pixels = np.repeat(np.asarray(values, np.uint8)[None, np.arange(60) * len(values) // 60], 40, axis=0)
    PIL.Image.fromarray(pixels).save(content, "PNG")
    return content.getvalue()


def _panoptic_png(*ids: int) -> bytes:
    import io

    content = io.BytesIO()
    values = np.repeat(np.asarray(ids)[None, np.arange(60) * len(ids) // 60], 40, axis=0)
    PIL.Image.fromarray(np.stack([values % 256, values // 256, values * 0], -1).astype(np.uint8)).save(content, "PNG")
    return content.getvalue()


def coco(masks: bool = False) -> Files:
    images, annotations = [], []
    for number in range(6):
        images.append({"id": number, "file_name": f"{number}.jpg", "width": 60, "height": 40})
        for place in range(2):
            one = {"id": len(annotations), "image_id": number, "category_id": 1 + place, "iscrowd": 0, "area": 100.0}
            one["bbox"] = [5 + 20 * place, 5, 10, 10]
            if masks and number % 3 == 0:
                one["segmentation"] = [[5, 5, 15, 5, 15, 15, 5, 15]]
            elif masks and number % 3 == 1:
                one["segmentation"] = {"size": [40, 60], "counts": [205, 10, 30, 10, 2145]}
            elif masks:
                one["segmentation"] = from_mask(np.pad(np.ones((9, 9)), ((5, 26), (5, 46))))
            annotations.append(one)
    content = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}],
    }
    return {"annotations/instances_train.json": _json(content), **{f"train/{n}.jpg": photo() for n in range(6)}}


def voc() -> Files:
    files: Files = {}
    for number in range(4):
        objects = "".join(
            f"<object><name>{name}</name><bndbox><xmin>5</xmin><ymin>5</ymin><xmax>20</xmax><ymax>25</ymax></bndbox>"
            "</object>"
            for name in "ab"
        )
        size = "<size><width>60</width><height>40</height><depth>3</depth></size>"
        text = f"<annotation><filename>{number}.jpg</filename>{size}{objects}</annotation>"
        files[f"Annotations/{number}.xml"] = text.encode()
        files[f"JPEGImages/{number}.jpg"] = photo()
    files["ImageSets/Main/train.txt"] = b"0\n1\n2\n3\n"
    return files


def yolo() -> Files:
    files: Files = {"data.yaml": b"path: .\ntrain: images/train\nval: images/val\nnc: 2\nnames:\n  0: a\n  1: b\n"}
    for split in ("train", "val"):
        for number in range(3):
            files[f"images/{split}/{number}.jpg"] = photo()
            files[f"labels/{split}/{number}.txt"] = b"0 0.5 0.5 0.2 0.2\n1 0.3 0.3 0.1 0.2\n1 .1 .1 .2 .1 .2 .2 .1 .3\n"
    return files


def masks() -> Files:
    files: Files = {"classes.txt": b"ground\nred\nblue\n"}
    for split in ("train", "val"):
        for number in range(3):
            files[f"images/{split}/{number}.png"] = photo(format="PNG")
            files[f"masks/{split}/{number}.png"] = _mask(0, 1, 2, 255)
    return files


def panoptic() -> Files:
    images = [{"id": n, "file_name": f"{n}.jpg", "width": 60, "height": 40} for n in range(4)]
    segments = [{"id": 1, "category_id": 1, "area": 800, "iscrowd": 0}, {"id": 300, "category_id": 2, "area": 800}]
    annotations = [{"image_id": n, "file_name": f"{n}.png", "segments_info": segments} for n in range(4)]
    categories = [{"id": 1, "name": "a", "isthing": 1}, {"id": 2, "name": "b", "isthing": 0}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    files: Files = {"panoptic_train.json": _json(content)}
    for number in range(4):
        files[f"images/{number}.jpg"] = photo()
        files[f"panoptic/{number}.png"] = _panoptic_png(1, 300, 0)
    return files


def imagefolder() -> Files:
    return {f"{split}/{name}/{n}.png": png(n) for split in ("train", "val") for name in "ab" for n in range(3)}


def metadata(suffix: str = "jsonl") -> Files:
    rows = [{"file_name": f"{number}.png", "label": "ab"[number % 2], "tags": ["x"]} for number in range(6)]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    if suffix == "csv":
        lines = "file_name,label\n" + "".join(f"{row['file_name']},{row['label']}\n" for row in rows)
    return {f"train/metadata.{suffix}": lines.encode(), **{f"train/{number}.png": png(number) for number in range(6)}}


def objects_table() -> Files:
    """Objects in JSON lines, as tables of the Hub have them."""
    objects = {"bbox": [[5, 5, 10, 10]], "category": ["a"], "segmentation": [[[5, 5, 15, 5, 15, 15, 5, 15]]]}
    rows = [{"file_name": f"{number}.png", "objects": objects} for number in range(6)]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    return {"train/metadata.jsonl": lines.encode(), **{f"train/{n}.png": photo(format="PNG") for n in range(6)}}


@functools.cache
def parquet_tables() -> Files:
    return {"train.parquet": parquet(6), "validation.parquet": parquet(4, 6)}


FORMATS: dict[str, tuple[str, Callable[[], Files], dict[str, Any]]] = {
    "coco": ("object-detection", coco, {}),
    "coco instances": ("instance-segmentation", lambda: coco(masks=True), {}),
    "voc": ("object-detection", voc, {}),
    "yolo": ("object-detection", yolo, {}),
    "masks": ("semantic-segmentation", masks, {}),
    "panoptic": ("panoptic-segmentation", panoptic, {}),
    "imagefolder": ("image-classification", imagefolder, {}),
    "metadata.jsonl": ("image-classification", metadata, {}),
    "metadata.csv": ("image-classification", lambda: metadata("csv"), {}),
    "objects": ("object-detection", objects_table, {"box_format": "xywh"}),
    "parquet": ("image-classification", lambda: dict(parquet_tables()), {}),
    "masks of objects": ("instance-segmentation", objects_table, {}),
}

# What is done to them -----------------------------------------------------------------------------------------------

NUMBERS = [
    0,
    -1,
    1,
    2,
    255,
    256,
    2**31,
    2**32,
    2**63,
    -(2**63) - 1,
    10**9,
    10**30,
    10**5000,
    0.5,
    1e9,
    1e18,
    1e308,
    -1e308,
]
NUMBERS += [float("nan"), float("inf"), float("-inf"), True, False]
TEXTS = [
    "",
    " ",
    "a",
    "0",
    "../../../etc/passwd",
    "/etc/passwd",
    "~",
    "\0",
    "\n",
    "a\nb",
    "\u202e",
    "\ud800",
    "<script>",
]
TEXTS += [
    "a" * 10_000,
    "[x](javascript:alert(1))",
    "\x1b[2J",
    "nan",
    "-0",
    "1e999",
    "a.jpg/b",
    "0.jpg",
    "{}",
    "[[1,2",
    "é",
]
RLES = [
    {"size": [40, 60], "counts": [10**12]},
    {"size": [10**6, 10**6], "counts": [10**12]},
    {"size": [2**31, 2**31], "counts": "0"},
    {"size": [40, 60], "counts": "oooooooooooooooooo0"},
    {"size": [40, 60], "counts": [0.5, 2399.5]},
    {"size": [40, 60], "counts": [-1, 2401]},
    {"size": [1], "counts": []},
    {"size": None, "counts": None},
    {"size": [40, 60], "counts": [0] * 5000 + [2400]},
]
SHAPES = [
    [],
    {},
    None,
    [None],
    [[]],
    [[[]]],
    [[1, 2, 3]],
    [[1, 2] * 3],
    [1e9] * 6,
    [[1e5, 1e5, -1e5, 1e5, 3, 3]],
    [1, [2]],
]
SHAPES += [[[0, 0, 1e6, 0, 1e6, 1e6]], [[0.1, 0.2] * 2000], {"a": {"b": []}}, [float("nan")] * 4, ["a", 1], [True] * 4]


def _deep(depth: int) -> Any:
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


VALUES = st.sampled_from([*NUMBERS, *TEXTS, *RLES, *SHAPES, _deep(50)])
WORDS = st.sampled_from(
    [repr(value) if not isinstance(value, str) else value for value in (*NUMBERS[:12], *NUMBERS[13:], *TEXTS)]
)
MARKUP = [
    "<",
    ">",
    "&",
    "&lt;",
    "&x;",
    "<!DOCTYPE a [<!ENTITY x 'y'>]>",
    "<!--",
    "]]>",
    "</object>",
    "<object>",
    "<?xml",
]
MARKUP += [
    "- ",
    ": ",
    "&a ",
    "*a",
    "{",
    "}",
    "[",
    "]",
    "!!int ",
    "? ",
    "|",
    ">",
    "%",
    "@",
    '"',
    "'",
    "#",
    "\t",
    "---\n",
    "...\n",
]


def png_of_size(width: int, height: int, kind: int = 2) -> bytes:
    """A PNG whose header says so, and which holds next to nothing."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0)
    data = zlib.compress(b"\0" * 1000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


IMAGES = [
    png_of_size(*size, kind)
    for size in ((100_000, 100_000), (1, 2**31 - 1), (13_000, 13_000), (0, 5))
    for kind in (0, 2, 3)
]
IMAGES += [
    photo(1, 1),
    photo(60, 40, "GIF"),
    photo(60, 40, "BMP"),
    photo(60, 40, "TIFF"),
    b"GIF89a\xff\xff\xff\xff\0\0\0",
    b"",
]
IMAGES += [
    photo(40, 60, orientation=6),
    b"\xff\xd8\xff\xe0" + b"\0" * 50,
    b"P5 99999 99999 255\n",
    b"P6 8 8 65535\n" + bytes(99),
]
IMAGES += [
    base64.b64decode("AAABAAEAAQEAAAEAIAAwAAAAFgAAACgAAAABAAAAAgAAAAEAIAAAAAAA"),
    b"<svg xmlns='http://www.w3.org/2000/svg'/>",
]


NAMES = ["a\nb", "<b>", "\u202ea", "\udcff", " ", "a" * 200, "\x1b[2J", "train", ".a"]
PIPE = "a pipe"
TARGETS = ["/etc/passwd", "..", "/dev/zero", "nowhere", "/proc/self/mem", "."]


def _places(value: Any, path: tuple = ()) -> Iterator[tuple]:
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from _places(inner, (*path, key))


def _changed_json(draw: st.DrawFn, content: bytes) -> bytes:
    value = json.loads(content)
    for _ in range(draw(st.integers(1, 3))):
        *above, last = draw(st.sampled_from([path for path in _places(value) if path] or [("x",)]))
        try:
            container = value
            for key in above:
                container = container[key]
            match draw(st.sampled_from(["set", "set", "set", "delete", "repeat", "rename"])):
                case "set":
                    container[last] = copy.deepcopy(draw(VALUES))
                case "delete":
                    del container[last]
                case "repeat" if isinstance(container, list):
                    container.append(copy.deepcopy(container[last]))
                case _ if isinstance(container, dict):
                    container[draw(st.sampled_from(TEXTS))] = container.pop(last)
        except (KeyError, IndexError, TypeError):
            continue
    return json.dumps(value).encode()


def _changed_text(draw: st.DrawFn, content: bytes) -> bytes:
    words = content.decode("utf-8", "surrogateescape").replace("<", " <").replace(">", "> ").split(" ")
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, len(words) - 1))
        words[place] = draw(st.one_of(WORDS, st.sampled_from(MARKUP), st.text(max_size=5)))
    return " ".join(words).encode("utf-8", "surrogatepass")


def _changed_bytes(draw: st.DrawFn, content: bytes) -> bytes:
    place = draw(st.integers(0, max(0, len(content) - 1)))
    match draw(st.sampled_from(["flip", "cut", "insert", "random", "repeat"])):
        case "flip" if content:
            return content[:place] + bytes([draw(st.integers(0, 255))]) + content[place + 1 :]
        case "cut":
            return content[:place]
        case "insert":
            return content[:place] + draw(st.binary(max_size=20)) + content[place:]
        case "random":
            return draw(st.binary(max_size=200))
    return content * 3


@st.composite
def damaged(draw: st.DrawFn, make: Callable[[], Files]) -> tuple[Files, dict[str, str]]:
    """The files of a dataset with something wrong, and links {name: target}."""
    files, links = make(), {}
    for _ in range(draw(st.integers(1, 3))):
        name = draw(st.sampled_from(sorted(files)))
        is_image = name.endswith((".png", ".jpg"))
        # The annotations are where the readers are.
        texts = [each for each in sorted(files) if not each.endswith((".png", ".jpg"))]
        if is_image and texts and draw(st.booleans()):
            name, is_image = draw(st.sampled_from(texts)), False
        kinds = ["bytes", "file"] + (["image"] * 2 if is_image else ["text"] * 3)
        if name.endswith((".json", ".jsonl")):
            kinds += ["json"] * 6
        match draw(st.sampled_from(kinds)):
            case "bytes":
                files[name] = _changed_bytes(draw, files[name])
            case "text" if files[name]:
                files[name] = _changed_text(draw, files[name])
            case "image":
                files[name] = draw(st.sampled_from(IMAGES))
            case "json":
                with contextlib.suppress(ValueError, RecursionError):
                    if name.endswith(".jsonl"):
                        lines = files[name].splitlines() or [b"{}"]
                        place = draw(st.integers(0, len(lines) - 1))
                        lines[place] = _changed_json(draw, lines[place])
                        files[name] = b"\n".join(lines)
                    else:
                        files[name] = _changed_json(draw, files[name])
            case "file":
                content = files.pop(name)
                match draw(st.sampled_from(["gone", "folder", "renamed", "link", "pipe"])):
                    case "folder":
                        files[f"{name}/x"] = content
                    case "renamed":
                        word = draw(
                            st.sampled_from(
                                ["a\nb", "<b>", "\u202ea", "\udcff", " ", "a" * 200, "\x1b[2J", "train", ".a"]
                            )
                        )
                        files[f"{os.path.dirname(name)}/{word}{os.path.splitext(name)[1]}".lstrip("/")] = content
                    case "pipe":
                        links[name] = PIPE
                    case "link":
                        links[name] = draw(st.sampled_from(TARGETS))
        if not files:
            break
    return files, links


def write(folder: Path, files: Files, links: dict[str, str]) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, content in files.items():
        path = folder / name
        with contextlib.suppress(FileExistsError, NotADirectoryError, IsADirectoryError):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    for name, target in links.items():
        path = folder / name
        with contextlib.suppress(FileExistsError, NotADirectoryError):
            path.parent.mkdir(parents=True, exist_ok=True)
            os.mkfifo(path) if target == PIPE else path.symlink_to(target)


# A warning of numpy would be printed, with a line of a program that the user has not written.
@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize("examples", [FEW, pytest.param(MANY, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", FORMATS)
def test_a_damaged_dataset_is_read_or_refused(tmp_path, name, examples):
    task, make, data = FORMATS[name]
    folder = tmp_path / "set"
    outcomes: set[str] = set()

    @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(damaged(make))
    def look(dataset: tuple[Files, dict[str, str]]) -> None:
        write(folder, *dataset)
        counted[name] = counted.get(name, 0) + 1
        with bounded():
            outcomes.add(read_all(folder, task, **data))

    write(folder, make(), {})
    assert read_all(folder, task, **data) == "read", "the dataset itself is valid"
    gc.collect()
    look()
    assert "read" in outcomes
    assert name == "imagefolder" or "refused" in outcomes


# What has been tried on purpose ---------------------------------------------------------------------------------------


def _with_mask(segmentation: Any, **image: Any) -> Files:
    files = coco(masks=True)
    name = "annotations/instances_train.json"
    content = json.loads(files[name])
    content["annotations"][0]["segmentation"] = segmentation
    content["images"][0] |= image
    return {**files, name: _json(content)}


def _circle(points: int) -> list[float]:
    angles = np.linspace(0, 2 * np.pi, points, endpoint=False)
    return np.stack([30 + 15 * np.cos(angles), 20 + 15 * np.sin(angles)], 1).round(6).reshape(-1).tolist()


HUGE: dict[str, tuple[str, Callable[[], Files], str | None]] = {
    "a polygon of a million points": ("coco instances", lambda: _with_mask([_circle(1_000_000)]), None),
    "points far away": (
        "coco instances",
        lambda: _with_mask([[-1e6, -1e6, 1e6, 1e6, -1e6, 1e6] * 50]),
        "mask-unreadable",
    ),
    "an outline without end": (
        "coco instances",
        lambda: _with_mask([[0, 0, 900, 900, 0, 900] * 90_000]),
        "mask-unreadable",
    ),
    "a hundred thousand polygons": ("coco instances", lambda: _with_mask([[1, 1, 30, 1, 20, 30]] * 100_000), None),
    "runs of 1e12 pixels": (
        "coco instances",
        lambda: _with_mask({"size": [40, 60], "counts": [10**12]}),
        "mask-unreadable",
    ),
    "a mask of 1e12 pixels": (
        "coco instances",
        lambda: _with_mask({"size": [10**6, 10**6], "counts": [10**12]}, width=10**6, height=10**6),
        "mask-unreadable",
    ),
    "an image said to have 1e18 pixels": (
        "coco instances",
        lambda: _with_mask([[1, 1, 30, 1, 20, 30]], width=10**9, height=10**9),
        "mask-unreadable",
    ),
    "brackets within brackets": (
        "coco instances",
        lambda: {
            **coco(),
            "annotations/instances_train.json": b'{"images": [], "annotations": [{"segmentation": ' + b"[" * 500_000,
        },
        "refused",
    ),
    "an image of 1e10 pixels": (
        "yolo",
        lambda: {**yolo(), "images/train/0.jpg": png_of_size(100_000, 100_000)},
        "decompression-bomb",
    ),
    "a line of a million numbers": (
        "yolo",
        lambda: {**yolo(), "labels/train/0.txt": b"0" + b" 0.5" * 1_000_000},
        "box-zero-area",
    ),
    "a class of 1e9": (
        "yolo",
        lambda: {**yolo(), "labels/train/0.txt": b"1000000000 .5 .5 .2 .2\n"},
        "box-unknown-label",
    ),
    "aliases of aliases": (
        "yolo",
        lambda: {
            **yolo(),
            "data.yaml": b"a0: &a0 [x, x, x, x, x, x, x, x, x]\n"
            + b"".join(b"a%d: &a%d [%s]\n" % (n, n, b", ".join([b"*a%d" % (n - 1)] * 9)) for n in range(1, 12))
            + b"train: images/train\nnames: [*a11]\n",
        },
        "refused",
    ),
    "entities of entities": (
        "voc",
        lambda: {
            **voc(),
            "Annotations/0.xml": b'<!DOCTYPE a [<!ENTITY a0 "x">'
            + b"".join(b'<!ENTITY a%d "%s">' % (n, b"&a%d;" % (n - 1) * 10) for n in range(1, 12))
            + b"]><annotation><filename>&a11;</filename></annotation>",
        },
        "unreadable-annotation",
    ),
    "an entity of a file": (
        "voc",
        lambda: {
            **voc(),
            "Annotations/0.xml": b'<!DOCTYPE a [<!ENTITY a SYSTEM "file:///etc/passwd">]><annotation><object><name>&a;'
            b"</name></object></annotation>",
        },
        "unreadable-annotation",
    ),
    "elements within elements": (
        "voc",
        lambda: {**voc(), "Annotations/0.xml": b"<annotation>" + b"<a>" * 300_000},
        "unreadable",
    ),
    "a zero byte in the name of a field": (
        "metadata.jsonl",
        lambda: {
            **metadata(),
            "train/metadata.jsonl": b'{"file_name": "0.png", "label": 1, "more": {"\\u0000": 1}}\n',
        },
        "refused",
    ),
    "numbers of many digits": (
        "metadata.jsonl",
        lambda: {**metadata(), "train/metadata.jsonl": b'{"file_name": "0.png", "label": ' + b"9" * 5000 + b"}\n"},
        "refused",
    ),
}


@pytest.mark.parametrize("what", HUGE)
def test_what_is_huge_costs_little_and_itself_alone(tmp_path, what, monkeypatch):
    """Each is a finding, an error, or read; in seconds, and in less memory than its file claims."""
    name, make, expected = HUGE[what]
    task_name, _, data = FORMATS[name]
    write(tmp_path / "set", make(), {})
    lines: list[str] = []
    gc.collect()
    started = time.process_time()
    with bounded():
        try:
            section = DataConfig(id=str(tmp_path / "set"), **data)
            splits = load_splits(section, get_task(task_name), 0, echo=lines.append)
        except CvHfError:
            found = ["refused"]
        else:
            found = list(splits.findings)
            assert len(splits.train) >= 2
    assert time.process_time() - started < 15
    assert found == [] if expected is None else any(expected in code for code in found)


@pytest.mark.parametrize("name", FORMATS)
def test_pipes_are_never_opened(tmp_path, name):
    """To open a pipe that nobody writes to would wait for ever; archives can bring one."""
    task, make, data = FORMATS[name]
    for file in sorted(make())[:4]:
        files = make()
        del files[file]
        write(tmp_path / "set", files, {file: PIPE})
        with bounded():
            read_all(tmp_path / "set", task, **data)


def test_a_file_that_cannot_be_read_does_not_hide_the_format(tmp_path):
    """/proc/self/mem opens, and fails when read."""
    files = {name: content for name, content in voc().items() if name != "Annotations/0.xml"}
    write(tmp_path / "set", files, {"Annotations/0.xml": "/proc/self/mem"})
    section = DataConfig(id=str(tmp_path / "set"))
    splits = load_splits(section, get_task("object-detection"), 0, echo=lambda line: None)
    assert len(splits.train) >= 2
    assert "path-outside" in splits.findings


LABEL_FILES = {
    "txt": b"cat\ndog\n",
    "json": b'{"0": "cat", "1": "dog"}',
    "yaml": b"0: cat\n1: dog\n",
    "csv": b"name,r,g,b\ncat,1,2,3\ndog,4,5,6\n",
}


@pytest.mark.parametrize("examples", [FEW, pytest.param(MANY, marks=pytest.mark.slow)])
@pytest.mark.parametrize("suffix", LABEL_FILES)
def test_a_damaged_file_of_labels_is_read_or_refused(tmp_path, suffix, examples):
    file = tmp_path / f"labels.{suffix}"

    @st.composite
    def changed(draw: st.DrawFn) -> bytes:
        change = draw(st.sampled_from([_changed_text, _changed_bytes]))
        return change(draw, LABEL_FILES[suffix])

    @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(changed())
    def look(content: bytes) -> None:
        file.write_bytes(content)
        counted[f"labels.{suffix}"] = counted.get(f"labels.{suffix}", 0) + 1
        for read in (lambda: from_recipe(str(file), kind=int), lambda: read_values(str(file))):
            with bounded(), contextlib.suppress(CvHfError):
                read()

    look()
