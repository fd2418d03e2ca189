"""What is wrong in a dataset, found by reading all of it: every split, every image decoded, every box."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from cv_hf.config import DataConfig
from cv_hf.data import detection
from cv_hf.data.detect import detect_format
from cv_hf.data.findings import Findings
from cv_hf.data.images import UnreadableImage, decode
from cv_hf.data.labels import LabelMap
from cv_hf.data.load import BOX_READERS, canonical_rows, clean_rows, read, unlabelled
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


def holds_boxes(data: DataConfig, detecting: Task) -> bool:
    """Whether a dataset is one of boxes: by its format, else by its columns.

    Args:
        data: the data section.
        detecting: the task of object detection.

    Raises:
        DataError: the dataset cannot be read.
        HubError: the Hub failed.
    """
    if (data.format or detect_format(data)) in BOX_READERS:
        return True
    source = read(data, detecting, [], Findings())
    try:
        detection.canonical(next(iter(source.splits.values())).select(range(1)), data)
    except DataError:
        return False
    return True


def _judged(row: Mapping[str, Any], task: Task, labels: LabelMap) -> list[tuple[str, str, str]]:
    try:
        image, codes = decode(row["image"])
    except UnreadableImage as error:
        return [(error.code, row["file"], error.reason)]
    found = [(code, row["file"], "") for code in codes]
    if task.fit is not None:
        found += task.fit(row, (image.height, image.width), labels)[1]
    return found
