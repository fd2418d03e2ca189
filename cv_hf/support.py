"""The support matrix: which model families train, resume, reload and answer through pipeline() as measured.

`support.json` holds what `python -m tests.support` found by running a tiny model of each; here it is only read, and
what the installed Transformers has beyond it is added.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("support.json")
CHECKS = {
    "trains": "`finetune()` runs to its end",
    "resumes": "a run resumed in the middle of an epoch follows the uninterrupted one",
    "reloads": "Transformers' own Auto class loads every weight of `model/` again",
    "pipeline": "`cv-hf verify` passes",
    "learns": "the loss falls when one batch is overfitted for a few steps",
    "dropout": "dropout is off in evaluation",
    "alone": "a prediction does not depend on the other images of its batch",
    "accumulates": "batch 1 with 4 accumulated follows batch 4, with dropout 0 and batch norms that stand still",
}
MICRO_BATCH = "yes, where each image has as many objects or labelled pixels: the loss normalises per micro-batch"
UNTRIED = "no tiny model of it has been run"


def stored() -> dict[str, Any]:
    """What was found: {"versions": {package: version}, "rows": [...]}.

    A row has `task`, `family` (the configuration's model_type), `variant` ("" or which model of the family was run) and
    `checks`: {name in CHECKS: "yes", "yes, ..." with a note, or the reason why not; "-" where it could not be tried}.
    """
    return json.loads(FILE.read_text(encoding="utf-8"))


def families() -> dict[str, list[str]]:
    """{task: the families behind its Auto classes in the installed Transformers}."""
    from transformers.models.auto import modeling_auto

    from cv_hf.tasks import available_tasks, get_task

    found = {}
    for task in available_tasks():
        autos = get_task(task).auto_class
        names: set[str] = set()
        for auto in [autos] if isinstance(autos, str) else autos:
            snake = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", auto.removeprefix("AutoModelFor")).upper()
            names.update(getattr(modeling_auto, f"MODEL_FOR_{snake}_MAPPING_NAMES"))
        found[task] = sorted(names)
    return found


def rows() -> list[dict[str, Any]]:
    """The rows of the families that the installed Transformers has; those that were never run say so."""
    tried: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in stored()["rows"]:
        tried.setdefault((row["task"], row["family"]), []).append(row)
    return [
        row
        for task, names in families().items()
        for family in names
        for row in tried.get((task, family)) or [untried(task, family)]
    ]


def untried(task: str, family: str) -> dict[str, Any]:
    """The row of a family that was not run."""
    checks = dict.fromkeys(CHECKS, "-") | {"trains": UNTRIED}
    return {"task": task, "family": family, "variant": "", "checks": checks}


def passes(row: Mapping[str, Any]) -> bool:
    """Whether every check of a row says yes."""
    return all(value.startswith("yes") for value in row["checks"].values())


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """One line for each row: a word for each check, and the notes and reasons behind them."""
    lines = [["task", "family", *CHECKS, ""]]
    for row in rows:
        values = row["checks"].values()
        answers = ["yes" if value.startswith("yes") else "-" if value == "-" else "no" for value in values]
        words = [
            f"{name}: {value.removeprefix('yes, ')}"
            for name, value in row["checks"].items()
            if value not in ("yes", "-")
        ]
        lines.append([row["task"], _name(row), *answers, "; ".join(words)])
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join(
        "  ".join(value.ljust(width) for value, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows by task: on the left the families that pass every check, on the right the others, and why."""
    versions = ", ".join(f"{name} {version}" for name, version in stored()["versions"].items())
    notes: list[str] = []
    lines = [
        f"Found by running a tiny random model of each family ({versions}).",
        "`cv-hf models` prints every row, and what the installed Transformers has beyond these.",
        "",
        "| task | passes every check | does not, and why |",
        "|---|---|---|",
    ]
    for task in dict.fromkeys(row["task"] for row in rows):
        good, bad = [], {}
        for row in rows:
            if row["task"] == task and passes(row):
                own = [value.removeprefix("yes, ") for value in row["checks"].values() if value != "yes"]
                notes += [note for note in own if note not in notes]
                good.append(_name(row) + "".join(f" <sup>{notes.index(note) + 1}</sup>" for note in own))
            elif row["task"] == task:
                bad.setdefault(_reason(row), []).append(_name(row))
        reasons = "; ".join(f"{', '.join(names)}: {reason}" for reason, names in bad.items())
        lines.append(f"| {task} | {', '.join(good)} | {reasons} |")
    lines += ["", "The checks, each on its own:", "", *(f"- {meaning}" for meaning in CHECKS.values())]
    if notes:
        lines += ["", "The last holds", "", *(f"{number}. {note}" for number, note in enumerate(notes, 1))]
    return "\n".join(lines)


def _name(row: Mapping[str, Any]) -> str:
    family = "timm" if row["family"] == "timm_wrapper" else row["family"]
    return f"{family}/{row['variant']}" if row["variant"] else family


def _reason(row: Mapping[str, Any]) -> str:
    return next(value for value in row["checks"].values() if not value.startswith("yes") and value != "-")
