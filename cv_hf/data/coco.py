"""COCO: one JSON of images, annotations and categories per split, beside folders of images."""

from __future__ import annotations

import gc
import json
import mmap
import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets

from cv_hf.data import rle
from cv_hf.data.annotations import (
    ANNOTATION_FOLDERS,
    IMAGE_FOLDERS,
    files_in,
    folders,
    is_int64,
    to_dataset,
    upright_size,
)
from cv_hf.data.findings import Findings
from cv_hf.data.images import UnreadableImage, relative_name
from cv_hf.data.labels import LabelMap
from cv_hf.data.paths import Inside, images_folder
from cv_hf.data.source import Source
from cv_hf.data.splits import USUAL_NAMES, check_split, role_of
from cv_hf.errors import DataError
from cv_hf.runs import Rle, boxes_and_areas

# What COCO itself keeps beside its instances_*.json.
_OTHER_KINDS = ("captions", "person_keypoints", "panoptic", "stuff", "image_info")
_TRIED = 50
# In valid JSON a key is never within a string, and a list of numbers in an object ends at its last bracket.
_POLYGONS = re.compile(r'("segmentation"\s*:\s*)(\[[\[\]\s\d.,eE+-]*\])')


def read(
    id: str,
    *,
    images: str | None = None,
    wanted: Sequence[str] = (),
    findings: Findings | None = None,
    on_bad_sample: str = "skip",
    segmentation: bool = False,
) -> Source:
    """Read COCO annotations.

    Args:
        id: a JSON file, which is one split; or a folder with one JSON per split, in it, in its folder `annotations`
            or in folders called as splits are.
        images: the folder that `file_name` starts from; None: found by trying the usual ones.
        wanted: splits to read besides those with a usual name (train, val2017, ...).
        findings: filled with what was left out.
        on_bad_sample: "skip" or "stop".
        segmentation: read the masks too.

    Returns:
        columns `image`, `image_id`, `width`, `height` and `objects` {bbox, category, area, iscrowd}: boxes as they
        stand in the file (absolute xywh), categories by their id, `area` null where the file has none. An image
        without annotations has empty lists. An annotation with a polygon alone has the box around it.
        With `segmentation`, `objects` has that as well, compressed RLE of the size that the file says the image has
        (its own, where it does not say); polygons, uncompressed and compressed RLE are read. An annotation without a
        mask is dropped, and a box or an area that is missing is the mask's.

    Raises:
        DataError: a file that is not COCO, several files for one split, an image id that stands twice, categories that
            differ between splits, or images that are not found.
    """
    findings = Findings() if findings is None else findings
    path = Path(os.path.abspath(id))
    base = images_folder(images)
    root = root_of_file(path) if path.is_file() else path
    # Roboflow's file is called the same in every split's folder.
    above = root.parent if path.name == "_annotations.coco.json" else root
    files = {split_of(path, above) or "train": path} if path.is_file() else annotation_files(path, wanted)
    for name in wanted:
        check_split(name, list(files))
    names: dict[int | str, str] = {}
    used: set[int | str] = set()
    splits = {}
    with collector_off():
        for split, file in files.items():
            content = load(file, root, segmentation)
            merge_categories(names, content, relative_name(str(file), root))
            splits[split] = _read_split(content, file, split, root, base, used, findings, on_bad_sample, segmentation)
    return Source(id, "coco", splits, root=root, labels=label_map(names, used))


def count_masks(id: str) -> tuple[int, int]:
    """How many annotations have a mask, and how many there are, of the training split, or the only one.

    Rectangles alone are no masks: some programs write such a polygon for every box.

    Raises:
        DataError: as `read`, of the files.
    """
    path = Path(os.path.abspath(id))
    files = {"train": path} if path.is_file() else annotation_files(path)
    file = next((file for name, file in files.items() if role_of(name) == "train"), next(iter(files.values())))
    with collector_off():
        annotations = load(file, root_of_file(path) if path.is_file() else path)["annotations"]
        return number_of_masks([each.get("segmentation") for each in annotations if isinstance(each, dict)])


