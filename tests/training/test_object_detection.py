"""Object detection end to end, on tiny detectors of every family."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cv_hf import finetune
from cv_hf.errors import DataError
from cv_hf.inference import load_trained, predict, predict_files
from cv_hf.tasks import get_task
from cv_hf.training.samples import collate_train
from cv_hf.transforms import build_augment

TASK = get_task("object-detection")


def steps(log: list[dict], *names: str) -> list:
    return [tuple(line[name] for name in names) for line in log if names[0] in line]


@pytest.mark.parametrize("classes", [1, 2])
def test_few_classes(classes, detection_recipe, boxes, tmp_path):
    folder = tmp_path / "data"
    shutil.copytree(boxes, folder)
    for file in (folder / "annotations").iterdir():
        content = json.loads(file.read_text())
        kept = content["categories"][:classes]
        content["categories"] = kept
        content["annotations"] = [a for a in content["annotations"] if a["category_id"] in [c["id"] for c in kept]]
        file.write_text(json.dumps(content))
    for family in ("detr", "rt_detr", "deformable_detr"):
        values = detection_recipe(family, data={"id": str(folder)}, run_dir=str(tmp_path / family))
        run = finetune(values)
        answer = transformers.pipeline("object-detection", model=str(run.model))(
            str(folder / "test" / "0.png"), threshold=0.0
        )
        assert {one["label"] for one in answer} <= {"red", "blue"} if classes == 2 else {"red"}


@pytest.mark.parametrize("family", ["rt_detr", "detr"])
def test_the_open_script_follows_finetune(family, detection_recipe, tmp_path):
    values = detection_recipe(family, train={"max_steps": -1, "num_train_epochs": 1})
    ours = finetune(values)
    values["run_dir"] = str(tmp_path / "open")
    file = tmp_path / "recipe.yaml"
    file.write_text(json.dumps(values))
    script = Path(__file__).parents[2] / "recipes" / "open_recipe.py"
    subprocess.run([sys.executable, str(script), str(file)], check=True, capture_output=True)
    lines = [json.loads(line) for line in (tmp_path / "open" / "log.jsonl").read_text().splitlines()]
    assert len(steps(ours.log, "loss")) == 4
    assert steps(lines, "loss", "grad_norm") == steps(ours.log, "loss", "grad_norm")
    assert json.loads((tmp_path / "open" / "metrics.json").read_text())["test"] == ours.metrics["test"]
    for name in ("cv_hf.json", "evidence.json"):
        assert json.loads((tmp_path / "open" / "model" / name).read_text()) == json.loads(
            (ours.model / name).read_text()
        )


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), count=st.integers(0, 6))
def test_everything_about_a_box_moves_as_one(seed, count):
    """Each box is a patch of a grey level of its own, which names it: found again by its pixels after augmentation."""
    rng = np.random.default_rng(seed)
    image = np.zeros((120, 160, 3), np.uint8)
    bbox = []
    for index in range(count):
        x, y = 4 + 50 * (index % 3), 4 + 60 * (index // 3)
        w, h = rng.integers(10, 40, 2).tolist()
        bbox.append([x, y, w, h])
        image[y : y + h, x : x + w] = 40 * (index + 1)
    objects = {
        "bbox": bbox,
        "category": [7 * index for index in range(count)],
        "area": [100.0 * (index + 1) * w * h for index, (_, _, w, h) in enumerate(bbox)],
        "iscrowd": [index % 2 == 1 for index in range(count)],
    }
    names = [{"HorizontalFlip": {}}, {"VerticalFlip": {}}, {"RandomCrop": {"height": 70, "width": 90}}]
    augment = build_augment([*names, {"RandomRotate90": {}}], None, seed, moved="bboxes")
    augment.size = None
    sample = TASK.train_sample(image, {"objects": objects}, lambda image, **t: augment((0, seed), image, **t))
    height, width = sample["image"].shape[:2]
    lengths = {len(sample[name]) for name in ("boxes", "classes", "area", "iscrowd")}
    assert len(lengths) == 1
    seen = set()
    for box, label, area, crowd in zip(
        sample["boxes"], sample["classes"], sample["area"], sample["iscrowd"], strict=True
    ):
        index = int(label) // 7
        seen.add(index)
        rows, columns = np.nonzero(sample["image"][..., 0] == 40 * (index + 1))
        left, top, right, bottom = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
        expected = [(left + right) / 2 / width, (top + bottom) / 2 / height]
        expected += [(right - left) / width, (bottom - top) / height]
        np.testing.assert_allclose(box, expected, atol=1e-5)
        assert crowd == (index % 2 == 1)
        assert area == pytest.approx(100 * (index + 1) * (right - left) * (bottom - top), rel=1e-4)
    for index in set(range(count)) - seen:
        left_over = (sample["image"][..., 0] == 40 * (index + 1)).sum()
        assert left_over < 0.11 * bbox[index][2] * bbox[index][3]


def _sample(height: int, width: int, box: list[float]) -> dict:
    image = np.full((height, width, 3), 200, np.uint8)
    values = {"boxes": np.array([box], np.float32), "classes": np.array([1]), "iscrowd": np.array([False])}
    return {"image": image, "file": "a", "findings": [], **values}


def test_padded_batches_are_masked_or_their_boxes_are_relative_to_the_padding():
    samples = [_sample(40, 80, [0.5, 0.5, 0.5, 0.25]), _sample(60, 50, [0.5, 0.5, 1.0, 1.0])]
    masked = collate_train(samples, targets=TASK.targets, labels=None, masked=True)
    assert masked["pixel_values"].shape == (2, 3, 60, 80)
    assert masked["pixel_mask"].sum(dim=(1, 2)).tolist() == [40 * 80, 60 * 50]
    assert (masked["pixel_values"] * (1 - masked["pixel_mask"][:, None])).sum() == 0
    assert masked["labels"][0]["boxes"].tolist() == [[0.5, 0.5, 0.5, 0.25]]
    plain = collate_train(samples, targets=TASK.targets, labels=None, masked=False)
    for index, (height, width) in enumerate([(40, 80), (60, 50)]):
        ratio = torch.tensor([width / 80, height / 60, width / 80, height / 60])
        torch.testing.assert_close(plain["labels"][index]["boxes"], masked["labels"][index]["boxes"] * ratio)


@pytest.mark.parametrize("family", ["detr", "yolos"])
def test_what_a_model_is_given_in_training(family, detection_recipe, monkeypatch):
    """Zeros where a batch is padded, as processors pad; a mask of it for models that take one; sizes that vary."""
    from cv_hf.training import Trainer

    seen = []
    kept = Trainer.compute_loss

    def watched(self, model, inputs, *arguments, **more):
        seen.append({name: value for name, value in inputs.items() if name != "labels"})
        return kept(self, model, inputs, *arguments, **more)

    monkeypatch.setattr(Trainer, "compute_loss", watched)
    train = {"max_steps": 4, "multi_scale": None, "eval_strategy": "no", "save_strategy": "no"}
    augment = [{"HorizontalFlip": {"p": 0.5}}]
    finetune(detection_recipe(family, train=train, augment=augment))
    assert len(seen) == 5  # the preflight's trial and four steps
    for inputs in seen:
        assert ("pixel_mask" in inputs) == (family == "detr")
        if family == "detr":
            # Every photo is noise, so no pixel of it is exactly the mean of all.
            shown = inputs["pixel_values"].abs().sum(dim=1) > 0
            assert torch.equal(shown, inputs["pixel_mask"].bool())
            assert not shown.all()
    seen.clear()
    scaled = detection_recipe(family, train={**train, "multi_scale": [0.5, 2.0]}, augment=augment)
    finetune({**scaled, "run_dir": scaled["run_dir"] + "2"})
    sizes = {tuple(inputs["pixel_values"].shape[2:]) for inputs in seen}
    assert len(sizes) > 1
    assert all(edge % 32 == 0 for size in sizes for edge in size)
    if family == "detr":
        assert all(inputs["pixel_mask"].shape == inputs["pixel_values"][:, 0].shape for inputs in seen)


@pytest.mark.parametrize("family", ["detr", "deformable_detr", "yolos"])
def test_predictions_do_not_depend_on_the_batch(family, tiny, tmp_path):
    from dataclasses import replace

    rng = np.random.default_rng(0)
    for number, (height, width) in enumerate([(60, 60), (48, 96), (96, 48), (64, 80), (150, 50)] * 2):
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(tmp_path / f"{number}.png")
    from cv_hf.inference import images_dataset

    dataset = images_dataset([tmp_path])
    trained = replace(load_trained(tiny(family), "object-detection"), arguments={"threshold": 0.0})
    answers = {size: [answer for _, answer, _ in predict(trained, dataset, batch_size=size)] for size in (1, 8)}
    for one, eight, row in zip(answers[1], answers[8], predict(trained, dataset), strict=True):
        assert TASK.compare(one, eight, row[0]["size"], {"threshold": 0.0}) == (0.0, "")


def test_label_ids_survive_to_coco(detection_recipe, boxes, tmp_path):
    run = finetune(detection_recipe("rt_detr"))
    from dataclasses import replace

    trained = replace(load_trained(run.model), arguments={"threshold": 0.0})
    answers = predict_files(trained, [boxes / "test"], tmp_path / "out")
    coco = json.loads((tmp_path / "out" / "coco.json").read_text())
    assert coco["categories"] == [{"id": 3, "name": "red"}, {"id": 11, "name": "blue"}]
    assert {one["category_id"] for one in coco["annotations"]} <= {3, 11}
    names = {3: "red", 11: "blue"}
    files = {image["id"]: image["file_name"] for image in coco["images"]}
    flat = [(file, one) for file, answer in answers.items() for one in answer["prediction"]]
    assert len(flat) == len(coco["annotations"])
    for (file, one), annotation in zip(flat, coco["annotations"], strict=True):
        assert (file, one["label"]) == (files[annotation["image_id"]], names[annotation["category_id"]])
        x, y, w, h = annotation["bbox"]
        assert [x, y, x + w, y + h] == pytest.approx(list(one["box"].values()))
    assert len(list((tmp_path / "out").glob("*.png"))) == 8


def test_a_loss_that_is_not_finite_names_the_files(detection_recipe, monkeypatch):
    from cv_hf.training import Trainer

    kept = Trainer.compute_loss

    def broken(self, model, inputs, *arguments, **more):
        if self.state.global_step == 1:
            inputs["pixel_values"] = inputs["pixel_values"] * float("nan")
        return kept(self, model, inputs, *arguments, **more)

    monkeypatch.setattr(Trainer, "compute_loss", broken)
    with pytest.raises(DataError, match=r"not finite at step 2, on .*\d+\.png") as raised:
        finetune(detection_recipe("yolos"))
    assert len(str(raised.value).splitlines()) <= 2


def test_bad_boxes_and_bad_photos_lose_themselves_only(detection_recipe, boxes, tmp_path):
    folder = tmp_path / "data"
    shutil.copytree(boxes, folder)
    file = folder / "annotations" / "instances_train.json"
    content = json.loads(file.read_text())
    good = len(content["annotations"])
    bad = {"zero-area": [5, 5, 0, 9], "inverted": [30, 30, -9, -9], "outside": [500, 500, 9, 9]}
    for bbox in bad.values():
        content["annotations"].append({"id": 10_000 + len(content["annotations"]), "image_id": 10, "bbox": bbox,
                                       "category_id": 3, "area": 81, "iscrowd": 0})  # fmt: skip
    file.write_text(json.dumps(content))
    (folder / "train" / "5.png").write_bytes(b"no image")
    lost = sum(a["image_id"] == 15 for a in content["annotations"])
    from cv_hf.config import DataConfig
    from cv_hf.data import load_splits

    splits = load_splits(DataConfig(id=str(folder)), TASK, seed=0)
    assert len(splits.train) == 15
    assert sum(len(row["bbox"]) for row in splits.train["objects"]) == good - lost
    assert sum(not row["bbox"] for row in splits.train["objects"]) == 4  # empty images stay
    for name in bad:
        assert splits.findings.count(f"box-{name}") == 1
    assert splits.findings.count("unreadable-image") == 1
    run = finetune(detection_recipe("rt_detr", data={"id": str(folder)}))
    assert set(run.metrics["findings"]) >= {"box-zero-area", "box-inverted", "box-outside", "unreadable-image"}
    assert run.metrics["test"]["num_samples"] == 8


def test_the_published_score_is_that_of_pycocotools(detection_recipe, boxes):
    """From the predictions of the saved model, by the reference on the source's own annotation file."""
    import contextlib
    import io
    from dataclasses import replace

    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    train = {"max_steps": 150, "learning_rate": 3e-3, "eval_strategy": "no", "save_strategy": "no", "multi_scale": None}
    run = finetune(detection_recipe("rt_detr", train=train))
    assert run.metrics["test"]["map"] > 0  # or what follows would compare nothing
    trained = replace(load_trained(run.model), arguments={"threshold": 0.0})
    answers = predict_files(trained, [boxes / "test"])
    results = []
    for file, answer in answers.items():
        for one in answer["prediction"]:
            left, top, right, bottom = one["box"].values()
            results.append({"image_id": 10 + int(Path(file).stem), "category_id": {"red": 3, "blue": 11}[one["label"]],
                            "bbox": [left, top, right - left, bottom - top], "score": one["score"]})  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(boxes / "annotations" / "instances_test.json"))
        reference = COCOeval(truth, truth.loadRes(results), "bbox")
        reference.evaluate()
        reference.accumulate()
        reference.summarize()
    notes = json.loads((run.model / "cv_hf.json").read_text())
    validation = run.metrics["validation"]
    assert notes["pipeline"] == {"threshold": validation["threshold"]}
    assert notes["thresholds"] == {name: validation["per_class"][name]["threshold"] for name in ("red", "blue")}
    card = (run.model / "README.md").read_text()
    assert f"threshold={validation['threshold']!r})" in card
    assert "| class | map | map\\_50 | mar\\_100 | objects |" in card
    names = ("map", "map_50", "map_75", "map_small", "map_medium", "map_large", "mar_1", "mar_10", "mar_100")
    for name, value in zip(names, reference.stats, strict=False):
        measured = run.metrics["test"][name]
        assert (-1 if measured is None else measured) == pytest.approx(value, abs=1e-6), name


