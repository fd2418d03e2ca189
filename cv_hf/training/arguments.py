"""From the recipe's `train:` section to TrainingArguments.

Defaults that every task shares stand in COMMON, a task's own in its `train_defaults`; both are written into the
resolved recipe. What depends on the machine (precision, workers) is chosen here at each start and printed.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from cv_hf.config import Recipe, TrainConfig
from cv_hf.errors import RecipeError, did_you_mean
from cv_hf.task import Task

COMMON: dict[str, Any] = {
    "seed": 42,
    "eval_strategy": "epoch",
    "save_strategy": "epoch",
    # The best and the newest: one to publish, one to go on from.
    "save_total_limit": 2,
    "logging_steps": 10,
    "disable_tqdm": False,
    # A loss that is not finite must be seen, not replaced by the mean of the others.
    "logging_nan_inf_filter": False,
    # Without it a resumed run forgets how long it has been waiting for an improvement.
    "restore_callback_states_from_checkpoint": True,
}

SETUP_ERRORS = (TypeError, ValueError, KeyError, ImportError, AttributeError, AssertionError, RuntimeError)

# TrainingArguments takes less and fails later, in the middle of something else.
LEAST = {
    "gradient_accumulation_steps": 1,
    "dataloader_num_workers": 0,
    "seed": 0,
    "data_seed": 0,
    "learning_rate": 0,
    "weight_decay": 0,
    "max_grad_norm": 0,
    "num_train_epochs": 0,
    "warmup_steps": 0,
    "label_smoothing_factor": 0,
}
BELOW = {"seed": 2**32, "label_smoothing_factor": 1}


def resolve(recipe: Recipe, task: Task) -> Recipe:
    """The recipe with the task's defaults written out, for everything that does not depend on the machine.

    Raises:
        RecipeError: a number that no training can work with, or a rate for what is frozen.
    """
    given = recipe.train.arguments
    for name, least in LEAST.items():
        if isinstance(given.get(name), int | float) and not given[name] >= least:
            raise RecipeError(f"train.{name} should be at least {least} (got {given[name]}).")
    for name, most in BELOW.items():
        if not given.get(name, 0) < most:
            raise RecipeError(f"train.{name} should be below {most} (got {given[name]}).")
    defaults = {**TrainConfig().model_dump(), **COMMON, **task.train_defaults}
    if recipe.model.freeze == "backbone":
        if recipe.train.given.get("backbone_lr") is not None:
            raise RecipeError("train.backbone_lr: the backbone is frozen (model.freeze); leave out one of the two.")
        defaults["backbone_lr"] = None
    train = TrainConfig(**{**defaults, **recipe.train.given})
    augment = list(task.augment) if recipe.augment is None else recipe.augment
    evaluation = recipe.eval.model_copy(update={"batch_size": recipe.eval.batch_size or train.batch_size})
    run_dir = recipe.run_dir or f"runs/{recipe.task}"
    return recipe.model_copy(update={"train": train, "augment": augment, "eval": evaluation, "run_dir": run_dir})


def choose_metric(recipe: Recipe, known: Mapping[str, bool]) -> str:
    """The metric that chooses the best checkpoint: the recipe's, else the first of `known`."""
    chosen = recipe.eval.metric or next(iter(known))
    if chosen not in known:
        near = did_you_mean(chosen, known)
        raise RecipeError(f"eval.metric: {chosen!r} is not measured here, only {', '.join(known)}.{near}")
    return chosen


