"""A starter recipe from what the data shows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import yaml

from cv_hf.config import DataConfig
from cv_hf.data import load_splits, task_shown
from cv_hf.errors import RecipeError, printable
from cv_hf.task import Task
from cv_hf.tasks import get_task

# Told from data in this order: panoptic segments may have boxes, and are masks too.
_SHOWN = ("panoptic-segmentation", "object-detection", "semantic-segmentation")


def write_starter(data: DataConfig, out: Path, *, task: str | None = None, model: str | None = None) -> None:
    """Read a dataset, say what is in it, and write a recipe that trains on it.

    Args:
        data: what to read; the recipe says of it what differs from the defaults.
        out: the file to write; never overwritten.
        task: None: the one that the data is for.
        model: None: the task's default.

    Raises:
        RecipeError: the file is there already.
        DataError: the data cannot be read, or lacks what the task needs.
    """
    if out.exists():
        raise RecipeError(f"{out}: is there already. Name another file with --out.")
    chosen = task_of(data, task)
    splits = load_splits(data, chosen, seed=0)
    names = splits.labels.names
    shown = ", ".join(printable(name)[:60] for name in names[:8]) + (", ..." if len(names) > 8 else "")
    print(f"{len(names)} classes: {shown}")
    sizes = {name: split for name in ("train", "validation", "test") if (split := getattr(splits, name)) is not None}
    print(", ".join(f"{name} {len(split)}" for name, split in sizes.items()))
    values = {
        "task": chosen.name,
        "model": {"id": model or chosen.default_model},
        "data": data.model_dump(mode="json", exclude_defaults=True),
        "train": {
            "num_train_epochs": chosen.train_defaults["num_train_epochs"],
            "batch_size": chosen.train_defaults.get("batch_size", 16),
        },
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
    out.write_text(f"# cv-hf train {out}\n{text}", encoding="utf-8")


def task_of(data: DataConfig, name: str | None = None, echo: Callable[[str], None] = print) -> Task:
    """The task of that name, else the one whose targets the data holds: boxes, segments, masks, else classes.

    Objects that (nearly) all have a mask are instances.

    Args:
        data: the data section.
        name: of the task.
        echo: called with a line where the data is for another task as well.

    Raises:
        DataError: the data is not there, or cannot be read.
    """
    if name is not None:
        return get_task(name)
    *tasks, instances, otherwise = map(get_task, (*_SHOWN, "instance-segmentation", "image-classification"))
    return task_shown(data, tasks, instances, otherwise, echo)
