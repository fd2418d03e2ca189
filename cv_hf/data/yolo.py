"""YOLO: one text file of normalised boxes or polygons per image, names of the classes in data.yaml or classes.txt."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import yaml

from cv_hf.boxes import cxcywh_norm_to_xywh
from cv_hf.config import BoundedComposer
from cv_hf.data import rle
from cv_hf.data.annotations import (
    IMAGE_FOLDERS,
    files_below,
    files_in,
    folder_named,
    folders,
    to_dataset,
    upright_size,
)
from cv_hf.data.coco import number_of_masks
from cv_hf.data.findings import Findings
from cv_hf.data.images import UnreadableImage, image_suffixes, relative_name
from cv_hf.data.labels import LabelMap
from cv_hf.data.paths import Inside, images_folder
from cv_hf.data.source import Source
from cv_hf.data.splits import check_split, role_of
from cv_hf.errors import DataError
from cv_hf.runs import Rle, boxes_and_areas

YAML_NAMES = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
NAMES_FILES = ("classes.txt", "obj.names", "classes.names", "names.txt")
LABEL_FOLDERS = ("labels", "label")
_READ_AT_ONCE = 10_000
_COUNTED = 1000


@dataclass(frozen=True)
class _Reading:
    """What one reading of a dataset shares; `bases` are the folders that paths start from, by precedence."""

    root: Path
    bases: tuple[Path, ...]
    inside: Inside
    findings: Findings
    on_bad_sample: str

    def name(self, path: str | Path) -> str:
        return relative_name(str(path), self.root)

    def drop(self, code: str, name: str, reason: str) -> None:
        self.findings.drop(code, name, reason, self.on_bad_sample)


@dataclass(frozen=True)
class _Label:
    """One parsed label file: boxes are cxcywh relative to the image's size, polygons [x1, y1, x2, ...] too."""

    classes: list[int] = field(default_factory=list)
    boxes: list[tuple[float, float, float, float]] = field(default_factory=list)
    polygons: list[list[float] | None] = field(default_factory=list)
    bad: list[tuple[int, str]] = field(default_factory=list)


def read(
    id: str,
    *,
    images: str | None = None,
    wanted: Sequence[str] = (),
    findings: Findings | None = None,
    on_bad_sample: str = "skip",
    segmentation: bool = False,
) -> Source:
    """Read a YOLO dataset.

    Args:
        id: its folder, or its data.yaml, whose train, val and test are folders, lists of folders, or .txt lists of
            images. Without it: images/train beside labels/train, train/images beside train/labels, lists train.txt
            and the like, or images beside labels (one split, "train"). A label file stands in the folder `labels`
            where its image stands in `images`, or else beside its image.
        images: the folder that paths start from, where it is not that of data.yaml.
        wanted: splits to read besides those with a usual name.
        findings: filled with what was left out.
        on_bad_sample: "skip" or "stop".
        segmentation: read the polygons too.

    Returns:
        columns `image`, `image_id` (the row's number), `width`, `height` (of the upright image, from its header) and
        `objects` {bbox, category, area, iscrowd}: absolute xywh, class numbers, null and false. A polygon gives the
        box around it. An image without a label file has no objects. With `segmentation`, `objects` has the polygons as
        compressed RLE as well, and their areas; an object without a polygon is dropped.

    Raises:
        DataError: no images, a split without any label file, a data.yaml that is none, or paths that lead outside.
    """
    reading, splits, labels, names = _found(
        id, images, wanted, Findings() if findings is None else findings, on_bad_sample
    )
    _report_orphans(splits, labels, reading)
    rows = {
        name: _read_split(paths, labels[name], reading, segmentation)
        for name, paths in splits.items()
        if any(labels[name])
    }
    return Source(id, "yolo", rows, root=reading.root, labels=names)


