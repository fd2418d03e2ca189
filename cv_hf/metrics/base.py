"""What every metric is: an accumulator that can be merged."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import Any, Protocol

import numpy as np

from cv_hf.errors import DataError


class Accumulator(Protocol):
    """Counts batches of predictions; picklable, so that processes can exchange theirs and merge them.

    A sample counts once, however often its id is seen, in one process or in several: the first record is kept.
    """

    def update(self, predictions: Any, references: Any, sample_ids: Iterable[Hashable]) -> None:
        """Count one batch; the three have one entry per sample."""

    def merge(self, other: Any) -> None:
        """Count what an accumulator of the same kind and settings has counted, usually that of another process."""

    def compute(self) -> dict[str, Any]:
        """Return the metric as plain, JSON-ready Python values; the state stays.

        Raises:
            DataError: no sample was counted.
        """

    def __len__(self) -> int:
        """The number of different samples counted."""


# Of so many samples, the last ones, a Tally remembers what they added.
RECENT = 64


class SampleRecords:
    """One fixed-size record per sample id; a second record for an id is dropped.

    Args:
        dtype: a structured NumPy dtype, the shape of one record.
    """

    def __init__(self, dtype: np.dtype) -> None:
        self._ids: dict[Hashable, None] = {}
        self._buffer = np.empty(0, dtype)

    def add(self, sample_ids: Iterable[Hashable], records: np.ndarray) -> None:
        """Keep the records (batch,) of those ids (batch,) that are new."""
        ids = plain_ids(sample_ids)
        if len(ids) != len(records):
            raise DataError(f"{len(ids)} sample ids for {len(records)} samples.")
        start = len(self._ids)
        new = []
        for position, sample_id in enumerate(ids):
            if sample_id not in self._ids:
                self._ids[sample_id] = None
                new.append(position)
        end = len(self._ids)
        if end > len(self._buffer):
            grown = np.empty(max(end, 2 * len(self._buffer)), self._buffer.dtype)
            grown[:start] = self._buffer[:start]
            self._buffer = grown
        self._buffer[start:end] = records[new]

    def merge(self, other: SampleRecords) -> None:
        """Keep the other's records of ids that are new here."""
        self.add(other._ids, other.array)

    @property
    def array(self) -> np.ndarray:
        """The records in the order in which they came, (samples,)."""
        return self._buffer[: len(self._ids)]

    def __len__(self) -> int:
        return len(self._ids)

    def __getstate__(self) -> dict[str, Any]:
        return {"_ids": self._ids, "_buffer": self.array}


class Tally:
    """Counts summed over samples, each sample once.

    Kept: the sums, the ids, and what each of the last samples added, so that a sample that two processes have counted
    can be taken away when they merge: distributed samplers repeat some samples at the end of a shard, to make all
    shards equally long. Records of all samples would not be compact: a badly trained model of 150 classes gives a
    confusion matrix with 1,500 entries for each image.

    Args:
        cells: the number of sums.
        dtype: their NumPy dtype.
    """

    def __init__(self, cells: int, dtype: type) -> None:
        self.total = np.zeros(cells, dtype)
        self._ids: dict[Hashable, None] = {}
        self._recent: dict[Hashable, tuple[np.ndarray, np.ndarray]] = {}

    def add(self, sample_id: Hashable, counts: np.ndarray) -> None:
        """Add the counts (cells,) of a sample, unless its id is known."""
        if sample_id in self:
            return
        self._ids[sample_id] = None
        self.total += counts
        cells = np.flatnonzero(counts)
        self._recent[sample_id] = cells.astype(np.int32), counts[cells]
        while len(self._recent) > RECENT:
            del self._recent[next(iter(self._recent))]

    def merge(self, other: Tally) -> None:
        """Add what the other has counted, but for samples that both have counted.

        Raises:
            DataError: the two share a sample that is among the last ones of neither.
        """
        added = other.total.copy()
        for sample_id in self._ids.keys() & other._ids.keys():
            record = other._recent.get(sample_id, self._recent.get(sample_id))
            if record is None:
                raise DataError(
                    f"two processes have both counted sample {sample_id!r}, other than at the end of one of them; give "
                    "each process samples of its own."
                )
            cells, counts = record
            added[cells] -= counts
        self.total += added
        self._ids |= other._ids
        self._recent = {**other._recent, **self._recent}

    def __contains__(self, sample_id: Hashable) -> bool:
        return sample_id in self._ids

    def __len__(self) -> int:
        return len(self._ids)


def plain_ids(sample_ids: Iterable[Hashable]) -> list[Hashable]:
    """Sample ids as plain Python values: a tensor's elements would be hashed by identity, never equal."""
    return [value.item() if hasattr(value, "item") else value for value in sample_ids]


def to_numpy(values: Any) -> np.ndarray:
    """A tensor of any device and precision, a list of them, an array or nested lists as an array."""
    if isinstance(values, (list, tuple)):
        values = [to_numpy(value) if hasattr(value, "detach") else value for value in values]
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        # NumPy has no bfloat16.
        values = values.float() if values.is_floating_point() and values.element_size() < 4 else values
    return np.asarray(values)


def checked_names(label_names: Sequence[str]) -> tuple[str, ...]:
    """The names as a tuple; DataError when there is none, or one stands twice."""
    names = tuple(label_names)
    if not names or len(set(names)) != len(names):
        raise DataError("label_names must hold at least one name, and all different ones.")
    return names


def check_mergeable(one: Any, other: Any, *settings: str) -> None:
    """DataError unless two accumulators are of one kind and agree in these attributes."""
    if type(one) is not type(other):
        raise DataError(f"{type(one).__name__} cannot be merged with {type(other).__name__}.")
    for name in settings:
        if getattr(one, name) != getattr(other, name):
            raise DataError(f"metrics with different {name} cannot be merged.")
