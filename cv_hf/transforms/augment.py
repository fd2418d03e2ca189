"""Augmentations by name, drawn anew for every (seed, epoch, sample).

albumentations keeps a random state of its own: two loader workers would draw the same numbers and every epoch repeat
them. Here each call sets the state from the key of the sample, so the stream is the same for any number of workers
and after a resume.
"""

from __future__ import annotations

import inspect
import os
import random
from collections.abc import Sequence
from typing import Any

import numpy as np

from cv_hf.errors import RecipeError, did_you_mean

# albumentations looks for a newer version of itself on the network at import, unless told not to.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import albumentations as A
import cv2

# Loader workers are the parallelism; OpenCV's own threads would only compete with them.
cv2.setNumThreads(0)

# Of a box cut by a crop: less than this share of it, and it no longer shows what it is.
MIN_VISIBILITY = 0.1
# Where the processor will resize anyhow, a crop keeps enough pixels for it to choose from.
_BEFORE_PROCESSOR = (256, 256)


class Augment:
    """A seeded albumentations pipeline on uint8 RGB.

    Attributes:
        size: (height, width) that every image ends at, or None when the list has no operation that sets a size.
        moved: the target that moves along, which each call is then given: "bboxes" (n, 4), absolute xyxy; or "mask"
            (H, W, layers), uint8 or uint16, in which 0 means nothing; None: only the image.
    """

    def __init__(
        self, transforms: Sequence[A.BasicTransform], size: tuple[int, int] | None, seed: int, moved: str | None = None
    ):
        self.size = size
        self.seed = seed
        # Rounding can put a box at the border outside by a millionth, at which albumentations fails.
        params = A.BboxParams(
            "pascal_voc",
            label_fields=["indices"],
            min_visibility=MIN_VISIBILITY,
            clip=True,
            filter_invalid_bboxes=True,
        )
        self._compose = A.Compose(transforms, bbox_params=params if moved == "bboxes" else None)
        self.moved = moved

    def __call__(self, key: tuple[int, int], image: np.ndarray, **targets: Any) -> dict[str, Any]:
        """Augment one sample.

        Args:
            key: (epoch, sample index), which alone with the seed decides what is drawn.
            image: uint8 RGB, (H, W, 3).
            targets: what albumentations moves together with the image (mask, bboxes, ...).

        Returns:
            the image and the targets. With `bboxes` also `indices` (m,): which of the boxes given each one is, since
            those of which less than a tenth is left in the image go.
        """
        if self.moved == "bboxes":
            targets["indices"] = list(range(len(targets["bboxes"])))
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
            # Plain bilinear reads 4 pixels however far it shrinks; the processors that evaluate average all of them.
            if "area_for_downscale" in accepted:
                arguments.setdefault("area_for_downscale", "image")
        try:
            transforms.append(kind(**arguments))
        except (TypeError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise RecipeError(f"augment: {name}: {reason[:200]}") from None
    augment = Augment(transforms, size if ends_at_size else None, seed, moved)
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


def sets_size(kind: type[A.BasicTransform]) -> bool:
    """Whether every image leaves this operation at one size, which it must be given."""
    parameters = inspect.signature(kind.__init__).parameters
    required = {name for name, value in parameters.items() if value.default is inspect.Parameter.empty}
    return "size" in required or {"height", "width"} <= required