def number_of_masks(segmentations: Sequence[Any]) -> tuple[int, int]:
    """How many of some objects have a mask, and how many objects there are; of rectangles alone none has."""
    masks = [mask for mask in segmentations if mask and mask != "[]"]
    masks = [mask for mask in masks if not (isinstance(mask, Mapping) and not mask.get("counts"))]
    return (0 if all(map(_is_rectangle, masks)) else len(masks)), len(segmentations)


def annotation_files(root: Path, wanted: Sequence[str] = ()) -> dict[str, Path]:
    """The COCO annotations in a folder: {split: JSON file}, those with a usual name or wanted, or the only one.

    Raises:
        DataError: none, or several for one split.
    """
    found = [path for path in candidates(root) if looks_like_coco(path)]
    own = [path for path in found if not path.stem.lower().startswith(_OTHER_KINDS)]
    if not own:
        others = f" ({', '.join(path.name for path in found)} are no instances; give one as data.id to read it)"
        raise DataError(f"{root}: there is no COCO annotation file in it{others if found else ''}.")
    return files_by_split(own, root, wanted)


def files_by_split(own: Sequence[Path], root: Path, wanted: Sequence[str]) -> dict[str, Path]:
    """{split: JSON file} of annotation files, see `annotation_files`."""
    inside = Inside(root)
    splits: dict[str, list[Path]] = {}
    for path in own:
        if not inside.holds(path):
            raise DataError(f"{path} is a link that leads out of the dataset's folder.")
        name = split_of(path, root) or re.sub(r"^(instances|panoptic)[-_.]", "", path.stem)
        splits.setdefault(name, []).append(path)
    if len(splits) == 1 and not role_of(only := next(iter(splits))) and only not in wanted:
        splits = {"train": splits[only]}
    for name in wanted:
        check_split(name, list(splits))
    chosen = {}
    for name, files in splits.items():
        if not (role_of(name) or name in wanted or len(splits) == 1):
            continue
        instances = [path for path in files if path.stem.lower().startswith("instances")]
        if len(instances or files) > 1:
            several = ", ".join(relative_name(str(path), root) for path in instances or files)
            raise DataError(
                f"{root}: several annotation files for the split {name}: {several}.\n"
                "Give one of them as data.id, or keep one of them there."
            )
        chosen[name] = (instances or files)[0]
    if not chosen:
        known = ", ".join(relative_name(str(files[0]), root) for files in splits.values())
        raise DataError(
            f"{root}: no annotation file is named for a split: {known}.\n"
            f"Name that to train on, and others likewise: data.splits.train={next(iter(splits))}."
        )
    return chosen


def candidates(root: Path) -> list[Path]:
    """The JSON files where those of a dataset stand."""
    found = files_in(root, {".json"})
    for folder in folders(root):
        if folder.name.lower() in (*ANNOTATION_FOLDERS, "panoptic"):
            found += files_in(folder, {".json"})
            for inner in folders(folder):
                found += files_in(inner, {".json"}) if role_of(inner.name) else []
        elif role_of(folder.name):
            found += files_in(folder, {".json"})
            for inner in folders(folder):
                found += files_in(inner, {".json"}) if inner.name.lower() in ANNOTATION_FOLDERS else []
    return found


def looks_like_coco(path: Path) -> bool:
    """Whether a JSON file begins as COCO's do; the annotations can be too large to parse for that."""
    try:
        with open(path, encoding="utf-8-sig", errors="replace") as text:
            start = text.read(1 << 16)
    except OSError:
        return False
    if not start.lstrip().startswith("{"):
        return False
    try:
        keys = json.loads(start) if len(start) < 1 << 16 else None
    except (ValueError, RecursionError):
        keys = None
    named = (lambda key: key in keys) if isinstance(keys, dict) else (lambda key: f'"{key}"' in start)
    if isinstance(keys, dict) and not isinstance(keys.get("images", []), list):
        return False
    coco = named("images") and (named("annotations") or named("categories") or named("info"))
    if not coco and keys is None:
        # The annotations may come first, and fill the start of the file; or the images.
        coco = all(f'"{key}"' in start for key in ("annotations", "image_id", "category_id"))
        coco = coco or (named("images") and named("file_name") and _mentions(path, "annotations"))
    return coco and not holds_segments(path)


