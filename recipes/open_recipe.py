"""Every step of `cv-hf train` in the open, for any task: copy this file and edit what you need.

    python open_recipe.py RECIPE.yaml [key=value ...]

It calls what `cv_hf.finetune` calls, in the same order, and gives the same losses. What it leaves out is what a script
of your own may not need: --resume, the picture of predictions, messages for Ctrl-C.
"""

import json
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

from transformers import set_seed

from cv_hf import publish
from cv_hf.config import Recipe, load_recipe
from cv_hf.data import load_splits
from cv_hf.inference import evidence, load_trained, score
from cv_hf.models import build_model, freeze_backbone, loss_needs, pixel_map, resizer
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
    evaluate,
    find_scales,
    image_cache,
    locked,
    recorder,
    resolve,
    takes_mask,
    training_arguments,
)
from cv_hf.transforms import build_augment, shrink


def main(recipe_file: str, *overrides: str) -> dict:
    # The recipe: typed values; `resolve` writes the task's defaults out.
    recipe = load_recipe(recipe_file, overrides)
    task = get_task(recipe.task)
    recipe = resolve(recipe, task)
    folder = Path(recipe.run_dir)
    with locked(folder):  # against another training in it
        return train(recipe, task, folder)


def train(recipe: Recipe, task: Task, folder: Path) -> dict:
    (folder / "recipe.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
    if recipe.hub:
        publish.check_can_write(recipe.hub.repo_id)

    # The data: the task's canonical columns, contiguous label ids, what was found wrong.
    splits = load_splits(recipe.data, task, seed=recipe.train.arguments["seed"])
    labels, columns = splits.labels, splits.train.column_names

    # The model: a new head for these labels, everything else as pretrained; and the processor that goes with it.
    set_seed(recipe.train.arguments["seed"])
    model, processor, report, model_commit = build_model(
        recipe.model, task.auto_class, task.model_fields(labels, columns)
    )
    print(*report.lines(), sep="\n")
    if recipe.model.freeze == "backbone":
        freeze_backbone(model)

    # The arguments: TrainingArguments, with what this machine decides filled in.
    metrics_known = task.metrics(labels, columns)
    metric = choose_metric(recipe, metrics_known)
    arguments = training_arguments(recipe, folder / "checkpoints", metric, metrics_known[metric])

    # Training transforms: augmentations that end at the model's size, then the processor's pixel values on the device.
    pixels = pixel_map(processor)
    augment = build_augment(recipe.augment, pixels.size if pixels else None, data_seed(arguments), moved=task.moved)
    # Boxes are relative to the image: where no augmentation sets the size, the processor's own resizing does.
    resize = resizer(processor, shrink) if task.moved and augment.size is None else None
    if augment.size is None and resize is None:
        pixels = None  # each image goes through the whole processor instead
    # Each batch at a size of its own, if the model takes more than one.
    scales = find_scales(model, pixels.size, recipe.train.multi_scale) if recipe.train.multi_scale and pixels else None

    # Evaluation: the saved processor and nothing else, streamed into counts.
    record = recorder(splits.findings, recipe.data.on_bad_sample)
    stream = partial(
        evaluate,
        task=task,
        labels=labels,
        batch_size=recipe.eval.batch_size,
        workers=arguments.dataloader_num_workers,
        on_findings=record,
    )

    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=TrainSamples(
            splits.train,
            task.train_sample,
            augment,
            fit=task.fit,
            labels=labels,
            subtasks=task.subtasks,
            resize=resize,
            cache=image_cache(len(splits.train)) if recipe.train.cache_images else None,
        ),
        data_collator=partial(
            collate_train,
            targets=task.targets,
            labels=labels,
            needs=loss_needs(model, processor),
            processor=None if pixels else processor,
            masked=takes_mask(model),
        ),
        eval_dataset=EvalSamples(splits.validation, processor, task.fit, labels),
        score=stream,
        record=record,
        pixels=pixels,
        backbone_lr=recipe.train.backbone_lr,
        early_stopping=recipe.train.early_stopping,
        ema=recipe.train.ema,
        scales=scales,
        callbacks=[
            LogFile(folder / "log.jsonl"),
            Progress(metrics_known, recipe.train.batch_size, disable=False, cached=recipe.train.cache_images),
        ],
    )
    trainer.train()

    # What pipeline() loads, and its score: reloaded, in float32, as pipeline() will compute it.
    publish.save_model_folder(trainer.model, processor, task.name, labels, folder / "model")
    trained = load_trained(folder / "model", trust_remote_code=recipe.model.trust_remote_code)
    metrics = {
        name: score(trained, split, splits.findings, recipe.data, batch_size=recipe.eval.batch_size, name=name)
        for name, split in (("validation", splits.validation), ("test", splits.test))
        if split is not None
    }
    metrics["findings"] = splits.findings.to_dict()
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")

    # What pipeline() should be called with, as a score threshold; what `cv-hf verify` compares with; what was trained
    # on; card and push.
    call = task.arguments(metrics["validation"], trained.model.config)
    memory = replace(trained, model=trainer.plain_model().eval(), processor=processor, arguments=call)
    seen = evidence(memory, splits.test or splits.validation)
    noted = publish.data_notes(recipe, splits)
    publish.write_arguments(folder / "model", call, seen, metrics["validation"], noted)
    publish.write_card(
        folder / "model" / "README.md",
        recipe,
        task,
        labels,
        metrics,
        columns=columns,
        arguments=call,
        model_commit=model_commit,
        data_commit=splits.source.commit,
    )
    if recipe.hub:
        print("pushed to", publish.push(folder, recipe.hub.repo_id, private=recipe.hub.private))
    return metrics


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(*sys.argv[1:])
