"""Memory that is freed while training is taken again, and given back at its end."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")

SCRIPT = """
import resource, sys
from pathlib import Path
import numpy as np
from cv_hf.training.allocator import memory_kept

def faults(times):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        np.ones(80_000_000, np.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1])

faults(1)
without, small = faults(5), resident()
with memory_kept():
    with memory_kept():
        faults(1)
    within, large = faults(5), resident()
left = resident()
print(without, within, faults(5), large - small, left - small)
"""


@pytest.fixture(scope="module")
def counted():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    return dict(zip(("without", "within", "after", "held", "left"), map(int, done.stdout.split()), strict=True))


def test_pages_are_made_once_though_memory_is_taken_again_and_again(counted):
    """80 MB are 19,531 pages of 4 kB, and fewer larger ones."""
    assert counted["within"] < counted["without"] / 100


def test_all_is_given_back_at_the_outermost_end(counted):
    assert counted["held"] > 15_000
    assert counted["left"] < 1_000
    assert counted["after"] > counted["without"] / 2
