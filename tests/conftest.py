"""Shared fixtures. The loopback Hub starts here, before huggingface_hub is imported, which reads HF_ENDPOINT once."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.hub import LoopbackHub

_HUB = LoopbackHub().start()
_HUB.add_token("hf_tests_write", user="tester", role="write")
_HOME = tempfile.mkdtemp(prefix="cv_hf-tests-")
os.environ.update(_HUB.environment(token="hf_tests_write"))
os.environ.update(HF_HOME=_HOME, NO_ALBUMENTATIONS_UPDATE="1", OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false")
os.environ.pop("HF_HUB_OFFLINE", None)

DATA = Path(__file__).parent.parent.parent / "shared" / "data"


@pytest.fixture(scope="session")
def hub() -> LoopbackHub:
    """The Hub that HF_ENDPOINT names, with the write token of user `tester` in HF_TOKEN."""
    return _HUB


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """(family) -> its tiny checkpoint of five classes, made once. Tests only read it."""
    from tests.tiny import tiny_model

    made: dict[str, Path] = {}

    def make(family: str) -> Path:
        if family not in made:
            made[family] = tiny_model(family, tmp_path_factory.mktemp(family))
        return made[family]

    return make


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image folder that can be learnt, 8 / 4 / 4 images a class."""
    from tests.made import write_photos

    return write_photos(tmp_path_factory.mktemp("photos"), {"train": 8, "validation": 4, "test": 4})


# What a machine would choose by its cores and its arithmetic.
ALIKE = {"learning_rate": 1e-3, "logging_steps": 1, "bf16": False, "dataloader_num_workers": 0}


def _changed(values: dict, sections: dict) -> dict:
    """A recipe with the keys of some sections set."""
    for name, section in sections.items():
        values[name] = {**values[name], **section} if isinstance(values.get(name), dict) else section
    return values


@pytest.fixture
def recipe(tiny: Callable[..., Path], photos: Path, tmp_path: Path) -> Callable[..., dict]:
    """(family, **sections) -> a recipe of a few steps in float32, on `photos`, with its own run directory."""

    def make(family: str = "vit", **sections: dict) -> dict:
        values = {
            "task": "image-classification",
            "model": {"id": str(tiny(family))},
            "data": {"id": str(photos)},
            "train": {"max_steps": 3, "batch_size": 8, **ALIKE},
            "run_dir": str(tmp_path / "run"),
        }
        return _changed(values, sections)

    return make


@pytest.fixture(scope="session")
def boxes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """COCO annotations of coloured rectangles on grey noise: 16 / 8 / 8 images of five aspect ratios, ids with a gap.

    Every fourth image is empty; one object of the test split is a crowd.
    """
    import json

    import numpy as np
    from PIL import Image

    folder = tmp_path_factory.mktemp("boxes")
    rng = np.random.default_rng(0)
    colours = {3: (230, 40, 40), 11: (40, 60, 230)}
    for split, count in (("train", 16), ("val", 8), ("test", 8)):
        (folder / split).mkdir()
        images, annotations = [], []
        for number in range(count):
            height, width = ((60, 60), (48, 96), (96, 48), (64, 80), (80, 56))[number % 5]
            pixels = rng.integers(90, 160, (height, width, 3), dtype=np.uint8)
            for _ in range(0 if number % 4 == 3 else int(rng.integers(1, 4))):
                w, h = rng.integers(14, 28, 2).tolist()
                x, y = int(rng.integers(0, width - w)), int(rng.integers(0, height - h))
                category = int(rng.choice([3, 11]))
                pixels[y : y + h, x : x + w] = colours[category]
                crowd = int(split == "test" and not annotations)
                box = {"bbox": [x, y, w, h], "category_id": category, "area": w * h - 1, "iscrowd": crowd}
                annotations.append({"id": len(annotations) + 1, "image_id": 10 + number, **box})
            Image.fromarray(pixels).save(folder / split / f"{number}.png")
            images.append({"id": 10 + number, "file_name": f"{number}.png", "width": width, "height": height})
        categories = [{"id": 3, "name": "red"}, {"id": 11, "name": "blue"}]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (folder / "annotations").mkdir(exist_ok=True)
        (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return folder


@pytest.fixture
def detection_recipe(tiny: Callable[..., Path], boxes: Path, tmp_path: Path) -> Callable[..., dict]:
    """As `recipe`, on `boxes`, for a detector."""

    def make(family: str = "rt_detr", **sections: dict) -> dict:
        values = {
            "task": "object-detection",
            "model": {"id": str(tiny(family))},
            "data": {"id": str(boxes)},
            "train": {"max_steps": 2, "batch_size": 4, **ALIKE},
            "run_dir": str(tmp_path / "run"),
        }
        return _changed(values, sections)

    return make


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Coloured shapes with the truth of every kind: 12 / 6 / 6 images of five aspect ratios, see `write_shapes`."""
    from tests.made import write_shapes

    return write_shapes(tmp_path_factory.mktemp("shapes"), {"train": 12, "val": 6, "test": 6})


@pytest.fixture
def segmentation_recipe(tiny: Callable[..., Path], shapes: Path, tmp_path: Path) -> Callable[..., dict]:
    """(task, family, **sections) -> as `recipe`, on `shapes`, for a model of masks."""

    def make(task: str, family: str, **sections: dict) -> dict:
        values = {
            "task": task,
            "model": {"id": str(tiny(family))},
            "data": {"id": str(shapes)},
            "train": {"max_steps": 2, "batch_size": 4, **ALIKE},
            "run_dir": str(tmp_path / "run"),
        }
        return _changed(values, sections)

    return make
