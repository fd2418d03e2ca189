"""Several processes of one command on this machine, one per device, as torchrun starts them.

torchrun itself ends a failed run with a traceback of its own and one exit code for everything; here the user sees what
the failing process said, and its code.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

try:
    import fcntl
    import pty
    import termios
except ImportError:  # Windows: the first process's bars are left out
    pty = None

TAIL = 20  # lines shown of a process that failed without an error of ours
PATIENCE = 30.0  # seconds to save and speak after an interrupt, or to end after an error
GRACE = 10.0  # seconds to end after SIGTERM


def launch(processes: int, arguments: Sequence[str], *, command: Sequence[str] | None = None) -> int:
    """Run `cv-hf ARGUMENTS` in so many processes and wait for all; none is left when this returns or raises.

    The first process has standard output. Its standard error is shown as it comes where that is a terminal, which the
    process sees as one, and at the end of a good run elsewhere. Of a failed run only one error is shown: the first of
    ours ("cv-hf: ...") that any process wrote, else the end of what the first to fail wrote. Call it from the main
    thread: while it runs, SIGTERM does what Ctrl-C does.

    Args:
        command: what to run in place of `python -m cv_hf`.

    Returns:
        0; or the exit code of the process whose error is shown, 128 + n for one that signal n ended, 2 for one that
        never ended after its error; or 130.
    """
    command = [*(command or (sys.executable, "-m", "cv_hf")), *arguments]
    running: list[subprocess.Popen] = []

    def interrupt(*_: object) -> None:
        # Ctrl-C reaches every process of the terminal, SIGTERM only this one. Background jobs may ignore SIGINT.
        ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        for process in running:
            process.send_signal(signal.SIGTERM if ignored else signal.SIGINT)
        raise KeyboardInterrupt

    with tempfile.TemporaryDirectory() as folder:
        logs = [Path(folder, str(rank)) for rank in range(processes)]
        screen = Screen(logs[0]) if pty and sys.stderr.isatty() else None
        before = signal.signal(signal.SIGTERM, interrupt)
        try:
            for rank, environment in enumerate(_environments(processes)):
                with logs[rank].open("wb") as errors:
                    streams = {"stdout": subprocess.DEVNULL if rank else None, "stderr": errors}
                    if rank == 0 and screen:
                        streams["stderr"] = screen.slave
                    running.append(subprocess.Popen(command, env=environment, **streams))
            failed = _first_failure(running, logs)
            interrupted = False
        except KeyboardInterrupt:
            failed, interrupted = None, True
            _wait(running, PATIENCE)
        finally:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            _end(running)
            shown = screen.close() if screen else 0
            signal.signal(signal.SIGTERM, before)

        codes = [process.returncode for process in running]
        if interrupted and (any(codes) or len(codes) < processes):
            print(next(filter(None, map(_said, logs)), "cv-hf: interrupted."), file=sys.stderr)
            return 130
        if failed is None:
            sys.stderr.write(logs[0].read_bytes()[shown:].decode(errors="replace"))
            return 0
        return _report(failed, codes[failed], logs[failed])


class Screen:
    """A terminal for the first process: its bars are shown, and all it writes is kept; an error only kept."""

    def __init__(self, log: Path) -> None:
        self.master, self.slave = pty.openpty()
        size = fcntl.ioctl(sys.stderr, termios.TIOCGWINSZ, bytes(8))
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, size)
        self.log = log.open("ab", buffering=0)
        self.shown, self.held = 0, False
        self.thread = threading.Thread(target=self._copy, daemon=True)
        self.thread.start()

    def close(self) -> int:
        """Stop, and return how many bytes of the log were shown."""
        os.close(self.slave)
        self.thread.join(timeout=1)
        if not self.thread.is_alive():
            os.close(self.master)
            self.log.close()
        return self.shown

    def _copy(self) -> None:
        while True:
            try:
                written = os.read(self.master, 65536)
            except OSError:  # Linux says so when nobody can write any more
                return
            if not written:
                return
            self.log.write(written)
            if not self.held:
                error = re.search(rb"cv-hf: |Traceback \(most recent call last\)", written)
                self.held = error is not None
                shown = written[: error.start()] if error else written
                self.shown += len(shown)
                sys.stderr.buffer.write(shown)
                sys.stderr.buffer.flush()


def _environments(processes: int) -> list[dict[str, str]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {
        # One thread each, as torchrun does, unless the user has said otherwise: the processes share the cores.
        "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // processes)),
        "TORCH_CPP_LOG_LEVEL": "ERROR",
        "PYTHONWARNINGS": "ignore:Grad strides do not match:UserWarning",  # of speed alone, and not the user's to mend
        **os.environ,
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    return [{**common, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]


def _first_failure(running: Sequence[subprocess.Popen], logs: Sequence[Path]) -> int | None:
    """The rank whose error counts, once it has ended; None when all have ended well."""
    first = None
    while True:
        codes = [process.poll() for process in running]
        # One that has spoken takes the others with it; end them first, so that none tells of the lost connection.
        speaker = next((rank for rank, log in enumerate(logs) if codes[rank] != 0 and _said(log)), None)
        if speaker is not None:
            _end([process for rank, process in enumerate(running) if rank != speaker])
            _wait([running[speaker]], PATIENCE)
            return speaker
        failed = next((rank for rank, code in enumerate(codes) if code), None)
        if first is None and failed is not None:
            first, deadline = failed, time.monotonic() + 1
        # The first to end may be a victim of one that is still about to speak.
        if first is not None and time.monotonic() > deadline:
            return first
        if not any(code is None or code for code in codes):
            return None
        time.sleep(0.05)


def _report(rank: int, code: int, log: Path) -> int:
    """Show what the process said, and return the exit code that stands for it."""
    text = _said(log) or "\n".join(_read(log).splitlines()[-TAIL:])
    if text:
        print(text, file=sys.stderr)
        # One that spoke and did not get to its own end is ended here.
        code = 2 if code < 0 and _said(log) else code
    elif code < 0:
        print(f"cv-hf: process {rank} was ended by {signal.Signals(-code).name}.", file=sys.stderr)
    return code if code >= 0 else 128 - code


def _said(log: Path) -> str:
    """The error of ours in a log, one or two lines, or ""."""
    lines = _read(log).splitlines()
    start = next((number for number, line in enumerate(lines) if line.startswith("cv-hf: ")), len(lines))
    return "\n".join(lines[start : start + 2])


def _read(log: Path) -> str:
    return log.read_text(errors="replace") if log.exists() else ""


def _end(running: Sequence[subprocess.Popen]) -> None:
    stops: tuple[Callable[[subprocess.Popen], None], ...] = (subprocess.Popen.terminate, subprocess.Popen.kill)
    for stop in stops:
        for process in running:
            stop(process)
        if _wait(running, GRACE):
            return


def _wait(running: Sequence[subprocess.Popen], seconds: float) -> bool:
    """Whether all have ended within the time."""
    deadline = time.monotonic() + seconds
    while any(process.poll() is None for process in running):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True
