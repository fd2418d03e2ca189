"""The sides of the speed benchmarks: cv_hf on a recipe, and a plain PyTorch loop on tensors already in memory."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from cv_hf.config import load_recipe
from cv_hf.data import load_splits
from cv_hf.finetuning import build_trainer
from cv_hf.models import build_model
from cv_hf.models import sample as sample_models
from cv_hf.tasks import get_task
from cv_hf.training import resolve


@dataclass(frozen=True)
class Case:
    """A model and pictures that both sides train on.

    Attributes:
        task: as a recipe names it.
        model: the checkpoint folder.
        data: the folder of `benchmarks.photos`.
        batch_size: of training and evaluation.
        augment: the recipe's; the operations that the script of this task has.
    """

    task: str
    model: Path
    data: Path
    batch_size: int
    augment: tuple[Any, ...]

    def recipe(self, run: Path, **train: Any) -> dict[str, Any]:
        """The recipe, of so few steps that nothing is saved; detectors at one size, as the scripts have them."""
        place = {
            "image-classification": {"id": str(self.data / "classes")},
            "semantic-segmentation": {
                "id": str(self.data),
                "images": str(self.data / "images"),
                "masks": str(self.data / "masks"),
                "labels": str(self.data / "id2label.json"),
                "format": "masks",
            },
        }.get(self.task, {"id": str(self.data / "annotations"), "images": str(self.data / "images"), "format": "coco"})
        scales = {"multi_scale": None} if self.task == "object-detection" else {}
        return {
            "task": self.task,
            "model": {"id": str(self.model)},
            "data": place,
            "augment": list(self.augment),
            "train": {
                "batch_size": self.batch_size,
                "eval_strategy": "no",
                "save_strategy": "no",
                "logging_steps": 10**6,
                "disable_tqdm": True,
                **scales,
                **train,
            },
            "run_dir": str(run),
        }

    def trainer(self, run: Path, **train: Any) -> Any:
        """cv_hf's Trainer for this recipe, by the steps of `cv_hf.finetuning`."""
        task = get_task(self.task)
        recipe = resolve(load_recipe(self.recipe(run, **train)), task)
        run.mkdir(parents=True, exist_ok=True)
        with redirect_stdout(io.StringIO()):
            splits = load_splits(recipe.data, task, seed=0, echo=lambda line: None)
            torch.manual_seed(0)
            fields = task.model_fields(splits.labels, splits.train.column_names)
            built = build_model(recipe.model, task.auto_class, fields)
            return build_trainer(recipe, task, splits, built, run)


class StepTimes(TrainerCallback):
    """When each step of a Trainer ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.ends.append(time.perf_counter())


def images_per_second(trainer: Any, batch_size: int) -> float:
    """Train to the end; the images per second after the first step."""
    times = StepTimes()
    trainer.add_callback(times)
    with redirect_stdout(io.StringIO()):
        trainer.train()
    return (len(times.ends) - 1) * batch_size / (times.ends[-1] - times.ends[0])


def bare_loop(
    model: torch.nn.Module, batches: list[Mapping[str, Any]], steps: int, *, bf16: bool, lr: float = 5e-5
) -> float:
    """Train on batches in memory; the images per second after the first step.

    Forward, backward, AdamW (fused) and nothing else: no clipping, no schedule, no input.
    """
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr, fused=True)
    model.train()
    ends = []
    for step in range(steps + 1):
        batch = batches[step % len(batches)]
        with torch.autocast("cpu", torch.bfloat16) if bf16 else nullcontext():
            loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        ends.append(time.perf_counter())
    return steps * len(batches[0]["pixel_values"]) / (ends[-1] - ends[0])


def batches_of(trainer: Any, count: int) -> list[dict[str, Any]]:
    """Batches of a cv_hf Trainer as its model takes them."""
    found = []
    loader = iter(trainer.get_train_dataloader())
    for _ in range(count):
        (batch,), _ = trainer.get_batch_samples(loader, 1, trainer.args.device)
        found.append(trainer._prepare_inputs(batch))
    return found


@contextmanager
def threads(count: int) -> Iterator[None]:
    """So many threads of PyTorch's."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def checkpoint(kind: str, folder: Path, **config: Any) -> Path:
    """Write a checkpoint of random weights with its image processor, unless it is there; return its folder.

    Args:
        kind: "vit_tiny", "convnext", "small" (a ResNet of 0.1 million parameters), "segformer_b0", "rt_detr" or
            "mask2former" (the small ones of `cv_hf.models.sample`).
        folder: above the checkpoint's own.
        config: `image_size`, else 224.
    """
    import transformers

    edge = config.get("image_size", 224)
    place = folder / f"{kind}_{edge}"
    if (place / "model.safetensors").is_file():
        return place
    if kind in ("rt_detr", "mask2former"):
        write = {
            "rt_detr": sample_models.rt_detr_efficientnet_lite0,
            "mask2former": sample_models.mask2former_efficientnet_lite0,
        }
        return write[kind](place, pretrained=False, image_size=edge)
    size = {"height": edge, "width": edge}
    labels = {"num_labels": 4}
    made: Callable[[], Any] = {
        "vit_tiny": lambda: transformers.ViTForImageClassification(
            transformers.ViTConfig(
                hidden_size=192, intermediate_size=768, num_attention_heads=3, image_size=edge, **labels
            )
        ),
        "convnext": lambda: transformers.ConvNextForImageClassification(
            transformers.ConvNextConfig(hidden_sizes=[40, 80, 160, 320], depths=[2, 2, 6, 2], **labels)
        ),
        "small": lambda: transformers.ResNetForImageClassification(
            transformers.ResNetConfig(
                embedding_size=8, hidden_sizes=[8, 16, 32, 64], depths=[1, 1, 1, 1], layer_type="basic", **labels
            )
        ),
        "segformer_b0": lambda: transformers.SegformerForSemanticSegmentation(
            transformers.SegformerConfig(num_labels=5)
        ),
    }[kind]
    kinds = {"vit_tiny": transformers.ViTImageProcessor, "segformer_b0": transformers.SegformerImageProcessor}
    torch.manual_seed(0)
    model = made()
    processor = kinds.get(kind, transformers.ViTImageProcessor)(
        size=size, image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225]
    )
    model.save_pretrained(place)
    processor.save_pretrained(place)
    return place