def holds_segments(path: Path) -> bool:
    """Whether a JSON file is of COCO's panoptic kind: of a large one, the start may hold nothing but its images."""
    return _mentions(path, "segments_info")


def _mentions(path: Path, key: str) -> bool:
    """Whether a key stands anywhere in a file of one JSON object; one of a list is a table of rows."""
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            start = content[:64].removeprefix(b"\xef\xbb\xbf").lstrip()
            return start.startswith(b"{") and content.find(f'"{key}"'.encode()) >= 0
    except (OSError, ValueError):  # an empty file
        return False


@contextmanager
def collector_off() -> Iterator[None]:
    """A million new objects, none of them garbage, would be looked through again and again: half of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def root_of_file(path: Path) -> Path:
    """The dataset's folder: that of the file, or the one above `annotations` and above the folder of a split."""
    folder = path.parent
    for _ in range(2):
        if folder.name.lower() in (*ANNOTATION_FOLDERS, "panoptic") or (folder != path.parent and role_of(folder.name)):
            folder = folder.parent
    return folder


def split_of(path: Path, root: Path) -> str | None:
    """The name of a split in the file's name, or else in those of its folders."""
    for text in (path.stem, *reversed(path.relative_to(root).parent.parts)):
        words = [word for word in (text, *re.split(r"[-_. ]", text)) if role_of(word)]
        if len(set(words)) == 1:
            return words[0]
    return None


def load(path: Path, root: Path, segmentation: bool = True) -> dict[str, Any]:
    """Parse one file. Polygons, most of its size, stay text, and are let go at once where a bbox is enough."""
    name = relative_name(str(path), root)
    try:
        text = _POLYGONS.sub(r'\1"\2"', path.read_text(encoding="utf-8-sig"))
        # A string that was many lines holds line feeds, which `strict` refuses.
        content = json.loads(text, object_hook=None if segmentation else _without_segmentation, strict=False)
    except OSError as error:
        raise DataError(f"{name}: cannot be read ({error.strerror}).") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{name} is not valid JSON ({str(error).splitlines()[0][:100]}).") from None
    if not isinstance(content, dict):
        raise DataError(f"{name} is not COCO: it holds no object with images, annotations and categories.")
    for key in ("images", "annotations"):
        if not isinstance(content.get(key), list):
            raise DataError(f"{name} is not COCO annotations: it has no list of {key}.")
    if not isinstance(content.setdefault("categories", []), list):
        raise DataError(f"{name} is not COCO annotations: its categories are no list.")
    return content


def _without_segmentation(values: dict[str, Any]) -> dict[str, Any]:
    if "segmentation" in values and values.get("bbox"):
        del values["segmentation"]
    return values


