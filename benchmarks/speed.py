"""How fast cv_hf is, against Transformers' example scripts and against a bare PyTorch loop: each aim a row.

`python -m benchmarks.speed PART FOLDER` measures what needs a process of its own.
"""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, redirect_stdout
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import PIL.Image
import torch
import yaml
from torch.utils.data import DataLoader

from benchmarks.paired import alternate, apart, peak_memory, ratios, seconds, spread
from benchmarks.photos import photos
from benchmarks.scripts import script_trainer
from benchmarks.sides import Case, bare_loop, batches_of, checkpoint, images_per_second, threads
from cv_hf.environment import quiet
from cv_hf.tasks import get_task
from cv_hf.training import EvalSamples
from cv_hf.training.allocator import memory_kept
from cv_hf.training.arguments import available_cores

ROUNDS = 5
# Steps per round, the first apart, and seconds after which a comparison is given no further round.
# Of the small ResNet ten epochs, as a run may have, all but the first of which find their images in memory.
STEPS = {"vit": 3, "small": 100, "detection": 3, "semantic": 4, "instance": 4}
BUDGET = 60.0
# Images that each side reads per round, of 12 megapixels fewer; and that evaluation scores.
READ, READ_LARGE, SCORED = 96, 16, 48
# The operations of each script, in a recipe's words; OneOf and a Compose of its own are not to be had there.
CROP = ({"RandomResizedCrop": {"scale": [0.08, 1.0]}}, "HorizontalFlip")
BOXES = (
    {"BBoxSafeRandomCrop": {"p": 0.2}},
    {"Blur": {"p": 0.05}},
    {"MotionBlur": {"p": 0.05}},
    {"Perspective": {"p": 0.1}},
    "HorizontalFlip",
    "RandomBrightnessContrast",
    {"HueSaturationValue": {"p": 0.1}},
)
MAPS = ({"RandomCrop": {"pad_if_needed": True}}, "HorizontalFlip")
OBJECTS = ("HorizontalFlip", "RandomBrightnessContrast", {"HueSaturationValue": {"p": 0.1}})
# cv_hf's own for detection.
DEFAULT = tuple(get_task("object-detection").augment)

_SOURCES = ("ours", "theirs")
_TRAINERS: dict[str, Any] = {}
_MEMORY = ExitStack()

Row = dict[str, Any]


def cases(folder: Path) -> dict[str, Case]:
    """The models and pictures that all of this is measured on; "... read" at the sizes of the published checkpoints."""
    data = photos(folder / "photos")
    large = photos(folder / "large", train=READ_LARGE, validation=1, size=(3000, 4000), grain=6.0)
    make = partial(checkpoint, folder=folder)
    return {
        "vit": Case("image-classification", make("vit_tiny"), data, 16, CROP),
        "small": Case("image-classification", make("small", image_size=96), data, 16, CROP),
        "detection": Case("object-detection", make("rt_detr", image_size=256), data, 8, BOXES),
        "semantic": Case("semantic-segmentation", make("segformer_b0", image_size=256), data, 8, MAPS),
        "instance": Case("instance-segmentation", make("mask2former", image_size=256), data, 4, OBJECTS),
        "detection read": Case("object-detection", make("rt_detr", image_size=640), data, 8, BOXES),
        "semantic read": Case("semantic-segmentation", make("segformer_b0", image_size=512), data, 8, MAPS),
        "instance read": Case("instance-segmentation", make("mask2former", image_size=384), data, 4, OBJECTS),
        "vit large": Case("image-classification", make("vit_tiny"), large, 16, CROP),
        "detection large": Case("object-detection", make("rt_detr", image_size=640), large, 8, DEFAULT),
    }


def speed(folder: Path) -> list[Row]:
    """One row for each aim: medians and quartiles of both sides and of their ratios, taken in turns."""
    every = cases(folder)
    parts: list[Callable[[], Iterator[Row]]] = [
        partial(_training, every, folder),
        partial(_step, every["vit"], folder),
        partial(_reading, every, folder),
        partial(_evaluation, every, folder),
        partial(_starting, every["vit"], folder),
        partial(_processes, every["vit"], folder),
        partial(_memory, folder),
    ]
    rows = []
    for part in parts:
        for row in part():
            print(", ".join(f"{name}: {value}" for name, value in row.items()), file=sys.stderr, flush=True)
            rows.append(row)
    return rows


