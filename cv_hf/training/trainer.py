"""A thin subclass of transformers.Trainer: exact accumulation, streaming evaluation, complete-or-absent checkpoints."""

from __future__ import annotations

import inspect
import json
import random
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from accelerate.utils import broadcast, gather
from safetensors import SafetensorError
from transformers import TrainerCallback
from transformers.trainer_callback import EarlyStoppingCallback, ExportableState, PrinterCallback, ProgressCallback

from cv_hf.errors import CvHfError, DataError, ModelError, RecipeError, ResourceError
from cv_hf.models import PixelMap, head_parameters, whole_config
from cv_hf.models.counts import sharing
from cv_hf.models.kernels import quicken
from cv_hf.training.allocator import memory_kept
from cv_hf.training.arguments import SETUP_ERRORS, data_seed, setup_error
from cv_hf.training.cache import ImageCache
from cv_hf.training.checkpoints import (
    clear,
    disk_full,
    fault,
    partial_of,
    put_in_place,
    rotate,
    seal,
    size_of,
    write_text,
)
from cv_hf.training.ema import EMA
from cv_hf.training.samples import EpochSampler
from cv_hf.training.scales import Scales
from cv_hf.training.stopping import Stop, Stopped, deaf

# These take a mask and do nothing with it.
_MASK_UNHEEDED = {"rt_detr", "rt_detr_v2", "d_fine", "deimv2"}
# What a checkpoint holds beside TrainerState, to go on exactly.
WHEREABOUTS = "whereabouts.json"


