"""`cv-hf train --nproc 2`: one run, one voice, the same numbers."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest


def train(values: dict, file, *arguments: str) -> subprocess.CompletedProcess:
    file.write_text(json.dumps(values))  # JSON is YAML
    command = [sys.executable, "-m", "cv_hf", "train", str(file), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


def steps(folder) -> list[float]:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [line[name] for line in lines if "loss" in line for name in ("loss", "grad_norm")]


def test_two_processes_train_as_one(recipe, tmp_path):
    """A batch of 8 is 8, or 4 and 4; a model without dropout and batch norm."""
    values = recipe("timm_vit", train={"max_steps": 3})
    for processes in ("1", "2"):
        run = tmp_path / processes
        done = train(values, tmp_path / "recipe.yaml", "--nproc", processes, "--run-dir", str(run))
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("the model is") == 1
    alone, both = (json.loads((tmp_path / n / "metrics.json").read_text()) for n in ("1", "2"))
    assert len(steps(tmp_path / "1")) == 6
    assert steps(tmp_path / "2") == pytest.approx(steps(tmp_path / "1"), rel=1e-5)
    assert both["test"]["num_samples"] == alone["test"]["num_samples"] == 12
    assert both["test"]["loss"] == pytest.approx(alone["test"]["loss"], rel=1e-5)


def test_wrong_input_is_said_once(recipe, tmp_path):
    failed = train(recipe("vit", eval={"metric": "acuracy"}), tmp_path / "recipe.yaml", "--nproc", "2")
    assert failed.returncode == 2
    assert len(failed.stderr.strip().splitlines()) == 1
    assert "Did you mean 'accuracy'" in failed.stderr
