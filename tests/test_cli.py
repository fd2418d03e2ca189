"""The door: every command, what it leaves behind, and what it says when the input is wrong."""

from __future__ import annotations

import contextlib
import csv
import errno
import io
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import datasets
import huggingface_hub
import PIL.Image
import pytest
import transformers
import yaml

from cv_hf import finetune, recipes
from cv_hf.cli import main
from cv_hf.config import DataConfig
from cv_hf.data import load
from cv_hf.inference import load_trained, trained_on
from cv_hf.training.lock import locked
from tests.made import write_photos


@dataclass(frozen=True)
class Answer:
    """What a command answered: its exit code and its two streams."""

    code: int
    out: str
    err: str


def cv_hf(*argv: str | Path) -> Answer:
    """Run a command in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([str(word) for word in argv])
    return Answer(code, out.getvalue(), err.getvalue())


def refused(code: int, *argv: str | Path) -> str:
    """Run a command that must fail with this code and at most two lines; return them."""
    answer = cv_hf(*argv)
    assert answer.code == code, answer
    assert answer.err.startswith("cv-hf: ")
    assert 1 <= len(answer.err.splitlines()) <= 2, answer.err
    assert "Traceback" not in answer.err + answer.out
    return answer.err


@pytest.fixture(autouse=True, scope="module")
def _as_they_were() -> Iterator[None]:
    """A command quiets the libraries for its process; the tests after these share the process."""
    terminate = signal.getsignal(signal.SIGTERM)
    loggers = (transformers.utils.logging, huggingface_hub.utils.logging)
    verbosities = [logger.get_verbosity() for logger in loggers]
    yield
    signal.signal(signal.SIGTERM, terminate)
    for logger, verbosity in zip(loggers, verbosities, strict=True):
        logger.set_verbosity(verbosity)
    transformers.utils.logging.enable_progress_bar()
    datasets.enable_progress_bars()
    huggingface_hub.utils.enable_progress_bars()


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("work")


@pytest.fixture(scope="module")
def starter(work: Path, photos: Path, tiny: Callable[..., Path]) -> Path:
    """The recipe that `init` writes for `photos`."""
    file = work / "starter.yaml"
    answer = cv_hf("init", photos, "--out", file, "--model", tiny("vit"))
    assert answer.code == 0, answer.err
    assert "3 classes: blue, green, red" in answer.out
    assert "train 24, validation 12, test 12" in answer.out
    assert answer.out.endswith(f"wrote {file}. Next: cv-hf train {file}\n")
    return file


@pytest.fixture(scope="module")
def trained(work: Path, starter: Path) -> Path:
    """The run directory of two steps of that recipe."""
    answer = cv_hf("train", starter, "train.max_steps=2", "--run-dir", work / "run", "train.logging_steps=1")
    assert answer.code == 0, answer.err
    assert answer.err == ""
    assert answer.out.index("step 1/2: loss") < answer.out.index("step 2/2: loss")
    assert f"cv-hf predict {work / 'run'}" in answer.out
    return work / "run"


# What each command does ---------------------------------------------------------------------------------------------


def test_init_writes_a_recipe_and_never_over_a_file(starter, photos, tiny):
    text = starter.read_text()
    assert text.startswith(f"# cv-hf train {starter}\n")
    values = yaml.safe_load(text)
    assert (values["task"], values["data"]["id"]) == ("image-classification", str(photos))
    assert values["model"]["id"] == str(tiny("vit"))
    assert "is there already" in refused(2, "init", photos, "--out", starter)
    assert starter.read_text() == text


def test_init_and_eval_take_what_a_recipe_would_say_of_the_data(trained, photos, tmp_path):
    files = sorted((photos / "test").rglob("*.png"))
    table = tmp_path / "table.csv"
    table.write_text("where,what\n" + "".join(f"{file},{file.parent.name}\n" for file in files))
    said = [f"data.images={photos}", "data.columns={image: where, label: what}"]
    commands = ("init", table, "--out", tmp_path / "not.yaml"), ("check", table), ("eval", trained, "--data", table)
    for command in commands:
        assert refused(2, *command).endswith("\nName it: data.columns.image=NAME.\n")
    assert cv_hf("init", table, *said, "--out", tmp_path / "said.yaml").code == 0
    data = yaml.safe_load((tmp_path / "said.yaml").read_text())["data"]
    assert data == {"id": str(table), "images": str(photos), "columns": {"image": "where", "label": "what"}}
    answer = cv_hf("eval", trained, "--data", table, *said, "--json", "-")
    scored = json.loads((trained / "metrics.json").read_text())["test"]
    assert json.loads(answer.out)["accuracy"] == scored["accuracy"]
    assert "data.key=value" in refused(2, "eval", trained, "--data", table, "train.seed=1")


def test_train_fills_the_run_directory(trained):
    files = {path.name for path in trained.iterdir()}
    assert files == {"recipe.yaml", "metrics.json", "log.jsonl", "model", "checkpoints", "predictions"}
    assert yaml.safe_load((trained / "recipe.yaml").read_text())["train"]["max_steps"] == 2
    metrics = json.loads((trained / "metrics.json").read_text())
    assert metrics["train"]["steps"] == 2
    assert {"accuracy", "loss"} <= metrics["validation"].keys() & metrics["test"].keys()
    assert not list(trained.rglob("training_args.bin"))


def test_eval_gives_the_numbers_of_the_run(trained, photos, tmp_path):
    scored = json.loads((trained / "metrics.json").read_text())
    answer = cv_hf("eval", trained, "--data", photos, "--json", tmp_path / "scores.json", "--batch-size", 5)
    assert answer.code == 0, answer.err
    test = json.loads((tmp_path / "scores.json").read_text())
    assert test["confusion_matrix"] == scored["test"]["confusion_matrix"]
    for name in ("accuracy", "f1_macro", "loss"):
        assert test[name] == pytest.approx(scored["test"][name], abs=1e-6)
    assert f"accuracy {test['accuracy']:.4f}" in answer.out
    answer = cv_hf("eval", trained / "model", "--data", photos, "--split", "validation", "--json", "-")
    validation = json.loads(answer.out)
    assert validation["loss"] == pytest.approx(scored["validation"]["loss"], abs=1e-6)
    assert validation["loss"] != pytest.approx(test["loss"], abs=1e-6)


def test_what_was_held_out_of_train_is_what_is_scored(tiny, tmp_path, monkeypatch):
    """A score of images that were trained on is never taken for another."""
    data = write_photos(tmp_path / "photos", {"only": 8})
    for folder in (data / "only").iterdir():
        folder.rename(data / folder.name)
    (data / "only").rmdir()
    file, run = tmp_path / "recipe.yaml", tmp_path / "run"
    assert cv_hf("init", data, "--out", file, "--model", tiny("vit")).code == 0
    said = ["data.max_samples=20", "data.labels=[red, green, blue]"]
    answer = cv_hf("train", file, "train.max_steps=2", "train.seed=3", "--run-dir", run, *said)
    assert answer.code == 0, answer.err
    scored = json.loads((run / "metrics.json").read_text())["validation"]
    for more in ((), ("--split", "validation"), ("data.splits={validation: 0.15}",)):
        answer = cv_hf("eval", run, "--data", data, *more, "--json", "-")
        assert json.loads(answer.out)["loss"] == pytest.approx(scored["loss"], abs=1e-6)
        assert "data: scored is validation: 3, as the run held it out of train" in answer.err
    assert "in the evidence of training" in cv_hf("verify", run, "--data", data).out
    answer = cv_hf("eval", run, "--data", data, "--split", "train")
    assert "data: the model was trained on train, so this score says nothing of other images" in answer.out
    assert "not hold out 0.5, but 0.15" in refused(2, "eval", run, "--data", data, "data.splits={validation: 0.5}")

    copied = shutil.copytree(data, tmp_path / "copied")
    answer = cv_hf("eval", run, "--data", copied)
    assert "copied has no test or validation split, so all of train is scored; images" in answer.out
    assert "own run alone" in refused(2, "eval", run, "--data", copied, "data.splits={validation: 0.15}")
    assert "there is no split 'fold'" in refused(2, "eval", run, "--data", copied, "data.splits={test: fold}")

    shutil.copy(data / "red" / "0.png", data / "red" / "new.png")
    assert "not what it was in training" in refused(2, "eval", run, "--data", data)
    (data / "red" / "new.png").unlink()
    reads: list[str] = []
    read = load.read
    monkeypatch.setattr(load, "read", lambda data, *more: reads.append(data.id) or read(data, *more))
    shutil.rmtree(run / "checkpoints")
    assert "data: scored is validation: 3" in cv_hf("eval", run, "--data", data).out
    assert reads == [str(data)]
    notes = json.loads((run / "model" / "cv_hf.json").read_text())
    del notes["trained_on"]["samples"]
    (run / "model" / "cv_hf.json").write_text(json.dumps(notes))
    assert "the model does not tell whether" in cv_hf("eval", run, "--data", data).out


@pytest.fixture(scope="module")
def alone(work, photos, tiny, hub) -> list[str]:
    """A model without its run directory, trained on a folder called `mine`: a copy of it, and one that was pushed.

    Nothing is held out there but validation. Both have to do without the folders that the recipe says.
    """
    mine, run = work / "home" / "mine", work / "home" / "run"
    shutil.copytree(photos / "train", mine / "pictures")
    files = sorted((mine / "pictures").rglob("*.png"))
    rows = [f"{file.relative_to(mine / 'pictures')},{file.parent.name}" for file in files]
    (mine / "table.csv").write_text("where,what\n" + "\n".join(rows) + "\n")
    (work / "home" / "names.txt").write_text("green\nred\nblue\n")
    recipe = {
        "task": "image-classification",
        "model": {"id": str(tiny("vit"))},
        "data": {
            "id": str(mine / "table.csv"),
            "images": str(mine / "pictures"),
            "columns": {"image": "where", "label": "what"},
            "labels": str(work / "home" / "names.txt"),
        },
        "train": {"max_steps": 1, "bf16": False},
        "run_dir": str(run),
    }
    finetune(recipe)
    assert cv_hf("push", run, "tester/alone").code == 0
    return [str(shutil.copytree(run / "model", work / "alone")), "tester/alone"]


@pytest.mark.parametrize("place", [0, 1])
def test_a_model_by_itself_knows_what_it_was_trained_on(alone, work, photos, tmp_path, place):
    model, home = alone[place], work / "home"
    scored = json.loads((home / "run" / "metrics.json").read_text())["validation"]

    def of(folder: Path, *more: str) -> list[str]:
        images = f"data.images={folder / 'pictures'}"
        return ["eval", model, "--data", str(folder / "table.csv"), images, *more, "--json", "-"]

    for folder in (home / "mine", shutil.copytree(home / "mine", tmp_path / "elsewhere")):
        answer = cv_hf(*of(folder))
        assert answer.code == 0, answer.err
        assert "data: scored is validation: 3, as the run held it out of train" in answer.err
        assert json.loads(answer.out)["loss"] == pytest.approx(scored["loss"], abs=1e-6)
        told = cv_hf(*of(folder, "--split", "train")).err
        assert "data: the model was trained on train, so this score says nothing of other images" in told

    # Another file of that name.
    table = folder / "table.csv"
    table.write_text(table.read_text().replace("red/0.png,red\n", ""))
    assert "Name it: data.columns" in refused(2, *of(folder))
    told = cv_hf(*of(folder, "data.columns={image: where, label: what}")).err
    assert "data: scored is" not in told
    assert "so all of train is scored" in told
    assert "data: scored is" not in cv_hf("eval", model, "--data", photos).out


def test_verify_takes_what_a_model_by_itself_was_scored_on(alone, work):
    mine = work / "home" / "mine"
    answer = cv_hf("verify", alone[1], "--data", mine / "table.csv", f"data.images={mine / 'pictures'}")
    assert "in the evidence of training" in answer.out


@pytest.mark.parametrize("key", ["labels", "images", "masks"])
def test_a_model_from_anybody_names_no_place_to_read(alone, work, key):
    home = work / "home"
    trained, data = (
        load_trained(alone[0]),
        DataConfig(id=str(home / "mine" / "table.csv"), images=f"{home}/mine/pictures"),
    )
    assert trained_on(trained, data).data.labels == {"green": "green", "red": "red", "blue": "blue"}
    notes = {**trained.trained_on, "data": {**trained.trained_on["data"], key: str(home / "names.txt")}}
    assert trained_on(replace(trained, trained_on=notes), data) is None


def test_what_a_model_tells_of_its_data_has_no_path(alone, work, hub):
    said = hub.repo("tester/alone").files()
    texts = {name: content.decode() for name, content in said.items() if not name.endswith(".safetensors")}
    assert "trained_on" in json.loads(texts["cv_hf.json"])
    assert [name for name, text in texts.items() if str(work) in text or "home" in text] == []


def test_eval_takes_the_splits_that_the_data_section_names(trained, photos):
    scored = json.loads((trained / "metrics.json").read_text())
    swapped = "data.splits={test: validation, validation: test}"
    for more, name in (((), "validation"), (("--split", "test"), "validation"), (("--split", "validation"), "test")):
        answer = cv_hf("eval", trained, "--data", photos, swapped, *more, "--json", "-")
        assert json.loads(answer.out)["loss"] == pytest.approx(scored[name]["loss"], abs=1e-6)


def test_predict_answers_for_files_and_folders(trained, photos, tmp_path):
    """One that cannot be read is named and does not stop the rest."""
    folder = tmp_path / "some" / "deeper"
    folder.mkdir(parents=True)
    for name in ("red", "green"):
        shutil.copy(photos / "test" / name / "0.png", folder / f"{name}.png")
    (folder / "broken.png").write_bytes(b"no image")
    (folder / "notes.txt").write_text("no image either")
    single = photos / "test" / "blue" / "0.png"
    answer = cv_hf("predict", trained, single, "--out", tmp_path / "out", tmp_path / "some")
    assert answer.code == 0, answer.err
    found = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert set(found) == {str(single), *(str(folder / f"{name}.png") for name in ("broken", "red", "green"))}
    assert found[str(folder / "broken.png")].keys() == {"error"}
    assert f"{folder / 'broken.png'}: " in answer.out
    assert answer.out.endswith(f"pictures of 3 of 4 image(s)\n1 cannot be read: {folder / 'broken.png'}\n")
    for file in (single, folder / "red.png", folder / "green.png"):
        prediction = found[str(file)]["prediction"]
        assert {entry["label"] for entry in prediction} == {"red", "green", "blue"}
        assert sum(entry["score"] for entry in prediction) == pytest.approx(1)
    assert len(list((tmp_path / "out").glob("*.png"))) == 3


def test_predict_replaces_what_it_wrote_and_nothing_else(trained, photos, tmp_path):
    out, images = tmp_path / "out", [photos / "test" / name / "0.png" for name in ("red", "green", "blue")]

    def pictures() -> set[str]:
        """The pictures there are, which are those of predictions.json, each of its file."""
        found = json.loads((out / "predictions.json").read_text())
        assert {path.name for path in out.glob("*.png")} == {answer["picture"] for answer in found.values()}
        return set(found)

    assert cv_hf("predict", trained, *images, images[0], photos / "test" / "red", "--out", out).code == 0
    assert len(pictures()) == 6
    (out / "coco.json").write_text(json.dumps({"images": [{"file_name": str(images[0])}]}))
    (out / ".DS_Store").touch()
    assert cv_hf("predict", trained, images[1], "--out", out).code == 0
    assert pictures() == {str(images[1])}
    assert {path.suffix for path in out.iterdir()} == {".png", ".json", ""}
    assert not (out / "coco.json").exists()

    def unchanged(*paths: Path) -> str:
        before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        told = refused(2, "predict", trained, *paths, "--out", out)
        assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
        return told

    assert "a picture of an earlier prediction" in unchanged(images[0], tmp_path)
    (out / "coco.json").write_text(json.dumps({"images": [{"file_name": "other.png"}]}))
    assert f"{out} holds coco.json" in unchanged(*images)
    (out / "coco.json").unlink()
    (tmp_path / "00000_mine.png").touch()
    for content in ("[1", '["a"]', '{"a": 1}', '{"a": {"b": 1}}', '{"a": {"picture": "../00000_mine.png"}}'):
        (out / "predictions.json").write_text(content)
        assert f"{out} holds " in unchanged(*images)
    for path in out.glob("*.png"):
        path.unlink()
    assert cv_hf("predict", trained, images[0], "--out", out).code == 0
    assert (tmp_path / "00000_mine.png").exists(), "no name leads out of the folder"


def test_an_interrupted_predict_leaves_what_it_answered(trained, photos, tmp_path, monkeypatch):
    out, saved, whole = tmp_path / "out", [], PIL.Image.Image.save

    def stopped(self, file, *arguments, **more):
        saved.append(file)
        if len(saved) == 4:
            file.write_bytes(b"a part")
            raise KeyboardInterrupt
        whole(self, file, *arguments, **more)

    monkeypatch.setattr(PIL.Image.Image, "save", stopped)
    told = refused(130, "predict", trained, photos / "test", "--out", out)
    assert told == f"cv-hf: interrupted; {out} holds the answers to 3 of 12 images.\n"
    found = json.loads((out / "predictions.json").read_text())
    assert sorted(answer["picture"] for answer in found.values()) == sorted(path.name for path in out.glob("*.png"))
    assert len(found) == 3
    assert cv_hf("predict", trained, photos / "test", "--out", out).code == 0
    assert len(json.loads((out / "predictions.json").read_text())) == len(list(out.glob("*.png"))) == 12


def test_recipes_are_listed_shown_and_copied(tmp_path):
    listed = cv_hf("recipes", "list")
    assert [line.split()[0] for line in listed.out.splitlines()] == list(recipes.names())
    assert cv_hf("recipes").out == listed.out
    name, file = next(iter(recipes.names().items()))
    assert cv_hf("recipes", "show", name).out == file.read_text()
    assert cv_hf("recipes", "copy", name.split("/")[-1], tmp_path).code == 0
    assert (tmp_path / file.name).read_text() == file.read_text()
    assert cv_hf("recipes", "copy", "open_recipe", tmp_path / "mine.py").code == 0
    assert "is there already" in refused(2, "recipes", "copy", name, tmp_path)
    assert f"Did you mean {name!r}?" in refused(2, "recipes", "show", name[:-1])


def test_init_tells_boxes_from_classes(boxes, photos, tmp_path, tiny):
    recipe = tmp_path / "recipe.yaml"
    answer = cv_hf("init", boxes, "--out", recipe, "--model", tiny("detr"))
    assert (answer.code, answer.err) == (0, "")
    assert "2 classes: red, blue" in answer.out
    assert "boxes: xywh, as coco has them" in answer.out
    values = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    assert values["task"] == "object-detection"
    answer = cv_hf("train", recipe, "train.max_steps=1", "train.batch_size=4", "--run-dir", tmp_path / "run")
    assert answer.code == 0, answer.err
    assert f"cv-hf verify {tmp_path / 'run'} --data {boxes}" in answer.out
    answer = cv_hf("predict", tmp_path / "run", boxes / "test" / "0.png", "--threshold", "0", "--out", tmp_path / "out")
    assert answer.code == 0, answer.err
    found = json.loads((tmp_path / "out" / "predictions.json").read_text(encoding="utf-8"))
    assert len(found[str(boxes / "test" / "0.png")]["prediction"]) > 3
    assert " and " in answer.out
    assert cv_hf("init", boxes, "--task", "image-classification", "--out", tmp_path / "other.yaml").code == 2


def test_env_tells_versions_and_no_secret():
    lines = dict(line.split(": ", 1) for line in cv_hf("env").out.splitlines())
    assert lines["transformers"] == transformers.__version__
    assert lines["python"] == ".".join(map(str, sys.version_info[:3]))
    assert lines["token"] == "set"
    assert os.environ["HF_TOKEN"] not in str(lines)


def test_push_after_training(trained, hub):
    answer = cv_hf("push", trained, "tester/by-command", "--private")
    assert answer.out == f"pushed to {hub.url}/tester/by-command\n"
    assert answer.err == ""
    assert hub.repo("tester/by-command").private
    assert "recipe.yaml" in hub.repo("tester/by-command").files()


def test_what_only_reads_a_run_needs_no_lock(trained, photos, hub, tmp_path):
    """All that a finished run is used for goes on while it is trained on."""
    with locked(trained):
        assert cv_hf("push", trained, "tester/locked").code == 0
        assert cv_hf("eval", trained, "--data", photos).code == 0
        assert cv_hf("predict", trained, photos / "test" / "red", "--out", tmp_path / "out").code == 0
    assert not [name for name in hub.repo("tester/locked").files() if "lock" in name]


# Wrong input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.learnin_rate=1", "train.learnin_rate is not a known key. Did you mean 'learning_rate'?"),
        ("train.learning_rate=fast", "train.learning_rate: input should be a valid number"),
        ("train.output_dir=x", "train.output_dir is not used here; use run_dir."),
        ("task=semantic-segmentation", "no mask column was found among: image (Image), label (ClassLabel)."),
        ("data.id=/no/such/folder", "there is no file or folder /no/such/folder"),
        ("data.splits.validation=nope", "nope"),
        ("data.labels=[red, green, bleu]", "bleu"),
        ("model.id=./no/such/model", "./no/such/model"),
        ("model.config.hidden_sise=8", "hidden_sise"),
        ("train.gradient_accumulation_steps=3", "cannot be shared by 1 process(es) x 3 accumulation step(s)"),
        ("train.lr_scheduler_type=wavy", "wavy"),
        ("augment=[HorizontalFlp]", "albumentations has no 'HorizontalFlp'. Did you mean 'HorizontalFlip'?"),
        ("augment=[{HorizontalFlip: {q: 1}}]", "HorizontalFlip has no argument 'q'"),
        ("augment=[{HorizontalFlip: {p: 7}}]", "augment: HorizontalFlip: "),
        (
            "eval.metric=acuracy",
            "'acuracy' is not measured here, only accuracy, f1_macro, top5_accuracy, loss, map, ",
        ),
        ("eval.metric=map", "'map' is not measured here, only accuracy, f1_macro, loss."),
        ("hub.repo_id=not/a/name", "hub.repo_id"),
    ],
)
def test_a_wrong_recipe_is_refused(starter, tmp_path, override, message):
    assert message in refused(2, "train", starter, override, "train.max_steps=1", "--run-dir", tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_file_that_is_not_there(tmp_path, photos, trained):
    nowhere = tmp_path / "nowhere"
    assert "the recipe cannot be read" in refused(2, "train", nowhere)
    for run in (nowhere, "runs/nowhere"):
        assert f"'{run}' is neither a folder here nor a " in refused(2, "eval", run, "--data", photos)
        assert f"'{run}' is neither a folder here nor a " in refused(2, "predict", run, photos)
    assert f"the folder {tmp_path} holds no model" in refused(2, "predict", tmp_path, photos)
    assert f"{nowhere}: no such image or folder" in refused(2, "predict", trained, nowhere, "--out", tmp_path / "out")
    assert f"there is no file or folder {nowhere}" in refused(2, "eval", trained, "--data", nowhere)
    assert f"there is no file or folder {nowhere}" in refused(2, "init", nowhere, "--out", tmp_path / "x.yaml")
    assert "there is no finished model/" in refused(2, "push", nowhere, "tester/x")


def test_a_file_that_cannot_be_written_is_refused_before_the_work(tmp_path, monkeypatch):
    """There is no model and no data, which would be said next."""
    (tmp_path / "file").touch()
    for file in (tmp_path, tmp_path / "file" / "below.json"):
        said = f"cv-hf: {file}: cannot be written. Name a file in a folder that you may write to.\n"
        assert refused(2, "eval", "no/model", "--data", "no/data", "--json", file) == said
        assert refused(2, "check", "no/data", "--json", file) == said
        assert refused(2, "check", "no/data", "--html", file) == said
        assert refused(2, "bench", "no.yaml", "--json", file) == said
    monkeypatch.setattr(os, "access", lambda *_: False)  # who runs as root may write anywhere
    assert "cannot be written" in refused(2, "check", "no/data", "--json", tmp_path / "new" / "found.json")


def test_the_folder_of_a_file_is_made(photos, tmp_path):
    assert cv_hf("check", photos, "--json", tmp_path / "a" / "b" / "found.json").code == 0
    assert json.loads((tmp_path / "a" / "b" / "found.json").read_text())["task"] == "image-classification"


@pytest.mark.parametrize("threshold", ["50", "-0.1", "nan", "inf"])
def test_a_threshold_that_is_no_score(trained, photos, tmp_path, threshold):
    told = refused(2, "predict", trained, photos / "test", f"--threshold={threshold}", "--out", tmp_path / "out")
    assert told == f"cv-hf: --threshold: {threshold} is no score; scores go from 0 to 1.\n"
    assert not (tmp_path / "out").exists()


def test_a_threshold_where_nothing_is_left_out_by_it(trained, photos, tiny, tmp_path):
    predict = ("predict", trained, photos / "test", "--threshold", "0.5", "--out", tmp_path / "out")
    told = "cv-hf: --threshold: {} leaves nothing out by its score. Leave the option out.\n"
    assert refused(2, *predict) == told.format("image-classification")
    for family, task in (("segformer_semantic", "semantic"), ("oneformer", "universal")):
        other = ("predict", tiny(family), *predict[2:], "--task", f"{task}-segmentation", "--subtask", "semantic")
        assert refused(2, *other) == told.format("a semantic map")
    assert not (tmp_path / "out").exists()
    assert cv_hf(*other[:-1], "panoptic").code == 0


def test_no_image_that_can_be_read(trained, tmp_path):
    for number in range(7):
        (tmp_path / f"{number}.png").write_bytes(b"no image")
    told = refused(2, "predict", trained, tmp_path, "--out", tmp_path / "out")
    assert told == f"cv-hf: none of 7 image(s) can be read; {tmp_path}/out/predictions.json says why.\n"
    reasons = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert all(answer["error"] for answer in reasons.values())
    assert len(reasons) == 7


def test_an_address_is_named_as_it_was_typed(trained, tmp_path):
    told = refused(2, "predict", trained, "https://x.y/a.jpg", "--out", tmp_path / "out")
    assert told == "cv-hf: https://x.y/a.jpg: no such image or folder.\n"


def test_a_folder_without_images(tmp_path, trained, starter):
    (tmp_path / "empty").mkdir()
    for command in (
        ("init", tmp_path / "empty", "--out", tmp_path / "x.yaml"),
        ("train", starter, f"data.id={tmp_path / 'empty'}", "--run-dir", tmp_path / "run"),
        ("eval", trained, "--data", tmp_path / "empty"),
        ("predict", trained, tmp_path / "empty", "--out", tmp_path / "out"),
    ):
        assert str(tmp_path / "empty") in refused(2, *command)
    assert {path.name for path in tmp_path.iterdir()} <= {"empty", "run"}


def test_a_column_or_label_that_is_not_there(tmp_path, photos, starter, trained):
    shutil.copytree(photos / "train", tmp_path / "images")
    table = tmp_path / "photos.csv"
    paths = sorted((tmp_path / "images").rglob("*.png"))
    rows = [(path.relative_to(tmp_path), path.parent.name) for path in paths]
    with table.open("w", newline="") as file:
        csv.writer(file).writerows([("image", "colour"), *rows])
    train = ("train", starter, f"data.id={table}", "--run-dir", tmp_path / "run")
    message = refused(2, *train, "data.columns.label=color")
    assert "color" in message
    assert "colour" in message
    message = refused(2, *train, "data.columns.label=colour", "data.labels=[red, green]")
    assert "'blue' is not in the label map" in message
    assert "nope" in refused(2, "eval", trained, "--data", photos, "--split", "nope")
    other = tmp_path / "other"
    shutil.copytree(photos / "test" / "red", other / "purple")
    shutil.copytree(photos / "test" / "red", other / "yellow")
    assert "is not in the labels of the model (blue, green, red)" in refused(2, "eval", trained, "--data", other)


def test_an_unreadable_image_stops_where_it_must(tmp_path, photos, starter):
    data = tmp_path / "photos"
    shutil.copytree(photos, data)
    broken = data / "train" / "red" / "0.png"
    broken.write_bytes(broken.read_bytes()[:60])
    train = ("train", starter, f"data.id={data}", "train.max_steps=1", "--run-dir", tmp_path / "run")
    assert "train/red/0.png" in refused(2, *train, "data.on_bad_sample=stop", "train.num_train_epochs=1")
    answer = cv_hf(*train)
    assert answer.code == 0, answer.err
    findings = json.loads((tmp_path / "run" / "metrics.json").read_text())["findings"]
    assert [found["files"] for found in findings.values()] == [["train/red/0.png"]]


def test_a_model_of_another_task(tmp_path, starter, photos, trained):
    other = tmp_path / "bert"
    transformers.BertConfig(num_hidden_layers=1).save_pretrained(other)
    assert "is a bert model" in refused(2, "train", starter, f"model.id={other}", "--run-dir", tmp_path / "run")
    shutil.copytree(trained / "model", tmp_path / "plain")
    (tmp_path / "plain" / "cv_hf.json").unlink()
    assert "Name it with --task" in refused(2, "eval", tmp_path / "plain", "--data", photos)
    assert cv_hf("eval", tmp_path / "plain", "--data", photos, "--task", "image-classification").code == 0


def test_a_run_directory_is_not_overwritten(trained, starter):
    before = {path: path.stat().st_mtime_ns for path in trained.rglob("*")}
    assert "holds a run already" in refused(2, "train", starter, "--run-dir", trained)
    assert {path: path.stat().st_mtime_ns for path in trained.rglob("*")} == before


@pytest.mark.parametrize(
    "override",
    [
        "eval.metric=acuracy",
        "augment=[HorizontalFlp]",
        "train.gradient_accumulation_steps=3",
        "train={ema: 0.9, fsdp: full_shard}",
        "hub.repo_id=not/a/name",
    ],
)
def test_what_is_wrong_in_a_recipe_is_said_before_what_is_in_the_run_directory(trained, starter, override):
    key = override.partition("=")[0]
    assert refused(2, "train", starter, override, "--run-dir", trained).startswith(f"cv-hf: {key.split('.')[0]}")


def test_a_rate_for_what_is_frozen_is_said_before_too(trained, starter):
    told = refused(2, "train", starter, "model.freeze=backbone", "train.backbone_lr=1e-5", "--run-dir", trained)
    assert "the backbone is frozen" in told


def test_a_model_without_a_checkpoint_is_not_replaced_by_resuming(trained, starter, tmp_path):
    """Training would begin at its start, and put another model in its place."""
    run = shutil.copytree(trained, tmp_path / "run")
    shutil.rmtree(run / "checkpoints")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    for more in ((), ("--dry-run",)):
        told = refused(2, "train", starter, "--resume", "--run-dir", run, "train.max_steps=1", *more)
        assert told.startswith(f"cv-hf: {run}: holds a model/ that --resume would replace")
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_a_token_is_asked_for_before_training(starter, trained, tmp_path, hub, monkeypatch):
    train = ("train", starter, "hub.repo_id=reader/x", "train.max_steps=1", "--run-dir", tmp_path / "run")
    hub.add_token("hf_cli_reader", user="reader", role="read")
    for token, message in (("hf_cli_reader", "can only read"), ("hf_cli_wrong", "401"), (None, "there is no token")):
        if token:
            monkeypatch.setenv("HF_TOKEN", token)
        else:
            monkeypatch.delenv("HF_TOKEN")
        assert message in refused(3, *train)
        assert not (tmp_path / "run" / "checkpoints").exists()
        assert message in refused(3, "push", trained, "reader/x")


# In processes of their own ------------------------------------------------------------------------------------------

SEVERAL = """
import json, sys
from cv_hf.cli import main
for argv in json.loads(sys.argv[1]):
    print("exit", main(argv), file=sys.stderr, flush=True)