def count_masks(id: str, images: str | None = None) -> tuple[int, int]:
    """How many objects have a polygon, and how many there are, by the first label files of the training split, or the
    only one; see `coco.number_of_masks`.

    Raises:
        DataError: as `read`, of the files.
    """
    reading, _, labels, _ = _found(id, images, (), Findings(), "skip")
    train = next((files for name, files in labels.items() if role_of(name) == "train"), next(iter(labels.values())))
    first = [path for path in train if path and reading.inside(path)][:_COUNTED]
    polygons = [polygon for path in first for polygon in parse_label(_content(path)).polygons]
    return number_of_masks([polygon and [polygon] for polygon in polygons])


def _found(
    id: str, images: str | None, wanted: Sequence[str], findings: Findings, on_bad_sample: str
) -> tuple[_Reading, dict[str, list[str]], dict[str, list[str | None]], LabelMap | None]:
    """What one reading shares, the images of each split, their label files, and the names of classes; see `read`."""
    path = Path(os.path.abspath(id))
    root = path.parent if path.is_file() else path
    base = images_folder(images)
    starts = [root] if base is None else [base, root]
    inside = Inside(*starts)
    file = path if path.is_file() else find_yaml(root)
    if file is not None and not inside.holds(file):
        raise DataError(f"{file} is a link that leads out of the dataset's folder.")
    config = _read_yaml(file) if file is not None else {}
    # A `path` of another machine, or one outside, gives way to the folder of data.yaml.
    given = inside(os.path.join(root, _text(config.get("path"))))
    if given is not None and os.path.isdir(given):
        starts.insert(0, Path(given))
    reading = _Reading(root, tuple(dict.fromkeys(starts)), inside, findings, on_bad_sample)
    splits = _splits_of_yaml(config, file, wanted, reading) if file is not None else {}
    if not splits:
        splits = _splits_of_folders(reading.bases[0], wanted, reading)
    splits = {name: paths for name, paths in splits.items() if paths}
    if not splits:
        raise DataError(f"{id}: there are no images in it (images/train beside labels/train, or data.yaml).")
    for name in wanted:
        check_split(name, list(splits))
    names = _names(config, file) or _names_of_file(reading, [Path(paths[0]).parent for paths in splits.values()])
    labels = {name: _label_files(paths, reading) for name, paths in splits.items()}
    if not any(label for files in labels.values() for label in files):
        raise DataError(
            f"{id}: no image has a label file (labels/*.txt where the image stands in images, or beside it)."
        )
    for name, files in labels.items():
        if not any(files):
            if role_of(name) != "test":
                raise DataError(f"{id}: no image of the split {name} has a label file.")
            findings.add("missing-split", name, "no image of it has a label file")
    return reading, splits, labels, names


def find_yaml(root: Path) -> Path | None:
    """The data.yaml of a folder: by its usual names, else the only YAML that has `names`."""
    files = files_in(root, {".yaml", ".yml"})
    named = [path for name in YAML_NAMES for path in files if path.name.lower() == name]
    if named:
        return named[0]
    others = []
    for path in files:
        try:
            others += [path] if "names" in _read_yaml(path) else []
        except DataError:
            continue
    return others[0] if len(others) == 1 else None


def names_in(folder: Path) -> list[Path]:
    """The files in a folder that name the classes, one a line: classes.txt, obj.names; most usual first."""
    files = {path.name.lower(): path for path in files_in(folder, {".txt", ".names"})}
    named = [files[name] for name in NAMES_FILES if name in files]
    return named or [path for path in files.values() if path.suffix.lower() == ".names"]


def is_whole(path: Path) -> bool:
    """Whether a YAML file is a data.yaml that names the classes and where the images are."""
    try:
        config = _read_yaml(path)
    except DataError:
        return False
    return "names" in config and any(isinstance(key, str) and role_of(key) for key in config)


