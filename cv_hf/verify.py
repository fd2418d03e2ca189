"""`cv-hf verify`: what transformers.pipeline() answers in a process of its own, against what evaluation measured.

Three things are compared, image by image: pipeline(), called as the card says, in a process that never imports cv_hf
(but for the line that DiNAT needs); cv_hf's evaluation of the same files; and the evidence that training left with the
model, answers of the model in memory before it was saved. The evidence is what shows a file of the model that was
changed since, as both others read it.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from faster_coco_eval.core import mask as coco_mask
from tqdm import tqdm

from cv_hf.config import DataConfig
from cv_hf.data import load_split
from cv_hf.errors import CheckFailed, DataError
from cv_hf.inference import Trained, digest, fitted, load_trained, predict, trained_on
from cv_hf.models import uses_dinat
from cv_hf.publish import read_evidence

# The metrics of both may differ by this much: of two answers that score alike, either may be the first.
METRIC_TOLERANCE = 1e-3
WORST = 5
# load_image() clips what decode() scales to 8 bits.
READ_OTHERWISE = {"sixteen-bit", "float-image"}
# pipeline() cuts boxes to whole pixels and leaves out what scores below the threshold. For detection the same call's
# boxes are also taken before that, from the processor's own function. Masks come as run lengths down the columns.
_CLEAN = """
import json, sys
request = json.load(sys.stdin)
if request["dinat"]:
    import cv_hf
    cv_hf.enable_dinat()
from transformers import pipeline
from transformers.utils import logging
logging.disable_progress_bar()
run = pipeline(request["task"], model=request["model"], trust_remote_code=request["trust_remote_code"])
everything = []
if request["task"] == "object-detection":
    post_process = run.image_processor.post_process_object_detection
    def both(outputs, threshold, target_sizes):
        found = post_process(outputs, 0.0, target_sizes)[0]
        names = run.model.config.id2label
        everything[:] = [
            {"score": score, "label": names[label], "box": dict(zip(("xmin", "ymin", "xmax", "ymax"), box))}
            for score, label, box in zip(found["scores"].tolist(), found["labels"].tolist(), found["boxes"].tolist())
        ]
        return post_process(outputs, threshold, target_sizes)
    run.image_processor.post_process_object_detection = both
def plain(one):
    import numpy as np
    if "mask" not in one:
        return one
    mask = np.asarray(one["mask"]) > 0
    flat = np.concatenate([[False], mask.ravel(order="F")])
    ends = [0, *np.flatnonzero(flat[1:] != flat[:-1]).tolist(), mask.size]
    counts = [end - start for start, end in zip(ends, ends[1:])]
    return {"score": one["score"], "label": one["label"], "segmentation": {"size": list(mask.shape), "counts": counts}}
for file, more in zip(request["files"], request["more"]):
    answer = [plain(one) for one in run(file, **request["arguments"])]
    found = {"answer": answer, "everything": everything[:] or answer}
    found["witnessed"] = [plain(one) for one in run(file, **more)] if more is not None else None
    print("answer " + json.dumps(found), flush=True)
