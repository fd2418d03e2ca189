"""The road with every turn that the classification recipe has, on tiny models."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import PreTrainedModel, pipeline

from cv_hf.errors import DataError, RecipeError
from cv_hf.finetuning import finetune
from cv_hf.inference import load_trained, predict_files


@pytest.fixture
def copied(photos, tmp_path):
    """A copy of `photos` that a test may damage."""
    return shutil.copytree(photos, tmp_path / "photos")


def test_it_learns_and_pipeline_says_the_same(recipe, photos):
    train = {"max_steps": 25, "learning_rate": 3e-3, "eval_strategy": "steps", "eval_steps": 25}
    train |= {"save_strategy": "steps", "save_steps": 25}
    run = finetune(recipe("resnet", train=train))
    assert run.metrics["test"]["accuracy"] == 1.0
    files = sorted(str(path) for path in (photos / "test").rglob("*.png"))
    ours = predict_files(load_trained(run.folder), files)
    theirs = pipeline("image-classification", model=str(run.model))(files)
    for file, answer in zip(files, theirs, strict=True):
        assert [a["label"] for a in answer] == [a["label"] for a in ours[file]["prediction"]]
        assert [a["score"] for a in answer] == pytest.approx([a["score"] for a in ours[file]["prediction"]], abs=1e-6)
        assert file.split("/")[-2] == answer[0]["label"]


def test_the_run_directory_is_whole(recipe):
    run = finetune(recipe())
    names = {str(path.relative_to(run.folder)) for path in run.folder.rglob("*") if path.is_file()}
    expected = {"recipe.yaml", "metrics.json", "log.jsonl", "predictions/sheet.png"}
    expected |= {f"model/{name}" for name in ("config.json", "model.safetensors", "preprocessor_config.json")}
    expected |= {"model/README.md", "model/cv_hf.json", "model/evidence.json"}
    assert expected <= names
    assert not [name for name in names if name.startswith("model/") and name not in expected]
    assert json.loads((run.folder / "metrics.json").read_text()) == run.metrics
    assert run.metrics["train"]["samples_per_second"] > 0
    with Image.open(run.folder / "predictions" / "sheet.png") as sheet:
        assert min(sheet.size) > 200


def test_damaged_photos_are_passed_over_counted_and_named(recipe, copied):
    (copied / "train" / "red" / "0.png").write_bytes(b"")
    whole = (copied / "train" / "green" / "1.png").read_bytes()
    (copied / "train" / "green" / "1.png").write_bytes(whole[: len(whole) // 2])
    (copied / "test" / "blue" / "2.png").write_bytes(b"not an image")
    (copied / "train" / "red" / "1.png").rename(copied / "train" / "red" / "wrong.jpg")
    run = finetune(recipe(data={"id": str(copied)}))
    found = {code: entry["files"] for code, entry in run.metrics["findings"].items() if entry["effect"] == "dropped"}
    assert found == {
        "empty-image": ["train/red/0.png"],
        "truncated-image": ["train/green/1.png"],
        "unreadable-image": ["test/blue/2.png"],
    }
    assert run.metrics["findings"]["suffix-mismatch"]["files"] == ["train/red/wrong.jpg"]
    assert run.metrics["test"]["num_samples"] == 11
    with pytest.raises(DataError, match=r"train/(red/0|green/1)\.png") as error:
        finetune(recipe(data={"id": str(copied), "on_bad_sample": "stop"}, run_dir=str(run.folder) + "-2"))
    assert len(str(error.value).splitlines()) <= 2


def test_a_photo_that_only_decoding_finds_broken_is_replaced_in_its_batch(recipe, copied, capsys):
    """Its header and its end are right; its middle is not."""
    file = copied / "train" / "red" / "3.png"
    content = bytearray(file.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 200] = bytes(200)
    file.write_bytes(content)
    with pytest.raises(OSError, match=r"."), Image.open(file) as image:
        image.load()
    run = finetune(recipe(data={"id": str(copied)}, train={"dataloader_num_workers": 2}))
    assert run.metrics["findings"]["unreadable-image"]["files"] == ["train/red/3.png"]
    assert capsys.readouterr().out.count("train/red/3.png: ") == 1
    stop = recipe(data={"id": str(copied), "on_bad_sample": "stop"}, train={"dataloader_num_workers": 2})
    with pytest.raises(DataError, match=r"train/red/3\.png"):
        finetune(stop | {"run_dir": str(run.folder) + "-2"})


@pytest.fixture
def multi_label(photos):
    """A JSONL table beside the photos: every image has one or two labels, some none."""
    for split in ("train", "validation", "test"):
        rows = []
        for number, file in enumerate(sorted((photos / split).rglob("*.png"))):
            labels = [[file.parent.name], [file.parent.name, "odd"], []][number % 3]
            rows.append({"file_name": str(file.relative_to(photos)), "labels": labels})
        (photos / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    yield photos
    for split in ("train", "validation", "test"):
        (photos / f"{split}.jsonl").unlink()


def test_multi_label_from_a_table(recipe, multi_label):
    run = finetune(recipe("vit", data={"id": str(multi_label), "format": "parquet"}))
    assert set(run.metrics["test"]) >= {"map", "f1_macro", "f1_micro", "per_class", "loss"}
    answers = pipeline("image-classification", model=str(run.model), top_k=4)(
        str(next((multi_label / "test").rglob("*.png")))
    )
    assert {answer["label"] for answer in answers} == {"red", "green", "blue", "odd"}
    assert sum(answer["score"] for answer in answers) != pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("classes", [1, 2])
def test_one_and_two_classes(recipe, copied, classes):
    for split in ("train", "validation", "test"):
        for name in ("green", "blue")[classes - 1 :]:
            shutil.rmtree(copied / split / name)
    run = finetune(recipe("vit", data={"id": str(copied)}))
    assert len(run.metrics["test"]["per_class"]) == classes
    answer = pipeline("image-classification", model=str(run.model))(str(copied / "test" / "red" / "0.png"))
    assert len(answer) == classes
    assert all(0 < each["score"] < 1 for each in answer)


def test_a_frozen_backbone_does_not_move_and_the_head_does(recipe, tiny):
    """Batch norm's running statistics, which need no gradient, among what must not move."""
    run = finetune(recipe("resnet", model={"freeze": "backbone"}))
    before, after = load_file(tiny("resnet") / "model.safetensors"), load_file(run.model / "model.safetensors")
    moved = {name for name in after if name not in before or not torch.equal(before[name], after[name])}
    assert moved
    assert all(name.startswith("classifier") for name in moved), moved
    assert any("running_mean" in name for name in after)