class _TextLoader(BoundedComposer, yaml.BaseLoader):
    """Every scalar as the text that it is: a class called `no` or `1.0` keeps its name."""


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        config = yaml.load(path.read_text(encoding="utf-8-sig"), Loader=_TextLoader)
    except (OSError, ValueError, yaml.YAMLError, RecursionError, TypeError) as error:
        raise DataError(f"{path}: not valid YAML ({str(error).splitlines()[0][:100]}).") from None
    if config in (None, ""):
        return {}
    if not isinstance(config, dict):
        raise DataError(f"{path}: not the data.yaml of YOLO: it must be {{train: ..., val: ..., names: ...}}.")
    return config


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _names(config: Mapping[str, Any], file: Path | None) -> LabelMap | None:
    names = config.get("names")
    if not names:
        return None
    if isinstance(names, list):
        names = dict(enumerate(names))
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise DataError(f"{file}: names must be a list of class names, or {{number: name}}.")
    try:
        by_number = {int(number): name for number, name in names.items()}
    except (ValueError, TypeError):
        raise DataError(f"{file}: names must be a list of class names, or {{number: name}}.") from None
    number = _text(config.get("nc")).strip()
    if number.isdecimal() and int(number) != len(by_number):
        raise DataError(f"{file}: nc is {number}, and there are {len(by_number)} names.")
    return LabelMap(tuple(by_number[key] for key in sorted(by_number)), tuple(sorted(by_number)))


def _names_of_file(reading: _Reading, image_folders: Sequence[Path]) -> LabelMap | None:
    """The names in classes.txt or obj.names, one a line: beside the images or labels, or above them."""
    places = [*reading.bases]
    for folder in (*reading.bases, *image_folders):
        places += [*_label_folders(folder, reading), folder]
    for place in dict.fromkeys(places):
        for path in names_in(place):
            if reading.inside(str(path)) is None:
                raise DataError(f"{path} is a link that leads out of the dataset's folder.")
            lines = path.read_text(encoding="utf-8-sig", errors="replace").rstrip().splitlines()
            if lines:
                names = tuple(line.strip() or str(number) for number, line in enumerate(lines))
                return LabelMap(names, tuple(range(len(names))))
    return None


def _splits_of_yaml(
    config: Mapping[str, Any], file: Path, wanted: Sequence[str], reading: _Reading
) -> dict[str, list[str]]:
    splits = {}
    for split, entries in config.items():
        if not (isinstance(split, str) and (role_of(split) or split in wanted)) or not entries:
            continue
        entries = [entries] if isinstance(entries, str) else entries
        if not isinstance(entries, list) or not all(isinstance(entry, str) for entry in entries):
            raise DataError(f"{file}: {split} must be a folder or a list of folders.")
        paths: list[str] = []
        missing = []
        for entry in entries:
            place = _locate(entry, reading)
            if place is None:
                missing.append(entry)
            elif os.path.isdir(place):
                paths += _images_below(Path(place), reading)
            else:
                paths += _images_of_list(Path(place), reading)
        for entry in missing:
            if role_of(split) == "train" or split in wanted:
                raise DataError(
                    f"{file}: {split}: there is no {entry} in the dataset's folder.\n"
                    "Correct it there, or set data.images to the folder that the paths start from."
                )
            reading.findings.add("missing-split", f"{split}: {entry}", f"named in {file.name}, and not there")
        splits[split] = list(dict.fromkeys(paths))
    return splits


def _splits_of_folders(root: Path, wanted: Sequence[str], reading: _Reading) -> dict[str, list[str]]:
    def is_split(path: Path) -> bool:
        return bool(role_of(path.name)) or path.name in wanted

    top = folder_named(root, IMAGE_FOLDERS) or root
    found = {path.name: path for path in folders(top) if is_split(path)}
    if not found:
        found = {path.name: folder_named(path, IMAGE_FOLDERS) or path for path in folders(root) if is_split(path)}
    splits = {name: _images_below(path, reading) for name, path in found.items()}
    if any(splits.values()):
        return splits
    lists = [path for path in files_in(root, {".txt"}) if role_of(path.stem) or path.stem in wanted]
    if lists:
        return {path.stem: _images_of_list(path, reading) for path in lists}
    return {"train": _images_below(top, reading)}


def _images_below(folder: Path, reading: _Reading) -> list[str]:
    return list(
        files_below(folder, image_suffixes(), reading.inside, reading.root, reading.findings, reading.on_bad_sample)
    )


