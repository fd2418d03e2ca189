"""Local tables: parquet, CSV, TSV, JSONL or JSON files, or a folder of them, with images embedded or as paths."""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import pandas as pd

from cv_hf.data.coco import Resolver, best_resolver, image_folders
from cv_hf.data.columns import IMAGE_IDS, MASK_NAMES, can_be_image, find_image, is_image
from cv_hf.data.findings import Findings
from cv_hf.data.images import image_suffixes
from cv_hf.data.paths import Inside, images_folder, resolve_images
from cv_hf.data.source import Source
from cv_hf.data.splits import check_split, role_of
from cv_hf.errors import DataError, printable

SUFFIXES = (".parquet", ".jsonl", ".csv", ".tsv", ".json")
_TRIED = 100
SUFFIXES_LEFT_OUT = (".jpg", ".jpeg", ".png", ".JPG", ".webp", ".tif", ".tiff", ".bmp")
METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")


def read(
    id: str,
    *,
    images: str | None = None,
    column: str | None = None,
    wanted: Sequence[str] = (),
    findings: Findings | None = None,
    on_bad_sample: str = "skip",
) -> Source:
    """Read a table, or a folder of tables (train.csv, data/validation-00000-of-00002.parquet, test/0000.parquet).

    Args:
        id: the file or folder.
        images: the folder that image paths start from; None: that of the table, else the usual ones beside it.
        column: the image column, where it is not found by itself.
        wanted: splits that must be there.
        findings: filled with what was left out.
        on_bad_sample: "skip" or "stop".

    Raises:
        DataError: no table, or one that cannot be read.
    """
    findings = Findings() if findings is None else findings
    root = Path(os.path.abspath(id))
    files = {"train": [root]} if root.is_file() else table_files(root)
    if not files:
        raise DataError(f"{id}: there are no tables in it ({', '.join(SUFFIXES)}).")
    for name in wanted:
        check_split(name, list(files))
    base = images_folder(images)
    root = root.parent if root.is_file() else root
    splits = {}
    for name, paths in files.items():
        near = [folder for folder in image_folders(paths[0], name, root, None) if Inside(root).holds(folder)]
        tried = [base] if base else [paths[0].parent, *near]
        splits[name] = _with_images(_read_files(paths), tried, column, findings, on_bad_sample)
    return Source(id, "parquet", splits, root=base or root)


def read_metadata(
    path: Path, split: str, root: Path, findings: Findings, on_bad_sample: str
) -> dict[str, datasets.Dataset]:
    """Read the metadata of a folder of images, whose `file_name` starts from that folder.

    Returns:
        {split: rows}; more than one split if the metadata stands above folders that are called as splits are.
    """
    rows = _read_files([path])
    names = rows.features
    if "file_name" not in names:
        raise DataError(f"{path}: there is no column file_name among {', '.join(names)}.")
    first = [(*Path(str(name or "")).parts, "")[0] for name in rows["file_name"]]
    by_split = {split: rows}
    if path.parent == root and first and all(role_of(name) for name in first):
        by_split = {
            name: rows.select([index for index, part in enumerate(first) if part == name])
            for name in dict.fromkeys(first)
        }
    return {
        name: _with_images(part, [path.parent], "file_name", findings, on_bad_sample) for name, part in by_split.items()
    }


def table_files(root: Path) -> dict[str, list[Path]]:
    """The tables in a folder, in its folder `data` and in folders called as splits are: {split: files}."""
    folders = [root, root / "data", *sorted(path for path in root.iterdir() if path.is_dir() and role_of(path.name))]
    found = [
        path
        for folder in folders
        if folder.is_dir()
        for path in sorted(folder.iterdir())
        if path.is_file() and path.suffix.lower() in SUFFIXES[:-1] and not path.name.startswith((".", "metadata."))
    ]
    for suffix in SUFFIXES:
        files = [path for path in found if path.suffix.lower() == suffix]
        if files:
            break
    else:
        return {}
    splits: dict[str, list[Path]] = {}
    for path in files:
        splits.setdefault(_split_of(path, root), []).append(path)
    # One table whose name says nothing of a split is what there is to train on.
    return {"train": files} if len(splits) == 1 and not role_of(next(iter(splits))) else splits


def _with_images(
    rows: datasets.Dataset, folders: Sequence[Path], column: str | None, findings: Findings, on_bad_sample: str
) -> datasets.Dataset:
    """The rows with absolute paths of images, which start from the folder that holds the most of the first ones."""
    try:
        column = find_image(rows.features, {"image": column} if column else None)
    except DataError:
        if column or (column := _image_ids(rows, folders)) is None:
            return rows  # the task says what it misses
    if not can_be_image(rows.features[column]):
        raise DataError(f"column {column!r} holds neither images nor paths of images.")
    inside = _folder_of(_texts(rows, column, len(rows)), folders)
    for name, feature in rows.features.items():
        if name == column or is_image(feature) or (name.lower() in MASK_NAMES and _holds_paths(rows, name)):
            rows = resolve_images(rows, name, inside, findings, on_bad_sample)
    return rows


def _folder_of(names: Sequence[str], folders: Sequence[Path]) -> Resolver:
    """Of some folders that in which most of the names are files, with their suffix or without it; else the first."""
    for suffixes in ((), SUFFIXES_LEFT_OUT):
        if found := best_resolver(names, folders, (), suffixes=suffixes):
            return found
    return Resolver(Inside(folders[0]), by_base_name=False)


