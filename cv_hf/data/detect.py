"""Telling the format of a dataset from what is there."""

from __future__ import annotations

import difflib
import json
import os
import re
from pathlib import Path

from cv_hf.config import DataConfig
from cv_hf.data.imagefolder import is_hidden, metadata_of
from cv_hf.data.images import image_suffixes
from cv_hf.data.table import SUFFIXES, table_files
from cv_hf.errors import DataError

_ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar", ".arrow")
_IMAGE_FOLDERS = ("images", "image", "imgs", "img", "photos", "pictures", "jpegimages")


def detect_format(data: DataConfig) -> str:
    """Return one of `config.FORMATS` for `data.id`: by content if it is on disk, else "hub" if it can be a Hub id.

    Raises:
        DataError: a path that does not exist, or of no known format.
    """
    path = Path(data.id)
    if path.is_file():
        return _format_of_file(path)
    if path.is_dir():
        return _format_of_folder(path, data)
    if looks_like_a_path(data.id):
        raise DataError(f"data.id: there is no file or folder {data.id}.{_near(path)}")
    return "hub"


def looks_like_a_path(id: str) -> bool:
    """Whether an id can only be a path: a Hub id is `name` or `user/name`."""
    return (
        id.count("/") > 1
        or id.startswith((".", "~", "/", os.sep))
        or (os.sep != "/" and os.sep in id)
        or id.endswith("/")
        or Path(id).suffix.lower() in (*SUFFIXES, *_ARCHIVES, ".txt", ".xml", ".yaml", ".yml")
    )


def _near(path: Path) -> str:
    parent = path.parent
    if not parent.is_dir():
        return f" Nor is there {parent}." if parent != path else ""
    near = difflib.get_close_matches(path.name, [entry.name for entry in parent.iterdir()], n=1)
    return f" Did you mean {str(parent / near[0])!r}?" if near else ""


def _format_of_file(path: Path) -> str:
    suffix = path.suffix.lower()
    if suffix in (".yaml", ".yml"):
        return "yolo"
    if suffix == ".json":
        return _format_of_json(path) or "parquet"
    if suffix in SUFFIXES:
        return "parquet"
    if suffix in _ARCHIVES:
        raise DataError(f"data.id: {path} is an archive; unpack it and give the folder.")
    raise DataError(f"data.id: {path} is of no format that is read (a folder, or a table: {', '.join(SUFFIXES)}).")


def _format_of_json(path: Path) -> str | None:
    """COCO's formats are told by their first keys; the annotations can be too large to parse for that."""
    with open(path, encoding="utf-8", errors="replace") as text:
        start = text.read(1 << 16)
    if not start.lstrip().startswith("{"):
        return None
    if '"segments_info"' in start:
        return "panoptic"
    try:
        keys = json.loads(path.read_text(encoding="utf-8-sig")) if len(start) < 1 << 16 else None
    except ValueError:
        keys = None
    named = (lambda key: key in keys) if isinstance(keys, dict) else (lambda key: f'"{key}"' in start)
    return "coco" if named("images") and (named("annotations") or named("categories") or named("info")) else None


def _format_of_folder(path: Path, data: DataConfig) -> str:
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        raise DataError(
            f"data.id: {path} was written by save_to_disk.\n"
            "Write it as parquet instead: dataset.to_parquet('train.parquet') for each split."
        )
    folders = sorted(entry for entry in path.iterdir() if entry.is_dir() and not is_hidden(entry.name))
    names = {folder.name.lower() for folder in folders}
    if "annotations" in names and any((path / "Annotations").glob("*.xml")):
        return "voc"
    if any((path / name).is_file() for name in ("data.yaml", "data.yml", "dataset.yaml")) and (
        "labels" in names or any((folder / "labels").is_dir() for folder in folders)
    ):
        return "yolo"
    annotations = [*path.glob("*.json"), *path.glob("annotations/*.json"), *path.glob("*/_annotations.coco.json")]
    for file in sorted(annotations):
        if (found := _format_of_json(file)) is not None:
            return found
    tables = [file for files in table_files(path).values() for file in files]
    if any(file.suffix.lower() == ".parquet" for file in tables):
        return "parquet"
    if metadata_of(path) or any(metadata_of(folder) for folder in folders):
        return "imagefolder"
    if tables and (data.images or not folders or any(_names_images(file) for file in tables)):
        return "parquet"
    if folders:
        return "imagefolder"
    if _holds_images(path):
        raise DataError(
            f"data.id: {path} holds images, but no labels: no folders of classes, no metadata.csv, no table."
        )
    raise DataError(f"data.id: {path} holds nothing that is read: no folders of images, no tables.")


def _names_images(table: Path) -> bool:
    """Whether the first rows of a table hold the path of a file beside it: a stray table among folders does not."""
    with open(table, encoding="utf-8-sig", errors="replace") as text:
        first = [text.readline() for _ in range(5)]
    cells = {cell.strip() for line in first for cell in re.split(r'[,;\t"]', line)}
    return any((table.parent / cell).is_file() for cell in cells if Path(cell).suffix.lower() in image_suffixes())


def _holds_images(folder: Path) -> bool:
    with os.scandir(folder) as entries:
        return any(Path(entry.name).suffix.lower() in image_suffixes() for entry in entries)
