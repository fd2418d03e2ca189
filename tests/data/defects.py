"""Small clean datasets of every format, and one defect at a time to put into them, with the finding it must give.

Each clean set has ten images of 48x36 pixels, six of train and four of val, and the classes `a` and `b` in each of
them, or by turns where an image has a class.
"""

from __future__ import annotations

import io
import json
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
import PIL.Image

from cv_hf.runs import from_mask

WIDTH, HEIGHT = 48, 36
SPLITS = {"train": 6, "val": 4}
BOXES = ((4, 4, 12, 10), (24, 12, 16, 14))


def picture(seed: int, width: int = WIDTH, height: int = HEIGHT) -> PIL.Image.Image:
    """Blocks of random colours: no two look alike, and copies still do when they are compressed."""
    blocks = np.random.default_rng(seed).integers(0, 256, (8, 9, 3), dtype=np.uint8)
    return PIL.Image.fromarray(blocks).resize((width, height), PIL.Image.Resampling.NEAREST)


def encoded(image: PIL.Image.Image, format: str = "PNG", **options: Any) -> bytes:
    content = io.BytesIO()
    image.save(content, format, **options)
    return content.getvalue()


def photo(number: int, split: str) -> bytes:
    return encoded(picture(number + 100 * list(SPLITS).index(split)))


