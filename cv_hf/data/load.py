"""From the recipe's data section to splits that can be trained on."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub.utils
import pyarrow as pa
import pyarrow.compute as pc
from datasets.utils import is_progress_bar_enabled

from cv_hf.config import DataConfig
from cv_hf.data import coco, coco_panoptic, hub, imagefolder, masks, table, voc, yolo
from cv_hf.data.columns import sources_of
from cv_hf.data.detect import detect_format
from cv_hf.data.findings import Findings
from cv_hf.data.images import check_images, relative_name
from cv_hf.data.labels import LabelMap, shortened
from cv_hf.data.source import Source
from cv_hf.data.splits import ROLES, check_split, choose_splits, hold_out, subset, usual_split
from cv_hf.errors import CvHfError, DataError
from cv_hf.task import Task

# The formats of annotated images, and those of them that hold boxes.
READERS = {"coco": coco.read, "masks": masks.read, "panoptic": coco_panoptic.read, "voc": voc.read, "yolo": yolo.read}
BOX_READERS = ("coco", "voc", "yolo")


@dataclass(frozen=True)
class Splits:
    """A dataset ready for training: canonical columns and `file` (a name to print), contiguous label ids.

    Images are undecoded ({"path", "bytes"}); rows stay on disk or are paths only.
    """

    train: datasets.Dataset
    validation: datasets.Dataset
    test: datasets.Dataset | None
    labels: LabelMap
    source: Source
    findings: Findings


@dataclass(frozen=True)
class TrainedOn:
    """The data of a model's run, which tells what of it was trained on.

    Attributes:
        data: the run's data section.
        seed: of what it held out.
        samples: the `fingerprint` of its splits; None where nothing tells.
    """

    data: DataConfig
    seed: int
    samples: Mapping[str, Any] | None

    def section(self, data: DataConfig) -> DataConfig:
        """The run's data section, but for what `data` says of reading."""
        said = {name: getattr(data, name) for name in data.model_fields_set - {"splits", "max_samples"}}
        return self.data.model_copy(update=said)


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars where nobody watches them."""
    shown = is_progress_bar_enabled() and not sys.stderr.isatty()
    if shown:
        datasets.disable_progress_bars()
        huggingface_hub.utils.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()
            huggingface_hub.utils.enable_progress_bars()


@quiet()
def load_splits(data: DataConfig, task: Task, seed: int, echo: Callable[[str], None] = print) -> Splits:
    """Read a dataset and make it ready for training.

    Args:
        data: the recipe's data section.
        task: gives the canonical columns, the labels and the strata.
        seed: of what is held out and of `max_samples`.
        echo: called with each line to print.

    Raises:
        DataError: the dataset or what the recipe says of it is wrong; or no sample is left to train or validate on.
        HubError: the Hub failed.
    """
    findings = Findings()
    return _ready(read(data, task, _named_splits(data), findings), data, task, seed, echo, findings)


def _ready(
    source: Source, data: DataConfig, task: Task, seed: int, echo: Callable[[str], None], findings: Findings
) -> Splits:
    """`load_splits` of what was read."""
    chosen, parts = choose_splits(list(source.splits), data.splits)
    rows = canonical_rows(source, chosen, {"test"} - set(data.splits or {}), data, task, echo)
    for role, split in rows.items():
        if role != "test":
            _refuse_empty(split, role, data, findings)
    columns = sources_of(rows["train"])
    rows, labels, form = clean_rows(rows, chosen, source, data, task, findings)
    labelled = {}
    for role, split in rows.items():
        encoded = task.encode(split, labels)
        missing = unlabelled(encoded)
        if role == "test" and len(missing) == len(encoded):
            echo(f"data: the split {chosen['test']} has no labels, and is left out")
            continue
        labelled[role] = _without_unlabelled(encoded, missing, findings, data.on_bad_sample)
    splits = _held_out(labelled, parts, task, seed, echo)
    splits = {role: _at_most(split, task, data, seed) for role, split in splits.items()}
    splits = {role: check_images(split, findings, data.on_bad_sample) for role, split in splits.items()}
    for role, split in splits.items():
        _refuse_empty(split, role, data, findings)
    present = task.present(splits["train"])
    for name in labels.names:
        if present is not None and name not in present:
            findings.add("class-without-samples", name)
    sizes = ", ".join(f"{role} {len(splits[role])}" for role in ROLES if role in splits)
    echo(_found(source, {role: name for role, name in chosen.items() if role in labelled}, columns))
    if form:
        echo(f"data: {form}")
    commit = f" at {source.commit[:8]}" if source.commit else ""
    echo(f"data: {data.id}{commit}: {source.format}; {sizes}; {len(labels)} labels")
    if len(findings):
        echo(findings.summary())
    return Splits(splits["train"], splits["validation"], splits.get("test"), labels, source, findings)


@quiet()
def load_split(
    data: DataConfig,
    task: Task,
    labels: LabelMap,
    split: str | None = None,
    echo: Callable[[str], None] = print,
    run: TrainedOn | None = None,
) -> tuple[datasets.Dataset, Findings]:
    """Read one split of a dataset for a model that has its labels already.

    Args:
        labels: the model's; the data's labels are matched by name, or by source id where the data has no names.
        split: a split of the data, or train, validation or test as `data.splits` or any usual name has it; None: test,
            else validation, else the only one, the first of these that has labels.
        run: of the model, if this is its data; then what the run held out of train is a split too, and the data is read
            as the run read it, but for what `data` says.

    Raises:
        DataError: no such split, no sample with a label, a label that the model does not have, or what was held out
            cannot be told.
        HubError: the Hub failed.
    """
    findings = Findings()
    whole = data if run is None else run.section(data)
    source = read(whole, task, [] if run is None else _named_splits(whole), findings, split)
    data = whole.model_copy(update={"splits": data.splits, "max_samples": data.max_samples})
    names = list(source.splits)
    chosen, parts = _roles(names, data, run)
    for name, held_out in _candidates(names, split, data, chosen, parts):
        if held_out:
            splits = _ready(source, whole, task, run.seed, echo, findings)
            return _of_run(splits, data, task, labels, name, echo, run), findings
        split_rows = task.canonical(source.splits[name], data)
        _refuse_empty(split_rows, name, data, findings)
        rows = named({"test": split_rows}, {"test": name}, source.root)
        own = task.label_map(rows, data, source.labels)
        known = labels.with_sources_of(own)
        form = ""
        if task.clean is not None:
            rows, form = task.clean(rows, known, data, source.format, findings)
        encoded = task.encode(rows["test"], known)
        missing = unlabelled(encoded)
        if len(missing) < len(encoded):
            break
    else:
        raise DataError(f"{data.id}: no sample of {split or ', '.join(names)} has a label.")
    encoded = _without_unlabelled(encoded, missing, findings, data.on_bad_sample)
    encoded = check_images(_at_most(encoded, task, data, seed=0), findings, data.on_bad_sample)
    _refuse_empty(encoded, name, data, findings)
    if form:
        echo(f"data: {form}")
    echo(f"data: {data.id}: {source.format}; {name} {len(encoded)}")
    for line in _apart(known, own):
        echo(line)
    if run is not None and name == chosen["train"]:
        echo(f"data: the model was trained on {name}, so this score says nothing of other images")
    elif split is None and name not in (chosen.get("test"), chosen.get("validation")):
        echo(
            f"data: {data.id} has no test or validation split, so all of {name} is scored; "
            "images that the model was trained on score too well"
        )
    if len(findings):
        echo(findings.summary())
    return encoded, findings


def _at_most(split: datasets.Dataset, task: Task, data: DataConfig, seed: int) -> datasets.Dataset:
    """No more samples of an encoded split than `max_samples`."""
    if data.max_samples is None or len(split) <= data.max_samples:
        return split
    return split.select(subset(task.strata(split), data.max_samples, seed))


def _apart(known: LabelMap, data: LabelMap) -> Iterator[str]:
    """What the classes of a model, `known` with their sources in a dataset, and those of the dataset do not share."""
    pairs = zip(data.names, data.sources, strict=True)
    if strange := [name for name, source in pairs if source not in known.sources]:
        yield f"labels: {shortened(strange, quote=False)}: of the data, but no class of the model; not scored"
    absent = [name for name, source in zip(known.names, known.sources, strict=True) if source is None]
    if absent:
        yield f"labels: {shortened(absent, quote=False)}: of the model, but not in the data"


def read(data: DataConfig, task: Task, wanted: Sequence[str], findings: Findings, split: str | None = None) -> Source:
    """Detect the format of a dataset and read it, splits named in `wanted` among them.

    Raises:
        DataError: the dataset is missing, or of a format that the task does not read.
        HubError: the Hub failed.
    """
    found = data.format or detect_format(data, task.formats)
    if found == "hub":
        return hub.read(
            data.id,
            config=data.config,
            revision=data.revision,
            column=data.columns.get("image"),
            findings=findings,
            on_bad_sample=data.on_bad_sample,
        )
    if not Path(data.id).exists():
        raise DataError(f"data.id: there is no file or folder {data.id}.")
    if found == "imagefolder":
        if split is not None and split in imagefolder.split_folders(Path(os.path.abspath(data.id))):
            wanted = [*wanted, split]
        return imagefolder.read(data.id, wanted, findings, data.on_bad_sample)
    if found == "parquet":
        return table.read(
            data.id,
            images=data.images,
            column=data.columns.get("image"),
            wanted=wanted,
            findings=findings,
            on_bad_sample=data.on_bad_sample,
        )
    if found in READERS and found in task.formats:
        more = {"masks": data.masks} if found in ("masks", "panoptic") else {}
        if found in ("coco", "yolo"):
            more = {"segmentation": task.moved == "mask"}
        return READERS[found](
            data.id, images=data.images, wanted=wanted, findings=findings, on_bad_sample=data.on_bad_sample, **more
        )
    if found in BOX_READERS:
        raise DataError(f"{data.id}: {found} holds boxes, for task: object-detection, not for {task.name}.")
    known = ", ".join(["hub", *task.formats])
    raise DataError(f"{data.id}: {found} is not a format of {task.name}, which reads {known} and parquet.")


def canonical_rows(
    source: Source,
    chosen: Mapping[str, str],
    optional: Collection[str],
    data: DataConfig,
    task: Task,
    echo: Callable[[str], None],
) -> dict[str, datasets.Dataset]:
    """The splits `chosen`, {role: name in the source}, with canonical columns.

    Args:
        optional: roles that are left out, and said so, where they lack what the task needs: the test split of a
            competition has no column of labels at all.

    Raises:
        DataError: a split that is not optional lacks what the task needs.
    """
    rows = {}
    for role, name in chosen.items():
        try:
            rows[role] = task.canonical(source.splits[name], data)
        except DataError as error:
            if role not in optional:
                raise
            echo(f"data: the split {name} is left out: {str(error).splitlines()[0]}")
    return rows


def clean_rows(
    rows: Mapping[str, datasets.Dataset],
    chosen: Mapping[str, str],
    source: Source,
    data: DataConfig,
    task: Task,
    findings: Findings,
) -> tuple[dict[str, datasets.Dataset], LabelMap, str]:
    """Canonical rows with the column `file` and clean targets, whose labels are still those of the source.

    Returns:
        {role: rows}, their LabelMap, and a line about the form of the targets, or "".

    Raises:
        DataError: there is no label, or a target is bad and on_bad_sample is "stop".
    """
    rows = named(rows, chosen, source.root)
    labels = task.label_map(rows, data, source.labels)
    if not len(labels):
        raise DataError(f"{data.id}: no sample has a label.")
    if task.clean is None:
        return rows, labels, ""
    rows, form = task.clean(rows, labels, data, source.format, findings)
    return rows, labels, form


def _found(source: Source, chosen: Mapping[str, str], columns: Mapping[str, str]) -> str:
    """The line that says which splits were taken for which role, and which columns for image and label."""
    line = "data: splits: " + ", ".join(f"{role} from {name}" for role, name in chosen.items())
    # The columns of class folders and annotation files are none of the user's.
    class_folders = source.format == "imagefolder" and source.splits[chosen["train"]].column_names == ["image", "label"]
    if class_folders or source.format in READERS or not columns:
        return line
    return f"{line}; columns: " + ", ".join(f"{canonical} from {name}" for canonical, name in columns.items())


def fingerprint(splits: Splits) -> dict[str, dict[str, Any]]:
    """How many samples each split has, and a hash of their names and of the classes; what is in a file is not read."""
    prints = {}
    for name, split in (("train", splits.train), ("validation", splits.validation), ("test", splits.test)):
        if split is not None:
            text = json.dumps([splits.labels.to_dict(), list(split["file"])], sort_keys=True, default=str)
            prints[name] = {"count": len(split), "sha256": hashlib.sha256(text.encode()).hexdigest()}
    return prints


def _roles(
    names: Sequence[str], data: DataConfig, run: TrainedOn | None
) -> tuple[dict[str, str], dict[str, int | float]]:
    """{role: split} of data to score on, and {role: part} of what the model's run held out of its train split."""
    given = dict(data.splits or {})
    if run is not None:
        chosen, parts = choose_splits(names, {**(run.data.splits or {}), **given})
        _, held_out = choose_splits(names, run.data.splits)
        for role, part in parts.items():
            if held_out.get(role) != part:
                raise DataError(f"data.splits.{role}: the run did not hold out {part}, but {held_out.get(role, 0)}.")
        return chosen, parts
    for role, part in given.items():
        if not isinstance(part, str):
            raise DataError(
                f"data.splits.{role}: {part} can be held out of the data of the model's own run alone; name a split."
            )
    chosen = {role: check_split(name, names, f"data.splits.{role}") for role, name in given.items()}
    free = [name for name in names if name not in chosen.values()]
    usual = {role: name for role in ROLES if (name := usual_split(free, role)) is not None}
    return usual | chosen, {}


