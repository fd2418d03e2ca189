"""What losses over objects are divided by, where processes share a batch."""

from __future__ import annotations

import pytest
import torch

from cv_hf.models.counts import mean_count, sharing

CPU = torch.device("cpu")


@pytest.fixture
def others(monkeypatch) -> list[int]:
    """Two other processes, with 7 objects together; holds what this one has told them."""
    told: list[int] = []

    def all_reduce(counted: torch.Tensor) -> None:
        told.append(int(counted))
        counted += 7

    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 3)
    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    return told


@pytest.mark.parametrize(
    ("count", "share", "expected"), [(5, 1.0, 12 / 3), (5, 1.5, 12 / 3 * 1.5), (5, 0.0, 7 / 3), (0, 1.0, 7 / 3)]
)
def test_the_mean_over_the_processes_times_the_share(others, count, share, expected):
    """Of a spare sample nothing counts."""
    with sharing(share):
        assert mean_count(count, CPU) == pytest.approx(expected)
    assert others == [count if share else 0]


def test_processes_wait_for_each_other_once_a_batch(others):
    """One that judges three layers, another that has dropped two of them by chance."""
    with sharing(1.0):
        assert [mean_count(5, CPU) for _ in range(3)] == pytest.approx([4, 4, 4])
    with sharing(1.0):
        mean_count(5, CPU)
    assert others == [5, 5]


def test_alone_it_is_the_count(others):
    """In evaluation, and where a process tries something for itself."""
    assert mean_count(5, CPU) == 5
    with sharing(1.0):
        mean_count(5, CPU)
        with sharing(None):
            assert mean_count(5, CPU) == 5
            assert mean_count(0, CPU) == 1
    assert others == [5]