def _row(
    what: str,
    unit: str,
    ours: Sequence[float],
    theirs: Sequence[float],
    than: str,
    aim: float | None,
    *,
    most: bool = False,
    form: str = ".1f",
) -> Row:
    """A row of a ratio, ours over theirs, that should be at least `aim`; or, with `most`, no more than it."""
    each = ratios(ours, theirs)
    row = {
        "what": what,
        "unit": unit,
        "cv_hf": spread(ours, form),
        "against": f"{than}: {spread(theirs, form)}",
        "ratio": spread(each),
        "aim": "",
        "reached": "",
    }
    if aim is not None:
        middle = float(spread(each, ".4f").split()[0])
        row["aim"] = f"{'at most' if most else 'at least'} {aim:g}"
        row["reached"] = "yes" if (middle <= aim if most else middle >= aim) else "no"
    return row


def _script(case: Case, folder: Path, steps: int) -> float:
    trainer = script_trainer(
        case.task,
        case.model,
        case.data,
        folder / "script",
        batch_size=case.batch_size,
        max_steps=steps + 1,
        save_strategy="no",
        disable_tqdm=True,
        logging_steps=10**6,
    )
    return images_per_second(trainer, case.batch_size)


def _ours(case: Case, folder: Path, steps: int) -> float:
    return images_per_second(case.trainer(folder / "run", max_steps=steps + 1), case.batch_size)


def _training(every: Mapping[str, Case], folder: Path) -> Iterator[Row]:
    aims = {
        "vit": ("training, ViT-tiny at 224", 1.6),
        "small": ("training, a very small ResNet at 96", 3.0),
        "detection": ("training, a small RT-DETR at 256", 1.5),
        "semantic": ("training, SegFormer-b0 at 256", 1.6),
        "instance": ("training, a small Mask2Former at 256", 1.5),
    }
    for name, (what, aim) in aims.items():
        case, steps = every[name], STEPS[name]
        with apart(
            {"ours": partial(_ours, case, folder, steps), "theirs": partial(_script, case, folder, steps)}
        ) as sides:
            found = alternate(sides, ROUNDS, budget=BUDGET)
        yield _row(f"{what}, batch {case.batch_size}", "images/s", found["ours"], found["theirs"], "script", aim)


class _Held(torch.utils.data.Dataset):
    """Batches in memory, given as if they had just been read."""

    def __init__(self, batches: list[dict[str, Any]], count: int):
        self.batches, self.count = batches, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        return dict(self.batches[index % len(self.batches)])


def _step(case: Case, folder: Path) -> Iterator[Row]:
    """The whole loop of the Trainer, fed from memory, against a loop that has nothing but model and optimizer."""
    with apart({"ours": partial(_fed, case, folder), "bare": partial(_bare, case, folder)}) as sides:
        found = alternate(sides, 7, budget=BUDGET)
    precision = "bfloat16" if case.trainer(folder / "run", max_steps=1).args.bf16 else "float32"
    yield _row(
        f"training step, ViT-tiny at 224, {precision}", "images/s", found["ours"], found["bare"], "bare loop", 0.97
    )


def _fed(case: Case, folder: Path, steps: int = 6) -> float:
    raw = list(islice(case.trainer(folder / "run", max_steps=1).get_train_dataloader(), 3))
    trainer = case.trainer(folder / "run", max_steps=steps + 1)
    original = trainer.get_train_dataloader

    def held() -> DataLoader:
        original()
        return DataLoader(_Held(raw, steps + 1), batch_size=None)

    trainer.get_train_dataloader = held
    return images_per_second(trainer, case.batch_size)


def _bare(case: Case, folder: Path, steps: int = 6) -> float:
    trainer = case.trainer(folder / "run", max_steps=1)
    return bare_loop(trainer.model, batches_of(trainer, 3), steps, bf16=trainer.args.bf16)


