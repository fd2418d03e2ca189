"""Folders of images and masks, one mask per image: which mask is whose, told by their folders and names.

The folders of images and masks lie beside each other, with those of splits above or below them:

    images/a.jpg            masks/a.png
    train/images/a.jpg      train/masks/a.png
    images/training/a.jpg   annotations/training/a.png          as ADE20K
    train/a.png             train_labels/a_L.png                as CamVid
    JPEGImages/a.jpg        SegmentationClass/a.png             as Pascal VOC, splits in ImageSets/Segmentation/*.txt
    leftImg8bit/train/b/a_leftImg8bit.png   gtFine/train/b/a_gtFine_labelIds.png   as Cityscapes
    train/a.jpg             train/a_mask.png                    side by side; also a.jpg and a.png

A mask has its image's name, or that with one of the usual endings or beginnings (mask_a.png). Only paths are read.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import datasets
import pyarrow as pa

from cv_hf.data.annotations import IMAGE_FOLDERS, files_below, files_in, folder_named, folders
from cv_hf.data.findings import Findings
from cv_hf.data.images import image_suffixes, relative_name
from cv_hf.data.paths import Inside, images_folder
from cv_hf.data.source import Source
from cv_hf.data.splits import USUAL_NAMES, check_split, role_of
from cv_hf.errors import DataError

MASK_FOLDERS = (
    "masks", "mask", "annotations", "annotation", "labels", "label", "segmentationclass", "segmentationclassaug",
    "segmentation", "segmentations", "gt", "gts", "groundtruth", "ground_truth", "annots", "annot", "gtfine",
    "gtcoarse", "labelids", "stuffthingmaps", "seg", "segs", "target", "targets",
)  # fmt: skip
_IMAGE_FOLDERS = (*IMAGE_FOLDERS, "leftimg8bit", "rgb", "input", "inputs")
# Of several masks of one image the first of these counts.
_MASK_ENDINGS = (
    "gtfine_labeltrainids", "gtfine_labelids", "gtcoarse_labeltrainids", "gtcoarse_labelids", "labeltrainids",
    "labelids", "mask", "masks", "gt", "label", "labels", "seg", "segmentation", "annotation", "groundtruth", "l",
)  # fmt: skip
_MASK_ENDING = re.compile(rf"[-_. ]({'|'.join(_MASK_ENDINGS)})$", re.IGNORECASE)
_MASK_BEGINNING = re.compile(r"^(mask|gt|label|seg)[-_. ]", re.IGNORECASE)
_IMAGE_BEGINNING = re.compile(r"^(image|img|photo|rgb)[-_. ]", re.IGNORECASE)
_IMAGE_ENDING = re.compile(r"[-_. ](leftimg8bit|image|img|rgb|sat)$", re.IGNORECASE)
# Pictures and other annotations of the same image, which stand among the masks of Cityscapes.
_OTHER = re.compile(r"[-_. ](color|colors|instanceids|instancetrainids|vis|overlay)$", re.IGNORECASE)
_LOSSY = (".jpg", ".jpeg")
_SAMPLED = 50


@dataclass(frozen=True)
class _File:
    """A file: what its folders say of it (kind: "image", "mask" or None; split), and the folders below these."""

    path: str
    kind: str | None
    split: str | None
    below: tuple[str, ...]

    @property
    def stem(self) -> str:
        return os.path.splitext(os.path.basename(self.path))[0]

    @property
    def suffix(self) -> str:
        return os.path.splitext(self.path)[1].lower()


@dataclass(frozen=True)
class _Reading:
    """What one reading of a dataset shares."""

    root: Path
    inside: Inside
    wanted: Sequence[str]
    findings: Findings
    on_bad_sample: str

    def name(self, path: str | Path) -> str:
        return relative_name(str(path), self.root)

    def drop(self, code: str, path: str, reason: str = "") -> None:
        self.findings.drop(code, self.name(path), reason, self.on_bad_sample)


def read(
    id: str,
    *,
    images: str | None = None,
    masks: str | None = None,
    wanted: Sequence[str] = (),
    findings: Findings | None = None,
    on_bad_sample: str = "skip",
) -> Source:
    """Read a folder of images and their masks.

    Args:
        id: the folder, laid out as described above.
        images, masks: the folders of the images and of the masks, where they have none of the usual names.
        wanted: splits to read besides those with a usual name.
        findings: filled with what was left out.
        on_bad_sample: "skip" or "stop".

    Returns:
        columns `image` and `mask`, undecoded.

    Raises:
        DataError: no image has a mask, a split of `wanted` is not there, or a folder links out of `id`.
    """
    findings = Findings() if findings is None else findings
    root = Path(os.path.abspath(id))
    if not root.is_dir():
        raise DataError(f"{id}: masks are read from a folder, of images and masks.")
    given = {"image": images_folder(images), "mask": images_folder(masks, "data.masks")}
    inside = Inside(root, *(folder for folder in given.values() if folder is not None))
    reading = _Reading(root, inside, wanted, findings, on_bad_sample)
    photos, marks = _told_apart(list(_files(given, reading)))
    pairs, without, orphans = _paired(photos, marks, reading)
    if not pairs:
        first = ", ".join(reading.name(files[0].path) for files in (photos, marks) if files)
        raise DataError(
            f"{id}: no image has a mask of its name among {len(photos)} images and {len(marks)} masks"
            + (f" ({first})" if first else "")
            + ".\nThey stand in images/ and masks/, or wherever data.images and data.masks say."
        )
    splits = _splits(pairs, reading)
    for name in wanted:
        check_split(name, list(splits))
    known = {_role(name) for name in splits}
    empty = {}
    for file in without:
        if file.split is not None and _role(file.split) not in known:
            empty[file.split] = None
        elif not _listed_folder(root):
            reading.drop("missing-mask", file.path)
    for name in empty:
        findings.add("missing-split", name, "none of its images has a mask")
    for file in orphans:
        if not _OTHER.search(file.stem):
            reading.drop("orphan-mask", file.path)
    return Source(id, "masks", {name: _dataset(rows) for name, rows in splits.items()}, root=root)


def shows_masks(root: Path) -> bool:
    """Whether a folder holds images and masks in pairs, by the first masks of each of its folders."""
    files = list(_sampled(root))
    photos, marks = _told_apart(files)
    reading = _Reading(root, Inside(root), (), Findings(), "skip")
    pairs, _, orphans = _paired(photos, marks, reading)
    orphans = [file for file in orphans if not _OTHER.search(file.stem)]
    # Side by side, with no folder of masks, a few names may look like masks by chance.
    rest = orphans if any(file.kind == "mask" for file in files) else files[2 * len(pairs) :]
    return len(pairs) > 0 and len(pairs) >= len(rest)


def paired_folders(root: Path) -> tuple[Path, Path] | None:
    """The folders of images and of masks, where these two alone are there, their files are called alike, and something
    tells them apart: one is called as folders of images are, or its files are JPEGs; or those of the other as masks."""
    sampled: dict[Path, list[Path]] = {}
    for folder in folders(root):
        if files := files_in(folder, image_suffixes())[:_SAMPLED]:
            sampled[folder] = files
        if len(sampled) > 2:
            return None
    if len(sampled) < 2:
        return None
    for photos, marks in (tuple(sampled), tuple(sampled)[::-1]):
        names = {path.stem for path in sampled[marks]}
        bare = {_MASK_BEGINNING.sub("", _MASK_ENDING.sub("", name)) for name in names}
        lossy = [{path.suffix.lower() in _LOSSY for path in sampled[folder]} for folder in (photos, marks)]
        told = photos.name.lower() in _IMAGE_FOLDERS or not names & bare or lossy == [{True}, {False}]
        alike = {path.stem for path in sampled[photos]} & bare
        if told and 2 * len(alike) > max(map(len, sampled.values())):
            return photos, marks
    return None


def _files(given: dict[str, Path | None], reading: _Reading) -> Iterator[_File]:
    def below(folder: Path) -> Iterator[str]:
        return files_below(
            folder, image_suffixes(), reading.inside, reading.root, reading.findings, reading.on_bad_sample
        )

    for kind, folder in given.items():
        if folder is not None:
            for path in below(folder):
                _, split, rest = _meaning(Path(path).relative_to(folder).parts[:-1], reading.wanted)
                yield _File(path, kind, split, rest)
    if all(given.values()):
        return
    own = []
    for path in map(str, files_in(reading.root, image_suffixes())):
        if reading.inside(path):
            own.append(path)
        else:
            reading.drop("path-outside", path, "the link leads out of the dataset's folder")
    for folder in folders(reading.root):
        if any(_meaning_of(folder.name, reading.wanted)):
            if not reading.inside.holds(folder):
                raise DataError(
                    f"{folder} is a link that leads out of the dataset's folder.\n"
                    "Give the folder that it leads to as data.images or data.masks, or put the files in its place."
                )
            own += below(folder)
    for path in own:
        kind, split, rest = _meaning(Path(path).relative_to(reading.root).parts[:-1], reading.wanted)
        if not any(given.values()) or (kind is not None and given[kind] is None):
            yield _File(path, kind, split, rest)


def _sampled(root: Path) -> Iterator[_File]:
    def walk(folder: Path, above: tuple[str, ...]) -> Iterator[_File]:
        kind, split, rest = _meaning(above)
        for path in files_in(folder, image_suffixes())[: _SAMPLED if kind == "mask" else None]:
            yield _File(str(path), kind, split, rest)
        inner = folders(folder)
        named = [path for path in inner if any(_meaning_of(path.name))]
        others = [path for path in inner if path not in named][:2] if above else []
        for path in named + others if len(above) < 4 else []:
            yield from walk(path, (*above, path.name))

    yield from walk(root, ())


def _meaning(names: Sequence[str], wanted: Sequence[str] = ()) -> tuple[str | None, str | None, tuple[str, ...]]:
    """What folders, from the outermost, say together: kind, split, and the folders that say nothing."""
    kind = split = None
    rest = []
    for name in names:
        of_kind, of_split = _meaning_of(name, wanted)
        kind, split = of_kind or kind, of_split or split
        if of_kind is None and of_split is None:
            rest.append(name)
    return kind, split, tuple(rest)


def _meaning_of(name: str, wanted: Sequence[str] = ()) -> tuple[str | None, str | None]:
    """The kind and the split that a folder's name says: masks, train, or both (train_masks, trainannot)."""
    if role_of(name) or name in wanted:
        return None, name
    lower = name.lower()
    for kind, usual in (("mask", MASK_FOLDERS), ("image", _IMAGE_FOLDERS)):
        if lower in usual:
            return kind, None
        for split in (*wanted, *(each for names in USUAL_NAMES.values() for each in names)):
            start, end = lower.removeprefix(split.lower()), lower.removesuffix(split.lower())
            if start != lower and start.lstrip("-_ ") in usual:
                return kind, name[: len(split)]
            if end != lower and end.rstrip("-_ ") in usual:
                return kind, name[-len(split) :]
    return None, None


