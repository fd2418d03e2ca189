"""Segmentation end to end, on tiny models of each way of training: maps, masks, objects, prompts."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import transformers
from PIL import Image

from cv_hf import finetune
from cv_hf.inference import load_trained, predict_files
from cv_hf.tasks import get_task
from cv_hf.verify import verify

SEMANTIC, INSTANCE = "semantic-segmentation", "instance-segmentation"
PANOPTIC, UNIVERSAL = "panoptic-segmentation", "universal-segmentation"


def steps(log: list[dict], *names: str) -> list:
    return [tuple(line[name] for name in names) for line in log if names[0] in line]


@pytest.mark.parametrize(
    ("task", "family"),
    [
        (SEMANTIC, "segformer_semantic"),
        (SEMANTIC, "mask2former"),
        (INSTANCE, "mask2former"),
        (INSTANCE, "rf_detr_instance"),
        (PANOPTIC, "maskformer"),
        (PANOPTIC, "detr_panoptic"),
        (UNIVERSAL, "oneformer"),
    ],
)
def test_trains_saves_resumes_reloads_and_pipeline_agrees(task, family, segmentation_recipe, shapes):
    train = {"max_steps": 3, "eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
    values = segmentation_recipe(task, family, train={**train, "save_total_limit": None})
    whole = finetune(values)
    checkpoints = whole.folder / "checkpoints"
    shutil.rmtree(checkpoints / "checkpoint-3")
    (checkpoints / "finished.json").unlink()
    resumed = finetune(values, resume=True)
    assert steps(resumed.log, "loss", "grad_norm") == steps(whole.log, "loss", "grad_norm")
    assert resumed.metrics["test"] == whole.metrics["test"]
    assert whole.metrics["test"]["num_samples"] == 6
    verdict = verify(whole.folder, str(shapes))
    assert verdict.passed, verdict.differences
    assert (verdict.images, verdict.evidence) == (6, 6)
