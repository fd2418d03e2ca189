"""How the cost of training grows: time and memory of an image against one quantity at a time.

`python -m benchmarks.scaling POINT FOLDER` measures one point, in a process of its own.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
from accelerate.utils import gather_object

from benchmarks.paired import peak_memory
from benchmarks.photos import photos
from benchmarks.sides import Case, StepTimes, checkpoint
from cv_hf.environment import quiet
from cv_hf.launch import launch

# Of each point: seconds of training after the first step, and steps, whichever takes longer.
SECONDS, LEAST_STEPS = 4.0, 3
TASKS = {
    "vit_tiny": "image-classification",
    "small": "image-classification",
    "rt_detr": "object-detection",
    "segformer_b0": "semantic-segmentation",
    "mask2former": "instance-segmentation",
}
# Those of boxes and masks keep all objects.
AUGMENT = {"image-classification": ("RandomResizedCrop", "HorizontalFlip")}


@dataclass(frozen=True)
class Point:
    """What is trained: a model of `benchmarks.sides.checkpoint` on pictures of `benchmarks.photos`.

    `threads` are those of each process; 0: one for each core.
    """

    kind: str
    image_size: int
    batch_size: int
    objects: int = 8
    classes: int = 4
    workers: int = 0
    processes: int = 1
    threads: int = 0


@dataclass(frozen=True)
class Series:
    """Points that differ in one field.

    Attributes:
        name: of the quantity.
        base: the point that they begin from.
        field: of Point.
        values: of the field.
        limit: the greatest exponent of time at which it still scales: what more of the quantity should cost, or save,
            and a margin for noise.
    """

    name: str
    base: Point
    field: str
    values: tuple[int, ...]
    limit: float

    def points(self) -> list[Point]:
        """One for each value."""
        return [replace(self.base, **{self.field: value}) for value in self.values]


VIT, DETR = Point("vit_tiny", 224, 8), Point("rt_detr", 256, 4)
SEGFORMER, MASKS, SMALL = Point("segformer_b0", 256, 4), Point("mask2former", 256, 4), Point("small", 96, 16)
# Twice the edge is four times the pixels; a larger batch should save some time, more processes nearly all of it.
PIXELS, SAVES, NOTHING, SHARED = 2.25, -0.1, 0.2, -0.75
SERIES = (
    Series("image size, ViT-tiny", VIT, "image_size", (112, 224, 336, 448), PIXELS),
    Series("image size, RT-DETR", DETR, "image_size", (128, 256, 384, 512), PIXELS),
    Series("batch, ViT-tiny", VIT, "batch_size", (2, 8, 32), SAVES),
    Series("batch, RT-DETR", DETR, "batch_size", (1, 4, 16), SAVES),
    Series("classes, RT-DETR", DETR, "classes", (4, 40, 200), NOTHING),
    Series("classes, SegFormer-b0", SEGFORMER, "classes", (4, 40, 150), NOTHING),
    Series("objects, RT-DETR", DETR, "objects", (2, 8, 32, 128), NOTHING),
    Series("objects, Mask2Former", MASKS, "objects", (2, 8, 32, 128), NOTHING),
    Series("loader workers, small ResNet", SMALL, "workers", (0, 1, 2, 4), SHARED),
    Series("processes of one thread, ViT-tiny", replace(VIT, batch_size=16, threads=1), "processes", (1, 2), SHARED),
)


def scaling(folder: Path) -> list[dict[str, Any]]:
    """One row for each series: time and memory of an image at each value, and where it stops scaling."""
    found: dict[Point, dict[str, float]] = {}
    rows = []
    for series in SERIES:
        for point in series.points():
            if point not in found:
                found[point] = measured(point, folder)
                print(point, found[point], file=sys.stderr, flush=True)
        rows.append(_row(series, [found[point] for point in series.points()]))
    return rows


def _row(series: Series, found: Sequence[dict[str, float]]) -> dict[str, Any]:
    values = list(series.values)
    if series.field == "objects":
        values = [round(each["objects"]) for each in found]
    # Who works: the training process and its workers.
    parts = [1 + value for value in values] if series.field == "workers" else values
    times, work, memory = ([each[name] for each in found] for name in ("milliseconds", "core", "megabytes"))
    # Whether more hands make lighter work shows by the clock; else the work is what grows.
    grown = exponents(parts, times if series.field in ("workers", "processes") else work)
    return {
        "against": series.name,
        "values": _joined(values),
        "ms an image": _joined(times),
        "core ms an image": _joined(work),
        "MB an image": _joined(memory),
        "peak MB": _joined([each["peak"] for each in found]),
        "time grows as n to the": ", ".join(f"{each:.1f}" for each in grown),
        "memory as n to the": ", ".join(f"{each:.1f}" for each in exponents(parts, memory)),
        "stops scaling": stop(values, grown, series.limit),
    }


def _joined(numbers: Sequence[float]) -> str:
    return ", ".join(
        f"{number:.0f}" if number >= 10 or number == int(number) else f"{number:.1f}" for number in numbers
    )


def exponents(values: Sequence[float], costs: Sequence[float]) -> list[float]:
    """From each value to the next: e, where the cost grows as the value to the power of e."""
    pairs = pairwise(zip(values, costs, strict=True))
    return [math.log(max(dearer, 1e-9) / max(cost, 1e-9)) / math.log(b / a) for (a, cost), (b, dearer) in pairs]


def stop(values: Sequence[float], grown: Sequence[float], limit: float) -> str:
    """The first value from which on the cost grows by more than the limit."""
    at = next((place for place, exponent in enumerate(grown) if exponent > limit), None)
    return f"not up to {values[-1]}" if at is None else f"at {values[at]}"


def measured(point: Point, folder: Path) -> dict[str, float]:
    """A point, in a fresh process; pictures and model are made before."""
    _case(point, folder)
    command = [sys.executable, "-m", "benchmarks.scaling", json.dumps(asdict(point)), str(folder)]
    environment = dict(os.environ)
    if point.threads:
        environment["OMP_NUM_THREADS"] = str(point.threads)
    ended = subprocess.run(command, capture_output=True, text=True, env=environment)
    if ended.returncode:
        raise RuntimeError(f"{point}: {ended.stderr[-2000:]}")
    return json.loads(ended.stdout.splitlines()[-1])


class _Until(StepTimes):
    """Ends training when it was long enough; what it took after the first step, workers and all."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        super().on_step_end()
        if len(self.ends) == 1:
            self.cores = -_core_seconds()
        # Several processes end together.
        enough = len(self.ends) > LEAST_STEPS and self.ends[-1] - self.ends[0] > SECONDS
        if all(gather_object([enough])):
            control.should_training_stop = True
            self.cores += _core_seconds()
            self.workers = sum(child.memory_full_info().uss for child in psutil.Process().children())


