"""COCO panoptic: one JSON of images, segments and categories per split, beside folders of images and of PNGs.

annotations/panoptic_train2017.json     annotations/panoptic_train2017/a.png     train2017/a.jpg
panoptic/train.json                     panoptic/train/a.png                     images/train/a.jpg
panoptic_train.json                     panoptic/a.png                           images/a.jpg
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa

from cv_hf.data import coco
from cv_hf.data.annotations import folders, is_int64
from cv_hf.data.findings import Findings
from cv_hf.data.images import relative_name
from cv_hf.data.labels import LabelMap
from cv_hf.data.paths import images_folder
from cv_hf.data.source import Source
from cv_hf.data.splits import check_split
from cv_hf.errors import DataError

_MASK_FOLDERS = ("panoptic", "panoptic_masks", "panoptic_images", "masks", "segmentation", "segmentations", "labels")


def read(
    id: str,
    *,
    images: str | None = None,
    masks: str | None = None,
    wanted: Sequence[str] = (),
    findings: Findings | None = None,
    on_bad_sample: str = "skip",
) -> Source:
    """Read COCO panoptic annotations; no PNG is opened.

    Args:
        id: a JSON file, which is one split; or a folder with one JSON per split, in it, in its folder `annotations` or
            `panoptic`, or in folders called as splits are.
        images, masks: the folders that the names of the images and of the PNGs start from; None: found by trying the
            usual ones.
        wanted: splits to read besides those with a usual name.
        findings: filled with what was left out.
        on_bad_sample: "skip" or "stop".

    Returns:
        columns `image` and `mask` (paths, undecoded) and `segments_info`, a list of {id, category_id, area, iscrowd}:
        categories by their id, null where a segment has none, `area` null where the file has none. The labels say which
        classes are things, where every category has `isthing`.

    Raises:
        DataError: a file that is not COCO panoptic, several files for one split, an image id that stands twice,
            categories that differ between splits, or images or PNGs that are not found.
    """
    findings = Findings() if findings is None else findings
    path = Path(os.path.abspath(id))
    bases = images_folder(images), images_folder(masks, "data.masks")
    root = coco.root_of_file(path) if path.is_file() else path
    files = {coco.split_of(path, root) or "train": path} if path.is_file() else _files(root, wanted)
    for name in wanted:
        check_split(name, list(files))
    names: dict[int | str, str] = {}
    things: dict[int | str, bool | None] = {}
    used: set[int | str] = set()
    splits = {}
    with coco.collector_off():
        for split, file in files.items():
            content = coco.load(file, root)
            coco.merge_categories(names, content, relative_name(str(file), root))
            _merge_things(things, content, relative_name(str(file), root))
            splits[split] = _read_split(content, file, split, root, bases, used, findings, on_bad_sample)
    return Source(id, "panoptic", splits, root=root, labels=_label_map(names, used, things))


def _files(root: Path, wanted: Sequence[str]) -> dict[str, Path]:
    found = [path for path in coco.candidates(root) if coco.holds_segments(path)]
    if not found:
        raise DataError(f"{root}: there is no COCO panoptic annotation file in it (a JSON with segments_info).")
    return coco.files_by_split(found, root, wanted)


def _merge_things(things: dict[int | str, bool | None], content: Mapping[str, Any], file: str) -> None:
    for category in content["categories"]:
        isthing = category.get("isthing")
        isthing = bool(isthing) if isthing in (0, 1) else None
        if things.setdefault(category["id"], isthing) != isthing:
            raise DataError(f"{file}: category {category['id']!r} has another isthing elsewhere.")


def _label_map(
    names: Mapping[int | str, str], used: set[int | str], things: Mapping[int | str, bool | None]
) -> LabelMap | None:
    found = coco.label_map(names, used)
    if found is None or any(things[source] is None for source in found.sources):
        return found
    countable = tuple(name for name, source in zip(found.names, found.sources, strict=True) if things[source])
    return LabelMap(found.names, found.sources, things=countable)


def _read_split(
    content: Mapping[str, Any],
    file: Path,
    split: str,
    root: Path,
    bases: tuple[Path | None, Path | None],
    used: set[int | str],
    findings: Findings,
    on_bad_sample: str,
) -> datasets.Dataset:
    name = relative_name(str(file), root)
    found = coco.images_by_id(content["images"], name)
    annotated = _annotations(content["annotations"], found, name, findings, on_bad_sample)
    for image_id, image in found.items():
        if image_id not in annotated:
            findings.add("unannotated-image", image["file_name"])
    found = {image_id: image for image_id, image in found.items() if image_id in annotated}
    annotated = {image_id: annotated[image_id] for image_id in found}
    pngs = _masks_resolver([each["file_name"] for each in annotated.values()], file, split, root, bases[1])
    masks = coco.existing(annotated, pngs, root, findings, on_bad_sample, "missing-mask")
    # PNGs may have the names of their images.
    taken = frozenset(masks.values())
    resolve = coco.images_resolver([each["file_name"] for each in found.values()], file, split, root, bases[0], taken)
    paths = coco.existing(found, resolve, root, findings, on_bad_sample)
    kept = [image_id for image_id in paths if image_id in masks]
    segments = [
        _segments(annotated[image_id], f"{name}: image {coco.short(image_id)}", findings, on_bad_sample)
        for image_id in kept
    ]
    flat = [segment for each in segments for segment in each]
    categories = [segment["category_id"] for segment in flat]
    if len({type(category) for category in categories} - {type(None)}) > 1:
        raise DataError(f"{name}: category_id is a number in some segments and text in others.")
    used.update(category for category in categories if category is not None)
    known = next((category["id"] for category in content["categories"]), next(iter(used), 0))
    kinds = {
        "id": "int64",
        "category_id": "string" if isinstance(known, str) else "int64",
        "area": "float64",
        "iscrowd": "bool",
    }
    values = {
        "id": pa.array([segment["id"] for segment in flat], pa.int64()),
        "category_id": pa.array(categories, kinds["category_id"]),
        "area": pa.array([coco.number_or_none(segment.get("area")) for segment in flat], pa.float64()),
        "iscrowd": pa.array([segment.get("iscrowd") in (1, "1") for segment in flat], pa.bool_()),
    }
    offsets = pa.array(np.cumsum([0, *map(len, segments)]), pa.int32())
    features = datasets.Features(
        {
            "image": datasets.Image(decode=False),
            "mask": datasets.Image(decode=False),
            "segments_info": datasets.List({key: datasets.Value(kind) for key, kind in kinds.items()}),
        }
    )
    columns = {
        "image": pa.array([paths[image_id] for image_id in kept], pa.string()),
        "mask": pa.array([masks[image_id] for image_id in kept], pa.string()),
        "segments_info": pa.ListArray.from_arrays(
            offsets, pa.StructArray.from_arrays(list(values.values()), names=list(values))
        ),
    }
    return datasets.Dataset.from_dict(columns, features=features)


def _annotations(
    annotations: list[Any],
    images: Mapping[int | str, Any],
    name: str,
    findings: Findings,
    on_bad_sample: str,
) -> dict[int | str, dict[str, Any]]:
    """Image id -> its annotation {file_name, segments_info}."""
    found: dict[int | str, dict[str, Any]] = {}
    for position, annotation in enumerate(annotations):
        code, reason = "unreadable-annotation", ""
        if not isinstance(annotation, dict):
            reason = "it is no object"
        elif not coco.is_text(annotation.get("file_name")):
            reason = "it has no file_name"
        elif not isinstance(annotation.get("segments_info"), list):
            reason = "it has no segments_info"
        elif not coco.is_id(annotation.get("image_id")) or annotation["image_id"] not in images:
            code, reason = "orphan-annotation", f"image_id is {annotation.get('image_id')!r}"
        elif annotation["image_id"] in found:
            reason = f"another one is of the image {annotation['image_id']!r} too"
        if reason:
            findings.drop(code, f"{name}: annotation {position}", reason, on_bad_sample)
        else:
            found[annotation["image_id"]] = annotation
    if annotations and images and not found:
        first = findings.summary().split("\n")[0]
        raise DataError(f"{name}: none of its {len(annotations)} annotations is one of an image.\n{first}")
    return found


def _segments(annotation: Mapping[str, Any], name: str, findings: Findings, on_bad_sample: str) -> list[dict[str, Any]]:
    """The segments that have an id; `category_id` is None where a segment has none."""
    kept = []
    for position, segment in enumerate(annotation["segments_info"]):
        if isinstance(segment, dict) and is_int64(segment.get("id")):
            category = segment.get("category_id")
            kept.append({**segment, "category_id": category if coco.is_id(category) else None})
        else:
            findings.drop("segment-unreadable", f"{name} segment {position}", "it has no id", on_bad_sample)
    return kept


def _masks_resolver(names: list[str], file: Path, split: str, root: Path, base: Path | None) -> coco.Resolver:
    """Find the folder that the names of the PNGs start from.

    Raises:
        DataError: nothing is found; it names the folders that were tried.
    """
    tried = list(dict.fromkeys(_mask_folders(file, split, root, base)))
    found = coco.best_resolver(names, tried, (root,) if base is None else (root, base))
    if found is not None:
        return found
    shown = ", ".join("." if folder == root else relative_name(str(folder), root) for folder in tried)
    where = f"in data.masks ({base})" if base is not None else f"in {shown} of {root}"
    raise DataError(
        f"{relative_name(str(file), root)}: its PNGs, as {coco.short(names[0])}, are not {where}.\n"
        "Set data.masks to the folder that holds them."
    )


def _mask_folders(file: Path, split: str, root: Path, base: Path | None) -> Iterator[Path]:
    of_split = (file.stem.lower(), f"panoptic_{split}".lower(), split.lower())
    for start in [base] if base is not None else dict.fromkeys([file.parent, root]):
        below = {path.name.lower(): path for path in folders(start)}
        yield from (below[name] for name in of_split[:2] if name in below)
        for name in _MASK_FOLDERS:
            if name in below:
                deeper = {path.name.lower(): path for path in folders(below[name])}
                yield from (deeper[inner] for inner in of_split if inner in deeper)
                yield below[name]
        yield from (below[name] for name in of_split[2:] if name in below)
        yield start
