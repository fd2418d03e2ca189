"""Walks the jobs of a JSON file with `finetune`, in float64; started by accelerate, torchrun and test_processes.py."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from cv_hf import finetuning, inference
from cv_hf.environment import quiet

build_model = finetuning.build_model
convert = torch.Tensor.to


def widened(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.double() if value.is_floating_point() else value
    if isinstance(value, dict):
        return {name: widened(item) for name, item in value.items()}
    return [widened(item) for item in value] if isinstance(value, list) else value


def to_wider(tensor: torch.Tensor, *arguments: Any, **named: Any) -> torch.Tensor:
    """`Tensor.to`, to float64 where float32 is asked for."""
    return convert(tensor, *(torch.float64 if each is torch.float32 else each for each in arguments), **named)


def build_double(*arguments: Any) -> Any:
    """`build_model`, but the model computes in float64 whatever it is given, and has no dropout."""
    built = build_model(*arguments)
    built.model.double().register_forward_pre_hook(
        lambda model, args, inputs: (args, widened(inputs)), prepend=True, with_kwargs=True
    )
    for module in built.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if hasattr(module, "drop_prob"):
            module.drop_prob = 0.0
    return built


@contextmanager
def in_float64() -> Iterator[None]:
    """Losses are taken in float32 otherwise, with weights of the default precision, and so is some attention."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with (
            mock.patch.object(torch.Tensor, "float", torch.Tensor.double),
            mock.patch.object(torch.Tensor, "to", to_wider),
            mock.patch.object(finetuning, "build_model", build_double),
            mock.patch.object(inference, "build_model", build_double),
        ):
            yield
    finally:
        torch.set_default_dtype(before)


def walk(jobs: Path, out: Path) -> None:
    """Run {name: {"recipe": ..., "resume": ...}}; write {name: {"log": ..., "metrics": ...}} to `out`/RANK.json."""
    done = {}
    with in_float64():
        for name, job in json.loads(jobs.read_text()).items():
            run = finetuning.finetune(job["recipe"], resume=job["resume"])
            done[name] = {"log": run.log, "metrics": run.metrics}
    (out / f"{os.environ.get('RANK', 0)}.json").write_text(json.dumps(done))


if __name__ == "__main__":
    quiet()
    walk(Path(sys.argv[1]), Path(sys.argv[2]))