def _candidates(
    names: Sequence[str], split: str | None, data: DataConfig, chosen: Mapping[str, str], parts: Collection[str]
) -> list[tuple[str, bool]]:
    """The splits to try for a model's evaluation, see `load_split`, and whether each was held out of train."""
    if split in names and split not in (data.splits or {}):
        return [(split, False)]
    roles = ("test", "validation") if split is None else (split,)
    found = [(chosen.get(role, role), role in parts) for role in roles if role in chosen or role in parts]
    if split is not None:
        return found or [(check_split(split, names, data.id), False)]
    if not found and len(names) > 1:
        raise DataError(f"{data.id}: there is no test or validation split; name one with --split: {', '.join(names)}.")
    return found or [(name, False) for name in names]


def _of_run(
    splits: Splits,
    data: DataConfig,
    task: Task,
    labels: LabelMap,
    role: str,
    echo: Callable[[str], None],
    run: TrainedOn,
) -> datasets.Dataset:
    """What the model's run held out of its train split."""
    if run.samples is None:
        echo("data: the model does not tell whether the data is as it was in training")
    if splits.labels.names != labels.names or run.samples not in (None, fingerprint(splits)):
        raise DataError(
            f"{data.id}: the data is not what it was in training, so what was held out of train cannot be told.\n"
            "Score the model on data of its own, or name a split with --split."
        )
    found = _at_most(getattr(splits, role), task, data, seed=0)
    echo(f"data: scored is {role}: {len(found)}, as the run held it out of train")
    return found


