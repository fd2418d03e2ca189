"""What programs write that is not read here: told by a few words in a file, and what to export instead."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from cv_hf.data.annotations import files_in, folders
from cv_hf.data.coco import looks_like_coco

ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar", ".arrow")
# What stands in the start of a file -> whose it is, and what to do.
_KNOWN: tuple[tuple[str, str, str], ...] = (
    (r'(?s)"shapes"\s*:.*"(shape_type|imagePath)"\s*:', "labelme", "make COCO of it with its labelme2coco.py"),
    (r'"shape_attributes"|region_shape_attributes', "VIA", "export COCO, or write a table of boxes"),
    (r"(?s)<annotations>.*<(image|track) ", "CVAT", "export 'COCO 1.0' or 'Pascal VOC 1.1' instead"),
    (r'"geometryType"\s*:', "Supervisely", "export COCO instead"),
    (r"(rectangle|polygon|brush|ellipse|keypoint)labels", "Label Studio", "export COCO or YOLO instead"),
    (r'(?s)"annotations"\s*:.*"coordinates"\s*:\s*\{', "CreateML", "export COCO instead"),
    (
        r'"_cls"\s*:|^\s*\{\s*"classes"\s*:\s*\[[^]]*\]\s*,\s*"labels"\s*:\s*\{',
        "FiftyOne",
        "export types.COCODetectionDataset or types.ImageClassificationDirectoryTree instead",
    ),
    (r'"data_row"\s*:', "Labelbox", "convert it to COCO"),
)
_SUFFIXES = {
    **dict.fromkeys(ARCHIVES, "is an archive: unpack it"),
    ".npy": "is an array of NumPy: save each mask as a PNG",
    ".npz": "is an archive of NumPy: save images and masks as PNGs",
    ".mat": "is of MATLAB: save masks as PNGs, and boxes as COCO",
    ".tfrecord": "is a TFRecord: export COCO instead",
}
_TEXT = (".json", ".ndjson", ".jsonl", ".xml", ".csv")
_BOX = re.compile(r"\s*\d+(\s+[01]?\.\d+){4,}\s*$")
_FEW = 3


def name_of(file: Path) -> str | None:
    """Whose file of annotations this is, and what to do with it; None: it is not known."""
    suffix = file.suffix.lower()
    if suffix in _SUFFIXES:
        return _SUFFIXES[suffix]
    if suffix == ".json" and looks_like_coco(file):
        return "is COCO: give this file as data.id"
    try:
        with open(file, encoding="utf-8-sig", errors="replace") as text:
            start = text.read(1 << 16)
    except OSError:
        return None
    if suffix == ".txt":
        if _BOX.match(start.partition("\n")[0]):
            return "looks like YOLO's: write the names of the classes into classes.txt, one a line"
        return None
    return next((f"looks like {who}'s own: {advice}" for words, who, advice in _KNOWN if re.search(words, start)), None)


def hint(folder: Path) -> str:
    """A line on the first file in a folder, or in the folders in it, that is known and not read; "" without one."""
    for file in _files(folder):
        if told := name_of(file):
            return f"\n{file.relative_to(folder)} {told}."
    return ""


def _files(folder: Path) -> Iterator[Path]:
    inner = folders(folder)
    for place in (folder, *inner, *(deeper for path in inner for deeper in folders(path))):
        for suffix in (*_TEXT, *_SUFFIXES, ".txt"):
            yield from files_in(place, {suffix})[:_FEW]
