"""`python -m benchmarks [NAME ...]`: run benchmarks, print one table, write it to runs/bench/results.json."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.bccd import bccd
from benchmarks.clothing import clothing
from benchmarks.detection_metric import detection_metric
from benchmarks.neighborhood import neighborhood
from benchmarks.nuclei import nuclei
from benchmarks.scaling import scaling
from benchmarks.segmentation_memory import segmentation_memory
from benchmarks.segments import segments
from benchmarks.speed import speed
from benchmarks.startup import startup
from cv_hf.environment import quiet, report

BENCHMARKS: dict[str, Callable[[Path], list[dict[str, Any]]]] = {
    "bccd": bccd,
    "clothing": clothing,
    "detection_metric": detection_metric,
    "neighborhood": neighborhood,
    "nuclei": nuclei,
    "scaling": scaling,
    "segmentation_memory": segmentation_memory,
    "segments": segments,
    "speed": speed,
    "startup": startup,
}
FOLDER = Path("runs/bench")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", metavar="NAME", nargs="*", help=f"of {', '.join(BENCHMARKS)}; none: all")
    names = parser.parse_args().names or list(BENCHMARKS)
    if unknown := set(names) - set(BENCHMARKS):
        parser.error(f"no benchmark {', '.join(sorted(unknown))}; there are {', '.join(BENCHMARKS)}")
    quiet()
    FOLDER.mkdir(parents=True, exist_ok=True)
    rows = [{"command": f"python -m benchmarks {name}", **row} for name in names for row in BENCHMARKS[name](FOLDER)]
    machine = {**report(), "threads": torch.get_num_threads(), "cores": len(os.sched_getaffinity(0))}
    (FOLDER / "results.json").write_text(json.dumps({"machine": machine, "rows": rows}, indent=2) + "\n")
    print(f"\n{machine['cores']} cores ({machine['cpu']}), torch {machine['torch']}")
    for name in names:
        print(f"\npython -m benchmarks {name}\n")
        for line in _table([row for row in rows if row["command"].endswith(f" {name}")]):
            print(line)
    return 0


def _table(rows: list[dict[str, Any]]) -> list[str]:
    columns = [column for column in rows[0] if column != "command"] if rows else []
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return [*lines, *("| " + " | ".join(str(row[column]) for column in columns) + " |" for row in rows)]


if __name__ == "__main__":
    sys.exit(main())
