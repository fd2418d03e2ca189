"""Pascal VOC: one XML of boxes per image.

What the format leaves open, and how it is read here:

- `difficult` objects are ordinary boxes. The flag says that one object is hard to recognise; VOC's evaluation leaves
  such objects out, COCO's, which scores here, knows no such thing, and its `iscrowd`, a region of many objects that
  any number of predictions may match, means something else.
- Coordinates are taken as written: width is xmax - xmin, and no 1 is subtracted from xmin. The pixel indices of the
  original VOC were 1-based and inclusive; but most files of this format come from labelling tools, which write the
  edges of a box as continuous coordinates from 0, and nothing in a file tells one from the other.
"""

from __future__ import annotations

import os
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import datasets

from cv_hf.data.annotations import (
    ANNOTATION_FOLDERS,
    IMAGE_FOLDERS,
    files_below,
    files_in,
    folder_named,
    folders,
    to_dataset,
)
from cv_hf.data.findings import Findings
from cv_hf.data.images import image_suffixes, relative_name
from cv_hf.data.paths import Inside, images_folder
from cv_hf.data.source import Source
from cv_hf.data.splits import check_split, role_of
from cv_hf.errors import DataError

_XML_FOLDERS = (*ANNOTATION_FOLDERS, "labels")
_CORNERS = ("xmin", "ymin", "xmax", "ymax")


@dataclass(frozen=True)
class _Reading:
    """What one reading of a dataset shares."""

    root: Path
    inside: Inside
    findings: Findings
    on_bad_sample: str

    def name(self, path: str | Path) -> str:
        return relative_name(str(path), self.root)

    def drop(self, code: str, name: str, reason: str) -> None:
        self.findings.drop(code, name, reason, self.on_bad_sample)

    def below(self, folder: Path, suffixes: Iterable[str]) -> list[str]:
        return list(files_below(folder, set(suffixes), self.inside, self.root, self.findings, self.on_bad_sample))


@dataclass(frozen=True)
class _Annotation:
    """One parsed XML: boxes are absolute xywh, size is (height, width)."""

    filename: str
    size: tuple[int | None, int | None]
    boxes: list[tuple[float, float, float, float]] = field(default_factory=list)
    names: list[str] = field(default_factory=list)


def read(
    id: str,
    *,
    images: str | None = None,
    wanted: Sequence[str] = (),
    findings: Findings | None = None,
    on_bad_sample: str = "skip",
) -> Source:
    """Read a folder of Pascal VOC annotations.

    Args:
        id: the folder. It holds the XML files in `Annotations` (annots, annotations; folders called as splits are in
            it, or not) beside `JPEGImages` (images, imgs), or beside their images, or one of these in each of its
            folders train, valid, test. `ImageSets/Main/train.txt` and the like, where there are any, give the splits;
            without them and without folders it is one split, "train".
        images: the folder of the images, where it is none of these.
        wanted: splits to read besides those with a usual name.
        findings: filled with what was left out.
        on_bad_sample: "skip" or "stop".

    Returns:
        columns `image`, `image_id` (the name of the XML without its suffix), `width`, `height` (as the XML has them)
        and `objects` {bbox, category, area, iscrowd}: absolute xywh, the class names, null and false.

    Raises:
        DataError: no XML, or a folder that links out of `id`.
    """
    findings = Findings() if findings is None else findings
    root = Path(os.path.abspath(id))
    base = images_folder(images)
    reading = _Reading(root, Inside(*([root] if base is None else [root, base])), findings, on_bad_sample)
    if not root.is_dir():
        raise DataError(f"{id}: Pascal VOC is read from a folder, of Annotations and JPEGImages.")
    parts = [path for path in folders(root) if (role_of(path.name) or path.name in wanted) and has_xml(path)]
    if parts:
        for name in wanted:
            check_split(name, [path.name for path in parts])
        splits = {}
        for part in parts:
            xml, photos = _files(part, base, reading)
            splits[part.name] = _read_split(xml, photos, reading)
            _note_unannotated(xml, photos, reading)
        return Source(id, "voc", splits, root=root)
    xml, photos = _files(root, base, reading)
    if not xml:
        raise DataError(f"{id}: there are no XML files in it (Annotations/*.xml, or beside the images).")
    listed = _lists(root, xml, wanted, reading)
    if listed is None:
        _note_unannotated(xml, photos, reading)
        listed = _by_folder(xml, wanted)
    for name in wanted:
        check_split(name, list(listed))
    return Source(id, "voc", {name: _read_split(part, photos, reading) for name, part in listed.items()}, root=root)


