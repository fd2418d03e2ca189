"""The road from Python: the same steps as the commands, from values to values."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import transformers

import cv_hf


@pytest.fixture
def run(recipe) -> cv_hf.Run:
    return cv_hf.finetune(recipe())


def test_a_run_says_what_its_folder_holds(recipe):
    values = recipe()
    given = copy.deepcopy(values)
    run = cv_hf.finetune(values, ["train.max_steps=2"])
    assert values == given
    assert (run.folder, run.model, run.url) == (Path(values["run_dir"]), Path(values["run_dir"]) / "model", None)
    assert run.metrics == json.loads((run.folder / "metrics.json").read_text())
    assert run.metrics["train"]["steps"] == 2
    lines = [json.loads(line) for line in (run.folder / "log.jsonl").read_text().splitlines()]
    assert [line["loss"] for line in lines if "loss" in line] == [line["loss"] for line in run.log if "loss" in line]
    assert len([line for line in lines if "loss" in line]) == 2
    loaded = cv_hf.load_recipe(run.folder / "recipe.yaml")
    assert loaded.train.arguments["max_steps"] == 2
    with pytest.raises(cv_hf.CvHfError, match="holds a run already"):
        cv_hf.finetune(loaded)


def test_a_model_answers_as_pipeline_does(run, photos, tmp_path):
    rng = np.random.default_rng(0)
    files = [str(photos / "test" / name) for name in ("red/0.png", "green/3.png")]
    for number, shape in enumerate([(20, 90, 3), (33, 31), (64, 64, 4)]):
        files.append(str(tmp_path / f"{number}.png"))
        PIL.Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(files[-1])
    before = sorted(tmp_path.rglob("*"))
    ours = cv_hf.predict_files(cv_hf.load_trained(run.folder), files)
    assert sorted(tmp_path.rglob("*")) == before, "nothing is written unless a folder is named"
    assert list(ours) == files
    pipeline = transformers.pipeline("image-classification", model=str(run.model))
    for file in files:
        theirs = {found["label"]: found["score"] for found in pipeline(file)}
        mine = {found["label"]: found["score"] for found in ours[file]["prediction"]}
        assert mine == pytest.approx(theirs, abs=1e-6)


def test_a_model_scores_the_same_in_any_batch(run, photos):
    first = cv_hf.evaluate_model(run.model, str(photos), batch_size=1)
    second = cv_hf.evaluate_model(run.folder, str(photos), split="test", batch_size=12)
    assert first["confusion_matrix"] == second["confusion_matrix"] == run.metrics["test"]["confusion_matrix"]
    assert first["loss"] == pytest.approx(second["loss"], abs=1e-6)
    assert first["loss"] == pytest.approx(run.metrics["test"]["loss"], abs=1e-6)


def test_a_push_can_come_later(run, hub):
    url = cv_hf.push(run.folder, "tester/api", private=True)
    assert url == f"{hub.url}/tester/api"
    trained = cv_hf.load_trained("tester/api")
    assert trained.labels.names == ("blue", "green", "red")
    ours, theirs = trained.model.state_dict(), cv_hf.load_trained(run.folder).model.state_dict()
    assert all((ours[name] == theirs[name]).all() for name in theirs)


def test_one_except_catches_every_error_with_the_documented_code():
    from cv_hf import errors

    told = {}
    for line in errors.__doc__.splitlines():
        words = line.replace("├──", "").replace("└──", "").split()
        if len(words) > 2 and words[1].isdigit():
            told[words[0]] = int(words[1])
    assert told.keys() == {
        name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, cv_hf.CvHfError)
    }
    for name, code in told.items():
        error = getattr(errors, name)
        assert issubclass(error, cv_hf.CvHfError)
        assert error.exit_code == code