def _read_split(
    content: dict[str, Any],
    file: Path,
    split: str,
    root: Path,
    base: Path | None,
    used: set[int | str],
    findings: Findings,
    on_bad_sample: str,
    segmentation: bool,
) -> datasets.Dataset:
    name = relative_name(str(file), root)
    found = images_by_id(content["images"], name)
    resolve = images_resolver([image["file_name"] for image in found.values()], file, split, root, base)
    by_id = existing(found, resolve, root, findings, on_bad_sample)
    rows = {image_id: row for row, image_id in enumerate(by_id)}
    paths = list(by_id.values())
    sizes = [(_pixels(found[image_id].get("height")), _pixels(found[image_id].get("width"))) for image_id in by_id]
    known = {category["id"] for category in content["categories"]}
    owners, boxes, categories, areas, crowds = [], [], [], [], []
    masks: list[Rle] | None = [] if segmentation else None
    for position, annotation in enumerate(content["annotations"]):
        box, code, reason = _box(annotation, known, segmentation)
        image_id = annotation.get("image_id") if isinstance(annotation, dict) else None
        image_id = image_id if is_id(image_id) else None
        if reason or image_id not in found:
            if not reason:
                code, reason = "orphan-annotation", f"image_id is {image_id!r}"
            findings.drop(code, place_of(name, annotation, position), reason, on_bad_sample)
        elif image_id in rows:
            if masks is not None:
                # Taken out, so that its text goes as soon as the mask is there.
                found_mask = annotation.pop("segmentation", None)
                size = _known_size(sizes[rows[image_id]], paths[rows[image_id]], found_mask)
                sizes[rows[image_id]] = size
                if None in size:
                    continue  # the image cannot be read, and its check will say so
                mask = rle.read(found_mask, size, place_of(name, annotation, position), findings, on_bad_sample)
                if mask is None:
                    continue
                masks.append(mask)
            owners.append(rows[image_id])
            boxes.append(box)
            categories.append(annotation["category_id"])
            areas.append(number_or_none(annotation.get("area")))
            crowds.append(annotation.get("iscrowd") in (1, "1"))
    if content["annotations"] and found and not owners and rows:
        first = findings.summary().split("\n")[0]
        what = "box" if masks is None else "mask"
        raise DataError(
            f"{name}: none of its {len(content['annotations'])} annotations is a {what} of an image.\n{first}"
        )
    if len({type(category) for category in categories}) > 1:
        raise DataError(f"{name}: category_id is a number in some annotations and text in others.")
    used.update(categories)
    if masks is not None:
        around, extents = boxes_and_areas(masks)
        boxes = [around[place] if box is None else box for place, box in enumerate(boxes)]
        areas = [area if area is not None and area > 0 else extents[place] for place, area in enumerate(areas)]
    category_type = type(next(iter(known or categories), 0))
    return to_dataset(paths, list(rows), sizes, owners, boxes, categories, category_type, areas, crowds, masks)


def existing(
    found: Mapping[int | str, Mapping[str, Any]],
    resolve: Resolver,
    root: Path,
    findings: Findings,
    on_bad_sample: str,
    missing: str = "missing-image",
) -> dict[int | str, str]:
    """The absolute paths of files by the id of their image; those outside and those `missing` are dropped."""
    paths = {}
    for image_id, entry in found.items():
        path = resolve(entry["file_name"])
        if path is None:
            reason = "the path leads out of the dataset's folder"
            findings.drop("path-outside", entry["file_name"], reason, on_bad_sample)
        elif not os.path.isfile(path):
            findings.drop(missing, relative_name(path, root), "no such file", on_bad_sample)
        else:
            paths[image_id] = path
    return paths


def place_of(name: str, annotation: Any, position: int) -> str:
    """What to call an annotation."""
    number = annotation.get("id", position) if isinstance(annotation, dict) else position
    return f"{name}: annotation {short(number)}"


def _known_size(stated: tuple[int | None, int | None], path: str, mask: Any) -> tuple[int | None, int | None]:
    """(height, width) of an image as its annotations state it, else from its header; None where that is unreadable.

    RLE that has these two swapped is of the pixels as they are stored, and states that size.
    """
    if None not in stated:
        return stated
    try:
        size = upright_size(path)
    except UnreadableImage:
        return None, None
    own = mask.get("size") if isinstance(mask, dict) else None
    return size[::-1] if own == [size[1], size[0]] else size


