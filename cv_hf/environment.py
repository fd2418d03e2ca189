"""What runs here: versions and devices, for a bug report (no paths, names or tokens); and a quick, quiet start."""

from __future__ import annotations

import gc
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = (
    "cv_hf",
    "torch",
    "torchvision",
    "transformers",
    "datasets",
    "evaluate",
    "accelerate",
    "huggingface_hub",
    "albumentations",
    "timm",
    "pillow",
    "numpy",
)


def report() -> dict[str, str]:
    """What runs here: Python, packages, processor, accelerators, and what the Hub client is told."""
    import torch

    devices = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    if not devices and torch.accelerator.is_available():
        devices = [str(torch.accelerator.current_accelerator())]
    return {
        "python": platform.python_version(),
        "system": platform.platform(),
        **{name: _version(name) for name in PACKAGES},
        "cores": str(os.cpu_count()),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "accelerators": ", ".join(devices) or "none",
        "HF_ENDPOINT": os.environ.get("HF_ENDPOINT", "not set"),
        "HF_HUB_OFFLINE": os.environ.get("HF_HUB_OFFLINE", "not set"),
        "token": "set" if _has_token() else "not set",
    }


@contextmanager
def importing() -> Iterator[None]:
    """Import what a program needs, with no garbage collected meanwhile, nor looked for in it later.

    That takes a quarter of the time otherwise, and as long again when the program ends, since both go through all that
    was imported. Nothing happens in a process that has imported torch, which is more than this program.
    """
    if "torch" in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def memory_free(root: Path = Path("/")) -> int:
    """Bytes that are free on this machine, and within the limits of the containers and batch jobs that hold this
    process (control groups of Linux, of either version). `root`: of the file system that tells of them."""
    import psutil

    free = psutil.virtual_memory().available
    for group, names in _memory_groups(root):
        limit, taken, cached = (_number(group, *name.split(":")) for name in names)
        if limit is not None and taken is not None:
            # What was read from files counts as taken, and goes when others need it.
            free = min(free, max(0, limit - taken + (cached or 0)))
    return free


def _memory_groups(root: Path) -> Iterator[tuple[Path, tuple[str, str, str]]]:
    """Each control group around this process, and where its limit, what it takes, and what of that is files stand."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, place = line.split(":", 2)
        if not controllers:
            mount, names = "", ("memory.max", "memory.current", "memory.stat:inactive_file")
        elif "memory" in controllers.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "memory.stat:total_inactive_file")
            mount = "memory"
        else:
            continue
        top = root / "sys/fs/cgroup" / mount
        # Within a container its own group is mounted at the top, whatever the path says.
        group = top / place.strip("/")
        yield from ((each, names) for each in (group, *group.parents) if each == top or top in each.parents)


def _number(group: Path, file: str, key: str = "") -> int | None:
    """The number in a file, or behind a word in it; None where there is none, or "max"."""
    try:
        words = (group / file).read_text().split()
        return int(words[words.index(key) + 1] if key else words[0])
    except (OSError, ValueError, IndexError):
        return None


def quiet() -> None:
    """Leave the terminal to this program's own lines: of the libraries below only errors, and the bars of what is
    downloaded or uploaded where somebody watches."""
    import datasets
    import huggingface_hub
    import transformers

    if not sys.stderr.isatty():
        huggingface_hub.utils.disable_progress_bars()
    huggingface_hub.utils.logging.set_verbosity_error()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _has_token() -> bool:
    from huggingface_hub import get_token

    return get_token() is not None
