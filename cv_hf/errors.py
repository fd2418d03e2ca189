"""The errors a user can meet, each with the exit code that `cv-hf` ends with.

    CvHfError               2   the user's input is wrong
    ├── RecipeError         2   the recipe: an unknown key, a value of the wrong type
    ├── DataError           2   the dataset: missing, unreadable, a column or a label that is not there
    ├── ModelError          2   the model: missing, of another task, weights that do not fit
    ├── ResourceError       2   memory or disk space does not suffice
    ├── CheckFailed         1   a check ran and found something (verify, check)
    ├── HubError            3   the Hub failed; nothing is lost
    └── Interrupted       130   Ctrl-C or SIGTERM; what was saved can be resumed

A message is one or two lines: what is wrong, where, and how to mend it.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any, TextIO, cast

# Access tokens of the Hub, and who logs in within an address.
_SECRET = re.compile(r"\b(?:hf|api_org)_[A-Za-z0-9]{16,}|(?<=://)[^/\s@]+(?=@)")


class CvHfError(Exception):
    """Base of all errors raised for a user to read; `str(error)` is the whole message, made printable."""

    exit_code = 2

    def __str__(self) -> str:
        return printable_lines(super().__str__())


class RecipeError(CvHfError):
    """The recipe has an unknown key or a value that cannot be used."""


class DataError(CvHfError):
    """The dataset is missing, cannot be read, or lacks what the task needs."""


class ModelError(CvHfError):
    """The model is missing, does not fit the task, or its weights do not fit its configuration."""


class ResourceError(CvHfError):
    """Memory or disk space does not suffice; the message says how much, or what takes less."""


class CheckFailed(CvHfError):
    """A check ran to its end and found something."""

    exit_code = 1


class HubError(CvHfError):
    """The Hub refused or failed; what was trained is on disk."""

    exit_code = 3


class Interrupted(CvHfError):
    """The user or the system stopped the run; the message holds the command that goes on."""

    exit_code = 130


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return " Did you mean 'x'?" for the known word nearest to `word`, or "" when none is near."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f" Did you mean {near[0]!r:.80}?" if near else ""


def causes(error: BaseException) -> list[BaseException]:
    """The error and those it arose from, the last cause last."""
    chain: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in chain:
        chain.append(current)
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)
    return chain


def printable(value: object) -> str:
    """Text as it can go to a terminal or a log: one line, where names of files and labels cannot do any harm.

    What would move the cursor, colour the terminal, turn the line around or end it is written as its escape, as JSON
    does; a token of the Hub is left out.
    """
    text = redacted(str(value))
    return text if text.isprintable() else "".join(c if c.isprintable() else _escape(c) for c in text)


def printable_lines(value: object) -> str:
    """As `printable`, of a message whose own line ends stay."""
    return "\n".join(map(printable, str(value).split("\n")))


def _escape(letter: str) -> str:
    # DEL is ASCII, which JSON leaves as it is.
    return "\\u007f" if letter == "\x7f" else json.dumps(letter)[1:-1]


def redacted(text: str) -> str:
    """Text without access tokens: those of the Hub's form, that of HF_TOKEN, and passwords in addresses."""
    token = os.environ.get("HF_TOKEN", "")
    if len(token) > 4:
        text = text.replace(token, "***")
    return _SECRET.sub("***", text) if "_" in text or "@" in text else text


@contextmanager
def printable_output() -> Iterator[None]:
    """Print nothing to standard output but what `printable_lines` lets through, whoever prints."""
    with redirect_stdout(cast("TextIO", _Printable(sys.stdout))):
        yield


class OutputClosed(BrokenPipeError):
    """Whoever read standard output has ended, as `head` does; a broken pipe to anything else is not this."""


class _Printable:
    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        shown = printable_lines(text)
        encoding = getattr(self._stream, "encoding", None) or "utf-8"
        try:
            return self._stream.write(shown.encode(encoding, "backslashreplace").decode(encoding))
        except BrokenPipeError as error:
            raise OutputClosed(*error.args) from None

    def flush(self) -> None:
        try:
            self._stream.flush()
        except BrokenPipeError as error:
            raise OutputClosed(*error.args) from None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
