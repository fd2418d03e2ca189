"""Writes the support matrix: `python -m tests.support [WORD ...]` runs a tiny model of every family (of those whose row
has all WORDs) and writes what it found to cv_hf/support.json and into README.md.
"""

from __future__ import annotations

import contextlib
import gc
import io
import json
import math
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cache, cached_property, partial
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest import mock

import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig, TrainerCallback, set_seed

from cv_hf import support
from cv_hf.config import DataConfig, ModelConfig, load_recipe
from cv_hf.data import Splits, load_splits
from cv_hf.environment import quiet
from cv_hf.errors import ModelError
from cv_hf.finetuning import build_trainer, finetune
from cv_hf.inference import Trained, load_trained
from cv_hf.models import build_model
from cv_hf.tasks import get_task
from cv_hf.training import EvalSamples, forward, resolve
from cv_hf.verify import verify
from tests.made import write_photos, write_shapes
from tests.tiny import TINY_FAMILIES, UNTRAINABLE, Family, _timm, tiny_model
from tests.tiny_detection import DETECTION_FAMILIES, UNTRAINABLE_DETECTORS
from tests.tiny_segmentation import (
    INSTANCE_FAMILIES,
    SEMANTIC_FAMILIES,
    UNIVERSAL_FAMILIES,
    UNTRAINABLE_SEGMENTERS,
)

README = Path(__file__).parents[1] / "README.md"
BEGIN, END = "<!-- support matrix: written by `make matrix` -->", "<!-- end of the support matrix -->"
# Beside those of tests/tiny.py: further families of timm, the last at its full size, since it has no smaller one.
TIMM = {name: Family("timm_wrapper", _timm(name), None) for name in ("test_byobnet", "test_mambaout", "test_nfnet")}
TIMM["inception_v3"] = Family("timm_wrapper", _timm("inception_v3", 80), None, size=(80, 80))
MODELS: dict[str, Mapping[str, Family]] = {
    "image-classification": {**TINY_FAMILIES, **TIMM},
    "object-detection": DETECTION_FAMILIES,
    "semantic-segmentation": {**SEMANTIC_FAMILIES, **UNIVERSAL_FAMILIES},
    "instance-segmentation": {**UNIVERSAL_FAMILIES, **INSTANCE_FAMILIES},
    "panoptic-segmentation": UNIVERSAL_FAMILIES,
    "universal-segmentation": UNIVERSAL_FAMILIES,
}
# They differ from another checkpoint of their family only in how they load.
SAME_MODEL = {"deit_distilled", "dinov2_bare", "eomt_split", "levit_teacher", "vit_bare"}
REFUSED = UNTRAINABLE.keys() | UNTRAINABLE_DETECTORS.keys() | UNTRAINABLE_SEGMENTERS.keys()
OUTPUTS = ("logits", "pred_boxes", "pred_masks", "class_queries_logits", "masks_queries_logits")
# What a published loss has that no accumulation can follow, and the configuration without it.
_MATCHED = ({"auxiliary_loss": False}, "the division of its loss by the boxes that all layers of a micro-batch match")
BEYOND_IMAGES = {
    "d_fine": _MATCHED,
    "deimv2": _MATCHED,
    "oneformer": ({"contrastive_weight": 0.0}, "its contrastive loss, which compares the images of a micro-batch"),
}


class Row(NamedTuple):
    """A line of the matrix: the tiny model `made`, of those in MODELS, or None where there is none."""

    task: str
    family: str
    variant: str = ""
    made: str | None = None

    def __str__(self) -> str:
        return "-".join(filter(None, (self.task, self.family, self.variant)))


def rows() -> list[Row]:
    """Every line that there is in the installed Transformers."""
    found = []
    for task, families in support.families().items():
        for family in families:
            made = [
                (_variant(family, key, tiny), key)
                for key, tiny in MODELS[task].items()
                if tiny.model_type == family and key not in SAME_MODEL
            ]
            for variant, key in sorted(made) or [("", None)]:
                found.append(Row(task, family, variant if len(made) > 1 else "", key))
    return found