def images_by_id(images: list[Any], name: str) -> dict[int | str, dict[str, Any]]:
    """Image id -> entry.

    Raises:
        DataError: an entry without id or file_name, ids of two types, or an id that stands twice.
    """
    found: dict[int | str, dict[str, Any]] = {}
    for position, image in enumerate(images):
        if not isinstance(image, dict) or not is_id(image.get("id")) or not is_text(image.get("file_name")):
            raise DataError(f"{name}: image {position} of the list has no id (a number or text) or no file_name.")
        if image["id"] in found:
            raise DataError(
                f"{name}: two images have the id {image['id']!r}: {found[image['id']]['file_name']} and "
                f"{image['file_name']}."
            )
        found[image["id"]] = image
    if len({type(image_id) for image_id in found}) > 1:
        raise DataError(f"{name}: the ids of images are numbers in some entries and text in others.")
    return found


class Resolver:
    """file_name -> absolute path, or None where it leads outside."""

    def __init__(self, inside: Inside, by_base_name: bool) -> None:
        self.inside, self.by_base_name = inside, by_base_name

    def __call__(self, name: str) -> str | None:
        return self.inside(_base_name(name) if self.by_base_name else name)


def images_resolver(
    names: Sequence[str],
    file: Path,
    split: str,
    root: Path,
    base: Path | None,
    taken: Collection[str | None] = frozenset(),
) -> Resolver:
    """Find the folder that the file names start from, among the usual ones; files that are `taken` are no images.

    Raises:
        DataError: nothing is found; it names the folders that were tried.
    """
    tried = list(dict.fromkeys(image_folders(file, split, root, base)))
    found = best_resolver(names, tried, (root,) if base is None else (root, base), taken)
    if found is not None:
        return found
    shown = ", ".join("." if folder == root else relative_name(str(folder), root) for folder in tried)
    where = f"in data.images ({base})" if base is not None else f"in {shown} of {root}"
    raise DataError(
        f"{relative_name(str(file), root)}: its images, as {short(names[0])}, are not {where}.\n"
        "Set data.images to the folder that holds them."
    )


def best_resolver(
    names: Sequence[str],
    tried: Sequence[Path],
    allowed: Sequence[Path],
    taken: Collection[str | None] = frozenset(),
    suffixes: Sequence[str] = (),
) -> Resolver | None:
    """The folder of `tried` with most of the first names, which must lead into one of `allowed`; None: none has any.

    Names that are found nowhere are looked for without their folders, which may be those of another machine, unless
    two would be the same without. `suffixes` are as `Inside` takes them.
    """
    first = names[:_TRIED]
    for by_base_name in (False, True):
        resolvers = [Resolver(Inside(folder, *allowed, suffixes=suffixes), by_base_name) for folder in tried]
        if not first:
            return resolvers[0]
        if by_base_name and len({*map(_base_name, names)}) < len({*names}):
            return None
        found = [[path for path in map(each, first) if path is not None and path not in taken] for each in resolvers]
        held = [sum(map(os.path.isfile, paths)) for paths in found]
        if max(held, default=0):
            return resolvers[held.index(max(held))]
    return None


def _base_name(name: str) -> str:
    return re.split(r"[/\\]", name)[-1]


def image_folders(file: Path, split: str, root: Path, base: Path | None) -> Iterator[Path]:
    """Where the images of a split can stand, most usual first; also in a folder that is called as its file is, as
    `images/default` of CVAT's instances_default.json."""
    names = [split, *USUAL_NAMES.get(role_of(split) or "", ()), re.sub(r"^(instances|panoptic)[-_.]", "", file.stem)]
    names = list(dict.fromkeys(names))
    for start in [base] if base is not None else dict.fromkeys([file.parent, root]):
        below = {path.name.lower(): path for path in folders(start)}
        of_split = [below[name.lower()] for name in names if name.lower() in below]
        of_images = [below[name] for name in IMAGE_FOLDERS if name in below]
        for outer, inner in ((of_split, IMAGE_FOLDERS), (of_images, names)):
            for folder in outer:
                deeper = {path.name.lower(): path for path in folders(folder)}
                yield from (deeper[name.lower()] for name in inner if name.lower() in deeper)
        yield from of_split
        yield start
        yield from of_images


