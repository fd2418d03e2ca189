"""Timing side by side: what is compared takes turns in one run, so that what else the machine does hits all alike."""

from __future__ import annotations

import gc
import re
import resource
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from cv_hf.environment import quiet


def alternate(
    sides: Mapping[str, Callable[[], float]], rounds: int, *, warm_up: int = 1, budget: float | None = None
) -> dict[str, list[float]]:
    """Call each side in turn, every other round in the opposite order.

    Args:
        sides: name -> function that returns what it measured.
        rounds: how often each is called, warm-up apart.
        warm_up: first rounds that do not count: they import, and fill caches.
        budget: seconds after which no further round begins, once there are three.

    Returns:
        name -> its measurements, in the order of the rounds.
    """
    measured: dict[str, list[float]] = {name: [] for name in sides}
    start = time.perf_counter()
    for number in range(-warm_up, rounds):
        if budget is not None and number >= 3 and time.perf_counter() - start > budget:
            break
        for name in list(sides)[:: 1 if number % 2 else -1]:
            gc.collect()
            value = sides[name]()
            if number >= 0:
                measured[name].append(value)
    return measured


@contextmanager
def apart(sides: Mapping[str, Callable[[], float]]) -> Iterator[dict[str, Callable[[], float]]]:
    """The sides, each in a process of its own for all its rounds: what one does to allocator or threads is its own.

    A side must be one that can be pickled, such as a `partial` of a function of a module.
    """
    with ExitStack() as stack:
        pools = {
            name: stack.enter_context(ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=quiet))
            for name in sides
        }
        yield {name: lambda name=name: pools[name].submit(sides[name]).result() for name in sides}


def seconds(function: Callable[[], Any], clock: Callable[[], float] = time.perf_counter) -> Callable[[], float]:
    """A side that measures how long a function takes."""

    def timed() -> float:
        start = clock()
        function()
        return clock() - start

    return timed


def ratios(over: Sequence[float], under: Sequence[float]) -> list[float]:
    """Each round's own ratio."""
    return [a / b for a, b in zip(over, under, strict=True)]


def spread(values: Sequence[float], form: str = ".2f") -> str:
    """Median and quartiles, as in "1.63 (1.60-1.71)"."""
    low, middle, high = quartiles(values)
    return f"{middle:{form}} ({low:{form}}-{high:{form}})"


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """First quartile, median, third quartile; of one value, that value."""
    if len(values) < 2:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def peak_memory() -> int:
    """The most bytes of this process that were resident at once."""
    status = Path("/proc/self/status")
    if status.is_file():
        # `ru_maxrss` of Linux begins with that of the process which started this one.
        return 1024 * int(re.search(r"VmHWM:\s+(\d+)", status.read_text())[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
