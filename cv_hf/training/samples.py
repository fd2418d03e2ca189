"""Torch datasets over canonical samples, and how their items become batches.

Training replaces the processor's geometry by augmentations that end at the same size and keeps its pixel values;
evaluation is the saved processor and nothing else, image by image, as pipeline() calls it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import datasets
import numpy as np
import PIL.Image
import torch
from torch.utils.data import Dataset, Sampler

from cv_hf.data import LabelMap, UnreadableImage, decode_array
from cv_hf.errors import CvHfError
from cv_hf.task import Finding
from cv_hf.training.cache import ImageCache
from cv_hf.transforms import Augment, resize_map

Fit = Callable[[Mapping[str, Any], tuple[int, int], LabelMap], tuple[Mapping[str, Any] | None, list[Finding]]]
# How many neighbours to try before a data set is taken to be unreadable as a whole.
_SUBSTITUTES = 100


class EpochSampler(Sampler[tuple]):
    """Every sample once per epoch, shuffled by (seed, epoch), as keys (epoch, index), for processes that take turns.

    Each process takes `batch_size` keys at a time. What is left for the last turn is shared out evenly, and None fills
    the batches up; a process that would have nothing is given a spare sample, which is another's, as (epoch, index,
    True), so that it can take part.

    Args:
        length: the number of samples.
        seed: of the shuffling.
        batch_size: the samples of one process's batch.
        processes: how many take turns.
        drop_last: leave out what is not enough for a whole turn.
    """

    def __init__(self, length: int, seed: int, batch_size: int = 1, processes: int = 1, drop_last: bool = False):
        self.length = length
        self.seed = seed
        self.batch_size = batch_size
        self.processes = processes
        self.turns = length // (batch_size * processes) if drop_last else -(-length // (batch_size * processes))
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.turns * self.batch_size * self.processes

    def __iter__(self) -> Iterator[tuple | None]:
        epoch = self.epoch
        order = np.random.default_rng((self.seed, epoch)).permutation(self.length)
        for turn in np.split(order, range(0, self.length, self.batch_size * self.processes)[1:])[: self.turns]:
            for part in np.array_split(turn, self.processes):
                keys = [(epoch, int(index)) for index in part] or [(epoch, int(turn[0]), True)]
                yield from keys
                yield from [None] * (self.batch_size - len(keys))


class TrainSamples(Dataset):
    """Augmented samples by the keys of an EpochSampler.

    `fit` is the task's: with the LabelMap, it makes a row's targets fit its decoded image. `resize`, where the
    augmentations do not end at the model's size, brings an image to the size that the processor would give it.
    `subtasks` are the task's; each sample has one of them, drawn anew every epoch. `cache` keeps decoded images.

    An image that cannot be decoded, or has no targets that fit it, is replaced by the next one that can be used, so
    that batches keep their size; which one was passed over travels with the sample as a finding.
    """

    def __init__(
        self,
        dataset: datasets.Dataset,
        train_sample: Callable[..., dict[str, Any]],
        augment: Augment,
        *,
        fit: Fit | None = None,
        labels: LabelMap | None = None,
        subtasks: Sequence[str] = (),
        resize: Callable[[np.ndarray], np.ndarray] | None = None,
        cache: ImageCache | None = None,
    ):
        self.dataset = dataset
        self.train_sample = train_sample
        self.augment = augment
        self.fit = fit
        self.labels = labels
        self.subtasks = subtasks
        self.resize = resize
        if cache is not None and len(cache) != len(dataset):
            raise ValueError(f"a cache of {len(cache)} images for {len(dataset)} samples")
        self.cache = cache

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: tuple | None) -> dict[str, Any]:
        findings: list[tuple[str, str, str]] = []
        if key is None:
            return {"findings": findings}
        epoch, index, *spare = key
        key = epoch, index
        for offset in range(min(len(self), _SUBSTITUTES)):
            place = (index + offset) % len(self)
            read = partial(self.decoded, place)
            pixels, size, row, found = _read(self.dataset[place], read, self.fit, self.labels)
            findings += found
            if pixels is not None:
                try:
                    sample = self.train_sample(pixels, row, _Keyed(self.augment, key, size))
                except CvHfError as error:
                    # Raised in a worker, it would reach the user inside a traceback.
                    return {"findings": findings, "error": type(error)(f"{row['file']}: {error}")}
                if self.resize is not None:
                    try:
                        sample["image"] = self.resize(sample["image"])
                    except ValueError as error:
                        findings.append(_refused(row, size, error))
                        continue
                if "mask" in sample:
                    sample["mask"] = resize_map(sample["mask"], sample["image"].shape[:2])
                if self.subtasks:
                    drawn = random.Random(f"subtask {self.augment.seed} {key}").randrange(len(self.subtasks))
                    sample["subtask"] = self.subtasks[drawn]
                if spare:
                    sample["spare"] = True
                return {**sample, "file": row["file"], "findings": findings}
        return {"findings": findings}

    def decoded(self, index: int, image: Mapping[str, Any]) -> tuple[np.ndarray, tuple[int, int], list[str]]:
        """What `decode_array` makes of a row's image, which stands at this index; kept, where there is a cache."""
        kept = None if self.cache is None else self.cache.get(index)
        if kept is not None:
            return *kept, []
        pixels, size, codes = decode_array(image, reduction=self.augment.reduction)
        # What had to be repaired is few, and said again each time.
        if self.cache is not None and not codes:
            self.cache.put(index, pixels, size)
        return pixels, size, codes


