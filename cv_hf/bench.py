"""`cv-hf bench RECIPE`: how fast a recipe reads, steps, trains and scores on this machine, and what holds it back."""

from __future__ import annotations

import io
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import replace
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from cv_hf.config import Recipe, load_recipe
from cv_hf.data import UnreadableImage, decode_array
from cv_hf.finetuning import open_recipe, prepare
from cv_hf.training import EvalSamples, evaluate, memory_error, out_of_memory
from cv_hf.training.memory import memory_taken
from cv_hf.training.progress import LATER, STARVED, starvation
from cv_hf.training.samples import collate_eval
from cv_hf.training.trainer import Trainer, checked

# Nothing is saved, scored or pushed while training is timed.
_PLAIN = {
    "hub": None,
    "train.eval_strategy": "'no'",
    "train.save_strategy": "'no'",
    "train.early_stopping": None,
    "train.disable_tqdm": True,
    "train.report_to": "none",
    # As in the first epoch, whatever of it a measurement would see.
    "train.cache_images": False,
}
_LEAST_STEPS = 5


def bench(
    recipe: Recipe | Mapping[str, Any] | str | Path, overrides: Sequence[str] = (), *, seconds: float = 10.0
) -> dict[str, Any]:
    """Measure a recipe on real batches; nothing of it is kept.

    Args:
        recipe, overrides: as for `finetune`.
        seconds: for each part, more or less.

    Returns:
        {"reading": {images_per_second, of one core; decoding_ms, the rest_ms of an image}, "step": {images_per_second},
        of batches in memory; "training": {images_per_second, waiting, the share of the time; workers}, "evaluation":
        {images_per_second, reading, forward, metrics, shares of the time}, "memory": bytes, "verdict": text}

    Raises:
        CvHfError: as `finetune` does.
    """
    asked = load_recipe(recipe, overrides)
    changed = [f"{key}={'null' if value is None else str(value).lower()}" for key, value in _PLAIN.items()]
    with tempfile.TemporaryDirectory() as aside, redirect_stdout(io.StringIO()):
        plain, task = open_recipe(asked, [*changed, f"run_dir={aside}", "train.max_steps=1000000"])
        splits, _, trainer = prepare(plain, task, Path(aside), None)
        try:
            reading, batches = _reading(trainer, seconds)
            training = _training(trainer, seconds)
            step = _step(trainer, batches, seconds)
            scored = _evaluation(trainer, task, splits, plain.eval.batch_size, seconds)
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            raise memory_error(trainer.args) from None
    found = {"reading": reading, "step": step, "training": training, "evaluation": scored, "memory": memory_taken()}
    return {**found, "verdict": _verdict(found, trainer, cached=asked.train.cache_images)}


def lines(found: Mapping[str, Any]) -> list[str]:
    """What `bench` found, to read."""
    reading, training, scored = found["reading"], found["training"], found["evaluation"]
    return [
        f"reading     {reading['images_per_second']:8.1f} images/s on one core: decoding "
        f"{reading['decoding_ms']:.2f} ms an image, augmentation and targets {reading['rest_ms']:.2f} ms",
        f"step        {found['step']['images_per_second']:8.1f} images/s on batches in memory",
        f"training    {training['images_per_second']:8.1f} images/s with {training['workers']} loader worker(s), "
        f"waiting {training['waiting']:.0%}",
        f"evaluation  {scored['images_per_second']:8.1f} images/s: reading {scored['reading']:.0%}, "
        f"model {scored['forward']:.0%}, metrics {scored['metrics']:.0%}",
        f"memory      {found['memory'] / 1e9:8.1f} GB",
        found["verdict"],
    ]