def _box(
    annotation: Any, categories: set[int | str], segmentation: bool = False
) -> tuple[tuple[float, ...] | None, str, str]:
    """The box of an annotation, absolute xywh; or the code of a finding and why, where it cannot be used.

    With `segmentation` a box may be absent, as the mask has one.
    """
    bad = "unreadable-annotation"
    if not isinstance(annotation, dict):
        return None, bad, "it is no object"
    if not is_id(annotation.get("category_id")):
        return None, bad, "it has no category_id"
    if categories and annotation["category_id"] not in categories:
        return None, "box-unknown-label", f"category_id {annotation['category_id']!r} is not among the categories"
    box = annotation.get("bbox")
    if not box:
        around, reason = (None, "") if segmentation else _around(annotation.get("segmentation"))
        return around, bad, reason
    try:
        if not isinstance(box, list):
            raise TypeError
        x, y, width, height = map(float, box)
    except (TypeError, ValueError, OverflowError):
        return None, bad, f"bbox is {short(box)}, not four numbers"
    return (x, y, width, height), "", ""


def _around(segmentation: Any) -> tuple[tuple[float, ...] | None, str]:
    """The box around the polygons [[x1, y1, x2, y2, ...], ...]."""
    try:
        segmentation = json.loads(segmentation) if isinstance(segmentation, str) else segmentation
        polygons = [list(map(float, polygon)) for polygon in segmentation if not isinstance(polygon, str)]
    except (TypeError, ValueError, OverflowError, RecursionError):
        polygons = []
    if not polygons or any(len(polygon) < 6 or len(polygon) % 2 for polygon in polygons):
        return None, "it has neither a bbox nor a polygon"
    x = [value for polygon in polygons for value in polygon[::2]]
    y = [value for polygon in polygons for value in polygon[1::2]]
    return (min(x), min(y), max(x) - min(x), max(y) - min(y)), ""


def _is_rectangle(segmentation: Any) -> bool:
    """Whether a mask is one polygon along the axes, whose corners have two x and two y."""
    try:
        (polygon,) = rle.polygons_of(json.loads(segmentation) if isinstance(segmentation, str) else segmentation)
        return len(polygon) in (8, 10) and len({*polygon[::2]}) == len({*polygon[1::2]}) == 2
    except (TypeError, ValueError, LookupError):
        return False


def merge_categories(names: dict[int | str, str], content: Mapping[str, Any], file: str) -> None:
    for category in content["categories"]:
        if not isinstance(category, dict) or not is_id(category.get("id")):
            raise DataError(f"{file}: a category has no id (a number or text).")
        name = category.get("name")
        name = name if is_text(name) else str(category["id"])
        if names.setdefault(category["id"], name) != name:
            raise DataError(
                f"{file}: category {category['id']!r} is called {name!r}, and {names[category['id']]!r} elsewhere."
            )
    if len({type(source) for source in names}) > 1:
        raise DataError(f"{file}: the ids of categories are numbers in some entries and text in others.")


def label_map(names: Mapping[int | str, str], used: Iterable[int | str]) -> LabelMap | None:
    """The categories by id. Of several with one name those without any box go: exports add such a parent."""
    used = set(used)
    taken = {names[source] for source in names if source in used}
    kept = [source for source in names if source in used or names[source] not in taken]
    kept.sort()
    return LabelMap(tuple(names[source] for source in kept), tuple(kept)) if kept else None


def is_id(value: object) -> bool:
    return is_text(value) or is_int64(value)


def is_text(value: object) -> bool:
    """JSON can hold half of a surrogate pair, which is no text for a file's name or a table."""
    return isinstance(value, str) and (value.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in value))


def _pixels(value: object) -> int | None:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if is_int64(value) and value > 0 else None


def number_or_none(value: object) -> float | None:
    return float(value) if type(value) is float or is_int64(value) else None


def short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."