class EvalSamples(Dataset):
    """Samples by index, through the saved processor; an image that cannot be decoded is an item without inputs."""

    def __init__(
        self, dataset: datasets.Dataset, processor: Any, fit: Fit | None = None, labels: LabelMap | None = None
    ):
        self.dataset = dataset
        self.processor = processor
        self.fit = fit
        self.labels = labels

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image, size, row, findings = _read(self.dataset[index], _picture, self.fit, self.labels)
        item: dict[str, Any] = {"id": index, "findings": findings}
        if image is not None:
            try:
                inputs = self.processor(images=image, return_tensors="pt")
            except ValueError as error:
                findings.append(_refused(row, size, error))
                return item
            # EoMT's processor lists the patches that it cut an image into: none when it does not cut.
            item["inputs"] = {name: value[0] for name, value in inputs.items() if len(value)}
            item["row"] = {**{name: value for name, value in row.items() if name != "image"}, "size": size}
        return item


def collate_train(
    items: Sequence[Mapping[str, Any]],
    *,
    targets: Callable[..., dict[str, Any]],
    labels: Any,
    needs: Any = None,
    processor: Any = None,
    masked: bool = False,
) -> dict[str, Any]:
    """Stack augmented samples.

    Args:
        items: from TrainSamples.
        targets: the task's, called with the samples, `labels` and `needs`.
        labels: the LabelMap.
        needs: what the model's loss needs.
        processor: None when the samples stand at the model's size; `pixel_values` is then uint8 (B, 3, H, W), which
            the device turns into what the model takes. Otherwise the whole processor runs here.
        masked: the model is told what is padding, so that targets stay relative to the image; else they are made
            relative to the padded batch, by `valid`, the share (height, width) of it that is image.

    Returns:
        the model's inputs, `files`, `findings` and, of a spare sample, `spare`; or `error`, for the training process to
        raise. Images of several sizes are padded at the bottom and on the right, and `pixel_mask` (B, H, W) is 1 where
        there is image.
    """
    findings = [finding for item in items for finding in item["findings"]]
    errors = [item["error"] for item in items if "error" in item]
    if errors:
        return {"findings": findings, "error": errors[0]}
    samples = [item for item in items if "image" in item]
    if not samples:
        return {"findings": findings}
    images = [sample["image"] for sample in samples]
    if "mask" in samples[0]:
        samples = [{**sample, "shape": sample["image"].shape[:2]} for sample in samples]
    if processor is None:
        sizes = [image.shape[:2] for image in images]
        canvas = tuple(np.max(sizes, axis=0))
        if "mask" in samples[0]:
            samples = [{**sample, "mask": _padded([sample["mask"]], canvas)[0]} for sample in samples]
        inputs = {"pixel_values": torch.from_numpy(_padded(images, canvas)).permute(0, 3, 1, 2)}
        if masked or len(set(sizes)) > 1:
            inputs["pixel_mask"] = torch.from_numpy(_padded([np.ones(size, np.int64) for size in sizes], canvas))
        if not masked:
            samples = [
                {**sample, "valid": (height / canvas[0], width / canvas[1]), "shape": canvas}
                for sample, (height, width) in zip(samples, sizes, strict=True)
            ]
    else:
        inputs = dict(processor(images=images, return_tensors="pt"))
        if "mask" in samples[0]:
            canvas = tuple(inputs["pixel_values"].shape[-2:])
            samples = [{**sample, "mask": resize_map(sample["mask"], canvas), "shape": canvas} for sample in samples]
    files = [sample["file"] for sample in samples]
    spare = {"spare": True} if "spare" in samples[0] else {}
    return {**inputs, **targets(samples, labels, needs), "files": files, "findings": findings, **spare}


