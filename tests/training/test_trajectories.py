"""Equivalent ways to train follow one trajectory: accumulation, loader workers, the open script, a resumed run."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageClassification

from cv_hf.errors import RecipeError
from cv_hf.finetuning import finetune
from cv_hf.training.lock import LOCK, locked

# No dropout and no batch norm: what is left may not depend on how a batch is split.
PLAIN = {
    "swinv2": {"drop_path_rate": 0.0, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
    "segformer": {
        "drop_path_rate": 0.0,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "classifier_dropout_prob": 0.0,
    },
    "timm_vit": {},
}


def steps(log: list[dict], *names: str) -> list[float]:
    """The values of each training log line, in order."""
    return [line[name] for line in log if "loss" in line for name in names]


@pytest.mark.parametrize("family", PLAIN)
@pytest.mark.parametrize("batch_size", [8, 7])
def test_accumulated_gradients_are_those_of_the_whole_batch(recipe, tmp_path, family, batch_size):
    """24 samples: with 7 the last batch has 3, which two micro-batches of 4 and 3 cannot share evenly."""
    logs = []
    for accumulation in (1, 4) if batch_size == 8 else (1, 7):
        values = recipe(
            family,
            model={"config": PLAIN[family]},
            train={"batch_size": batch_size, "gradient_accumulation_steps": accumulation, "max_steps": 4},
        )
        values["run_dir"] = str(tmp_path / f"accumulation-{accumulation}")
        logs.append(steps(finetune(values).log, "loss", "grad_norm"))
    assert len(logs[0]) == 8
    assert logs[1] == pytest.approx(logs[0], rel=1e-5, abs=1e-6)


def test_the_last_micro_batch_of_an_epoch_counts_by_its_size(recipe, tmp_path):
    """21 samples in steps of 8 as 4 + 4: the last step has 5 samples, as 4 + 1."""
    logs = []
    for accumulation in (1, 2):
        values = recipe(
            "timm_vit",
            data={"max_samples": 21},
            train={"gradient_accumulation_steps": accumulation, "max_steps": 3},
        )
        values["run_dir"] = str(tmp_path / f"accumulation-{accumulation}")
        logs.append(steps(finetune(values).log, "loss", "grad_norm"))
    assert logs[1] == pytest.approx(logs[0], rel=1e-5, abs=1e-6)


def test_loader_workers_change_nothing(recipe, tmp_path):
    logs = []
    for workers in (0, 2):
        values = recipe("vit", train={"dataloader_num_workers": workers})
        values["run_dir"] = str(tmp_path / f"workers-{workers}")
        logs.append(steps(finetune(values).log, "loss", "grad_norm"))
    assert logs[0] == logs[1]


def test_the_open_recipe_follows_finetune(recipe, tmp_path):
    values = recipe("vit", model={"freeze": "backbone"}, train={"num_train_epochs": 2, "max_steps": -1})
    ours = finetune(values)
    values["run_dir"] = str(tmp_path / "open")
    file = tmp_path / "recipe.yaml"
    file.write_text(json.dumps(values))  # JSON is YAML
    script = Path(__file__).parents[2] / "recipes" / "open_recipe.py"
    with locked(tmp_path / "open"):
        refused = subprocess.run([sys.executable, str(script), str(file)], capture_output=True, text=True)
        assert "another training is writing here" in refused.stderr
        assert [path.name for path in (tmp_path / "open").iterdir()] == [LOCK]
    subprocess.run([sys.executable, str(script), str(file)], check=True, capture_output=True)
    lines = [json.loads(line) for line in (tmp_path / "open" / "log.jsonl").read_text().splitlines()]
    assert len(steps(ours.log, "loss")) == 6
    assert steps(lines, "loss", "grad_norm", "learning_rate") == steps(ours.log, "loss", "grad_norm", "learning_rate")
    theirs = json.loads((tmp_path / "open" / "metrics.json").read_text())
    assert theirs["test"] == ours.metrics["test"]


def test_a_resumed_run_follows_the_uninterrupted_one(recipe, tmp_path):
    """Stopped in the middle of an epoch, with dropout on."""
    train = {"num_train_epochs": 3, "max_steps": -1, "eval_strategy": "steps", "eval_steps": 2}
    train |= {"save_strategy": "steps", "save_steps": 2, "save_total_limit": None}
    values = recipe("vit", model={"config": {"hidden_dropout_prob": 0.1}}, train=train)
    whole = finetune(values)
    assert len(steps(whole.log, "loss")) == 9
    checkpoints = whole.folder / "checkpoints"
    for later in ("checkpoint-6", "checkpoint-8", "checkpoint-9"):
        shutil.rmtree(checkpoints / later)
    (checkpoints / "finished.json").unlink()
    resumed = finetune(values, resume=True)
    assert steps(resumed.log, "loss", "grad_norm") == steps(whole.log, "loss", "grad_norm")
    assert resumed.metrics["test"] == whole.metrics["test"]
    lines = [json.loads(line) for line in (whole.folder / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, 10))


def test_a_run_trained_to_its_end_is_not_trained_again(recipe, monkeypatch):
    """As after a push that failed: the same weights, the same numbers, no step more."""
    first = finetune(recipe("vit"))
    monkeypatch.setattr("cv_hf.training.Trainer.train", None)
    again = finetune(recipe("vit"), resume=True)
    assert again.metrics == first.metrics
    with pytest.raises(RecipeError, match="holds a run already"):
        finetune(recipe("vit"))


def test_model_holds_the_best_checkpoint_not_the_last(recipe, monkeypatch):
    """The second of three evaluations is made the best; model/ must hold the weights of its checkpoint."""
    losses = iter([3.0, 1.0, 2.0])
    monkeypatch.setattr("cv_hf.finetuning.evaluate", lambda model, samples, **_: {"loss": next(losses)})
    train = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
    run = finetune(recipe("vit", train={**train, "save_total_limit": None}, eval={"metric": "loss"}))
    weights = {
        step: AutoModelForImageClassification.from_pretrained(run.folder / "checkpoints" / f"checkpoint-{step}")
        for step in (2, 3)
    }
    held = AutoModelForImageClassification.from_pretrained(run.model).state_dict()
    for name, tensor in weights[2].state_dict().items():
        assert torch.equal(held[name], tensor), name
    assert any(not torch.equal(held[name], tensor) for name, tensor in weights[3].state_dict().items())
    assert run.metrics["train"]["best_step"] == 2
