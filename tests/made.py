"""Tiny datasets that can be learnt, written as files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from cv_hf.runs import from_mask

_SHAPES = ((60, 60), (48, 96), (96, 48), (64, 80), (80, 56))


def write_photos(folder: Path, counts: Mapping[str, int]) -> Path:
    """An image folder: red, green and blue noise, `counts` images a class in each split, of several shapes."""
    rng = np.random.default_rng(0)
    for split, count in counts.items():
        for channel, name in enumerate(("red", "green", "blue")):
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                height, width = rng.integers(32, 64, 2)
                pixels = rng.integers(0, 120, (height, width, 3), dtype=np.uint8)
                pixels[..., channel] += 120
                Image.fromarray(pixels).save(folder / split / name / f"{number}.png")
    return folder


def write_shapes(folder: Path, counts: Mapping[str, int], *, alike: bool = False, uneven: bool = False) -> Path:
    """Coloured shapes on grey noise with the truth of every kind, `counts` images in each split.

    images/SPLIT/0.png; masks/SPLIT/0.png, class ids 0 ground, 1 red, 2 blue; annotations/SPLIT.json, COCO instances of
    red (id 3) and blue (id 11), which overlap; panoptic/SPLIT.json and panoptic/SPLIT/0.png, where the ground is stuff
    (id 20). Images have five aspect ratios; every fourth has no object; one object of the test split is a crowd.

    Where `alike`, each image is 64x64 with one large red object in its left half and one blue in its right. Where
    `uneven` as well, every other image lacks the blue one, and the right half of its mask has no class (255).
    """
    rng = np.random.default_rng(0)
    colours, classes = {3: (230, 40, 40), 11: (40, 60, 230)}, {20: 0, 3: 1, 11: 2}
    for split, count in counts.items():
        for kind in ("images", "masks", "panoptic", "annotations"):
            (folder / kind / (split if kind != "annotations" else "")).mkdir(parents=True, exist_ok=True)
        images, objects, panoptic = [], [], []
        for number in range(count):
            height, width = (64, 64) if alike else _SHAPES[number % 5]
            pixels = rng.integers(90, 160, (height, width, 3), dtype=np.uint8)
            front = np.full((height, width), 1)
            segments = [{"id": 1, "category_id": 20}]
            some = 0 if number % 4 == 3 else int(rng.integers(1, 4))
            for place in range(2 - (uneven and number % 2) if alike else some):
                w, h = rng.integers(14, 28, 2).tolist()
                if alike:
                    w, h = rng.integers((24, 40), (32, 60)).tolist()
                    x, y = 32 * place + int(rng.integers(0, 32 - w)), int(rng.integers(0, height - h))
                    category, crowd = (3, 11)[place], 0
                else:
                    x, y = int(rng.integers(0, width - w)), int(rng.integers(0, height - h))
                    category, crowd = int(rng.choice([3, 11])), int(split == "test" and not objects)
                mask = np.zeros((height, width), bool)
                mask[y : y + h, x : x + w] = True
                mask[y, x] = False
                pixels[mask] = colours[category]
                common = {"category_id": category, "iscrowd": crowd}
                truth = {"bbox": [x, y, w, h], "area": int(mask.sum()), "segmentation": from_mask(mask)}
                objects.append({"id": len(objects) + 1, "image_id": 10 + number, **common, **truth})
                segments.append({"id": 500 * len(segments), **common})
                front[mask] = segments[-1]["id"]
            info = [
                {"iscrowd": 0, **segment, "area": int(area), "bbox": [0, 0, width, height]}
                for segment in segments
                if (area := (front == segment["id"]).sum())
            ]
            semantic = np.select([front == one["id"] for one in info], [classes[one["category_id"]] for one in info])
            semantic = semantic.astype(np.uint8)
            if uneven and number % 2:
                semantic[:, 32:] = 255
            encoded = np.stack([front % 256, front // 256, front // 65536], -1).astype(np.uint8)
            name = f"{number}.png"
            Image.fromarray(pixels).save(folder / "images" / split / name)
            Image.fromarray(semantic).save(folder / "masks" / split / name)
            Image.fromarray(encoded).save(folder / "panoptic" / split / name)
            images.append({"id": 10 + number, "file_name": name, "width": width, "height": height})
            panoptic.append({"image_id": 10 + number, "file_name": name, "segments_info": info})
        things = [{"id": 3, "name": "red", "isthing": 1}, {"id": 11, "name": "blue", "isthing": 1}]
        every = [*things, {"id": 20, "name": "ground", "isthing": 0}]
        for kind, entries, categories in (("annotations", objects, things), ("panoptic", panoptic, every)):
            content = {"images": images, "annotations": entries, "categories": categories}
            (folder / kind / f"{split}.json").write_text(json.dumps(content))
    (folder / "id2label.json").write_text(json.dumps({0: "ground", 1: "red", 2: "blue"}))
    return folder
