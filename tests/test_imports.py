"""The floors of the house, read from the imports; and what may be imported before a command needs it."""

from __future__ import annotations

import ast
import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import cv_hf

PACKAGE = Path(cv_hf.__file__).parent
FLOORS = (
    {"errors", "boxes", "runs", "http"},
    {"config", "task"},
    {"data", "transforms", "models", "metrics"},
    {"segmentation"},
    {"tasks", "training", "publish"},
    {"inference"},
    {"finetuning", "verify", "starter"},
    {"recipes", "environment", "launch", "bench", "support"},
    {"cli", "demo"},
)
FLOOR = {name: floor for floor, names in enumerate(FLOORS) for name in names}
# The package's own door and `python -m cv_hf`.
DOORS = {"cv_hf", "cv_hf.__main__"}
HEAVY = {"PIL", "albumentations", "cv2", "datasets", "evaluate", "huggingface_hub", "numpy", "pandas", "pyarrow"}
HEAVY |= {"pydantic", "timm", "torch", "torchvision", "transformers"}


def modules() -> dict[str, Path]:
    """Dotted name -> file."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imported(source: str) -> Iterator[str]:
    """Dotted names of the modules of cv_hf that a source imports, anywhere in it, but for type hints alone."""
    pending: list[ast.AST] = [ast.parse(source)]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            pending += node.orelse
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "cv_hf")
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are written in full"
            if node.module and node.module.split(".")[0] == "cv_hf":
                for alias in node.names:
                    name = f"{node.module}.{alias.name}"
                    yield name if name in MODULES else node.module
        pending += ast.iter_child_nodes(node)


def part(module: str) -> str:
    """The part of the house that a module belongs to: cv_hf.data.labels -> data."""
    return module.split(".")[1]


def faults(module: str, source: str) -> list[str]:
    """Each import of a module that the house does not allow."""
    own, found = part(module), []
    for name in imported(source):
        if name == "cv_hf":
            continue
        other = part(name)
        if own == other:
            if own == "tasks" and {module, name}.isdisjoint({"cv_hf.tasks"}) and module != name:
                found.append(f"{module} imports the task {name}")
        elif FLOOR[other] >= FLOOR[own]:
            found.append(f"{module} (floor {FLOOR[own]}) imports {name} (floor {FLOOR[other]})")
    return found


def test_every_module_has_a_floor():
    assert len(MODULES) > 30
    assert {part(name) for name in MODULES.keys() - DOORS} <= FLOOR.keys()


@pytest.mark.parametrize("module", sorted(MODULES.keys() - DOORS))
def test_a_module_imports_only_from_lower_floors(module):
    assert faults(module, MODULES[module].read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("cv_hf.training.trainer", "from cv_hf.tasks import get_task"),
        ("cv_hf.data.load", "def read():\n    from cv_hf import tasks"),
        ("cv_hf.data.load", "import cv_hf.models.build"),
        ("cv_hf.tasks.semantic_segmentation", "from cv_hf.tasks.image_classification import TASK"),
        ("cv_hf.errors", "from cv_hf.config import Recipe"),
        ("cv_hf.inference", "try:\n    from cv_hf.cli import main\nexcept ImportError: pass"),
    ],
)
def test_a_wrong_import_is_seen(module, source):
    assert len(faults(module, source)) == 1


def test_type_hints_and_lower_floors_are_free():
    assert faults("cv_hf.task", "if TYPE_CHECKING:\n    from cv_hf.training import Trainer") == []
    assert faults("cv_hf.tasks.x", "from cv_hf.tasks import get_task\nfrom cv_hf.data import LabelMap") == []


@pytest.mark.parametrize(
    "code",
    [
        "import cv_hf; dir(cv_hf)",
        "import cv_hf.cli",
        "import runpy, sys; sys.argv = ['cv-hf', '--help']; runpy.run_module('cv_hf', run_name='__main__')",
    ],
)
def test_nothing_heavy_is_imported_early(code):
    script = f"import atexit, json, sys; atexit.register(lambda: print(json.dumps(list(sys.modules))))\n{code}"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in json.loads(done.stdout.splitlines()[-1])}
    assert "cv_hf" in loaded
    assert loaded & HEAVY == set()


def test_training_and_scoring_do_without_evaluate():
    """It brings scipy.stats, which takes half a second; the metrics for other code are made of it."""
    script = "import sys, cv_hf.finetuning, cv_hf.tasks, cv_hf.metrics; print('evaluate' in sys.modules); "
    script += "metric = cv_hf.metrics.ClassificationMetric; import evaluate; print(issubclass(metric, evaluate.Metric))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]


IMPORTING = """
import gc
{before}
from cv_hf.environment import importing
try:
    with importing():
        during = gc.isenabled()
        {inside}
except ImportError:
    pass
print(during, gc.isenabled(), gc.get_freeze_count() > 0)
"""


@pytest.mark.parametrize(
    ("before", "inside", "printed"),
    [
        ("", "import numpy", "False True True"),
        ("", "import no_such_module", "False True True"),
        ("import torch", "import numpy", "True True False"),
        ("gc.disable()", "import numpy", "False False False"),
    ],
)
def test_garbage_waits_for_the_imports_of_a_program_alone(before, inside, printed):
    script = IMPORTING.format(before=before, inside=inside)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == printed.split()


def test_public_names_are_sorted_and_each_resolves():
    assert cv_hf.__all__ == sorted(cv_hf.__all__)
    assert set(cv_hf.__all__) == cv_hf._HOMES.keys()
    for name, home in cv_hf._HOMES.items():
        assert getattr(cv_hf, name) is getattr(importlib.import_module(home), name)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        cv_hf.nothing  # noqa: B018


def test_type_checkers_see_the_same_names():
    tree = ast.parse(MODULES["cv_hf"].read_text(encoding="utf-8"))
    guarded = next(node for node in tree.body if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test))
    hinted = {alias.name: node.module for node in guarded.body for alias in node.names}
    assert hinted == cv_hf._HOMES