def _padded(arrays: Sequence[np.ndarray], canvas: tuple[int, int]) -> np.ndarray:
    """Stack arrays (H, W, ...) with zeros below and right of them."""
    stacked = np.zeros((len(arrays), *canvas, *arrays[0].shape[2:]), arrays[0].dtype)
    for place, array in zip(stacked, arrays, strict=True):
        place[: array.shape[0], : array.shape[1]] = array
    return stacked


@dataclass
class EvalGroup:
    """Samples of one processed shape, which can share a forward without padding.

    An image's prediction must not depend on the others in its batch, so different shapes never meet. A row's `size` is
    the (height, width) of its image before processing. `subtask` is what the model was asked, where it can do several.
    """

    inputs: dict[str, torch.Tensor]
    rows: list[dict[str, Any]]
    ids: list[int]
    subtask: str | None = None


def collate_eval(items: Sequence[Mapping[str, Any]]) -> tuple[list[EvalGroup], list[tuple[str, str, str]]]:
    """Group items of EvalSamples by the shapes of their inputs; the second value is the findings."""
    groups: dict[Any, list[Mapping[str, Any]]] = {}
    for item in items:
        if "inputs" in item:
            shapes = tuple((name, tuple(np.shape(value))) for name, value in sorted(item["inputs"].items()))
            groups.setdefault(shapes, []).append(item)
    findings = [finding for item in items for finding in item["findings"]]
    return [
        EvalGroup(
            inputs={
                name: torch.stack([torch.as_tensor(i["inputs"][name]) for i in group]) for name in group[0]["inputs"]
            },
            rows=[item["row"] for item in group],
            ids=[item["id"] for item in group],
        )
        for group in groups.values()
    ], findings


class _Keyed:
    """An Augment bound to one sample's key and whole size, so that tasks cannot forget them.

    Targets are given as they are in the whole image, of which the pixels may be a smaller copy.
    """

    def __init__(self, augment: Augment, key: tuple[int, int], whole: tuple[int, int]):
        self.augment = augment
        self.key = key
        self.whole = whole

    def __call__(self, image: np.ndarray, **targets: Any) -> dict[str, Any]:
        read = image.shape[:2]
        if read != self.whole:
            if "bboxes" in targets:
                y, x = np.divide(read, self.whole)
                targets["bboxes"] = targets["bboxes"] * (x, y, x, y)
            if "mask" in targets:
                targets["mask"] = resize_map(targets["mask"], read)
        return self.augment(self.key, image, whole=self.whole, **targets)


def _picture(image: Any) -> tuple[Any, tuple[int, int], list[str]]:
    pixels, size, codes = decode_array(image)
    return PIL.Image.fromarray(pixels), size, codes


def _refused(row: Mapping[str, Any], size: tuple[int, int], error: ValueError) -> tuple[str, str, str]:
    """The finding of an image that a processor fails on: where it keeps the aspect ratio, it may leave an edge of no
    pixels."""
    reason = " ".join(str(error).split())[:200]
    return "unreadable-image", row["file"], f"the image processor fails on {size[1]}x{size[0]} pixels: {reason}"


def _read(
    row: Mapping[str, Any], read: Callable[[Any], tuple[Any, tuple[int, int], list[str]]], fit: Fit | None, labels: Any
) -> tuple[Any, tuple[int, int], Mapping[str, Any], list[tuple[str, str, str]]]:
    """What `read` makes of a row's image, or None; its (height, width); the row whose targets fit it; the findings."""
    try:
        image, size, codes = read(row["image"])
    except UnreadableImage as error:
        return None, (0, 0), row, [(error.code, row["file"], error.reason)]
    findings = [(code, row["file"], "") for code in codes]
    if fit is not None:
        fitting, found = fit(row, size, labels)
        findings += found
        if fitting is None:
            return None, size, row, findings
        row = fitting
    return image, size, row, findings
