"""Before a long run: what is measured, what is refused, and that nothing of it is left."""

from __future__ import annotations

import gc
import json
import re
import shutil
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import ViTForImageClassification

from cv_hf import cli, finetuning
from cv_hf.config import load_recipe
from cv_hf.errors import RecipeError, ResourceError
from cv_hf.finetuning import build_trainer, dry_run, finetune, prepare
from cv_hf.tasks import get_task
from cv_hf.training import Trainer, memory_error, out_of_memory, preflight, resolve
from tests.soak import DROPOUT


@pytest.fixture
def trainer_of(tmp_path) -> Callable[[dict], Trainer]:
    """(recipe) -> its trainer, as `finetune` makes it."""

    def make(values: dict) -> Trainer:
        task = get_task(values["task"])
        return prepare(resolve(load_recipe(values), task), task, tmp_path / "made", None)[2]

    return make


def log_of(values: dict, run: Path) -> list[str]:
    finetune({**values, "run_dir": str(run)})
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [line for line in lines if "train_runtime" not in line]


@pytest.mark.parametrize("kind", ["dropout", "batch norm", "detection", "masks"])
def test_it_leaves_no_trace(kind, recipe, detection_recipe, segmentation_recipe, trainer_of, tmp_path, monkeypatch):
    """Neither in the model and the random numbers, nor in what a training after it does."""
    values = {
        "dropout": lambda: recipe("vit", model={"config": DROPOUT}, train={"ema": 0.5}),
        "batch norm": lambda: recipe("resnet", train={"dataloader_num_workers": 1}),
        "detection": lambda: detection_recipe("rt_detr"),
        "masks": lambda: segmentation_recipe("instance-segmentation", "mask2former"),
    }[kind]()
    trainer = trainer_of(values)
    before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    modes = [module.training for module in trainer.model.modules()]
    random = torch.random.get_rng_state()
    preflight(trainer, tmp_path / "run")
    assert torch.equal(torch.random.get_rng_state(), random)
    assert [module.training for module in trainer.model.modules()] == modes
    assert all(torch.equal(tensor, before[name]) for name, tensor in trainer.model.state_dict().items())
    assert all(parameter.grad is None for parameter in trainer.model.parameters())
    assert trainer.optimizer is None
    measured = log_of(values, tmp_path / "with")
    nothing = SimpleNamespace(lines=list)
    monkeypatch.setattr(finetuning, "preflight", lambda *_: nothing)
    assert log_of(values, tmp_path / "without") == measured


@pytest.mark.parametrize(("optim", "per_weight"), [("adamw_torch", 2), ("sgd", 0), ("rmsprop", 1)])
def test_sizes_are_those_of_the_run(recipe, trainer_of, optim, per_weight):
    """Of the weights by hand, and of the checkpoint as it is written."""
    train = {"max_steps": 1, "optim": optim, "ema": 0.5}
    values = recipe("vit", train=train)
    trainer = trainer_of(values)
    found = preflight(trainer, Path(values["run_dir"]))
    weights = 4 * sum(parameter.numel() for parameter in trainer.model.parameters())
    assert found.memory["weights"] == found.memory["average"] == found.memory["gradients"] == weights
    assert found.memory["optimizer"] == pytest.approx(per_weight * weights, rel=0.02, abs=1)
    assert found.checkpoint == 2 * weights + found.memory["optimizer"]
    run = finetune(values)
    files = {path.name: path.stat().st_size for path in (run.folder / "checkpoints" / "checkpoint-1").iterdir()}
    assert files["model.safetensors"] + files["training_weights.safetensors"] == pytest.approx(2 * weights, rel=0.3)


def test_activations_are_what_the_forward_keeps(recipe, trainer_of, tmp_path):
    """Twice as much for twice the images."""
    trainer = trainer_of(recipe("resnet"))
    kept = []
    for images in (4, 8):
        trainer.args.per_device_train_batch_size = images
        kept.append(preflight(trainer, tmp_path).memory["activations"])
    assert kept[0] > 0
    # But for what does not depend on the batch.
    assert kept[1] == pytest.approx(2 * kept[0], rel=0.05)


