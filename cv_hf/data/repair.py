"""A repaired copy of a dataset: what could be read of it, clean, in its own format where that can be written.

What is wrong and cannot be mended from the files alone is left out, never guessed. EXIF orientation, colours and
compression stay as they are.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa

from cv_hf.config import DataConfig
from cv_hf.data import export, rle
from cv_hf.data.annotations import upright_size
from cv_hf.data.doctor import Diagnosis, copied_objects
from cv_hf.data.findings import CODES
from cv_hf.data.labels import LabelMap
from cv_hf.data.load import quiet
from cv_hf.data.objects import as_lists, with_objects
from cv_hf.data.paths import Inside
from cv_hf.errors import DataError

_BOXES = {"voc": export.write_voc, "yolo": export.write_yolo}


def check_out(out: str | Path, data: DataConfig, *folders: Path) -> None:
    """Refuse a folder for the copy that is there already, or lies inside the dataset.

    Args:
        out: the folder.
        data: the data section.
        folders: more folders of the dataset.

    Raises:
        DataError: why it is refused.
    """
    if os.path.lexists(out):
        raise DataError(f"--fix: {out} is there already; name a folder that is not.")
    given = [Path(place) for place in (data.id, data.images, data.masks) if place and Path(place).exists()]
    folders = (*folders, *(place if place.is_dir() else place.parent for place in given))
    if folders and Inside(*folders).holds(os.path.abspath(out)):
        raise DataError(f"--fix: {out} lies inside the dataset, which is never touched; name a folder outside of it.")


@quiet()
def repair(diagnosis: Diagnosis, out: Path, echo: Callable[[str], None] = print) -> None:
    """Write a repaired copy, and say what was changed.

    The format is that of the dataset; of boxes that are not in files of a format of their own, and of instances, it is
    COCO, of masks images and masks, and of labels class folders. The folder is complete or absent.

    Args:
        diagnosis: of the dataset.
        out: the folder to write.
        echo: called with each line to print.

    Raises:
        DataError: the folder is refused, or the dataset cannot be repaired.
    """
    root = diagnosis.source.root
    check_out(out, diagnosis.data, *([] if root is None else [root]))
    if "box-format-ambiguous" in diagnosis.findings:
        raise DataError("--fix: the format of the boxes is not certain; set data.box_format first.")
    splits = {}
    for name, rows in diagnosis.rows.items():
        kept = [row for row, file in enumerate(rows["file"][:]) if file not in diagnosis.lost]
        if not kept or not _labelled(rows, kept):
            echo(f"fix: the split {name} has no labels or no image left, and is left out")
            continue
        splits[name] = rows.select(kept)
    if not splits:
        raise DataError("--fix: nothing is left of the dataset.")
    with _complete_or_absent(out) as folder:
        written = _write(splits, diagnosis, folder, echo)
    sizes = ", ".join(
        f"{name} {len(rows)} images ({len(diagnosis.rows[name]) - len(rows)} left out)" for name, rows in splits.items()
    )
    echo(f"fix: wrote {out}: {written}; {sizes}")
    for code in diagnosis.findings:
        if fix := CODES[code].fix:
            echo(f"fix: {diagnosis.findings.count(code)} {code}: {fix}")
    if left := [code for code in diagnosis.findings if not CODES[code].fix]:
        echo(f"fix: left as they are: {', '.join(left)}")


def _labelled(rows: datasets.Dataset, kept: Sequence[int]) -> bool:
    """Whether any of some rows has a target; images without objects are rows like others."""
    if "mask" in rows.column_names and "segments_info" not in rows.column_names:
        masks = rows.select_columns("mask").select(kept)["mask"]
        return any(mask and (mask["path"] or mask["bytes"]) for mask in masks)
    for column in ("label", "labels"):
        if column in rows.column_names:
            return any(label is not None for label in rows.select_columns(column).select(kept)[column])
    return True


def _write(
    splits: Mapping[str, datasets.Dataset], diagnosis: Diagnosis, folder: Path, echo: Callable[[str], None]
) -> str:
    """Write the splits into a folder; returns the name of the format."""
    labels, columns = diagnosis.labels, next(iter(splits.values())).column_names

    def fitted(row: Mapping[str, Any]) -> Mapping[str, Any]:
        found, _ = diagnosis.task.fit(row, upright_size(row["image"], row["file"]), labels)
        return found

    if "label" in columns or "labels" in columns:
        export.write_imagefolder(splits, labels, folder)
        return "imagefolder"
    if diagnosis.task.moved == "mask" and ("segments_info" in columns or "mask" in columns):
        first = fitted(next(iter(splits.values()))[0])
        if "segments" in first:

            def segments(row: Mapping[str, Any]) -> tuple[np.ndarray, Mapping[str, np.ndarray]]:
                found = fitted(row)
                return found["mask"].astype(np.int64), found["segments"]

            export.write_panoptic(splits, segments, labels, folder)
            return "panoptic"
        if "objects" not in first:
            export.write_masks(splits, lambda row: fitted(row)["mask"], labels, folder)
            return "masks"
    objects = {name: _with_objects(rows, fitted, labels) for name, rows in splits.items()}
    writer = _BOXES.get(diagnosis.source.format)
    if writer is None:
        export.write_coco(objects, labels, folder)
        return "coco"
    if left_out := writer(objects, labels, folder):
        echo(f"fix: {left_out} crowd regions are left out, which {diagnosis.source.format} cannot hold")
    return diagnosis.source.format


def _with_objects(
    rows: datasets.Dataset, fitted: Callable[..., Mapping[str, Any]], labels: LabelMap
) -> datasets.Dataset:
    """The rows with objects that fit their images, each once."""
    counts, flat = [], {}
    for row in rows:
        objects = fitted(row)["objects"]
        copies = copied_objects(objects)
        kept = [number for number in range(len(objects["bbox"])) if number not in copies]
        counts.append(len(kept))
        for name, values in objects.items():
            flat.setdefault(name, []).extend(values[number] for number in kept)
    number = np.array(counts, np.int64)
    boxes = pa.array(np.array(flat["bbox"], np.float64).reshape(-1))
    lists = {
        "bbox": as_lists(number, as_lists(np.full(int(number.sum()), 4), boxes)),
        "category": as_lists(number, pa.array(flat["category"], pa.int64())),
        "area": as_lists(number, pa.array(flat["area"], pa.float64())),
        "iscrowd": as_lists(number, pa.array(flat["iscrowd"], pa.bool_())),
    }
    if "segmentation" in flat:
        lists["segmentation"] = as_lists(number, rle.to_arrow(flat["segmentation"]))
    kept = rows.select_columns(["image", "image_id", "file"])
    return with_objects(kept, lists, datasets.ClassLabel(names=list(labels.names)))


@contextmanager
def _complete_or_absent(folder: Path) -> Iterator[Path]:
    partial = folder.with_name(f".{folder.name}.partial-{os.getpid()}")
    partial.mkdir(parents=True)
    try:
        yield partial
        os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
