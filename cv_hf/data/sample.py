"""The embedded sample: real photographs and scans that come inside packages, written as ordinary image files."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cv_hf.errors import DataError

# Those of the photographs inside scikit-image that its documentation gives as CC0, and that are all texture.
_PHOTOS = ("brick", "chelsea", "coffee", "grass", "gravel")
_NAMES = {0: "background", **{digit + 1: str(digit) for digit in range(10)}}
_LEAST_VISIBLE = 0.4
_MISSING = "the {} are not installed. Install them: pip install 'cv_hf[demo]'"


def digits(folder: Path, seed: int = 0) -> Path:
    """Write scikit-learn's 1,797 handwritten digits as an image folder, unless it is there; return it.

    70 % train, 10 % validation, 20 % test, stratified; 8x8 grey PNG files, one folder per digit. They are the test
    part of https://archive.ics.uci.edu/dataset/80 (CC BY 4.0), written by 13 people.

    Raises:
        DataError: scikit-learn is not installed.
    """
    if folder.is_dir():
        return folder
    scans, classes = _scans()
    images = np.round(scans * 255).astype(np.uint8)
    with _complete_or_absent(folder) as partial:
        for split, chosen in _split(classes, seed).items():
            for index in chosen:
                target = partial / split / str(classes[index])
                target.mkdir(parents=True, exist_ok=True)
                Image.fromarray(images[index]).save(target / f"{index:04d}.png")
    return folder


def scattered_digits(
    folder: Path, seed: int = 0, *, train: int = 400, validation: int = 50, test: int = 100, read: bool = True
) -> Path:
    """Write photographs strewn with handwritten digits, and the exact truth of them, unless it is there; return it.

    Scans of scikit-learn's digits (see `digits`; every split has its own) lie, 16 to 40 pixels high, on parts of five
    photographs of scikit-image (CC0; the same five in every split). Up to 12 per image, and none on every tenth; a
    later digit hides what is below it, of which at least 40 % stay visible. The truth is that of the visible pixels:

        images/SPLIT/0000.png        RGB, 128 to 192 pixels high and 160 to 224 wide
        annotations/SPLIT.json       COCO instances, categories 1 to 10, masks as uncompressed RLE
        masks/SPLIT/0000.png         class ids: 0 background, 1 to 10 the digits 0 to 9 (id2label.json)
        panoptic/SPLIT/0000.png      COCO panoptic, with panoptic/SPLIT.json; the background is stuff, category 0

    Args:
        folder: where it is written.
        seed: the same seed and numbers give the same files.
        train, validation, test: number of images.
        read: False: all digits are of one class, `digit`, to be found and told apart, but not read.

    Raises:
        DataError: scikit-learn or scikit-image is not installed.
    """
    if folder.is_dir():
        return folder
    scans, classes = _scans()
    names = _NAMES if read else {0: "background", 1: "digit"}
    photos = sample_photos()
    wanted = {"train": train, "validation": validation, "test": test}
    image_id = 0
    with _complete_or_absent(folder) as partial:
        (partial / "annotations").mkdir()
        (partial / "id2label.json").write_text(json.dumps(names, indent=2) + "\n", encoding="utf-8")
        for part, (split, chosen) in enumerate(_split(classes, seed).items()):
            for kind in ("images", "masks", "panoptic"):
                (partial / kind / split).mkdir(parents=True)
            instances, panoptic = _coco(names, things_only=True), _coco(names, things_only=False)
            for number in range(wanted[split]):
                rng = np.random.default_rng([seed, part, number])
                count = 0 if number % 10 == 9 else int(rng.integers(1, 13))
                image_id += 1
                pixels, objects, categories = _scatter(rng, photos, scans, classes, rng.choice(chosen, count, False))
                categories = categories if read else np.minimum(categories, 1)
                name = f"{number:04d}.png"
                height, width = objects.shape
                row = {"id": image_id, "file_name": name, "width": width, "height": height}
                _add_truth(instances, panoptic, row, objects, categories)
                ids = np.array([segment["id"] for segment in panoptic["annotations"][-1]["segments_info"]])[objects]
                Image.fromarray(pixels).save(partial / "images" / split / name)
                Image.fromarray(categories[objects]).save(partial / "masks" / split / name)
                colours = np.stack([ids % 256, ids // 256, ids // 256**2], -1).astype(np.uint8)
                Image.fromarray(colours).save(partial / "panoptic" / split / name)
            for content, file in ((instances, f"annotations/{split}.json"), (panoptic, f"panoptic/{split}.json")):
                (partial / file).write_text(json.dumps(content) + "\n", encoding="utf-8")
    return folder


def _scatter(
    rng: np.random.Generator,
    photos: list[np.ndarray],
    scans: np.ndarray,
    classes: np.ndarray,
    chosen: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A photograph with digits on it.

    Returns:
        pixels (height, width, 3) uint8; the object that each pixel shows, (height, width), 0 for the background, then
        1, 2, ...; the category of each object, the background's first, uint8.
    """
    height, width = int(rng.integers(128, 193)), int(rng.integers(160, 225))
    photo = photos[rng.integers(len(photos))]
    top, left = rng.integers(photo.shape[0] - height + 1), rng.integers(photo.shape[1] - width + 1)
    pixels = photo[top : top + height, left : left + width].astype(np.float64)
    objects = np.zeros((height, width), np.int64)
    categories, whole = [0], [height * width]
    for index in chosen:
        side = int(rng.integers(16, 41))
        scan = Image.fromarray(scans[index].astype(np.float32)).resize((side, side), Image.Resampling.BICUBIC)
        ink = np.clip(2 * np.asarray(scan, np.float64) - 0.5, 0, 1)
        shape = ink >= 0.5
        for _ in range(20):
            top, left = rng.integers(height - side + 1), rng.integers(width - side + 1)
            window = (slice(top, top + side), slice(left, left + side))
            covered = objects.copy()
            covered[window][shape] = len(categories)
            visible = np.bincount(covered.ravel(), minlength=len(categories))
            if (visible[1 : len(categories)] >= _LEAST_VISIBLE * np.array(whole[1:])).all():
                break
        else:
            continue
        # Dark on light or light on dark, so that every digit can be read.
        low, high = (0, 76) if pixels[window][shape].mean() > 127 else (180, 256)
        colour = rng.integers(low, high, 3)
        pixels[window] += ink[..., None] * (colour - pixels[window])
        objects = covered
        categories.append(classes[index] + 1)
        whole.append(shape.sum())
    return np.round(pixels).astype(np.uint8), objects, np.array(categories, np.uint8)


