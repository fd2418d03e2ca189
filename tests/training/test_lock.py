"""One training at a time in a run directory: the lock by itself. `tests/test_cli.py` meets it with real trainings."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import socket
from pathlib import Path

import pytest

from cv_hf.errors import RecipeError
from cv_hf.training import lock
from cv_hf.training.lock import LOCK, locked

pytest.importorskip("fcntl")


def other(folder: Path) -> str:
    """What another process is told that wants the lock; "" where it gets it."""
    with multiprocessing.get_context("fork").Pool(1) as pool:
        return pool.apply(_try, (folder,))


def _try(folder: Path) -> str:
    lock._held.clear()  # which fork has copied
    try:
        with locked(folder):
            return ""
    except RecipeError as error:
        return str(error)


def test_it_keeps_others_out_and_says_who_holds_it(tmp_path):
    folder = tmp_path / "runs" / "a"
    with locked(folder):
        assert [path.name for path in folder.iterdir()] == [LOCK]
        (folder / "recipe.yaml").touch()
        who = f"process {os.getpid()} on {socket.gethostname()}"
        assert other(folder) == (
            f"{folder}: another training is writing here ({who}).\n"
            "Wait for its end or stop it, or choose another with --run-dir."
        )
        with pytest.raises(RecipeError, match="another training"), locked(tmp_path / "runs" / ".." / "runs" / "a"):
            pass
        assert "another training" in other(folder), "looking at it from within has not lost it"
        assert other(tmp_path / "runs" / "b") == ""
    assert [path.name for path in folder.iterdir()] == ["recipe.yaml"]
    assert other(folder) == ""


def test_a_folder_made_for_nothing_goes_again(tmp_path):
    (tmp_path / "there").mkdir()
    for name in ("there", "new"):
        with pytest.raises(ZeroDivisionError), locked(tmp_path / name):
            raise ZeroDivisionError
    assert [path.name for path in tmp_path.iterdir()] == ["there"]
    assert not any((tmp_path / "there").iterdir())


def test_a_file_that_was_left_locks_nothing(tmp_path):
    """A killed process leaves it; and an empty one does not say whose it is."""
    (tmp_path / LOCK).write_text("process 1 on elsewhere, of a name that is longer than what is written next")
    with locked(tmp_path):
        assert (tmp_path / LOCK).read_text() == f"process {os.getpid()} on {socket.gethostname()}"
        (tmp_path / LOCK).write_text("")
        # write_text() has closed the file, and so taken the lock from this process.
        lock.fcntl.lockf(handle := os.open(tmp_path / LOCK, os.O_RDWR), lock.fcntl.LOCK_EX)
        assert "(it does not say which)" in other(tmp_path)
        os.close(handle)


def test_a_file_that_goes_while_it_is_locked_is_made_again(tmp_path, monkeypatch):
    """Its holder ends between the opening and the locking of one that follows."""
    lockf, handles = lock.fcntl.lockf, []

    def late(handle: int, how: int) -> None:
        if not handles:
            (tmp_path / LOCK).unlink()
        handles.append(handle)
        lockf(handle, how)

    monkeypatch.setattr(lock.fcntl, "lockf", late)
    with locked(tmp_path):
        assert len(handles) == 2
        assert "another training" in other(tmp_path)


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, None])
def test_without_locks_training_goes_on(tmp_path, monkeypatch, code):
    """File systems that have none, and Windows, where there is no fcntl."""

    def none(*_: object) -> None:
        raise OSError(code, "none here")

    if code is None:
        monkeypatch.setattr(lock, "fcntl", None)
    else:
        monkeypatch.setattr(lock.fcntl, "lockf", none)
    with locked(tmp_path / "run"), locked(tmp_path / "run"):
        assert not any((tmp_path / "run").iterdir())


def test_a_fork_does_not_hold_what_its_parent_held(tmp_path):
    """As a loader worker, which outlives a killed training for some seconds."""
    context = multiprocessing.get_context("fork")
    ready, outlives = context.Event(), context.Event()

    def train() -> None:
        with locked(tmp_path):
            context.Process(target=outlives.wait, args=(60,)).start()
            ready.set()
            signal.pause()

    training = context.Process(target=train)
    training.start()
    assert ready.wait(60)
    assert "another training" in other(tmp_path)
    training.kill()
    training.join()
    assert other(tmp_path) == ""
    outlives.set()
