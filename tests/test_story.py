"""The whole story of a user, each command a process of its own, against the loopback Hub."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard

from tests.hub import LoopbackHub

TOKEN = "hf_storyTokenThatMustNotLeakAnywhere"
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")

PUSH_DATA = """
import sys
from datasets import load_dataset
load_dataset("imagefolder", data_dir=sys.argv[1]).push_to_hub("ann/photos", private=True)
"""
PIPELINE = """
import json, sys
from transformers import pipeline
answers = pipeline("image-classification", model="ann/classifier")(sys.argv[1:])
assert "cv_hf" not in sys.modules
print(json.dumps(answers))
"""


def scores(answer: list[dict]) -> dict[str, float]:
    return {found["label"]: found["score"] for found in answer}


def test_from_a_private_dataset_to_pipeline_in_other_code(hub: LoopbackHub, tiny, photos: Path, tmp_path: Path):
    hub.add_token(TOKEN, user="ann")
    base = hub.add_repo("other/base", folder=tiny("vit"))
    work = tmp_path / "work"
    work.mkdir()
    environment = {**os.environ, **hub.environment(TOKEN), "HF_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"}
    outputs = []

    def process(*command: str) -> str:
        done = subprocess.run(
            [sys.executable, *command], cwd=work, env=environment, capture_output=True, text=True, check=False
        )
        outputs.append(done.stdout + done.stderr)
        assert done.returncode == 0, outputs[-1]
        return done.stdout

    process("-c", PUSH_DATA, str(photos))
    dataset = hub.repo("ann/photos", "dataset")
    assert dataset.private

    recipe = {
        "task": "image-classification",
        "model": {"id": "other/base"},
        "data": {"id": "ann/photos"},
        "train": {"batch_size": 8, "num_train_epochs": 2, "learning_rate": 0.003, "logging_steps": 1},
        "hub": {"repo_id": "ann/classifier", "private": True},
    }
    (work / "story.yaml").write_text(yaml.safe_dump(recipe))
    told = process("-m", "cv_hf", "train", "story.yaml")
    assert f"pushed to {hub.url}/ann/classifier" in told
    run = work / "runs" / "story"

    pushed = hub.repo("ann/classifier", "model")
    assert pushed.private
    assert len(pushed.commits) == 2, "one commit on top of the initial one"
    files = pushed.files()
    wanted = {"README.md", "config.json", "cv_hf.json", "evidence.json", "model.safetensors"}
    wanted |= {"preprocessor_config.json", "recipe.yaml"}
    assert set(files) == wanted
    assert not [name for name in files if name.endswith(PICKLES) or "training_args" in name]
    assert files["model.safetensors"] == (run / "model" / "model.safetensors").read_bytes()

    metrics = json.loads((run / "metrics.json").read_text())
    card = ModelCard(files["README.md"].decode())
    results = {result.metric_type: result for result in card.data.eval_results}
    assert {name: result.metric_value for name, result in results.items()} == {
        name: metrics["test"][name] for name in ("accuracy", "f1_macro", "loss")
    }
    commits = {name: repository.commits[0].id for name, repository in (("base", base), ("data", dataset))}
    assert {(result.dataset_type, result.dataset_revision) for result in results.values()} == {
        ("ann/photos", commits["data"])
    }
    assert card.data.base_model == "other/base"
    assert card.data.datasets == ["ann/photos"]
    assert re.findall(r"commit `([0-9a-f]{40})`", card.text) == [commits["base"], commits["data"]]
    assert 'model="ann/classifier"' in card.text
    used = yaml.safe_load(files["recipe.yaml"])
    assert (used["model"]["id"], used["data"]["id"], used["train"]["num_train_epochs"]) == (
        "other/base",
        "ann/photos",
        2,
    )

    images = [str(photos / "test" / name) for name in ("red/0.png", "green/1.png", "blue/2.png")]
    theirs = json.loads(process("-c", PIPELINE, *images))
    process("-m", "cv_hf", "predict", "ann/classifier", *images, "--out", "answers")
    ours = json.loads((work / "answers" / "predictions.json").read_text())
    assert len(theirs) == len(ours) == 3
    for file, answer in zip(images, theirs, strict=True):
        assert scores(ours[file]["prediction"]) == pytest.approx(scores(answer), abs=1e-6)

    told = process("-m", "cv_hf", "eval", "ann/classifier", "--data", "ann/photos", "--split", "train")
    assert "data: the model was trained on train, so this score says nothing of other images" in told

    everything = [path.read_bytes() for path in run.rglob("*") if path.is_file()]
    assert len(everything) > 10
    secrets = [*everything, *files.values(), *(text.encode() for text in outputs)]
    assert not any(TOKEN.encode() in content for content in secrets)
    machine = [str(tmp_path).encode(), str(photos).encode()]
    assert not any(path in content for path in machine for content in files.values())