def _images_of_list(file: Path, reading: _Reading) -> list[str]:
    if reading.inside(str(file)) is None:
        raise DataError(f"{file} is a link that leads out of the dataset's folder.")
    found = []
    try:
        text = file.read_text(encoding="utf-8-sig", errors="replace")
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror}).") from None
    for line in filter(None, map(str.strip, text.splitlines())):
        path = _locate(line, reading, file.parent, by_last_parts=True)
        if path is not None and os.path.isfile(path):
            found.append(path)
        elif reading.inside(os.path.join(reading.bases[0], line)) is None:
            reading.drop("path-outside", line, "the path leads out of the dataset's folder")
        else:
            reading.drop("missing-image", line, f"listed in {file.name}, and not there")
    return found


def _locate(text: str, reading: _Reading, *folders: Path, by_last_parts: bool = False) -> str | None:
    """Where a path of data.yaml or of a list leads, or None.

    One that leads outside or nowhere is tried without its `..`, as some exports write `../train/images` for the folder
    beside data.yaml; and one of another machine, or any if `by_last_parts`, by its last parts.
    """
    text = text.strip().replace("\\", "/")
    parts = [part for part in text.split("/") if part not in ("", ".", "..")]
    shortened = len(parts) if by_last_parts or re.match(r"/|[A-Za-z]:", text) else min(1, len(parts))
    for name in (text, *("/".join(parts[start:]) for start in range(shortened))):
        for base in (*reading.bases, *folders):
            path = reading.inside(os.path.join(base, name))
            if path is not None and os.path.exists(path):
                return path
    return None


def _label_folders(folder: Path, reading: _Reading) -> Iterator[Path]:
    """Where the label files of the images in a folder can stand, most usual first."""
    top = next((base for base in reversed(reading.bases) if folder.is_relative_to(base)), folder)
    parts = folder.relative_to(top).parts
    places = []
    for index in reversed(range(len(parts))):
        if parts[index].lower() in IMAGE_FOLDERS:
            places.append((top.joinpath(*parts[:index]), parts[index + 1 :]))
    places += [(folder, ()), (top, parts), (folder.parent, ())]
    for parent, tail in places:
        labels = folder_named(parent, LABEL_FOLDERS)
        if labels is not None and reading.inside.holds(place := labels.joinpath(*tail)) and place.is_dir():
            yield place


def _label_files(paths: Sequence[str], reading: _Reading) -> list[str | None]:
    places: dict[str, list[str]] = {}
    found = []
    for path in paths:
        folder, name = os.path.split(path)
        if folder not in places:
            known = [*_label_folders(Path(folder), reading), Path(folder)]
            places[folder] = [str(place) for place in dict.fromkeys(known)]
        label = os.path.splitext(name)[0] + ".txt"
        candidates = (os.path.join(place, label) for place in places[folder])
        found.append(next((each for each in candidates if os.path.isfile(each) or os.path.islink(each)), None))
    return found


def _report_orphans(
    images: Mapping[str, Sequence[str]], labels: Mapping[str, Sequence[str | None]], reading: _Reading
) -> None:
    """Label files without an image, in the folders that hold labels; that of an image that is not listed is none."""
    used = {path for files in labels.values() for path in files if path}
    photos = {os.path.dirname(path) for paths in images.values() for path in paths}
    stems = {path.stem for folder in photos for path in files_in(Path(folder), image_suffixes())}
    for folder in sorted({os.path.dirname(path) for path in used}):
        if not any(part.lower() in LABEL_FOLDERS for part in Path(folder).parts[len(reading.root.parts) :]):
            continue
        for path in map(str, files_in(Path(folder), {".txt"})):
            name = os.path.basename(path)
            if path not in used and name.lower() not in NAMES_FILES and os.path.splitext(name)[0] not in stems:
                reading.drop("orphan-annotation", reading.name(path), "there is no image of that name")


