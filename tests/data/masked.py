"""Small images and masks, and the part of semantic segmentation that reading needs."""

from __future__ import annotations

import io
import types
from typing import Any

import numpy as np
import PIL.Image

from cv_hf.config import DataConfig
from cv_hf.data import LabelMap, Splits, load_splits, semantic

TASK = types.SimpleNamespace(
    name="semantic-segmentation",
    formats=("masks", "panoptic"),
    moved="mask",
    **{
        name: getattr(semantic, name)
        for name in ("canonical", "label_map", "clean", "encode", "strata", "present", "fit")
    },
)
HEIGHT, WIDTH = 6, 10


def mask(values: Any, format: str = "PNG", mode: str | None = None, palette: list[int] | None = None) -> bytes:
    """An image of these values, saved."""
    image = PIL.Image.fromarray(np.asarray(values))
    if palette is not None:
        image.putpalette(palette)
    content = io.BytesIO()
    (image.convert(mode) if mode else image).save(content, format)
    return content.getvalue()


def blocks(*values: int, kind: type = np.uint8, size: tuple[int, int] = (HEIGHT, WIDTH)) -> np.ndarray:
    """(H, W) of vertical bands of these values, each at least a column."""
    return np.repeat(np.asarray(values, kind)[None, np.arange(size[1]) * len(values) // size[1]], size[0], axis=0)


def fitted(content: bytes | None, labels: LabelMap, size: tuple[int, int] = (HEIGHT, WIDTH), path: str | None = None):
    row = {"image": {"bytes": None, "path": None}, "mask": {"bytes": content, "path": path}, "file": "a.jpg"}
    found, findings = semantic.fit(row, size, labels)
    return None if found is None else found["mask"], findings


def load(id: object, **data: Any) -> tuple[Splits, list[str]]:
    lines: list[str] = []
    return load_splits(DataConfig(id=str(id), **data), TASK, 0, lines.append), lines