"""


def test_a_hub_that_is_down(starter, trained, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    run = ["--run-dir", str(tmp_path / "run")]
    commands = [
        ["push", str(trained), "tester/x"],
        ["train", str(starter), "hub.repo_id=tester/x", *run],
        ["train", str(starter), "data.id=tester/photos", *run],
    ]
    environment = {**os.environ, "HF_ENDPOINT": f"http://127.0.0.1:{port}", "HF_HOME": str(tmp_path / "home")}
    done = subprocess.run(
        [sys.executable, "-c", SEVERAL, json.dumps(commands)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    answers = done.stderr.split("exit 3\n")
    assert len(answers) == len(commands) + 1, done.stderr
    for answer in answers[:-1]:
        assert answer.startswith("cv-hf: ")
        assert len(answer.splitlines()) <= 2
        assert "Nothing is lost" in answer
    assert answers[0].endswith(f"To go on: cv-hf push {trained} tester/x\n")
    assert not (tmp_path / "run" / "checkpoints").exists()


OFTEN = ["eval_strategy=steps", "eval_steps=2", "save_strategy=steps", "save_steps=2", "logging_steps=1"]
LONG = ["train.max_steps=2000", *(f"train.{value}" for value in OFTEN)]


def test_ctrl_c_ends_with_the_command_that_goes_on(starter, tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-m", "cv_hf", "train", str(starter), "--run-dir", str(tmp_path / "run"), *LONG],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert any(line.startswith("step 4/2000: loss") for line in process.stdout)
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=300)
    finally:
        process.kill()
    assert process.returncode == 130
    assert len(told.splitlines()) == 2, told
    stopped, go_on = told.splitlines()
    assert stopped.startswith("cv-hf: interrupted; the newest checkpoint is ")
    done = int(stopped.rstrip(".").rpartition("-")[2])
    assert done >= 2
    resume = shlex.split(go_on.removeprefix("To go on: "))
    assert resume[0] == "cv-hf"
    answer = cv_hf(*resume[1:], f"train.max_steps={done + 2}")
    assert answer.code == 0, answer.err
    steps = [line.split()[1] for line in answer.out.splitlines() if line.startswith("step ")]
    assert steps == [f"{step}/{done + 2}:" for step in (done + 1, done + 2)]


def test_two_trainings_do_not_share_a_run_directory(starter, tmp_path):
    """The second ends before it touches anything; a killed one is gone on from at once, its loader workers or not."""
    run = tmp_path / "run"
    train = ["train", str(starter), "--run-dir", str(run), *LONG, "train.dataloader_num_workers=2"]
    with subprocess.Popen([sys.executable, "-m", "cv_hf", *train], stdout=subprocess.PIPE, text=True) as first:
        try:
            assert any(line.startswith("step 4/2000: loss") for line in first.stdout)
            first.send_signal(signal.SIGSTOP)
            os.waitid(os.P_PID, first.pid, os.WSTOPPED)
            before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
            for more in ((), ("--resume",)):
                told = refused(2, *train, *more)
                assert told.startswith(f"cv-hf: {run}: another training is writing here (process {first.pid} on ")
            several = ["train", str(starter), "--run-dir", str(run), "--resume", "--nproc", "2"]
            done = subprocess.run([sys.executable, "-m", "cv_hf", *several], capture_output=True, text=True)
            assert (done.returncode, done.stderr) == (2, told)
            assert cv_hf(*train, "--resume", "--dry-run").code == 0
            assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before
        finally:
            first.kill()
    saved = max(int(path.name.rpartition("-")[2]) for path in run.glob("checkpoints/checkpoint-*"))
    answer = cv_hf(*train, "--resume", f"train.max_steps={saved + 2}")
    assert answer.code == 0, answer.err
    assert f"resuming from {run}/checkpoints/checkpoint-{saved}\n" in answer.out
    assert not list(run.rglob(".*"))


def test_sigterm_ends_likewise(starter, tmp_path):
    def unheard(*_):
        raise AssertionError("the command does not listen to SIGTERM")

    def terminate():
        while not (tmp_path / "run" / "checkpoints" / "checkpoint-2").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    signal.signal(signal.SIGTERM, unheard)
    threading.Thread(target=terminate, daemon=True).start()
    assert "--resume" in refused(130, "train", starter, "--run-dir", tmp_path / "run", *LONG)


def test_the_module_is_the_command():
    done = subprocess.run([sys.executable, "-m", "cv_hf", "recipes", "show", "nothing"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == "cv-hf: no recipe named 'nothing'. See cv-hf recipes list.\n"


@pytest.mark.parametrize("buffered", [True, False])
def test_a_reader_that_has_ended_ends_it_quietly(buffered):
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, *["-u"] * (not buffered), "-m", "cv_hf", "recipes", "list"]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")


def test_a_wheel_brings_the_recipes(tmp_path):
    """Installed without its dependencies into a folder, used from an empty one."""
    root = Path(__file__).parents[1]
    offline = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-cache-dir", "--quiet"]
    for arguments in (
        ["wheel", str(root), "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(tmp_path)],
        [
            "install",
            "--no-deps",
            "--no-index",
            "--find-links",
            str(tmp_path),
            "--target",
            str(tmp_path / "in"),
            "cv_hf",
        ],
    ):
        subprocess.run([*pip, *arguments], check=True, env=offline, capture_output=True)
    (tmp_path / "empty").mkdir()
    environment = {**offline, "PYTHONPATH": str(tmp_path / "in")}

    def installed(*words: str) -> str:
        code = "import sys, cv_hf.cli; assert sys.argv.pop(1) in cv_hf.__file__; sys.exit(cv_hf.cli.main())"
        return subprocess.check_output(
            [sys.executable, "-c", code, str(tmp_path / "in"), *words],
            cwd=tmp_path / "empty",
            env=environment,
            text=True,
        )

    assert [line.split()[0] for line in installed("recipes", "list").splitlines()] == list(recipes.names())
    name, file = next(iter(recipes.names().items()))
    installed("recipes", "copy", name)
    installed("recipes", "copy", "open_recipe")
    copied = {path.name: path.read_text() for path in (tmp_path / "empty").iterdir()}
    assert copied == {path.name: path.read_text() for path in (file, recipes.folder() / "open_recipe.py")}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["eval", "model", "--data", "data", "--batch-size", "0"], "--batch-size: should be at least 1 (got 0)"),
        (["verify", "model", "--data", "data", "--limit", "-1"], "--limit: should be at least 1 (got -1)"),
        (["train", "recipe.yaml", "--nproc", "0"], "--nproc: should be at least 1 (got 0)"),
        (["train", "recipe.yaml", "--nproc", "two"], "--nproc: invalid int value: 'two'"),
        (["bench", "recipe.yaml", "--seconds", "0"], "--seconds: should be more than 0 (got 0)"),
        (["bench", "recipe.yaml", "--seconds", "nan"], "--seconds: should be more than 0 (got nan)"),
    ],
)
def test_numbers_that_nothing_can_be_done_with_are_refused(words, says, capsys):
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1] == f"cv-hf {words[0]}: error: argument {says}"


def test_a_full_disk_while_predicting_is_said_in_one_line_and_what_was_answered_is_kept(
    recipe, photos, tmp_path, monkeypatch, capsys
):
    run = finetune(recipe("vit", train={"max_steps": 1}))
    save = PIL.Image.Image.save
    saved = []

    def full(image, file, *rest, **more):
        saved.append(file)
        if len(saved) == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save(image, file, *rest, **more)

    monkeypatch.setattr(PIL.Image.Image, "save", full)
    assert main(["predict", str(run.folder), str(photos / "test"), "--out", str(tmp_path / "out")]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == "cv-hf: No space left on device. Make room, and start again."
    assert len(json.loads((tmp_path / "out" / "predictions.json").read_text())) == 2