def _read_split(
    paths: Sequence[str], labels: Sequence[str | None], reading: _Reading, segmentation: bool
) -> datasets.Dataset:
    kept: list[str] = []
    sizes: list[tuple[int, int]] = []
    owners: list[int] = []
    boxes: list[tuple[float, float, float, float]] = []
    classes: list[int] = []
    masks: list[Rle] | None = [] if segmentation else None

    def one(place: tuple[str, str | None]) -> tuple[tuple[int, int], _Label | None] | UnreadableImage:
        path, label = place
        try:
            size = upright_size(path, reading.name(path))
        except UnreadableImage as error:
            return error
        return size, parse_label(_content(label)) if label is None or reading.inside(label) else None

    with ThreadPoolExecutor(max_workers=min(16, 4 * (os.cpu_count() or 1))) as pool:
        # One future per image of a million would need a gigabyte.
        for start in range(0, len(paths), _READ_AT_ONCE):
            part = list(zip(paths, labels, strict=True))[start : start + _READ_AT_ONCE]
            for (path, label), outcome in zip(part, pool.map(one, part), strict=True):
                if isinstance(outcome, UnreadableImage):
                    reading.drop(outcome.code, outcome.name, outcome.reason)
                    continue
                size, parsed = outcome
                if parsed is None:
                    reading.drop("path-outside", reading.name(label), "the link leads out of the dataset's folder")
                    continue
                for number, reason in parsed.bad:
                    reading.drop("unreadable-annotation", f"{reading.name(label)}: line {number}", reason)
                if masks is not None:
                    parsed, found = _with_masks(parsed, size, reading.name(path), reading)
                    masks += found
                owners += [len(kept)] * len(parsed.boxes)
                boxes += parsed.boxes
                classes += parsed.classes
                kept.append(path)
                sizes.append(size)
    of_boxes = np.asarray(sizes, np.float64).reshape(-1, 2)[np.asarray(owners, np.int64)]
    # What becomes infinite is no box, and is lost as such.
    with np.errstate(over="ignore", invalid="ignore"):
        absolute = cxcywh_norm_to_xywh(boxes, of_boxes)
    areas = None if masks is None else boxes_and_areas(masks)[1].tolist()
    return to_dataset(kept, range(len(kept)), sizes, owners, absolute, classes, int, areas, masks=masks)


def _with_masks(label: _Label, size: tuple[int, int], name: str, reading: _Reading) -> tuple[_Label, list[Rle]]:
    """Those objects of an image of (height, width) that have a mask, and these."""
    height, width = size
    kept, masks = _Label(), []
    for number, polygon in enumerate(label.polygons):
        pixels = polygon and [edge * (height if place % 2 else width) for place, edge in enumerate(polygon)]
        place = f"{name} object {number}"
        mask = rle.read(pixels and [pixels], size, place, reading.findings, reading.on_bad_sample)
        if mask is not None:
            kept.boxes.append(label.boxes[number])
            kept.classes.append(label.classes[number])
            masks.append(mask)
    return kept, masks


def _content(label: str | None) -> str:
    if label is None:
        return ""
    try:
        return Path(label).read_text(encoding="utf-8-sig", errors="replace")
    except OSError as error:
        return f"cannot be read: {error.strerror}"


def parse_label(text: str) -> _Label:
    """Parse a label file: per line a class number and a box (cx cy w h), or a polygon of three points or more.

    Lines of another shape are kept in `bad`: (number from 1, reason).
    """
    label = _Label()
    for number, line in enumerate(text.split("\n"), 1):
        fields = line.split()
        if not fields:
            continue
        try:
            category, *values = map(float, fields)
        except ValueError:
            label.bad.append((number, "it holds something else than numbers"))
            continue
        if not (math.isfinite(category) and category.is_integer() and 0 <= category < 2**31):
            label.bad.append((number, f"the class is {fields[0][:20]}, not 0, 1, 2, ..."))
        elif len(values) == 4:
            label.classes.append(int(category))
            label.boxes.append(tuple(values))
            label.polygons.append(None)
        elif len(values) >= 6 and len(values) % 2 == 0:
            left, right = min(values[::2]), max(values[::2])
            top, bottom = min(values[1::2]), max(values[1::2])
            label.classes.append(int(category))
            label.boxes.append(((left + right) / 2, (top + bottom) / 2, right - left, bottom - top))
            label.polygons.append(values)
        else:
            label.bad.append((number, f"{len(fields)} numbers are neither a box (5) nor a polygon (7, 9, ...)"))
    return label
