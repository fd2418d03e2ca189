"""The moving average against a loop over the weights of every step."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageClassification, TrainerCallback

from cv_hf import finetune
from cv_hf.errors import RecipeError
from cv_hf.training.ema import TRAINING_WEIGHTS

EVERY_STEP = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
EVERY_STEP |= {"save_total_limit": None, "learning_rate": 1e-2, "max_steps": 4}


def weights(folder) -> dict[str, torch.Tensor]:
    return AutoModelForImageClassification.from_pretrained(folder).state_dict()


@pytest.fixture
def trajectory(monkeypatch) -> list[dict[str, torch.Tensor]]:
    """The weights that were trained: before the first step and after each."""
    seen: list[dict[str, torch.Tensor]] = []

    class Keep(TrainerCallback):
        def on_train_begin(self, args, state, control, model=None, **kwargs):
            seen.append({name: tensor.clone() for name, tensor in model.state_dict().items()})

        def on_step_end(self, args, state, control, model=None, **kwargs):
            seen.append({name: tensor.clone() for name, tensor in model.state_dict().items()})

    from cv_hf.training import Trainer

    start = Trainer.__init__

    def with_keeper(self, **arguments):
        start(self, **arguments)
        self.add_callback(Keep())

    monkeypatch.setattr(Trainer, "__init__", with_keeper)
    return seen


def average(trajectory, decay: float, steps: int) -> dict[str, torch.Tensor]:
    kept = {name: tensor.double() for name, tensor in trajectory[0].items()}
    for step in range(1, steps + 1):
        now = min(decay, (1 + step) / (10 + step))
        for name in kept:
            kept[name] = now * kept[name] + (1 - now) * trajectory[step][name].double()
    return kept


@pytest.mark.parametrize("family", ["vit", "resnet"])  # the second has running statistics
def test_checkpoints_and_model_hold_the_average(recipe, trajectory, family):
    run = finetune(recipe(family, train={**EVERY_STEP, "ema": 0.25}, eval={"metric": "loss"}))
    checkpoints = {step: run.folder / "checkpoints" / f"checkpoint-{step}" for step in (1, 2, 3, 4)}
    for step, folder in checkpoints.items():
        expected = average(trajectory, 0.25, step)
        held = weights(folder)
        for name, tensor in held.items():
            if tensor.is_floating_point():
                torch.testing.assert_close(tensor.double(), expected[name], rtol=1e-5, atol=1e-6)
        raw = load_file(folder / TRAINING_WEIGHTS)
        assert all(torch.equal(raw[name], trajectory[step][name]) for name in raw)
    assert any(not torch.equal(weights(checkpoints[4])[name], trajectory[4][name]) for name in trajectory[4])
    best = weights(checkpoints[run.metrics["train"]["best_step"]])
    published = weights(run.model)
    assert all(torch.equal(published[name], tensor) for name, tensor in best.items())
    assert not (run.model / TRAINING_WEIGHTS).exists()
    # What chose the best checkpoint was the average's own score.
    logged = {line["step"]: line["eval_loss"] for line in run.log if "eval_loss" in line}
    assert logged[run.metrics["train"]["best_step"]] == pytest.approx(run.metrics["validation"]["loss"], rel=1e-5)


def test_without_a_best_checkpoint_the_average_is_published(recipe, trajectory):
    run = finetune(recipe("vit", train={"ema": 0.25, "eval_strategy": "no", "save_strategy": "no"}))
    expected = average(trajectory, 0.25, 3)
    for name, tensor in weights(run.model).items():
        torch.testing.assert_close(tensor.double(), expected[name], rtol=1e-5, atol=1e-6)


def test_a_resumed_run_follows_the_uninterrupted_one(recipe):
    model = {"config": {"hidden_dropout_prob": 0.1}}
    values = recipe("vit", model=model, train={**EVERY_STEP, "ema": 0.5})
    whole = finetune(values)
    kept = weights(whole.folder / "checkpoints" / "checkpoint-4")
    for step in (3, 4):
        shutil.rmtree(whole.folder / "checkpoints" / f"checkpoint-{step}")
    (whole.folder / "checkpoints" / "finished.json").unlink()
    resumed = finetune(values, resume=True)
    again = weights(resumed.folder / "checkpoints" / "checkpoint-4")
    assert all(torch.equal(kept[name], tensor) for name, tensor in again.items())
    assert resumed.metrics["test"] == whole.metrics["test"]
    losses = [[line["loss"] for line in log if "loss" in line] for log in (whole.log, resumed.log)]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("family", ["deformable_detr_two_stage", "dab-detr", "rt_detr"])
def test_tied_weights_are_averaged_once(family, tiny):
    """Heads that several decoder layers share stand in a state dict under a name for each."""
    from types import SimpleNamespace

    from transformers import AutoModelForObjectDetection

    from cv_hf.training.ema import EMA

    model = AutoModelForObjectDetection.from_pretrained(tiny(family))
    ema = EMA(model, 0.75)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 1
    ema.on_step_end(None, SimpleNamespace(global_step=1000), None)
    for name, parameter in ema.model.named_parameters(remove_duplicate=False):
        torch.testing.assert_close(parameter, before[name] + 0.25, rtol=1e-4, atol=1e-4)


def test_a_checkpoint_with_another_use_of_the_average_is_refused(recipe, tmp_path):
    finetune(recipe("vit", train={"max_steps": 2}))
    (tmp_path / "run" / "checkpoints" / "finished.json").unlink()
    with pytest.raises(RecipeError, match=r"train\.ema was null, is 0\.9"):
        finetune(recipe("vit", train={"max_steps": 4, "ema": 0.9}), resume=True)
    other = recipe("vit", train={"max_steps": 2, "ema": 0.9}, run_dir=str(tmp_path / "other"))
    finetune(other)
    (tmp_path / "other" / "checkpoints" / "finished.json").unlink()
    with pytest.raises(RecipeError, match=r"train\.ema was 0\.9, is null"):
        finetune({**other, "train": {**other["train"], "max_steps": 4, "ema": None}}, resume=True)


def test_a_null_in_the_recipe_is_no_default(recipe, monkeypatch):
    from dataclasses import replace

    from cv_hf.config import load_recipe
    from cv_hf.tasks import get_task
    from cv_hf.training import resolve

    task = replace(get_task("image-classification"), train_defaults={"ema": 0.9, "batch_size": 3, "backbone_lr": 1e-5})
    chosen = resolve(load_recipe(recipe("vit", train={"ema": None})), task)
    assert (chosen.train.ema, chosen.train.batch_size, chosen.train.backbone_lr) == (None, 8, 1e-5)
    written = load_recipe(json.loads(json.dumps(chosen.model_dump(mode="json"))))
    assert resolve(written, task) == chosen
    values = recipe("vit", model={"freeze": "backbone"})
    del values["train"]["batch_size"]
    frozen = resolve(load_recipe(values), task)
    assert (frozen.train.ema, frozen.train.batch_size, frozen.train.backbone_lr) == (0.9, 3, None)