def _one(label: str, score: float, *box: float) -> dict:
    return {"label": label, "score": score, "box": dict(zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))}


@pytest.mark.parametrize(
    ("ours", "theirs", "threshold", "agree"),
    [
        ([], [], 0.5, True),
        ([_one("a", 0.9, 1, 2, 30, 40)], [_one("a", 0.90005, 1.05, 2, 30, 40)], 0.5, True),
        ([_one("a", 0.9, 1.6, 2.2, 30.9, 40.1)], [_one("a", 0.9, 1, 2, 30, 40)], 0.5, True),
        ([_one("a", 0.9, 1, 2, 30, 40)], [_one("a", 0.9, 51, 2, 80, 40)], 0.5, False),
        ([_one("a", 0.9, 1, 2, 30, 40)], [_one("b", 0.9, 1, 2, 30, 40)], 0.5, False),
        ([_one("a", 0.9, 1, 2, 30, 40)], [_one("a", 0.8, 1, 2, 30, 40)], 0.5, False),
        ([_one("a", 0.9, 1, 2, 3, 4), _one("a", 0.7, 5, 5, 9, 9)], [_one("a", 0.9, 1, 2, 3, 4)], 0.3, False),
        ([_one("a", 0.30005, 1, 2, 3, 4)], [], 0.3, True),
        ([_one("a", 0.4, 1, 2, 3, 4)], [], 0.3, False),
        # The nearest is not the same one: 10.99 is cut to 10, 11.3 to 11.
        (
            [_one("a", 0.9, 10.99, 0, 50, 50), _one("a", 0.9, 11.3, 0, 50, 50)],
            [_one("a", 0.9, 11, 0, 50, 50), _one("a", 0.9, 10, 0, 50, 50)],
            0.5,
            True,
        ),
    ],
)
def test_answers_are_compared(ours, theirs, threshold, agree):
    difference, words = TASK.compare(ours, theirs, (100, 100), {"threshold": threshold})
    assert (difference == 0) == agree, words


