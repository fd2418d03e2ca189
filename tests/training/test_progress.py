"""What the progress bar says, against a clock that is set by hand."""

from __future__ import annotations

import io
import os
from types import SimpleNamespace

import pytest

from cv_hf.training import progress
from cv_hf.training.progress import Progress, starvation


class Clock:
    def __init__(self):
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    monkeypatch.setattr(progress, "available_cores", lambda: 2)
    monkeypatch.setattr(progress, "memory_taken", lambda: 1.5e9)
    return clock


def run(clock: Clock, steps: int, fetch: float, compute: float, *, workers: int = 0, log_every: int = 10) -> Progress:
    """Steps as Trainer calls them, with an evaluation of 1,000 s after each log."""
    shown = Progress(["accuracy"], samples_per_step=16, disable=False)
    args = SimpleNamespace(dataloader_num_workers=workers, world_size=1)
    state = SimpleNamespace(is_world_process_zero=True, max_steps=100, global_step=0, epoch=0.0)
    shown.on_train_begin(args, state, None)
    clock.now += 50  # what comes before the first epoch is no waiting
    shown.on_epoch_begin()
    for step in range(1, steps + 1):
        clock.now += fetch if step > 1 else 7.0
        shown.on_step_begin()
        clock.now += compute if step > 1 else 30.0
        state.global_step, state.epoch = step, step / 100
        shown.on_step_end(args, state, None)
        if step % log_every == 0:
            shown.on_log(args, state, None, {"loss": 0.25})
            clock.now += 1000
            shown.on_log(args, state, None, {"eval_accuracy": 0.5})
            clock.now += 500
            shown.on_save()
    shown.on_train_end(args, state, None)
    return shown


def test_a_line_says_speed_time_left_waiting_and_memory(clock: Clock, capsys: pytest.CaptureFixture):
    run(clock, 20, fetch=0.02, compute=0.18)
    lines = capsys.readouterr().out.splitlines()
    # 16 images in 0.2 s; 90 and 80 steps to go; the first step, evaluations and checkpoints do not count.
    assert lines == [
        "step 10/100: loss 0.2500, 80 images/s, 18 s left, waiting 10%, 1.5 GB",
        "epoch 0.1: accuracy 0.5000",
        "step 20/100: loss 0.2500, 80 images/s, 16 s left, waiting 10%, 1.5 GB",
        "epoch 0.2: accuracy 0.5000",
    ]


def test_the_first_step_alone_has_no_speed(clock: Clock, capsys: pytest.CaptureFixture):
    run(clock, 1, fetch=1, compute=1, log_every=1)
    assert capsys.readouterr().out.splitlines()[0] == "step 1/100: loss 0.2500, 1.5 GB"


def test_a_starved_model_is_told_of_once(clock: Clock, capsys: pytest.CaptureFixture):
    run(clock, 60, fetch=0.4, compute=0.4, log_every=15)
    text = capsys.readouterr().out
    assert text.count("waits for its images") == 1
    assert "waits for its images 50% of the time, with 0 loader worker(s) on 2 core(s)" in text
    assert "Try train.dataloader_num_workers=1;" in text


@pytest.mark.parametrize("log_every", [1, 4, 1000])
def test_it_is_told_however_often_there_is_a_line(clock: Clock, capsys: pytest.CaptureFixture, log_every: int):
    run(clock, 60, fetch=0.1, compute=0.1, log_every=log_every)
    assert capsys.readouterr().out.count("waits for its images 50% of the time") == 1


def test_a_terminal_of_80_columns_shows_every_number(clock: Clock, monkeypatch: pytest.MonkeyPatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

        def fileno(self) -> int:
            return 2

    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setattr("os.get_terminal_size", lambda *_: os.terminal_size((80, 24)))
    run(clock, 20, fetch=0.02, compute=0.18)
    frames = [frame for frame in terminal.getvalue().split("\r") if "loss" in frame]
    assert frames
    for frame in frames:
        assert frame.startswith("training ")
        assert " left, loss 0.2500, 80 images/s, waiting 10%, 1.5 GB" in frame
        assert len(frame.rstrip("\n")) <= 80


@pytest.mark.parametrize(("fetch", "compute"), [(0.1, 0.9), (0.001, 0.001)])
def test_no_warning_of_little_waiting_or_of_a_short_run(
    clock: Clock, capsys: pytest.CaptureFixture, fetch: float, compute: float
):
    run(clock, 60, fetch=fetch, compute=compute)
    assert "waits" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("waited", "computed", "workers", "processes", "cores", "change"),
    [
        (3.0, 1.0, 0, 1, 8, "Try train.dataloader_num_workers=3;"),
        (3.0, 1.0, 0, 4, 8, "Try train.dataloader_num_workers=2;"),  # each process has two cores
        (1.0, 1.0, 2, 1, 8, "Try train.dataloader_num_workers=4;"),  # twice as fast takes twice the workers
        (1.0, 1.0, 8, 1, 8, "All cores read already"),
    ],
)
def test_the_change_fits_the_cores(
    waited: float, computed: float, workers: int, processes: int, cores: int, change: str
):
    assert change in starvation(waited, computed, workers, processes, cores)


@pytest.mark.parametrize(
    ("seconds", "text"), [(5.4, "5 s"), (65, "1 min 05 s"), (3599.7, "1 h 00 min"), (7260, "2 h 01 min")]
)
def test_durations(seconds: float, text: str):
    assert progress._duration(seconds) == text