def put(root: Path, files: dict[str, Any]) -> None:
    """Write files; lists and dicts as JSON."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not isinstance(content, (bytes, str)):
            content = json.dumps(content)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())


def each_image():
    for split, number in SPLITS.items():
        for index in range(number):
            yield split, index


def class_map() -> np.ndarray:
    """0 the ground, 1 where the first box is and 2 where the second is."""
    values = np.zeros((HEIGHT, WIDTH), np.uint8)
    for code, (x, y, w, h) in enumerate(BOXES, 1):
        values[y : y + h, x : x + w] = code
    return values


def class_folders(root: Path) -> None:
    put(root, {f"{split}/{'ab'[index % 2]}/{index}.png": photo(index, split) for split, index in each_image()})


def metadata(root: Path) -> None:
    for split, number in SPLITS.items():
        put(root, {f"{split}/{index}.png": photo(index, split) for index in range(number)})
        lines = [json.dumps({"file_name": f"{index}.png", "label": "ab"[index % 2]}) for index in range(number)]
        put(root, {f"{split}/metadata.jsonl": "\n".join(lines)})


def labels_table(root: Path) -> None:
    for split, number in SPLITS.items():
        write_table(
            root, split, {"image": [photo(index, split) for index in range(number)], "label": [0, 1] * (number // 2)}
        )


def write_table(root: Path, split: str, columns: dict[str, list[Any]], **features: Any) -> None:
    columns = {**columns, "image": [content and {"bytes": content, "path": None} for content in columns["image"]]}
    table = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image(decode=False))
    for name, feature in features.items():
        table = table.cast_column(name, feature)
    root.mkdir(parents=True, exist_ok=True)
    table.to_parquet(root / f"{split}.parquet")


def boxes_table(root: Path) -> None:
    for split, number in SPLITS.items():
        objects = [{"bbox": [list(map(float, box)) for box in BOXES], "category": [0, 1]} for _ in range(number)]
        write_table(root, split, {"image": [photo(index, split) for index in range(number)], "objects": objects})


def coco_content(number: int, segmentation: bool = False) -> dict[str, Any]:
    images, annotations = [], []
    for index in range(number):
        images.append({"id": index, "file_name": f"{index}.png", "width": WIDTH, "height": HEIGHT})
        for category, (x, y, w, h) in enumerate(BOXES, 1):
            more = {"segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]]} if segmentation else {}
            one = {"id": 10 * index + category, "image_id": index, "category_id": category, "bbox": [x, y, w, h]}
            annotations.append({**one, **more})
    return {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}],
    }


def coco(root: Path, segmentation: bool = False) -> None:
    put(root, {f"{split}/{index}.png": photo(index, split) for split, index in each_image()})
    for split, number in SPLITS.items():
        put(root, {f"annotations/instances_{split}.json": coco_content(number, segmentation)})


def coco_masks(root: Path) -> None:
    coco(root, segmentation=True)


def xml(*boxes: tuple[str, Any]) -> str:
    objects = "".join(
        f"<object><name>{name}</name><bndbox>"
        + "".join(f"<{key}>{value}</{key}>" for key, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
        + "</bndbox></object>"
        for name, box in boxes
    )
    size = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height><depth>3</depth></size>"
    return f"<annotation>{size}{objects}</annotation>"


CORNERS = tuple((x, y, x + w, y + h) for x, y, w, h in BOXES)
XML = (("a", CORNERS[0]), ("b", CORNERS[1]))


def voc(root: Path) -> None:
    for split, index in each_image():
        put(root, {f"JPEGImages/{split}{index}.png": photo(index, split), f"Annotations/{split}{index}.xml": xml(*XML)})
    for split, number in SPLITS.items():
        put(root, {f"ImageSets/Main/{split}.txt": "".join(f"{split}{index}\n" for index in range(number))})


def line(category: int, box: Any) -> str:
    x, y, w, h = box
    return f"{category} {(x + w / 2) / WIDTH} {(y + h / 2) / HEIGHT} {w / WIDTH} {h / HEIGHT}\n"


LINES = line(0, BOXES[0]) + line(1, BOXES[1])


def yolo(root: Path) -> None:
    for split, index in each_image():
        put(root, {f"images/{split}/{index}.png": photo(index, split), f"labels/{split}/{index}.txt": LINES})
    put(root, {"data.yaml": "train: images/train\nval: images/val\nnames: [a, b]\n"})


def masks(root: Path) -> None:
    for split, index in each_image():
        put(root, {f"images/{split}/{index}.png": photo(index, split)})
        put(root, {f"masks/{split}/{index}.png": encoded(PIL.Image.fromarray(class_map()))})
    put(root, {"id2label.json": {"0": "background", "1": "a", "2": "b"}})


def segments(ids: np.ndarray) -> bytes:
    return encoded(PIL.Image.fromarray(np.stack([ids % 256, ids // 256, ids * 0], -1).astype(np.uint8)))


SEGMENTS = np.array([1, 300, 600])[class_map()]


def panoptic(root: Path) -> None:
    for split, number in SPLITS.items():
        images, annotations = [], []
        for index in range(number):
            put(root, {f"images/{split}/{index}.png": photo(index, split)})
            put(root, {f"panoptic/{split}/{index}.png": segments(SEGMENTS)})
            images.append({"id": index, "file_name": f"{index}.png", "width": WIDTH, "height": HEIGHT})
            info = [
                {"id": 1, "category_id": 3, "iscrowd": 0},
                {"id": 300, "category_id": 1, "iscrowd": 0},
                {"id": 600, "category_id": 2, "iscrowd": 0},
            ]
            annotations.append({"image_id": index, "file_name": f"{index}.png", "segments_info": info})
        categories = [{"id": 1, "name": "a", "isthing": 1}, {"id": 2, "name": "b", "isthing": 1}]
        categories.append({"id": 3, "name": "ground", "isthing": 0})
        put(root, {f"panoptic/{split}.json": {"images": images, "annotations": annotations, "categories": categories}})


class Format(NamedTuple):
    """A clean set: how it is written, its task, and the images of train and val by `{}` for their number."""

    write: Callable[[Path], None]
    task: str
    train: str
    val: str


FORMATS = {
    "imagefolder": Format(class_folders, "image-classification", "train/a/{}.png", "val/a/{}.png"),
    "metadata": Format(metadata, "image-classification", "train/{}.png", "val/{}.png"),
    "labels": Format(labels_table, "image-classification", "", ""),
    "boxes": Format(boxes_table, "object-detection", "", ""),
    "coco": Format(coco, "object-detection", "train/{}.png", "val/{}.png"),
    "instances": Format(coco_masks, "instance-segmentation", "train/{}.png", "val/{}.png"),
    "voc": Format(voc, "object-detection", "JPEGImages/train{}.png", "JPEGImages/val{}.png"),
    "yolo": Format(yolo, "object-detection", "images/train/{}.png", "images/val/{}.png"),
    "masks": Format(masks, "semantic-segmentation", "images/train/{}.png", "images/val/{}.png"),
    "panoptic": Format(panoptic, "panoptic-segmentation", "images/train/{}.png", "images/val/{}.png"),
}


class Defect(NamedTuple):
    """One defect.

    Attributes:
        format: a key of `FORMATS`.
        name: in words.
        make: puts it into the clean set in a folder.
        found: {code: names}, all that may be found.
        data: keys of the data section.
    """

    format: str
    name: str
    make: Callable[[Path], None]
    found: dict[str, list[str]]
    data: dict[str, Any] = {}


def write_files(**files: Any) -> Callable[[Path], None]:
    return lambda root: put(root, files)


def writes(name: str, content: Any) -> Callable[[Path], None]:
    return lambda root: put(root, {name: content})


def removes(*names: str) -> Callable[[Path], None]:
    def make(root: Path) -> None:
        for name in names:
            (root / name).unlink()

    return make


def replaces(old: str, new: str, content: bytes) -> Callable[[Path], None]:
    def make(root: Path) -> None:
        (root / old).unlink()
        put(root, {new: content})

    return make


def changes(name: str, change: Callable[[Any], Any]) -> Callable[[Path], None]:
    """Changes a JSON file: `change` does so in place."""

    def make(root: Path) -> None:
        content = json.loads((root / name).read_text())
        change(content)
        put(root, {name: content})

    return make


def copies(source: str, target: str) -> Callable[[Path], None]:
    return lambda root: put(root, {target: (root / source).read_bytes()})


def bomb() -> bytes:
    """A PNG that says it has 400 million pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def turned(orientation: int) -> bytes:
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    return encoded(picture(0), exif=exif)


