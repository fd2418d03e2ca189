"""Give a pretrained model another input size, so that the saved checkpoint and image processor agree on it."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from huggingface_hub.errors import StrictDataclassError
from torch.nn import functional as F
from transformers import PreTrainedConfig, PreTrainedModel

from cv_hf.errors import ModelError
from cv_hf.models import detection, segmentation
from cv_hf.models.pixels import output_sizes

_MAX_TOKENS = 16  # class, distillation and register tokens that may precede the grid in a position table


def change_image_size(
    model: PreTrainedModel, processor: Any, size: int | tuple[int, int]
) -> tuple[PreTrainedModel, Any]:
    """Return the model and the processor for images of `size`, an edge or (height, width) in pixels.

    A detector's or segmenter's processor that keeps the aspect ratio goes on doing so for an edge, which is then the
    shortest one; for (height, width) images become exactly that. Other models are built anew at the new size; tables of
    positions are interpolated (bicubic, as in Dosovitskiy et al., "An Image is Worth 16x16 Words", 2021), all other
    weights are kept.

    Raises:
        ModelError: the model or the processor cannot work at that size.
    """
    new = (size, size) if isinstance(size, int) else tuple(size)
    shown = "x".join(map(str, new))
    old = output_sizes(processor, [(64, 64)])
    if old is None:
        raise ModelError(f"model.image_size: {type(processor).__name__} does not make images of one size.")
    if detection.is_detector(model.config) or segmentation.keeps_aspect(processor, model):
        return model, _detector_processor(model, processor, size, old[0])
    if segmentation.is_segmenter(model):
        segmentation.check_size(model.config, processor, new)
    processor = _resized_processor(processor, old[0], new)
    if processor is None:
        hint = "; try a square" if new[0] != new[1] else ""
        raise ModelError(f"model.image_size: the image processor cannot be set to always give {shown}{hint}.")
    before = _built_size(model) or old[0]
    config = _resized_config(model, new)
    try:
        resized = type(model)(config)
        _copy_weights(model, resized, before, new)
        return _tried(resized, new), processor
    except ModelError:
        raise
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
    try:
        # DINOv2 is built for squares only, but interpolates its positions by itself at every forward pass.
        return _tried(model, new), processor
    except Exception:
        hint = "try a square" if new[0] != new[1] else reason
        raise ModelError(f"model.image_size: {type(model).__name__} cannot take {shown} images ({hint}).") from None


def _detector_processor(
    model: PreTrainedModel, processor: Any, size: int | tuple[int, int], old: tuple[int, int]
) -> Any:
    """Return the processor of a detector, or of a segmenter that keeps the aspect ratio, for images of `size`.

    An edge is the shortest, where the aspect ratio is kept. The model stays: it makes its positions for the image that
    it is given.
    """
    edges = processor.to_dict().get("size") or {}
    if (
        isinstance(size, int)
        and edges.get("shortest_edge")
        and edges.get("longest_edge")
        and not detection.is_square_only(model.config)
    ):
        longest = round(edges["longest_edge"] * size / edges["shortest_edge"])
        settings = {**processor.to_dict(), "size": {"shortest_edge": size, "longest_edge": longest}}
        resized = type(processor)(**settings)
        sizes = output_sizes(resized)
    else:
        new = (size, size) if isinstance(size, int) else tuple(size)
        segmentation.check_size(model.config, processor, new)
        resized = _resized_processor(processor, old, new)
        sizes = [new]
    if resized is None:
        raise ModelError(f"model.image_size: {type(processor).__name__} cannot be set to always give {sizes[0]}.")
    for made in sizes:
        try:
            _tried(model, made)
        except Exception as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
            shown = "x".join(map(str, made))
            raise ModelError(
                f"model.image_size: {type(model).__name__} cannot take {shown} images ({reason})."
            ) from None
    return resized


@torch.no_grad()
def _tried(model: PreTrainedModel, size: tuple[int, int]) -> PreTrainedModel:
    if model.config.model_type != "oneformer":  # takes all, and a prompt
        model.eval()(**{model.main_input_name: torch.zeros(1, 3, *size)})
    return model


def _image_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """Return the part of the configuration that describes the image encoder."""
    return getattr(config, "vision_config", config)


def _built_size(model: PreTrainedModel) -> tuple[int, int] | None:
    """Return the image size (height, width) that the model's tables were made for, when it says."""
    if model.config.model_type == "timm_wrapper":
        size = getattr(getattr(model.timm_model, "patch_embed", None), "img_size", None)
    else:
        size = getattr(_image_config(model.config), "image_size", None)
    if size is None:
        return None
    return (size, size) if isinstance(size, int) else tuple(size)


def _resized_config(model: PreTrainedModel, size: tuple[int, int]) -> PreTrainedConfig:
    config = copy.deepcopy(model.config)
    if config.model_type == "timm_wrapper":
        config.pretrained_cfg = {**config.pretrained_cfg, "input_size": [3, *size]}
        if "img_size" in inspect.signature(type(model.timm_model).__init__).parameters:
            config.model_args = {**(config.model_args or {}), "img_size": list(size)}
        return config
    part = _image_config(config)
    current = getattr(part, "image_size", None)
    if current is not None:
        square = size[0] == size[1] and isinstance(current, int)
        try:
            part.image_size = size[0] if square else list(size)
        except StrictDataclassError:
            raise ModelError(f"model.image_size: {type(config).__name__} takes square images only.") from None
    return config