def is_of_run(data: DataConfig, task: Task, run: TrainedOn) -> bool:
    """Whether data of another place, or one that is not known, has the samples of a run by their names and classes."""
    try:
        splits = load_splits(run.section(data), task, run.seed, lambda line: None)
    except CvHfError:
        return False
    return run.samples == fingerprint(splits)


def _named_splits(data: DataConfig) -> list[str]:
    return [name for name in (data.splits or {}).values() if isinstance(name, str)]


def named(
    rows: Mapping[str, datasets.Dataset], chosen: Mapping[str, str], root: Path | None
) -> dict[str, datasets.Dataset]:
    """Add the column `file`: the image's path in the dataset, or "train[12]" where it has none of its own."""
    names = {}
    for role, split in rows.items():
        paths = pc.struct_field(split.data.column("image"), "path").to_pylist()
        if split._indices is not None:
            paths = [paths[index] for index in split._indices.column(0).to_pylist()]
        names[role] = [relative_name(path, root) if path else None for path in paths]
    counts = Counter(name for split in names.values() for name in split)
    named = {}
    for role, split in rows.items():
        if not len(split):
            features = datasets.Features({**split.features, "file": datasets.Value("string")})
            named[role] = datasets.Dataset.from_dict({name: [] for name in features}, features=features)
            continue
        unique = []
        for index, name in enumerate(names[role]):
            place = f"{chosen[role]}[{index}]"
            unique.append(name if counts[name] == 1 and name is not None else f"{place} {name}" if name else place)
        named[role] = split.add_column("file", pa.array(unique, pa.string()), feature=datasets.Value("string"))
    return named