def _role(split: str | None) -> str | None:
    """A split's role, so that images/training and masks/train are the same."""
    return None if split is None else role_of(split) or split


def _told_apart(files: Sequence[_File]) -> tuple[list[_File], list[_File]]:
    """The images and the masks: by their folders where a folder says masks, else by names side by side."""
    marks = [file for file in files if file.kind == "mask"]
    if marks:
        photos = [file for file in files if file.kind == "image"]
        return photos or [file for file in files if file.kind is None], marks
    named: dict[tuple, list[_File]] = {}
    for file in files:
        named.setdefault((file.split, file.below, file.stem), []).append(file)

    def is_mask(file: _File) -> bool:
        stem = _MASK_ENDING.sub("", file.stem)
        of_name = named[file.split, file.below, file.stem]
        if stem != file.stem:
            return any((file.split, file.below, stem + end) in named for end in ("", "_leftImg8bit", "_image", "_img"))
        return file.suffix not in _LOSSY and any(other.suffix in _LOSSY for other in of_name)

    kinds = [is_mask(file) for file in files]
    photos = [file for file, mask in zip(files, kinds, strict=True) if not mask]
    return photos, [file for file, mask in zip(files, kinds, strict=True) if mask]


def _paired(
    photos: Sequence[_File], marks: Sequence[_File], reading: _Reading
) -> tuple[list[tuple[_File, _File]], list[_File], list[_File]]:
    """Images with their masks; images without one; masks without an image."""
    by_name: dict[tuple, list[_File]] = {}
    for mark in marks:
        for stem in {mark.stem, _MASK_ENDING.sub("", mark.stem), _MASK_BEGINNING.sub("", mark.stem)}:
            by_name.setdefault((mark.below, stem), []).append(mark)
    pairs, without = [], []
    used = set()
    for photo in photos:
        found: list[_File] = []
        stems = (photo.stem, _IMAGE_ENDING.sub("", photo.stem), _IMAGE_BEGINNING.sub("", photo.stem))
        for stem in dict.fromkeys(stems):
            found = found or _of_split(by_name.get((photo.below, stem), ()), photo.split)
        used.update(mark.path for mark in found)
        found = _most_usual(found)
        if len(found) == 1:
            pairs.append((photo, found[0]))
        elif found:
            reason = "several masks are called so: " + ", ".join(reading.name(mark.path) for mark in found[:3])
            reading.drop("missing-mask", photo.path, reason)
        else:
            without.append(photo)
    return pairs, without, [mark for mark in marks if mark.path not in used]


