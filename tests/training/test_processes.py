"""One training in 1, 2 or 3 processes: the same steps, numbers, files and push; each goes on from another's checkpoint.

In float64, so that what is left of a difference is the order of sums.

Where the published loss forbids it, it is not asked for: batch normalization, dropout and the random points of
Mask2Former's and RF-DETR's masks are drawn or counted in each process for itself, OneFormer contrasts the texts of one
process's batch, and terms that are means over the queries or objects of a batch (the classes of DETR and MaskFormer,
all terms of RT-DETR, D-FINE and DEIMv2) weigh images by their objects, so that these are as many in each.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

from cv_hf.finetuning import finetune
from cv_hf.launch import launch
from tests.made import write_photos, write_shapes
from tests.training.processes import walk

# The last step of an epoch has 1 or 5 of 6 images, so that some processes have none or fewer; of 12, accumulated from
# two micro-batches, it has 8, as 6 and 2.
TASKS: dict[str, tuple[str, str, int, dict[str, Any]]] = {
    "classification": (
        "image-classification",
        "vit",
        32,
        {"ema": 0.9, "batch_size": 12, "gradient_accumulation_steps": 2, "max_steps": 4},
    ),
    "detection": ("object-detection", "yolos", 13, {"multi_scale": [0.5, 1.5]}),
    "semantic": ("semantic-segmentation", "sapiens2_semantic", 17, {}),
    "instance": ("instance-segmentation", "maskformer", 17, {"backbone_lr": 1e-5}),
    # The loss of the last step is left over when training ends.
    "panoptic": ("panoptic-segmentation", "maskformer", 13, {"ema": 0.9, "logging_steps": 2}),
}
# Of an untrained model every score is 0.
LEARNT = {
    "yolos": ("object-detection", {"max_steps": 30, "lr_scheduler_type": "constant", "multi_scale": None}),
    "maskformer": ("panoptic-segmentation", {"max_steps": 80, "lr_scheduler_type": "cosine"}),
}
# Sapiens 2 trains at positions drawn anew.
CONFIG = {"sapiens2_semantic": {"pos_embed_rescale": None}}
MIDDLE = 2
# (task, processes that began, processes that go on)
RESUMED = [("classification", 1, 2), ("detection", 1, 2), *((name, 3, 1) for name in TASKS)]
LAUNCHERS = {
    2: [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2",
        "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"],
    3: [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "3"],
}  # fmt: skip
SCRIPT = Path(__file__).with_name("processes.py")
ROOT = Path(__file__).parents[2]
SECONDS = 600
TIMES = re.compile(r"seconds|per_second|runtime")


class Walks:
    """Runs in folders NAME-PROCESSES, and what each process returned of them."""

    def __init__(self, folder: Path, recipes: Mapping[str, dict[str, Any]]):
        self.folder, self.recipes = folder, recipes
        self.found: dict[str, list[dict[str, Any]]] = {}
        self.printed: dict[int, str] = {}

    def run(self, processes: int, *, fresh: bool = False, resumed: Iterable[tuple[str, int]] = ()) -> None:
        """Walk all tasks, and go on with (task, processes that began it), in one launch."""
        jobs = {}
        for name in self.recipes if fresh else ():
            values = self.recipes[name]
            if name == "classification":
                values = {**values, "hub": {"repo_id": f"tester/processes-{processes}"}}
            jobs[f"{name}-{processes}"] = {"recipe": values, "resume": False}
        for name, began in resumed:
            self.interrupt(self.folder / f"{name}-{began}", self.folder / f"{name}-{began}-{processes}")
            jobs[f"{name}-{began}-{processes}"] = {"recipe": self.recipes[name], "resume": True}
        for folder, job in jobs.items():
            job["recipe"] = {**job["recipe"], "run_dir": str(self.folder / folder)}
        out = self.folder / "out"
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        (self.folder / "jobs.json").write_text(json.dumps(jobs))
        if processes == 1:
            walk(self.folder / "jobs.json", out)
        else:
            self.printed[processes] = self.launch(LAUNCHERS[processes])
        ranks = [json.loads((out / f"{rank}.json").read_text()) for rank in range(processes)]
        self.found.update({folder: [rank[folder] for rank in ranks] for folder in jobs})

    def launch(self, launcher: list[str]) -> str:
        command = [*launcher, str(SCRIPT), str(self.folder / "jobs.json"), str(self.folder / "out")]
        here = self.folder / "here"
        here.mkdir(exist_ok=True)
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        with subprocess.Popen(command, cwd=here, env=environment, start_new_session=True, **pipes) as launched:
            try:
                printed, errors = launched.communicate(timeout=SECONDS)
            finally:
                if launched.poll() is None:
                    os.killpg(launched.pid, signal.SIGKILL)
        assert launched.returncode == 0, errors
        return printed

    @staticmethod
    def interrupt(whole: Path, copy: Path) -> None:
        """What is left of a run that ends after its checkpoint in the middle."""
        shutil.copytree(whole, copy)
        for later in (copy / "checkpoints").glob("checkpoint-*"):
            if later.name != f"checkpoint-{MIDDLE}":
                shutil.rmtree(later)
        for later in ("model", "predictions"):
            shutil.rmtree(copy / later)
        for later in ("metrics.json", "checkpoints/finished.json"):
            (copy / later).unlink()


def damage(photo: Path) -> None:
    """Only decoding finds it broken: its header and its end are right, its middle is not."""
    content = bytearray(photo.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 200] = bytes(200)
    photo.write_bytes(content)


@pytest.fixture(scope="module")
def walks(tiny, tmp_path_factory) -> Walks:
    """Each task begun in 1, 2 and 3 processes, and some gone on with in others."""
    folder = tmp_path_factory.mktemp("processes")
    photos = write_photos(folder / "photos", {"train": 11, "validation": 2, "test": 1})
    shapes = write_shapes(folder / "shapes", {"train": 31, "val": 7, "test": 1}, alike=True)
    for broken in ("train/green/2.png", "validation/red/1.png"):
        damage(photos / broken)
    data = {"image-classification": photos}
    usual = {"batch_size": 6, "learning_rate": 1e-4, "bf16": False}
    start = {family: tiny(family) for _, family, _, _ in TASKS.values()}
    for family, (task, train) in LEARNT.items():
        often = {"batch_size": 4, "learning_rate": 5e-3, "bf16": False, "warmup_steps": 0}
        often |= {"save_strategy": "no", "eval_strategy": "no", **train}
        model = {"id": str(tiny(family))}
        values = {"task": task, "model": model, "data": {"id": str(shapes)}, "augment": [], "train": often}
        start[family] = finetune({**values, "run_dir": str(folder / family)}).model
    steps = {"max_steps": 3, "logging_steps": 1, "save_total_limit": None}
    steps |= {"eval_strategy": "steps", "eval_steps": MIDDLE, "save_strategy": "steps", "save_steps": MIDDLE}
    recipes = {
        name: {
            "task": task,
            "model": {"id": str(start[family]), "config": CONFIG.get(family, {})},
            "data": {"id": str(data.get(task, shapes)), "max_samples": images},
            "eval": {"batch_size": 2},
            "augment": ["HorizontalFlip"],
            "train": {**usual, **steps, **train},
        }
        for name, (task, family, images, train) in TASKS.items()
    }
    made = Walks(folder / "runs", recipes)
    made.folder.mkdir()
    made.run(1, fresh=True)
    for processes in (2, 3, 1):
        made.run(processes, fresh=processes > 1, resumed=[pair[:2] for pair in RESUMED if pair[2] == processes])
    return made


def flat(value: Any, path: str = "") -> dict[str, Any]:
    """Every leaf by its path, but for times."""
    if isinstance(value, Mapping | list):
        items = value.items() if isinstance(value, Mapping) else enumerate(value)
        return {name: leaf for key, item in items for name, leaf in flat(item, f"{path}/{key}").items()}
    return {} if TIMES.search(path) else {path: value}


def same(found: Any) -> dict[str, Any]:
    leaves = flat(found).items()
    return {
        name: pytest.approx(leaf, rel=1e-9, abs=1e-12) if isinstance(leaf, float) else leaf for name, leaf in leaves
    }


def stepwise(log: list[dict]) -> list[dict]:
    return [line for line in log if "train_runtime" not in line]


@pytest.mark.parametrize("processes", [2, 3])
@pytest.mark.parametrize("name", TASKS)
def test_the_same_steps_and_the_same_metrics_in_every_process(walks, name, processes):
    alone = walks.found[f"{name}-1"][0]
    lines = [line for line in alone["log"] if "grad_norm" in line]
    assert [line["step"] for line in lines] == {"panoptic": [2], "classification": [1, 2, 3, 4]}.get(name, [1, 2, 3])
    assert alone["metrics"]["validation"]["num_samples"] == (5 if name == "classification" else 7)
    assert alone["metrics"]["test"]["num_samples"] == (3 if name == "classification" else 1)
    for rank in walks.found[f"{name}-{processes}"]:
        assert flat(rank) == same(alone)


@pytest.mark.parametrize("name", TASKS)
def test_the_metrics_that_are_compared_say_something(walks, name):
    metrics = walks.found[f"{name}-1"][0]["metrics"]
    main = {"classification": "accuracy", "detection": "map", "semantic": "mean_iou", "instance": "mask_map"}
    assert 0 < metrics["validation"][main.get(name, "pq")] < 1


@pytest.mark.parametrize("processes", [2, 3])
@pytest.mark.parametrize("name", TASKS)
def test_one_run_directory(walks, name, processes):
    """With one random state for each process in a checkpoint; nothing is written elsewhere."""

    def files(folder: Path) -> list[str]:
        paths = sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))
        return [path for path in paths if "/rng_state" not in path]

    alone, together = (walks.folder / f"{name}-{number}" for number in (1, processes))
    assert files(together) == files(alone)
    assert "log.jsonl" in files(together)
    states = {path.name for path in together.glob(f"checkpoints/checkpoint-{MIDDLE}/rng_state*")}
    assert states == {f"rng_state_{rank}.pth" for rank in range(processes)}
    lines = [json.loads(line) for line in (together / "log.jsonl").read_text().splitlines()]
    assert [flat(line) for line in lines] == [flat(line) for line in walks.found[f"{name}-{processes}"][0]["log"]]
    metrics = json.loads((together / "metrics.json").read_text())
    assert metrics == walks.found[f"{name}-{processes}"][0]["metrics"]
    assert not list((walks.folder / "here").iterdir())


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_one_push(walks, hub, processes):
    repository = hub.repo(f"tester/processes-{processes}")
    assert [commit.title for commit in repository.commits] == ["Fine-tuned with cv_hf", "initial commit"]
    weights = walks.folder / f"classification-{processes}" / "model" / "model.safetensors"
    assert repository.files()["model.safetensors"] == weights.read_bytes()


@pytest.mark.parametrize("processes", [2, 3])
def test_one_voice(walks, processes):
    """But of a file that one process alone met, which it tells itself."""
    begun = sum(len(ranks) == processes for ranks in walks.found.values())
    assert walks.printed[processes].count("training on ") == begun
    assert walks.printed[processes].count("step 1/") == len(TASKS) - 1


def assert_resumed(walks: Walks, name: str, began: int, processes: int) -> None:
    whole = walks.found[f"{name}-{began}"][0]
    for rank in walks.found[f"{name}-{began}-{processes}"]:
        assert [flat(line) for line in stepwise(rank["log"])] == [same(line) for line in stepwise(whole["log"])]
        assert flat(rank["metrics"]["validation"]) == same(whole["metrics"]["validation"])
        assert flat(rank["metrics"]["test"]) == same(whole["metrics"]["test"])
    lines = [json.loads(line) for line in (walks.folder / f"{name}-{began}-{processes}" / "log.jsonl").open()]
    assert [line["step"] for line in lines] == [line["step"] for line in whole["log"]]


@pytest.mark.parametrize(("name", "began", "processes"), RESUMED)
def test_other_processes_go_on(walks, name, began, processes):
    assert_resumed(walks, name, began, processes)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2, 3])
def test_any_processes_go_on_from_any(walks, processes):
    pairs = [(name, began) for name in TASKS for began in (1, 2, 3)]
    walks.run(processes, resumed=[(n, b) for n, b in pairs if f"{n}-{b}-{processes}" not in walks.found])
    for name, began in pairs:
        assert_resumed(walks, name, began, processes)


BROKEN = """
import os, sys
import transformers
from cv_hf import cli

compute = transformers.Trainer.compute_loss

def broken(self, *arguments, **named):
    loss, outputs = compute(self, *arguments, **named)
    return (loss * float("nan") if os.environ["RANK"] == "1" and self.state.global_step else loss), outputs

transformers.Trainer.compute_loss = broken
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_what_one_process_alone_cannot_go_on_from_ends_all(detection_recipe, tmp_path, capfd):
    """Another waits for it in the middle of a backward pass; no deadlock, and one error."""
    (tmp_path / "broken.py").write_text(BROKEN)
    (tmp_path / "recipe.yaml").write_text(json.dumps(detection_recipe("yolos")))
    command = [sys.executable, str(tmp_path / "broken.py")]
    capfd.readouterr()
    assert launch(2, ["train", str(tmp_path / "recipe.yaml")], command=command) == 2
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("cv-hf: the loss is not finite at step 2, on train/")