assert request["dinat"] or "cv_hf" not in sys.modules
"""


@dataclass(frozen=True)
class Verdict:
    """What `verify` found.

    Attributes:
        images: how many were compared.
        evidence: how many of them stand in the model's evidence.
        differences: a line for each image that pipeline() answers differently, the worst first.
        metrics: {name: (by pipeline(), by evaluation)}, of the metrics that pipeline()'s answers give.
        left_out: images that pipeline() is known to read differently, or cannot read.
    """

    images: int
    evidence: int
    differences: list[str]
    metrics: dict[str, tuple[float, float]]
    left_out: list[str]

    @property
    def passed(self) -> bool:
        return not self.differences

    def lines(self) -> list[str]:
        """The verdict as lines to print."""
        lines = [
            f"{name}: {theirs:.4f} by pipeline(), {ours:.4f} by evaluation"
            for name, (theirs, ours) in self.metrics.items()
        ]
        if self.left_out:
            lines.append(f"{len(self.left_out)} images left out, as pipeline() does not read them as cv_hf does")
        if self.passed:
            lines.append(
                f"verified: pipeline() gives the answers that were measured, on {self.images} images"
                + (f", {self.evidence} of them in the evidence of training" if self.evidence else "")
            )
        if not self.evidence:
            lines.append(
                "none of them stands in the evidence of training, so only pipeline() and evaluation were compared; a "
                "file of the model that was changed since would not show. Give the data that it was scored on."
            )
        return lines


def verify(
    model: str | Path,
    data: str | DataConfig,
    *,
    split: str | None = None,
    limit: int | None = None,
    task: str | None = None,
    trust_remote_code: bool = False,
    echo: Callable[[str], None] = print,
) -> Verdict:
    """Compare pipeline() in a clean process with cv_hf's evaluation and with the evidence that training left.

    Args:
        model: a folder (a run, or its `model/`) or a Hub id.
        data: Hub id, folder or file, or a whole data section.
        split: as in `evaluate_model`.
        limit: compare so many images, spread over the split; the evidence's are among them. None: all.
        task: the task of a model that cv_hf did not train.
        trust_remote_code: run the code that the model brings.
        echo: called with each line to print.

    Raises:
        CvHfError: the model or the data cannot be read.
        CheckFailed: pipeline() fails.
    """
    data = data if isinstance(data, DataConfig) else DataConfig(id=str(data))
    trained = load_trained(model, task, trust_remote_code=trust_remote_code)
    evidence = read_evidence(trained.id)
    dataset, _ = load_split(data, trained.task, trained.labels, split, echo, trained_on(trained, data))
    digests = [digest(dataset[index]["image"]) for index in range(len(dataset))] if evidence else [""] * len(dataset)
    if limit is not None and limit < len(dataset):
        witnessed = [index for index, seen in enumerate(digests) if seen in evidence][:limit]
        spread = [index * len(dataset) // limit for index in range(limit)]
        chosen = sorted([*witnessed, *[index for index in spread if index not in witnessed][: limit - len(witnessed)]])
        dataset, digests = dataset.select(chosen), [digests[index] for index in chosen]

    # A model of several subtasks is asked for each of them.
    subtasks = trained.task.subtasks if len(trained.task.subtasks) > 1 else ()
    calls = [{**trained.arguments, "subtask": subtask} for subtask in subtasks] or [trained.arguments]
    lines: list[str] = []
    metrics: dict[str, tuple[float, float]] = {}
    seen: set[int] = set()
    for call in calls:
        asked = replace(trained, arguments=call)
        ours, left_out = _evaluated(asked, dataset)
        kept = [index for index in range(len(dataset)) if index not in left_out]
        if not kept:
            raise DataError(f"{data.id}: no image is left to compare.")
        witnesses = {index: _witness(evidence.get(digests[index]), call) for index in kept}
        with _files(dataset, kept) as files:
            answers = _answers(asked, files, list(witnesses.values()), trust_remote_code)
            theirs = dict(zip(kept, answers, strict=True))
        whose = f" ({call['subtask']})" if subtasks else ""
        differences: list[tuple[float, str]] = []
        for index in kept:
            if witnesses[index] is not None:
                seen.add(index)
            worst, words = _worst(asked, *ours[index], **theirs[index], witness=witnesses[index])
            if worst > 0:
                differences.append((worst, f"{dataset[index]['file']}: {words}{whose}"))
        lines += [line for _, line in sorted(differences, key=lambda one: -one[0])]
        for name, values in _scores(asked, dataset, ours, theirs).items():
            metrics[f"{name}{whose}"] = values
            if abs(values[0] - values[1]) > METRIC_TOLERANCE:
                lines.append(f"{name}{whose}: {values[0]:.4f} by pipeline(), {values[1]:.4f} by evaluation")
    return Verdict(len(kept), len(seen), lines, metrics, [dataset[index]["file"] for index in sorted(left_out)])


def _witness(witness: dict[str, Any] | None, call: Mapping[str, Any]) -> dict[str, Any] | None:
    """The evidence of an image, if it is of the subtask that is asked for."""
    same = witness is not None and witness["arguments"].get("subtask") == call.get("subtask")
    return witness if same else None


def _worst(
    asked: Trained, size: tuple[int, int], prediction: Any, answer: Any, everything: Any, witnessed: Any, witness: Any
) -> tuple[float, str]:
    """The worst difference between pipeline()'s answer to an image and those of evaluation and of training."""
    task, call = asked.task, asked.arguments
    if task.shown is None:
        comparisons = [("by evaluation", prediction, answer, call)]
    else:
        comparisons = [
            ("by evaluation", prediction, everything, task.complete),
            ("by evaluation", task.shown(prediction, call), answer, call),
        ]
    if witness is not None:
        if task.shown is not None:
            witnessed = task.shown(everything, witness["arguments"])
        comparisons.append(("in training", witness["answer"], witnessed, witness["arguments"]))
    found = [(*task.compare(mine, other, size, arguments), whose) for whose, mine, other, arguments in comparisons]
    worst, words, whose = max(found, key=lambda one: one[0])
    return worst, f"{words} {whose}"