def test_the_backbone_learns_at_its_own_rate(recipe, tiny):
    """At a rate of nearly nothing it stays where it was, while the head moves."""
    run = finetune(recipe("vit", train={"backbone_lr": 1e-12, "weight_decay": 0.0}))
    before, after = load_file(tiny("vit") / "model.safetensors"), load_file(run.model / "model.safetensors")
    for name in before:
        if not name.startswith("classifier"):
            torch.testing.assert_close(after[name], before[name], rtol=0, atol=1e-8)
    rates = [line["learning_rate"] for line in run.log if "learning_rate" in line]
    assert max(rates) > 1e-4


def test_no_floating_point_operations_are_made_up(recipe, monkeypatch):
    """Transformers counts those of text, by a walk over all modules in each step."""
    walks = []
    parameters = PreTrainedModel.num_parameters
    monkeypatch.setattr(
        PreTrainedModel, "num_parameters", lambda model, **which: walks.append(which) or parameters(model)
    )
    run = finetune(recipe("vit"))
    assert walks == []
    lines = [json.loads(line) for line in (run.folder / "log.jsonl").read_text().splitlines()]
    assert "train_loss" in lines[-1]
    assert not [line for line in [*lines, *run.log] if "total_flos" in line]
    states = [json.loads(file.read_text()) for file in run.folder.glob("checkpoints/*/trainer_state.json")]
    assert [state["total_flos"] for state in states] == [0]


def test_early_stopping_stops(recipe):
    train = {"max_steps": -1, "num_train_epochs": 30, "learning_rate": 1e-12, "early_stopping": 2}
    run = finetune(recipe("vit", train=train, eval={"metric": "accuracy"}))
    assert run.metrics["train"]["steps"] == 3 * 3  # the first evaluation is the best; two more do not improve on it


def test_held_out_shares_and_samples_per_class(recipe, copied):
    shutil.rmtree(copied / "validation")
    shutil.rmtree(copied / "test")
    run = finetune(recipe("vit", data={"id": str(copied), "splits": {"validation": 0.25, "test": 2}}))
    assert run.metrics["test"]["num_samples"] == 6
    assert [each["support"] for each in run.metrics["test"]["per_class"].values()] == [2, 2, 2]
    assert run.metrics["validation"]["num_samples"] in (4, 5, 6)


