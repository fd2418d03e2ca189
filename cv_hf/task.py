"""What one task adds to the road that all tasks share.

A Task is a frozen dataclass of values and plain functions; `cv_hf/tasks/` holds one value per file. The functions are
called by the steps in the order in which they stand here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import datasets
    import numpy as np
    import PIL.Image

    from cv_hf.config import DataConfig


# Code, name of the file or object, reason.
Finding = tuple[str, str, str]


def _no_more(predictions: Any, sizes: Any, labels: Any) -> dict[str, Any]:
    return {}


@dataclass(frozen=True)
class Task:
    """One computer-vision task.

    Attributes:
        name: as written in a recipe, for instance "image-classification".
        pipeline: the name that `transformers.pipeline` knows it by.
        auto_class: the Transformers Auto class of its models, or several.
        subtasks: what pipeline() and a model that is told its task in words know of it as, the first unless another is
            asked for; none where there is only one thing to do.
        default_model: a Hub id that `cv-hf init` proposes.
        augment: the default augmentations, written as in a recipe.
        train_defaults: keys of `train:` that this task sets otherwise than Transformers does.
        formats: the formats of annotated files that it reads, the preferred one first; any task reads hub and parquet.
        moved: the targets that augmentations move along with the image, by albumentations' name for them ("bboxes",
            "mask"), or None.

        canonical: (one split as read, data section) -> the split with the task's canonical columns, `image` first.
        label_map: (canonical splits, data section, the source's own LabelMap or None) -> LabelMap of all splits.
        clean: (canonical splits with `file`, LabelMap, data section, format of the source, findings) -> the splits with
            targets of one form that can be trained on, and a line that says which form they had; None where there is
            only one.
        strata: canonical split -> one key per sample, by which a share is held out.
        encode: (canonical split, LabelMap) -> the split with contiguous label ids.
        present: encoded split -> the names of the classes that it has; None where only reading every mask would tell.
        model_fields: (LabelMap, canonical columns) -> fields of the model's configuration.
        metrics: (LabelMap, canonical columns) -> the metrics that can choose the best checkpoint and are published,
            each with whether greater is better; the first is the default. None, and the columns that the recipe names
            -> all that such data may have.

        fit: (row, (height, width) of its decoded image, LabelMap) -> the row with targets that fit the image, None if
            it has none that do, and findings as (code, name, reason); None where targets do not depend on the size.
        train_sample: (RGB uint8 image (H, W, 3), row, augment) -> image and targets, augmented together.
        targets: (rows, LabelMap, what the model's loss needs) -> the model's target inputs, as tensors. Rows are what
            `train_sample` made, with `valid` where a batch was padded (see `collate_train`); or those of a split, with
            `size`.
        eval_loss: whether the loss is taken in evaluation too. Masks stand there at the size of their images, at which
            models do not take it.
        metric: (LabelMap, canonical columns) -> an empty accumulator.
        update: (accumulator, model outputs, group of samples, image processor, LabelMap) -> None. The group has `rows`,
            `ids` and `subtask`; a row's `size` is the (height, width) of its image.

        arguments: (metrics of the validation split, model configuration) -> the arguments that pipeline() is to be
            called with, kept with the model.
        predict: (model outputs, model configuration, image processor, image sizes as (height, width), arguments) ->
            one JSON-ready prediction per image, what pipeline() answers for it.
        call_note: what the card says of these arguments.
        complete: the arguments for a prediction that leaves nothing out.
        shown: (complete prediction, arguments) -> what pipeline() shows of it, called with these; None where the model
            has to be asked anew, as what is left out decides what the rest looks like.
        surest: complete prediction -> a part of it that is worth keeping, and the arguments that show this part.
        compare: (prediction, another of the same image, (height, width), the arguments of both) -> how far they differ,
            0 where they agree, and the worst difference in words.
        score_answers: (predictions, rows, LabelMap, their arguments) -> those metrics that they alone give. Rows have
            `size`, and targets that fit.
        truth: (row, whose targets fit, LabelMap) -> the ground truth as `draw` takes it, or None.
        draw: (image, prediction, truth, LabelMap, the edge in pixels of a picture on a sheet of many, else None) ->
            picture; it says what of it is the truth, where there is one.
        tile: this edge.
        export: (predictions by file, image sizes by file, LabelMap) -> {file name: JSON-ready content}, further forms
            of the predictions.
    """

    name: str
    pipeline: str
    auto_class: str | tuple[str, ...]
    subtasks: Sequence[str]
    default_model: str
    augment: Sequence[str | dict[str, dict[str, Any] | None]]
    train_defaults: Mapping[str, Any]
    formats: Sequence[str]
    moved: str | None

    canonical: Callable[[datasets.Dataset, DataConfig], datasets.Dataset]
    label_map: Callable[[Mapping[str, datasets.Dataset], DataConfig, Any], Any]
    clean: Callable[..., tuple[dict[str, datasets.Dataset], str]] | None
    strata: Callable[[datasets.Dataset], Sequence[Any]]
    encode: Callable[[datasets.Dataset, Any], datasets.Dataset]
    present: Callable[[datasets.Dataset], set[str] | None]
    model_fields: Callable[[Any, Sequence[str]], dict[str, Any]]
    metrics: Callable[[Any, Sequence[str]], Mapping[str, bool]]

    fit: Callable[[Mapping[str, Any], tuple[int, int], Any], tuple[Mapping[str, Any] | None, list[Finding]]] | None
    train_sample: Callable[[np.ndarray, Mapping[str, Any], Any], dict[str, Any]]
    targets: Callable[[Sequence[Mapping[str, Any]], Any, Any], dict[str, Any]]
    eval_loss: bool
    metric: Callable[[Any, Sequence[str]], Any]
    update: Callable[[Any, Any, Any, Any, Any], None]

    arguments: Callable[[Mapping[str, Any], Any], dict[str, Any]]
    predict: Callable[[Any, Any, Any, Sequence[tuple[int, int]], Mapping[str, Any]], list[Any]]
    call_note: str
    complete: Mapping[str, Any]
    shown: Callable[[Any, Mapping[str, Any]], Any] | None
    surest: Callable[[Any], tuple[Any, dict[str, Any]]]
    compare: Callable[[Any, Any, tuple[int, int], Mapping[str, Any]], tuple[float, str]]
    score_answers: Callable[[Sequence[Any], Iterable[Mapping[str, Any]], Any, Mapping[str, Any]], dict[str, float]]
    truth: Callable[[Mapping[str, Any], Any], Any]
    draw: Callable[[PIL.Image.Image, Any, Any, Any, int | None], PIL.Image.Image]
    tile: int
    export: Callable[[Mapping[str, Any], Mapping[str, tuple[int, int]], Any], dict[str, Any]] = _no_more