def has_xml(folder: Path) -> bool:
    """Whether XML files of Pascal VOC stand in a folder: in its annotations, in it, or in its images."""
    places = [folder, *(path for path in folders(folder) if path.name.lower() in (*_XML_FOLDERS, *IMAGE_FOLDERS))]
    places += [inner for path in places[1:] for inner in folders(path) if role_of(inner.name) or inner.name == "xmls"]
    return any(map(_is_voc, (path for place in places for path in files_in(place, {".xml"})[:20])))


def _is_voc(path: Path) -> bool:
    # What cannot be read is for those that read it to report.
    with suppress(OSError), open(path, "rb") as file:
        return re.search(rb"<annotation[\s/>]", file.read(4096)) is not None
    return False


def _files(folder: Path, base: Path | None, reading: _Reading) -> tuple[dict[str, str], _Photos]:
    """The XML files by their name, without the suffix and from the folder of annotations; and the photos."""
    annotations = folder_named(folder, _XML_FOLDERS)
    place = base or folder_named(folder, IMAGE_FOLDERS)
    if annotations is None or not (xml := reading.below(annotations, {".xml"})):
        # XML beside the images: in their folder where there is one, else in the folder itself.
        start = place if place is not None and base is None and not files_in(folder, {".xml"}) else folder
        annotations, xml = start, reading.below(start, {".xml"})
        place = base or start
    elif place is None:
        place = annotations if files_in(annotations, image_suffixes()) else folder
    photos = _Photos(reading.below(place, image_suffixes()), place)
    return {os.path.splitext(os.path.relpath(path, annotations))[0].replace(os.sep, "/"): path for path in xml}, photos


class _Photos:
    """Finds the photo of an annotation by name."""

    def __init__(self, paths: Sequence[str], folder: Path) -> None:
        self.paths = paths
        self._found: dict[str, list[str]] = {}
        for path in paths:
            name = os.path.relpath(path, folder).replace(os.sep, "/")
            stem = os.path.splitext(name)[0]
            for key in {name, stem, name.rsplit("/", 1)[-1], stem.rsplit("/", 1)[-1]}:
                self._found.setdefault(key, []).append(path)

    def find(self, stem: str, filename: str) -> list[str]:
        """The photos with the name of the XML, or else of its `<filename>`; of several, those that are called so."""
        filename = filename.replace("\\", "/").rsplit("/", 1)[-1]
        for name in (stem, stem.rsplit("/", 1)[-1], filename, os.path.splitext(filename)[0]):
            if found := self._found.get(name) if name else None:
                exact = [path for path in found if os.path.basename(path) == filename]
                return exact if len(exact) == 1 else found
        return []


def _by_folder(xml: Mapping[str, str], wanted: Sequence[str]) -> dict[str, dict[str, str]]:
    """Splits by the folders of the annotations, if all are called as splits are; else one split, "train"."""
    first = {stem: stem.split("/")[0] if "/" in stem else "" for stem in xml}
    if not all(role_of(name) or name in wanted for name in first.values()):
        return {"train": dict(xml)}
    return {
        name: {stem: path for stem, path in xml.items() if first[stem] == name}
        for name in dict.fromkeys(first.values())
    }


