"""`cv-hf verify`: it passes where pipeline() gives what was measured, and fails where anything was changed since."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from cv_hf import finetune
from cv_hf.cli import main
from cv_hf.training.ema import TRAINING_WEIGHTS
from cv_hf.verify import verify


@pytest.fixture(scope="module")
def run(tiny, boxes, tmp_path_factory) -> Path:
    """A detector trained under bfloat16 with an average of its weights."""
    folder = tmp_path_factory.mktemp("verify") / "run"
    train = {"batch_size": 4, "max_steps": 12, "learning_rate": 3e-3, "bf16": True, "ema": 0.9, "multi_scale": None}
    train |= {"eval_strategy": "steps", "eval_steps": 12, "save_strategy": "steps", "save_steps": 12}
    recipe = {"task": "object-detection", "model": {"id": str(tiny("rt_detr"))}, "data": {"id": str(boxes)}}
    finetune({**recipe, "train": train, "run_dir": str(folder)})
    return folder


@pytest.fixture
def changed(run, tmp_path) -> Path:
    """A copy of the run, to be sabotaged."""
    return Path(shutil.copytree(run, tmp_path / "run"))


def sabotage(file: Path, **values) -> None:
    content = json.loads(file.read_text())
    assert content.keys() >= values.keys()
    file.write_text(json.dumps({**content, **values}))


def test_passes_after_bfloat16_with_an_average(run, boxes, capsys):
    verdict = verify(run, str(boxes))
    assert verdict.passed, verdict.differences
    assert (verdict.images, verdict.evidence) == (8, 8)
    theirs, ours = verdict.metrics["map"]
    assert theirs == pytest.approx(ours, abs=1e-3)
    assert main(["verify", str(run), "--data", str(boxes), "--limit", "3"]) == 0
    assert "on 3 images, 3 of them in the evidence" in capsys.readouterr().out


@pytest.mark.parametrize(
    "values",
    [
        {"do_normalize": True, "image_mean": [0.2, 0.2, 0.2], "image_std": [0.5, 0.5, 0.5]},
        {"size": {"height": 96, "width": 96}},
    ],
)
def test_another_processor_fails(changed, boxes, values, capsys):
    sabotage(changed / "model" / "preprocessor_config.json", **values)
    assert main(["verify", str(changed), "--data", str(boxes)]) == 1
    message = capsys.readouterr().err
    assert "in training" in message
    assert len(message.splitlines()) <= 8


def test_raw_weights_in_place_of_the_average_fail(changed, boxes):
    from safetensors.torch import load_file
    from transformers import AutoModelForObjectDetection

    checkpoint = changed / "checkpoints" / "checkpoint-12"
    model = AutoModelForObjectDetection.from_pretrained(checkpoint)
    model.load_state_dict(load_file(checkpoint / TRAINING_WEIGHTS))
    model.save_pretrained(changed / "model")
    verdict = verify(changed, str(boxes))
    assert not verdict.passed
    assert any("in training" in line for line in verdict.differences)


def test_swapped_labels_fail(changed, boxes):
    config = json.loads((changed / "model" / "config.json").read_text())
    sabotage(changed / "model" / "config.json", id2label={"0": config["id2label"]["1"], "1": config["id2label"]["0"]})
    assert not verify(changed, str(boxes)).passed


def test_classification(recipe, photos, tmp_path):
    run = finetune(recipe("vit", train={"bf16": True, "ema": 0.5}))
    verdict = verify(run.folder, str(photos))
    assert verdict.passed, verdict.differences
    assert verdict.metrics["accuracy"][0] == verdict.metrics["accuracy"][1]
    assert verdict.evidence == 12
    sabotage(run.model / "preprocessor_config.json", image_mean=[0.1, 0.1, 0.1])
    assert not verify(run.folder, str(photos)).passed


def test_a_pipeline_that_fails_is_a_failed_check(changed, boxes, capsys, monkeypatch):
    monkeypatch.setattr("cv_hf.verify._CLEAN", "raise SystemExit('no such thing')")
    assert main(["verify", str(changed), "--data", str(boxes)]) == 1
    assert "pipeline() failed" in capsys.readouterr().err


def test_check_tells_what_is_wrong_and_what_is_not(boxes, tmp_path, capsys):
    assert main(["check", str(boxes)]) == 0
    assert "note: 1 gapped-ids: " in capsys.readouterr().out
    folder = Path(shutil.copytree(boxes, tmp_path / "data"))
    file = folder / "annotations" / "instances_val.json"
    content = json.loads(file.read_text())
    content["annotations"][0]["bbox"] = [3, 3, 0, 5]
    file.write_text(json.dumps(content))
    photo = folder / "train" / "0.png"
    photo.write_bytes(photo.read_bytes()[:200])
    assert main(["check", str(folder), "--json", "-"]) == 1
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    found = found["findings"]
    assert set(found) == {"box-zero-area", "truncated-image", "gapped-ids"}
    assert found["truncated-image"]["files"] == ["train/0.png"]
    assert found["box-zero-area"]["count"] == 1
    assert "2 errors, 1 note" in captured.err


@pytest.fixture(scope="module")
def segmented(tiny, shapes, tmp_path_factory) -> dict[str, Path]:
    """A model of each task of segmentation, trained for a few steps."""
    runs = {}
    for task, family in (("semantic", "segformer_semantic"), ("instance", "mask2former"), ("universal", "oneformer")):
        folder = tmp_path_factory.mktemp(task) / "run"
        train = {"batch_size": 4, "max_steps": 4, "learning_rate": 3e-3, "bf16": True, "ema": 0.5}
        train |= {"eval_strategy": "no", "save_strategy": "no"}
        recipe = {"task": f"{task}-segmentation", "model": {"id": str(tiny(family))}, "data": {"id": str(shapes)}}
        finetune({**recipe, "train": train, "run_dir": str(folder)})
        runs[task] = folder
    return runs


@pytest.mark.parametrize("task", ["semantic", "instance", "universal"])
def test_masks_pass_as_trained_and_fail_when_changed(task, segmented, shapes, tmp_path):
    verdict = verify(segmented[task], str(shapes))
    assert verdict.passed, verdict.differences
    assert (verdict.images, verdict.evidence) == (6, 6)
    assert (
        verdict.metrics.keys()
        == {
            "semantic": {"mean_iou", "pixel_accuracy"},
            "instance": {"mask_map of the segments shown", "mask_map_50 of the segments shown"},
            "universal": {
                "pq (panoptic)",
                "mask_map of the segments shown (instance)",
                "mask_map_50 of the segments shown (instance)",
                "mean_iou (semantic)",
                "pixel_accuracy (semantic)",
            },
        }[task]
    )
    changed = Path(shutil.copytree(segmented[task], tmp_path / "run"))
    if task == "universal":
        # After four steps it gives every pixel one class, whatever it sees.
        names = json.loads((changed / "model" / "config.json").read_text())["id2label"]
        first, *others = names.values()
        sabotage(changed / "model" / "config.json", id2label=dict(zip(names, [*others, first], strict=True)))
    else:
        sabotage(changed / "model" / "preprocessor_config.json", image_mean=[0.1, 0.9, 0.2])
    verdict = verify(changed, str(shapes))
    assert not verdict.passed
    assert "in training" in verdict.differences[0]


def test_dinat_passes_with_the_line_that_its_card_tells(tiny, photos, tmp_path):
    train = {"batch_size": 8, "max_steps": 2, "bf16": False, "eval_strategy": "no", "save_strategy": "no"}
    recipe = {"task": "image-classification", "model": {"id": str(tiny("dinat"))}, "data": {"id": str(photos)}}
    run = finetune({**recipe, "train": train, "run_dir": str(tmp_path / "run")})
    verdict = verify(run.folder, str(photos))
    assert verdict.passed, verdict.differences
    assert verdict.evidence == 12
    assert "import cv_hf\n\ncv_hf.enable_dinat()\n" in (run.model / "README.md").read_text()
