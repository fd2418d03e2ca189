"""Decoded images in memory: where reading holds training back, an image should be decoded once and not every epoch."""

from __future__ import annotations

import contextlib
import os
import struct
import weakref
from collections.abc import Callable, Iterator
from multiprocessing import reduction
from multiprocessing.context import get_spawning_popen
from typing import Any

import numpy as np

from cv_hf.training.arguments import local_processes
from cv_hf.training.memory import memory_free

if os.name == "posix":
    import fcntl

# A place in the file and (height, width) twice: of the pixels, and of the image that they may be a smaller copy of.
_ENTRY = struct.Struct("<qiiii")
# Bytes that are added until somebody looks again how much memory is free.
_LOOK = 1 << 24
# In the place of the next image: there is no room for more, and there is none left.
_CLOSED, _DROPPED = -1, -2


def image_cache(length: int) -> ImageCache | None:
    """A cache of so many images for this process, one of those on this machine; None where there can be none."""
    try:
        return ImageCache(length, 1 / local_processes())
    except OSError:
        return None


class ImageCache:
    """Decoded images that the loader workers of a process share, by their index.

    They lie in a file in memory (`man memfd_create`), which is in no folder, knows no limit of /dev/shm, is passed on
    to workers however these are started, and is gone with its last process. All images are read once per epoch, so
    that none is worth more than another: what has been kept stays, until no more than a quarter of the memory that is
    free without it would be taken; the rest is decoded each time. Whatever goes wrong with it, nothing is kept.

    Args:
        length: the number of images.
        share: of that quarter, where several processes of this machine have a cache each.
        free: () -> bytes that are free now.

    Raises:
        OSError: there is no such file here.
    """

    def __init__(self, length: int, share: float = 1.0, free: Callable[[], int] = memory_free):
        if not hasattr(os, "memfd_create"):
            raise OSError("no files in memory")
        self._open(os.memfd_create("images"), length, share, free)
        # The first entry says where the next image goes.
        os.truncate(self._file, self._start)
        self._write_entry(0, self._start)

    def _open(self, file: int, length: int, share: float, free: Callable[[], int]) -> None:
        self._file, self._length, self._share, self._free = file, length, share, free
        self._start = _ENTRY.size * (1 + length)
        self._closing = weakref.finalize(self, os.close, file)
        self._closing.atexit = False

    def __getstate__(self) -> dict[str, Any]:
        if get_spawning_popen() is None:
            raise TypeError("an ImageCache can only be sent to a process that is being started")
        return {"file": reduction.DupFd(self._file), "of": (self._length, self._share, self._free)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._open(state["file"].detach(), *state["of"])

    def __len__(self) -> int:
        return self._length

    def get(self, index: int) -> tuple[np.ndarray, tuple[int, int]] | None:
        """The pixels (H, W, 3), a copy, and the (height, width) of the whole image; None if they are not kept."""
        try:
            entry = self._read_entry(1 + index)
            # One that is just being written may be there in part.
            if not all(entry):
                return None
            place, height, width, *whole = entry
            pixels = np.empty((height, width, 3), np.uint8)
            read = os.preadv(self._file, [pixels], place)
            # What was dropped meanwhile may have been read as zeros.
            kept = read == pixels.nbytes and self._read_entry(0)[0] != _DROPPED
        except OSError:
            return None
        return (pixels, (whole[0], whole[1])) if kept else None

    def put(self, index: int, pixels: np.ndarray, whole: tuple[int, int]) -> None:
        """Keep an image, if there is room for it.

        Args:
            index: of the image.
            pixels: uint8 (H, W, 3).
            whole: (height, width) of what `pixels` may be a smaller copy of.
        """
        try:
            place = self._claim(pixels.nbytes)
            if place is None:
                return
            if os.pwrite(self._file, np.ascontiguousarray(pixels), place) == pixels.nbytes:
                # Last, so that whoever finds the entry finds the pixels.
                self._write_entry(1 + index, place, *pixels.shape[:2], *whole)
                return
        except OSError:
            pass
        self._end(_CLOSED)

    def drop_if_scarce(self) -> None:
        """Give all memory back for good where less is free than is kept: what trains and scores needs it more."""
        with contextlib.suppress(OSError):
            if self._kept() > self._free():
                self._end(_DROPPED)
                os.truncate(self._file, self._start)

    def close(self) -> None:
        """Give the memory back; it can be used no more."""
        self._closing()

    def _claim(self, size: int) -> int | None:
        """A place for so many bytes, which no other worker gets; None where there is no room."""
        if self._read_entry(0)[0] < 0:
            return None
        with self._locked():
            place = self._read_entry(0)[0]
            if place < 0:
                return None
            before, after = (each // _LOOK for each in (place - self._start, place - self._start + size))
            if place == self._start or before != after:
                if not self._has_room(_LOOK):
                    self._write_entry(0, _CLOSED)
                    return None
                if size > _LOOK and not self._has_room(size):
                    return None
            self._write_entry(0, place + size)
            return place

    def _end(self, state: int) -> None:
        with contextlib.suppress(OSError), self._locked():
            self._write_entry(0, min(state, self._read_entry(0)[0]))

    def _has_room(self, size: int) -> bool:
        kept = self._kept()
        return 4 * (kept + size) <= (self._free() + kept) * self._share

    def _kept(self) -> int:
        return os.fstat(self._file).st_blocks * 512

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        fcntl.lockf(self._file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.lockf(self._file, fcntl.LOCK_UN)

    def _read_entry(self, number: int) -> tuple[int, ...]:
        return _ENTRY.unpack(os.pread(self._file, _ENTRY.size, number * _ENTRY.size))

    def _write_entry(self, number: int, place: int, *sizes: int) -> None:
        os.pwrite(self._file, _ENTRY.pack(place, *(sizes or (0,) * 4)), number * _ENTRY.size)
