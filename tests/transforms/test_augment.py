"""Augmentations by name: seeded by (seed, epoch, sample), ending at the model's size."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from torch.utils.data import DataLoader

from cv_hf.config import DataConfig
from cv_hf.data import load_splits
from cv_hf.errors import RecipeError
from cv_hf.tasks import get_task
from cv_hf.training.samples import EpochSampler, TrainSamples
from cv_hf.transforms import build_augment

TASK = get_task("image-classification")
IMAGE = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)


@pytest.fixture
def samples(photos) -> TrainSamples:
    splits = load_splits(DataConfig(id=str(photos)), TASK, seed=0)
    return TrainSamples(splits.train, TASK.train_sample, build_augment(TASK.augment, (32, 32), seed=0))


def hashes(samples: TrainSamples, workers: int, epoch: int) -> dict[str, int]:
    """Hash of each augmented image, and its label, for one epoch."""
    sampler = EpochSampler(len(samples), seed=0)
    sampler.set_epoch(epoch)
    loader = DataLoader(samples, batch_size=5, sampler=sampler, num_workers=workers, collate_fn=list)
    return {hashlib.sha1(s["image"].tobytes()).hexdigest(): s["label"] for batch in loader for s in batch}


def test_the_stream_is_the_same_for_any_number_of_workers_and_new_in_every_epoch(samples):
    alone = hashes(samples, 0, epoch=0)
    assert len(alone) == len(samples) == 24
    assert list(hashes(samples, 1, epoch=0)) == list(alone)
    assert list(hashes(samples, 2, epoch=0)) == list(alone)
    assert not set(hashes(samples, 0, epoch=1)) & set(alone)


def test_two_seeds_give_two_streams(samples):
    other = TrainSamples(samples.dataset, TASK.train_sample, build_augment(TASK.augment, (32, 32), seed=1))
    assert not set(hashes(other, 0, epoch=0)) & set(hashes(samples, 0, epoch=0))


def test_an_epoch_is_every_sample_once_in_another_order():
    sampler = EpochSampler(10, seed=3)
    first = list(sampler)
    sampler.set_epoch(1)
    second = list(sampler)
    assert sorted(i for _, i in first) == sorted(i for _, i in second) == list(range(10))
    assert [i for _, i in first] != [i for _, i in second]
    assert {e for e, _ in second} == {1}


@pytest.mark.parametrize(
    "names",
    [
        ["RandomResizedCrop"],
        [{"Resize": None}],
        [{"HorizontalFlip": {"p": 1.0}}, {"RandomCrop": {"pad_if_needed": True}}],
        [{"RandomResizedCrop": {"size": [24, 40]}}],
    ],
)
def test_a_list_that_sets_the_size_ends_at_the_models(names):
    augment = build_augment(names, (24, 40), seed=0)
    assert augment.size == (24, 40)
    assert augment((0, 0), IMAGE)["image"].shape == (24, 40, 3)


def test_a_list_that_sets_no_size_leaves_it_to_the_processor():
    augment = build_augment(["HorizontalFlip"], (24, 40), seed=0)
    assert augment.size is None
    assert augment((0, 0), IMAGE)["image"].shape == IMAGE.shape
    assert (build_augment([], (24, 40), seed=0)((0, 0), IMAGE)["image"] == IMAGE).all()


def test_the_image_that_an_operation_cannot_take_is_named_with_its_size():
    augment = build_augment(["RandomCrop"], (100, 100), seed=0)
    with pytest.raises(RecipeError, match=r"augment: fails on an image of 50x70: "):
        augment((0, 0), IMAGE)


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["HorizontalFilp"], "Did you mean 'HorizontalFlip'"),
        (["os"], "albumentations has no 'os'"),
        ([{"HorizontalFlip": {"prob": 1}}], "HorizontalFlip has no argument 'prob'"),
        ([{"HorizontalFlip": {"p": "x"}}], "augment: HorizontalFlip:"),
        ([{"A": {}, "B": {}}], "each entry is one name"),
        ([{}], "each entry is one name"),
        ([{"RandomResizedCrop": {"size": [10, 10]}}], "ends at 10x10, the model takes 24x40"),
        ([{"RandomResizedCrop": {"p": 0.5}}], "ends at"),
        (["RandomResizedCrop", "Normalize"], "Leave out Normalize"),
        (["HorizontalFlip", "ToFloat"], "Leave out Normalize"),
        ([{"ToGray": {"num_output_channels": 1, "p": 1}}], "of 8-bit RGB images"),
        (["OneOf"], "holds other operations"),
        (["Mosaic"], "augment: "),
    ],
)
def test_what_albumentations_does_not_have_is_refused(names, says):
    with pytest.raises(RecipeError, match=says) as error:
        build_augment(names, (24, 40), seed=0)
    assert len(str(error.value).splitlines()) <= 2
