"""One training at a time in a run directory."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cv_hf.errors import RecipeError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

LOCK = ".lock"
# A process may lock again what it has locked, and would lose it by closing the file of the second time.
_held: set[Path] = set()


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Make a run directory, and keep every other training out of it while within.

    The lock is one of the operating system, which ends it with the process, however that ends; loader workers do not
    inherit it. Its file says who holds it, and goes with it, as does a folder that was made for nothing else. Where
    there are no locks (Windows, some network file systems) nobody is kept out.

    Raises:
        RecipeError: another training holds it.
    """
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder.resolve() / LOCK
    handle = _lock(path, folder) if fcntl is not None else None
    if handle is not None:
        _held.add(path)
    try:
        yield
    finally:
        if handle is not None:
            _held.discard(path)
            # Before another can have locked it.
            path.unlink(missing_ok=True)
            os.close(handle)
        if made:
            with suppress(OSError):
                folder.rmdir()


def _lock(path: Path, folder: Path) -> int | None:
    """The open and locked file; None where there are no locks."""
    while True:
        if path in _held:
            raise _taken(folder, _me())
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            who = os.read(handle, 200).decode("utf-8", "replace")
            os.close(handle)
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise _taken(folder, who) from None
            if not who:
                path.unlink(missing_ok=True)
            return None
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle), path.stat()):
                os.ftruncate(handle, 0)
                os.write(handle, _me().encode())
                return handle
        # Its holder has ended, and taken the file away, between the two calls.
        os.close(handle)


def _me() -> str:
    return f"process {os.getpid()} on {socket.gethostname()}"


def _taken(folder: Path, who: str) -> RecipeError:
    return RecipeError(
        f"{folder}: another training is writing here ({who or 'it does not say which'}).\n"
        "Wait for its end or stop it, or choose another with --run-dir."
    )
