"""Augmentations by name, drawn anew for every (seed, epoch, sample).

albumentations keeps a random state of its own: two loader workers would draw the same numbers and every epoch repeat
them. Here each call sets the state from the key of the sample, so the stream is the same for any number of workers
and after a resume.
"""

from __future__ import annotations

import inspect
import os
import random
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from cv_hf.errors import RecipeError, did_you_mean

# albumentations looks for a newer version of itself on the network at import, unless told not to.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import albumentations as A
import cv2
import torch
from pydantic import ValidationError
from torch.nn import functional as F

# Loader workers are the parallelism; OpenCV's own threads would only compete with them.
cv2.setNumThreads(0)

# Of a box cut by a crop: less than this share of it, and it no longer shows what it is.
MIN_VISIBILITY = 0.1
# Where the processor will resize anyhow, a crop keeps enough pixels for it to choose from.
_BEFORE_PROCESSOR = (256, 256)
# Operations that do the same to an image of half its edges: nothing of them is counted in pixels.
_SCALE_FREE = frozenset({
    "NoOp", "HorizontalFlip", "VerticalFlip", "Transpose", "D4", "RandomRotate90", "Rotate",
    "Perspective", "BBoxSafeRandomCrop", "RandomCropFromBorders", "ColorJitter", "RandomBrightnessContrast",
    "HueSaturationValue", "RGBShift", "RandomGamma", "RandomToneCurve", "PlanckianJitter", "AutoContrast", "Equalize",
    "Posterize", "Solarize", "InvertImg", "ToGray", "ToSepia", "ChannelShuffle", "ChannelDropout",
})  # fmt: skip
# And then an image is read at least so many times as large as the model takes it, since crops enlarge what they leave.
_SPARE = 2


