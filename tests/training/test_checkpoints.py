"""A run that is killed, stopped or out of space goes on as if it never had been."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from transformers import TrainingArguments

from cv_hf import cli, finetuning
from cv_hf.config import REPLACED, Recipe
from cv_hf.errors import Interrupted, RecipeError, ResourceError
from cv_hf.finetuning import finetune
from cv_hf.training import Trainer, checkpoints, newest_checkpoint
from cv_hf.training import trainer as training
from cv_hf.training.stopping import Stop
from tests.soak import DROPOUT, differences

ROOT = Path(__file__).parents[2]
# A checkpoint each step, not aligned with logging nor with the epochs of three steps.
UNALIGNED = {"num_train_epochs": 3, "max_steps": -1, "logging_steps": 4, "save_total_limit": None, "early_stopping": 9}
UNALIGNED |= {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}


def interrupted_after(whole: Path, step: int, run: Path) -> Path:
    """What is left of a run that was killed right after it saved a step."""
    shutil.copytree(whole, run)
    for folder in (run / "checkpoints").glob("checkpoint-*"):
        if int(folder.name.rpartition("-")[2]) > step:
            shutil.rmtree(folder)
    for later in ("model", "predictions", "checkpoints/finished.json", "metrics.json"):
        shutil.rmtree(run / later) if (run / later).is_dir() else (run / later).unlink()
    return run


# Killed --------------------------------------------------------------------------------------------------------------


def test_killed_at_random_moments(tmp_path):
    """The short form of `make soak`, with 0 and with 2 loader workers."""
    command = [sys.executable, "-m", "tests.soak", "--kills", "5", "classification", "workers"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "5 kills over classification, workers" in done.stdout


@pytest.mark.parametrize(
    ("family", "model", "train", "steps"),
    [
        ("vit", DROPOUT, {"dataloader_num_workers": 2, "eval_strategy": "no", "early_stopping": None}, (2, 9)),
        ("vit", DROPOUT, {"ema": 0.5}, (5, 9)),
        # The epoch's line is written after its last checkpoint; early stopping ends within an epoch.
        ("vit", DROPOUT, {"logging_strategy": "epoch", "early_stopping": 3, "learning_rate": 1e-12}, (3, 4)),
        ("resnet", {}, {"max_steps": 5, "gradient_accumulation_steps": 2, "eval_on_start": True}, (1, 5)),
    ],
)
def test_from_any_checkpoint_on_it_is_the_same_run(recipe, tmp_path, family, model, train, steps):
    values = recipe(family, model={"config": model}, train={**UNALIGNED, **train})
    whole = finetune(values).folder
    assert (whole / "checkpoints" / f"checkpoint-{steps[-1]}").is_dir()
    assert not (whole / "checkpoints" / f"checkpoint-{steps[-1] + 1}").exists()
    for step in steps:
        run = interrupted_after(whole, step, tmp_path / f"from-{step}")
        with (run / "log.jsonl").open("a") as log:
            log.write('{"step": 99, "torn')
        finetune({**values, "run_dir": str(run)}, resume=True)
        assert differences(whole, run) == []


class Killed(BaseException):
    """The process ends here, whatever would handle an error."""


def test_a_folder_with_the_name_of_a_checkpoint_is_whole_at_any_moment(tmp_path, monkeypatch):
    """Killed before each thing that saving, replacing and rotating ask of the file system, one after the other."""
    left = [0]

    def counted(function: Callable) -> Callable:
        def call(*arguments, **named):
            left[0] -= 1
            if left[0] < 0:
                raise Killed
            return function(*arguments, **named)

        return call

    for module, name in ((os, "replace"), (os, "fsync"), (os, "unlink"), (os, "rmdir"), (os, "open"), (Path, "open")):
        monkeypatch.setattr(module, name, counted(getattr(module, name)))

    def save(folder: Path, step: int) -> None:
        final = folder / f"checkpoint-{step}"
        partial = checkpoints.partial_of(final)
        checkpoints.clear(folder)
        (partial / "inside").mkdir(parents=True)
        for name in ("weights", "inside/state"):
            with (partial / name).open("w") as file:
                file.write(f"{name} of step {step}")
        checkpoints.seal(partial, {"step": step})
        checkpoints.put_in_place(partial, final)
        checkpoints.rotate(folder, final, str(folder / "checkpoint-1"), 2)

    for calls in itertools.count():
        left[0] = 1_000_000
        folder = tmp_path / str(calls)
        folder.mkdir()
        for step in (1, 2):
            save(folder, step)
        left[0] = calls
        killed, step = False, 2
        try:
            save(folder, step)  # once more, as after an interrupted evaluation
            save(folder, step := 3)
        except Killed:
            killed = True
        left[0] = 1_000_000
        named = sorted(path for path in folder.glob("checkpoint-*"))
        assert [path.name for path in named if checkpoints.fault(path)] == []
        found = newest_checkpoint(folder)
        assert found in {str(folder / f"checkpoint-{each}") for each in (2, 3)}
        assert (Path(found) / "weights").read_text() == f"weights of step {found[-1]}"
        assert checkpoints.fault(folder / "checkpoint-1") is None
        if not killed:
            assert [path.name for path in named] == ["checkpoint-1", "checkpoint-3"]
            assert calls > 40
            return


def test_what_was_written_is_on_the_disk_before_it_has_a_name(recipe, monkeypatch):
    done: list[tuple[str, int]] = []
    replace, fsync = os.replace, os.fsync

    def named(source, target):
        if Path(target).name == "checkpoint-1":
            written = {path.stat().st_ino for path in Path(source).rglob("*")} | {Path(source).stat().st_ino}
            assert written <= {inode for _, inode in done}
            done.clear()
            done.append(("named", Path(target).parent.stat().st_ino))
        replace(source, target)

    def synced(handle):
        done.append(("synced", os.fstat(handle).st_ino))
        fsync(handle)

    monkeypatch.setattr(os, "replace", named)
    monkeypatch.setattr(os, "fsync", synced)
    finetune(recipe("vit", train={"max_steps": 1}))
    at = next(number for number, (what, _) in enumerate(done) if what == "named")
    assert done[at + 1] == ("synced", done[at][1]), "the folder, which holds the name"


# Damaged -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tiny, photos, tmp_path_factory) -> Path:
    """A run of three steps, each with its checkpoint. Tests copy it."""
    train = {**UNALIGNED, "max_steps": 3, "batch_size": 8, "bf16": False, "learning_rate": 1e-3}
    values = {"task": "image-classification", "model": {"id": str(tiny("vit"))}, "data": {"id": str(photos)}}
    return finetune({**values, "train": train, "run_dir": str(tmp_path_factory.mktemp("saved") / "run")}).folder


@pytest.fixture
def cut(saved, tmp_path) -> Path:
    """A copy that tests may damage, as it was after its last checkpoint."""
    return interrupted_after(saved, 3, tmp_path / "cut")


def test_the_manifest_holds_the_size_and_hash_of_each_file(saved):
    folder = saved / "checkpoints" / "checkpoint-2"
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert {"model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"} < files.keys()
    manifest = json.loads(files.pop("manifest.json"))
    assert manifest["step"] == 2
    assert manifest["files"] == {
        name: {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()} for name, content in files.items()
    }


def _flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


DAMAGES: dict[str, Callable[[Path], object]] = {
    r"optimizer\.pt has \d+ of its \d+ bytes": lambda c: os.truncate(c / "optimizer.pt", 100),
    r"scheduler\.pt is missing": lambda c: (c / "scheduler.pt").unlink(),
    r"model\.safetensors is not what was written": lambda c: _flip(c / "model.safetensors"),
    r"it has no manifest\.json": lambda c: (c / "manifest.json").unlink(),
    r"its manifest\.json cannot be read": lambda c: os.truncate(c / "manifest.json", 50),
    r"its manifest\.json cannot be read ": lambda c: (c / "manifest.json").write_text("[1]"),
}


@pytest.mark.parametrize("reason", DAMAGES)
def test_a_damaged_checkpoint_is_passed_over_by_name(cut, reason):
    last = cut / "checkpoints" / "checkpoint-3"
    DAMAGES[reason](last)
    told: list[str] = []
    assert newest_checkpoint(cut / "checkpoints", told.append) == str(last.with_name("checkpoint-2"))
    assert len(told) == 1
    assert told[0].startswith(f"passed over {last}: ")
    assert re.search(reason.strip(), told[0])


def test_training_goes_on_before_the_damage(saved, cut, capsys):
    """From the first of three: the second is half removed, the third was never finished."""
    folder = cut / "checkpoints"
    (folder / "checkpoint-2" / "model.safetensors").unlink()
    (folder / "checkpoint-3").rename(folder / ".checkpoint-3.partial")
    (folder / ".checkpoint-3.partial" / "manifest.json").unlink()
    assert cli.main(["train", str(cut / "recipe.yaml"), "--resume", "--run-dir", str(cut)]) == 0
    told = capsys.readouterr().out
    assert f"passed over {folder / '.checkpoint-3.partial'}: saving it was not finished\n" in told
    assert f"passed over {folder / 'checkpoint-2'}: model.safetensors is missing\n" in told
    assert f"resuming from {folder / 'checkpoint-1'}\n" in told
    assert differences(saved, cut) == []


def test_one_that_lacks_only_its_name_is_used(cut):
    folder = cut / "checkpoints"
    (folder / "checkpoint-3").rename(folder / ".checkpoint-3.partial")
    assert newest_checkpoint(folder, writes=False) == str(folder / ".checkpoint-3.partial")
    assert not (folder / "checkpoint-3").exists()
    assert newest_checkpoint(folder) == str(folder / "checkpoint-3")
    assert (folder / "checkpoint-3" / "model.safetensors").is_file()


def test_what_a_kill_after_the_last_save_left_is_removed(unstopped, tmp_path):
    """Between its new name and the end of rotation; no save follows that would."""
    values, whole = unstopped
    run = interrupted_after(whole, 7, tmp_path / "run")
    folder = run / "checkpoints"
    for left in ("checkpoint-1", ".checkpoint-3.removed", ".checkpoint-5.partial"):
        shutil.copytree(folder / "checkpoint-7", folder / left)
    (folder / ".checkpoint-5.partial" / "manifest.json").unlink()
    finetune({**values, "run_dir": str(run)}, resume=True)
    assert differences(whole, run) == []


def test_without_any_it_begins_at_the_start(saved, cut, capsys):
    for manifest in (cut / "checkpoints").glob("*/manifest.json"):
        manifest.unlink()
    assert cli.main(["train", str(cut / "recipe.yaml"), "--resume", "--run-dir", str(cut)]) == 0
    told = f"WARNING: {cut}: there is no complete checkpoint; training begins at its start\n"
    assert told in capsys.readouterr().out
    assert differences(saved, cut) == []


def test_a_run_that_is_not_there_is_told_loudly(recipe, tmp_path, capsys):
    """A script that may be started again says --resume from the first; a wrong name looks the same."""
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe("vit", train={"max_steps": 1})))
    said = ["train", str(tmp_path / "recipe.yaml"), "--resume", "--run-dir", str(tmp_path / "typo")]
    assert cli.main(said) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[0] == f"WARNING: {tmp_path / 'typo'}: there is no run to resume; training begins at its start"


def test_a_best_checkpoint_that_is_damaged_is_not_published(recipe, tmp_path, monkeypatch, capsys):
    losses = iter([1.0, 2.0, 3.0, 4.0])
    monkeypatch.setattr("cv_hf.finetuning.evaluate", lambda model, samples, **_: {"loss": next(losses)})
    values = recipe("vit", train={**UNALIGNED, "max_steps": 3}, eval={"metric": "loss"})
    run = interrupted_after(finetune(values).folder, 2, tmp_path / "cut")
    _flip(run / "checkpoints" / "checkpoint-1" / "model.safetensors")
    again = finetune({**values, "run_dir": str(run)}, resume=True)
    assert "checkpoint-1, cannot be used: model.safetensors is not what was written" in capsys.readouterr().out
    assert again.metrics["train"]["best_step"] == 3


def test_rotation_keeps_the_newest_and_the_best(tmp_path):
    for step in (2, 4, 6, 8, 30):
        (tmp_path / f"checkpoint-{step}").mkdir()
    checkpoints.rotate(tmp_path, tmp_path / "checkpoint-8", str(tmp_path / "checkpoint-2"), 3)
    assert {path.name for path in tmp_path.iterdir()} == {f"checkpoint-{step}" for step in (2, 6, 8, 30)}
    checkpoints.rotate(tmp_path, tmp_path / "checkpoint-8", str(tmp_path / "checkpoint-2"), 1)
    assert {path.name for path in tmp_path.iterdir()} == {f"checkpoint-{step}" for step in (2, 8, 30)}
    checkpoints.rotate(tmp_path, tmp_path / "checkpoint-8", None, None)
    assert len(list(tmp_path.iterdir())) == 3


# Stopped -------------------------------------------------------------------------------------------------------------


def stop_in(monkeypatch, where: str, number: int) -> None:
    """Send this process SIGTERM, as a scheduler does, the n-th time that it steps, evaluates or saves."""
    owner, name = {
        "a step": (Trainer, "training_step"),
        "an evaluation": (finetuning, "evaluate"),
        "a save": (training, "seal"),
    }[where]
    function, left = getattr(owner, name), [number]

    def call(*arguments, **named):
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        return function(*arguments, **named)

    monkeypatch.setattr(owner, name, call)


@pytest.fixture(scope="module")
def unstopped(tiny, photos, tmp_path_factory) -> tuple[dict, Path]:
    """A recipe with dropout and an average, and the folder of its run."""
    often = {"eval_steps": 2, "save_steps": 2, "save_total_limit": 2, "max_steps": 7, "logging_steps": 3}
    values = {
        "task": "image-classification",
        "model": {"id": str(tiny("vit")), "config": DROPOUT},
        "data": {"id": str(photos)},
        "train": {**UNALIGNED, **often, "ema": 0.5, "batch_size": 8, "bf16": False, "learning_rate": 1e-3},
    }
    return values, finetune({**values, "run_dir": str(tmp_path_factory.mktemp("unstopped") / "run")}).folder


@pytest.mark.parametrize(
    ("where", "number", "newest"),
    [("a step", 2, 2), ("a step", 7, 7), ("an evaluation", 1, 2), ("an evaluation", 2, 4), ("a save", 1, 2)],
)
def test_sigterm_saves_and_says_how_to_go_on(unstopped, tmp_path, monkeypatch, where, number, newest):
    """In the middle of a step, of an evaluation and of saving; the last step is one of them."""
    whole = unstopped[1]
    values = {**unstopped[0], "run_dir": str(tmp_path / "run")}
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with monkeypatch.context() as patched:
            stop_in(patched, where, number)
            with pytest.raises(Interrupted) as stopped:
                finetune(values)
    finally:
        signal.signal(signal.SIGTERM, before)
    run = Path(values["run_dir"])
    saved = run / "checkpoints" / f"checkpoint-{newest}"
    first, second = str(stopped.value).splitlines()
    assert first == f"interrupted; the newest checkpoint is {saved}."
    assert second == f"To go on: cv-hf train {run / 'recipe.yaml'} --resume"
    assert checkpoints.fault(saved) is None
    assert cli.main(second.removeprefix("To go on: cv-hf ").split()) == 0
    found = differences(whole, run)
    assert [each for each in found if not each.startswith("files: ")] == []
    assert all("checkpoint-" in each for each in found), "an interrupted run has saved at another step"


def test_a_second_ctrl_c_does_not_wait(recipe, monkeypatch):
    from cv_hf.training import stopping

    def pressed(self, *arguments, **named):
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)  # a thread of a library may be given it, and Python hears of it later
        raise AssertionError("not heard")

    monkeypatch.setattr(stopping, "_AGAIN", -1.0)
    monkeypatch.setattr(Trainer, "training_step", pressed)
    with pytest.raises(Interrupted, match="no checkpoint was saved yet"):
        finetune(recipe("vit"))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_worker_that_was_just_forked_does_not_speak(capfd):
    """It gets the Ctrl-C of the whole group while it still has the handler of the process that made it."""
    stop = Stop()
    with stop.heard():
        worker = os.fork()
        if not worker:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.1)  # Python hears of it
            os._exit(stop.asked)
        assert os.waitpid(worker, 0)[1] == 0
        assert not stop.asked
        assert capfd.readouterr().out == ""
        os.kill(os.getpid(), signal.SIGINT)
        deadline = time.monotonic() + 10
        while not stop.asked and time.monotonic() < deadline:
            time.sleep(0.01)  # a thread of a library may be given it
    assert capfd.readouterr().out.count("stopping: ") == 1


def test_loader_workers_outlive_a_signal_to_the_whole_group(recipe, tmp_path):
    """As `timeout` and a terminal send it; the process whose workers were gone could not even save."""
    values = recipe("vit", train={**UNALIGNED, "num_train_epochs": 500, "dataloader_num_workers": 2, "save_steps": 100})
    values["train"] |= {"eval_steps": 100, "logging_steps": 1}
    (tmp_path / "recipe.yaml").write_text(json.dumps(values))
    command = [sys.executable, "-m", "cv_hf", "train", str(tmp_path / "recipe.yaml")]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    # PyTorch's advice where there are fewer processors than workers is no error of ours.
    environment = {**os.environ, "PYTHONWARNINGS": "ignore:This DataLoader will create"}
    with subprocess.Popen(command, start_new_session=True, env=environment, **pipes) as process:
        assert any(line.startswith("step 3/") for line in process.stdout)
        os.killpg(process.pid, signal.SIGTERM)
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 130
    assert errors.startswith("cv-hf: interrupted; the newest checkpoint is ")
    assert len(errors.splitlines()) == 2, errors


# Changed -------------------------------------------------------------------------------------------------------------


def test_what_may_change_is_in_the_recipe():
    sections = {name: field.annotation for name, field in Recipe.model_fields.items()}
    known = {*sections, *(f"{s}.{key}" for s in ("model", "data", "train", "eval") for key in sections[s].model_fields)}
    for name in checkpoints.MAY_CHANGE:
        if name not in known:
            assert name.removeprefix("train.") in TrainingArguments.__dataclass_fields__
            assert name.removeprefix("train.") not in REPLACED


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("train.learning_rate=0.01", "train.learning_rate was 0.001, is 0.01"),
        ("train.batch_size=4", "train.batch_size was 8, is 4"),
        ("train.seed=7", "train.seed was 42, is 7"),
        ("train.ema=0.9", "train.ema was null, is 0.9"),
        ("train.adam_beta2=0.9", "train.adam_beta2 was 0.999, is 0.9"),
        ("augment=[]", 'augment was [{"RandomResizedCrop"'),
        ("model.freeze=backbone", 'model.freeze was "none", is "backbone"'),
        ("model.config.hidden_dropout_prob=0.5", 'model.config was {}, is {"hidden_dropout_prob": 0.5}'),
        ("data.max_samples=5", "data.max_samples was null, is 5"),
        ("eval.metric=loss", 'eval.metric was null, is "loss"'),
    ],
)
def test_a_change_that_makes_another_training_is_refused(cut, override, says, capsys):
    written = (cut / "recipe.yaml").read_text()
    assert cli.main(["train", str(cut / "recipe.yaml"), override, "--resume", "--run-dir", str(cut)]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert len(error.splitlines()) == 2
    assert f"cv-hf train {cut / 'recipe.yaml'} --resume" in error
    assert (cut / "recipe.yaml").read_text() == written


def test_all_fields_are_compared(cut, capsys):
    overrides = ["train.seed=1", "train.optim=sgd", "data.splits={train: test}"]
    assert cli.main(["train", str(cut / "recipe.yaml"), *overrides, "--resume", "--run-dir", str(cut)]) == 2
    error = capsys.readouterr().err
    assert all(name in error for name in ("train.seed was 42", "train.optim was ", "data.splits was null"))


def test_a_change_that_is_safe_goes_on_and_is_told(cut, photos, tmp_path, capsys):
    """The run and its data moved, in two micro-batches, with a worker, for two steps more, with other lines."""
    run = cut.rename(tmp_path / "moved")
    data = shutil.copytree(photos, tmp_path / "elsewhere")
    overrides = [f"data.id={data}", "train.max_steps=5", "train.logging_steps=1", "train.dataloader_num_workers=1"]
    overrides += ["train.gradient_accumulation_steps=2", "train.save_steps=5", "train.eval_steps=5"]
    overrides += ["train.save_total_limit=2", "eval.batch_size=3", "train.adam_beta2=0.999"]
    assert cli.main(["train", str(run / "recipe.yaml"), *overrides, "--resume", "--run-dir", str(run)]) == 0
    told = capsys.readouterr().out
    assert "resuming with train.max_steps 5 instead of 3: the learning rate follows the new length" in told
    assert told.count("resuming with ") == 9, "a default that is written out is no change"
    assert json.loads((run / "metrics.json").read_text())["train"]["steps"] == 5
    assert yaml.safe_load((run / "recipe.yaml").read_text())["train"]["max_steps"] == 5
    steps = [json.loads(line)["step"] for line in (run / "log.jsonl").open()]
    assert steps == [1, 2, 3, 4, 5, 5, 5], "evaluated at 1, 2 and 3; then two lines, an evaluation and the summary"


def test_other_samples_are_refused(saved, cut, photos, tmp_path, capsys):
    data = shutil.copytree(photos, tmp_path / "photos")
    said = ["train", str(cut / "recipe.yaml"), f"data.id={data}", "--resume", "--run-dir", str(cut)]
    shutil.copy(data / "train" / "red" / "0.png", data / "train" / "red" / "one more.png")
    assert cli.main(said) == 2
    assert "the data is not what it was: train had 24 samples, and has 25.\n" in capsys.readouterr().err
    (data / "train" / "red" / "1.png").unlink()
    assert cli.main(said) == 2
    assert "train had 24 samples, and has 24 of other names or classes.\n" in capsys.readouterr().err


def test_weights_alone_are_nothing_to_go_on_from(recipe, tmp_path):
    values = recipe("vit", train={**UNALIGNED, "max_steps": 2, "save_only_model": True})
    run = interrupted_after(finetune(values).folder, 1, tmp_path / "cut")
    with pytest.raises(RecipeError, match=r"was saved with train\.save_only_model"):
        finetune({**values, "run_dir": str(run)}, resume=True)


# No space ------------------------------------------------------------------------------------------------------------

FULL = """
import json, os, shutil, sys
from pathlib import Path
from cv_hf import cli
from cv_hf.training import trainer

