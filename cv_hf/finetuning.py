"""The road, drawn once: from a recipe to a run directory whose `model/` pipeline() loads.

recipe -> splits -> model -> transforms -> Trainer -> model/ -> score -> card -> Hub
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import set_seed

from cv_hf import publish
from cv_hf.config import Recipe, load_recipe
from cv_hf.data import Splits, load_splits
from cv_hf.errors import Interrupted, RecipeError
from cv_hf.inference import Trained, evidence, load_trained, predictions_sheet, score
from cv_hf.models import Built, build_model, freeze_backbone, loss_needs, pixel_map, resizer
from cv_hf.task import Task
from cv_hf.tasks import get_task
from cv_hf.training import (
    EvalSamples,
    LogFile,
    Progress,
    Trainer,
    TrainSamples,
    choose_metric,
    collate_train,
    data_seed,
    describe,
    evaluate,
    find_scales,
    gathered,
    newest_checkpoint,
    recorder,
    resolve,
    takes_mask,
    training_arguments,
)
from cv_hf.transforms import build_augment


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        folder: the run directory.
        model: the folder that pipeline() loads.
        metrics: what metrics.json holds.
        log: one dict per log call, as in log.jsonl.
        url: where the model was pushed, or None.
    """

    folder: Path
    model: Path
    metrics: dict[str, Any]
    log: list[dict[str, Any]]
    url: str | None = None


def finetune(
    recipe: Recipe | Mapping[str, Any] | str | Path,
    overrides: Sequence[str] = (),
    *,
    resume: bool = False,
) -> Run:
    """Fine-tune a model as a recipe says.

    Args:
        recipe: a YAML file, a mapping of the same shape, or a Recipe.
        overrides: `key.sub=value` texts, as on the command line.
        resume: go on from the newest complete checkpoint of the run directory.

    Raises:
        CvHfError: the recipe, the data or the model cannot be used, or the Hub failed; see cv_hf.errors.
    """
    recipe = load_recipe(recipe, overrides)
    task = get_task(recipe.task)
    recipe = resolve(recipe, task)
    folder = open_run(recipe, resume=resume)
    if recipe.hub and is_main():
        publish.check_can_write(recipe.hub.repo_id)

    with resumable(folder):
        seed = recipe.train.arguments["seed"]
        splits = load_splits(recipe.data, task, seed=seed, echo=echo)
        set_seed(seed)  # the new head is drawn from it
        built = build_model(recipe.model, task.auto_class, task.model_fields(splits.labels, splits.train.column_names))
        echo("\n".join(built.report.lines()))

        trainer = build_trainer(recipe, task, splits, built, folder)
        echo(f"training on {describe(trainer.args)}")
        outcome = train(trainer, recipe, folder, resume=resume)

        if is_main():
            publish.save_model_folder(trainer.model, built.processor, task.name, splits.labels, folder / "model")
        trainer.accelerator.wait_for_everyone()
        trained = load_trained(folder / "model", trust_remote_code=recipe.model.trust_remote_code)
        metrics = {"train": outcome, **score_saved(trained, recipe, splits)}
        trained = replace(trained, arguments=task.arguments(metrics["validation"], trained.model.config))
        url = None
        if is_main():
            memory = replace(trained, model=trainer.plain_model().eval(), processor=built.processor)
            write_results(trained, memory, recipe, splits, built, folder, metrics)
            url = publish.push(folder, recipe.hub.repo_id, private=recipe.hub.private) if recipe.hub else None
        return Run(folder, folder / "model", metrics, trainer.state.log_history, url)


def open_run(recipe: Recipe, *, resume: bool) -> Path:
    """Make the run directory and write the resolved recipe into it.

    Raises:
        RecipeError: it holds another run, which would be overwritten.
    """
    folder = Path(recipe.run_dir)
    if not resume and (newest_checkpoint(folder / "checkpoints") or (folder / "model").exists()):
        raise RecipeError(f"{folder}: holds a run already. Go on with --resume, or choose another with --run-dir.")
    if is_main():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "recipe.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
    return folder


@contextmanager
def resumable(folder: Path) -> Iterator[None]:
    """Turn Ctrl-C into the command that goes on from what was saved."""
    try:
        yield
    except KeyboardInterrupt:
        saved = newest_checkpoint(folder / "checkpoints")
        state = f"the newest checkpoint is {saved}" if saved else "no checkpoint was saved yet"
        command = f"cv-hf train {shlex.quote(str(folder / 'recipe.yaml'))} --resume"
        raise Interrupted(f"interrupted; {state}.\nTo go on: {command}") from None


