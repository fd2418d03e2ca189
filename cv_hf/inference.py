"""What a trained model does: score a split, predict pictures. Always as pipeline() would, from the saved files."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import datasets
from accelerate import PartialState
from tqdm import tqdm

from cv_hf import publish
from cv_hf.config import DataConfig, ModelConfig, load_recipe
from cv_hf.data import (
    Findings,
    LabelMap,
    TrainedOn,
    check_name,
    decode,
    from_class_names,
    image_suffixes,
    is_of_run,
    load_split,
)
from cv_hf.errors import DataError, Interrupted, ModelError, RecipeError
from cv_hf.models import build_model, check_is_there
from cv_hf.task import Task
from cv_hf.tasks import get_task
from cv_hf.training import EvalSamples, evaluate, forward, recorder, write_text
from cv_hf.transforms import contact_sheet

SHEET = 20
EVIDENCE = 16
_PICTURE = re.compile(r"\d{5,}_[\w.-]*\.png")


@dataclass(frozen=True)
class Trained:
    """A trained model as pipeline() loads it: float32, evaluation mode, its saved processor.

    `arguments` are those that pipeline() is to be called with, as a score threshold; `trained_on` what the model's
    notes say of its data.
    """

    id: str
    task: Task
    model: Any
    processor: Any
    labels: LabelMap
    arguments: Mapping[str, Any] = field(default_factory=dict)
    trained_on: Mapping[str, Any] = field(default_factory=dict)


def load_trained(model_id: str | Path, task: str | None = None, *, trust_remote_code: bool = False) -> Trained:
    """Load a model from a folder (a run's `model/`, or the run itself) or from the Hub.

    Args:
        model_id: folder or Hub id.
        task: the task of a model that cv_hf did not train.
        trust_remote_code: run the code that the model brings with it.

    Raises:
        ModelError: not there, weights missing, or a task that is not known.
    """
    folder = Path(model_id) / "model"
    model_id = str(folder if (folder / "config.json").is_file() else model_id)
    notes = publish.read_notes(model_id)
    name = notes.get("task") or task
    if name is None:
        check_is_there(ModelConfig(id=model_id))
        raise ModelError(f"{model_id}: its task is not known, as cv_hf did not train it. Name it with --task.")
    known = get_task(name)
    built = build_model(ModelConfig(id=model_id, trust_remote_code=trust_remote_code), known.auto_class, {})
    if built.report.new:
        raise ModelError(f"{model_id}: {len(built.report.new)} weights are missing, as {built.report.new[0]}.")
    if "labels" in notes:
        try:
            labels = LabelMap.from_dict(notes["labels"])
        except DataError as error:
            raise ModelError(f"{model_id}: cv_hf.json: {error}") from None
        if other := set(built.model.config.id2label.values()) ^ set(labels.names):
            raise ModelError(
                f"{model_id}: config.json and cv_hf.json do not have the same classes ({min(other, key=str)!r:.80} is "
                "in one only).\nTake both files from one training."
            )
    else:
        labels = from_class_names(_distinct([name for _, name in sorted(built.model.config.id2label.items())]))
    model = built.model.eval().to(PartialState().device)
    arguments = notes.get("pipeline") or known.arguments({}, model.config)
    return Trained(model_id, known, model, built.processor, labels, arguments, notes.get("trained_on", {}))


def _distinct(names: Sequence[str]) -> list[str]:
    """ImageNet has two cranes; each name after the first of its kind gets its class id."""
    return [f"{name} ({index})" if name in names[:index] else name for index, name in enumerate(names)]


def score(
    trained: Trained,
    dataset: datasets.Dataset,
    findings: Findings,
    data: DataConfig,
    *,
    batch_size: int,
    name: str,
    echo: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Every metric of the task on a canonical split; what could not be read is added to `findings`."""
    return evaluate(
        trained.model,
        EvalSamples(dataset, trained.processor, trained.task.fit, trained.labels),
        trained.task,
        trained.labels,
        batch_size=batch_size,
        on_findings=recorder(findings, data.on_bad_sample, echo),
        progress=f"scoring {name}",
    )


def trained_on(trained: Trained, data: DataConfig) -> TrainedOn | None:
    """What a model tells of the data, if it is what the model was trained on.

    Its run directory knows the data by its place. A model by itself, from the Hub or copied, knows a dataset of the Hub
    by its id, and local data by the name of its folder and the names of its samples.
    """
    noted = trained.trained_on
    samples = noted.get("samples")
    folder = Path(trained.id).parent
    try:
        if Path(trained.id).name == "model" and (folder / "recipe.yaml").is_file():
            recipe = load_recipe(folder / "recipe.yaml")
            if recipe.data.config == data.config and os.path.realpath(recipe.data.id) == os.path.realpath(data.id):
                return TrainedOn(recipe.data, recipe.train.arguments["seed"], samples)
        known = TrainedOn(DataConfig.model_validate(noted["data"]), int(noted["seed"]), samples)
    except (RecipeError, KeyError, TypeError, ValueError):  # of another version, or edited since
        return None
    if known.data.images or known.data.masks or isinstance(known.data.labels, str):
        return None  # a model may come from anybody, and names no place of this machine to read
    local = os.path.exists(data.id)
    name = os.path.basename(os.path.realpath(data.id)) if local else data.id
    if (known.data.config, known.data.id) != (data.config, name) or noted.get("hub") is local:
        return None
    return known if not local or is_of_run(data, trained.task, known) else None


def evaluate_model(
    model: str | Path | Trained,
    data: str | DataConfig,
    *,
    split: str | None = None,
    batch_size: int = 16,
    echo: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Score a trained model on a dataset, matching its labels by name.

    Args:
        model: folder or Hub id, or what `load_trained` gives.
        data: Hub id, folder or file, or a whole data section.
        split: the split's name; None: the test split, else the validation split, else the only one. Of the data that
            its run was trained on, test and validation are what it held out.
        batch_size: images per forward; of the numbers only the loss of detectors depends on it.
        echo: called with each line to print.

    Returns:
        the metrics, and `findings`.
    """
    data = data if isinstance(data, DataConfig) else DataConfig(id=str(data))
    trained = model if isinstance(model, Trained) else load_trained(model)
    dataset, findings = load_split(data, trained.task, trained.labels, split, echo, trained_on(trained, data))
    metrics = score(trained, dataset, findings, data, batch_size=batch_size, name=split or data.id, echo=echo)
    return {**metrics, "findings": findings.to_dict()}


def predict(
    trained: Trained, dataset: datasets.Dataset, *, batch_size: int = 16
) -> Iterator[tuple[Mapping[str, Any], Any, list[tuple[str, str, str]]]]:
    """Yield (row, prediction) over a canonical split or `images_dataset`, in its order.

    Yields:
        the dataset's row with the `size` of its image; what pipeline() answers for it, or None when it cannot be read;
        and the findings.
    """
    task = trained.task
    samples = EvalSamples(dataset, trained.processor)
    subtasks = [trained.arguments["subtask"]] if "subtask" in trained.arguments else []
    for start in range(0, len(dataset), batch_size):
        rows = range(start, min(start + batch_size, len(dataset)))
        found: list[tuple[str, str, str]] = []
        answers: dict[int, tuple[tuple[int, int] | None, Any]] = {}
        for group, outputs in forward(
            trained.model, samples, rows, batch_size=batch_size, on_findings=found.extend, subtasks=subtasks
        ):
            sizes = [row["size"] for row in group.rows]
            predictions = task.predict(outputs, trained.model.config, trained.processor, sizes, trained.arguments)
            answers.update(zip(group.ids, zip(sizes, predictions, strict=True), strict=True))
        for index in rows:
            size, answer = answers.get(index, (None, None))
            row = {**dataset[index], "size": size}
            yield row, answer, [finding for finding in found if finding[1] == row["file"]]


def predict_files(trained: Trained, paths: Sequence[str | Path], out: Path | None = None) -> dict[str, dict[str, Any]]:
    """Predict image files and folders of them.

    Args:
        trained: from `load_trained`.
        paths: image files, or folders whose images are taken at any depth.
        out: where predictions.json (for detection also coco.json) and a picture per image go, in the place of what an
            earlier call wrote there; None: nothing is written.

    Returns:
        {file: {"prediction": ...}}, with `out` also the name of its "picture"; {file: {"error": reason}} for each that
        cannot be read.

    Raises:
        DataError: a path that is not there, no image among them, or `out` holds what no earlier call wrote.
        Interrupted: by Ctrl-C; `out` holds what was answered until then.
    """
    dataset = images_dataset(paths)
    answers: dict[str, dict[str, Any]] = {}
    sizes: dict[str, tuple[int, int]] = {}
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        _clear(out, dataset["file"][:])
    predicted = tqdm(
        predict(trained, dataset),
        desc="predicting",
        total=len(dataset),
        disable=None,
        leave=False,
        dynamic_ncols=True,
    )
    try:
        for number, (row, prediction, found) in enumerate(predicted):
            file = row["file"]
            if prediction is None:
                answers[file] = {"error": next((reason for *_, reason in found if reason), "cannot be read")}
                continue
            answer = {"prediction": prediction}
            if out is not None:
                picture = trained.task.draw(decode(row["image"])[0], prediction, None, trained.labels, None)
                # Numbered, since two folders may hold files of one name.
                stem = re.sub(r"[^\w.-]", "_", Path(file).stem)[:60]
                answer["picture"] = f"{number:05d}_{stem}.png"
                _save(picture, out / answer["picture"])
                sizes[file] = row["size"]
            answers[file] = answer
    except KeyboardInterrupt:
        if out is None:
            raise
        raise Interrupted(f"interrupted; {out} holds the answers to {len(answers)} of {len(dataset)} images.") from None
    finally:
        predicted.close()
        if out is not None:
            # Whatever stopped it: what was answered until then is not lost.
            known = {file: answers[file]["prediction"] for file in sizes if file in answers}
            files = {**trained.task.export(known, sizes, trained.labels), "predictions.json": answers}
            for name, content in files.items():
                write_text(out / name, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    return answers


def _save(picture: Any, file: Path) -> None:
    """Save a picture, whole or not at all."""
    try:
        picture.save(file)
    except BaseException:
        file.unlink(missing_ok=True)
        raise


def _clear(out: Path, images: Sequence[str]) -> None:
    """Remove what an earlier call wrote into the folder, known by its predictions.json; refuse one that holds more."""
    written = _written(out)
    # Those that begin with a dot a file manager leaves.
    others = sorted(path.name for path in out.iterdir() if path not in written and not path.name.startswith("."))
    if others:
        raise DataError(
            f"{out} holds {others[0]}, which is in no predictions.json of an earlier prediction.\n"
            "Write to another folder, or empty this one."
        )
    places = {path.resolve() for path in written}
    if used := [file for file in images if places and Path(file).resolve() in places]:
        raise DataError(f"{used[0]} is a picture of an earlier prediction, which would be replaced. Write elsewhere.")
    for path in written:
        path.unlink()


def _written(out: Path) -> list[Path]:
    """The files that an earlier call wrote into a folder, predictions.json last; none where that is not ours."""

    def read(name: str) -> Any:
        try:
            return json.loads((out / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None

    answers = read("predictions.json")
    if not isinstance(answers, dict) or not all(
        isinstance(answer, dict) and ("picture" in answer or "error" in answer) for answer in answers.values()
    ):
        return []
    pictures = {str(answer["picture"]) for answer in answers.values() if "picture" in answer}
    names = sorted(name for name in pictures if _PICTURE.fullmatch(name) and (out / name).is_file())
    try:
        ours = {image["file_name"] for image in read("coco.json")["images"]} <= answers.keys()
    except (KeyError, TypeError):
        ours = False
    return [out / name for name in [*names, *["coco.json"] * ours, "predictions.json"]]


def predictions_sheet(trained: Trained, dataset: datasets.Dataset, path: Path) -> None:
    """One picture of predictions against the truth, of samples spread evenly over a split."""
    pictures = []
    for row, prediction, _ in predict(trained, _spread(dataset, SHEET)):
        if prediction is not None:
            known = fitted(row, trained.task, trained.labels)
            truth = None if known is None else trained.task.truth(known, trained.labels)
            image, _ = decode(row["image"])
            pictures.append(trained.task.draw(image, prediction, truth, trained.labels, trained.task.tile))
    if pictures:
        path.parent.mkdir(parents=True, exist_ok=True)
        contact_sheet(pictures).save(path)


def fitted(row: Mapping[str, Any], task: Task, labels: LabelMap) -> Mapping[str, Any] | None:
    """A row that has the `size` of its image with targets that fit it; None where it has none."""
    return row if task.fit is None else task.fit(row, row["size"], labels)[0]


def evidence(memory: Trained, dataset: datasets.Dataset) -> dict[str, Any]:
    """What a model answers to samples spread evenly over a split, for `cv-hf verify`.

    Args:
        memory: the model that was trained, in memory, before it was saved.
        dataset: a canonical split.

    Returns:
        {SHA-256 of an image's file: {"answer": prediction, "arguments": those that show it}}
    """
    task = memory.task
    whole = {**memory.arguments, **task.complete}
    seen: dict[str, dict[str, Any]] = {}
    for row, prediction, _ in predict(replace(memory, arguments=whole), _spread(dataset, EVIDENCE)):
        if prediction is not None:
            answer, arguments = task.surest(prediction)
            seen[digest(row["image"])] = {"answer": answer, "arguments": {**whole, **arguments}}
    if task.shown is None:
        for row in _spread(dataset, EVIDENCE):
            witness = seen.get(digest(row["image"]))
            if witness is not None:
                asked = replace(memory, arguments=witness["arguments"])
                witness["answer"] = next(predict(asked, datasets.Dataset.from_list([row], dataset.features)))[1]
    return seen


def digest(image: Mapping[str, Any]) -> str:
    """What an undecoded image is known by in the evidence: the SHA-256 of its file."""
    content = image["bytes"] if image.get("bytes") is not None else Path(image["path"]).read_bytes()
    return hashlib.sha256(content).hexdigest()


def _spread(dataset: datasets.Dataset, count: int) -> datasets.Dataset:
    count = min(count, len(dataset))
    return dataset.select([index * len(dataset) // count for index in range(count)])


def images_dataset(paths: Sequence[str | Path]) -> datasets.Dataset:
    """A split of nothing but images, from files and folders.

    Raises:
        DataError: a path that is not there, or no image among them.
    """
    suffixes = image_suffixes()
    files: list[Path] = []
    for given in paths:
        path = Path(given)
        if path.is_dir():
            found = sorted(p for p in path.rglob("*") if p.suffix.lower() in suffixes and p.is_file())
            files += [p for p in found if check_name(str(p))]
        elif path.is_file():
            files.append(path)
        else:
            # As it was typed: a Path makes one slash of the two of an address.
            raise DataError(f"{given}: no such image or folder.")
    if not files:
        raise DataError(f"{', '.join(map(str, paths))}: no images in it.")
    files = list(dict.fromkeys(files))  # one answer and one picture each
    columns = {"image": [{"path": str(file), "bytes": None} for file in files], "file": [str(file) for file in files]}
    features = datasets.Features({"image": datasets.Image(decode=False), "file": datasets.Value("string")})
    return datasets.Dataset.from_dict(columns, features=features)
