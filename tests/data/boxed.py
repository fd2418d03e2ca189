"""Small datasets of boxes on disk."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import PIL.Image

from cv_hf.config import DataConfig
from cv_hf.data.load import Splits, load_splits
from cv_hf.data.source import Source
from cv_hf.tasks.object_detection import TASK

# JSON as a parser gives it, of every kind.
Json = Any


def photo(width: int = 60, height: int = 40, format: str = "JPEG", orientation: int | None = None) -> bytes:
    content = io.BytesIO()
    exif = PIL.Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    PIL.Image.new("RGB", (width, height), (90, 120, 40)).save(content, format, exif=exif)
    return content.getvalue()


def write(root: Path, files: dict[str, bytes | str | Json | None]) -> str:
    """Write files and return the folder: a photo where the content is None, JSON where it is a list or a dict."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, (list, dict)):
            content = json.dumps(content)
        content = photo() if content is None else content
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(root)


def rows(source: Source, split: str = "train") -> dict[str, list[tuple[Any, list[float]]]]:
    """Path of each image from the dataset's folder -> [(category, box), ...]."""
    found = {}
    for row in source.splits[split]:
        assert row["image"]["bytes"] is None
        objects = row["objects"]
        assert len({len(values) for values in objects.values()}) == 1
        name = Path(row["image"]["path"]).relative_to(source.root).as_posix()
        found[name] = list(zip(objects["category"], objects["bbox"], strict=True))
    return found


def load(id: object, **data: Any) -> Splits:
    return load_splits(DataConfig(id=str(id), **data), TASK, 0, lambda line: None)