def _variant(family: str, key: str, tiny: Family) -> str:
    if family == "timm_wrapper":
        return tiny.config["architecture"].removeprefix("test_")
    return key.removeprefix(family).strip("_")


@cache
def _datasets() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix="matrix-")


@cache
def dataset(kind: str) -> Path:
    """A dataset for all rows: "photos", "shapes"; "alike", one batch whose images have as many objects; "uneven"."""
    folder = Path(_datasets().name) / kind
    if kind == "photos":
        return write_photos(folder, {"train": 4, "validation": 1, "test": 2})
    counts = {"train": 12, "val": 4, "test": 4} if kind == "shapes" else {"train": 4, "val": 2, "test": 4}
    return write_shapes(folder, counts, alike=kind != "shapes", uneven=kind == "uneven")


def measure(row: Row) -> dict[str, Any]:
    """Run the tiny model of a row and try every check of the matrix on it."""
    checks = dict.fromkeys(support.CHECKS, "-")
    gc.freeze()  # training collects garbage twice, which takes longer than all else where much was imported
    with tempfile.TemporaryDirectory(prefix="matrix-") as folder, contextlib.redirect_stdout(io.StringIO()):
        subject = Subject(row, Path(folder))
        for name in support.CHECKS:
            try:
                checks[name] = getattr(subject, name)() or "yes"
            except Untried:
                return support.untried(row.task, row.family)
            except Exception as error:
                checks[name] = reason(error)
                if name == "trains":
                    break
    return {"task": row.task, "family": row.family, "variant": row.variant, "checks": checks}


class Untried(Exception):
    """There is no tiny model of the family."""


def reason(error: Exception) -> str:
    """Why a check fails, in a few words that are the same on every machine, and whose fault it is."""
    text = re.sub(r"/[^\s:]*/[^\s:]*", "...", str(error).partition("\n")[0])
    if isinstance(error, ImportError):
        return f"missing package: {error.name or text}"
    if isinstance(error, ModelError):
        # A tiny model is whole, so it is refused for what its class lacks.
        words = text.partition(": ")[2].rpartition("cannot be trained: ")[2] or text
        return f"Transformers: {words.removeprefix('Transformers ').rstrip('.')}"
    frame = traceback.extract_tb(error.__traceback__)[-1].filename
    whose = "Transformers" if "site-packages" in frame and "torch/testing" not in frame else "ours"
    return f"{whose}: {text or type(error).__name__}"[:120]


def expect(condition: Any, words: str) -> None:
    if not condition:
        raise AssertionError(words)