def training_arguments(recipe: Recipe, checkpoints: Path, metric: str, greater_is_better: bool) -> TrainingArguments:
    """Build the arguments of a resolved recipe for this machine.

    Args:
        recipe: as `resolve` returns it.
        checkpoints: the folder that checkpoints are written to.
        metric: the metric that chooses the best checkpoint.
        greater_is_better: its direction.

    Raises:
        RecipeError: values that contradict each other.
    """
    given = recipe.train.arguments
    accelerated = torch.accelerator.is_available() and not given.get("use_cpu")
    devices = int(os.environ.get("WORLD_SIZE", 1))
    accumulation = given.get("gradient_accumulation_steps", 1)
    per_device, rest = divmod(recipe.train.batch_size, devices * accumulation)
    if rest or not per_device:
        raise RecipeError(
            f"train.batch_size {recipe.train.batch_size} cannot be shared by {devices} process(es) x "
            f"{accumulation} accumulation step(s): it is the batch of one optimizer step over all of them."
        )
    workers = given.get("dataloader_num_workers", _workers(devices, accelerated))
    best = "no" not in (given["eval_strategy"], given["save_strategy"])
    if recipe.train.ema is not None and (given.get("fsdp") or given.get("deepspeed")):
        raise RecipeError("train.ema: the average is kept whole on each device, which fsdp and deepspeed divide.")
    if best and given["save_strategy"] not in ("best", given["eval_strategy"]):
        raise RecipeError(
            f"train: eval_strategy is {given['eval_strategy']}, but save_strategy {given['save_strategy']}: the best "
            "checkpoint is published, so each is evaluated. Set both alike."
        )
    if recipe.train.early_stopping and not best:
        raise RecipeError("train.early_stopping needs evaluations and checkpoints: set eval_strategy, save_strategy.")
    values = {
        **precision(given, accelerated),
        "dataloader_num_workers": workers,
        "dataloader_persistent_workers": workers > 0,
        "dataloader_pin_memory": accelerated,
        **given,
        "use_cpu": not accelerated,
        "output_dir": str(checkpoints),
        "per_device_train_batch_size": per_device,
        "per_device_eval_batch_size": recipe.eval.batch_size,
        "remove_unused_columns": False,
        "metric_for_best_model": metric,
        "greater_is_better": greater_is_better,
        "load_best_model_at_end": best,
        "push_to_hub": False,
    }
    try:
        arguments = TrainingArguments(**values)
    except SETUP_ERRORS as error:
        raise setup_error(error) from None
    # Several devices in one process would be DataParallel; `--nproc` gives each its own process.
    arguments.device  # noqa: B018 (sets _n_gpu)
    arguments._n_gpu = min(arguments._n_gpu, 1)
    return arguments


def setup_error(error: BaseException) -> RecipeError:
    """What Transformers and the packages below say of a `train:` section that cannot work, on one line."""
    return RecipeError(f"train: {' '.join(str(error).split())[:300] or type(error).__name__}")


def data_seed(arguments: TrainingArguments) -> int:
    """The seed of shuffling and augmentation: `data_seed`, else `seed`."""
    return arguments.seed if arguments.data_seed is None else arguments.data_seed


def precision(given: Mapping[str, Any], accelerated: bool) -> dict[str, bool]:
    """Mixed precision that this hardware computes natively, unless the recipe chooses."""
    if given.get("bf16") is not None or given.get("fp16") is not None:
        return {}
    if accelerated and torch.cuda.is_available():
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return {"bf16": True} if native else {"fp16": True}
    if not accelerated and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()):
        return {"bf16": True}
    return {}


def local_processes() -> int:
    """The processes of this run on this machine."""
    return max(1, int(os.environ.get("LOCAL_WORLD_SIZE") or 1))


def available_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def describe(arguments: TrainingArguments) -> str:
    """One line: device, precision, workers, batch."""
    kind = "bfloat16 autocast" if arguments.bf16 else "float16 autocast" if arguments.fp16 else "float32"
    device = torch.cuda.get_device_name() if arguments.device.type == "cuda" else arguments.device.type
    batch = f"{arguments.per_device_train_batch_size}"
    if arguments.gradient_accumulation_steps > 1:
        batch += f" x {arguments.gradient_accumulation_steps} accumulated"
    if arguments.world_size > 1:
        batch += f" x {arguments.world_size} processes"
    return f"{device}, {kind}, batch {batch}, {arguments.dataloader_num_workers} loader worker(s)"


def _workers(devices: int, accelerated: bool) -> int:
    """Cores that training leaves free: all but one with an accelerator; on a CPU the model itself takes them.

    Of two cores a worker takes more from the model's threads, which wait for each other, than it gives.
    """
    cores = available_cores() // devices
    spare = cores - 1 if accelerated else cores // 4
    return max(0, min(8, spare))
