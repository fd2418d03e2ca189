"""Telling the format of a dataset from what is there."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Sequence
from pathlib import Path

from cv_hf.config import DataConfig
from cv_hf.data.annotations import IMAGE_FOLDERS, files_in
from cv_hf.data.annotations import folders as folders_in
from cv_hf.data.box_rows import says_boxes
from cv_hf.data.coco import candidates, holds_segments, looks_like_coco
from cv_hf.data.foreign import ARCHIVES, hint, name_of
from cv_hf.data.imagefolder import metadata_of
from cv_hf.data.images import image_suffixes
from cv_hf.data.masks import MASK_FOLDERS, paired_folders, shows_masks
from cv_hf.data.paths import is_hidden
from cv_hf.data.splits import role_of
from cv_hf.data.table import SUFFIXES, table_files
from cv_hf.data.voc import has_xml
from cv_hf.data.yolo import LABEL_FOLDERS, find_yaml, is_whole, names_in, parse_label
from cv_hf.errors import DataError

_SEGMENTS = ("masks", "panoptic")
_FEW_FOLDERS = 20


def detect_format(data: DataConfig, formats: Sequence[str] = ()) -> str:
    """Return one of `config.FORMATS` for `data.id`: by content if it is on disk, else "hub" if it can be a Hub id.

    Args:
        data: the data section.
        formats: those that a task reads. One dataset may stand there in several forms (boxes, masks, panoptic
            segments), and is then taken in one of these; empty: in the form that holds boxes.

    Raises:
        DataError: a path that does not exist, or of no known format.
    """
    path = Path(data.id)
    if path.is_file():
        return _format_of_file(path)
    if path.is_dir():
        return _format_of_folder(path, data, formats)
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
        or Path(id).suffix.lower() in (*SUFFIXES, *ARCHIVES, ".txt", ".xml", ".yaml", ".yml")
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
    if suffix == ".json" and (found := _format_of_json(path)):
        return found
    if suffix in SUFFIXES:
        return _table([path])
    if suffix in ARCHIVES:
        raise DataError(f"data.id: {path} is an archive; unpack it and give the folder.")
    told = f"\n{path.name} {told}." if (told := name_of(path)) else ""
    raise DataError(
        f"data.id: {path} is of no format that is read (a folder, or a table: {', '.join(SUFFIXES)}).{told}"
    )


def _format_of_json(path: Path) -> str | None:
    """COCO's formats are told by their keys; the annotations can be too large to parse for that."""
    if holds_segments(path):
        return "panoptic"
    return "coco" if looks_like_coco(path) else None


def _format_of_folder(path: Path, data: DataConfig, formats: Sequence[str]) -> str:
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        raise DataError(
            f"data.id: {path} was written by save_to_disk.\n"
            "Write it as parquet instead: dataset.to_parquet('train.parquet') for each split."
        )
    annotated = _annotated(path, data, formats)
    if len(annotated) > 1:
        fitting = [form for form in formats if form in annotated]
        if fitting and fitting[0] in _SEGMENTS:
            return fitting[0]
        # A dataset of boxes that was exported twice may differ; one with segments too says the same of its boxes.
        boxes = [form for form in annotated if form not in _SEGMENTS]
        annotated = [form for form in boxes if form in fitting] or boxes or annotated
    if len(annotated) > 1:
        raise DataError(f"data.id: {path} could be {' or '.join(annotated)}.\nSet data.format to one of them.")
    if annotated:
        return annotated[0]
    folders = sorted(entry for entry in path.iterdir() if entry.is_dir() and not is_hidden(entry.name))
    tables = [file for files in table_files(path).values() for file in files]
    if any(file.suffix.lower() == ".parquet" for file in tables):
        return "parquet"
    if metadata_of(path) or any(metadata_of(folder) for folder in folders):
        return "imagefolder"
    unlabelled = _unlabelled(path)
    if tables and (data.images or not folders or unlabelled or any(_names_images(file) for file in tables)):
        return _table(tables)
    if folders and not unlabelled:
        if not formats or "masks" in formats:
            _refuse_pairs(path)
        return "imagefolder"
    if unlabelled or _holds_images(path):
        raise DataError(
            f"data.id: {path} holds images, but no labels: no folders of classes, no metadata.csv, no table."
            + hint(path)
        )
    raise DataError(f"data.id: {path} holds nothing that is read: no folders of images, no tables.{hint(path)}")


def _table(files: Sequence[Path]) -> str:
    """The format of tables; DataError where they are of a program whose tables are not read."""
    for file in files[:1]:
        if file.suffix.lower() != ".parquet" and (told := name_of(file)):
            raise DataError(f"data.id: {file} {told}.")
    return "parquet"