def test_a_batch_larger_than_the_training_set_is_told(recipe, trainer_of, tmp_path):
    trainer = trainer_of(recipe("vit", train={"batch_size": 100}))
    line = preflight(trainer, tmp_path).lines()[0]
    assert line.startswith("preflight: 24 images of 32x32 read in ")
    assert line.endswith("; the batch of 100 is larger than the training set")
    trainer.args.per_device_train_batch_size = 24
    assert "larger" not in preflight(trainer, tmp_path).lines()[0]


def test_the_largest_size_is_tried(detection_recipe, trainer_of, tmp_path):
    trainer = trainer_of(detection_recipe("rt_detr", train={"multi_scale": [0.5, 2.0]}))
    scales = trainer.scales
    assert preflight(trainer, tmp_path).size == (128, 128)
    assert trainer.scales is scales


# --dry-run -----------------------------------------------------------------------------------------------------------


def test_dry_run_checks_everything_and_writes_nothing(recipe, hub, tmp_path, monkeypatch, capsys):
    values = recipe("vit", hub={"repo_id": "tester/dry"})
    (tmp_path / "recipe.yaml").write_text(json.dumps(values))
    before = sorted(tmp_path.iterdir())
    monkeypatch.setattr(Trainer, "train", None)
    assert cli.main(["train", str(tmp_path / "recipe.yaml"), "--dry-run"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert sorted(tmp_path.iterdir()) == before
    assert not Path(values["run_dir"]).exists()
    assert [line.split(":")[0] for line in out[-4:]] == ["preflight", "memory", "disk", "hub"]
    assert re.match(r"preflight: 8 images of 32x32 read in \d\.\d s, forward and backward in \d\.\d s, loss ", out[-4])
    assert re.match(r"memory: about \S+ MB \(weights .*, gradients .*, optimizer .*, activations .*\); ", out[-3])
    assert out[-1] == "hub: tester/dry can be written to"


def test_dry_run_beside_a_run_checks_what_the_next_would_be(recipe):
    values = recipe("vit", train={"max_steps": 1})
    run = finetune(values).folder
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    assert dry_run(values, ["train.batch_size=4"]).images == 4
    with pytest.raises(RecipeError, match="'acuracy' is not measured here"):
        dry_run(values, ["eval.metric=acuracy"])
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


def test_dry_run_names_classes_that_cannot_be_learnt(recipe, photos, tmp_path, capsys):
    data = shutil.copytree(photos, tmp_path / "photos")
    shutil.rmtree(data / "train" / "green")
    dry_run(recipe("vit", data={"id": str(data)}))
    assert "labels: no training sample of green\n" in capsys.readouterr().out


def test_what_a_run_would_fail_of_fails_before(recipe, hub, photos, tmp_path, capsys):
    file = tmp_path / "recipe.yaml"

    def refused(code: int, **sections) -> str:
        file.write_text(json.dumps(recipe("vit", **sections)))
        assert cli.main(["train", str(file), "--dry-run"]) == code
        return capsys.readouterr().err

    assert "cannot create somebody/else" in refused(3, hub={"repo_id": "somebody/else"})
    assert str(tmp_path / "nothing") in refused(2, data={"id": str(tmp_path / "nothing")})
    assert "no-such-optimizer" in refused(2, train={"optim": "no-such-optimizer"})
    broken = shutil.copytree(photos, tmp_path / "photos")
    content = bytearray((broken / "train" / "red" / "3.png").read_bytes())
    content[len(content) // 2 : len(content) // 2 + 200] = bytes(200)
    for number in range(8):
        for name in ("red", "green", "blue"):
            (broken / "train" / name / f"{number}.png").write_bytes(content)
    assert "train/" in refused(2, data={"id": str(broken), "on_bad_sample": "stop"})


def test_dry_run_compares_recipes_of_a_resume(recipe, tmp_path, capsys):
    values = recipe("vit", train={"max_steps": 1})
    finetune(values)
    file = tmp_path / "recipe.yaml"
    file.write_text(json.dumps(values))
    assert cli.main(["train", str(file), "--dry-run", "--resume", "train.seed=3"]) == 2
    assert "train.seed was 42, is 3" in capsys.readouterr().err
    assert cli.main(["train", str(file), "--dry-run", "--resume", "train.max_steps=2"]) == 0


# Too little ----------------------------------------------------------------------------------------------------------


def test_too_little_disk_is_told_before_training(recipe, trainer_of, tmp_path, monkeypatch):
    """Two checkpoints are kept and a third is written before the oldest goes; and the model."""
    train = {"max_steps": 9, "save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps", "eval_steps": 1}
    trainer = trainer_of(recipe("vit", train={**train, "ema": 0.5}))
    one = trainer.checkpoint_size()
    weights = 4 * sum(parameter.numel() for parameter in trainer.model.parameters())
    assert one == pytest.approx(4 * weights, rel=0.01)
    need = 3 * one + weights
    for free, enough in ((need, True), (need - 100_000, False)):
        monkeypatch.setattr("shutil.disk_usage", lambda _, free=free: SimpleNamespace(free=free))
        if enough:
            assert preflight(trainer, tmp_path / "not there yet" / "run").disk == need
        else:
            with pytest.raises(ResourceError, match=r"0\.1 MB are missing\.\nMake room") as error:
                preflight(trainer, tmp_path / "run")
            assert len(str(error.value).splitlines()) == 2


@pytest.mark.parametrize(
    ("train", "checkpoints"),
    [
        ({"save_total_limit": None, "max_steps": -1, "num_train_epochs": 4}, 4),
        ({"save_total_limit": None, "max_steps": 7}, 3),
        ({"save_total_limit": 1, "max_steps": 7}, 2),  # the best and the newest
        ({"save_strategy": "no", "eval_strategy": "no"}, 1),  # as when it is interrupted
        (
            {"save_total_limit": 5, "max_steps": 9, "save_strategy": "steps", "save_steps": 0.5, "eval_strategy": "no"},
            3,
        ),
    ],
)
def test_disk_by_the_number_of_checkpoints(recipe, trainer_of, tmp_path, train, checkpoints):
    trainer = trainer_of(recipe("vit", train=train))
    weights = 4 * sum(parameter.numel() for parameter in trainer.model.parameters())
    assert preflight(trainer, tmp_path).disk == (checkpoints + 1) * trainer.checkpoint_size() + weights


def greedy(monkeypatch, most: int, error: Callable[[], object]) -> list[int]:
    """Models that have no memory for more than so many images at once; returns the batches that were tried."""
    forward, tried = ViTForImageClassification.forward, []

    @wraps(forward)  # whose signature tells that it can be trained
    def limited(self, pixel_values=None, **named):
        tried.append(len(pixel_values))
        if self.training and len(pixel_values) > most:
            error()
        return forward(self, pixel_values=pixel_values, **named)

    monkeypatch.setattr(ViTForImageClassification, "forward", limited)
    return tried


def allocate() -> None:
    torch.empty(1 << 50)


def no_memory() -> None:
    raise MemoryError


def no_device_memory() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


@pytest.mark.parametrize("error", [allocate, no_memory, no_device_memory])
def test_out_of_memory_names_a_batch_that_was_tried(recipe, monkeypatch, error):
    tried = greedy(monkeypatch, 3, error)
    values = recipe("vit", train={"batch_size": 12})
    with pytest.raises(ResourceError) as refused:
        finetune(values)
    assert str(refused.value) == (
        "out of memory with 12 image(s) per device at once; 3 fit.\nTry 3: train.gradient_accumulation_steps=4 is the "
        "same training, train.batch_size=3 another; in scoring: eval.batch_size."
    )
    assert tried == [12, 6, 3]
    assert finetune(values, ["train.gradient_accumulation_steps=4"], resume=True).metrics["train"]["steps"] == 3


def test_what_would_be_killed_is_not_tried(recipe, trainer_of, tmp_path, monkeypatch):
    """Linux gives more memory than there is, and then ends whoever uses it: the forward stops before."""
    trainer = trainer_of(recipe("vit", train={"batch_size": 12}))
    memory = SimpleNamespace(free=1 << 60, taken=0)

    def begin(*_: object) -> None:
        memory.taken = 0

    def take(module: torch.nn.Module, args: object, made: object) -> None:
        memory.taken += made.nbytes if isinstance(made, torch.Tensor) else 0

    trainer.model.register_forward_pre_hook(begin)
    for module in trainer.model.modules():
        module.register_forward_hook(take)
    found = preflight(trainer, tmp_path)
    whole, rest = memory.taken, found.more - found.memory["activations"]
    module = sys.modules["cv_hf.training.preflight"]
    monkeypatch.setattr(module, "memory_free", lambda: memory.free - memory.taken)
    monkeypatch.setattr("psutil.swap_memory", lambda: SimpleNamespace(free=0))
    for share, fits in ((1.5, 12), (0.8, 6), (0.4, 3)):
        memory.free, memory.taken = int(rest + share * whole), 0
        if fits == 12:
            assert preflight(trainer, tmp_path).images == 12
        else:
            with pytest.raises(ResourceError, match=f"12 image.* at once; {fits} fit"):
                preflight(trainer, tmp_path)


def held() -> int:
    """Bytes of all tensors there are."""
    gc.collect()
    tensors = [each for each in gc.get_objects() if issubclass(type(each), torch.Tensor)]
    return sum({tensor.data_ptr(): tensor.nbytes for tensor in tensors}.values())


def test_a_batch_that_did_not_fit_is_let_go(recipe, trainer_of, tmp_path):
    """Else the smaller ones that are tried after it have the less room."""
    trainer = trainer_of(recipe("vit"))

    def fail(module: torch.nn.Module, args: object) -> None:
        raise MemoryError

    trainer.model.classifier.register_forward_pre_hook(fail)
    before = held()
    with pytest.raises(ResourceError):
        preflight(trainer, tmp_path)
    assert held() == before


def test_out_of_memory_in_the_middle_of_training(recipe, monkeypatch, capsys):
    """As when other programs take it: preflight had enough."""
    values = recipe("vit", train={"batch_size": 6, "gradient_accumulation_steps": 2})
    (Path(values["run_dir"]).parent / "recipe.yaml").write_text(json.dumps(values))
    step, left = Trainer.training_step, [3]

    def limited(self, *arguments, **named):
        left[0] -= 1
        if left[0] == 0:
            allocate()
        return step(self, *arguments, **named)

    monkeypatch.setattr(Trainer, "training_step", limited)
    assert cli.main(["train", str(Path(values["run_dir"]).parent / "recipe.yaml")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("cv-hf: out of memory with 3 image(s) per device at once.\nTry 1: ")
    assert "train.gradient_accumulation_steps=6 is the same training, train.batch_size=2 another" in error


def test_not_even_one_image(recipe, monkeypatch):
    greedy(monkeypatch, 0, allocate)
    with pytest.raises(ResourceError, match=r"out of memory with 8 .*\n.*model\.image_size"):
        dry_run(recipe("vit"))


def test_what_is_no_want_of_memory():
    assert not out_of_memory(RuntimeError("a bug"))
    assert out_of_memory(RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "))
    assert out_of_memory(RuntimeError("could not create a primitive"))
    assert not out_of_memory(RuntimeError("could not create a primitive descriptor for a convolution"))
    arguments = SimpleNamespace(per_device_train_batch_size=7, gradient_accumulation_steps=1, world_size=2)
    assert "Try 1: train.gradient_accumulation_steps=7 is the same" in str(memory_error(arguments))
    assert "train.batch_size=2 another" in str(memory_error(arguments))


def test_a_trainer_without_notes_is_one_too(recipe, tmp_path):
    """As that of a script of one's own."""
    task = get_task("image-classification")
    values = resolve(load_recipe(recipe("vit")), task)
    splits, built, _ = prepare(values, task, tmp_path, None)
    build_trainer(values, task, splits, built, tmp_path).train()
    assert (tmp_path / "checkpoints" / "checkpoint-3" / "manifest.json").is_file()