def _coco(names: Mapping[int, str], *, things_only: bool) -> dict[str, Any]:
    categories: list[dict[str, Any]] = []
    for index, name in names.items():
        if things_only and index:
            categories.append({"id": index, "name": name})
        elif not things_only:
            categories.append({"id": index, "name": name, "isthing": int(index > 0)})
    description = "scikit-learn's digits (CC BY 4.0) on photographs of scikit-image (CC0)"
    return {"info": {"description": description}, "images": [], "annotations": [], "categories": categories}


def _add_truth(
    instances: dict[str, Any],
    panoptic: dict[str, Any],
    row: Mapping[str, Any],
    objects: np.ndarray,
    categories: np.ndarray,
) -> None:
    segments = []
    for number, category in enumerate(categories.tolist()):
        mask = objects == number
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        left, top = int(columns[0]), int(rows[0])
        truth = {
            "category_id": category,
            "bbox": [left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top],
            "area": int(mask.sum()),
            "iscrowd": 0,
        }
        # 0 would be "no segment"; above 255, so that more than the red of the picture counts.
        segments.append({"id": 1000 * category + number + 1, **truth})
        if number:
            rle = {"size": list(mask.shape), "counts": _run_lengths(mask)}
            annotation = {"id": len(instances["annotations"]) + 1, "image_id": row["id"], **truth, "segmentation": rle}
            instances["annotations"].append(annotation)
    instances["images"].append(row)
    panoptic["images"].append(row)
    panoptic["annotations"].append({"image_id": row["id"], "file_name": row["file_name"], "segments_info": segments})


def _run_lengths(mask: np.ndarray) -> list[int]:
    """COCO's uncompressed RLE: down the columns, the lengths of runs outside and inside by turns, outside first."""
    flat = np.concatenate([[False], mask.ravel(order="F")])
    changes = np.flatnonzero(flat[1:] != flat[:-1])
    return np.diff([0, *changes, mask.size]).tolist()


def _scans() -> tuple[np.ndarray, np.ndarray]:
    """The digits, (1797, 8, 8) from 0 (paper) to 1 (ink), and which they are."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise DataError(_MISSING.format("digits")) from None
    source = load_digits()
    return source.images / 16, source.target


def sample_photos() -> list[np.ndarray]:
    """The five photographs, RGB uint8 (H, W, 3).

    Raises:
        DataError: scikit-image is not installed.
    """
    # The files themselves: skimage.data would download what a version of it does not hold.
    found = importlib.util.find_spec("skimage")
    folders = list(found.submodule_search_locations or []) if found else []
    files = [Path(folder) / "data" / f"{name}.png" for folder in folders for name in _PHOTOS]
    if not files or not all(file.is_file() for file in files):
        raise DataError(_MISSING.format("photographs of scikit-image"))
    return [np.asarray(Image.open(file).convert("RGB")) for file in files]


def _split(classes: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """70 % train, 10 % validation, 20 % test of each class: the indices."""
    rng = np.random.default_rng(seed)
    parts: dict[str, list[np.ndarray]] = {"train": [], "validation": [], "test": []}
    for digit in range(10):
        indices = rng.permutation(np.flatnonzero(classes == digit))
        borders = round(0.7 * len(indices)), round(0.8 * len(indices))
        for part, chosen in zip(parts.values(), np.split(indices, borders), strict=True):
            part.append(chosen)
    return {split: np.concatenate(part) for split, part in parts.items()}


@contextmanager
def _complete_or_absent(folder: Path) -> Iterator[Path]:
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    yield partial
    os.replace(partial, folder)
