"""The road, drawn once: from a recipe to a run directory whose `model/` pipeline() loads.

recipe -> splits -> model -> transforms -> Trainer -> model/ -> score -> card -> Hub
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list
from transformers import set_seed

from cv_hf import publish
from cv_hf.config import Recipe, load_recipe
from cv_hf.data import Splits, fingerprint, load_splits
from cv_hf.errors import CvHfError, Interrupted, RecipeError, ResourceError, printable_lines
from cv_hf.inference import Trained, evidence, load_trained, predictions_sheet, score
from cv_hf.models import Built, build_model, freeze_backbone, loss_needs, pixel_map, resizer
from cv_hf.task import Task
from cv_hf.tasks import get_task
from cv_hf.training import (
    EvalSamples,
    LogFile,
    Preflight,
    Progress,
    Trainer,
    TrainSamples,
    check_changes,
    choose_metric,
    collate_train,
    data_seed,
    describe,
    disk_full,
    evaluate,
    fault,
    find_scales,
    gathered,
    image_cache,
    learnt,
    local_processes,
    locked,
    megabytes,
    memory_error,
    newest_checkpoint,
    out_of_memory,
    preflight,
    read_manifest,
    recorder,
    resolve,
    takes_mask,
    training_arguments,
    write_text,
)
from cv_hf.transforms import build_augment, shrink


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
    recipe, task = open_recipe(recipe, overrides)
    folder = Path(recipe.run_dir)
    with locked(folder) if is_main() else nullcontext(), resumable(folder):
        checkpoint = open_run(recipe, resume=resume)
        if is_main():
            write_text(folder / "recipe.yaml", recipe.to_yaml())
        splits, built, trainer = prepare(recipe, task, folder, checkpoint)
        outcome = train(trainer, recipe, folder, checkpoint)

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


def dry_run(
    recipe: Recipe | Mapping[str, Any] | str | Path, overrides: Sequence[str] = (), *, resume: bool = False
) -> Preflight:
    """Check in seconds what a run needs, and train and write nothing; arguments and errors are those of `finetune`.

    Data, labels, one forward and backward, memory, disk for the checkpoints, and the right to write to the Hub.
    A run directory that holds a run already is not refused.
    """
    recipe, task = open_recipe(recipe, overrides)
    checkpoint = open_run(recipe, resume=resume, writes=False)
    with tempfile.TemporaryDirectory() as aside:
        splits, _, trainer = prepare(recipe, task, Path(aside), checkpoint)
        present = task.present(splits.train)
        if present is not None and (absent := [name for name in splits.labels.names if name not in present]):
            echo(f"labels: no training sample of {', '.join(absent[:8])}{', ...' if len(absent) > 8 else ''}")
        found = preflight(trainer, Path(recipe.run_dir))
    for line in found.lines():
        echo(line)
    echo(f"hub: {recipe.hub.repo_id} can be written to" if recipe.hub else "hub: nothing will be pushed")
    return found


def open_recipe(recipe: Recipe | Mapping[str, Any] | str | Path, overrides: Sequence[str] = ()) -> tuple[Recipe, Task]:
    """The recipe with all defaults, and its task.

    Raises:
        RecipeError: a value that cannot be right, whatever the data and the model are.
    """
    recipe = load_recipe(recipe, overrides)
    task = get_task(recipe.task)
    recipe = resolve(recipe, task)
    known = task.metrics(None, tuple(recipe.data.columns))
    metric = choose_metric(recipe, known)
    arguments = training_arguments(recipe, Path(recipe.run_dir) / "checkpoints", metric, known[metric])
    build_augment(recipe.augment or [], None, data_seed(arguments), moved=task.moved)
    if recipe.hub:
        publish.check_name(recipe.hub.repo_id)
    return recipe, task


def open_run(recipe: Recipe, *, resume: bool, writes: bool = True) -> str | None:
    """The checkpoint of the run directory to go on from, which the main process alone looks for.

    Args:
        writes: whether a run will be written, which must not be over another.

    Raises:
        RecipeError: the run directory holds a run, which would be overwritten; or one that was trained otherwise.
        HubError: the recipe wants a push, and the token may not write there.
    """
    if not is_main():
        return None
    folder = Path(recipe.run_dir)
    finished = (folder / "model").exists()
    if writes and not resume and (finished or any(folder.glob("checkpoints/checkpoint-*"))):
        raise RecipeError(f"{folder}: holds a run already. Go on with --resume, or choose another with --run-dir.")
    checkpoint = newest_checkpoint(folder / "checkpoints", echo, writes=writes) if resume else None
    if checkpoint:
        check_changes(read_manifest(Path(checkpoint)), {"recipe": as_json(recipe)}, Path(checkpoint), echo)
    elif resume and finished:
        raise RecipeError(
            f"{folder}: holds a model/ that --resume would replace: there is no complete checkpoint to go on from.\n"
            "Train anew with another --run-dir, or remove the model/ first."
        )
    elif resume:
        # No refusal: a script that may be started again says --resume from the first.
        what = "complete checkpoint" if (folder / "recipe.yaml").exists() else "run to resume"
        echo(f"WARNING: {folder}: there is no {what}; training begins at its start")
    if recipe.hub:
        publish.check_can_write(recipe.hub.repo_id)
    return checkpoint


def as_json(recipe: Recipe) -> dict[str, Any]:
    """The recipe as it stands in the manifest of a checkpoint."""
    return recipe.model_dump(mode="json")


@contextmanager
def resumable(folder: Path) -> Iterator[None]:
    """Turn Ctrl-C, and the want of disk or memory, into errors with the command that goes on from what was saved."""
    processes = local_processes()
    command = f"cv-hf train {shlex.quote(str(folder / 'recipe.yaml'))} --resume"
    command += f" --nproc {processes}" if processes > 1 else ""
    try:
        yield
    except KeyboardInterrupt:
        saved = newest_checkpoint(folder / "checkpoints")
        state = f"the newest checkpoint is {saved}" if saved else "no checkpoint was saved yet"
        raise Interrupted(f"interrupted; {state}.\nTo go on: {command}") from None
    except ResourceError as error:
        if len(str(error).splitlines()) > 1:
            raise
        raise ResourceError(f"{error}\nMake room, then: {command}") from None
    except CvHfError:
        raise
    except Exception as error:
        if disk_full(error):
            free = megabytes(shutil.disk_usage(folder).free)
            raise ResourceError(
                f"{folder}: no space left on the disk; {free} are free.\nMake room, then: {command}"
            ) from None
        if out_of_memory(error):
            raise ResourceError(f"out of memory in scoring.\nTry: {command} eval.batch_size=1") from None
        raise


def prepare(recipe: Recipe, task: Task, folder: Path, checkpoint: str | None) -> tuple[Splits, Built, Trainer]:
    """Load data and model, and put them together."""
    seed = recipe.train.arguments["seed"]
    splits = load_splits(recipe.data, task, seed=seed, echo=echo)
    notes = {"recipe": as_json(recipe), "samples": fingerprint(splits)}
    if checkpoint:
        check_changes(read_manifest(Path(checkpoint)), {"samples": notes["samples"]}, Path(checkpoint), echo)
    set_seed(seed)  # the new head is drawn from it
    built = build_model(recipe.model, task.auto_class, task.model_fields(splits.labels, splits.train.column_names))
    echo("\n".join(built.report.lines()))
    trainer = build_trainer(recipe, task, splits, built, folder, notes)
    echo(f"training on {describe(trainer.args)}")
    return splits, built, trainer


def build_trainer(
    recipe: Recipe,
    task: Task,
    splits: Splits,
    built: Built,
    folder: Path,
    notes: Mapping[str, Any] | None = None,
) -> Trainer:
    """Put data, model and arguments together; config stops here. `notes` go into each checkpoint."""
    if recipe.model.freeze == "backbone":
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
        resize = resizer(built.processor, shrink)
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
            cache=image_cache(len(splits.train)) if recipe.train.cache_images else None,
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
        notes=notes,
        callbacks=[
            LogFile(folder / "log.jsonl"),
            Progress(
                known,
                recipe.train.batch_size,
                disable=bool(arguments.disable_tqdm),
                cached=recipe.train.cache_images,
            ),
        ],
    )


def train(trainer: Trainer, recipe: Recipe, folder: Path, checkpoint: str | None) -> dict[str, Any]:
    """Train to the end and load the best checkpoint; return what metrics.json says of training.

    A run that was trained to its end, and stopped in scoring or pushing, is not trained again.
    """
    # One process has looked; all go on from the same.
    (checkpoint,) = broadcast_object_list([checkpoint])
    finished = folder / "checkpoints" / "finished.json"
    if checkpoint and finished.is_file():
        end = json.loads(finished.read_text(encoding="utf-8"))
        best = folder / "checkpoints" / end["checkpoint"]
        if learnt(end["train"]) == learnt(recipe.train.model_dump(mode="json")) and fault(best) is None:
            echo(f"trained already; its best weights are in {end['checkpoint']}")
            trainer.load_weights(str(best))
            return end["outcome"]
    try:
        for line in preflight(trainer, folder).lines()[:2]:
            echo(line)
        if checkpoint:
            echo(f"resuming from {checkpoint}")
        if is_main():
            finished.unlink(missing_ok=True)
        outcome = trainer.train(resume_from_checkpoint=checkpoint)
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        raise memory_error(trainer.args) from None
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
        write_text(finished, json.dumps(end, indent=2) + "\n")
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
    write_text(folder / "metrics.json", json.dumps(metrics, indent=2) + "\n")
    seen = evidence(memory, shown)
    noted = publish.data_notes(recipe, splits)
    publish.write_arguments(folder / "model", trained.arguments, seen, metrics["validation"], noted)
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
        print(printable_lines(line), flush=True)
