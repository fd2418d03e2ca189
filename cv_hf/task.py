"""What one task adds to the road that all tasks share.

A Task is a frozen dataclass of values and plain functions; `cv_hf/tasks/` holds one value per file. The functions are
called by the steps in the order in which they stand here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import datasets
    import numpy as np
    import PIL.Image

    from cv_hf.config import DataConfig


@dataclass(frozen=True)
class Task:
    """One computer-vision task.

    Attributes:
        name: as written in a recipe, for instance "image-classification".
        pipeline: the name that `transformers.pipeline` knows it by.
        auto_class: the Transformers Auto class of its models.
        default_model: a Hub id that `cv-hf init` proposes.
        augment: the default augmentations, written as in a recipe.
        train_defaults: TrainingArguments fields that this task sets otherwise than Transformers does.

        canonical: (one split as read, data section) -> the split with the task's canonical columns, `image` first.
        label_map: (canonical splits, data section) -> LabelMap of all splits.
        strata: canonical split -> one key per sample, by which a share is held out.
        encode: (canonical split, LabelMap) -> the split with contiguous label ids.
        model_fields: (LabelMap, canonical columns) -> fields of the model's configuration.
        metrics: (LabelMap, canonical columns) -> the metrics that can choose the best checkpoint and are published,
            each with whether greater is better; the first is the default.

        train_sample: (RGB uint8 image (H, W, 3), row, augment) -> image and targets, augmented together.
        targets: (rows, LabelMap) -> the model's target inputs, as tensors.
        metric: (LabelMap, canonical columns) -> an empty accumulator.
        update: (accumulator, model outputs, rows, sample ids) -> None.

        predict: (model outputs, model configuration, image sizes as (height, width)) -> one JSON-ready prediction per
            image, what pipeline() answers for it.
        truth: (row, LabelMap) -> a short text of the ground truth, or None.
        draw: (image, prediction, truth) -> picture.
    """

    name: str
    pipeline: str
    auto_class: str
    default_model: str
    augment: Sequence[str | dict[str, dict[str, Any] | None]]
    train_defaults: Mapping[str, Any]

    canonical: Callable[[datasets.Dataset, DataConfig], datasets.Dataset]
    label_map: Callable[[Mapping[str, datasets.Dataset], DataConfig], Any]
    strata: Callable[[datasets.Dataset], Sequence[Any]]
    encode: Callable[[datasets.Dataset, Any], datasets.Dataset]
    model_fields: Callable[[Any, Sequence[str]], dict[str, Any]]
    metrics: Callable[[Any, Sequence[str]], Mapping[str, bool]]

    train_sample: Callable[[np.ndarray, Mapping[str, Any], Any], dict[str, Any]]
    targets: Callable[[Sequence[Mapping[str, Any]], Any], dict[str, Any]]
    metric: Callable[[Any, Sequence[str]], Any]
    update: Callable[[Any, Any, Sequence[Mapping[str, Any]], Sequence[Any]], None]

    predict: Callable[[Any, Any, Sequence[tuple[int, int]]], list[Any]]
    truth: Callable[[Mapping[str, Any], Any], str | None]
    draw: Callable[[PIL.Image.Image, Any, str | None], PIL.Image.Image]