class Subject:
    """The tiny model of a row, with one method for each check, in the order of the matrix.

    A method returns None for yes, words that begin with "yes" for a yes with a note, and raises for no.
    """

    def __init__(self, row: Row, folder: Path):
        self.row, self.folder = row, folder
        self.task = get_task(row.task)
        self.data = dataset("photos" if row.task == "image-classification" else "shapes")
        self.runs = 0

    def recipe(self, data: Path, config: Mapping[str, Any] = {}, **train: Any) -> dict[str, Any]:
        self.runs += 1
        return {
            "task": self.row.task,
            "model": {"id": str(self.model), "config": dict(config)},
            "data": {"id": str(data)},
            "train": {"batch_size": 4, "logging_steps": 1, "bf16": False, **train},
            "run_dir": str(self.folder / f"run-{self.runs}"),
        }

    def trains(self) -> None:
        self.model = self.folder / "model"
        if self.row.made:
            tiny_model(MODELS[self.row.task][self.row.made], self.model)
        elif self.row.family in REFUSED:
            write_empty(self.row.family, self.model)
        else:
            raise Untried
        train = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2}
        self.values = self.recipe(self.data, **train, max_steps=4, learning_rate=1e-3, save_total_limit=None)
        self.run = finetune(self.values)
        expect(all(math.isfinite(value) for value in flat(logged(self.run.log))), "a loss that is not finite")

    def resumes(self) -> None:
        """From step 2 of 4; an epoch has 3."""
        weights = load_file(self.run.model / "model.safetensors")
        checkpoints = self.run.folder / "checkpoints"
        shutil.rmtree(checkpoints / "checkpoint-4")
        (checkpoints / "finished.json").unlink()
        resumed = finetune(self.values, resume=True)
        expect(logged(resumed.log) == logged(self.run.log), "the resumed run goes another way")
        again = load_file(resumed.model / "model.safetensors")
        expect(all(torch.equal(again[name], tensor) for name, tensor in weights.items()), "the resumed weights differ")

    @cached_property
    def trained(self) -> Trained:
        return load_trained(self.run.model)

    def reloads(self) -> None:
        autos = [self.task.auto_class] if isinstance(self.task.auto_class, str) else self.task.auto_class
        config = AutoConfig.from_pretrained(self.run.model)
        auto = next(a for a in (getattr(transformers, name) for name in autos) if type(config) in a._model_mapping)
        model, info = auto.from_pretrained(self.run.model, output_loading_info=True)
        ours = self.trained.model.state_dict()
        # OneFormer's text encoder is kept to train on, and left over where a model only predicts.
        left = set(info.pop("unexpected_keys")) - (ours.keys() if self.row.family == "oneformer" else set())
        expect(not left and not any(info.values()), "tensors of the saved model are missing or left over")
        expect(all(torch.equal(ours[name], tensor) for name, tensor in model.state_dict().items()), "weights differ")

    def pipeline(self) -> None:
        with mock.patch("cv_hf.verify.subprocess", SimpleNamespace(Popen=clean().popen, PIPE=None)):
            verdict = verify(self.run.folder, str(self.data), echo=lambda line: None)
        expect(verdict.passed, "pipeline() answers otherwise")
        expect(verdict.evidence == verdict.images, "evidence is missing")

    def learns(self) -> None:
        falling = Falling()
        self.losses("alike", max_steps=60, learning_rate=3e-3, callbacks=[falling])
        expect(falling.has_fallen, "the loss does not fall")

    def dropout(self) -> None:
        model = self.with_dropout(0.5)
        once, again = (self.answers(model.train(), 4) for _ in range(2))
        expect(equal(once, again, 0.0), "two evaluations differ")
        expect(equal(once, self.answers(self.with_dropout(0.0), 4), 1e-6), "dropout stays on in evaluation")

    def alone(self) -> None:
        together, alone = (self.answers(self.trained.model, size) for size in (4, 1))
        expect(equal(together, alone, 1e-4), "a prediction depends on its batch")

    def accumulates(self) -> str | None:
        config, note = BEYOND_IMAGES.get(self.row.family, ({}, None))
        expect(self.follows("alike", config), "accumulation goes another way")
        if note:
            return f"yes, but for {note}"
        is_even = self.row.task == "image-classification" or self.follows("uneven", config)
        return None if is_even else support.MICRO_BATCH

    def follows(self, data: str, config: Mapping[str, Any]) -> bool:
        """Whether 4 accumulated batches of 1 go the way of a batch of 4.

        Dropout is 0, batch norms stand still, and what is drawn at random is drawn alike for every image.
        """
        with alike_draws():
            whole, parts = (
                self.losses(data, {**dropout_fields(self.model, 0.0), **config}, still=True, max_steps=3,
                            learning_rate=1e-3, optim="sgd", gradient_accumulation_steps=steps)
                for steps in (1, 4)
            )  # fmt: skip
        return all(math.isclose(one, other, rel_tol=1e-4) for one, other in zip(flat(whole), flat(parts), strict=True))

    def losses(
        self, data: str, config: Mapping[str, Any] = {}, *, still: bool = False, callbacks: Any = (), **train: Any
    ) -> list[tuple[float, float]]:
        """Train on one batch, each time anew, and return loss and gradient norm of each step."""
        folder = dataset("photos" if self.row.task == "image-classification" else data)
        plain = {"eval_strategy": "no", "save_strategy": "no", "lr_scheduler_type": "constant", "warmup_steps": 0}
        values = self.recipe(folder, config, **plain, multi_scale=None, ema=None, **train)
        recipe = resolve(load_recipe({**values, "augment": []}), self.task)
        splits = splits_of(self.row.task, str(folder), 4)
        set_seed(0)
        built = build_model(
            recipe.model, self.task.auto_class, self.task.model_fields(splits.labels, splits.train.column_names)
        )
        # One subtask for all, which decides how many objects an image has.
        task = replace(self.task, subtasks=self.task.subtasks[:1])
        if still:
            set_dropout(built.model, 0.0)
            built.model.register_forward_pre_hook(hold_still)
        trainer = build_trainer(recipe, task, splits, built, Path(recipe.run_dir))
        for callback in callbacks:
            trainer.add_callback(callback)
        Path(recipe.run_dir).mkdir(exist_ok=True)
        trainer.train()
        return logged(trainer.state.log_history)

    def with_dropout(self, share: float) -> nn.Module:
        config = ModelConfig(id=str(self.run.model), config=dropout_fields(self.run.model, share))
        model = build_model(config, self.task.auto_class, {}).model
        set_dropout(model, share)
        return model

    def answers(self, model: nn.Module, batch_size: int) -> dict[tuple, torch.Tensor]:
        """What a model gives for the images of the test split, by evaluation's own forward."""
        kind = "photos" if self.row.task == "image-classification" else "alike"
        splits = splits_of(self.row.task, str(dataset(kind)), 4)
        found = {}
        samples = EvalSamples(splits.test, self.trained.processor)
        subtasks = self.task.subtasks
        for group, outputs in forward(
            model, samples, range(4), batch_size=batch_size, on_findings=list, subtasks=subtasks
        ):
            for name in OUTPUTS:
                if outputs.get(name) is not None:
                    for index, value in zip(group.ids, outputs[name], strict=True):
                        found[name, index, group.subtask] = value.clone()
        return found