def _scores(
    asked: Trained, dataset: Any, ours: dict[int, tuple[tuple[int, int], Any]], theirs: dict[int, dict[str, Any]]
) -> dict[str, tuple[float, float]]:
    """{metric: (by pipeline(), by evaluation)}, of the images whose ground truth fits them."""

    def row(index: int) -> Any:
        return fitted({**dataset[index], "size": ours[index][0]}, asked.task, asked.labels)

    scored = [index for index in theirs if row(index) is not None]
    if not scored:
        return {}
    by_pipeline, by_evaluation = (
        asked.task.score_answers(answers, map(row, scored), asked.labels, asked.arguments)
        for answers in ([theirs[index]["everything"] for index in scored], [ours[index][1] for index in scored])
    )
    return {name: (by_pipeline[name], by_evaluation[name]) for name in by_pipeline.keys() & by_evaluation.keys()}


def failure(verdict: Verdict, model: str | Path) -> CheckFailed:
    """The error that a verdict with differences is."""
    lines = verdict.differences
    more = f"\nand {len(lines) - WORST} more" if len(lines) > WORST else ""
    return CheckFailed(
        f"pipeline() does not give the answers of {model} that were measured ({len(lines)} differences on "
        f"{verdict.images} images), at worst:\n" + "\n".join(lines[:WORST]) + more
    )


def _evaluated(trained: Trained, dataset: Any) -> tuple[dict[int, tuple[tuple[int, int], Any]], set[int]]:
    """{index: (image size, complete prediction)}, and the indices of images that pipeline() reads differently."""
    whole = trained if trained.task.shown is None else replace(trained, arguments=trained.task.complete)
    answers, left_out = {}, set()
    for index, (row, prediction, found) in enumerate(predict(whole, dataset)):
        if prediction is None or any(code in READ_OTHERWISE for code, *_ in found):
            left_out.add(index)
        else:
            answers[index] = (row["size"], prediction)
    return answers, left_out


@contextmanager
def _files(dataset: Any, indices: Sequence[int]) -> Iterator[list[str]]:
    """The images as files: their own, or for embedded ones their bytes, untouched."""
    with tempfile.TemporaryDirectory(prefix="verify-") as folder:
        files = []
        for index in indices:
            image = dataset[index]["image"]
            path = image["path"]
            if image["bytes"] is not None:
                path = Path(folder) / f"{index}.img"
                path.write_bytes(image["bytes"])
            files.append(str(path))
        yield files


def _answers(
    trained: Trained, files: list[str], witnesses: Sequence[dict[str, Any] | None], trust_remote_code: bool
) -> Iterator[dict[str, Any]]:
    # What was witnessed at other arguments is asked for at these, where it cannot be told from a complete answer.
    again = trained.task.shown is None
    request = {
        "task": trained.task.pipeline,
        "model": trained.id,
        "trust_remote_code": trust_remote_code,
        "arguments": dict(trained.arguments),
        "dinat": uses_dinat(trained.model.config.to_dict()),
        "files": files,
        "more": [witness["arguments"] if again and witness is not None else None for witness in witnesses],
    }
    # -I: neither this folder nor PYTHONPATH lends the process anything.
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            [sys.executable, "-I", "-c", _CLEAN],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
        try:
            process.stdin.write(json.dumps(request))
            process.stdin.close()
            answers = (line.removeprefix("answer ") for line in process.stdout if line.startswith("answer "))
            for line in tqdm(answers, desc="pipeline()", total=len(files), disable=None, leave=False):
                yield json.loads(line, object_hook=_compressed)
            code = process.wait()
        finally:
            process.kill()
            process.wait()
        if code:
            errors.seek(0)
            said = [line for line in errors.read().splitlines() if line.strip()]
            raise CheckFailed(f"pipeline() failed on {trained.id}: {said[-1][:300] if said else f'exit code {code}'}")


def _compressed(values: dict[str, Any]) -> dict[str, Any]:
    """Run lengths as everything here has them."""
    return coco_mask.frPyObjects(values, *values["size"]) if isinstance(values.get("counts"), list) else values
