"""Torch datasets over canonical samples, and how their items become batches.

Training replaces the processor's geometry by augmentations that end at the same size and keeps its pixel values;
evaluation is the saved processor and nothing else, image by image, as pipeline() calls it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from cv_hf.data import UnreadableImage, decode
from cv_hf.errors import CvHfError
from cv_hf.transforms.augment import Augment

# How many neighbours to try before a data set is taken to be unreadable as a whole.
_SUBSTITUTES = 100


class EpochSampler(Sampler[tuple[int, int]]):
    """Every sample once per epoch, shuffled by (seed, epoch), as keys (epoch, index)."""

    def __init__(self, length: int, seed: int):
        self.length = length
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __iter__(self):
        epoch = self.epoch
        order = np.random.default_rng((self.seed, epoch)).permutation(self.length)
        return ((epoch, int(index)) for index in order)


class TrainSamples(Dataset):
    """Augmented samples by (epoch, index).

    An image that cannot be decoded is replaced by the next one that can, so that batches keep their size; which one
    was passed over travels with the sample as a finding.
    """

    def __init__(self, dataset: datasets.Dataset, train_sample: Callable[..., dict[str, Any]], augment: Augment):
        self.dataset = dataset
        self.train_sample = train_sample
        self.augment = augment

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        index = key[1]
        findings: list[tuple[str, str, str]] = []
        for offset in range(min(len(self), _SUBSTITUTES)):
            row = self.dataset[(index + offset) % len(self)]
            image, found = _decoded(row)
            findings += found
            if image is not None:
                try:
                    sample = self.train_sample(np.array(image), row, _Keyed(self.augment, key))
                except CvHfError as error:
                    # Raised in a worker, it would reach the user inside a traceback.
                    return {"findings": findings, "error": type(error)(f"{row['file']}: {error}")}
                return {**sample, "findings": findings}
        return {"findings": findings}


class EvalSamples(Dataset):
    """Samples by index, through the saved processor; an image that cannot be decoded is an item without inputs."""

    def __init__(self, dataset: datasets.Dataset, processor: Any):
        self.dataset = dataset
        self.processor = processor

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self.dataset[index]
        image, findings = _decoded(row)
        item: dict[str, Any] = {"id": index, "findings": findings}
        if image is not None:
            item["inputs"] = {
                name: value[0] for name, value in self.processor(images=image, return_tensors="pt").items()
            }
            item["row"] = {name: value for name, value in row.items() if name != "image"}
            item["size"] = (image.height, image.width)
        return item


def collate_train(
    items: Sequence[Mapping[str, Any]], *, targets: Callable[..., dict[str, Any]], labels: Any, processor: Any = None
) -> dict[str, Any]:
    """Stack augmented samples.

    Args:
        items: from TrainSamples.
        targets: the task's, called with the samples and `labels`.
        labels: the LabelMap.
        processor: None when the samples stand at the model's size; `pixel_values` is then uint8 (B, 3, H, W), which
            the device turns into what the model takes. Otherwise the whole processor runs here.

    Returns:
        the model's inputs and `findings`; or `error`, for the training process to raise.
    """
    findings = [finding for item in items for finding in item["findings"]]
    errors = [item["error"] for item in items if "error" in item]
    if errors:
        return {"findings": findings, "error": errors[0]}
    samples = [item for item in items if "image" in item]
    if not samples:
        return {"findings": findings}
    images = [sample["image"] for sample in samples]
    if processor is None:
        inputs = {"pixel_values": torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)}
    else:
        inputs = dict(processor(images=images, return_tensors="pt"))
    return {**inputs, **targets(samples, labels), "findings": findings}


@dataclass
class EvalGroup:
    """Samples of one processed shape, which can share a forward without padding.

    An image's prediction must not depend on the others in its batch, so different shapes never meet.
    """

    inputs: dict[str, torch.Tensor]
    rows: list[dict[str, Any]]
    ids: list[int]
    sizes: list[tuple[int, int]]


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
            sizes=[item["size"] for item in group],
        )
        for group in groups.values()
    ], findings


class _Keyed:
    """An Augment bound to one sample's key, so that tasks cannot forget it."""

    def __init__(self, augment: Augment, key: tuple[int, int]):
        self.augment = augment
        self.key = key

    def __call__(self, image: np.ndarray, **targets: Any) -> dict[str, Any]:
        return self.augment(self.key, image, **targets)


def _decoded(row: Mapping[str, Any]) -> tuple[Any, list[tuple[str, str, str]]]:
    try:
        image, codes = decode(row["image"])
    except UnreadableImage as error:
        return None, [(error.code, row["file"], error.reason)]
    return image, [(code, row["file"], "") for code in codes]
