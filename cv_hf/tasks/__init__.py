"""The tasks, one file each; `get_task` finds one by the name that a recipe uses."""

from __future__ import annotations

import importlib

from cv_hf.config import TASKS
from cv_hf.errors import RecipeError
from cv_hf.task import Task

__all__ = ["available_tasks", "get_task"]


def get_task(name: str) -> Task:
    """Return the task of that name; RecipeError when there is none."""
    if name not in TASKS:
        raise RecipeError(f"there is no task {name!r}, only {', '.join(TASKS)}.")
    return importlib.import_module(f"{__name__}.{name.replace('-', '_')}").TASK


def available_tasks() -> list[str]:
    """The names of the tasks."""
    return list(TASKS)
