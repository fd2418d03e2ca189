"""The tasks, one file each; `get_task` finds one by the name that a recipe uses."""

from __future__ import annotations

import importlib
import importlib.util

from cv_hf.config import TASKS
from cv_hf.errors import RecipeError
from cv_hf.task import Task

__all__ = ["available_tasks", "get_task"]


def get_task(name: str) -> Task:
    """Return the task of that name; RecipeError when this version does not train it."""
    if name not in available_tasks():
        raise RecipeError(
            f"task {name!r} cannot be trained by this version, which knows {', '.join(available_tasks())}."
        )
    return importlib.import_module(_module(name)).TASK


def available_tasks() -> list[str]:
    """The names of the tasks that this version trains."""
    return [name for name in TASKS if importlib.util.find_spec(_module(name))]


def _module(name: str) -> str:
    return f"{__name__}.{name.replace('-', '_')}"
