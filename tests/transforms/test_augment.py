"""Augmentations by name: seeded by (seed, epoch, sample), ending at the model's size."""

from __future__ import annotations

import hashlib
import io
import pickle
import warnings
from collections import Counter

import numpy as np
import PIL.Image
import pytest
from faster_coco_eval.core import mask as coco_mask
from torch.utils.data import DataLoader

from cv_hf.config import DataConfig
from cv_hf.data import decode_array, load_splits
from cv_hf.errors import RecipeError
from cv_hf.tasks import get_task
from cv_hf.training.samples import EpochSampler, TrainSamples
from cv_hf.transforms import build_augment
from cv_hf.transforms.augment import _SCALE_FREE, shrink

TASK = get_task("image-classification")
SEMANTIC, INSTANCE, DETECTION = "semantic-segmentation", "instance-segmentation", "object-detection"
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
        ([{"HorizontalFlip": {"p": 5}}], r"^augment: HorizontalFlip: p: input should be .* to 1 \(got 5\)\.$"),
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


@pytest.mark.parametrize("size", [(24, 40), (50, 70), (90, 61), (7, 130)])
@pytest.mark.parametrize("part", [np.s_[:, :], np.s_[3:45, 9:66]])
def test_images_are_shrunk_as_pillow_does(size, part):
    expected = PIL.Image.fromarray(np.ascontiguousarray(IMAGE[part])).resize(size[::-1], PIL.Image.Resampling.BILINEAR)
    shrunk = shrink(IMAGE[part], size)
    assert shrunk.dtype == np.uint8
    assert shrunk.flags.c_contiguous
    assert np.abs(shrunk.astype(int) - np.asarray(expected)).max() <= 1


@pytest.mark.parametrize(
    "entry", [{"RandomResizedCrop": {}}, {"RandomSizedCrop": {"min_max_height": [30, 40]}}, {"Resize": {}}]
)
def test_operations_that_set_the_size_average_over_all_pixels(entry):
    # A checkerboard: any interpolation between few of its pixels would show black and white.
    board = np.repeat((np.indices((60, 60)).sum(0) % 2 * 255).astype(np.uint8)[..., None], 3, axis=2)
    name, arguments = next(iter(entry.items()))
    for number in range(5):
        shrunk = build_augment([entry], (6, 6), seed=0)((0, number), board)["image"]
        assert np.abs(shrunk.astype(int) - 127).max() < 40
    plain = build_augment([{name: {**arguments, "interpolation": 0}}], (6, 6), seed=0)((0, 0), board)["image"]
    assert set(np.unique(plain)) <= {0, 255}
    assert pickle.loads(pickle.dumps(build_augment([entry], (6, 6), seed=0))).size == (6, 6)


def test_masks_keep_their_numbers_where_images_are_averaged():
    mask = np.kron(np.arange(4).reshape(2, 2), np.ones((25, 35))).astype(np.uint8)[..., None]
    augment = build_augment(["RandomResizedCrop"], (24, 40), seed=0, moved="mask")
    for number in range(5):
        moved = augment((0, number), IMAGE, mask=mask)
        assert set(np.unique(moved["mask"])) <= set(range(4))
        assert moved["mask"].shape[:2] == (24, 40)


@pytest.mark.parametrize(
    ("names", "size", "times"),
    [
        ([{"RandomResizedCrop": {"scale": [0.35, 1.0]}}, "HorizontalFlip"], (375, 500), 4),
        ([{"RandomResizedCrop": {"scale": [0.35, 1.0]}}], (3000, 4000), 8),
        ([{"RandomResizedCrop": {"scale": [0.35, 1.0]}}], (100, 2000), 2),  # the widest part of it is 133 x 100
        ([{"RandomResizedCrop": {}}], (375, 500), 2),
        (["Resize"], (375, 500), 4),
        (["HorizontalFlip", "RandomResizedCrop"], (375, 500), 1),  # a flip would do no harm, a blur would
        (["RandomCrop"], (375, 500), 1),
        ([], (375, 500), 1),
    ],
)
def test_how_small_an_image_may_be_read(names, size, times):
    augment = build_augment(names, (48, 48), seed=0)
    assert augment.reduction(size) == times
    # The smallest part of very many, by albumentations itself.
    if names and names[0] != "Resize" and times > 1:
        crop = augment._compose.transforms[0]
        parts = [crop.get_params_dependent_on_data({"shape": (*size, 3)}, {})["crop_coords"] for _ in range(3000)]
        least = min(min(bottom - top, right - left) for left, top, right, bottom in parts)
        assert least >= 48 * times - 1


@pytest.mark.parametrize(
    ("names", "moved", "size", "times"),
    [
        (get_task(DETECTION).augment, "bboxes", (3000, 4000), 2),  # 1500 x 2000, for an input of 640 x 640
        (get_task(DETECTION).augment, "bboxes", (2600, 2500), 1),  # its half would be less than twice the input
        (get_task(DETECTION).augment, "bboxes", (6000, 8000), 4),
        (["HorizontalFlip"], "mask", (3000, 4000), 2),
        (["HorizontalFlip"], None, (3000, 4000), 1),  # the processor has the whole image
        (["HorizontalFlip", "Blur"], "bboxes", (3000, 4000), 1),
        ([{"RandomSizedBBoxSafeCrop": {}}], "bboxes", (3000, 4000), 1),
    ],
)
def test_how_small_an_image_whose_size_nothing_sets_may_be_read(names, moved, size, times):
    assert build_augment(names, (640, 640), seed=0, moved=moved).reduction(size) == times


