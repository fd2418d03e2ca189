"""How much memory training takes, and how much is free."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psutil
import torch


def memory_taken() -> int:
    """Bytes: the most that was allocated on the accelerator, or what this process has in memory, without the images
    that it keeps."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return psutil.Process().memory_info().rss


def memory_free(root: Path = Path("/")) -> int:
    """Bytes that are free on this machine, and within the limits of the containers and batch jobs that hold this
    process (control groups of Linux, of either version). `root`: of the file system that tells of them."""
    free = psutil.virtual_memory().available
    for group, limits, *names in _memory_groups(root):
        taken, cached = (_number(group, *name.split(":")) for name in names)
        for limit in filter(None, (_number(group, name) for name in limits)):
            # What was read from files counts as taken, and goes when others need it.
            free = min(free, max(0, limit - (taken or 0) + (cached or 0)))
    return free


def _memory_groups(root: Path) -> Iterator[tuple[Path, tuple[str, ...], str, str]]:
    """Each control group around this process, and where its limits, what it takes, and what of that is files stand."""
    try:
        lines = (root / "proc/self/cgroup").read_text(errors="replace").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, place = line.split(":", 2)
        if not controllers:
            # Above the second limit a process is slowed down until it stands still.
            mount, names = "", (("memory.max", "memory.high"), "memory.current", "memory.stat:inactive_file")
        elif "memory" in controllers.split(","):
            names = (("memory.limit_in_bytes",), "memory.usage_in_bytes", "memory.stat:total_inactive_file")
            mount = "memory"
        else:
            continue
        top = root / "sys/fs/cgroup" / mount
        # Within a container its own group is mounted at the top, whatever the path says.
        group = top / place.strip("/")
        yield from ((each, *names) for each in (group, *group.parents) if each == top or top in each.parents)


def _number(group: Path, file: str, key: str = "") -> int | None:
    """The number in a file, or behind a word in it; None where there is none, or "max"."""
    try:
        words = (group / file).read_text().split()
        return int(words[words.index(key) + 1] if key else words[0])
    except (OSError, ValueError, IndexError):
        return None
