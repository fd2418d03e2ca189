"""Decoded images in memory: where reading holds training back, an image should be decoded once and not every epoch."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from multiprocessing import reduction
from multiprocessing.context import get_spawning_popen
from typing import Any

import numpy as np

from cv_hf.environment import memory_free

if os.name == "posix":
    import fcntl

# A place in the file and (height, width) twice: of the pixels, and of the image that they may be a smaller copy of.
_ENTRY = struct.Struct("<qiiii")
# Bytes that a process adds before it looks again how much memory is free.
_LOOK = 1 << 24


def image_cache(length: int) -> ImageCache | None:
    """A cache of so many images for this process, one of `LOCAL_WORLD_SIZE` on this machine; None where there can be
    none."""
    try:
        return ImageCache(length, 1 / int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
    except OSError:
        return None


class ImageCache:
    """Decoded images that the loader workers of a process share, by their index.

    They lie in a file in memory (`man memfd_create`), which is in no folder, knows no limit of /dev/shm, is passed on
    to workers however these are started, and is gone with its last process. All images are read once per epoch, so
    that none is worth more than another: what has been kept stays, until no more than a quarter of the memory that is
    free without it would be taken; the rest is decoded each time.

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
        self._share = share
        self._free = free
        self._open(os.memfd_create("images"))
        # The first entry says where the next image goes.
        self._file.truncate(_ENTRY.size * (1 + length))
        self._write_entry(0, _ENTRY.size * (1 + length))

    def _open(self, descriptor: int) -> None:
        self._file = open(descriptor, "r+b", buffering=0)  # noqa: SIM115 (closed with the cache)
        self._full = False
        self._added = _LOOK

    def __getstate__(self) -> dict[str, Any]:
        if get_spawning_popen() is None:
            raise TypeError("an ImageCache can only be sent to a process that is being started")
        return {"file": reduction.DupFd(self._file.fileno()), "share": self._share, "free": self._free}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._share, self._free = state["share"], state["free"]
        self._open(state["file"].detach())

    def get(self, index: int) -> tuple[np.ndarray, tuple[int, int]] | None:
        """The pixels (H, W, 3), a copy, and the (height, width) of the whole image; None if they were not kept."""
        place, height, width, *whole = self._read_entry(1 + index)
        if not place:
            return None
        pixels = np.empty((height, width, 3), np.uint8)
        read = os.preadv(self._file.fileno(), [pixels], place)
        return (pixels, (whole[0], whole[1])) if read == pixels.nbytes else None

    def put(self, index: int, pixels: np.ndarray, whole: tuple[int, int]) -> None:
        """Keep an image, if there is room for it.

        Args:
            index: of the image.
            pixels: uint8 (H, W, 3).
            whole: (height, width) of what `pixels` may be a smaller copy of.
        """
        if self._full or not self._has_room(pixels.nbytes):
            return
        place = self._claim(pixels.nbytes)
        try:
            written = os.pwrite(self._file.fileno(), np.ascontiguousarray(pixels), place)
        except OSError:
            self._full = True
            return
        # Last, so that whoever finds the entry finds the pixels.
        if written == pixels.nbytes:
            self._write_entry(1 + index, place, *pixels.shape[:2], *whole)

    def _has_room(self, size: int) -> bool:
        self._added += size
        if self._added >= _LOOK:
            kept = os.fstat(self._file.fileno()).st_blocks * 512
            self._full = 4 * (kept + max(size, _LOOK)) > (self._free() + kept) * self._share
            self._added = size
        return not self._full

    def _claim(self, size: int) -> int:
        """A place for so many bytes, which no other worker gets."""
        fcntl.lockf(self._file, fcntl.LOCK_EX)
        try:
            place = self._read_entry(0)[0]
            self._write_entry(0, place + size)
            return place
        finally:
            fcntl.lockf(self._file, fcntl.LOCK_UN)

    def _read_entry(self, number: int) -> tuple[int, ...]:
        return _ENTRY.unpack(os.pread(self._file.fileno(), _ENTRY.size, number * _ENTRY.size))

    def _write_entry(self, number: int, place: int, *sizes: int) -> None:
        os.pwrite(self._file.fileno(), _ENTRY.pack(place, *(sizes or (0,) * 4)), number * _ENTRY.size)
