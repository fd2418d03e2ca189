"""What an image processor does to pixel values, learnt by asking it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import PIL.Image
import torch

_PROBE_SIZES = ((64, 64), (48, 64), (64, 48), (40, 90), (90, 40))


@dataclass(frozen=True)
class PixelMap:
    """The pixel arithmetic of an image processor: `out[c] = scale[c] * rgb[channels[c]] + offset[c]`.

    Attributes:
        size: (height, width) of what the processor returns; of a square image when `fixed` is false.
        fixed: whether images of every aspect ratio become `size`.
        scale, offset: per output channel, for 8-bit input values.
        channels: per output channel, the RGB channel it is made of.
    """

    size: tuple[int, int]
    fixed: bool
    scale: tuple[float, float, float]
    offset: tuple[float, float, float]
    channels: tuple[int, int, int] = (0, 1, 2)

    def apply(self, images: torch.Tensor) -> torch.Tensor:
        """Map uint8 RGB images (B, 3, H, W) to the model's float32 pixel values (B, 3, H, W), on their device."""
        if self.channels != (0, 1, 2):
            images = images[:, list(self.channels)]
        batch, channels, height, width = images.shape
        # A row of an image at a time: channels lie next to each other, three numbers to a turn would be slow.
        rows = images.permute(0, 2, 3, 1).reshape(batch * height, width * channels).to(torch.float32)
        scale, offset = (torch.tensor(each, device=images.device).repeat(width) for each in (self.scale, self.offset))
        return rows.mul_(scale).add_(offset).view(batch, height, width, channels).permute(0, 3, 1, 2)


def pixel_map(processor: Any) -> PixelMap | None:
    """Learn what a processor does to pixel values, from images of one colour each.

    Returns None when it is not a per-channel linear map of images (colour clusters, flattened patches): then only the
    processor itself can make the model's input.
    """
    sizes = output_sizes(processor)
    if sizes is None:
        return None
    colours = [(0, 0, 0), (255, 255, 255), (255, 0, 0), (0, 255, 0), (0, 0, 255), (102, 102, 102)]
    seen = [_process(processor, _plain(colour, sizes[0])) for colour in colours]
    if any(
        pixels is None or np.ptp(pixels, axis=(1, 2)).max() > 1e-5 * max(1.0, np.abs(pixels).max()) for pixels in seen
    ):
        return None
    black, white, red, green, blue, grey = (pixels[:, 0, 0].astype(np.float64) for pixels in seen)
    span = white - black
    primaries = np.stack([red, green, blue]) - black
    if (span == 0).any():
        return None
    channels = tuple(int(channel) for channel in np.abs(primaries).argmax(axis=0))
    share = primaries / span
    one_each = np.zeros((3, 3))
    one_each[channels, range(3)] = 1.0
    straight = np.abs((grey - black) / span - 0.4).max() < 1e-5
    if not straight or np.abs(share - one_each).max() > 1e-5:
        return None
    return PixelMap(
        size=sizes[0],
        fixed=len(set(sizes)) == 1,
        scale=tuple((span / 255.0).tolist()),
        offset=tuple(black.tolist()),
        channels=channels,
    )


@dataclass(frozen=True)
class _Resize:
    """A class and not a closure: loader workers may have to be sent it."""

    processor: Any

    def __call__(self, image: np.ndarray) -> np.ndarray:
        names = ("do_rescale", "do_normalize", "do_pad", "do_convert_rgb")
        off = {name: False for name in names if hasattr(self.processor, name)}
        values = self.processor(images=[image], input_data_format="channels_last", return_tensors="np", **off)
        return np.ascontiguousarray(values["pixel_values"][0].transpose(1, 2, 0))


@dataclass(frozen=True)
class _ResizeTo:
    shrink: Callable[[np.ndarray, tuple[int, int]], np.ndarray]
    size: tuple[int, int]

    def __call__(self, image: np.ndarray) -> np.ndarray:
        return image if image.shape[:2] == self.size else self.shrink(image, self.size)


def resizer(
    processor: Any, shrink: Callable[[np.ndarray, tuple[int, int]], np.ndarray] | None = None
) -> Callable[[np.ndarray], np.ndarray] | None:
    """Return what resizes a uint8 RGB image (H, W, 3) as the processor does, and does nothing else to it.

    That is the processor itself with its pixel arithmetic and padding turned off. None when it cannot be so used.

    Args:
        processor: the image processor.
        shrink: a faster function of an image and a size (height, width), which is taken instead where it gives the
            same, but for the last digit of rounding.
    """
    resize = _Resize(processor)
    try:
        tried = resize(np.full((40, 90, 3), 127, np.uint8))
    except (KeyError, TypeError, ValueError):
        return None
    if tried.dtype != np.uint8 or tried.shape[2:] != (3,):
        return None
    sizes = set(output_sizes(processor) or ())
    if shrink is None or len(sizes) != 1:
        return resize
    faster = _ResizeTo(shrink, sizes.pop())
    for height, width in _PROBE_SIZES:
        # Larger and smaller than what is made of it, and with all that a kernel can go wrong on.
        for edge in (height, 12 * height):
            image = np.random.default_rng(edge).integers(0, 256, (edge, edge * width // height, 3), dtype=np.uint8)
            made, other = (each(image).astype(np.int16) for each in (resize, faster))
            if made.shape != other.shape or np.abs(made - other).max() > 1:
                return resize
    return faster


def output_sizes(processor: Any, sizes: Iterable[tuple[int, int]] = _PROBE_SIZES) -> list[tuple[int, int]] | None:
    """Return the (height, width) that the processor makes of images of each size; None when it makes no images."""
    made = [_process(processor, _plain((0, 0, 0), size)) for size in sizes]
    return None if any(pixels is None for pixels in made) else [pixels.shape[1:] for pixels in made]


def _plain(colour: tuple[int, int, int], size: tuple[int, int]) -> PIL.Image.Image:
    return PIL.Image.new("RGB", (size[1], size[0]), colour)


def _process(processor: Any, image: PIL.Image.Image) -> np.ndarray | None:
    """Return the processed image (3, H, W), or None when the processor makes something else of it."""
    values = processor(images=[image], return_tensors="pt").get("pixel_values")
    if not isinstance(values, torch.Tensor) or values.ndim != 4 or values.shape[:2] != (1, 3):
        return None
    return values[0].float().numpy() if values.is_floating_point() else None