class Trainer(transformers.Trainer):
    """What a vision recipe needs beyond transformers.Trainer.

    Args:
        score: (model, samples, stop) -> metrics; called with the evaluation dataset whenever an evaluation is due.
            It raises Stopped when `stop()` is true.
        record: told the findings that travel with training batches.
        pixels: turns the uint8 `pixel_values` of a batch into what the model takes, on its device; None when the
            batches come from the processor.
        backbone_lr: learning rate of the backbone; None: that of the rest.
        ema: decay of the moving average of the weights; None: no average.
        scales: (least, greatest) factor of the input size, drawn for each batch; None: the size stays.
        early_stopping: evaluations without improvement before training ends; None: never.
        notes: kept in the manifest of each checkpoint, JSON-ready.
    """

    def __init__(
        self,
        *,
        score: Callable[..., dict[str, Any]],
        record: Callable[[Sequence[tuple[str, str, str]]], None],
        pixels: PixelMap | None,
        backbone_lr: float | None,
        early_stopping: int | None,
        ema: float | None = None,
        scales: Scales | None = None,
        notes: Mapping[str, Any] | None = None,
        **trainer: Any,
    ):
        one_label = getattr(trainer["model"].config, "problem_type", None) == "single_label_classification"
        if trainer["args"].label_smoothing_factor and not one_label:
            # Others would be trained without it, or fail.
            raise RecipeError("train.label_smoothing_factor is for classifiers with one label per image. Leave it out.")
        try:
            super().__init__(**trainer)
        except SETUP_ERRORS as error:
            raise setup_error(error) from None
        if self.accelerator.ddp_handler is not None:
            # Gradients stand where they are summed over the processes: no copy of them, in memory or in time.
            self.accelerator.ddp_handler.gradient_as_bucket_view = True
        quicken(self.model, depthwise=self.args.bf16 and self.args.device.type == "cpu")
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
        self.early_stopping = early_stopping
        self.notes = notes or {}
        self._loaders: tuple[Any, ...] = ()
        self.stop = Stop()
        self.add_callback(_Whereabouts(self))

    def train(self, resume_from_checkpoint: str | None = None, **arguments: Any) -> Any:
        """Train, from a checkpoint on if one is given.

        Raises:
            KeyboardInterrupt: on Ctrl-C or SIGTERM, once a checkpoint is saved.
            ResourceError: the disk is full; the checkpoints before are whole.
        """
        self._resumed = Path(resume_from_checkpoint) if resume_from_checkpoint else None
        self._saved_step = self._began = None
        if self._resumed is not None:
            self.args.eval_on_start = False  # it is in the log already
        try:
            with self.stop.heard(), memory_kept():
                return super().train(resume_from_checkpoint=resume_from_checkpoint, **arguments)
        except (ImportError, NotImplementedError) as error:
            if self._began is not None:
                raise
            # An option that only some models or environments have.
            raise setup_error(error) from None
        finally:
            self._end_workers()
            if self.cache is not None:
                self.cache.close()
                self.train_dataset.cache = None

    @property
    def cache(self) -> ImageCache | None:
        """Where the training images are kept, until training ends."""
        return getattr(self.train_dataset, "cache", None)

    def _end_workers(self) -> None:
        """End the loader workers that persist: at the end of the process they would be waited for."""
        for loader in self._loaders:
            iterator = vars(loader).get("_iterator")
            if iterator is not None:
                iterator._shutdown_workers()
                loader._iterator = None

    def get_train_dataloader(self) -> Any:
        loader = super().get_train_dataloader()
        base = loader.base_dataloader
        self._loaders = (loader, base)
        # A loader draws a seed for its workers when it is made, which is at another time after a resume.
        base.generator = torch.Generator()
        first = base.worker_init_fn

        def begin(worker: int) -> None:
            deaf(worker)
            first(worker)

        base.worker_init_fn = begin
        return loader

    def _get_train_sampler(self, train_dataset: Any = None) -> EpochSampler:
        self._sampler = EpochSampler(
            len(self.train_dataset),
            data_seed(self.args),
            batch_size=self._train_batch_size,
            processes=self.accelerator.num_processes,
            drop_last=self.args.dataloader_drop_last,
        )
        if not len(self._sampler):
            raise RecipeError(
                f"train.dataloader_drop_last leaves out all {len(self.train_dataset)} training samples, as they are "
                "fewer than a batch. Lower train.batch_size."
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
        if self.cache is not None:
            self.cache.drop_if_scarce()
        if not self.control.should_training_stop:
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
        self._stop_if_asked()
        batches = []
        for _, batch in zip(range(num_batches), epoch_iterator, strict=False):
            self.record(batch.get("findings", ()))
            batches.append(checked(batch))
        # Trainer divides by the number of micro-batches, and the processes take the mean of their gradients; weighing
        # by size makes that the mean over all samples, however unevenly the last ones of an epoch are shared out.
        processes = self.accelerator.num_processes
        own = whole = [0 if batch.pop("spare", False) else _size(batch) for batch in batches]
        if processes > 1:
            whole = self.accelerator.reduce(torch.tensor(own, device=device), "sum").tolist()
        for batch, size, of in zip(batches, own, whole, strict=True):
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
            raise self.not_finite() from None
        loss = loss * self._weight
        return (loss, outputs) if return_outputs else loss

    def training_step(self, *arguments: Any, **more: Any) -> torch.Tensor:
        loss = super().training_step(*arguments, **more)
        # Not before the backward, which a GPU is given while it computes the forward: looking waits for its answer.
        if not torch.isfinite(loss).all():
            raise self.not_finite()
        return loss

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """None are counted: Transformers' formula is of text, and walks all modules for it in each step."""
        return 0

    def store_flos(self) -> None:
        """There are none, which several processes need not gather."""

    def log(self, logs: dict[str, float], *arguments: Any, **more: Any) -> None:
        """As Trainer does, without the `total_flos` that nobody counted."""
        logs.pop("total_flos", None)
        super().log(logs, *arguments, **more)

    def not_finite(self) -> DataError:
        """Says of which images the loss is not finite: those of the batch that was computed last."""
        files = ", ".join(self._files[:8]) + (", ..." if len(self._files) > 8 else "")
        return DataError(
            f"the loss is not finite at step {self.state.global_step + 1}, on {files}.\n"
            "Try a lower train.learning_rate or train.bf16=false; if it is always on the same images, look at them."
        )

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, Any]:
        model = self.model if self.ema is None else self.ema.model
        if self.cache is not None:
            self.cache.drop_if_scarce()
        # Every process has had running statistics of its own since the last step; those of the first are saved.
        broadcast(list(model.buffers()))
        # The model that trains has the autocast within; the average, copied before, has not.
        with unchanged_random_state(), nullcontext() if self.ema is None else self.accelerator.autocast():
            metrics = self.score(model, eval_dataset or self.eval_dataset, stop=lambda: self.stop.asked)
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

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """Whether this evaluation is the best, among those that a checkpoint is saved after: no other can be published.

        Of equal ones it is that of the lower loss, else the later; Trainer keeps the first, which has learnt least.
        """
        if self.args.save_strategy != "best" and not self.control.should_save:
            return False
        state, value = self.state, metrics[f"eval_{self.args.metric_for_best_model}"]
        equal = value == state.best_metric
        if super()._determine_best_metric(metrics, trial):
            return True
        losses = {entry["step"]: entry["eval_loss"] for entry in state.log_history if "eval_loss" in entry}
        if not (equal and losses.get(state.global_step, 0) <= losses.get(state.best_global_step, 0)):
            return False
        state.best_global_step = state.global_step
        return True

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Write a checkpoint aside and rename it, so that one with its final name is complete."""
        folder = Path(self.args.output_dir)
        final = folder / f"checkpoint-{self.state.global_step}"
        partial = partial_of(final)
        try:
            self._write_checkpoint(folder, final, partial)
        except (OSError, RuntimeError, SafetensorError) as error:
            if not disk_full(error):
                raise
            clear(folder)
            raise self._no_space(folder, final) from None
        self._saved_step = self.state.global_step
        self.accelerator.wait_for_everyone()

    def _write_checkpoint(self, folder: Path, final: Path, partial: Path) -> None:
        if self.args.should_save:
            clear(folder)
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
        whereabouts = self._whereabouts()
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            for callback in [*self.callback_handler.callbacks, self.control]:
                if isinstance(callback, ExportableState):
                    self.state.stateful_callbacks[type(callback).__name__] = callback.state()
            self.state.save_to_json(str(partial / "trainer_state.json"))
            write_text(partial / WHEREABOUTS, json.dumps(whereabouts) + "\n")
            seal(partial, {"step": self.state.global_step, **self.notes})
            put_in_place(partial, final)
            rotate(folder, final, self.state.best_model_checkpoint, self.args.save_total_limit)

    def _no_space(self, folder: Path, final: Path) -> ResourceError:
        size = max(self.checkpoint_size(), *(size_of(one) for one in folder.glob("checkpoint-*")), 0)
        free = shutil.disk_usage(folder).free
        # Less may be free to this user than the file system says.
        missing = f"{megabytes(size - free)} are missing" if size > free else "more than this process may write"
        return ResourceError(
            f"{final}: no space left on the disk: it takes {megabytes(size)}, {megabytes(free)} are free, so {missing}."
        )

    def checkpoint_size(self) -> int:
        """The bytes of a checkpoint: weights, twice where they are averaged, and what the optimizer remembers."""
        weights = sum({tensor.data_ptr(): tensor.nbytes for tensor in self.model.state_dict().values()}.values())
        return weights * (1 if self.ema is None else 2) + (0 if self.args.save_only_model else self.optimizer_size())

    def optimizer_size(self) -> int:
        """The bytes of what the optimizer remembers, or will after its first step."""
        parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        if self.optimizer is not None and self.optimizer.state:
            tensors = [value for state in self.optimizer.state.values() for value in state.values()]
            return sum(value.nbytes for value in tensors if isinstance(value, torch.Tensor))
        # A step of the same optimizer on a small matrix tells how much it keeps for each value.
        probe = torch.nn.Parameter(torch.zeros(64, 64))
        probe.grad = torch.zeros_like(probe)
        try:
            kind, arguments = self.get_optimizer_cls_and_kwargs(self.args)
            optimizer = kind([probe], **arguments)
            optimizer.step()
            kept = sum(value.nbytes for value in optimizer.state[probe].values() if isinstance(value, torch.Tensor))
        except (TypeError, ValueError, RuntimeError, ImportError):  # one that needs the model, a device or a package
            kept = 2 * probe.nbytes
        return int(sum(parameter.nbytes for parameter in parameters) * kept / probe.nbytes)

    def _maybe_log_save_evaluate(self, tr_loss: Any, grad_norm: Any, model: Any, *more: Any, **rest: Any) -> None:
        self._last, self._owed = (grad_norm, rest.get("learning_rate")), None
        owed = {"save": self.control.should_save}
        try:
            super()._maybe_log_save_evaluate(tr_loss, grad_norm, model, *more, **rest)
        except Stopped:
            self._owed = owed
            self._save_checkpoint(model, None)
            raise

    def _stop_if_asked(self) -> None:
        """Save and raise Stopped, in all processes if one was asked to; called where nothing is left undone."""
        asked = torch.tensor(float(self.stop.asked), device=self.args.device)
        if not self.accelerator.reduce(asked, "sum").item():
            return
        if self.state.global_step != self._saved_step:
            self._save_checkpoint(self.model_wrapped, None)
        raise Stopped

    def _whereabouts(self) -> dict[str, Any]:
        """What TrainerState lacks to go on exactly; the same in every process."""
        grad_norm, learning_rate = self._last
        return {
            "losses": gather(self._tr_loss.detach().reshape(1)).tolist(),
            "total_loss": self._total_loss_scalar,
            "last_logged": self._globalstep_last_logged,
            "last": [None if grad_norm is None else float(grad_norm), learning_rate],
            "seconds": self._seconds + time.time() - self._began,
            "epoch_ended": self._epoch_ended,
            "owed": self._owed,
        }

    def begin(self) -> None:
        """Called when training begins: take up what the checkpoint left, and do what its step was still to do."""
        self._began, self._seconds, self._last = time.time(), 0.0, (None, None)
        self._epoch_ended, self._owed, self._saved_step = True, None, self.state.global_step
        # The summary at the end is of the whole run.
        self._initial_global_step = 0
        if self._resumed is None or not (self._resumed / WHEREABOUTS).is_file():
            return
        left = json.loads((self._resumed / WHEREABOUTS).read_text(encoding="utf-8"))
        losses, own = left["losses"], self.accelerator.process_index
        same = len(losses) == self.accelerator.num_processes
        self._tr_loss += losses[own] if same else sum(losses) / len(losses)
        self._total_loss_scalar = left["total_loss"]
        self._globalstep_last_logged = left["last_logged"]
        self._seconds, self._epoch_ended = left["seconds"], left["epoch_ended"]
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, EarlyStoppingCallback):
                callback.early_stopping_patience = self.early_stopping
        # The checkpoint's own number of steps between lines, evaluations and saves may have been changed.
        self.state.compute_steps(self.args, self.state.max_steps)
        self._find_best()
        if self.args.should_save:
            # What was left undone, after which no save may be due.
            clear(self._resumed.parent)
            rotate(self._resumed.parent, self._resumed, self.state.best_model_checkpoint, self.args.save_total_limit)
        # The loop loads it once more; what is saved before then needs it too.
        self._load_rng_state(str(self._resumed))
        self.control.should_training_stop = self._over()
        self.control.should_log = self.control.should_evaluate = self.control.should_save = False
        if left["owed"]:
            self.control.should_evaluate, self.control.should_save = True, left["owed"]["save"]
            self._finish_step(*left["last"])
        if not self._epoch_ended and (self._over() or float(self.state.epoch).is_integer()):
            self.control = self.callback_handler.on_epoch_end(self.args, self.state, self.control)
            self._finish_step(*left["last"])

    def _finish_step(self, grad_norm: float | None, learning_rate: float | None) -> None:
        self._maybe_log_save_evaluate(
            self._tr_loss,
            grad_norm,
            self.model_wrapped,
            None,
            self.state.epoch,
            None,
            time.time(),
            learning_rate=learning_rate,
        )

    def _over(self) -> bool:
        """Whether the checkpoint gone on from is the last; Transformers would train a step more."""
        stopping = [
            callback for callback in self.callback_handler.callbacks if isinstance(callback, EarlyStoppingCallback)
        ]
        waited = any(one.early_stopping_patience_counter >= one.early_stopping_patience for one in stopping)
        return waited or self.state.global_step >= self.state.max_steps

    def _find_best(self) -> None:
        """The best checkpoint by its name, since a run may have been moved."""
        said = json.loads((self._resumed / "trainer_state.json").read_text(encoding="utf-8"))["best_model_checkpoint"]
        if said is None:
            return
        best = Path(self.args.output_dir) / Path(said).name
        reason = fault(best)
        if reason is None:
            self.state.best_model_checkpoint = str(best)
            return
        if self.is_world_process_zero():
            print(f"the best checkpoint, {best}, cannot be used: {reason}; another is sought from here on", flush=True)
        self.state.best_metric = self.state.best_global_step = self.state.best_model_checkpoint = None

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        if self.ema is None:
            super()._save(output_dir, state_dict)
        elif self.args.should_save:
            self.ema.save(output_dir)
        # A pickle of the arguments, which the resolved recipe holds as text.
        Path(output_dir or self.args.output_dir, "training_args.bin").unlink(missing_ok=True)

    def _finalize_training(self, trial: Any, num_train_samples: int, start_time: float) -> Any:
        self._stop_if_asked()
        # What was not logged yet is of this process alone.
        self._tr_loss = self.accelerator.reduce(self._tr_loss, "mean")
        return super()._finalize_training(trial, num_train_samples, start_time - self._seconds)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            self.load_weights(resume_from_checkpoint)
            if self.ema is not None:
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


class _Whereabouts(TrainerCallback):
    """Tells the trainer where in its loop it is; the last of the callbacks, for which training has begun by then."""

    def __init__(self, trainer: Trainer):
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.begin()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer._epoch_ended = False

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer._epoch_ended = True


class LogFile(TrainerCallback):
    """One JSON line per log call: `log.jsonl`."""

    def __init__(self, path: Path):
        self.path = path

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Hold what was logged up to here, which a checkpoint knows; what was logged beyond it is done again."""
        if state.is_world_process_zero:
            write_text(self.path, "".join(_line(entry["step"], entry) for entry in state.log_history))

    def on_log(self, args: Any, state: Any, control: Any, logs: dict | None = None, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(_line(state.global_step, logs or {}))


def checked(batch: dict[str, Any]) -> dict[str, Any]:
    """A batch as collated, without its findings; what its loading raised is raised here."""
    batch.pop("findings", None)
    if "error" in batch:
        raise batch["error"]
    if not batch:
        raise DataError("no sample of a whole stretch of the training split can be used; see the findings above.")
    return batch


@contextmanager
def unchanged_random_state() -> Iterator[None]:
    """Whatever is drawn within, the numbers drawn after are those that would have been drawn without it."""
    before = random.getstate(), np.random.get_state()
    devices = [torch.accelerator.current_device_index()] if torch.cuda.is_available() else []
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])


def megabytes(size: int) -> str:
    """A number of bytes, to read."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def takes_mask(model: torch.nn.Module) -> bool:
    """Whether a model is told which pixels of a batch are padding, and heeds it."""
    known = "pixel_mask" in inspect.signature(model.forward).parameters
    return known and getattr(model.config, "model_type", None) not in _MASK_UNHEEDED


def _line(step: int, logs: Mapping[str, Any]) -> str:
    # Sorted, as a checkpoint keeps them.
    return json.dumps({"step": step, **dict(sorted(logs.items()))}) + "\n"


def _size(batch: dict[str, Any]) -> int:
    return len(next(iter(batch.values())))