@cache
def splits_of(task: str, folder: str, max_samples: int | None) -> Splits:
    return load_splits(DataConfig(id=folder, max_samples=max_samples), get_task(task), seed=0, echo=lambda line: None)


def logged(log: list[dict[str, Any]]) -> list[tuple[float, float]]:
    return [(line["loss"], line["grad_norm"]) for line in log if "loss" in line]


def flat(pairs: list[tuple[float, float]]) -> list[float]:
    return [value for pair in pairs for value in pair]


def equal(ones: Mapping[tuple, torch.Tensor], others: Mapping[tuple, torch.Tensor], tolerance: float) -> bool:
    return len(ones) > 0 and all(
        (ones[key] - others[key]).abs().max() <= tolerance * ones[key].abs().max().clamp(min=1e-3) for key in ones
    )


def dropout_fields(model: Path, share: float) -> dict[str, Any]:
    """The fields of a model's configuration that are a probability to drop something, set to `share`."""

    def found(values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
        for name, value in values.items():
            if isinstance(value, dict) and (inner := dict(found(value))):
                yield name, inner
            elif "drop" in str(name) and isinstance(value, (int, float)) and not isinstance(value, bool):
                yield name, type(value)(share)  # LeViT takes whole numbers only, which is to say 0
            elif "drop" in str(name) and isinstance(value, list):
                yield name, [share] * len(value)

    config = AutoConfig.from_pretrained(model).to_dict()
    return dict(found(config))


def set_dropout(model: nn.Module, share: float) -> None:
    """Where its share is not a field of the configuration."""
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = share


def hold_still(model: nn.Module, inputs: Any) -> None:
    """Batch norms use their running statistics, as where they are frozen, and every forward draws the same numbers."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()


class Falling(TrainerCallback):
    """Ends a training once its loss has fallen by a tenth, over two steps."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    @property
    def has_fallen(self) -> bool:
        return len(self.losses) > 3 and sum(self.losses[-2:]) < 0.9 * sum(self.losses[:2])

    def on_log(self, args: Any, state: Any, control: Any, logs: dict | None = None, **kwargs: Any) -> None:
        if "loss" in (logs or {}):
            self.losses.append(logs["loss"])
            control.should_training_stop |= self.has_fallen


@contextlib.contextmanager
def alike_draws() -> Iterator[None]:
    """Random numbers of a loss (the points of masks, the noise of denoising queries) are the same for each image."""

    def drawn(function: Callable[..., torch.Tensor], *arguments: Any, **more: Any) -> torch.Tensor:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            values = function(*arguments, **more)
        return values[:1].expand_as(values).clone() if values.ndim > 1 else values

    names = ("rand", "rand_like", "randint_like", "randn_like")
    with contextlib.ExitStack() as stack:
        for name in names:
            stack.enter_context(mock.patch.object(torch, name, partial(drawn, getattr(torch, name))))
        yield


def write_empty(family: str, folder: Path) -> None:
    """A checkpoint that is refused before its weights are read."""
    folder.mkdir()
    config = {"model_type": family}
    if family == "shieldgemma2":
        config["text_config"] = {"hidden_size": 16, "num_hidden_layers": 1, "vocab_size": 32, "head_dim": 8}
        config["vision_config"] = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_processor_type": "DetrImageProcessor"}))
    save_file({"a": torch.zeros(1)}, folder / "model.safetensors", {"format": "pt"})


_SERVER = """
import os, socket, sys
import timm, torch
from transformers import AutoImageProcessor, pipeline
line = socket.socket(fileno=int(sys.argv[1]))
while True:
    code, files, *_ = socket.recv_fds(line, 1 << 16, 3)
    if not code:
        break
    child = os.fork()
    if not child:
        status = 1
        try:
            for number, file in enumerate(files):
                os.dup2(file, number)
            sys.argv = ["-c"]
            exec(code.decode(), {"__name__": "__main__"})
            status = 0
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    for file in files:
        os.close(file)
    line.send(str(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])).encode())
"""


class Clean:
    """Makes processes for `verify` by forking one that has imported Transformers, and nothing of cv_hf."""

    def __init__(self) -> None:
        self.line, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, "-I", "-c", _SERVER, str(theirs.fileno())]
        self.server = subprocess.Popen(command, pass_fds=[theirs.fileno()])
        theirs.close()

    def popen(self, command: list[str], stdin: Any, stdout: Any, stderr: Any, text: bool) -> Any:
        """As subprocess.Popen, of `python -I -c CODE`."""
        (our_input, their_input), (their_output, our_output) = os.pipe(), os.pipe()
        files = [our_input, our_output, stderr.fileno()]
        socket.send_fds(self.line, [command[-1].encode()], files)
        os.close(our_input)
        os.close(our_output)
        code = cache(lambda: int(self.line.recv(16)))
        return SimpleNamespace(
            stdin=os.fdopen(their_input, "w"), stdout=os.fdopen(their_output), wait=code, kill=lambda: None
        )


