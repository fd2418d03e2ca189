"""Kill training at random moments, go on with `cv-hf train --resume`, and compare with a run that was never killed.

    python -m tests.soak [--kills N] [--seed S] [TASK ...]

Weights, average, optimizer, schedule, random state, trainer state, log and metrics must be the same bit for bit. Each
`cv-hf train` is a process of its own, forked from this one, which has imported everything and trains nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from cv_hf import cli, finetuning
from cv_hf.environment import quiet
from cv_hf.errors import CheckFailed
from tests.made import write_photos, write_shapes
from tests.tiny import tiny_model

# Saving is not aligned with logging, nor with the epochs of three steps.
OFTEN = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2, "logging_steps": 3}
COMMON = {"learning_rate": 1e-3, "bf16": False, "num_train_epochs": 4, "early_stopping": 50, **OFTEN}
DROPOUT = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
# Task of the recipe, family, model.config, what else train: says.
TASKS: dict[str, tuple[str, str, dict[str, Any], dict[str, Any]]] = {
    "classification": ("image-classification", "vit", DROPOUT, {"batch_size": 8, "ema": 0.5}),
    "detection": ("object-detection", "rt_detr", {"dropout": 0.1}, {"batch_size": 4, "dataloader_num_workers": 2}),
    "semantic": (
        "semantic-segmentation",
        "segformer_semantic",
        DROPOUT,
        {"batch_size": 4, "gradient_accumulation_steps": 2},
    ),
    "workers": (
        "image-classification",
        "vit",
        DROPOUT,
        {"batch_size": 8, "dataloader_num_workers": 2, "eval_strategy": "epoch", "save_strategy": "epoch"},
    ),
    "instance": ("instance-segmentation", "mask2former", {}, {"batch_size": 4}),
    "epochs": (
        "image-classification",
        "resnet",
        {},
        {"batch_size": 8, "logging_strategy": "epoch", "save_steps": 3, "eval_steps": 3},
    ),
    "panoptic": ("panoptic-segmentation", "maskformer", {}, {"batch_size": 4, "logging_steps": 5, "ema": 0.9}),
    "universal": ("universal-segmentation", "oneformer", {}, {"batch_size": 4, "max_steps": 7}),
}
# Times, the paths of two run directories, and how long a text a tokenizer was last asked for.
TIMES = re.compile(r"seconds|per_second|runtime|best_model_checkpoint|run_dir|^/truncation/")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__.splitlines()[0])
    parser.add_argument("tasks", metavar="TASK", nargs="*", help=f"of {', '.join(TASKS)}; none: all")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    assert finetuning  # imported for the processes that are forked
    torch.set_num_threads(1)
    quiet()
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="cv_hf-soak-") as folder:
        try:
            done = soak(Path(folder), arguments.tasks or list(TASKS), arguments.kills, random.Random(arguments.seed))
        except CheckFailed as error:
            print(error)
            return 1
    kills, passed = (sum(one[key] for one in done.values()) for key in ("kills", "passed over"))
    seconds = time.monotonic() - start
    print(f"{kills} kills over {', '.join(done)}; {passed} partial checkpoints passed over; {seconds:.0f} s")
    print("every run ended as the one that was never killed, bit for bit")
    return 0


def soak(folder: Path, tasks: list[str], kills: int, rng: random.Random) -> dict[str, dict[str, int]]:
    """Kill as often as told, the tasks in turn, a few times a run; return the counts of each task.

    Raises:
        CheckFailed: a run failed, or ended otherwise than the one that was never killed.
    """
    photos = write_photos(folder / "photos", {"train": 8, "validation": 2, "test": 2})
    shapes = write_shapes(folder / "shapes", {"train": 12, "val": 4, "test": 4})
    done = {name: {"kills": 0, "runs": 0, "passed over": 0} for name in tasks}
    wholes: dict[str, tuple[Path, float]] = {}
    for number, name in enumerate(cycle(tasks)):
        left = kills - sum(one["kills"] for one in done.values())
        if left <= 0:
            return done
        if name not in wholes:
            recipe = _recipe(folder, name, photos if TASKS[name][0] == "image-classification" else shapes)
            start = time.monotonic()
            _finish(recipe, folder / name / "whole")
            wholes[name] = recipe, time.monotonic() - start
        recipe, seconds = wholes[name]
        run = folder / name / f"killed-{number}"
        wanted = min(left, rng.randint(2, 6))
        hit = 0
        for _ in range(3 * wanted):  # some come too late
            child = _train(recipe, run)
            if rng.random() < 0.4:
                _in_saving(child, run, rng)
            else:
                time.sleep(rng.uniform(0.2, 1.0) * seconds)
            os.kill(child, signal.SIGKILL)
            killed = os.WIFSIGNALED(os.waitpid(child, 0)[1])
            hit += killed
            if hit == wanted or not killed:
                break
        printed = _finish(recipe, run)
        if found := differences(folder / name / "whole", run):
            raise CheckFailed(
                f"{name} (kill {sum(one['kills'] for one in done.values())}): {'; '.join(found[:8])}\n{printed}"
            )
        done[name]["kills"] += hit
        done[name]["runs"] += 1
        done[name]["passed over"] += printed.count("passed over ")
        print(f"{name}: killed {hit} times, the same", flush=True)
        shutil.rmtree(run)
    raise AssertionError


def differences(whole: Path, other: Path) -> list[str]:
    """What two finished runs do not have in common, file by file."""
    found = []
    names = [{path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file()} for run in (whole, other)]
    if names[0] != names[1]:
        found.append(f"files: {sorted(names[0] ^ names[1])}")
    for name in sorted(names[0] & names[1]):
        if Path(name).name == "manifest.json":  # it holds the hashes of files that hold times
            continue
        one, two = (_leaves(run / name) for run in (whole, other))
        keys = [key for key in {**one, **two} if not _equal(one.get(key), two.get(key))]
        if keys:
            found.append(f"{name} {keys[0]}: {one.get(keys[0])} and {two.get(keys[0])}")
    return found


def _leaves(path: Path) -> dict[str, Any]:
    """What a file of a run holds, leaf by leaf."""
    if path.suffix == ".safetensors":
        return load_file(path)
    if path.suffix in (".pt", ".pth"):
        return dict(_flat(torch.load(path, weights_only=False)))
    if path.suffix == ".jsonl":
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        return dict(_flat([{**line, "order": list(line)} for line in lines]))
    return dict(_flat(json.loads(path.read_text()))) if path.suffix == ".json" else {}


def _recipe(folder: Path, name: str, data: Path) -> Path:
    task, family, config, train = TASKS[name]
    (folder / name).mkdir()
    values = {
        "task": task,
        "model": {"id": str(tiny_model(family, folder / name / "model")), "config": config},
        "data": {"id": str(data)},
        "train": {**COMMON, **train},
    }
    file = folder / name / "recipe.yaml"
    file.write_text(json.dumps(values))  # JSON is YAML
    return file


def _train(recipe: Path, run: Path) -> int:
    """Start `cv-hf train --resume` and return the process; what it prints is added to RUN.txt."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            out = os.open(run.parent / f"{run.name}.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(out, 1)
            os.dup2(out, 2)
            code = cli.main(["train", str(recipe), "--resume", "--run-dir", str(run)])
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(code)
    return child