def unlabelled(encoded: datasets.Dataset) -> list[int]:
    """The rows of an encoded split that have no label; of images with objects, all or none: one may be without."""
    if "objects" in encoded.column_names:
        boxes = pc.struct_field(encoded.select_columns("objects").with_format("arrow")[:]["objects"], "bbox")
        return [] if pc.sum(pc.list_value_length(boxes)).as_py() else list(range(len(encoded)))
    if "mask" in encoded.column_names:
        return _without_mask(encoded)
    for column in ("label", "labels"):
        if column in encoded.column_names:
            labels = encoded.select_columns(column).with_format("arrow")[:][column]
            if not labels.null_count:
                return []
            return [index for index, value in enumerate(labels.is_null().to_pylist()) if value]
    return []


def _without_mask(encoded: datasets.Dataset) -> list[int]:
    """The rows without a mask: neither embedded, whose bytes are not read here, nor a path."""
    column = encoded.data.column("mask")
    there = pc.or_(*(pc.struct_field(column, name).is_valid() for name in ("bytes", "path"))).to_pylist()
    indices = range(len(there)) if encoded._indices is None else encoded._indices.column(0).to_pylist()
    return [row for row, index in enumerate(indices) if not there[index]]


def _without_unlabelled(
    encoded: datasets.Dataset, missing: Sequence[int], findings: Findings, on_bad_sample: str
) -> datasets.Dataset:
    if not missing or "objects" in encoded.column_names:
        return encoded
    for name in encoded.select_columns("file").select(missing)["file"]:
        findings.drop("missing-label", name, "", on_bad_sample)
    gone = set(missing)
    return encoded.select([index for index in range(len(encoded)) if index not in gone])


def _held_out(
    labelled: Mapping[str, datasets.Dataset],
    parts: Mapping[str, int | float],
    task: Task,
    seed: int,
    echo: Callable[[str], None],
) -> dict[str, datasets.Dataset]:
    splits = dict(labelled)
    if not parts:
        return splits
    train = labelled["train"]
    ordered = {role: parts[role] for role in ROLES if role in parts}
    indices = hold_out(task.strata(train), ordered, seed)
    for role, part in ordered.items():
        amount = f"{part} of each label" if isinstance(part, int) else f"{part:g} of each label"
        echo(f"data: {role} is held out of train: {len(indices[role])} samples, {amount}, seed {seed}")
    return splits | {role: train.select(rows) for role, rows in indices.items()}


def _refuse_empty(split: datasets.Dataset, role: str, data: DataConfig, findings: Findings) -> None:
    if not len(split):
        why = findings.summary().split("\n")[0]
        raise DataError(f"{data.id}: no sample is left in {role}." + (f"\n{why}" if why else ""))