def _of_split(marks: Sequence[_File], split: str | None) -> list[_File]:
    """Those of the same split; else those of which it is not said, or all where it is not said of the image."""
    same = [mark for mark in marks if _role(mark.split) == _role(split)]
    return same or [mark for mark in marks if split is None or mark.split is None]


def _most_usual(marks: Sequence[_File]) -> list[_File]:
    def rank(mark: _File) -> int:
        ending = _MASK_ENDING.search(mark.stem)
        return _MASK_ENDINGS.index(ending[1].lower()) if ending else -1

    least = min(map(rank, marks), default=0)
    return [mark for mark in marks if rank(mark) == least]


def _splits(pairs: Sequence[tuple[_File, _File]], reading: _Reading) -> dict[str, list[tuple[_File, _File]]]:
    """The pairs of each split: by their folders, else by ImageSets, else all of them, "train"."""
    splits: dict[str, list[tuple[_File, _File]]] = {}
    for photo, mark in pairs:
        splits.setdefault(photo.split or mark.split or "", []).append((photo, mark))
    if list(splits) == [""]:
        return _by_lists(splits[""], reading) or {"train": splits[""]}
    for photo, _ in splits.pop("", []):
        reading.findings.add("unlisted", reading.name(photo.path), "it stands in no folder of a split")
    return splits