values, whole = json.loads(sys.argv[1]), Path(sys.argv[2])
run, filler = Path(values["run_dir"]), Path(values["run_dir"]).with_name("filler")
recipe = whole / "recipe.yaml"
size = sum(path.stat().st_size for path in (whole / "checkpoints" / "checkpoint-2").iterdir())
write = trainer.Trainer._write_checkpoint

def fill(self, folder, final, partial):
    if final.name == "checkpoint-2":
        filler.write_bytes(bytes(shutil.disk_usage(folder).free - int(room * size)))
    write(self, folder, final, partial)

trainer.Trainer._write_checkpoint = fill
for room in (0.02, 0.5, 0.8, 0.97):
    code = cli.main(["train", str(recipe), "--run-dir", str(run), *["--resume"] * run.exists()])
    left = sorted(path.name for path in (run / "checkpoints").iterdir())
    print("CHECK", code, left, flush=True)
    filler.unlink()
trainer.Trainer._write_checkpoint = write
print("CHECK", cli.main(["train", str(recipe), "--run-dir", str(run), "--resume"]))
shutil.copytree(run, whole.with_name("copy"))
"""


def test_a_full_disk_leaves_the_last_good_checkpoint(recipe, tmp_path):
    """A file system of a megabyte, which another file fills while the second checkpoint is being written."""
    space = tmp_path / "space"
    space.mkdir()
    mount = ["unshare", "-rm", "sh", "-c", 'mount -t tmpfs -o size=1200k tmpfs "$0" && exec "$@"', str(space)]
    if subprocess.run([*mount, "true"], capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    values = recipe("vit", train={**UNALIGNED, "max_steps": 2, "ema": 0.5})
    whole = finetune({**values, "run_dir": str(tmp_path / "whole")}).folder
    values["run_dir"] = str(space / "run")
    command = [*mount, sys.executable, "-c", FULL, json.dumps(values), str(whole)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    checks = [line for line in done.stdout.splitlines() if line.startswith("CHECK")]
    assert checks == ["CHECK 2 ['checkpoint-1']"] * 4 + ["CHECK 0"], done.stdout + done.stderr
    errors = done.stderr.splitlines()
    assert len(errors) == 8, done.stderr
    final = space / "run" / "checkpoints" / "checkpoint-2"
    for room, first, second in zip((0.02, 0.5, 0.8, 0.97), errors[::2], errors[1::2], strict=True):
        told = re.fullmatch(
            rf"cv-hf: {final}: no space left on the disk: it takes 0\.\d MB, 0\.\d MB are free, so (.*) are missing\.",
            first,
        )
        assert told, first
        assert second == f"Make room, then: cv-hf train {space / 'run' / 'recipe.yaml'} --resume"
        assert room > 0.9 or float(told[1].split()[0]) > 0
    assert differences(whole, tmp_path / "copy") == []


def test_a_file_that_may_not_grow_is_told_likewise(recipe, capsys):
    """A quota; the log and the model meet it too, when it is low enough."""
    values = recipe("vit", train={**UNALIGNED, "max_steps": 2})
    size = 30_000
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        with pytest.raises(ResourceError, match="no space left on the disk") as error:
            finetune(values)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert str(error.value).endswith("--resume")
    assert len(str(error.value).splitlines()) == 2
    run = Path(values["run_dir"])
    assert list((run / "checkpoints").iterdir()) == []
    assert finetune(values, resume=True).metrics["train"]["steps"] == 2


def test_other_errors_of_saving_are_not_taken_for_it():
    assert not checkpoints.disk_full(PermissionError(13, "Permission denied"))
    assert not checkpoints.disk_full(RuntimeError("a bug"))
    with pytest.raises(RuntimeError) as error:
        torch.save({"x": torch.zeros(10)}, "/dev/full")
    assert checkpoints.disk_full(error.value) or isinstance(error.value, OSError)