def _copy_weights(
    old: PreTrainedModel, new: PreTrainedModel, old_size: tuple[int, int], new_size: tuple[int, int]
) -> None:
    state = new.state_dict()
    parameters = {name for name, _ in old.named_parameters()}
    for name, tensor in old.state_dict().items():
        is_index = not tensor.is_floating_point() and not name.endswith("num_batches_tracked")
        if state[name].shape == tensor.shape and not is_index:
            state[name] = tensor
        elif name in parameters:
            state[name] = _interpolate(name, tensor, state[name].shape, old_size, new_size)
    new.load_state_dict(state)


def _interpolate(
    name: str,
    table: torch.Tensor,
    shape: torch.Size,
    old_size: tuple[int, int],
    new_size: tuple[int, int],
) -> torch.Tensor:
    """Resample a table of positions (..., tokens, channels) or of relative positions (offsets, heads)."""
    readings = list(_readings(table.shape, shape, old_size, new_size))
    if not readings:
        raise ModelError(f"model.image_size: {name} {tuple(table.shape)} cannot be resampled to {tuple(shape)}.")

    def doubt(reading: _Reading) -> tuple[bool, int]:
        return any(edge % reading.patch for edge in old_size), reading.extra

    axis, is_relative, extra, patch = min(readings, key=doubt)
    if any(edge % patch for edge in new_size):
        raise ModelError(f"model.image_size: {new_size[0]}x{new_size[1]} is not a multiple of the patch size {patch}.")
    old_grid, new_grid = ([edge // patch for edge in size] for size in (old_size, new_size))
    if is_relative:
        old_grid, new_grid = ([2 * edge - 1 for edge in grid] for grid in (old_grid, new_grid))
    rows = table.movedim(axis, 0)
    # A position table begins with its extra tokens; a relative one ends with the offsets to and from them.
    count = len(rows) - extra
    grid, rest = (rows[:count], rows[count:]) if is_relative else (rows[extra:], rows[:extra])
    image = grid.flatten(1).T.reshape(1, -1, *old_grid)
    image = F.interpolate(image, size=new_grid, mode="bicubic", align_corners=False)
    grid = image.flatten(2)[0].T.reshape(-1, *grid.shape[1:])
    return torch.cat([grid, rest] if is_relative else [rest, grid]).movedim(0, axis)


class _Reading(NamedTuple):
    """How a table may have grown with the image: along which axis, and what its rows are."""

    axis: int
    is_relative: bool
    extra: int
    patch: int


def _readings(
    old: torch.Size, new: torch.Size, old_size: tuple[int, int], new_size: tuple[int, int]
) -> Iterator[_Reading]:
    changed = [axis for axis in range(len(old)) if old[axis] != new[axis]]
    if len(old) != len(new) or len(changed) != 1:
        return
    axis = changed[0]
    for patch in range(1, min(*old_size, *new_size) + 1):
        grids = [(h // patch, w // patch) for h, w in (old_size, new_size)]
        for is_relative in (False, True):
            before, after = ((2 * h - 1) * (2 * w - 1) if is_relative else h * w for h, w in grids)
            extra = old[axis] - before
            if 0 <= extra <= _MAX_TOKENS and extra == new[axis] - after:
                yield _Reading(axis, is_relative, extra, patch)


def _resized_processor(processor: Any, old: tuple[int, int], new: tuple[int, int]) -> Any | None:
    """Return a processor that makes `new` of an image of any aspect ratio, resizing and cropping as before."""
    for settings in _candidate_settings(processor.to_dict(), old, new):
        try:
            candidate = type(processor)(**settings)
            made = output_sizes(candidate)
        except Exception:
            # Each processor class refuses in its own way the kinds of size that it does not know.
            continue
        if made is not None and set(made) == {new}:
            return candidate
    return None


def _candidate_settings(
    settings: dict[str, Any], old: tuple[int, int], new: tuple[int, int]
) -> Iterator[dict[str, Any]]:
    """Yield new settings, best first: all sizes scaled alike, so that the share of the image that is cropped stays."""
    if "data_config" in settings:
        # timm's, whose settings are saved with the model's.
        data = {**settings["data_config"], "input_size": (3, *new)}
        yield {"pretrained_cfg": data, "architecture": settings["architecture"]}
        return
    growth = {"height": new[0] / old[0], "width": new[1] / old[1]}
    most = max(growth.values())
    sizes = {}
    for name in ("size", "crop_size", "resize_short", "pad_size"):
        value = settings.get(name)
        if isinstance(value, dict):
            sizes[name] = {edge: round(length * growth.get(edge, most)) for edge, length in value.items() if length}
        elif value:
            sizes[name] = round(value * most)
    yield {**settings, **sizes}
    yield {**settings, "size": {"height": new[0], "width": new[1]}, "do_center_crop": False}
