"""The support matrix: what is stored is what is found by running it, and each check notices what it is for."""

from __future__ import annotations

import datetime
import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers.models.auto import modeling_auto

from cv_hf import support
from cv_hf.cli import main
from cv_hf.training import Trainer
from tests.support import README, Row, Subject, measure, rows, with_matrix

# Each has a row that says yes. VGG and Inception are timm's.
NAMED = {
    "image-classification": (
        "timm_wrapper-vgg11",
        "timm_wrapper-inception_v3",
        "mobilenet_v1",
        "mobilenet_v2",
        "resnet",
        "convnext",
        "efficientnet",
        "vit",
        "deit",
        "swin",
        "swinv2",
        "cvt",
        "dinat",
        "mobilevit",
        "mobilevitv2",
        "levit",
    ),
    "object-detection": ("detr", "conditional_detr", "deformable_detr", "yolos", "rt_detr"),
    "semantic-segmentation": ("segformer", "upernet-swin", "maskformer", "mask2former", "oneformer"),
    "instance-segmentation": ("mask2former", "maskformer", "oneformer"),
    "panoptic-segmentation": ("maskformer", "mask2former", "oneformer"),
    "universal-segmentation": ("oneformer",),
}
NAMES = {f"{task}-{name}" for task, names in NAMED.items() for name in names}
# Measured anew in every run of the default tests; of the others, one in so many, each day others.
ALWAYS = (
    NAMES
    - {"image-classification-timm_wrapper-inception_v3"}
    - {
        f"{task}-segmentation-{name}"
        for task in ("semantic", "instance", "panoptic")
        for name in ("maskformer", "mask2former", "oneformer")
    }
)
ALWAYS |= {"instance-segmentation-mask2former", "panoptic-segmentation-maskformer"}
SHARE = 10
ROWS = {str(row): row for row in rows()}
STORED = {str(Row(row["task"], row["family"], row["variant"])): row for row in support.stored()["rows"]}


def chosen() -> list:
    """Every row; those that are not measured today are marked as slow."""
    today = datetime.datetime.now(datetime.timezone.utc).date().toordinal() % SHARE
    others = [name for name in ROWS if name not in ALWAYS]
    slow = {name for place, name in enumerate(others) if place % SHARE != today}
    return [pytest.param(row, id=name, marks=[pytest.mark.slow] * (name in slow)) for name, row in ROWS.items()]


@pytest.mark.parametrize("row", chosen())
def test_a_row_is_what_is_found(row):
    assert measure(row) == STORED[str(row)], f"python -m tests.support {row}"


def test_every_row_is_stored():
    assert ROWS.keys() <= STORED.keys()


def test_the_families_of_the_readme_say_yes():
    failing = {name: STORED[name]["checks"] for name in NAMES if not support.passes(STORED[name])}
    assert failing == {}


def test_the_readme_holds_the_matrix():
    text = README.read_text(encoding="utf-8")
    assert with_matrix(text) == text, "make matrix"


def test_a_new_family_appears_by_itself(monkeypatch, capsys):
    names = {**modeling_auto.MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES, "brand_new_detr": "BrandNewForObjectDetection"}
    monkeypatch.setattr(modeling_auto, "MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES", names)
    assert [row.made for row in rows() if row.family == "brand_new_detr"] == [None]
    assert measure(Row("object-detection", "brand_new_detr"))["checks"]["trains"] == support.UNTRIED
    assert main(["models"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "brand_new_detr" in line]
    assert line.split()[:3] == ["object-detection", "brand_new_detr", "no"]
    assert line.endswith(support.UNTRIED)


def test_the_command_prints_every_row_and_the_readmes_form(capsys):
    assert main(["models"]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split() == ["task", "family", *support.CHECKS]
    assert len(lines) == len(support.rows())
    (line,) = [line for line in lines if line.split()[:2] == ["image-classification", "vit"]]
    assert line.split()[2:] == ["yes"] * len(support.CHECKS)
    assert main(["models", "--markdown"]) == 0
    assert capsys.readouterr().out.strip() in README.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Subject:
    subject = Subject(ROWS["image-classification-vit"], tmp_path_factory.mktemp("subject"))
    subject.trains()
    return subject


@pytest.fixture
def subject(trained, tmp_path) -> Subject:
    """A trained one with a run of its own, to be spoilt."""
    copied = Subject(trained.row, tmp_path)
    copied.model, copied.runs = trained.model, trained.runs
    folder = Path(shutil.copytree(trained.run.folder, tmp_path / "run-1"))
    copied.values = {**trained.values, "run_dir": str(folder)}
    copied.run = type(trained.run)(folder, folder / "model", trained.run.metrics, trained.run.log)
    return copied


def test_a_run_that_forgets_its_optimizer_does_not_resume(subject, monkeypatch):
    monkeypatch.setattr(transformers.Trainer, "_load_optimizer_and_scheduler", lambda self, checkpoint: None)
    with pytest.raises(AssertionError, match="another way"):
        subject.resumes()


def test_a_tensor_of_another_name_does_not_reload(subject):
    file = subject.run.model / "model.safetensors"
    tensors = load_file(file)
    save_file({**tensors, "more": torch.zeros(1)}, file, {"format": "pt"})
    with pytest.raises(AssertionError, match="left over"):
        subject.reloads()


def test_another_processor_is_no_parity(subject):
    file = subject.run.model / "preprocessor_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "image_mean": [0.1, 0.1, 0.1]}))
    with pytest.raises(AssertionError, match="answers otherwise"):
        subject.pipeline()


def test_an_optimizer_that_does_nothing_teaches_nothing(subject, monkeypatch):
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self, closure=None: None)
    with pytest.raises(AssertionError, match="does not fall"):
        subject.learns()


def test_dropout_left_on_is_noticed(subject, monkeypatch):
    subject.reloads()
    monkeypatch.setattr(transformers.PreTrainedModel, "eval", lambda self: self)
    with pytest.raises(AssertionError, match="two evaluations differ"):
        subject.dropout()


def test_a_prediction_of_its_batch_is_noticed(subject):
    subject.reloads()

    def centred(module, inputs, output):
        output.logits = output.logits - output.logits.mean(0)

    subject.trained.model.register_forward_hook(centred)
    with pytest.raises(AssertionError, match="depends on its batch"):
        subject.alone()


def test_a_sum_in_place_of_a_mean_is_noticed(subject, monkeypatch):
    kept = Trainer.get_batch_samples

    def heavier(self, *arguments):
        batches, count = kept(self, *arguments)
        for batch in batches:
            batch["weight"] *= len(batches)
        return batches, count

    monkeypatch.setattr(Trainer, "get_batch_samples", heavier)
    with pytest.raises(AssertionError, match="another way"):
        subject.accumulates()


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ModuleNotFoundError("No module named 'natten'", name="natten"), "missing package: natten"),
        (ValueError("of this project"), "ours: of this project"),
    ],
)
def test_whose_fault_it_is(error, reason, monkeypatch):
    def broken(values):
        raise error

    monkeypatch.setattr("tests.support.finetune", broken)
    checks = measure(ROWS["image-classification-vit"])["checks"]
    assert checks.pop("trains") == reason
    assert set(checks.values()) == {"-"}
