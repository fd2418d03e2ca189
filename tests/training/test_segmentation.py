"""Segmentation end to end, on tiny models of each way of training: maps, masks, objects, prompts."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import transformers
from PIL import Image
from pycocotools.coco import COCO

from cv_hf import finetune
from cv_hf.cli import main
from cv_hf.tasks import get_task
from cv_hf.training import TrainSamples
from cv_hf.transforms import build_augment

SEMANTIC, INSTANCE = "semantic-segmentation", "instance-segmentation"
PANOPTIC, UNIVERSAL = "panoptic-segmentation", "universal-segmentation"


def png() -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (4, 4)).save(content, "PNG")
    return content.getvalue()


IMAGE = {"path": None, "bytes": png()}


def steps(log: list[dict], *names: str) -> list:
    return [tuple(line[name] for name in names) for line in log if names[0] in line]


@pytest.mark.parametrize(("task", "family"), [(SEMANTIC, "segformer_semantic"), (UNIVERSAL, "oneformer")])
def test_the_open_script_follows_finetune(task, family, segmentation_recipe, tmp_path):
    values = segmentation_recipe(task, family, train={"max_steps": -1, "num_train_epochs": 1})
    ours = finetune(values)
    values["run_dir"] = str(tmp_path / "open")
    file = tmp_path / "recipe.yaml"
    file.write_text(json.dumps(values))
    script = Path(__file__).parents[2] / "recipes" / "open_recipe.py"
    subprocess.run([sys.executable, str(script), str(file)], check=True, capture_output=True)
    lines = [json.loads(line) for line in (tmp_path / "open" / "log.jsonl").read_text().splitlines()]
    assert len(steps(ours.log, "loss")) == 3
    assert steps(lines, "loss", "grad_norm") == steps(ours.log, "loss", "grad_norm")
    assert json.loads((tmp_path / "open" / "metrics.json").read_text())["test"] == ours.metrics["test"]
    for name in ("cv_hf.json", "evidence.json"):
        assert json.loads((tmp_path / "open" / "model" / name).read_text()) == json.loads(
            (ours.model / name).read_text()
        )


def test_predictions_are_drawn_and_written_as_coco(segmentation_recipe, shapes, tmp_path, capsys):
    """The masks that are written are those that pipeline() shows, as COCO's own tools read them."""
    run = finetune(segmentation_recipe(INSTANCE, "mask2former", train={"eval_strategy": "no", "save_strategy": "no"}))
    assert main(["predict", str(run.folder), str(shapes / "images" / "test"), "--out", str(tmp_path / "out"),
                 "--threshold", "0.0"]) == 0  # fmt: skip
    assert "nothing found" not in capsys.readouterr().out
    pictures = sorted((tmp_path / "out").glob("*.png"))
    assert len(pictures) == 6
    assert max(Image.open(pictures[0]).size) >= 640
    coco = COCO(str(tmp_path / "out" / "coco.json"))
    arguments = json.loads((run.model / "cv_hf.json").read_text())["pipeline"] | {"threshold": 0.0}
    segment = transformers.pipeline("image-segmentation", model=str(run.model))
    for image in coco.loadImgs(coco.getImgIds()):
        found = coco.loadAnns(coco.getAnnIds(image["id"]))
        theirs = segment(image["file_name"], **arguments)
        assert len(found) == len(theirs) > 0
        for mine, other in zip(found, theirs, strict=True):
            assert np.array_equal(coco.annToMask(mine) > 0, np.asarray(other["mask"]) > 0)
            assert coco.cats[mine["category_id"]]["name"] == other["label"]
            assert mine["score"] == pytest.approx(other["score"], abs=1e-5)


def test_an_all_void_mask_and_a_mask_of_another_size_do_not_stop_a_run(segmentation_recipe, shapes, tmp_path):
    folder = tmp_path / "data"
    shutil.copytree(shapes, folder)
    shutil.rmtree(folder / "panoptic")
    for split in ("train", "test"):
        Image.new("L", (60, 60), 255).save(folder / "masks" / split / "0.png")
        Image.new("L", (20, 20)).save(folder / "masks" / split / "1.png")
    run = finetune(
        segmentation_recipe(SEMANTIC, "segformer_semantic", data={"id": str(folder)}, train={"max_steps": 3})
    )
    assert run.metrics["test"]["num_samples"] == 5
    assert run.metrics["findings"]["mask-size-mismatch"]["count"] == 2
    assert all(np.isfinite(loss) for (loss,) in steps(run.log, "loss"))


def test_each_sample_is_told_a_subtask_drawn_anew_every_epoch():
    """One of three with equal chance, by (seed, epoch, index) alone."""
    augment = build_augment([], None, 7, moved="mask")

    def draw(epoch: int, count: int = 300) -> list[str]:
        rows = [{"image": IMAGE, "file": "a", "mask": np.ones((4, 4), np.uint8)}] * count
        task = get_task(UNIVERSAL)
        samples = TrainSamples(rows, task.train_sample, augment, subtasks=task.subtasks)
        return [samples[epoch, index]["subtask"] for index in range(count)]

    first = draw(0)
    assert first == draw(0)
    assert first != draw(1)
    counts = Counter(first + draw(1))
    assert counts.keys() == {"semantic", "instance", "panoptic"}
    # Of 600 draws, within five standard deviations of 200.
    assert all(abs(count - 200) < 58 for count in counts.values())
