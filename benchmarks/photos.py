"""Pictures for benchmarks: JPEGs of 500 x 375 cut from photographs of scikit-image, with the truth of every task."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from faster_coco_eval.core import mask as coco_mask
from PIL import Image

from cv_hf.data.sample import sample_photos

NAMES = ("disc", "bar", "blob", "stain")


def photos(
    folder: Path,
    *,
    train: int = 160,
    validation: int = 48,
    size: tuple[int, int] = (375, 500),
    objects: int = 8,
    classes: int = 4,
    grain: float = 0.0,
) -> Path:
    """Write the pictures, unless they are there; return the folder.

    On each picture lie about `objects` ellipses that show another photograph. The files are

        classes/SPLIT/CLASS/0000.jpg     an image folder
        images/SPLIT/0000.jpg            the same pictures
        annotations/SPLIT.json           COCO instances with masks as RLE
        masks/SPLIT/0000.png             class ids: 0 the background, then the categories
        instances/SPLIT/0000.png         class ids in the red, object numbers in the green channel

    Args:
        folder: where they are written.
        train, validation: number of pictures.
        size: (height, width).
        objects: per picture, on average; from half to one and a half times as many.
        classes: number of categories.
        grain: standard deviation of a sensor's noise, of 255; without any, enlarged photographs compress too well.
    """
    if (folder / "annotations").is_dir():
        return folder
    sources = sample_photos()
    names = [NAMES[index % len(NAMES)] + (str(index) if index >= len(NAMES) else "") for index in range(classes)]
    categories = [{"id": number, "name": name} for number, name in enumerate(names, 1)]
    (folder / "id2label.json").parent.mkdir(parents=True, exist_ok=True)
    (folder / "id2label.json").write_text(json.dumps(dict(enumerate(["background", *names]))))
    contents = {}
    for part, (split, count) in enumerate({"train": train, "validation": validation}.items()):
        for kind in ("images", "masks", "instances"):
            (folder / kind / split).mkdir(parents=True, exist_ok=True)
        content: dict[str, Any] = {"images": [], "annotations": [], "categories": categories}
        for number in range(count):
            rng = np.random.default_rng([part, number])
            pixels, numbered, kinds = _picture(rng, sources, size, objects, classes)
            if grain:
                noise = rng.normal(0, grain, (*size, 1)).astype(np.int16)
                pixels = np.clip(pixels + noise, 0, 255).astype(np.uint8)
            file = f"{number:04d}.jpg"
            Image.fromarray(pixels).save(folder / "images" / split / file, quality=90)
            label = folder / "classes" / split / names[number % classes]
            label.mkdir(parents=True, exist_ok=True)
            if not (label / file).exists():
                os.link(folder / "images" / split / file, label / file)
            both = np.stack([np.concatenate([[0], kinds])[numbered], numbered, 0 * numbered], -1).astype(np.uint8)
            Image.fromarray(both[..., 0]).save(folder / "masks" / split / f"{number:04d}.png")
            Image.fromarray(both).save(folder / "instances" / split / f"{number:04d}.png")
            content["images"].append({"id": number, "file_name": file, "height": size[0], "width": size[1]})
            content["annotations"] += [
                {"id": len(content["annotations"]) + index, "image_id": number, "iscrowd": 0, **one}
                for index, one in enumerate(_annotations(numbered, kinds), 1)
            ]
        contents[split] = content
    (folder / "annotations").mkdir()
    for split, content in contents.items():
        (folder / "annotations" / f"{split}.json").write_text(json.dumps(content))
    return folder


def _picture(
    rng: np.random.Generator, sources: list[np.ndarray], size: tuple[int, int], objects: int, classes: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pixels (H, W, 3), the number of the object that each pixel shows (H, W), and the category of each, from 1."""
    height, width = size
    ground, others = (_crop(rng, sources[index], size) for index in rng.permutation(len(sources))[:2])
    pixels, numbered = ground.copy(), np.zeros(size, np.int64)
    y, x = np.mgrid[:height, :width]
    kinds = []
    for _ in range(int(rng.integers(objects // 2, objects + objects // 2 + 1))):
        row, column = rng.random(2) * size
        radii = (0.04 + 0.16 * rng.random(2)) * min(size)
        inside = ((y - row) / radii[0]) ** 2 + ((x - column) / radii[1]) ** 2 < 1
        kinds.append(int(rng.integers(classes)) + 1)
        pixels[inside], numbered[inside] = others[inside], len(kinds)
    return pixels, numbered, np.array(kinds, np.int64)


def _crop(rng: np.random.Generator, source: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A part of a photograph, enlarged by no more than it takes to fill the size."""
    height, width = source.shape[:2]
    share = (0.7 + 0.3 * rng.random()) * min(height / size[0], width / size[1])
    rows, columns = int(size[0] * share), int(size[1] * share)
    top, left = int(rng.integers(height - rows + 1)), int(rng.integers(width - columns + 1))
    part = Image.fromarray(source[top : top + rows, left : left + columns])
    return np.asarray(part.resize((size[1], size[0]), Image.Resampling.BICUBIC))


def _annotations(numbered: np.ndarray, kinds: np.ndarray) -> list[dict[str, Any]]:
    found = []
    for number, kind in enumerate(kinds.tolist(), 1):
        rle = coco_mask.encode(np.asfortranarray(numbered == number, np.uint8))
        if area := int(coco_mask.area(rle)):
            segmentation = {"size": list(rle["size"]), "counts": rle["counts"].decode()}
            box = [float(edge) for edge in coco_mask.toBbox(rle)]
            found.append({"category_id": kind, "bbox": box, "area": area, "segmentation": segmentation})
    return found