def build_trainer(recipe: Recipe, task: Task, splits: Splits, built: Built, folder: Path) -> Trainer:
    """Put data, model and arguments together; config stops here."""
    if recipe.model.freeze == "backbone":
        if recipe.train.backbone_lr is not None:
            raise RecipeError("train.backbone_lr: the backbone is frozen (model.freeze); leave out one of the two.")
        freeze_backbone(built.model)
    known = task.metrics(splits.labels, splits.train.column_names)
    metric = choose_metric(recipe, known)
    arguments = training_arguments(recipe, folder / "checkpoints", metric, known[metric])
    record = recorder(splits.findings, recipe.data.on_bad_sample)
    pixels = pixel_map(built.processor)
    augment = build_augment(
        recipe.augment or [], pixels.size if pixels else None, data_seed(arguments), moved=task.moved
    )
    resize = None
    if task.moved and augment.size is None:
        # Boxes are relative to the image, so it may have any size: that which the processor gives it.
        resize = resizer(built.processor)
    elif pixels and not pixels.fixed and augment.size is None:
        raise RecipeError(
            "augment: this model's image processor keeps the aspect ratio, so images of a batch would differ in size. "
            "Add an operation that sets it, as RandomResizedCrop."
        )
    # Only where images stand at the model's size already can the processor's resizing be left out.
    whole_processor = pixels is None or (augment.size is None and resize is None)
    scales = None
    if recipe.train.multi_scale:
        if not whole_processor:
            scales = find_scales(built.model, pixels.size, recipe.train.multi_scale)
        if scales is None:
            echo(f"train.multi_scale is left out: {type(built.model).__name__} takes images of one size")
    return Trainer(
        model=built.model,
        args=arguments,
        train_dataset=TrainSamples(
            splits.train,
            task.train_sample,
            augment,
            fit=task.fit,
            labels=splits.labels,
            subtasks=task.subtasks,
            resize=resize,
        ),
        data_collator=partial(
            collate_train,
            targets=task.targets,
            labels=splits.labels,
            needs=loss_needs(built.model, built.processor),
            processor=built.processor if whole_processor else None,
            masked=takes_mask(built.model),
        ),
        eval_dataset=EvalSamples(splits.validation, built.processor, task.fit, splits.labels),
        score=partial(
            evaluate,
            task=task,
            labels=splits.labels,
            batch_size=recipe.eval.batch_size,
            workers=arguments.dataloader_num_workers,
            on_findings=record,
        ),
        record=record,
        pixels=None if whole_processor else pixels,
        backbone_lr=recipe.train.backbone_lr,
        early_stopping=recipe.train.early_stopping,
        ema=recipe.train.ema,
        scales=scales,
        callbacks=[
            LogFile(folder / "log.jsonl"),
            Progress(known, recipe.train.batch_size, disable=bool(arguments.disable_tqdm)),
        ],
    )


def train(trainer: Trainer, recipe: Recipe, folder: Path, *, resume: bool) -> dict[str, Any]:
    """Train to the end and load the best checkpoint; return what metrics.json says of training.

    A run that was trained to its end, and stopped in scoring or pushing, is not trained again.
    """
    checkpoint = newest_checkpoint(folder / "checkpoints") if resume else None
    finished = folder / "checkpoints" / "finished.json"
    if checkpoint and finished.is_file():
        end = json.loads(finished.read_text(encoding="utf-8"))
        best = folder / "checkpoints" / end["checkpoint"]
        if end["train"] == recipe.train.model_dump(mode="json") and best.is_dir():
            echo(f"trained already; its best weights are in {end['checkpoint']}")
            trainer.load_weights(str(best))
            return end["outcome"]
    try:
        outcome = trainer.train(resume_from_checkpoint=checkpoint)
    except torch.OutOfMemoryError:
        steps = 2 * trainer.args.gradient_accumulation_steps
        raise RecipeError(
            f"out of memory with {trainer.args.per_device_train_batch_size} images per device at once.\n"
            f"The same training in less: train.gradient_accumulation_steps={steps}; in scoring: eval.batch_size."
        ) from None
    result = {
        "loss": outcome.training_loss,
        "steps": outcome.global_step,
        "seconds": outcome.metrics["train_runtime"],
        "samples_per_second": outcome.metrics["train_samples_per_second"],
        "best_step": trainer.state.best_global_step,
    }
    best = trainer.state.best_model_checkpoint or newest_checkpoint(folder / "checkpoints")
    if best and is_main():
        end = {"train": recipe.train.model_dump(mode="json"), "outcome": result, "checkpoint": Path(best).name}
        finished.write_text(json.dumps(end, indent=2) + "\n", encoding="utf-8")
    return result


def score_saved(trained: Trained, recipe: Recipe, splits: Splits) -> dict[str, Any]:
    """Score the saved model, reloaded as pipeline() will load it, on every split that was not trained on."""
    held_out = {"validation": splits.validation, "test": splits.test}
    scores: dict[str, Any] = {
        name: score(trained, split, splits.findings, recipe.data, batch_size=recipe.eval.batch_size, name=name)
        for name, split in held_out.items()
        if split is not None
    }
    return {**scores, "findings": gathered(splits.findings).to_dict()}


def write_results(
    trained: Trained,
    memory: Trained,
    recipe: Recipe,
    splits: Splits,
    built: Built,
    folder: Path,
    metrics: Mapping[str, Any],
) -> None:
    """Write metrics.json, the arguments for pipeline(), the evidence for `cv-hf verify`, the card and a picture.

    `memory` is the model that was trained, `trained` the same as reloaded from its folder.
    """
    shown = splits.validation if splits.test is None else splits.test
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    seen = evidence(memory, shown)
    publish.write_arguments(folder / "model", trained.arguments, seen, metrics["validation"])
    publish.write_card(
        folder / "model" / "README.md",
        recipe,
        trained.task,
        splits.labels,
        metrics,
        columns=splits.train.column_names,
        arguments=trained.arguments,
        model_commit=built.commit,
        data_commit=splits.source.commit,
    )
    predictions_sheet(trained, shown, folder / "predictions" / "sheet.png")


def is_main() -> bool:
    """Whether this process is the one that prints and writes."""
    return os.environ.get("RANK", "0") == "0"


def echo(line: str) -> None:
    """Print a line, once over all processes."""
    if is_main():
        print(line, flush=True)
