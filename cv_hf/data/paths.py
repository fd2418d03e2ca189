"""Image paths that a dataset gives: made absolute, and refused where they lead out of its folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.compute as pc

from cv_hf.data.findings import Findings
from cv_hf.errors import DataError


def images_folder(images: str | None, key: str = "data.images") -> Path | None:
    """The folder that `data.images` (or another key) names, absolute; DataError when it is not there."""
    folder = Path(os.path.abspath(images)) if images else None
    if folder is not None and not folder.is_dir():
        raise DataError(f"{key}: there is no folder {images}.")
    return folder


def check_name(name: str) -> str:
    """A file's name, which tables of text must be able to hold; DataError where its bytes are no UTF-8."""
    if not name.isascii():
        try:
            name.encode()
        except UnicodeEncodeError:
            raise DataError(f"{name}: the name of this file is not UTF-8. Rename it.") from None
    return name


def is_hidden(name: str) -> bool:
    """Whether a file or folder is no part of a dataset; macOS leaves __MACOSX in the archives it makes."""
    return name.startswith(".") or name == "__MACOSX"


class Inside:
    """Resolves paths that must stay in one of some folders; relative ones start from the first.

    Links are followed, once per folder and file. A path that is no file gets the first of `suffixes` with which it is,
    and where there is none of its name, backslashes are those of Windows.
    """

    def __init__(self, *folders: str | Path, suffixes: Sequence[str] = ()) -> None:
        self.suffixes = suffixes
        self.base = os.path.abspath(folders[0])
        self.real = tuple(os.path.realpath(folder).rstrip(os.sep) + os.sep for folder in folders)
        self.known: dict[str, bool] = {}

    def __call__(self, name: str) -> str | None:
        """The absolute path, or None if it leads outside."""
        if "\0" in name:
            return None
        path = os.path.normpath(os.path.join(self.base, name))
        if "\\" in name and not os.path.lexists(path):
            path = os.path.normpath(os.path.join(self.base, name.replace("\\", "/")))
        if self.suffixes and not os.path.isfile(path):
            path += next((suffix for suffix in self.suffixes if os.path.isfile(path + suffix)), "")
        folder = os.path.dirname(path)
        if folder not in self.known:
            self.known[folder] = self.holds(folder)
        return path if self.known[folder] and (not os.path.islink(path) or self.holds(path)) else None

    def holds(self, path: str | Path) -> bool:
        """Whether a file or folder, its links followed, is in one of the folders or is one."""
        return (os.path.realpath(path) + os.sep).startswith(self.real)


def resolve_images(
    rows: datasets.Dataset, column: str, inside: Callable[[str], str | None], findings: Findings, on_bad_sample: str
) -> datasets.Dataset:
    """Make a column of images or image paths one of undecoded images with absolute paths.

    Embedded images stay as they are; rows without them whose path leads outside are dropped.

    Raises:
        DataError: on_bad_sample is "stop", and a path leads outside.
    """
    rows = rows.cast_column(column, datasets.Image(decode=False))
    images = rows.data.column(column)
    content = pc.struct_field(images, "bytes")
    if not content.null_count:
        return rows
    paths = pc.struct_field(images, "path").to_pylist()
    kept = []
    for index, (name, embedded) in enumerate(zip(paths, content.is_valid().to_pylist(), strict=True)):
        if not embedded and name is not None:
            paths[index] = inside(name)
            if paths[index] is None:
                findings.drop("path-outside", name, "the path leads out of the dataset's folder", on_bad_sample)
                continue
        kept.append(index)
    resolved, start = [], 0
    for chunk in content.chunks:
        part = pa.array(paths[start : start + len(chunk)], pa.string())
        resolved.append(pa.StructArray.from_arrays([chunk, part], names=["bytes", "path"]))
        start += len(chunk)
    # Added before the other goes, as a table without columns has no rows; and rows are dropped last, by their
    # indices, as adding a column to a selection would copy it.
    rows = rows.add_column("_images", pa.chunked_array(resolved), feature=datasets.Image(decode=False))
    rows = rows.remove_columns(column).rename_column("_images", column)
    return rows if len(kept) == len(rows) else rows.select(kept)