def test_mixed_precision_is_scored_as_pipeline_computes(recipe, photos):
    run = finetune(recipe("vit", train={"bf16": True}))
    config = json.loads((run.model / "config.json").read_text())
    assert config.get("dtype") in ("float32", None)
    logits = []
    trained = load_trained(run.folder)
    files = sorted((photos / "test").rglob("*.png"))
    for file in files:
        with Image.open(file) as image, torch.no_grad():
            inputs = trained.processor(images=image.convert("RGB"), return_tensors="pt")
            logits.append(trained.model(**inputs).logits[0])
    labels = torch.tensor([("blue", "green", "red").index(file.parent.name) for file in files])
    loss = torch.nn.functional.cross_entropy(torch.stack(logits), labels)
    assert run.metrics["test"]["loss"] == pytest.approx(loss.item(), rel=1e-6)


def test_label_smoothing_and_other_arguments_reach_the_trainer(recipe):
    plain = finetune(recipe("vit", train={"max_steps": 1}))
    smooth = finetune(recipe("vit", train={"max_steps": 1, "label_smoothing_factor": 0.9}, run_dir=f"{plain.folder}-2"))
    assert plain.log[0]["loss"] != pytest.approx(smooth.log[0]["loss"], rel=1e-4)


def test_a_processor_without_a_pixel_map_runs_whole(recipe):
    """ImageGPT's processor makes colour clusters of the pixels, which no scale and offset can."""
    run = finetune(recipe("imagegpt"))
    assert np.isfinite(run.metrics["test"]["loss"])


@pytest.mark.parametrize(
    ("sections", "says"),
    [
        ({"train": {"batch_size": 9, "gradient_accumulation_steps": 2}}, "batch_size 9 cannot be shared"),
        ({"eval": {"metric": "acuracy"}}, "Did you mean 'accuracy'"),
        ({"train": {"early_stopping": 2, "eval_strategy": "no"}}, "early_stopping needs evaluations"),
        ({"train": {"eval_strategy": "steps", "eval_steps": 3, "save_steps": 2, "save_strategy": "steps"}}, "train:"),
        ({"train": {"eval_strategy": "steps"}}, "train: eval_strategy is steps, but save_strategy epoch"),
        ({"train": {"label_smoothing_factor": 1}}, "should be below 1"),
        ({"train": {"dataloader_drop_last": True, "batch_size": 25}}, "leaves out all 24 training samples"),
        ({"train": {"use_liger_kernel": True}}, "train: .*liger-kernel"),
        ({"train": {"optim": "no-such-optimizer"}}, "train.optim: there is no"),
        ({"train": {"bf16": True, "fp16": True}}, "train:"),
        ({"train": {"ema": 0.99, "fsdp": "full_shard"}}, "train.ema"),
        ({"train": {"gradient_accumulation_steps": 0}}, "should be at least 1"),
        ({"train": {"dataloader_num_workers": -1}}, "should be at least 0"),
        ({"train": {"seed": -1}}, "should be at least 0"),
        ({"train": {"optim": "adamw_bnb_8bit"}}, "train: "),
        ({"train": {"report_to": "wandb"}}, "train: "),
        ({"train": {"lr_scheduler_type": "cosine_with_min_lr"}}, "train: "),
        ({"model": {"freeze": "backbone"}, "train": {"backbone_lr": 1e-5}}, "the backbone is frozen"),
    ],
)
def test_contradictions_are_refused_before_training(recipe, sections, says):
    with pytest.raises(RecipeError, match=says) as error:
        finetune(recipe("vit", **sections))
    assert len(str(error.value).splitlines()) <= 2


def test_a_run_is_not_overwritten(recipe):
    finetune(
        recipe("vit", train={"save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps", "eval_steps": 2})
    )
    with pytest.raises(RecipeError, match="holds a run already"):
        finetune(recipe("vit"))


def test_a_loss_that_is_not_finite_stops_the_run(recipe):
    with pytest.raises(DataError, match="not finite at step"):
        finetune(recipe("vit", train={"learning_rate": 1e30, "max_grad_norm": 0.0, "max_steps": 20, "warmup_steps": 0}))


def test_inception_through_timm(recipe, tmp_path):
    """GoogLeNet's line, which Transformers lacks: the real architecture, since timm has no smaller one."""
    import timm

    model = timm.create_model("inception_v3", num_classes=5)
    timm.models.save_for_hf(model, tmp_path / "inception", safe_serialization=True)
    run = finetune(recipe("vit", model={"id": str(tmp_path / "inception"), "image_size": 96}, train={"max_steps": 1}))
    answer = pipeline("image-classification", model=str(run.model))(Image.new("RGB", (50, 80), "red"))
    assert {each["label"] for each in answer} == {"red", "green", "blue"}


