"""What every reader gives back."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import datasets

from cv_hf.data.labels import LabelMap


@dataclass(frozen=True)
class Source:
    """A dataset as read: raw columns, images undecoded.

    Attributes:
        id: as the recipe names it.
        format: one of `config.FORMATS`.
        splits: split name of the source -> rows.
        commit: the 40 hexadecimal digits of the commit, for a dataset of the Hub.
        root: the folder that file names are given from, for a local dataset.
        labels: the classes, where the format has a place of its own for them, apart from the columns.
    """

    id: str
    format: str
    splits: dict[str, datasets.Dataset] = field(repr=False)
    commit: str | None = None
    root: Path | None = None
    labels: LabelMap | None = None