def _core_seconds() -> float:
    """Of all threads of this process and its workers."""
    processes = [psutil.Process(), *psutil.Process().children()]
    return sum(times.user + times.system for times in (process.cpu_times() for process in processes))


def _case(point: Point, folder: Path) -> Case:
    task = TASKS[point.kind]
    if (point.objects, point.classes) == (8, 4):
        data = photos(folder / "photos")
    else:
        place = folder / f"photos_{point.objects}_{point.classes}"
        data = photos(place, train=32, validation=4, objects=point.objects, classes=point.classes)
    model = checkpoint(point.kind, folder, image_size=point.image_size)
    return Case(task, model, data, point.batch_size, AUGMENT.get(task, ("HorizontalFlip",)))


def _point(point: Point, folder: Path) -> dict[str, float]:
    quiet()
    case = _case(point, folder)
    # As in the first epoch of a run.
    trainer = case.trainer(folder / "run", max_steps=10**6, dataloader_num_workers=point.workers, cache_images=False)
    watch = _Until()
    trainer.add_callback(watch)
    before = psutil.Process().memory_info().rss
    trainer.train()
    peak = peak_memory() + watch.workers
    # What the optimizer remembers is of the model, not of its images.
    more = peak - before - trainer.optimizer_size()
    steps = [end - begin for begin, end in pairwise(watch.ends)]
    # Workers read ahead, so that no single step tells what they take.
    taken = statistics.mean(steps) if point.workers else statistics.median(steps)
    return {
        "milliseconds": 1000 * taken / point.batch_size,
        "core": 1000 * sum(gather_object([watch.cores])) / len(steps) / point.batch_size,
        "megabytes": sum(gather_object([more])) / 1e6 / point.batch_size,
        "peak": sum(gather_object([peak])) / 1e6,
        "objects": _objects(case.data),
    }


def _objects(data: Path) -> float:
    content = json.loads((data / "annotations" / "train.json").read_text())
    return len(content["annotations"]) / len(content["images"])


def main(words: Sequence[str]) -> int:
    point, folder = Point(**json.loads(words[0])), Path(words[1])
    if point.processes > 1 and "RANK" not in os.environ:
        return launch(point.processes, words, command=(sys.executable, "-m", "benchmarks.scaling"))
    found = _point(point, folder)
    if os.environ.get("RANK", "0") == "0":
        print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