def test_images_of_two_sizes_cannot_share_a_batch(recipe, tiny, tmp_path):
    """A processor that keeps the aspect ratio, and no augmentation that sets the size."""
    model = shutil.copytree(tiny("resnet"), tmp_path / "model")
    processor = json.loads((model / "preprocessor_config.json").read_text())
    processor |= {"image_processor_type": "ViTImageProcessor", "size": {"shortest_edge": 32}, "do_center_crop": False}
    (model / "preprocessor_config.json").write_text(json.dumps(processor))
    values = recipe("resnet", model={"id": str(model)}, augment=["HorizontalFlip"])
    with pytest.raises(RecipeError, match="keeps the aspect ratio"):
        finetune(values)
    assert np.isfinite(finetune(recipe("resnet", model={"id": str(model)})).metrics["test"]["loss"])


def test_a_model_of_others_with_two_classes_of_one_name_predicts(tiny, tmp_path, photos):
    """ImageNet has two cranes."""
    model = shutil.copytree(tiny("vit"), tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    names = ["crane", "dog", "crane", "cat", "cow"]
    config |= {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
    (model / "config.json").write_text(json.dumps(config))
    trained = load_trained(model, "image-classification")
    file = str(next((photos / "test").rglob("*.png")))
    labels = [each["label"] for each in predict_files(trained, [file])[file]["prediction"]]
    assert sorted(labels) == sorted(names)
    assert trained.labels.names == ("crane", "dog", "crane (2)", "cat", "cow")


def test_an_augmentation_that_fails_on_one_photo_names_it(recipe, copied):
    """Even from a loader worker, whose exceptions arrive as tracebacks."""
    Image.new("RGB", (8, 8)).save(copied / "train" / "red" / "0.png")
    values = recipe(data={"id": str(copied)}, augment=["RandomCrop"], train={"dataloader_num_workers": 1})
    with pytest.raises(RecipeError, match=r"train/red/0\.png: augment: fails on an image of 8x8") as error:
        finetune(values)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("scores", "saved_every", "best"),
    [
        ([(0.5, 3), (0.5, 1), (0.5, 2), (0.4, 0)], 1, 2),  # of equals the lower loss
        ([(0.5, None), (0.5, None), (0.4, None), (0.4, None)], 1, 2),  # else the later
        ([(0.0, 2.0)] * 4, 1, 4),
        ([(0.9, 1), (0.5, 1), (0.8, 1), (0.4, 1)], 2, 2),  # of the first and the third no checkpoint is saved
        ([(0.5, 1), (0.9, 5), (0.8, 1), (0.4, 0)], 1, 2),
    ],
)
def test_the_best_of_the_saved_checkpoints_is_published(recipe, monkeypatch, scores, saved_every, best):
    said = iter(scores)

    def evaluate(*_, **__):
        accuracy, loss = next(said)
        return {"accuracy": accuracy} if loss is None else {"accuracy": accuracy, "loss": loss}

    monkeypatch.setattr("cv_hf.finetuning.evaluate", evaluate)
    train = {"max_steps": 4, "eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps"}
    run = finetune(recipe("vit", train={**train, "save_steps": saved_every}))
    assert run.metrics["train"]["best_step"] == best
    saved = load_file(run.folder / "checkpoints" / f"checkpoint-{best}" / "model.safetensors")
    published = load_file(run.model / "model.safetensors")
    assert saved.keys() == published.keys()
    assert all(torch.equal(tensor, published[name]) for name, tensor in saved.items())


@pytest.mark.parametrize("task", ["several labels", "boxes", "segmentation"])
def test_label_smoothing_is_refused_where_there_is_nothing_to_smooth(
    task, recipe, detection_recipe, segmentation_recipe, copied
):
    train = {"label_smoothing_factor": 0.1}
    if task == "boxes":
        values = detection_recipe(train=train)
    elif task == "segmentation":
        values = segmentation_recipe("semantic-segmentation", "segformer_semantic", train=train)
    else:
        files = sorted(copied.rglob("*.png"))
        lines = [json.dumps({"image": str(file.relative_to(copied)), "labels": [file.parent.name]}) for file in files]
        (copied / "several.jsonl").write_text("\n".join(lines))
        values = recipe(data={"id": str(copied / "several.jsonl")}, train=train)
    with pytest.raises(RecipeError, match="label_smoothing_factor is for classifiers with one label per image"):
        finetune(values)
