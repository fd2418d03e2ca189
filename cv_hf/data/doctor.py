"""What is wrong in a dataset, found by reading all of it: every split, every image decoded, every box and mask.

What reading finds before every training is found here as well. What only this looks for needs every image, or all of
them together: copies, by their bytes and by their looks; classes and sizes out of balance; objects that stand twice.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from cv_hf.config import DataConfig
from cv_hf.data import box_rows, classification, coco, hashes, instance, yolo
from cv_hf.data.box_format import AmbiguousBoxFormat
from cv_hf.data.columns import find_image
from cv_hf.data.detect import detect_format
from cv_hf.data.findings import Findings
from cv_hf.data.images import UnreadableImage, decode, read_header
from cv_hf.data.labels import BINARY, LabelMap
from cv_hf.data.load import canonical_rows, named, quiet, read, unlabelled
from cv_hf.data.source import Source
from cv_hf.data.splits import ROLES, role_of
from cv_hf.errors import DataError
from cv_hf.task import Finding, Task

_THREADS = 4
_TRIED = 1000
_AT_ONCE = 64
# A class with so many times fewer samples than the most frequent one is noted, where that has so many.
_IMBALANCED = 10
_ENOUGH = 20
# So many times the pixels of the median image, or so many times fewer.
_OUTLYING = 16
_WHOLE_IMAGE = 0.95
# Of objects with masks: some tools leave a few without.
_NEARLY_ALL = 0.98
SCHEMA = 1


@dataclass(frozen=True)
class Diagnosis:
    """A dataset as it was read, and what is wrong in it.

    Attributes:
        data: the data section.
        task: whose targets were judged.
        source: as read.
        rows: {split: canonical rows with `file`}, clean and encoded; with the image and `file` alone where the format
            of the boxes is not certain.
        raw: {split: canonical rows with `file`}, whose targets are those of the source.
        labels: of all splits.
        form: a line about the form of the targets, or "".
        findings: all of them.
        counts: {split: {class: number}}, of samples or objects; of masks and segments, the images that show the class.
        lost: the files that a repaired copy leaves out: images that cannot be read or have no target that fits, and
            copies of others.
        others: {(code, file): the file that it is compared with}.
    """

    data: DataConfig
    task: Task
    source: Source
    rows: dict[str, datasets.Dataset] = field(repr=False)
    raw: dict[str, datasets.Dataset] = field(repr=False)
    labels: LabelMap
    form: str
    findings: Findings = field(repr=False)
    counts: dict[str, dict[str, int]] = field(repr=False)
    lost: set[str] = field(repr=False)
    others: dict[tuple[str, str], str] = field(repr=False)

    @property
    def fit(self) -> Callable[..., tuple[Mapping[str, Any] | None, list[Finding]]] | None:
        """The task's `fit`; None where there are no targets to fit."""
        return None if "box-format-ambiguous" in self.findings else self.task.fit

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready. Keys are only ever added under the same `schema`.

        {schema, data, format, task, labels, splits: {split: {images, classes: {name: number}}}, error, warning, note
        (how many findings), findings: {code: {severity, effect, count, meaning, files, reasons}}}.
        """
        return {
            "schema": SCHEMA,
            "data": self.data.id,
            "format": self.source.format,
            "task": self.task.name,
            "labels": list(self.labels.names),
            "splits": {
                name: {"images": len(rows), "classes": self.counts.get(name, {})} for name, rows in self.rows.items()
            },
            **self.findings.by_severity(),
            "findings": self.findings.to_dict(),
        }


@dataclass
class _Image:
    """What one image is: nothing but findings where it cannot be read.

    Attributes:
        file: its name.
        split: of the source.
        label: its classes, where it has such as a whole.
        shown: how many of each contiguous class it holds.
        fits: whether it can be read and has targets that fit it, where it needs any.
    """

    file: str
    split: str
    found: list[Finding]
    size: tuple[int, int] | None = None
    digest: bytes = b""
    hash: int = 0
    cells: np.ndarray | None = None
    label: Any = None
    shown: Mapping[int, int] = field(default_factory=dict)
    fits: bool = False


@quiet()
def check(data: DataConfig, task: Task, echo: Callable[[str], None] = print) -> Diagnosis:
    """Read a whole dataset as training would, and look for what is wrong in it.

    Args:
        data: the data section; `on_bad_sample` does not matter here.
        task: whose targets are judged.
        echo: called with each line to print.

    Raises:
        DataError: the dataset cannot be read at all.
        HubError: the Hub failed.
    """
    findings = Findings()
    data = data.model_copy(update={"on_bad_sample": "skip"})
    source = read(data, task, [name for name in (data.splits or {}).values() if isinstance(name, str)], findings)
    every = {name: name for name in source.splits}
    raw = canonical_rows(source, every, {name for name in every if role_of(name) == "test"}, data, task, echo)
    raw = named(raw, every, source.root)
    labels = task.label_map(raw, data, source.labels)
    if not len(labels):
        raise DataError(f"{data.id}: no sample has a label.")
    if not any(map(len, raw.values())):
        raise DataError(f"{data.id}: there are no images in it.")
    rows, form, bare = _encoded(raw, labels, source, data, task, findings, echo)
    fit = None if "box-format-ambiguous" in findings else task.fit
    images: list[_Image] = []
    for name, split in rows.items():
        for image in _judged_all(split, name, fit, labels, bare):
            for code, file, reason in image.found:
                findings.add(code, file, reason)
            images.append(image)
    counts = {name: _counted([image for image in images if image.split == name], labels) for name in rows}
    _judge_labels(labels, findings)
    if fit is not None or task.fit is None:
        _judge_counts(counts, findings)
    if len(labels) == 1 and any("label" in split.column_names for split in rows.values()):
        findings.add("only-one-class", labels.names[0])
    _judge_sizes(images, findings)
    lost, others = _judge_copies(images, findings)
    lost.update(image.file for image in images if not image.fits)
    lost.update(findings.reasons("missing-label"))
    sizes = ", ".join(f"{name} {len(split)}" for name, split in rows.items())
    echo(f"data: {data.id}: {source.format}; {sizes}; {len(labels)} labels{'; ' + form if form else ''}")
    if len(findings):
        echo(findings.summary())
    return Diagnosis(data, task, source, rows, raw, labels, form, findings, counts, lost, others)


def task_shown(
    data: DataConfig, tasks: Sequence[Task], instances: Task, otherwise: Task, echo: Callable[[str], None] = print
) -> Task:
    """The first of the tasks whose targets a dataset holds, by its format, else by its columns.

    Args:
        data: the data section.
        tasks: tried in this order.
        instances: the task where (nearly) all objects have a mask.
        otherwise: the task where none of them fits.
        echo: called with a line where the data is for another task as well.

    Raises:
        DataError: the dataset cannot be read, or holds boxes, but it is not clear which columns they are.
        HubError: the Hub failed.
    """
    found = data.format or detect_format(data)
    of_format = [task for task in tasks if found in task.formats]
    if of_format:
        counted = (0, 0)
        if found in instances.formats:
            counted = coco.count_masks(data.id) if found == "coco" else yolo.count_masks(data.id, data.images)
        return instances if _mostly_masks(counted, echo) else of_format[0]
    source = read(data, tasks[0], [], Findings())
    first = next(iter(source.splits.values()))
    if _mostly_masks(instance.count_masks(first.select(range(min(_TRIED, len(first)))), data), echo):
        return instances
    for task in tasks:
        try:
            task.canonical(first.select(range(min(1, len(first)))), data)
        except box_rows.UnclearBoxes:
            raise
        except DataError:
            continue
        with suppress(DataError):
            otherwise.canonical(first.select(range(min(_TRIED, len(first)))), data)
            echo(f"data: taken for {task.name}; its classes may be those of the images: --task {otherwise.name}")
        return task
    if found != "hub":  # whose images would all be downloaded and read for it
        box_rows.refuse_unnamed(first, find_image(first.features, data.columns))
    return otherwise


def _mostly_masks(counted: tuple[int, int], echo: Callable[[str], None]) -> bool:
    """Whether so many of so many objects have masks that they are instances, which is said."""
    masks, number = counted
    if not masks:
        return False
    if masks < _NEARLY_ALL * number:
        echo(
            f"data: taken for object-detection, as only {masks} of {number} objects have masks; for these alone: "
            "--task instance-segmentation"
        )
        return False
    echo(
        f"data: taken for instance-segmentation, as {masks} of {number} objects have masks; for their boxes alone: "
        "--task object-detection"
    )
    return True


def _encoded(
    raw: Mapping[str, datasets.Dataset],
    labels: LabelMap,
    source: Source,
    data: DataConfig,
    task: Task,
    findings: Findings,
    echo: Callable[[str], None],
) -> tuple[dict[str, datasets.Dataset], str, set[str]]:
    """The splits with clean targets and contiguous ids, a line about their form, and the files without any target."""
    rows, form = dict(raw), ""
    if task.clean is not None:
        try:
            rows, form = task.clean(raw, labels, data, source.format, findings)
        except AmbiguousBoxFormat as error:
            findings.add("box-format-ambiguous", error.name, str(error).splitlines()[-1])
            return {name: split.select_columns(["image", "file"]) for name, split in raw.items()}, form, set()
    encoded, bare = {}, set()
    for name, split in rows.items():
        if {"label", "labels"} & set(split.column_names):
            split = _without_unknown(split, labels, findings)
        encoded[name] = task.encode(split, labels)
        missing = unlabelled(encoded[name])
        nothing = role_of(name) == "test" and len(missing) == len(encoded[name])
        if nothing:
            echo(f"data: the split {name} has no labels")
        # An image may be without objects, and so may all of a split.
        if missing and "objects" not in split.column_names:
            files = split.select_columns("file").select(missing)["file"][:]
            bare.update(files)
            for file in () if nothing else files:
                findings.add("missing-label", file)
    return encoded, form, bare


def _without_unknown(split: datasets.Dataset, labels: LabelMap, findings: Findings) -> datasets.Dataset:
    unknown = classification.unknown(split, labels)
    for row, label in unknown.items():
        findings.add("unknown-label", split[row]["file"], label)
    return split.select([row for row in range(len(split)) if row not in unknown]) if unknown else split


def _judged_all(
    split: datasets.Dataset, name: str, fit: Any, labels: LabelMap, bare: Collection[str]
) -> Iterator[_Image]:
    with ThreadPoolExecutor(_THREADS) as pool:
        # In parts, since a pool takes all that there is to do at once, with every image of the dataset.
        for start in range(0, len(split), _AT_ONCE):
            part = (split[index] for index in range(start, min(start + _AT_ONCE, len(split))))
            yield from pool.map(lambda row: _judged(row, name, None if row["file"] in bare else fit, labels), part)


def _judged(row: Mapping[str, Any], split: str, fit: Any, labels: LabelMap) -> _Image:
    file = row["file"]
    judged = _Image(file, split, [])
    try:
        codes = set(read_header(row["image"], file))
        content = row["image"]["bytes"] or Path(row["image"]["path"]).read_bytes()
        picture, repairs = decode({"path": None, "bytes": content}, file)
    except UnreadableImage as error:
        judged.found.append((error.code, file, error.reason))
        return judged
    except OSError as error:
        judged.found.append(("unreadable-image", file, f"cannot be read ({error.strerror})"))
        return judged
    judged.found += [(code, file, "") for code in sorted(codes | set(repairs))]
    judged.size = (picture.height, picture.width)
    judged.digest = hashlib.blake2b(content, digest_size=16).digest()
    judged.hash, judged.cells = hashes.looks(picture)
    if fit is not None:
        row, found = fit(row, judged.size, labels)
        judged.found += found
    if row is not None:
        judged.fits = True
        judged.label = row.get("label", row.get("labels"))
        judged.shown = _shown(row)
        judged.found += _judged_targets(row, judged.size, judged.shown, labels)
    return judged


def _shown(row: Mapping[str, Any]) -> dict[int, int]:
    """Contiguous class -> how many objects a fitted row has of it; 1 where it has no objects but shows it."""
    if "segments" in row:
        return dict.fromkeys(np.unique(row["segments"]["category"]).tolist(), 1)
    if "objects" in row:
        return Counter(row["objects"]["category"])
    if isinstance(row.get("mask"), np.ndarray):
        return {code - 1: 1 for code in np.unique(row["mask"]).tolist() if code}
    found = row.get("labels") if "labels" in row else [row.get("label")]
    return Counter(label for label in found or () if label is not None)


def _judged_targets(
    row: Mapping[str, Any], size: tuple[int, int], shown: Mapping[int, int], labels: LabelMap
) -> list[Finding]:
    """What is wrong in targets that fit their image."""
    if isinstance(row.get("mask"), np.ndarray):
        if not shown:
            return [("mask-void", row["file"], "")]
        only_ground = "segments" not in row and [*shown] == [0]
        if only_ground and labels.names[0].lower().strip("_") == "background":
            return [("mask-background-only", row["file"], "")]
        return []
    found = []
    for number, other in copied_objects(row.get("objects", {})).items():
        found.append(("box-duplicate", f"{row['file']} box {number}", f"{_box(row, number, size)}; as box {other}"))
    for number, (_, _, width, height) in enumerate(row.get("objects", {}).get("bbox", ())):
        if width * height > _WHOLE_IMAGE * size[0] * size[1]:
            found.append(("box-covers-image", f"{row['file']} box {number}", _box(row, number, size)))
    return found


def _box(row: Mapping[str, Any], number: int, size: tuple[int, int]) -> str:
    edges = ", ".join(f"{edge:.6g}" for edge in row["objects"]["bbox"][number])
    return f"xywh [{edges}] in an image of {size[1]}x{size[0]}"


def copied_objects(objects: Mapping[str, Any]) -> dict[int, int]:
    """The numbers of objects of which the same stands before: class, box to a hundredth of a pixel, and mask.

    Returns:
        {number: that of the first}.
    """
    first: dict[tuple, int] = {}
    copies = {}
    masks = objects.get("segmentation") or [None] * len(objects.get("bbox", ()))
    for number, (box, category, mask) in enumerate(
        zip(objects.get("bbox", ()), objects.get("category", ()), masks, strict=True)
    ):
        key = (category, *(round(edge, 2) for edge in box), mask and mask["counts"])
        if first.setdefault(key, number) != number:
            copies[number] = first[key]
    return copies


def _counted(images: Sequence[_Image], labels: LabelMap) -> dict[str, int]:
    total: Counter[int] = Counter()
    for image in images:
        total.update(image.shown)
    return {name: total[index] for index, name in enumerate(labels.names)}


def _judge_labels(labels: LabelMap, findings: Findings) -> None:
    """Gaps between the numbers of classes, and names that may mean the same."""
    numbers = sorted(source for source in labels.sources if type(source) is int)
    ignored = {labels.ignore_index}
    if labels.names != BINARY and set(numbers) != {0, 255}:
        for low, high in pairwise(numbers):
            if set(range(low + 1, min(high, low + 3))) - ignored:
                gap = str(low + 1) if high == low + 2 else f"{low + 1} to {high - 1}"
                findings.add("gapped-ids", gap, f"between {low} and {high}")
    known: dict[str, str] = {}
    for name in labels.names:
        plain = re.sub(r"[\W_]+", "", name.casefold())
        if plain and known.setdefault(plain, name) != name:
            findings.add("similar-labels", name, f"as {known[plain]!r}")


def _judge_counts(counts: Mapping[str, Mapping[str, int]], findings: Findings) -> None:
    """Classes that no split has, that only some have, and that are rare in training."""
    only = next(iter(counts)) if len(counts) == 1 else None
    train = next((name for name in counts if role_of(name) == "train"), only)
    held = [name for name in counts if name != train and sum(counts[name].values())]
    trained = counts.get(train or "", {})
    most = max(trained, key=lambda name: trained[name], default=None)
    for label in next(iter(counts.values())):
        number = trained.get(label, 0)
        if not any(each[label] for each in counts.values()):
            findings.add("unused-label", label)
        elif train is not None and not number:
            findings.add("class-without-samples", label)
        else:
            for name in held:
                if not counts[name][label]:
                    findings.add("class-missing-in-split", f"{name}: {label}")
        if most is not None and trained[most] >= _ENOUGH and 0 < _IMBALANCED * number < trained[most]:
            findings.add("class-imbalance", label, f"{number}, and {trained[most]} of {most}")


def _judge_sizes(images: Sequence[_Image], findings: Findings) -> None:
    known = [image for image in images if image.size is not None]
    areas = np.array([image.size[0] * image.size[1] for image in known], np.float64)
    median = np.median(areas) if len(areas) else 0
    for place in np.flatnonzero((areas > _OUTLYING * median) | (_OUTLYING * areas < median)).tolist():
        height, width = known[place].size
        middle = f"{median:.0f}" if median < 1e4 else f"{median / 1e6:.2f} million"
        findings.add("image-size-outlier", known[place].file, f"{width}x{height}; the median has {middle} pixels")


def _judge_copies(images: Sequence[_Image], findings: Findings) -> tuple[set[str], dict[tuple[str, str], str]]:
    """Copies by bytes and by looks. Of copies that of a test split counts as the original, then of validation."""
    rank = {role: place for place, role in enumerate(reversed(ROLES))}
    known = [image for image in images if image.size is not None]
    known.sort(key=lambda image: rank.get(role_of(image.split) or "", len(rank)))
    lost: set[str] = set()
    others: dict[tuple[str, str], str] = {}

    def add(code: str, image: _Image, other: _Image, reason: str) -> None:
        if (code, image.file) not in others:
            findings.add(code, image.file, reason)
            others[code, image.file] = other.file

    groups: dict[bytes, list[_Image]] = {}
    for image in known:
        groups.setdefault(image.digest, []).append(image)
    for group in groups.values():
        if any(image.label != group[0].label for image in group):
            for image in group:
                other = next(each for each in group if each.label != image.label)
                add("conflicting-labels", image, other, f"the same as {other.file}")
                lost.add(image.file)
            continue
        firsts = {group[0].split: group[0]}
        for image in group[1:]:
            lost.add(image.file)
            for other in firsts.values():
                code = "duplicate-image" if other.split == image.split else "duplicate-across-splits"
                add(code, image, other, f"the same as {other.file}")
            firsts.setdefault(image.split, image)
    if known:
        pairs = hashes.same_looking(
            np.array([image.hash for image in known], np.uint64), np.stack([image.cells for image in known])
        )
        for first, second in pairs.tolist():
            one, image = known[first], known[second]
            if one.digest != image.digest:
                code = "near-duplicate" if one.split == image.split else "near-duplicate-across-splits"
                bits = bin(one.hash ^ image.hash).count("1")
                add(code, image, one, f"looks like {one.file} ({bits} of 64 bits differ)")
    return lost, others