def _reading(every: Mapping[str, Case], folder: Path) -> Iterator[Row]:
    """From files to what the model takes, in one process on one thread, by the processor time that it took."""
    aims = {
        "vit": ("reading for classification at 224", 2.5),
        "small": ("reading for classification at 96", 2.5),
        "detection read": ("reading for detection at 640", 2.5),
        "semantic read": ("reading for semantic segmentation at 512", 3.0),
        "instance read": ("reading for instance segmentation at 384", 2.5),
    }
    unit = "images/s of one core"
    for name, (what, aim) in aims.items():
        case = every[name]
        kept = ["kept"] if case.task == "image-classification" else []
        work = [*_SOURCES, *kept, *(["decode", "given"] if name == "vit" else [])]
        with apart({side: partial(_read, side, case, folder) for side in work}) as sides:
            found = alternate(sides, 2 * ROUNDS, budget=BUDGET)
        rates = {side: [READ / taken for taken in times] for side, times in found.items()}
        yield _row(what, unit, rates["ours"], rates["theirs"], "script", aim, form=".0f")
        if kept:
            yield _row(f"{what}, kept images", unit, rates["kept"], rates["theirs"], "script", None, form=".0f")
        if name == "vit":
            what = f"{what}, to the uint8 that a worker gives"
            yield _row(what, unit, rates["given"], rates["decode"], "decoding alone", 0.85, form=".0f")
    for name, what, side, than in (
        ("vit large", "classification at 224", "theirs", "script"),
        ("detection large", "detection at 640", "whole", "decoded whole"),
    ):
        with apart({each: partial(_read, each, every[name], folder, READ_LARGE) for each in ("ours", side)}) as sides:
            found = alternate(sides, ROUNDS, budget=BUDGET)
        rates = {each: [READ_LARGE / taken for taken in times] for each, times in found.items()}
        yield _row(f"reading 12-megapixel photos for {what}", unit, rates["ours"], rates[side], than, None)


def _trainer(side: str, case: Case, folder: Path, **train: Any) -> Any:
    """The Trainer of a side, built once in its process."""
    key = repr((side, case, train))
    if side != "theirs" and not _TRAINERS:
        # As while it trains.
        _MEMORY.enter_context(memory_kept())
    if key not in _TRAINERS:
        if side == "theirs":
            _TRAINERS[key] = script_trainer(
                case.task, case.model, case.data, folder / "script", batch_size=case.batch_size, disable_tqdm=True
            )
        else:
            trainer = case.trainer(folder / "run", max_steps=1, cache_images=side == "kept", **train)
            if side == "whole":
                trainer.train_dataset.augment.reduction = None
            _TRAINERS[key] = trainer
    return _TRAINERS[key]