def _finish(recipe: Path, run: Path) -> str:
    """Let a run end by itself; return what all its processes have printed."""
    code = os.waitstatus_to_exitcode(os.waitpid(_train(recipe, run), 0)[1])
    printed = (run.parent / f"{run.name}.txt").read_text()
    if code:
        raise CheckFailed(f"{printed}\n{run.parent.name}: cv-hf train ended with {code}")
    return printed


def _in_saving(child: int, run: Path, rng: random.Random) -> None:
    """Wait for one of the next times that a checkpoint is being written, then a moment."""
    for _ in range(rng.randint(1, 3)):
        for there in (False, True):
            while any((run / "checkpoints").glob(".checkpoint-*")) != there:
                if os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT | os.WNOHANG):
                    return
                time.sleep(0.001)
    time.sleep(rng.uniform(0, 0.03))


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every leaf by its path, but for times and paths of the run."""
    if isinstance(value, dict | list | tuple):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _flat(item, f"{path}/{key}")
    elif not TIMES.search(path):
        yield path, value


def _equal(one: Any, two: Any) -> bool:
    if isinstance(one, torch.Tensor) and isinstance(two, torch.Tensor):
        return one.dtype == two.dtype and torch.equal(one, two)
    return type(one) is type(two) and bool(np.all(one == two))


if __name__ == "__main__":
    sys.exit(main())
