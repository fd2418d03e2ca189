"""How many objects a loss is divided by, where several processes share a batch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch


@dataclass
class _Sharing:
    share: float | None
    # What was counted over the processes, by what this one has of it.
    totals: dict[int, float] = field(default_factory=dict)


_sharing = _Sharing(None)


@contextmanager
def sharing(share: float | None) -> Iterator[None]:
    """Count the objects of one batch over all processes within, where each must call `mean_count` for its part.

    Args:
        share: the images of this process's part of a batch against those of an equal part; 0 where it has none of its
            own, and only takes part; None where it does not wait for the others.
    """
    global _sharing
    before, _sharing = _sharing, _Sharing(share)
    try:
        yield
    finally:
        _sharing = before


def mean_count(count: int, device: torch.device) -> float:
    """What the sum of a loss over this process's objects is divided by, above 0.

    Within `sharing` it is the mean of the processes' counts, as in DETR (Carion et al., 2020), times the share: the
    training loop weighs a process's loss by its share, as losses that are means over images need it, which must not
    weigh the objects once more. All objects together count as 1 at least; DETR takes 1 for each process, and so less of
    the same loss on many processes with few objects. Outside, as in evaluation, where processes do not go in step, it
    is the count.

    The processes wait for each other once a batch, however many layers each of them judges: where layers are dropped by
    chance, these differ.
    """
    share = _sharing.share
    if share is None or not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return max(0 if share == 0 else count, 1) * (share or 1.0)
    if count not in _sharing.totals:
        counted = torch.tensor(count if share else 0, dtype=torch.float32, device=device)
        torch.distributed.all_reduce(counted)
        _sharing.totals[count] = counted.item()
    return max(_sharing.totals[count], 1.0) / torch.distributed.get_world_size() * (share or 1.0)
