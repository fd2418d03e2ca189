"""The C library's memory: what each step frees the next one takes again, so it is kept and not given back."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

# Of <malloc.h>, and the highest that glibc itself sets them to, as it does once such blocks have been freed.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_USUAL = {_MMAP_THRESHOLD: 1 << 25, _TRIM_THRESHOLD: 1 << 26}
_KEPT = {_MMAP_THRESHOLD: 1 << 30, _TRIM_THRESHOLD: -1}
_within = 0


@contextmanager
def memory_kept() -> Iterator[None]:
    """Keep the memory that is freed meanwhile, and give it back to the system at the end.

    glibc gives large blocks back as they are freed, and the pages of those that the next step takes must be made and
    cleared again: a tenth of a step on a CPU. The process holds no more at its peak, which it holds until the end.
    Elsewhere than on glibc nothing happens.
    """
    global _within
    library = _glibc()
    _within += 1
    try:
        if library and _within == 1:
            _set(library, _KEPT)
        yield
    finally:
        _within -= 1
        if library and not _within:
            _set(library, _USUAL)
            library.malloc_trim(0)


def _set(library: ctypes.CDLL, values: dict[int, int]) -> None:
    for name, value in values.items():
        library.mallopt(name, value)


@cache
def _glibc() -> ctypes.CDLL | None:
    if not sys.platform.startswith("linux"):
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "mallopt") and hasattr(library, "malloc_trim") else None
