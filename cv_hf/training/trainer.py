"""A thin subclass of transformers.Trainer: exact accumulation, streaming evaluation, complete-or-absent checkpoints."""

from __future__ import annotations

import inspect
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate.utils import broadcast
from transformers import TrainerCallback
from transformers.trainer_callback import EarlyStoppingCallback, ExportableState, PrinterCallback, ProgressCallback
from transformers.trainer_utils import get_last_checkpoint, rotate_checkpoints

from cv_hf.errors import CvHfError, DataError, ModelError, RecipeError
from cv_hf.models import PixelMap, head_parameters, whole_config
from cv_hf.models.counts import sharing
from cv_hf.training.arguments import SETUP_ERRORS, data_seed, setup_error
from cv_hf.training.ema import EMA, TRAINING_WEIGHTS
from cv_hf.training.samples import EpochSampler, EvalSamples
from cv_hf.training.scales import Scales

# These take a mask and do nothing with it.
_MASK_UNHEEDED = {"rt_detr", "rt_detr_v2", "d_fine", "deimv2"}


class Trainer(transformers.Trainer):
    """What a vision recipe needs beyond transformers.Trainer.

    Args:
        score: (model, samples) -> metrics; called with the evaluation dataset whenever an evaluation is due.
        record: told the findings that travel with training batches.
        pixels: turns the uint8 `pixel_values` of a batch into what the model takes, on its device; None when the
            batches come from the processor.
        backbone_lr: learning rate of the backbone; None: that of the rest.
        ema: decay of the moving average of the weights; None: no average.
        scales: (least, greatest) factor of the input size, drawn for each batch; None: the size stays.
        early_stopping: evaluations without improvement before training ends; None: never.
    """

    def __init__(
        self,
        *,
        score: Callable[[torch.nn.Module, EvalSamples], dict[str, Any]],
        record: Callable[[Sequence[tuple[str, str, str]]], None],
        pixels: PixelMap | None,
        backbone_lr: float | None,
        early_stopping: int | None,
        ema: float | None = None,
        scales: Scales | None = None,
        **trainer: Any,
    ):
        try:
            super().__init__(**trainer)
        except SETUP_ERRORS as error:
            raise setup_error(error) from None
        self.score = score
        self.record = record
        self.pixels = pixels
        self.backbone_lr = backbone_lr
        self.scales = scales
        self.takes_mask = takes_mask(self.model)
        self.ema = EMA(self.model, ema) if ema is not None else None
        if self.ema is not None:
            self.add_callback(self.ema)
        # Trainer takes a forward with **kwargs to scale its loss by `num_items_in_batch`; vision losses do not, and
        # accumulated gradients came out too large by the number of accumulation steps.
        self.model_accepts_loss_kwargs = False
        self.remove_callback(ProgressCallback)
        self.remove_callback(PrinterCallback)
        if early_stopping:
            self.add_callback(EarlyStoppingCallback(early_stopping_patience=early_stopping))

    def _get_train_sampler(self, train_dataset: Any = None) -> EpochSampler:
        self._sampler = EpochSampler(
            len(self.train_dataset),
            data_seed(self.args),
            batch_size=self._train_batch_size,
            processes=self.accelerator.num_processes,
            drop_last=self.args.dataloader_drop_last,
        )
        return self._sampler

    def _prepare_for_training(self, *arguments: Any) -> Any:
        try:
            return super()._prepare_for_training(*arguments)
        except CvHfError:
            raise
        except SETUP_ERRORS as error:
            raise setup_error(error) from None

    def _run_epoch(self, **arguments: Any) -> None:
        # Skipping batches on resume wraps the sampler, and accelerate then no longer reaches its set_epoch.
        self._sampler.set_epoch(arguments["epoch"])
        super()._run_epoch(**arguments)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Trainer's optimizer, any of them, with the backbone's parameters moved to groups of their own rate."""
        fresh = self.optimizer is None
        optimizer = super().create_optimizer(model)
        if fresh and self.backbone_lr is not None:
            head = head_parameters(self.model)
            heads = {id(parameter) for name, parameter in self.model.named_parameters() if name in head}
            for group in list(optimizer.param_groups):
                backbone = [parameter for parameter in group["params"] if id(parameter) not in heads]
                group["params"] = [parameter for parameter in group["params"] if id(parameter) in heads]
                if backbone:
                    optimizer.add_param_group({**group, "params": backbone, "lr": self.backbone_lr})
        return optimizer

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> tuple[list, None]:
        batches = []
        for _, batch in zip(range(num_batches), epoch_iterator, strict=False):
            self.record(batch.pop("findings", ()))
            if "error" in batch:
                raise batch["error"]
            if not batch:
                raise DataError(
                    "no image of a whole stretch of the training split could be read; see the findings above."
                )
            batches.append(batch)
        # Trainer divides by the number of micro-batches, and the processes take the mean of their gradients; weighing
        # by size makes that the mean over all samples, however unevenly the last ones of an epoch are shared out.
        processes = self.accelerator.num_processes
        own = torch.tensor([0 if batch.pop("spare", False) else _size(batch) for batch in batches], device=device)
        whole = self.accelerator.reduce(own, "sum").tolist()
        for batch, size, of in zip(batches, own.tolist(), whole, strict=True):
            batch["share"] = size * processes / of
            batch["weight"] = size * processes * len(batches) / sum(whole)
        return batches, None

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        inputs = super()._prepare_inputs(inputs)
        self._files, self._share, self._weight = (inputs.pop(name) for name in ("files", "share", "weight"))
        if self.pixels is not None:
            inputs["pixel_values"] = self.pixels.apply(inputs["pixel_values"])
            if "pixel_mask" in inputs:
                # Processors pad after they normalize: with zeros, not with black.
                inputs["pixel_values"] = inputs["pixel_values"] * inputs["pixel_mask"][:, None]
                if not self.takes_mask:
                    del inputs["pixel_mask"]
        if self.scales is not None:
            inputs = self.scales.apply(inputs, (data_seed(self.args), self.state.global_step))
        return inputs

    def compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, **kwargs: Any) -> Any:
        try:
            with sharing(self._share):
                loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **kwargs)
        except (AssertionError, RuntimeError, ValueError) as error:
            # Matching boxes to objects fails on what is no number, each library in words of its own.
            if not re.search(r"\bnan\b|invalid numeric", str(error), re.IGNORECASE):
                raise
            raise self._not_finite() from None
        if not torch.isfinite(loss.detach()).all():
            raise self._not_finite()
        loss = loss * self._weight
        return (loss, outputs) if return_outputs else loss

    def _not_finite(self) -> DataError:
        files = ", ".join(self._files[:8]) + (", ..." if len(self._files) > 8 else "")
        return DataError(
            f"the loss is not finite at step {self.state.global_step + 1}, on {files}.\n"
            "Try a lower train.learning_rate or train.bf16=false; if it is always on the same images, look at them."
        )

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, Any]:
        model = self.model if self.ema is None else self.ema.model
        # Every process has had running statistics of its own since the last step; those of the first are saved.
        broadcast(list(model.buffers()))
        # The model that trains has the autocast within; the average, copied before, has not.
        with nullcontext() if self.ema is None else self.accelerator.autocast():
            metrics = self.score(model, eval_dataset or self.eval_dataset)
        scalars = {
            f"{metric_key_prefix}_{name}": value for name, value in metrics.items() if isinstance(value, int | float)
        }
        if f"{metric_key_prefix}_{self.args.metric_for_best_model}" not in scalars:
            raise DataError(
                f"eval.metric {self.args.metric_for_best_model!r} has no value on this validation split (has any of "
                f"its classes a positive sample?). Choose another metric or split. It has: {', '.join(metrics)}."
            )
        self.log(scalars)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, scalars)
        return scalars

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Write a checkpoint aside and rename it, so that one with its final name is complete."""
        folder = Path(self.args.output_dir)
        final = folder / f"checkpoint-{self.state.global_step}"
        partial = folder / f".{final.name}.partial"
        self.store_flos()
        if self.args.should_save:
            for left in folder.glob(".checkpoint-*.partial"):
                shutil.rmtree(left, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        self.save_model(str(partial), _internal_call=True)
        if self.state.best_global_step:
            best = folder / f"checkpoint-{self.state.best_global_step}"
            if best.exists() or best == final:
                self.state.best_model_checkpoint = str(best)
        if not self.args.save_only_model:
            self._save_optimizer_and_scheduler(str(partial))
            self._save_scaler(str(partial))
            self._save_rng_state(str(partial))
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            for callback in [*self.callback_handler.callbacks, self.control]:
                if isinstance(callback, ExportableState):
                    self.state.stateful_callbacks[type(callback).__name__] = callback.state()
            self.state.save_to_json(str(partial / "trainer_state.json"))
            shutil.rmtree(final, ignore_errors=True)
            os.replace(partial, final)
            rotate_checkpoints(
                output_dir=str(folder),
                save_total_limit=self.args.save_total_limit,
                best_model_checkpoint=self.state.best_model_checkpoint,
                use_mtime=False,
            )
        self.accelerator.wait_for_everyone()

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        if self.ema is None:
            super()._save(output_dir, state_dict)
        elif self.args.should_save:
            self.ema.save(output_dir)
        # A pickle of the arguments, which the resolved recipe holds as text.
        Path(output_dir or self.args.output_dir, "training_args.bin").unlink(missing_ok=True)

    def _finalize_training(self, *arguments: Any) -> Any:
        # What was not logged yet is of this process alone.
        self._tr_loss = self.accelerator.reduce(self._tr_loss, "mean")
        return super()._finalize_training(*arguments)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        elif (self.ema is not None) != (Path(resume_from_checkpoint) / TRAINING_WEIGHTS).is_file():
            was, now = ("without", "with") if self.ema else ("with", "without")
            raise RecipeError(f"{resume_from_checkpoint} was saved {was} train.ema; training cannot go on {now} it.")
        elif self.ema is None:
            self.load_weights(resume_from_checkpoint)
        else:
            self.load_weights(resume_from_checkpoint)
            self.ema.load(resume_from_checkpoint)

    def _load_best_model(self) -> None:
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            super()._load_best_model()
        else:
            self.load_weights(self.state.best_model_checkpoint)

    def plain_model(self) -> torch.nn.Module:
        """The model as it computes without mixed precision.

        accelerate hides the class's forward() behind one within an autocast. Its own way back takes off the decorators
        of forward() too, without which SegFormer does not run.
        """
        model = self.accelerator.unwrap_model(self.model)
        for name in ("forward", "_original_forward"):
            vars(model).pop(name, None)
        return model

    def load_weights(self, folder: str) -> None:
        """Put a checkpoint's weights into the model, every one of them.

        save_pretrained writes many families (ViT among them) under the names that the Hub has had for them, which are
        not those of the module; Trainer reads them back by name, finds none, and goes on with what it had.
        from_pretrained knows both.
        """
        kind = type(self.model)
        config = whole_config(self.model)
        saved, info = kind.from_pretrained(folder, config=config, dtype=self.model.dtype, output_loading_info=True)
        if info["missing_keys"] or info["mismatched_keys"]:
            raise ModelError(f"{folder}: weights are missing in this checkpoint. Remove it to go on from an older one.")
        self.model.load_state_dict(saved.state_dict())


class LogFile(TrainerCallback):
    """One JSON line per log call: `log.jsonl`."""

    def __init__(self, path: Path):
        self.path = path

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """After a resume, forget what was logged beyond the checkpoint: it is done again."""
        if state.is_world_process_zero and self.path.exists():
            lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
            kept = [line for line in lines if json.loads(line)["step"] <= state.global_step]
            self.path.write_text("".join(kept) if state.global_step else "", encoding="utf-8")

    def on_log(self, args: Any, state: Any, control: Any, logs: dict | None = None, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": state.global_step, **(logs or {})}) + "\n")


class Progress(TrainerCallback):
    """A bar on a terminal, a line per log elsewhere; evaluations are always a line of their own.

    Args:
        metrics: what is printed of an evaluation; the rest is in log.jsonl.
        samples_per_step: the global batch size.
        disable: print nothing.
    """

    def __init__(self, metrics: Iterable[str], samples_per_step: int, disable: bool):
        self.metrics = list(metrics)
        self.samples_per_step = samples_per_step
        self.disable = disable
        self.bar: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        from tqdm import tqdm

        self.start, self.first = time.monotonic(), state.global_step
        if state.is_world_process_zero and not self.disable:
            self.bar = tqdm(
                total=state.max_steps, initial=state.global_step, desc="training", disable=None, dynamic_ncols=True
            )

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.bar is not None:
            self.bar.update(state.global_step - self.bar.n)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict | None = None, **kwargs: Any) -> None:
        logs = logs or {}
        if self.bar is None:
            return
        scores = [f"{name} {logs[f'eval_{name}']:.4f}" for name in self.metrics if f"eval_{name}" in logs]
        if "loss" in logs:
            speed = (state.global_step - self.first) * self.samples_per_step / (time.monotonic() - self.start)
            text = f"loss {logs['loss']:.4f}, {speed:.0f} images/s"
            self.bar.set_postfix_str(text)
            if self.bar.disable:
                print(f"step {state.global_step}/{state.max_steps}: {text}", flush=True)
        elif scores:
            self.bar.clear()
            print(f"epoch {state.epoch:.3g}: {', '.join(scores)}", flush=True)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.bar is not None:
            self.bar.close()


def newest_checkpoint(folder: Path) -> str | None:
    """The newest complete checkpoint of a run, or None; a partial one does not have the name of a checkpoint."""
    return get_last_checkpoint(str(folder)) if folder.is_dir() else None


def takes_mask(model: torch.nn.Module) -> bool:
    """Whether a model is told which pixels of a batch are padding, and heeds it."""
    known = "pixel_mask" in inspect.signature(model.forward).parameters
    return known and getattr(model.config, "model_type", None) not in _MASK_UNHEEDED


def _size(batch: dict[str, Any]) -> int:
    return len(next(iter(batch.values())))
