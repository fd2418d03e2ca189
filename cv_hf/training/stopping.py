"""Ctrl-C and SIGTERM, heard where training can be saved."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

# A terminal, a scheduler and `timeout` may each send the same signal; what comes later than this is meant.
_AGAIN = 1.0
# Seconds that a loader worker lives on after the signal, to read what the last step needs.
_OUTLIVED = 60
_HEARD = b"\nstopping: this step is finished and saved first (Ctrl-C once more: stop at once)\n"


class Stopped(KeyboardInterrupt):
    """Training ends here, and what there is of it has been saved."""


class Stop:
    """Whether somebody has asked to stop.

    Attributes:
        asked: since `heard` was entered.
    """

    def __init__(self) -> None:
        self.asked = False

    @contextmanager
    def heard(self) -> Iterator[None]:
        """Within, a signal that would raise KeyboardInterrupt sets `asked`; a second Ctrl-C raises it after all.

        Signals that do something else, as SIGTERM in a process of torchrun, keep doing so; and only the main thread can
        hear any.
        """
        self.asked, self._process = False, os.getpid()
        before = {}
        if threading.current_thread() is threading.main_thread():
            numbers = (signal.SIGINT, signal.SIGTERM)
            before = {n: signal.getsignal(n) for n in numbers if signal.getsignal(n) is signal.default_int_handler}
        try:
            for number in before:
                signal.signal(number, self._hear)
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _hear(self, number: int, frame: Any) -> None:
        if os.getpid() != self._process:
            return  # a loader worker that has just been forked, and is not `deaf` yet
        if not self.asked:
            self.asked, self._since = True, time.monotonic()
            with suppress(OSError):
                os.write(1, _HEARD)  # print() cannot be called in the middle of another
        elif number == signal.SIGINT and time.monotonic() - self._since > _AGAIN:
            raise KeyboardInterrupt


def deaf(worker: int) -> None:
    """Make a loader worker outlive the signal that its whole group has got: the training process still needs it.

    Of SIGTERM it is the first that is not obeyed; PyTorch, which ends a worker by closing its queue, has it in reserve.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _once_more)


def _once_more(*_: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    # Two signals in quick succession come as one, and the sender may wait for the end of this process.
    signal.alarm(_OUTLIVED)