def _image_ids(rows: datasets.Dataset, folders: Sequence[Path]) -> str | None:
    """The column of text whose values are the names of image files without their suffix."""
    for name in rows.column_names:
        if name.lower() in IMAGE_IDS and (names := _texts(rows, name)):
            path = _folder_of(names[:1], folders)(names[0])
            if path is not None and os.path.isfile(path):
                return name
    return None


def _texts(rows: datasets.Dataset, column: str, number: int = _TRIED) -> list[str]:
    """The first values of a column of text, empty ones left out."""
    if getattr(rows.features[column], "dtype", "") not in ("string", "large_string"):
        return []
    return [value for value in rows.select_columns(column)[:number][column] if value]


def _holds_paths(rows: datasets.Dataset, column: str) -> bool:
    """Whether a column is text that names image files, by its first row that is not empty."""
    first = next(iter(_texts(rows, column)), "")
    return Path(first).suffix.lower() in image_suffixes()


def _split_of(path: Path, root: Path) -> str:
    stem = re.sub(r"-\d+-of-\d+.*$", "", path.stem)
    for candidate in (stem, *re.split(r"[-_. ]", stem), path.parent.name if path.parent != root else ""):
        if role_of(candidate):
            return candidate
    return stem


def _read_files(paths: Sequence[Path]) -> datasets.Dataset:
    where = str(paths[0])
    try:
        if paths[0].suffix.lower() == ".parquet":
            rows = datasets.load_dataset("parquet", data_files=[str(path) for path in paths], split="train")
        else:
            parts = []
            for path in paths:
                where = str(path)
                parts.append(_read_rows(path))
            rows = datasets.concatenate_datasets(parts) if len(parts) > 1 else parts[0]
    except DataError:
        raise
    except UnicodeDecodeError as error:
        raise DataError(
            f"{where}: the table cannot be read, as its text is not UTF-8 (byte {error.object[error.start]:#04x}). "
            "Save it as UTF-8; in Excel as 'CSV UTF-8'."
        ) from None
    except pd.errors.ParserWarning:
        raise DataError(f"{where}: its rows have more cells than its first line names columns.") from None
    except Exception as error:  # each parser has its own tree of errors
        reason = str(error.__cause__ or error).splitlines()[0][:200]
        raise DataError(f"{where}: the table cannot be read ({reason}).") from None
    if not len(rows):
        raise DataError(f"{where}: the table has no rows.")
    if r"\u0000" in json.dumps(rows.features.to_dict()):
        raise DataError(f"{where}: the name of a column, or of a field in one, has a zero byte. Rename it.")
    return rows


def _read_rows(path: Path) -> datasets.Dataset:
    suffix = path.suffix.lower()
    if suffix in (".csv", ".tsv"):
        table = _read_csv(path)
        for name in map(str, table.columns):
            if Path(name).suffix.lower() in image_suffixes():
                raise DataError(
                    f"{path}: its first line holds values ({printable(name)[:60]}), not the names of the columns.\n"
                    "Write these above it, as image,label or image,xmin,ymin,xmax,ymax,class."
                )
        return datasets.Dataset.from_pandas(table, preserve_index=False)
    rows: list[Any] = []
    with open(path, encoding="utf-8-sig") as lines:
        if suffix == ".json":
            rows = json.load(lines)
            if not isinstance(rows, list):
                raise DataError(f"{path}: a table in JSON is a list of rows, [{{...}}, {{...}}].")
        else:
            for number, line in enumerate(lines, 1):
                try:
                    rows += [json.loads(line)] if line.strip() else []
                except ValueError as error:
                    raise DataError(f"{path}: line {number} is not valid JSON ({error}).") from None
    if not all(isinstance(row, dict) for row in rows):
        raise DataError(f"{path}: every row must be {{column: value}}.")
    names = list(dict.fromkeys(name for row in rows for name in row))
    return datasets.Dataset.from_dict({name: [row.get(name) for row in rows] for name in names})


def _read_csv(path: Path) -> pd.DataFrame:
    """A table of text, whose columns are separated as its head shows; spaces around names and cells are none of them.

    Where semicolons separate, numbers may have a comma, as spreadsheets write both in many countries.
    """
    with open(path, encoding="utf-8-sig") as text:
        head = text.readline()
        said = re.fullmatch(r"sep=(.)", head.strip("\r\n "))  # a line for Excel, which shows it to nobody
        head = text.readline() if said else head
    usual = "\t" if path.suffix.lower() == ".tsv" else ","
    unquoted = re.sub(r'"[^"]*"', "", head)
    separator = said[1] if said else max((usual, *",;\t|"), key=unquoted.count)

    def parsed(decimal: str) -> pd.DataFrame:
        with warnings.catch_warnings():
            # Of cells beyond the last name.
            warnings.simplefilter("error", pd.errors.ParserWarning)
            return pd.read_csv(
                path,
                sep=separator,
                decimal=decimal,
                skiprows=1 if said else 0,
                skipinitialspace=True,
                index_col=False,
                # "NA" and "None" are labels like others; only an empty cell has no value.
                keep_default_na=False,
                na_values=[""],
                low_memory=False,
                encoding="utf-8-sig",
            )

    table = parsed(".")
    text = [name for name in table if not pd.api.types.is_numeric_dtype(table[name])]
    if separator == ";" and text:
        other = parsed(",")
        for name in text:
            table[name] = other[name] if pd.api.types.is_numeric_dtype(other[name]) else table[name]
    for name in text:
        table[name] = table[name].map(lambda cell: cell.strip() if isinstance(cell, str) else cell)
    return table.rename(columns=lambda name: str(name).strip())