def shrink(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize a uint8 image (H, W, 3), which may be a part of another, to `size` (height, width).

    Bilinear, averaging over all pixels when it shrinks: Pillow's result and that of the processors that evaluate, at a
    fraction of their time and of that of OpenCV's INTER_AREA.
    """
    height, width = image.shape[:2]
    pixels = torch.from_numpy(image if image.flags.writeable else image.copy())
    row = pixels.stride(0)
    # Said in full, since only for images that are known to hold their channels last there is a fast kernel.
    pixels = pixels.as_strided((1, 3, height, width), (height * row, 1, row, 3), pixels.storage_offset())
    resized = F.interpolate(pixels, size=size, mode="bilinear", antialias=True)
    return resized[0].permute(1, 2, 0).contiguous().numpy()


class _Antialiased:
    """An operation of albumentations that sets the size, by `shrink` unless the recipe chose an interpolation."""

    def apply(self, img: np.ndarray, crop_coords: tuple[int, int, int, int] | None = None, **params: Any) -> np.ndarray:
        """The image, or the part of it within (left, top, right, bottom), at the operation's size."""
        chosen = self.interpolation != cv2.INTER_LINEAR or self.area_for_downscale is not None
        if chosen or img.dtype != np.uint8 or img.shape[2:] != (3,) or img.strides[1:] != (3, 1):
            crop = {} if crop_coords is None else {"crop_coords": crop_coords}
            return super().apply(img, **crop, **params)
        if crop_coords is not None:
            left, top, right, bottom = crop_coords
            img = img[top:bottom, left:right]
        return shrink(img, getattr(self, "size", None) or (self.height, self.width))


# Classes and no closures: loader workers may have to be sent them.
class _RandomResizedCrop(_Antialiased, A.RandomResizedCrop):
    whole: tuple[int, int] | None = None

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        """The part that would be cut out of the whole image, in pixels of one that may have been read smaller."""
        height, width = params["shape"][:2]
        rows, columns = self.whole or (height, width)
        drawn = super().get_params_dependent_on_data({**params, "shape": (rows, columns)}, data)
        left, top, right, bottom = drawn["crop_coords"]
        x, y = width / columns, height / rows
        return {"crop_coords": (round(left * x), round(top * y), round(right * x), round(bottom * y))}


class _RandomSizedCrop(_Antialiased, A.RandomSizedCrop):
    pass


class _Resize(_Antialiased, A.Resize):
    pass


_ANTIALIASED = {
    A.RandomResizedCrop: _RandomResizedCrop,
    A.RandomSizedCrop: _RandomSizedCrop,
    A.Resize: _Resize,
}


class Augment:
    """A seeded albumentations pipeline on uint8 RGB.

    Attributes:
        size: (height, width) that every image ends at, or None when the list has no operation that sets a size.
        taken: (height, width) of the model's input, None where it is not known.
        moved: the target that moves along, which each call is then given: "bboxes" (n, 4), absolute xyxy; or "mask"
            (H, W, layers), uint8 or uint16, in which 0 means nothing; None: only the image.
    """

    def __init__(
        self,
        transforms: Sequence[A.BasicTransform],
        size: tuple[int, int] | None,
        seed: int,
        moved: str | None = None,
        taken: tuple[int, int] | None = None,
    ):
        self.size = size
        self.taken = taken
        self.seed = seed
        # Rounding can put a box at the border outside by a millionth, at which albumentations fails.
        params = A.BboxParams(
            "pascal_voc",
            label_fields=["indices"],
            min_visibility=MIN_VISIBILITY,
            clip=True,
            filter_invalid_bboxes=True,
        )
        with warnings.catch_warnings():
            # An empty list is what a recipe may ask for.
            warnings.filterwarnings("ignore", "Got processor for bboxes, but no transform")
            self._compose = A.Compose(transforms, bbox_params=params if moved == "bboxes" else None)
        self.moved = moved

    def __call__(
        self, key: tuple[int, int], image: np.ndarray, *, whole: tuple[int, int] | None = None, **targets: Any
    ) -> dict[str, Any]:
        """Augment one sample.

        Args:
            key: (epoch, sample index), which alone with the seed decides what is drawn.
            image: uint8 RGB, (H, W, 3).
            whole: (height, width) of what `image` is a smaller copy of, see `reduction`; None: it is itself whole.
            targets: what albumentations moves together with the image (mask, bboxes, ...).

        Returns:
            the image and the targets. With `bboxes` also `indices` (m,): which of the boxes given each one is, since
            those of which less than a tenth is left in the image go.
        """
        if self.moved == "bboxes":
            targets["indices"] = list(range(len(targets["bboxes"])))
        if isinstance(first := next(iter(self._compose.transforms), None), _RandomResizedCrop):
            first.whole = whole
        generator = np.random.default_rng((self.seed, *key))
        self._compose.set_random_state(generator, random.Random(int(generator.integers(2**63))))
        try:
            augmented = self._compose(image=image, **targets)
        except Exception as error:  # each operation has errors of its own
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise RecipeError(f"augment: fails on an image of {image.shape[0]}x{image.shape[1]}: {reason}") from None
        result = augmented["image"]
        if result.dtype != np.uint8 or result.ndim != 3 or result.shape[2] != 3:
            raise RecipeError(
                f"augment: the list makes {result.dtype} {'x'.join(map(str, result.shape))} of 8-bit RGB images. "
                "Leave out Normalize, ToFloat and ToTensor: the processor's own pixel values follow."
            )
        if self.size is not None and result.shape[:2] != self.size:
            raise RecipeError(
                f"augment: the list ends at {result.shape[0]}x{result.shape[1]}, the model takes "
                f"{self.size[0]}x{self.size[1]}. Put the operation that sets the size last, without size or p."
            )
        return augmented

    def reduction(self, size: tuple[int, int]) -> int:
        """How many times smaller an image of `size` (height, width) may be read, and still is shrunk, never enlarged.

        That is told of lists which begin with an operation that sets the size, so that nothing else sees the image
        before: of the smallest part that it can cut out. Of images with targets that move it is also told where no
        operation sets the size or counts pixels: these stay twice as large as the model's input, as crops may enlarge
        them. 1, 2, 4 or 8.
        """
        first = next(iter(self._compose.transforms), None)
        if isinstance(first, _RandomResizedCrop | _Resize) and first.p == 1:
            made = getattr(first, "size", None) or (first.height, first.width)
            if isinstance(first, _RandomResizedCrop):
                (height, width), (narrow, wide) = size, first.ratio
                area = first.scale[0] * height * width
                # The second and third: where no crop of such an area and shape fits into the image.
                size = (
                    min((area / wide) ** 0.5, height, width / narrow),
                    min((area * narrow) ** 0.5, width, height * wide),
                )
        elif self.moved and self.taken and all(type(one).__name__ in _SCALE_FREE for one in self._compose.transforms):
            made = tuple(_SPARE * edge for edge in self.taken)
        else:
            return 1
        times = min(there / wanted for there, wanted in zip(size, made, strict=True))
        return max(factor for factor in (1, 2, 4, 8) if factor == 1 or factor <= times)


def build_augment(
    names: Sequence[str | dict[str, dict[str, Any] | None]],
    size: tuple[int, int] | None,
    seed: int,
    moved: str | None = None,
) -> Augment:
    """Build the pipeline that a recipe names.

    Args:
        names: albumentations class names, or {name: arguments}. An operation that takes a size and is given none gets
            `size`.
        size: (height, width) of the model's input; None where only the processor itself can make that input.
        seed: the run's seed.
        moved: the target that moves along, see Augment.

    Raises:
        RecipeError: a name that albumentations does not have, or arguments that it refuses.
    """
    transforms, ends_at_size = [], False
    for entry in names:
        name, arguments = (entry, {}) if isinstance(entry, str) else next(iter(entry.items()), ("", {}))
        if isinstance(entry, dict) and len(entry) != 1:
            raise RecipeError(f"augment: each entry is one name with its arguments, not {sorted(entry)}.")
        kind = getattr(A, name, None)
        if inspect.isclass(kind) and issubclass(kind, A.BaseCompose):
            raise RecipeError(f"augment: {name} holds other operations, which a recipe cannot; give each a p instead.")
        if not (inspect.isclass(kind) and issubclass(kind, A.BasicTransform)):
            known = [n for n, c in vars(A).items() if inspect.isclass(c) and issubclass(c, A.BasicTransform)]
            raise RecipeError(f"augment: albumentations has no {name!r}.{did_you_mean(name, known)}")
        arguments = dict(arguments or {})
        accepted = inspect.signature(kind.__init__).parameters
        unknown = [argument for argument in arguments if argument not in accepted]
        if unknown:
            raise RecipeError(f"augment: {name} has no argument {unknown[0]!r}.{did_you_mean(unknown[0], accepted)}")
        if sets_size(kind):
            height, width = size or _BEFORE_PROCESSOR
            given = {"size": (height, width)} if "size" in accepted else {"height": height, "width": width}
            arguments = {**given, **arguments}
            ends_at_size = size is not None
        try:
            transforms.append(_ANTIALIASED.get(kind, kind)(**arguments))
        except (TypeError, ValueError) as error:
            raise RecipeError(f"augment: {name}: {_reason(error)}") from None
    augment = Augment(transforms, size if ends_at_size else None, seed, moved, size)
    # What cannot work is said now, not by a loader worker in the middle of training.
    height, width = size or _BEFORE_PROCESSOR
    for trial, shape in enumerate([(height + 9, 2 * width), (2 * height, width + 9)] * 6):
        targets: dict[str, Any] = {}
        if moved == "bboxes":
            targets = {"bboxes": np.array([[3.0, 4.0, 20.0, 30.0]])}
        elif moved == "mask":
            targets = {"mask": np.zeros((*shape, 1), np.uint8)}
        augment((0, trial), np.full((*shape, 3), 127, np.uint8), **targets)
    return augment


def _reason(error: Exception) -> str:
    """Why albumentations refuses arguments; where pydantic checked them, the first of them and its value."""
    if isinstance(error.__cause__, ValidationError):
        first = error.__cause__.errors()[0]
        what = first["msg"].removeprefix("Value error, ")
        where = f"{first['loc'][0]}: " if first["loc"] else ""
        return f"{where}{what[:1].lower()}{what[1:200]} (got {first['input']!r:.80})."
    return " ".join(str(error).split())[:200]


def sets_size(kind: type[A.BasicTransform]) -> bool:
    """Whether every image leaves this operation at one size, which it must be given."""
    parameters = inspect.signature(kind.__init__).parameters
    required = {name for name, value in parameters.items() if value.default is inspect.Parameter.empty}
    return "size" in required or {"height", "width"} <= required
