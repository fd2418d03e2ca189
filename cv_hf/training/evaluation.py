"""Evaluation as a stream: forward, count, forget. Nothing but the accumulator grows with the number of images."""

from __future__ import annotations

import atexit
import gc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather_object, send_to_device
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm

from cv_hf.data import CODES, NAMES_KEPT, Findings, LabelMap
from cv_hf.task import Task
from cv_hf.training.allocator import memory_kept
from cv_hf.training.samples import EvalGroup, EvalSamples, collate_eval
from cv_hf.training.stopping import Stopped, deaf


@memory_kept()
def evaluate(
    model: torch.nn.Module,
    samples: EvalSamples,
    task: Task,
    labels: LabelMap,
    *,
    batch_size: int,
    workers: int = 0,
    on_findings: Callable[[Sequence[tuple[str, str, str]]], None],
    progress: str | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Score a model on a split, over all processes.

    The processes share out whole batches, so that no sample is seen twice and all are seen in the same company, which
    the last digits of a prediction depend on; the counts are merged at the end and every process returns the same
    numbers. `loss` is the mean over the samples, where the model computes one.

    Args:
        stop: asked before each batch whether to give up; all processes do once it is true in one.

    Raises:
        DataError: no image of the split could be read.
        Stopped: as `stop` has said.
    """
    columns = samples.dataset.column_names
    accumulator = task.metric(labels, columns)
    state = PartialState()
    starts = range(state.process_index * batch_size, len(samples), state.num_processes * batch_size)
    indices = [index for start in starts for index in range(len(samples))[start : start + batch_size]]
    total_loss, counted, stopped = 0.0, 0, False
    for group, outputs in forward(
        model,
        samples,
        indices,
        batch_size=batch_size,
        workers=workers,
        on_findings=on_findings,
        targets=(lambda rows: task.targets(rows, labels, None)) if task.eval_loss else None,
        subtasks=task.subtasks,
        progress=progress if state.is_main_process else None,
    ):
        if stopped := stop():
            break
        task.update(accumulator, outputs, group, samples.processor, labels)
        if getattr(outputs, "loss", None) is not None:
            total_loss += float(outputs.loss) * len(group.ids)
            counted += len(group.ids)
    if state.num_processes > 1:
        shards = gather_object([(accumulator, total_loss, counted, stopped)])
        accumulator = shards[0][0]
        for other, *_ in shards[1:]:
            accumulator.merge(other)
        total_loss, counted = sum(shard[1] for shard in shards), sum(shard[2] for shard in shards)
        stopped = any(shard[3] for shard in shards)
    if stopped:
        raise Stopped
    metrics = accumulator.compute()
    return {**metrics, "loss": total_loss / counted} if counted else metrics


def forward(
    model: torch.nn.Module,
    samples: EvalSamples,
    indices: Sequence[int],
    *,
    batch_size: int,
    workers: int = 0,
    on_findings: Callable[[Sequence[tuple[str, str, str]]], None],
    targets: Callable[[list[dict[str, Any]]], dict[str, Any]] | None = None,
    subtasks: Sequence[str] = (),
    progress: str | None = None,
) -> Iterator[tuple[EvalGroup, Any]]:
    """Yield (samples of one shape, model outputs) over the given indices, in evaluation mode and without gradients.

    Args:
        targets: makes the model's targets from rows, when a loss is wanted.
        subtasks: each group comes once for each of them. A model that is told its task in words answers each time anew,
            for others it is the same answer.
        on_findings: told of images that could not be read or were repaired; may raise to stop.
        progress: the text of a progress bar, or None for no bar.
    """
    loader = DataLoader(
        Subset(samples, indices),
        batch_size=batch_size,
        num_workers=workers,
        collate_fn=collate_eval,
        worker_init_fn=deaf,
    )
    device = next(model.parameters()).device
    was_training = model.training
    prompt = getattr(samples.processor, "prompt", None)
    model.eval()
    try:
        for groups, findings in tqdm(
            loader, desc=progress, disable=None if progress else True, leave=False, dynamic_ncols=True
        ):
            on_findings(findings)
            for group in groups:
                inputs = send_to_device({**group.inputs, **(targets(group.rows) if targets else {})}, device)
                pixels = inputs.get("pixel_values")
                if pixels is not None and pixels.ndim == 4:
                    # As training has its images: convolutions take them faster so.
                    inputs["pixel_values"] = pixels.contiguous(memory_format=torch.channels_last)
                outputs = None
                for subtask in subtasks or (None,):
                    if prompt is not None:
                        inputs.update(send_to_device(prompt(subtask, len(group.ids)), device))
                    if outputs is None or prompt is not None:
                        with torch.inference_mode():
                            outputs = model(**inputs)
                            # Under autocast as well, scores must differ where objects do. What a model says of its
                            # layers is not looked at.
                            for name, value in list(outputs.items()):
                                if isinstance(value, torch.Tensor) and value.is_floating_point():
                                    outputs[name] = value.float()
                    yield replace(group, subtask=subtask), outputs
    finally:
        model.train(was_training)


def gathered(findings: Findings) -> Findings:
    """The findings of all processes, in every one of them, by name, so that who found what does not matter."""
    everyone = gather_object([findings]) if PartialState().num_processes > 1 else [findings]
    reasons = {
        (code, name): reason for each in everyone for code in each for name, reason in each.reasons(code).items()
    }
    merged = Findings()
    for (code, name), reason in sorted(reasons.items()):
        merged.add(code, name, reason)
    return merged


def recorder(
    findings: Findings, on_bad_sample: str, echo: Callable[[str], None] = print
) -> Callable[[Sequence[tuple[str, str, str]]], None]:
    """Count what is found, and print each sample that is dropped, and the first of each other error; with "stop", the
    first one that is dropped raises DataError."""

    def record(found: Sequence[tuple[str, str, str]]) -> None:
        for code, name, reason in found:
            known = findings.count(code)
            if CODES[code].effect != "dropped":
                findings.add(code, name, reason)
                if not known and CODES[code].severity == "error":
                    echo(f"{name}: {CODES[code].meaning}: {reason}; more of them are only counted")
                continue
            findings.drop(code, name, reason, on_bad_sample)
            if known < findings.count(code) <= NAMES_KEPT:
                echo(f"{name}: {reason or CODES[code].meaning}; going on without it")

    return record


@atexit.register
def leave_processes() -> None:
    """End gloo's process group, which Accelerate began, and its threads, while Python still runs.

    A thread that lets go of a tensor after the interpreter has gone ends the process with SIGABRT. NCCL's group ends by
    itself.
    """
    group = torch.distributed
    if group.is_available() and group.is_initialized() and group.get_backend() == "gloo":
        group.destroy_process_group()
        gc.collect()  # a wrapped model in a cycle holds the group, which ends its threads when nothing does