def _reading(trainer: Trainer, seconds: float) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """The input pipeline in this process on one thread, and the batches that it made first."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    samples, size = trainer.train_dataset, trainer.args.per_device_train_batch_size
    keys = cycle(trainer._get_train_sampler())
    batches: list[dict[str, Any]] = []

    def read() -> int:
        batch = checked(trainer.data_collator([samples[key] for key in islice(keys, size)]))
        if len(batches) < _LEAST_STEPS:
            batches.append(batch)
        return size

    rows = cycle(range(len(samples)))

    def decoded() -> int:
        for index in islice(rows, size):
            try:
                decode_array(samples.dataset[index]["image"], reduction=samples.augment.reduction)
            except UnreadableImage:
                continue
        return size

    whole, alone = _rate(read, seconds), _rate(decoded, seconds / 2)
    torch.set_num_threads(threads)
    rest = max(0.0, 1000 / whole - 1000 / alone)
    return {"images_per_second": whole, "decoding_ms": 1000 / alone, "rest_ms": rest}, batches


class _Watch(TrainerCallback):
    """Ends training after so many seconds, and counts what it did after the first step."""

    def __init__(self, seconds: float):
        self.seconds = seconds
        self.steps, self.waited, self.computed = -1, 0.0, 0.0
        self.since = time.monotonic()

    def on_epoch_begin(self, *args: Any, **kwargs: Any) -> None:
        self.since = time.monotonic()

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        now = time.monotonic()
        self.waited += (now - self.since) * (self.steps >= 0)
        self.since = now

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        _synchronize()
        now = time.monotonic()
        self.computed += (now - self.since) * (self.steps >= 0)
        self.steps, self.since = self.steps + 1, now
        if self.steps >= _LEAST_STEPS and self.waited + self.computed > self.seconds:
            control.should_training_stop = True


def _training(trainer: Trainer, seconds: float) -> dict[str, float]:
    """The real loop, loader workers and all."""
    watch = _Watch(seconds)
    trainer.add_callback(watch)
    trainer.train()
    trainer.remove_callback(watch)
    taken = watch.waited + watch.computed
    size = trainer.args.per_device_train_batch_size * trainer.args.gradient_accumulation_steps
    return {
        "images_per_second": watch.steps * size / taken,
        "waiting": watch.waited / taken,
        "workers": trainer.args.dataloader_num_workers,
    }


def _step(trainer: Trainer, batches: Iterable[dict[str, Any]], seconds: float) -> dict[str, float]:
    """Forward, backward and optimizer as the loop does them, without waiting for images."""
    turns = cycle(list(batches))
    model = trainer.model_wrapped

    def step() -> int:
        batch = {name: value for name, value in next(turns).items() if name != "spare"}
        model.train()
        trainer.training_step(model, {**batch, "share": None, "weight": 1.0})
        if trainer.args.max_grad_norm:
            trainer.accelerator.clip_grad_norm_(model.parameters(), trainer.args.max_grad_norm)
        trainer.optimizer.step()
        model.zero_grad()
        _synchronize()
        return len(batch["files"])

    return {"images_per_second": _rate(step, seconds)}


def _evaluation(trainer: Trainer, task: Any, splits: Any, batch_size: int, seconds: float) -> dict[str, float]:
    """Scoring as it is done between epochs, of as many images as there is time for, and what of it takes how long."""
    whole = trainer.eval_dataset
    images = min(len(whole), batch_size)
    while True:
        part = EvalSamples(whole.dataset.select(range(images)), whole.processor, whole.fit, whole.labels)
        counting = 0.0

        def update(*args: Any, _update: Callable[..., None] = task.update) -> None:
            nonlocal counting
            start = time.monotonic()
            _update(*args)
            counting += time.monotonic() - start

        start = time.monotonic()
        with trainer.accelerator.autocast():
            evaluate(
                trainer.model,
                part,
                replace(task, update=update),
                splits.labels,
                batch_size=batch_size,
                workers=trainer.args.dataloader_num_workers,
                on_findings=lambda found: None,
            )
        taken = time.monotonic() - start
        if images == len(whole) or taken > seconds / 2:
            break
        images = min(len(whole), max(2 * images, int(images * seconds / 2 / taken)))
    start = time.monotonic()
    few = min(images, 2 * batch_size)
    for first in range(0, few, batch_size):
        collate_eval([part[index] for index in range(first, min(first + batch_size, few))])
    reading = (time.monotonic() - start) * images / few
    # Workers read while the model computes.
    reading = min(reading, taken - counting) if not trainer.args.dataloader_num_workers else 0.0
    return {
        "images_per_second": images / taken,
        "reading": reading / taken,
        "forward": max(0.0, 1 - (reading + counting) / taken),
        "metrics": counting / taken,
    }


def _verdict(found: Mapping[str, Any], trainer: Trainer, cached: bool = False) -> str:
    waiting, workers = found["training"]["waiting"], found["training"]["workers"]
    if waiting > STARVED:
        processes = trainer.args.world_size
        words = f"Training is held back by its images: {starvation(waiting, 1 - waiting, workers, processes)}"
        return f"{words} {LATER}" if cached else words
    line = f"Training is held back by the model's own arithmetic: it waits for images {waiting:.0%} of the time."
    precise = not (trainer.args.bf16 or trainer.args.fp16)
    more = ["a lower model.image_size", "model.freeze=backbone", "a smaller model"]
    more = ["train.bf16=true, where the hardware has it", *more] if precise else more
    share, what = max((found["evaluation"][name], name) for name in ("reading", "forward", "metrics"))
    names = {"reading": "reading", "forward": "the model", "metrics": "metrics"}
    return f"{line}\nWhat makes it faster: {', '.join(more)}. Scoring is mostly {names[what]} ({share:.0%})."


def _rate(work: Callable[[], int], seconds: float) -> float:
    """Images per second of what works on some images and returns how many, its first call apart."""
    work()
    images, start = 0, time.monotonic()
    while True:
        images += work()
        taken = time.monotonic() - start
        if taken > seconds:
            return images / taken


def _synchronize() -> None:
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