def _of_half_its_edges(name: str) -> float:
    """How far what an operation makes of an image is from what it makes of that image's half."""
    coarse = np.random.default_rng(0).integers(40, 216, (25, 30, 3), dtype=np.uint8)
    pixels = np.asarray(PIL.Image.fromarray(coarse).resize((480, 400), PIL.Image.Resampling.BICUBIC))
    augment = build_augment([{name: {"p": 1.0}}], (32, 32), seed=0, moved="bboxes")
    box, half = np.array([[120.0, 80, 300, 260]]), np.asarray(PIL.Image.fromarray(pixels).reduce(2))
    worst = 0.0
    for number in range(4):
        one, other = augment((0, number), pixels, bboxes=box), augment((0, number), half, bboxes=box / 2)
        shrunk = np.asarray(PIL.Image.fromarray(one["image"]).reduce(2)).astype(int)
        worst = max(worst, np.abs(shrunk - other["image"]).mean())
        np.testing.assert_allclose(one["bboxes"], 2 * np.asarray(other["bboxes"]), atol=2)
    return worst


# Crops of a drawn share are cut at whole pixels.
@pytest.mark.parametrize("name", sorted(_SCALE_FREE - {"BBoxSafeRandomCrop", "RandomCropFromBorders"}))
def test_what_is_said_to_count_no_pixels_does_the_same_to_an_image_of_half_its_edges(name):
    assert _of_half_its_edges(name) < 3


@pytest.mark.parametrize("name", ["Blur", "Sharpen", "GaussNoise"])
def test_what_counts_pixels_does_not(name):
    assert _of_half_its_edges(name) > 3


@pytest.mark.parametrize("size", [96, 48])
def test_an_image_that_is_read_smaller_looks_the_same(tmp_path, size):
    smooth = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    PIL.Image.fromarray(smooth).resize((500, 375), PIL.Image.Resampling.BICUBIC).save(tmp_path / "a.jpg", quality=90)
    augment = build_augment([{"RandomResizedCrop": {"scale": [0.35, 1.0]}}, "HorizontalFlip"], (size, size), seed=0)
    whole, _, _ = decode_array(tmp_path / "a.jpg")
    smaller, full, _ = decode_array(tmp_path / "a.jpg", reduction=augment.reduction)
    assert smaller.shape == ((188, 250, 3) if size == 96 else (94, 125, 3))
    assert full == (375, 500)
    for number in range(20):
        one = augment((0, number), whole)["image"].astype(int)
        other = augment((0, number), smaller, whole=full)["image"].astype(int)
        another = augment((1, number), whole)["image"].astype(int)
        # Cut at the nearest of the larger pixels, half a pixel of the result away at most; not somewhere else.
        assert np.abs(one - other).mean() < 0.1 * np.abs(one - another).mean()


@pytest.mark.parametrize(("task", "orientation"), [(SEMANTIC, 1), (SEMANTIC, 6), (INSTANCE, 1), (DETECTION, 1)])
def test_targets_stay_on_what_they_name_in_an_image_that_is_read_smaller(task, orientation):
    """A red and a blue rectangle on green: the truth is in the pixels themselves."""
    red, blue = np.zeros((2, 600, 800), bool)
    red[90:350, 110:420], blue[400:560, 500:790] = True, True
    pixels = np.stack([red, ~red & ~blue, blue], axis=-1).astype(np.uint8) * 255
    exif = PIL.Image.Exif()
    exif[PIL.ExifTags.Base.Orientation] = orientation
    content = io.BytesIO()
    stored = PIL.Image.fromarray(pixels if orientation == 1 else np.rot90(pixels))
    stored.save(content, "JPEG", quality=95, exif=exif)
    masks = [red, blue]
    rles = [coco_mask.encode(np.asfortranarray(mask.astype(np.uint8))) for mask in masks]
    objects = {
        "segmentation": [{**rle, "counts": rle["counts"].decode()} for rle in rles],
        "bbox": np.array([[110.0, 90, 310, 260], [500, 400, 290, 160]]),
        "area": [310.0 * 260, 290.0 * 160],
        "category": np.array([0, 1]),
        "iscrowd": [False, False],
    }
    mask = {"mask": (red + 2 * blue).astype(np.uint8)} if task == SEMANTIC else {"objects": objects}
    rows = [{"image": {"path": None, "bytes": content.getvalue()}, "file": "a", **mask}]
    names = [{"RandomResizedCrop": {"scale": [0.5, 1.0]}}, "HorizontalFlip"]
    augment = build_augment(names, (96, 96), seed=0, moved=get_task(task).moved)
    samples = TrainSamples(rows, get_task(task).train_sample, augment)
    assert samples.decoded(0, rows[0]["image"])[0].shape == (150, 200, 3)
    seen = Counter()
    for epoch in range(20):
        sample = samples[epoch, 0]
        for place, channel in enumerate((0, 2)):
            there = sample["image"][..., channel] > 127
            if task == DETECTION:
                boxes = sample["boxes"][sample["classes"] == place]
                # Of a box of which hardly anything is left nothing is said.
                if len(boxes):
                    (x, y, width, height), (ys, xs) = boxes[0] * 96, np.nonzero(there)
                    edges = np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
                    wanted = np.array([x - width / 2, y - height / 2, x + width / 2, y + height / 2])
                    assert np.abs(edges - wanted).max() < 1.5
                    seen[place] += 1
            else:
                named = sample["mask"].reshape(96, 96) == place + 1
                assert (named != there).mean() < 0.02
                seen[place] += int(there.any())
    assert min(seen[0], seen[1]) > 8


def test_no_augmentation_of_boxes_is_not_warned_of():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build_augment([], None, seed=0, moved="bboxes")