def _unlabelled(folder: Path) -> bool | None:
    """Whether the images below a folder stand in folders that are called as those of images or splits are, so that
    none is a class; None: there are no images."""
    found = None
    for inner in folders_in(folder):
        if inner.name.lower() not in IMAGE_FOLDERS and not role_of(inner.name):
            if any(_holds_images(Path(place)) for place, _, _ in os.walk(inner)):
                return False
        elif (below := _holds_images(inner) or _unlabelled(inner)) is not None:
            if not below:
                return False
            found = True
    return found


def _refuse_pairs(path: Path) -> None:
    """Refuse two folders whose files are called alike, as images and their masks are; or a folder for each image."""
    first = [folder for folder in folders_in(path) if not role_of(folder.name)][:_FEW_FOLDERS]
    inner = [{deeper.name.lower() for deeper in folders_in(folder)} for folder in first]
    if len(inner) > 1 and all("images" in names and not names.isdisjoint(MASK_FOLDERS) for names in inner):
        raise DataError(
            f"data.id: {path} has a folder for each image, with its masks, which is not read.\n"
            "Put the images into images/ and a mask of each, of the same name, into masks/; or write COCO of instances."
        )
    if pair := paired_folders(path):
        image, mask = pair
        raise DataError(
            f"data.id: the files of {image.name} and {mask.name} in {path} are called alike, as images and masks are.\n"
            f"If they are: data.images={image} data.masks={mask}; if these are two classes: data.format=imagefolder."
        )


def _annotated(path: Path, data: DataConfig, formats: Sequence[str]) -> list[str]:
    """Of the formats of annotated images, those that a folder shows: more than one when it was exported twice."""
    kinds = {_format_of_json(file) for file in candidates(path)} - {None}
    found = [kind for kind in ("coco", "panoptic") if kind in kinds]
    if _shows_voc(path):
        found.append("voc")
    if _shows_yolo(path):
        found.append("yolo")
    # For other tasks such folders may be anything, and to look through them all takes time.
    sought = "masks" in formats or not (formats or found)
    if sought and (shows_masks(path) or (data.masks and "panoptic" not in found)):
        found.append("masks")
    return found


def _shows_voc(path: Path) -> bool:
    places = [path, *(entry for entry in folders_in(path) if role_of(entry.name))]
    return any(has_xml(place) for place in places)


def _shows_yolo(path: Path) -> bool:
    """Files of numbers in a folder `labels`, or beside images where the classes are named; or a whole data.yaml."""
    file = find_yaml(path)
    if file is not None and is_whole(file):
        return True
    inner = [entry for entry in folders_in(path) if role_of(entry.name) or entry.name.lower() in IMAGE_FOLDERS]
    labels = [entry for place in (path, *inner) for entry in folders_in(place) if entry.name.lower() in LABEL_FOLDERS]
    labels += [deeper for entry in labels for deeper in folders_in(entry)]
    texts = [text for entry in labels for text in files_in(entry, {".txt"})[:20]]
    if texts and file is not None:
        return True
    beside = [path, *inner, *(deeper for entry in inner for deeper in folders_in(entry))]
    if any(names_in(place) for place in (path, *beside)):
        beside += [entry for entry in folders_in(path) if entry.name.lower().startswith("obj")]
        for place in beside:
            stems = {image.stem for image in files_in(place, image_suffixes())}
            texts += [text for text in files_in(place, {".txt"}) if text.stem in stems][:20]
    return any(map(_is_label_file, texts))


def _is_label_file(file: Path) -> bool:
    with open(file, encoding="utf-8", errors="replace") as text:
        label = parse_label(text.readline())
    return bool(label.boxes) and not label.bad


def _names_images(table: Path) -> bool:
    """Whether a table says boxes, or its first rows hold the path of a file beside it: a stray one among folders does
    neither."""
    with open(table, encoding="utf-8-sig", errors="replace") as text:
        first = [text.readline() for _ in range(5)]
    rows = [[cell.strip() for cell in re.split(r'[,;\t|"]', line)] for line in first]
    images = [cell for row in rows for cell in row if Path(cell).suffix.lower() in image_suffixes()]
    return says_boxes(rows[0]) or any((table.parent / cell.replace("\\", "/")).is_file() for cell in images)


def _holds_images(folder: Path) -> bool:
    with os.scandir(folder) as entries:
        return any(Path(entry.name).suffix.lower() in image_suffixes() for entry in entries)