def _lists(
    root: Path, xml: Mapping[str, str], wanted: Sequence[str], reading: _Reading
) -> dict[str, dict[str, str]] | None:
    """The annotations of each split that ImageSets/Main lists, or None where it lists none.

    Lists of one class (cat_train.txt) are none of a split, and trainval is train and val where these are there.
    """
    sets = folder_named(root, ("imagesets",))
    main = (folder_named(sets, ("main",)) or sets) if sets is not None else None
    files = {path.stem: path for path in files_in(main, {".txt"})} if main is not None else {}
    names = [name for name in files if role_of(name) or name in wanted]
    joined = next((name for name in files if name.lower() == "trainval"), None)
    lists = {name: _stems(files[name], reading) for name in names}
    if joined is not None and not any(role_of(name) == "train" for name in names):
        others = {stem for stems in lists.values() for stem in stems}
        lists = {"train": [stem for stem in _stems(files[joined], reading) if stem not in others]} | lists
    if not lists:
        return None
    chosen: dict[str, dict[str, str]] = {}
    by_base = {stem.rsplit("/", 1)[-1]: stem for stem in xml}
    for name, stems in lists.items():
        part: dict[str, str] = {}
        missing = []
        for line in stems:
            candidates = (line, os.path.splitext(line)[0], line.split()[0])
            stem = next((by_base.get(each, each) for each in candidates if by_base.get(each, each) in xml), None)
            if stem is None:
                missing.append(line)
            else:
                part[stem] = xml[stem]
        if not part:
            source = reading.name(files.get(name) or files[joined or name])
            reading.findings.add("missing-split", source, "none of the images that it lists is annotated")
            continue
        for line in missing:
            reading.drop("missing-label", f"{name}: {line}", "listed in ImageSets, and there is no XML of it")
        chosen[name] = part
    if not chosen:
        raise DataError(f"{root}: none of the images that {reading.name(main)} lists has an XML file.")
    used = {stem for part in chosen.values() for stem in part}
    for stem, path in xml.items():
        if stem not in used:
            reading.findings.add("unlisted", reading.name(path))
    return chosen


def _stems(path: Path, reading: _Reading) -> list[str]:
    if not reading.inside.holds(path):
        raise DataError(f"{path} is a link that leads out of the dataset's folder.")
    lines = (line.strip() for line in path.read_text(encoding="utf-8-sig", errors="replace").splitlines())
    return list(dict.fromkeys(line for line in lines if line))


def _note_unannotated(xml: Mapping[str, str], photos: _Photos, reading: _Reading) -> None:
    annotated = {stem.rsplit("/", 1)[-1] for stem in xml}
    for path in photos.paths:
        if Path(path).stem not in annotated:
            reading.findings.add("unannotated-image", reading.name(path))


def _read_split(xml: Mapping[str, str], photos: _Photos, reading: _Reading) -> datasets.Dataset:
    paths, image_ids, sizes, owners, boxes, names = [], [], [], [], [], []
    for stem, path in xml.items():
        annotation = _parse(path, reading)
        if annotation is None:
            continue
        found = photos.find(stem, annotation.filename)
        if len(found) != 1:
            listed = ", ".join(reading.name(each) for each in found[:3])
            reason = f"several images are called so: {listed}" if found else "there is no image of that name"
            reading.drop("missing-image", reading.name(path), reason)
            continue
        owners += [len(paths)] * len(annotation.boxes)
        boxes += annotation.boxes
        names += annotation.names
        paths.append(found[0])
        image_ids.append(stem)
        sizes.append(annotation.size)
    return to_dataset(paths, image_ids, sizes, owners, boxes, names, str)


class _NoDoctype(ET.TreeBuilder):
    """A document type is where entities are declared, which expand without bound or read other files."""

    def doctype(self, *_: object) -> None:
        raise ValueError("it declares a document type, which is not read for safety")


def _parse(path: str, reading: _Reading) -> _Annotation | None:
    """Parse one XML; what has no numbers is dropped with a finding."""
    name = reading.name(path)
    try:
        root = ET.parse(path, ET.XMLParser(target=_NoDoctype())).getroot()
        if root.tag != "annotation":
            raise ValueError(f"its root is <{root.tag[:40]}>, not <annotation>")
    except (OSError, ET.ParseError, ValueError, LookupError) as error:
        reading.drop("unreadable-annotation", name, str(error).splitlines()[0])
        return None
    size = (_pixels(root.findtext("size/height")), _pixels(root.findtext("size/width")))
    annotation = _Annotation((root.findtext("filename") or "").strip(), size)
    for number, item in enumerate(root.findall("object")):
        category = (item.findtext("name") or "").strip()
        try:
            left, top, right, bottom = (float(item.findtext(f"bndbox/{corner}") or "") for corner in _CORNERS)
        except ValueError:
            category = ""
        if not category:
            reason = "it has no name, or no numbers xmin, ymin, xmax, ymax in bndbox"
            reading.drop("unreadable-annotation", f"{name}: object {number}", reason)
            continue
        annotation.boxes.append((left, top, right - left, bottom - top))
        annotation.names.append(category)
    return annotation


def _pixels(text: str | None) -> int | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return int(value) if 0 < value < 2**31 and value.is_integer() else None