def of_images(format: str) -> list[Defect]:
    """The defects of images, in a format of files."""
    train, val = FORMATS[format].train, FORMATS[format].val
    first, other = train.format(0), train.format(2)
    whole = photo(0, "train")
    compressed = encoded(picture(100), "JPEG", quality=70)
    return [
        Defect(format, "truncated", writes(first, whole[: len(whole) // 2]), {"truncated-image": [first]}),
        Defect(format, "zero bytes", writes(first, b""), {"empty-image": [first]}),
        Defect(format, "no image", writes(first, b"<html>404</html>" * 20), {"unreadable-image": [first]}),
        Defect(format, "bomb", writes(first, bomb()), {"decompression-bomb": [first]}),
        Defect(format, "JPEG called PNG", writes(first, encoded(picture(0), "JPEG")), {"suffix-mismatch": [first]}),
        Defect(format, "upside down by EXIF", writes(first, turned(3)), {"exif-rotated": [first]}),
        Defect(format, "copy in a split", copies(first, other), {"duplicate-image": [other]}),
        Defect(format, "copy in two splits", copies(first, val.format(0)), {"duplicate-across-splits": [first]}),
        Defect(
            format,
            "look-alike in two splits",
            writes(first, compressed),
            {"near-duplicate-across-splits": [first], "suffix-mismatch": [first]},
        ),
    ]


def of_kinds() -> list[Defect]:
    """Kinds of images, among class folders."""
    old = "train/a/0.png"
    alpha = picture(0).convert("RGBA")
    alpha.putalpha(PIL.Image.fromarray(class_map() * 100))
    deep = PIL.Image.fromarray(np.asarray(picture(0).convert("L")).astype(np.uint16) * 256)
    fractions = PIL.Image.fromarray(np.asarray(picture(0).convert("L")).astype(np.float32) / 255)
    frames = encoded(picture(0), save_all=True, append_images=[picture(1)])
    large, small = encoded(picture(0, 400, 300)), encoded(picture(0, 9, 8))
    noisy = np.clip(np.asarray(picture(0)).astype(int) + np.random.default_rng(0).integers(-6, 7, (36, 48, 3)), 0, 255)
    return [
        Defect("imagefolder", *rest)
        for rest in (
            (
                "CMYK",
                replaces(old, "train/a/c.jpg", encoded(picture(0).convert("CMYK"), "JPEG")),
                {"cmyk-image": ["train/a/c.jpg"]},
            ),
            ("palette", writes(old, encoded(picture(0).convert("P"))), {"palette-image": [old]}),
            ("alpha", writes(old, encoded(alpha)), {"alpha-image": [old]}),
            ("16 bits", writes(old, encoded(deep)), {"sixteen-bit": [old]}),
            (
                "fractions",
                replaces(old, "train/a/f.tif", encoded(fractions, "TIFF")),
                {"float-image": ["train/a/f.tif"]},
            ),
            ("two frames", writes(old, frames), {"first-frame": [old]}),
            ("lying by EXIF", writes(old, turned(6)), {"exif-rotated": [old]}),
            ("much larger", writes(old, large), {"image-size-outlier": [old]}),
            ("much smaller", writes(old, small), {"image-size-outlier": [old]}),
            (
                "look-alike in a split",
                writes("train/a/9.png", encoded(PIL.Image.fromarray(noisy.astype(np.uint8)))),
                {"near-duplicate": ["train/a/9.png"]},
            ),
        )
    ]


def of_classes() -> list[Defect]:
    """What is wrong with labels and files of classification."""

    def linked(root: Path) -> None:
        put(root.parent, {"outside.png": encoded(picture(77))})
        (root / "train/a/link.png").symlink_to(root.parent / "outside.png")

    def one_class(root: Path) -> None:
        for split in SPLITS:
            shutil.rmtree(root / split / "b")

    def many(root: Path) -> None:
        put(root, {f"train/a/{number}.png": encoded(picture(number + 300)) for number in range(10, 38)})

    def line_of(**row: Any) -> Callable[[Path], None]:
        def make(root: Path) -> None:
            file = root / "train/metadata.jsonl"
            file.write_text(file.read_text() + "\n" + json.dumps(row))
            put(root, {"train/9.png": encoded(picture(99))})

        return make

    def table(images: Any = None, labels: Any = None) -> Callable[[Path], None]:
        def make(root: Path) -> None:
            columns = {"image": [photo(index, "train") for index in range(6)], "label": [0, 1] * 3}
            write_table(root, "train", {"image": images or columns["image"], "label": labels or columns["label"]})

        return make

    photos = [photo(index, "train") for index in range(6)]
    extra = {
        f"{split}/{name}/x.png": encoded(picture(400 + 10 * place + ord(name[0])))
        for place, split in enumerate(SPLITS)
        for name in ("A",)
    }
    return [
        Defect(
            "imagefolder",
            "text among images",
            writes("train/a/notes.txt", "x"),
            {"not-an-image": ["train/a/notes.txt"]},
        ),
        Defect(
            "imagefolder",
            "image in no class",
            writes("train/x.png", encoded(picture(9))),
            {"missing-label": ["train/x.png"]},
        ),
        Defect(
            "imagefolder",
            "HEIC with the suffix of a JPEG",
            writes("train/a/x.jpg", b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic"),
            {"photo-format": ["train/a/x.jpg"]},
        ),
        Defect(
            "imagefolder",
            "folder that is no split",
            writes("Validierung/a/0.png", encoded(picture(9))),
            {"unused-folder": ["Validierung"]},
        ),
        Defect("imagefolder", "no class but one", one_class, {"only-one-class": ["a"]}),
        Defect("imagefolder", "link out of the folder", linked, {"path-outside": ["train/a/link.png"]}),
        Defect(
            "imagefolder",
            "copy in another class",
            copies("train/a/0.png", "train/b/1.png"),
            {"conflicting-labels": ["train/a/0.png", "train/b/1.png"]},
        ),
        Defect(
            "imagefolder",
            "no such class in val",
            removes("val/b/1.png", "val/b/3.png"),
            {"class-missing-in-split": ["val: b"]},
        ),
        Defect("imagefolder", "class without images", lambda root: (root / "train/c").mkdir(), {"unused-label": ["c"]}),
        Defect(
            "imagefolder",
            "class of val alone",
            writes("val/c/0.png", encoded(picture(9))),
            {"class-without-samples": ["c"]},
        ),
        Defect("imagefolder", "two spellings", lambda root: put(root, extra), {"similar-labels": ["a"]}),
        Defect("imagefolder", "imbalance", many, {"class-imbalance": ["b"]}),
        Defect(
            "metadata", "no such file", line_of(file_name="gone.png", label="a"), {"missing-image": ["train/gone.png"]}
        ),
        Defect("metadata", "no label", line_of(file_name="9.png", label=None), {"missing-label": ["train/9.png"]}),
        Defect(
            "metadata",
            "unknown label",
            line_of(file_name="9.png", label="z"),
            {"unknown-label": ["train/9.png"]},
            {"labels": ["a", "b"]},
        ),
        Defect(
            "metadata", "path outside", line_of(file_name="../../x.png", label="a"), {"path-outside": ["../../x.png"]}
        ),
        Defect(
            "labels", "truncated in a table", table([photos[0][:60], *photos[1:]]), {"truncated-image": ["train[0]"]}
        ),
        Defect("labels", "empty cell", table([None, *photos[1:]]), {"missing-image": ["train[0]"]}),
        Defect("labels", "row twice", table([photos[2], *photos[1:]]), {"duplicate-image": ["train[2]"]}),
        Defect("labels", "empty label", table(labels=[None, 1, 0, 1, 0, 1]), {"missing-label": ["train[0]"]}),
        Defect(
            "labels",
            "gap in the ids",
            table(labels=[4, 1, 0, 1, 0, 1]),
            {"gapped-ids": ["2 to 3"], "class-missing-in-split": ["val: 4"]},
        ),
    ]


def of_boxes() -> list[Defect]:
    """Boxes that are none, in the formats that hold boxes."""
    file = "annotations/instances_train.json"

    def box(*edges: Any, **more: Any) -> Callable[[Path], None]:
        one = {"id": 7, "image_id": 0, "category_id": 1, "bbox": list(edges), **more}
        return changes(file, lambda content: content["annotations"].append(one))

    def set_image(**values: Any) -> Callable[[Path], None]:
        return changes(file, lambda content: content["images"][0].update(values))

    def add(key: str, *values: Any) -> Callable[[Path], None]:
        return changes(file, lambda content: content[key].extend(values))

    def both(change: Callable[[Any], Any]) -> Callable[[Path], None]:
        def make(root: Path) -> None:
            for split in SPLITS:
                changes(f"annotations/instances_{split}.json", change)(root)

        return make

    def renumber(content: Any) -> None:
        content["categories"][1]["id"] = 5
        for annotation in content["annotations"]:
            annotation["category_id"] = {1: 1, 2: 5}[annotation["category_id"]]

    def unlisted(content: Any) -> None:
        content["images"].pop(0)

    x, y, w, h = BOXES[0]
    third = "train/0.png box 2"
    nine = "JPEGImages/train0.png"
    shown = "Annotations/train0.xml"
    text = "labels/train/0.txt"
    first = "images/train/0.png box 2"
    return [
        Defect("coco", "no width", box(9, 9, 0, 5), {"box-zero-area": [third]}),
        Defect("coco", "inverted", box(20, 20, -6, 5), {"box-inverted": [third]}),
        Defect("coco", "outside", box(60, 5, 9, 9), {"box-outside": [third]}),
        Defect("coco", "NaN", box(float("nan"), 5, 9, 9), {"box-not-finite": [third]}),
        Defect("coco", "infinite", box(5, 5, float("inf"), 9), {"box-not-finite": [third]}),
        Defect("coco", "huge", box(0, 0, 1e9, 1e9), {"box-huge": [third]}),
        Defect("coco", "reaching out", box(40, 5, 20, 9), {"box-clipped": [third]}),
        Defect("coco", "twice", box(x, y, w, h), {"box-duplicate": [third]}),
        Defect("coco", "all of the image", box(0, 0, WIDTH, HEIGHT), {"box-covers-image": [third]}),
        Defect("coco", "three numbers", box(1, 2, 3), {"unreadable-annotation": [f"{file}: annotation 7"]}),
        Defect(
            "coco", "unknown class", box(1, 2, 3, 4, category_id=9), {"box-unknown-label": [f"{file}: annotation 7"]}
        ),
        Defect("coco", "of no image", box(1, 2, 3, 4, image_id=99), {"orphan-annotation": [f"{file}: annotation 7"]}),
        Defect(
            "coco",
            "images not listed",
            changes(file, unlisted),
            {"orphan-annotation": [f"{file}: annotation 1", f"{file}: annotation 2"]},
        ),
        Defect("coco", "image gone", removes("train/0.png"), {"missing-image": ["train/0.png"]}),
        Defect("coco", "path outside", set_image(file_name="../../0.png"), {"path-outside": ["../../0.png"]}),
        Defect("coco", "another size", set_image(width=20), {"size-mismatch": ["train/0.png"]}),
        Defect(
            "coco",
            "boxes of the pixels as stored",
            writes("train/0.png", turned(6)),
            {"exif-rotated": ["train/0.png"], "box-turned": ["train/0.png box 0", "train/0.png box 1"]},
        ),
        Defect(
            "coco",
            "listed twice",
            add("images", {"id": 50, "file_name": "0.png"}),
            {"duplicate-image": ["train[6] train/0.png"]},
        ),
        Defect("coco", "gap in the ids", both(renumber), {"gapped-ids": ["2 to 4"]}),
        Defect(
            "coco",
            "unused class",
            both(lambda content: content["categories"].append({"id": 3, "name": "c"})),
            {"unused-label": ["c"]},
        ),
        Defect("voc", "no width", writes(shown, xml(*XML, ("a", (9, 9, 9, 14)))), {"box-zero-area": [f"{nine} box 2"]}),
        Defect("voc", "inverted", writes(shown, xml(*XML, ("a", (20, 9, 9, 14)))), {"box-inverted": [f"{nine} box 2"]}),
        Defect("voc", "outside", writes(shown, xml(*XML, ("a", (90, 9, 99, 14)))), {"box-outside": [f"{nine} box 2"]}),
        Defect(
            "voc", "NaN", writes(shown, xml(*XML, ("a", ("nan", 9, 99, 14)))), {"box-not-finite": [f"{nine} box 2"]}
        ),
        Defect("voc", "twice", writes(shown, xml(*XML, XML[0])), {"box-duplicate": [f"{nine} box 2"]}),
        Defect(
            "voc",
            "no number",
            writes(shown, xml(*XML, ("a", ("x", 9, 99, 14)))),
            {"unreadable-annotation": [f"{shown}: object 2"]},
        ),
        Defect("voc", "no XML", writes(shown, "<annotation>"), {"unreadable-annotation": [shown]}),
        Defect("voc", "image gone", removes(nine), {"missing-image": [shown]}),
        Defect("voc", "annotation gone", removes(shown), {"missing-label": ["train: train0"]}),
        Defect(
            "voc",
            "in no list",
            lambda root: put(root, {"JPEGImages/x.png": photo(50, "train"), "Annotations/x.xml": xml(*XML)}),
            {"unlisted": ["Annotations/x.xml"]},
        ),
        Defect("yolo", "no width", writes(text, LINES + "0 0.5 0.5 0 0.2\n"), {"box-zero-area": [first]}),
        Defect("yolo", "inverted", writes(text, LINES + "0 0.5 0.5 -0.1 0.2\n"), {"box-inverted": [first]}),
        Defect("yolo", "outside", writes(text, LINES + "0 1.5 0.5 0.1 0.2\n"), {"box-outside": [first]}),
        Defect("yolo", "reaching out", writes(text, LINES + "0 0.95 0.5 0.3 0.2\n"), {"box-clipped": [first]}),
        Defect("yolo", "NaN", writes(text, LINES + "0 nan 0.5 0.1 0.2\n"), {"box-not-finite": [first]}),
        Defect("yolo", "pixels", writes(text, LINES + "0 20 20 30 20\n"), {"box-huge": [first]}),
        Defect("yolo", "twice", writes(text, LINES + line(0, BOXES[0])), {"box-duplicate": [first]}),
        Defect("yolo", "unknown class", writes(text, LINES + "7 0.5 0.5 0.1 0.2\n"), {"box-unknown-label": [first]}),
        Defect(
            "yolo",
            "no number",
            writes(text, LINES + "a 0.5 0.5 0.1 0.2\n"),
            {"unreadable-annotation": [f"{text}: line 3"]},
        ),
        Defect(
            "yolo",
            "polygon of two points and a half",
            writes(text, LINES + "0 .1 .1 .5 .5 .9\n"),
            {"unreadable-annotation": [f"{text}: line 3"]},
        ),
        Defect(
            "yolo",
            "labels of no image",
            writes("labels/train/x.txt", LINES),
            {"orphan-annotation": ["labels/train/x.txt"]},
        ),
        Defect(
            "yolo",
            "split gone",
            writes("data.yaml", "train: images/train\nval: images/val\ntest: images/test\nnames: [a, b]\n"),
            {"missing-split": ["test: images/test"]},
        ),
        Defect(
            "yolo",
            "gap in the names",
            lambda root: put(
                root,
                {
                    "data.yaml": "train: images/train\nval: images/val\nnames: {0: a, 1: b, 4: c}\n",
                    text: LINES + line(4, BOXES[0]),
                },
            ),
            {"gapped-ids": ["2 to 3"], "class-missing-in-split": ["val: c"]},
        ),
        *of_tables(),
    ]


def of_tables() -> list[Defect]:
    """Boxes in a table."""
    good = [list(map(float, box)) for box in BOXES]

    def objects(bbox: Any, category: Any) -> Callable[[Path], None]:
        def make(root: Path) -> None:
            rows = [{"bbox": bbox, "category": category}, *({"bbox": good, "category": [0, 1]} for _ in range(5))]
            write_table(root, "train", {"image": [photo(index, "train") for index in range(6)], "objects": rows})

        return make

    def ambiguous(root: Path) -> None:
        for split, number in SPLITS.items():
            rows = [{"bbox": [[2.0, 2.0, 20.0, 20.0]], "category": [0]}] * number
            write_table(root, split, {"image": [photo(index, split) for index in range(number)], "objects": rows})

    known = {"box_format": "xywh"}
    return [
        Defect(
            "boxes",
            "NaN",
            objects([*good, [float("nan"), 1, 2, 3]], [0, 1, 0]),
            {"box-not-finite": ["train[0] box 2"]},
            known,
        ),
        Defect(
            "boxes",
            "three numbers",
            objects([*good, [1.0, 2, 3]], [0, 1, 0]),
            {"box-not-finite": ["train[0] box 2"]},
            known,
        ),
        Defect(
            "boxes",
            "no class",
            objects([*good, good[0]], [0, 1, None]),
            {"box-without-label": ["train[0] box 2"]},
            known,
        ),
        Defect("boxes", "unequal lists", objects(good, [0]), {"unreadable-annotation": ["train[0]"]}, known),
        Defect(
            "boxes", "huge", objects([*good, [0.0, 0, 5000, 9]], [0, 1, 0]), {"box-huge": ["train[0] box 2"]}, known
        ),
        Defect(
            "boxes",
            "reaching out",
            objects([*good, [40.0, 5, 20, 9]], [0, 1, 0]),
            {"box-clipped": ["train[0] box 2"]},
            known,
        ),
        Defect("boxes", "ambiguous format", ambiguous, {"box-format-ambiguous": ["train[0] box 0"]}),
    ]


def of_masks() -> list[Defect]:
    """Masks of objects, of classes and of segments."""
    file = "annotations/instances_train.json"
    name = f"{file}: annotation 7"

    def mask(segmentation: Any) -> Callable[[Path], None]:
        one = {"id": 7, "image_id": 0, "category_id": 1, "bbox": [1, 1, 5, 5], "segmentation": segmentation}
        one = {key: value for key, value in one.items() if value is not None}
        return changes(file, lambda content: content["annotations"].append(one))

    def twice(root: Path) -> None:
        changes(file, lambda content: content["annotations"].append({**content["annotations"][0], "id": 7}))(root)

    other = from_mask(np.ones((HEIGHT + 2, WIDTH), np.uint8))
    image, png = "images/train/0.png", "masks/train/0.png"
    values = class_map()

    def values_of(array: np.ndarray, format: str = "PNG") -> bytes:
        return encoded(PIL.Image.fromarray(array), format)

    stray = values.copy()
    stray[:3] = 9
    info, place = "panoptic/train.json", "panoptic/train/0.png"
    first = f"{info}: image 0"

    def segment(change: Callable[[Any], Any]) -> Callable[[Path], None]:
        return changes(info, lambda content: change(content["annotations"][0]["segments_info"]))

    unlisted = SEGMENTS.copy()
    unlisted[:3] = 77
    of_none = {"image_id": 99, "file_name": "0.png", "segments_info": []}
    return [
        Defect("instances", "two points", mask([[1, 1, 5, 5]]), {"mask-too-few-points": [name]}),
        Defect("instances", "RLE of another size", mask(other), {"mask-size-mismatch": [name]}),
        Defect(
            "instances",
            "RLE that ends early",
            mask({"size": [HEIGHT, WIDTH], "counts": [5, 6]}),
            {"mask-unreadable": [name]},
        ),
        Defect("instances", "odd coordinates", mask([[1, 1, 5, 5, 9]]), {"mask-unreadable": [name]}),
        Defect("instances", "outside", mask([[90, 90, 99, 90, 99, 99]]), {"mask-empty": [name]}),
        Defect("instances", "no mask", mask(None), {"object-without-mask": [name]}),
        Defect("instances", "twice", twice, {"box-duplicate": ["train/0.png box 2"]}),
        Defect(
            "instances",
            "masks of the pixels as stored",
            writes("train/0.png", turned(6)),
            {"exif-rotated": ["train/0.png"], "mask-turned": ["train/0.png object 0", "train/0.png object 1"]},
        ),
        *(
            Defect(
                format,
                "of the pixels as stored",
                writes(image, turned(6)),
                {"exif-rotated": [image], "mask-turned": [image]},
            )
            for format in ("masks", "panoptic")
        ),
        Defect("masks", "another size", writes(png, values_of(values[:-2])), {"mask-size-mismatch": [image]}),
        Defect("masks", "unknown value", writes(png, values_of(stray)), {"mask-unknown-value": [image]}),
        Defect("masks", "JPEG", replaces(png, "masks/train/0.jpg", values_of(values, "JPEG")), {"lossy-mask": [image]}),
        Defect("masks", "no mask", removes(png), {"missing-mask": [image]}),
        Defect("masks", "image gone", removes(image), {"orphan-mask": [png]}),
        Defect("masks", "truncated mask", writes(png, values_of(values)[:60]), {"unreadable-mask": [image]}),
        Defect("masks", "all ignored", writes(png, values_of(values * 0 + 255)), {"mask-void": [image]}),
        Defect("masks", "all background", writes(png, values_of(values * 0)), {"mask-background-only": [image]}),
        Defect("panoptic", "segment not listed", writes(place, segments(unlisted)), {"unlisted-segments": [image]}),
        Defect(
            "panoptic",
            "segment without pixels",
            segment(lambda each: each.append({"id": 5, "category_id": 1})),
            {"segment-without-pixels": [f"{image} segment 5"]},
        ),
        Defect(
            "panoptic",
            "id twice",
            segment(lambda each: each.append({"id": 1, "category_id": 1})),
            {"segment-unreadable": [f"{image} segment 1"]},
        ),
        Defect(
            "panoptic",
            "no id",
            segment(lambda each: each.append({"category_id": 1})),
            {"segment-unreadable": [f"{first} segment 3"]},
        ),
        Defect(
            "panoptic",
            "unknown class",
            segment(lambda each: each[1].update(category_id=9)),
            {"segment-unknown-label": [f"{image} segment 300"]},
        ),
        Defect(
            "panoptic",
            "no class",
            segment(lambda each: each[1].pop("category_id")),
            {"segment-without-label": [f"{image} segment 300"]},
        ),
        Defect("panoptic", "another size", writes(place, segments(SEGMENTS[:-2])), {"mask-size-mismatch": [image]}),
        Defect("panoptic", "no PNG", removes(place), {"missing-mask": [place]}),
        Defect("panoptic", "truncated PNG", writes(place, segments(SEGMENTS)[:60]), {"unreadable-mask": [image]}),
        Defect(
            "panoptic",
            "of no image",
            changes(info, lambda content: content["annotations"].append(of_none)),
            {"orphan-annotation": [f"{info}: annotation 6"]},
        ),
        Defect(
            "panoptic",
            "without annotation",
            changes(info, lambda content: content["annotations"].pop(0)),
            {"unannotated-image": ["0.png"]},
        ),
        Defect(
            "panoptic",
            "all void",
            lambda root: (segment(lambda each: each.clear())(root), put(root, {place: segments(SEGMENTS * 0)})),
            {"mask-void": [image]},
        ),
    ]


DEFECTS = [
    # Those of `metadata` and `instances` are read as those of `imagefolder` and `coco`.
    *(defect for format in ("imagefolder", "coco", "voc", "yolo", "masks", "panoptic") for defect in of_images(format)),
    *of_kinds(),
    *of_classes(),
    *of_boxes(),
    *of_masks(),
]
