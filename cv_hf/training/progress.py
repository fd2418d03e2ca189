"""What a user sees of a run: how fast it is, how long it will take, and whether the model waits for its images."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from typing import Any

from transformers import TrainerCallback

from cv_hf.training.arguments import available_cores
from cv_hf.training.memory import memory_taken

# The model is starved when it waits for more than this share of the time, over so many seconds and steps.
STARVED = 0.2
_LEAST_SECONDS = 5.0
_LEAST_STEPS = 10
LATER = "Images that were kept in memory are not decoded again in later epochs."
# The numbers first: a terminal of 80 columns has room for little more.
_BAR = "training {n_fmt}/{total_fmt}, {remaining} left{postfix} {percentage:3.0f}%|{bar}|"


class Progress(TrainerCallback):
    """A bar on a terminal, a line per log elsewhere; evaluations are always a line of their own.

    Speed, time left and the share of time that the model waited for its images are those of the steps since the last
    log, evaluations and checkpoints apart. Once in a run it says what to change when the model waits too much. On an
    accelerator, which still computes while the next batch is fetched, the share is an upper bound.

    Args:
        metrics: what is printed of an evaluation; the rest is in log.jsonl.
        samples_per_step: the global batch size.
        disable: print nothing.
        cached: images are kept in memory, as far as there is room for them.
    """

    def __init__(self, metrics: Iterable[str], samples_per_step: int, disable: bool, cached: bool = False):
        self.metrics = list(metrics)
        self.samples_per_step = samples_per_step
        self.disable = disable
        self.cached = cached
        self.bar: Any = None
        self.warned = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        from tqdm import tqdm

        if state.is_world_process_zero and not self.disable:
            self.bar = tqdm(
                total=state.max_steps, initial=state.global_step, bar_format=_BAR, disable=None, dynamic_ncols=True
            )
        self._forget()

    def on_epoch_begin(self, *args: Any, **kwargs: Any) -> None:
        # The first batch of an epoch starts the loader's workers; later ones find them running.
        self.since = time.monotonic()

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        now = time.monotonic()
        self.fetched, self.since = now - self.since, now

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        now = time.monotonic()
        if self.started:
            self.waited += self.fetched
            self.computed += now - self.since
            self.steps += 1
            self.watched = [a + b for a, b in zip(self.watched, (self.fetched, now - self.since, 1), strict=True)]
        # The first step of all allocates and compiles, and is no measure of the others.
        self.started, self.since = True, now
        if self.bar is not None:
            self.bar.update(state.global_step - self.bar.n)
            self._warn(args, state)

    def on_save(self, *args: Any, **kwargs: Any) -> None:
        self.since = time.monotonic()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict | None = None, **kwargs: Any) -> None:
        logs = logs or {}
        self.since = time.monotonic()
        if self.bar is None:
            return
        scores = [f"{name} {logs[f'eval_{name}']:.4f}" for name in self.metrics if f"eval_{name}" in logs]
        if "loss" in logs:
            text = ", ".join([f"loss {logs['loss']:.4f}", *self._speed(state)])
            self.bar.set_postfix_str(text)
            if self.bar.disable:
                print(f"step {state.global_step}/{state.max_steps}: {text}", flush=True)
            self.waited = self.computed = self.steps = 0
        elif scores:
            self.bar.clear()
            print(f"epoch {state.epoch:.3g}: {', '.join(scores)}", flush=True)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.bar is not None:
            self.bar.close()

    def _forget(self) -> None:
        self.waited = self.computed = self.fetched = 0.0
        self.steps, self.started = 0, False
        # As above, of the stretch that a warning is about: lines may come more often than it takes to tell.
        self.watched = [0.0, 0.0, 0]
        self.since = time.monotonic()

    def _speed(self, state: Any) -> list[str]:
        memory = f"{memory_taken() / 1e9:.1f} GB"
        if not self.steps:
            return [memory]
        each = (self.waited + self.computed) / self.steps
        words = [f"{self.samples_per_step / each:.3g} images/s", f"waiting {self.share:.0%}", memory]
        if self.bar.disable:  # a bar shows the time left by itself
            words.insert(1, f"{_duration(each * (state.max_steps - state.global_step))} left")
        return words

    @property
    def share(self) -> float:
        """The share of the time since the last log in which the model waited for its images."""
        return self.waited / max(self.waited + self.computed, 1e-9)

    def _warn(self, args: Any, state: Any) -> None:
        waited, computed, steps = self.watched
        if self.warned or steps < _LEAST_STEPS or waited + computed < _LEAST_SECONDS:
            return
        self.watched = [0.0, 0.0, 0]
        if waited > STARVED * (waited + computed):
            self.warned = True
            self.bar.clear()
            words = starvation(waited, computed, args.dataloader_num_workers, args.world_size)
            later = f" {LATER}" if self.cached and (state.epoch or 0) < 1 else ""
            print(f"{words}{later} `cv-hf bench RECIPE` says what takes how long.", flush=True)


def starvation(waited: float, computed: float, workers: int, processes: int = 1, cores: int | None = None) -> str:
    """Say that the model waits for its images, and what to change, in two lines.

    Args:
        waited, computed: seconds in which the model waited and computed.
        workers: loader workers of each process; with none, reading and computing take turns.
        processes: on this machine.
        cores: of this machine; None: found.
    """
    share = waited / (waited + computed)
    cores = available_cores() if cores is None else cores
    # Workers share out what one of them reads in the time that a step and the wait for it take.
    wanted = math.ceil(waited / max(computed, 1e-9)) if not workers else math.ceil(workers / (1 - share))
    most = max(1, cores // processes)
    if workers < min(wanted, most):
        change = f"Try train.dataloader_num_workers={min(wanted, most)}"
    else:
        change = "All cores read already: store the images smaller, about as large as the model takes them"
    return (
        f"the model waits for its images {share:.0%} of the time, with {workers} loader worker(s) on {cores} core(s).\n"
        f"{change}; or leave out costly augmentations."
    )


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s"
