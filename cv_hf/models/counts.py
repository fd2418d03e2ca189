"""How many objects a loss is divided by, where several processes share a batch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

_share: float | None = None


@contextmanager
def sharing(share: float) -> Iterator[None]:
    """Count objects over all processes within; each must then call `mean_count` as often as the others.

    Args:
        share: the images of this process's part of a batch against those of an equal part; 0 where it has none of its
            own, and only takes part.
    """
    global _share
    before, _share = _share, share
    try:
        yield
    finally:
        _share = before


def mean_count(count: int, device: torch.device) -> float:
    """What the sum of a loss over this process's objects is divided by, above 0.

    Within `sharing` it is the mean of the processes' counts, as in DETR (Carion et al., 2020), times the share: the
    training loop weighs a process's loss by its share, as losses that are means over images need it, which must not
    weigh the objects once more. All objects together count as 1 at least; DETR takes 1 for each process, and so less of
    the same loss on many processes with few objects. Outside, as in evaluation, where processes do not go in step, it
    is the count.
    """
    counted = torch.tensor(count if _share != 0 else 0, dtype=torch.float32, device=device)
    processes = 1
    if _share is not None and torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(counted)
        processes = torch.distributed.get_world_size()
    return max(counted.item(), 1.0) / processes * (_share or 1.0)
