"""Local folders of images: FOLDER/CLASS/*.jpg, FOLDER/SPLIT/CLASS/*.jpg, or images with metadata.csv or .jsonl.

Only paths are read. A link that leads out of the folder is refused.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import datasets
import pyarrow as pa

from cv_hf.data.findings import Findings
from cv_hf.data.images import image_suffixes
from cv_hf.data.paths import Inside, check_name, is_hidden
from cv_hf.data.source import Source
from cv_hf.data.splits import check_split, role_of
from cv_hf.data.table import METADATA, read_metadata
from cv_hf.errors import DataError


def read(id: str, wanted: Sequence[str] = (), findings: Findings | None = None, on_bad_sample: str = "skip") -> Source:
    """Read a folder of images.

    Args:
        id: the folder.
        wanted: splits to read besides those with a usual name (train, val, test, ...).
        findings: filled with what was left out.
        on_bad_sample: "skip" or "stop".

    Returns:
        columns `image` and `label` (a ClassLabel: the class folders of all splits, in alphabetical order), or
        `image` and the columns of the metadata. A folder without split folders is one split, "train".

    Raises:
        DataError: no class folders, no metadata, or a folder that links out of `id`.
    """
    findings = Findings() if findings is None else findings
    root = Path(os.path.abspath(id))
    folders = split_folders(root)
    if list(folders.values()) == [root] and (inner := _dataset_below(root)) is not None:
        raise DataError(
            f"{id}: the only folder in it is no class, but holds the folders of the dataset.\n"
            f"Give the inner folder as data.id: {inner}"
        )
    for name in wanted:
        check_split(name, list(folders))
    left_out = [] if len(folders) == 1 else [name for name in folders if not (role_of(name) or name in wanted)]
    for name in left_out:
        findings.add("unused-folder", name)
        del folders[name]
    tables = {name: metadata_of(path) for name, path in folders.items()}
    if any(tables.values()):
        if missing := [name for name, path in tables.items() if path is None]:
            raise DataError(f"{id}: {folders[missing[0]].name} has no metadata.csv or metadata.jsonl, other splits do.")
        splits: dict[str, datasets.Dataset] = {}
        for name, path in tables.items():
            splits |= read_metadata(path, name, root, findings, on_bad_sample)
        return Source(id, "imagefolder", splits, root=root)
    classes = sorted({path.name for folder in folders.values() for path in _folders(folder, root)})
    if not classes:
        raise DataError(
            f"{id}: there are no folders of classes in it (CLASS/image.jpg or train/CLASS/image.jpg), "
            "and no metadata.csv or metadata.jsonl."
        )
    return Source(
        id,
        "imagefolder",
        {name: _read_classes(folder, root, classes, findings, on_bad_sample) for name, folder in folders.items()},
        root=root,
    )


def split_folders(root: Path) -> dict[str, Path]:
    """The split folders of a dataset's folder, or {"train": root} if its folders are classes.

    A folder called `train` (or val, test, ...) is a split if it holds folders or metadata, and a class if it
    holds images; beside such a split, one that holds images is a split without labels.
    """
    folders = _folders(root, root)
    holding = [path for path in folders if metadata_of(path) or any(entry.is_dir() for entry in _entries(path))]
    if not any(role_of(path.name) for path in holding):
        return {"train": root}
    return {path.name: path for path in folders if path in holding or role_of(path.name)}


def _dataset_below(root: Path) -> Path | None:
    """The dataset's own folder if it stands alone in `root`, as an unpacked archive often leaves it, or None."""
    folders = _folders(root, root)
    if metadata_of(root) or len(folders) != 1 or folders[0].is_symlink():
        return None
    (inner,) = folders
    entries = _entries(inner)
    has_folders = any(entry.is_dir() for entry in entries)
    has_images = any(Path(entry.name).suffix.lower() in image_suffixes() for entry in entries if entry.is_file())
    has_splits = list(split_folders(inner).values()) != [inner]
    if has_splits or metadata_of(inner) or (has_folders and not has_images):
        return inner if has_splits or metadata_of(inner) else _dataset_below(inner) or inner
    return None


def metadata_of(folder: Path) -> Path | None:
    """The metadata table of a folder of images, if it has one."""
    return next((folder / name for name in METADATA if (folder / name).is_file()), None)


def _read_classes(
    folder: Path, root: Path, classes: Sequence[str], findings: Findings, on_bad_sample: str
) -> datasets.Dataset:
    paths, labels = [], []
    ids = {name: index for index, name in enumerate(classes)}
    entries = _entries(folder)
    has_classes = any(entry.is_dir() for entry in entries)
    for entry in entries:
        name = Path(entry.path).relative_to(root).as_posix()
        if entry.is_dir():
            for path in _images(entry.path, root, findings, on_bad_sample, {os.path.realpath(folder)}):
                paths.append(path)
                labels.append(ids[entry.name])
        elif has_classes and Path(entry.name).suffix.lower() in image_suffixes():
            findings.drop("missing-label", name, "the image stands in no class folder", on_bad_sample)
    return datasets.Dataset.from_dict(
        {"image": pa.array(paths, pa.string()), "label": pa.array(labels, pa.int64())},
        features=datasets.Features(
            {"image": datasets.Image(decode=False), "label": datasets.ClassLabel(names=list(classes))}
        ),
    )


def _images(folder: str, root: Path, findings: Findings, on_bad_sample: str, above: set[str]) -> Iterator[str]:
    """The images in a class folder and the folders below it."""
    real = os.path.realpath(folder)
    if real in above:
        return
    for entry in _entries(folder):
        name = Path(entry.path).relative_to(root).as_posix()
        if entry.is_symlink() and not Inside(root).holds(entry.path):
            findings.drop("path-outside", name, "the link leads out of the dataset's folder", on_bad_sample)
        elif entry.is_dir():
            yield from _images(entry.path, root, findings, on_bad_sample, above | {real})
        elif Path(entry.name).suffix.lower() in image_suffixes():
            yield entry.path
        else:
            findings.add("not-an-image", name)


def _folders(folder: Path, root: Path) -> list[Path]:
    found = []
    for entry in _entries(folder):
        if entry.is_dir():
            if entry.is_symlink() and not Inside(root).holds(entry.path):
                raise DataError(
                    f"{entry.path} is a link that leads out of the dataset's folder.\n"
                    "Give the folder that it leads to as data.id, or put the files in its place."
                )
            found.append(Path(entry.path))
    return found


def _entries(folder: str | Path) -> list[os.DirEntry]:
    try:
        with os.scandir(folder) as entries:
            kept = [entry for entry in entries if not is_hidden(check_name(entry.name))]
            return sorted(kept, key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({error.strerror}).") from None