@pytest.mark.parametrize("size", [(640, 480), (1, 700), (700, 1), (3, 3), (4000, 30)])
def test_any_box_can_be_drawn(size):
    from cv_hf.transforms import draw_boxes

    boxes = [[10, 10, 11, 20], [-5, -5, 9000, 9000], [0, 0, 0.2, 0.2], [639, 479, 640, 480], [50, 50, 20, 20]]
    names = ["a" * 300, "", "b\nc", "\u202ed", "e 0.5"]
    picture = draw_boxes(Image.new("RGB", size), boxes, names, ["#aa00aa"] * 5, truth=boxes)
    assert max(picture.size) >= 640


def test_the_resizer_can_be_sent_to_workers(tiny):
    import pickle

    from cv_hf.models import resizer

    resize = pickle.loads(pickle.dumps(resizer(transformers.AutoImageProcessor.from_pretrained(tiny("detr")))))
    assert resize(np.zeros((40, 80, 3), np.uint8)).shape == (48, 96, 3)


@pytest.mark.parametrize("family", ["detr", "yolos"])
def test_a_strip_of_which_the_processor_leaves_nothing_is_counted_and_passed_over(
    family, detection_recipe, boxes, tmp_path
):
    """Of 4000x1 pixels a processor that keeps the aspect ratio makes an image without height."""
    data = shutil.copytree(boxes, tmp_path / "boxes")
    for split in ("train", "val", "test"):
        file = data / "annotations" / f"instances_{split}.json"
        content = json.loads(file.read_text())
        Image.new("RGB", (4000, 1)).save(data / split / "strip.png")
        content["images"].append({"id": 999, "file_name": "strip.png", "width": 4000, "height": 1})
        strip = {"id": 999, "image_id": 999, "category_id": 3, "bbox": [10, 0, 300, 1], "area": 300, "iscrowd": 0}
        content["annotations"].append(strip)
        file.write_text(json.dumps(content))
    train = {"max_steps": -1, "num_train_epochs": 1}
    run = finetune(detection_recipe(family, data={"id": str(data)}, train=train, augment=[]))
    assert run.metrics["test"]["num_samples"] == 8
    found = run.metrics["findings"]["unreadable-image"]
    assert sorted(found["files"]) == ["test/strip.png", "train/strip.png", "val/strip.png"]