@cache
def clean() -> Clean:
    return Clean()


def write(found: list[dict[str, Any]]) -> None:
    """Write rows to support.json, in the place of those of the same family, and the matrix into the README."""
    keys = ("task", "family", "variant")
    by_key = {tuple(row[key] for key in keys): row for row in [*support.stored()["rows"], *found]}
    ordered = [by_key[key] for row in rows() if (key := row[:3]) in by_key]
    versions = {name: version(name) for name in ("transformers", "timm", "torch")}
    lines = ",\n".join("  " + json.dumps(row) for row in ordered)
    support.FILE.write_text(f'{{"versions": {json.dumps(versions)},\n "rows": [\n{lines}\n]}}\n', encoding="utf-8")
    README.write_text(with_matrix(README.read_text(encoding="utf-8")), encoding="utf-8")


def with_matrix(text: str) -> str:
    """The README with the matrix of support.json in its place."""
    before, _, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    assert end, "README.md has no place for the matrix"
    return f"{before}{BEGIN}\n{support.markdown(support.rows())}\n{END}{after}"


def main(words: list[str]) -> None:
    torch.set_num_threads(1)
    quiet()
    found = []
    try:
        for row in rows():
            if all(word in str(row) for word in words):
                start = time.process_time()
                found.append(measure(row))
                values = found[-1]["checks"].items()
                why = "; ".join(f"{name}: {value}" for name, value in values if value not in ("yes", "-"))
                print(f"{time.process_time() - start:5.1f} s  {row}  {why or 'yes'}", flush=True)
    finally:
        write(found)


if __name__ == "__main__":
    main(sys.argv[1:])
