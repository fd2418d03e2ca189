"""`cv-hf bench`: what it measures of a recipe, and that nothing of it stays."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from cv_hf.bench import _verdict, bench, lines
from cv_hf.cli import main


def test_a_recipe_is_measured_and_nothing_is_kept(recipe, tmp_path: Path, capsys: pytest.CaptureFixture):
    values = recipe("vit", train={"early_stopping": 2, "eval_strategy": "epoch", "save_strategy": "epoch"})
    values["hub"] = {"repo_id": "tester/never-made"}
    del values["train"]["max_steps"]
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(values))
    assert main(["bench", str(file), "--seconds", "0.2", "--json", str(tmp_path / "found.json")]) == 0
    found = json.loads((tmp_path / "found.json").read_text())
    for part in ("reading", "step", "training", "evaluation"):
        assert found[part]["images_per_second"] > 0
    assert 0 <= found["training"]["waiting"] <= 1
    assert sum(found["evaluation"][name] for name in ("reading", "forward", "metrics")) == pytest.approx(1)
    assert found["memory"] > 1e6
    out = capsys.readouterr().out
    assert out.splitlines() == lines(found)[:-1] + found["verdict"].splitlines()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["found.json", "recipe.yaml"]


def test_slow_reading_is_seen_where_it_is(recipe, monkeypatch: pytest.MonkeyPatch):
    import time

    from cv_hf.training import samples

    decode = samples.decode_array

    def slow(*args, **kwargs):
        time.sleep(0.02)
        return decode(*args, **kwargs)

    monkeypatch.setattr(samples, "decode_array", slow)
    found = bench(recipe("vit"), ["train.dataloader_num_workers=0"], seconds=0.5)
    assert found["reading"]["images_per_second"] < 50
    # The first batch is not waited for.
    assert found["training"]["images_per_second"] < 75
    assert found["training"]["waiting"] > 0.3
    assert found["verdict"].startswith("Training is held back by its images:")
    assert found["step"]["images_per_second"] > found["training"]["images_per_second"]


def test_out_of_memory_names_the_batch_to_try(recipe, tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture):
    def greedy(*args, **kwargs):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 58097664 bytes.")

    monkeypatch.setattr("cv_hf.training.Trainer.training_step", greedy)
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe("vit")))
    assert main(["bench", str(file), "--seconds", "0.1"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("cv-hf: out of memory with 8 image(s) per device at once.\nTry 4: ")
    assert "train.batch_size=4" in error


def test_the_verdict_names_what_holds_back():
    trainer = SimpleNamespace(args=SimpleNamespace(bf16=False, fp16=False, world_size=1))
    scored = {"reading": 0.1, "forward": 0.3, "metrics": 0.6}
    found = {"training": {"waiting": 0.05, "workers": 0}, "evaluation": scored}
    assert "the model's own arithmetic" in _verdict(found, trainer)
    assert "train.bf16=true" in _verdict(found, trainer)
    assert "Scoring is mostly metrics (60%)" in _verdict(found, trainer)
    found["training"] = {"waiting": 0.6, "workers": 0}
    assert "train.dataloader_num_workers=" in _verdict(found, trainer)
