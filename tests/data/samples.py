"""Small datasets on disk, and the part of a task that reading needs."""

from __future__ import annotations

import io
import types
from pathlib import Path

import numpy as np
import PIL.Image

from cv_hf.data import classification

SHARED = Path(__file__).parents[3] / "shared" / "data"
TASK = types.SimpleNamespace(
    name="image-classification",
    canonical=classification.canonical,
    label_map=classification.label_map,
    encode=classification.encode,
    strata=classification.strata,
    clean=None,
    present=classification.present,
    formats=("imagefolder",),
    moved=None,
)


def png(seed: int = 0) -> bytes:
    content = io.BytesIO()
    pixels = np.random.RandomState(seed).randint(0, 256, (8, 8, 3), dtype=np.uint8)
    PIL.Image.fromarray(pixels).save(content, "PNG")
    return content.getvalue()


def write(root: Path, files: dict[str, bytes | None]) -> str:
    """Write files, a PNG where the content is None, and return the folder."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(len(name)) if content is None else content)
    return str(root)


def images(*folders: str, number: int = 4) -> dict[str, None]:
    return {f"{folder}/{index}.png": None for folder in folders for index in range(number)}
