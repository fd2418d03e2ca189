"""Before a long run: one step on a real batch, and what memory and disk the run will take."""

from __future__ import annotations

import dataclasses
import gc
import math
import re
import shutil
import time
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import psutil
import torch
from transformers import TrainingArguments

from cv_hf.errors import ResourceError, causes
from cv_hf.training.checkpoints import size_of
from cv_hf.training.memory import memory_free
from cv_hf.training.trainer import Trainer, checked, megabytes, unchanged_random_state

# A forward on a CPU leaves this part of the memory that was free, for the backward; it looks so often while it takes
# as much.
_SPARE, _LOOKS = 32, 4


@dataclass(frozen=True)
class Preflight:
    """What was tried and measured; sizes in bytes, of one process.

    Attributes:
        images: of the batch, as many as a device takes at once, or fewer where there are no more.
        batch: images of one optimizer step.
        samples: of the training set.
        size: (height, width) of the model's input, the largest that this batch can have; None where it is no image.
        loss: of the batch.
        seconds: of reading the batch, and of one forward and backward.
        memory: what takes it: weights, average, gradients, optimizer, activations.
        more: of `memory`, what training takes in addition to what is taken now.
        memory_free: of the device.
        checkpoint: one.
        disk: what the run will write.
        disk_free: where it will.
    """

    images: int
    batch: int
    samples: int
    size: tuple[int, int] | None
    loss: float
    seconds: tuple[float, float]
    memory: dict[str, int]
    more: int
    memory_free: int
    checkpoint: int
    disk: int
    disk_free: int

    def lines(self) -> list[str]:
        """What a user should know, in three lines."""
        parts = ", ".join(f"{name} {megabytes(size)}" for name, size in self.memory.items() if size)
        size = f" of {self.size[0]}x{self.size[1]}" if self.size else ""
        tight = "" if self.more < self.memory_free else "; that may be too little"
        few = f"; the batch of {self.batch} is larger than the training set" if self.batch > self.samples else ""
        return [
            f"preflight: {self.images} images{size} read in {self.seconds[0]:.1f} s, "
            f"forward and backward in {self.seconds[1]:.1f} s, loss {self.loss:.4g}{few}",
            f"memory: about {megabytes(sum(self.memory.values()))} ({parts}); "
            f"{megabytes(self.memory_free)} free{tight}",
            f"disk: {megabytes(self.disk)} for checkpoints of {megabytes(self.checkpoint)} and model/; "
            f"{megabytes(self.disk_free)} free",
        ]


def preflight(trainer: Trainer, folder: Path) -> Preflight:
    """Try one step and leave no trace: weights, running statistics, gradients and random numbers are as before.

    Args:
        trainer: before it trains. Each process checks its own part.
        folder: the run directory, which need not be there yet.

    Raises:
        ResourceError: memory does not suffice, or the disk for what the run will write.
        CvHfError: the batch cannot be read, or its loss is not finite.
    """
    checkpoint = trainer.checkpoint_size()
    disk, disk_free = _disk(trainer, folder, checkpoint)
    if disk > disk_free:
        raise ResourceError(
            f"{folder}: the run will write {megabytes(disk)}, and {megabytes(disk_free)} are free: "
            f"{megabytes(disk - disk_free)} are missing.\n"
            f"Make room, keep fewer checkpoints of {megabytes(checkpoint)} each (train.save_total_limit), or choose "
            "another --run-dir."
        )
    whole = images = trainer.args.per_device_train_batch_size
    memory_free = _memory_free(trainer.args.device)
    gradients = sum(p.nbytes for p in trainer.model.parameters() if p.requires_grad)
    optimizer = trainer.optimizer_size()
    # An accelerator says that it has no more; of this memory, the kernel ends whoever takes too much.
    spare = gradients + optimizer + memory_free // _SPARE if trainer.args.device.type == "cpu" else None
    while True:
        try:
            tried = _step(trainer, images, spare)
            break
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
        if images == 1:
            raise memory_error(trainer.args, 0)
        images //= 2
        _let_go(trainer)
    if images < whole:
        raise memory_error(trainer.args, images)
    weights = sum({t.data_ptr(): t.nbytes for t in trainer.model.state_dict().values()}.values())
    activations = tried.pop("activations")
    memory = {
        "weights": weights,
        "average": weights if trainer.ema is not None else 0,
        "gradients": gradients,
        "optimizer": optimizer,
        "activations": activations,
    }
    arguments = trainer.args
    return Preflight(
        **tried,
        batch=whole * arguments.gradient_accumulation_steps * arguments.world_size,
        samples=len(trainer.train_dataset),
        memory=memory,
        more=gradients + optimizer + activations,
        memory_free=memory_free,
        checkpoint=checkpoint,
        disk=disk,
        disk_free=disk_free,
    )


def out_of_memory(error: BaseException) -> bool:
    """Whether this is the want of memory, on any device or in a loader worker."""
    # oneDNN says the last; of what it does not have, it is the descriptor of a primitive that it could not create.
    known = (
        r"not enough memory|can't allocate memory|out of memory|Cannot allocate memory|is killed by signal: Killed|"
        r"could not create a primitive$"
    )
    return any(
        isinstance(cause, MemoryError | torch.OutOfMemoryError)
        or (isinstance(cause, RuntimeError | OSError) and re.search(known, str(cause), re.IGNORECASE))
        for cause in causes(error)
    )


