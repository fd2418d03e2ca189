"""What is wrong in a dataset, found by reading all of it: every split, every image decoded, every box."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from cv_hf.config import DataConfig
from cv_hf.data.detect import detect_format
from cv_hf.data.findings import Findings
from cv_hf.data.images import UnreadableImage, decode
from cv_hf.data.labels import LabelMap
from cv_hf.data.load import canonical_rows, clean_rows, read, unlabelled
from cv_hf.data.splits import role_of
from cv_hf.errors import DataError
from cv_hf.task import Task

_THREADS = 8
_AT_ONCE = 64


def check(data: DataConfig, task: Task, echo: Callable[[str], None] = print) -> dict[str, dict[str, Any]]:
    """Read a whole dataset as training would, and report what would be dropped, repaired or noted on the way.

    Args:
        data: the data section; `on_bad_sample` does not matter here.
        task: whose targets are judged.
        echo: called with each line to print.

    Returns:
        the findings, as in metrics.json: {code: {severity, count, meaning, files, reasons}}; empty where all is well.

    Raises:
        DataError: the dataset cannot be read at all.
        HubError: the Hub failed.
    """
    findings = Findings()
    data = data.model_copy(update={"on_bad_sample": "skip"})
    source = read(data, task, [name for name in (data.splits or {}).values() if isinstance(name, str)], findings)
    every = {name: name for name in source.splits}
    rows = canonical_rows(source, every, {name for name in every if role_of(name) == "test"}, data, task, echo)
    rows, labels, form = clean_rows(rows, every, source, data, task, findings)
    for name, split in rows.items():
        encoded = task.encode(split, labels)
        missing = unlabelled(encoded)
        if role_of(name) == "test" and len(missing) == len(encoded):
            echo(f"data: the split {name} has no labels")
            missing = []
        for row in missing:
            findings.add("missing-label", split[row]["file"])
        with ThreadPoolExecutor(_THREADS) as pool:
            # In parts, since a pool takes all that there is to do at once, with every image of the dataset.
            for start in range(0, len(encoded), _AT_ONCE):
                part = (encoded[index] for index in range(start, min(start + _AT_ONCE, len(encoded))))
                for found in pool.map(lambda row: _judged(row, task, labels), part):
                    for code, file, reason in found:
                        findings.add(code, file, reason)
    sizes = ", ".join(f"{name} {len(split)}" for name, split in rows.items())
    echo(f"data: {data.id}: {source.format}; {sizes}; {len(labels)} labels{'; ' + form if form else ''}")
    if len(findings):
        echo(findings.summary())
    return findings.to_dict()


def task_shown(data: DataConfig, tasks: Sequence[Task]) -> Task | None:
    """The first of the tasks whose targets a dataset holds, by its format, else by its columns; None for none of them.

    Raises:
        DataError: the dataset cannot be read.
        HubError: the Hub failed.
    """
    found = data.format or detect_format(data)
    of_format = [task for task in tasks if found in task.formats]
    if of_format:
        return of_format[0]
    source = read(data, tasks[0], [], Findings())
    first = next(iter(source.splits.values()))
    for task in tasks:
        try:
            task.canonical(first.select(range(min(1, len(first)))), data)
        except DataError:
            continue
        return task
    return None


def _judged(row: Mapping[str, Any], task: Task, labels: LabelMap) -> list[tuple[str, str, str]]:
    try:
        image, codes = decode(row["image"])
    except UnreadableImage as error:
        return [(error.code, row["file"], error.reason)]
    found = [(code, row["file"], "") for code in codes]
    if task.fit is not None:
        found += task.fit(row, (image.height, image.width), labels)[1]
    return found
