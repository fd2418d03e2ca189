"""How long `cv-hf --help` takes over a Python that does nothing."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

RUNS = 15


def startup(folder: Path) -> list[dict[str, Any]]:
    """One row: median seconds of each, the two alternating."""
    commands = {"python": [sys.executable, "-c", "pass"], "help": [sys.executable, "-m", "cv_hf", "--help"]}
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(RUNS):
        for name, command in commands.items():
            start = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            seconds[name].append(time.perf_counter() - start)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    spread = f"{min(seconds['help']):.2f}-{max(seconds['help']):.2f}"
    return [
        {
            "what": "cv-hf --help",
            "seconds": f"{median['help']:.2f} ({spread})",
            "python -c pass": f"{median['python']:.2f}",
        }
    ]