def memory_error(arguments: TrainingArguments, fits: int | None = None) -> ResourceError:
    """What to try when memory does not suffice for a batch.

    Args:
        fits: as many images at once as were found to fit; None: not tried.
    """
    images, accumulated = arguments.per_device_train_batch_size, arguments.gradient_accumulation_steps
    most = images // 2 if fits is None else fits
    what = f"out of memory with {images} image(s) per device at once"
    if not most:
        return ResourceError(f"{what}.\nTry a lower model.image_size, or train.activation_checkpointing=true.")
    parts = next(parts for parts in range(2, images + 1) if images % parts == 0 and images // parts <= most)
    fewer = images // parts
    return ResourceError(
        f"{what}{'' if fits is None else f'; {fits} fit'}.\nTry {fewer}: "
        f"train.gradient_accumulation_steps={accumulated * parts} is the same training, "
        f"train.batch_size={fewer * accumulated * arguments.world_size} another; in scoring: eval.batch_size."
    )


def _step(trainer: Trainer, images: int, spare: int | None) -> dict[str, Any]:
    """One forward and backward on the first batch of the run; no trace of it is left.

    Raises:
        MemoryError: the forward leaves fewer than `spare` bytes free.
    """
    model, arguments = trainer.model, trainer.args
    first = arguments.process_index * arguments.per_device_train_batch_size
    start = time.monotonic()
    with unchanged_random_state():
        keys = list(islice(trainer._get_train_sampler(), first, first + images))
        batch = trainer.data_collator([trainer.train_dataset[key] for key in keys])
    trainer.record(batch.get("findings", ()))  # which counts a sample once, however often it is found
    batch = checked(batch)
    read = time.monotonic()
    batch.pop("spare", None)
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    scales, training = trainer.scales, model.training
    if scales is not None:
        trainer.scales = dataclasses.replace(scales, least=scales.greatest)
    saved: dict[int, int] = {}
    kept = looked = 0
    known = {tensor.untyped_storage().data_ptr() for tensor in [*model.parameters(), *model.buffers()]}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            nonlocal kept, looked
            kept += storage.nbytes() - saved.get(storage.data_ptr(), 0)
            saved[storage.data_ptr()] = storage.nbytes()
            if spare is not None and kept - looked > spare // _LOOKS:
                looked = kept
                if memory_free() + psutil.swap_memory().free < spare:
                    raise MemoryError
        # Of a result, the tensor itself would hold the graph that holds it, for ever where no backward follows.
        return tensor.detach()

    try:
        with unchanged_random_state():
            model.train()
            inputs = trainer._prepare_inputs({**batch, "share": None, "weight": 1.0})
            # ImageGPT is given colours in a sequence.
            size = tuple(inputs["pixel_values"].shape[-2:]) if "pixel_values" in inputs else None
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), trainer.accelerator.autocast():
                loss = trainer.compute_loss(model, inputs)
            loss.backward()
            value = loss.item()
            if not math.isfinite(value):
                raise trainer.not_finite()
    finally:
        trainer.scales = scales
        model.train(training)
        model.zero_grad(set_to_none=True)
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)
    return {
        "images": sum(key is not None for key in keys),
        "size": size,
        "loss": value,
        "seconds": (read - start, time.monotonic() - read),
        "activations": kept,
    }


def _let_go(trainer: Trainer) -> None:
    trainer.model.zero_grad(set_to_none=True)
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _memory_free(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return memory_free()


def _disk(trainer: Trainer, folder: Path, checkpoint: int) -> tuple[int, int]:
    """The bytes that the run will write in addition to what is there, and the bytes that are free."""
    arguments = trainer.args
    steps = arguments.max_steps
    per_epoch = -(-len(trainer.train_dataset) // (arguments.train_batch_size * arguments.gradient_accumulation_steps))
    per_epoch = max(1, -(-per_epoch // arguments.world_size))
    if steps <= 0:
        steps = int(per_epoch * arguments.num_train_epochs)
    every = per_epoch
    if arguments.save_strategy == "steps":
        every = arguments.save_steps if arguments.save_steps >= 1 else max(1, int(steps * arguments.save_steps))
    # An interrupted run saves once, whatever the strategy.
    kept = 1 if arguments.save_strategy == "no" else max(1, -(-steps // int(every)))
    if arguments.save_total_limit:
        kept = min(kept, max(arguments.save_total_limit, 2 if arguments.load_best_model_at_end else 1))
    there = folder / "checkpoints"
    held = size_of(there)
    model = sum({tensor.data_ptr(): tensor.nbytes for tensor in trainer.model.state_dict().values()}.values())
    existing = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.is_dir())
    # One more than is kept: the oldest goes when the newest is whole.
    return max(checkpoint, checkpoint * (kept + 1) - held) + model, shutil.disk_usage(existing).free