def _read(side: str, case: Case, folder: Path, count: int = READ) -> float:
    """Processor seconds of reading so many images: by "theirs", or by "ours", and of ours with the pixels' values.

    Others are "given", without these values; "kept", of images that were decoded before; "whole", decoded as large as
    they are; and "decode", nothing but decoding.
    """
    if side == "decode":
        files = sorted((case.data / "images" / "train").iterdir())[:count]
        return seconds(partial(_decode, files), time.process_time)()
    trainer = _trainer(side, case, folder, **({} if side == "theirs" else {"dataloader_num_workers": 0}))
    # Accelerate's loader is always one batch ahead.
    batches = partial(islice, trainer.get_train_dataloader().base_dataloader, count // case.batch_size)

    def read() -> None:
        for batch in batches():
            if side in ("ours", "kept", "whole") and trainer.pixels is not None:
                trainer.pixels.apply(batch["pixel_values"])

    with threads(1):
        return seconds(read, time.process_time)()


def _decode(files: Sequence[Path]) -> None:
    for file in files:
        with PIL.Image.open(file) as image:
            image.convert("RGB")


def _evaluation(every: Mapping[str, Case], folder: Path) -> Iterator[Row]:
    """From files to metrics, as between epochs of training."""
    for name, what, aim in (
        ("detection", "evaluation, a small RT-DETR at 256", 3.0),
        ("instance", "evaluation, a small Mask2Former at 256", 5.0),
    ):
        with apart({side: partial(_score, side, every[name], folder) for side in _SOURCES}) as sides:
            found = alternate(sides, ROUNDS, budget=BUDGET)
        rates = {side: [SCORED / taken for taken in times] for side, times in found.items()}
        yield _row(what, "images/s", rates["ours"], rates["theirs"], "script", aim)
    few, many = (_alone("scored", folder, str(times)) for times in (1, 4))
    yield _row(
        f"memory of evaluation, instances, {4 * SCORED} images",
        "MB",
        [many],
        [few],
        f"{SCORED} images",
        1.05,
        most=True,
    )


def _score(side: str, case: Case, folder: Path) -> float:
    trainer = _trainer(side, case, folder)

    def score() -> None:
        if side == "theirs":
            trainer.evaluate()
        else:
            with trainer.accelerator.autocast():
                trainer.score(trainer.model, trainer.eval_dataset)

    with redirect_stdout(io.StringIO()):
        return seconds(score)()


def _starting(case: Case, folder: Path) -> Iterator[Row]:
    """From the command to the end of the first training step, everything that was downloaded being there."""
    recipe = folder / "starting.yaml"

    def ours() -> float:
        values = case.recipe(folder / "starting", max_steps=1, logging_steps=1, disable_tqdm=False)
        recipe.write_text(yaml.safe_dump(values))
        return _steps([sys.executable, "-m", "cv_hf", "train", str(recipe)], "step 1/1", 1)[0]

    def theirs() -> float:
        words = [str(case.model), str(case.data), str(folder / "script"), f"batch_size={case.batch_size}"]
        return _steps([sys.executable, "-m", "benchmarks.scripts", *words, "max_steps=1"], "'loss'", 1)[0]

    def run(side: Callable[[], float]) -> float:
        subprocess.run(["rm", "-rf", str(folder / "starting")], check=True)
        return side()

    found = alternate({"ours": partial(run, ours), "theirs": partial(run, theirs)}, ROUNDS, budget=2 * BUDGET)
    yield _row("from command to first step", "s", found["ours"], found["theirs"], "script", 0.6, most=True)
    helped = alternate({"help": seconds(partial(_quietly, [sys.executable, "-m", "cv_hf", "--help"]))}, 9)["help"]
    yield _row("cv-hf --help", "s", helped, [1.0] * len(helped), "1 s", 0.3, most=True, form=".2f")


def _processes(case: Case, folder: Path) -> Iterator[Row]:
    """Two processes on two cores against one on one, the same global batch."""
    recipe, steps = folder / "processes.yaml", 12
    if available_cores() < 2:
        return

    def run(processes: int) -> float:
        subprocess.run(["rm", "-rf", str(folder / "processes")], check=True)
        values = case.recipe(folder / "processes", max_steps=steps, logging_steps=1, disable_tqdm=False)
        recipe.write_text(yaml.safe_dump(values))
        command = [sys.executable, "-m", "cv_hf", "train", str(recipe)]
        cores = sorted(os.sched_getaffinity(0))[:processes]
        ends = _steps([*command, *(["--nproc", "2"] if processes == 2 else [])], "step ", steps, cores)
        return (steps - 2) * case.batch_size / (ends[-1] - ends[1])

    found = alternate({"two": partial(run, 2), "one": partial(run, 1)}, 5, warm_up=0)
    yield _row("2 processes on 2 cores, ViT-tiny", "images/s", found["two"], found["one"], "1 on 1", 1.8)


def _memory(folder: Path) -> Iterator[Row]:
    found = alternate({side: partial(_alone, side, folder) for side in ("trained", "bare")}, 3, warm_up=0)
    yield _row(
        "peak memory of training, ViT-tiny",
        "MB",
        found["trained"],
        found["bare"],
        "bare loop",
        1.15,
        most=True,
        form=".0f",
    )


def _steps(command: list[str], sign: str, count: int, cores: Sequence[int] | None = None) -> list[float]:
    """When each of the first lines that hold a sign came, in seconds since the command; it is run to its end."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    start, ends = time.perf_counter(), []
    if cores is not None:
        command = ["taskset", "-c", ",".join(map(str, cores)), *command]
        environment["OMP_NUM_THREADS"] = "1"
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        for line in process.stdout:
            if sign in line and re.search(r"loss", line):
                ends.append(time.perf_counter() - start)
        errors = process.stderr.read()
    if len(ends) < count:
        raise RuntimeError(f"{' '.join(command)}: {errors[-2000:]}")
    return ends


def _quietly(command: list[str]) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def _alone(part: str, folder: Path, *words: str) -> float:
    """Peak resident megabytes of a process that does one part."""
    command = [sys.executable, "-m", "benchmarks.speed", part, str(folder), *words]
    return float(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))


def _part(part: str, folder: Path, *words: str) -> float:
    quiet()
    every = cases(folder)
    steps = 6
    if part == "scored":
        case, times = every["instance"], int(words[0])
        trainer = case.trainer(folder / "run", max_steps=1, dataloader_num_workers=0)
        whole = trainer.eval_dataset
        rows = whole.dataset.select([*range(len(whole))] * times)
        trainer.score(trainer.model, EvalSamples(rows, whole.processor, whole.fit, whole.labels))
    elif part == "trained":
        _ours(every["vit"], folder, steps)
    else:
        # What the loop trains on, without the program that reads it.
        from transformers import ViTForImageClassification

        model = ViTForImageClassification.from_pretrained(every["vit"].model)
        size = (every["vit"].batch_size, 3, 224, 224)
        batches = [{"pixel_values": torch.rand(size), "labels": torch.zeros(size[0], dtype=torch.long)}]
        bare_loop(model, batches, steps, bf16=torch.cpu._is_avx512_bf16_supported())
    return peak_memory() / 1e6


if __name__ == "__main__":
    print(json.dumps(_part(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:])))