def _listed_folder(root: Path) -> Path | None:
    sets = folder_named(root, ("imagesets",))
    return (folder_named(sets, ("segmentation",)) or sets) if sets is not None else None


def _by_lists(pairs: Sequence[tuple[_File, _File]], reading: _Reading) -> dict[str, list[tuple[_File, _File]]] | None:
    """The pairs that ImageSets/Segmentation lists for each split, or None where it lists none.

    trainval is train and val where these are there; a single list of any name is of train.
    """
    folder = _listed_folder(reading.root)
    lists = {path.stem: path for path in files_in(folder, {".txt"})} if folder is not None else {}
    names = {name: name for name in lists if role_of(name) or name in reading.wanted}
    if not any(role_of(name) == "train" for name in names):
        joined = [name for name in lists if name.lower() == "trainval" or len(lists) == 1]
        # Last, since it is what the others do not list.
        names |= {"train": joined[0]} if joined else {}
    by_stem = {photo.stem: (photo, mark) for photo, mark in pairs}
    splits: dict[str, list[tuple[_File, _File]]] = {}
    taken: set[str] = set()
    for split, name in names.items():
        if not reading.inside.holds(lists[name]):
            raise DataError(f"{lists[name]} is a link that leads out of the dataset's folder.")
        lines = lists[name].read_text(encoding="utf-8-sig", errors="replace").splitlines()
        stems = dict.fromkeys(_stem_of_line(line, by_stem) for line in lines if line.strip())
        others, taken = taken if split != name else set(), taken | set(stems)
        for stem in stems:
            if stem in others:
                continue
            if stem in by_stem:
                splits.setdefault(split, []).append(by_stem[stem])
            else:
                reading.findings.drop(
                    "missing-mask",
                    f"{split}: {stem}",
                    "listed in ImageSets, without image and mask",
                    reading.on_bad_sample,
                )
        if split not in splits:
            reason = "none of the images that it lists has a mask"
            reading.findings.add("missing-split", reading.name(lists[name]), reason)
    for stem in by_stem if splits else ():
        if stem not in taken:
            reading.findings.add("unlisted", reading.name(by_stem[stem][0].path))
    return splits or None


def _stem_of_line(line: str, known: dict[str, tuple[_File, _File]]) -> str:
    """The stem that a line names: by itself, with a suffix, or as the path of an image before that of its mask."""
    line = line.strip()
    if line in known:
        return line
    name = line.split()[0].rsplit("/", 1)[-1]
    return name if name in known else os.path.splitext(name)[0]


def _dataset(pairs: Sequence[tuple[_File, _File]]) -> datasets.Dataset:
    columns = {
        "image": pa.array([photo.path for photo, _ in pairs], pa.string()),
        "mask": pa.array([mark.path for _, mark in pairs], pa.string()),
    }
    features = datasets.Features({name: datasets.Image(decode=False) for name in columns})
    return datasets.Dataset.from_dict(columns, features=features)
