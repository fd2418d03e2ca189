"""Segments from the outputs of segmentation models: bit for bit what the image processors of Transformers answer.

Theirs resize every query to the size of the image and go over the image several times for each. Here a mask is made
when it is looked at, one at a time, and only for the queries that can still become segments. Four facts make that exact
on the CPU:

- Bilinear resizing treats channels one by one, but for outputs of at most 128 rows and columns together and for inputs
  in channels-last order, whose kernel works on vectors of channels: see `_resized` and `_planes`.
- A vectorised sigmoid ends a tensor with scalars, which round otherwise: see `_sigmoid`. (Several threads put such
  scalars elsewhere too. Then a pixel may differ by one rounding.)
- A mean mask probability is at most 1 in floating point too: numerator and denominator are sums in the same order, of
  which the first has no larger term. A class score below the threshold therefore stays below it.
- Nearest resizing picks pixels, so that painting first and resizing then is the same as the other way round.

An image's answer is that of its own outputs alone, as pipeline() gives it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import cv2
import numpy as np
import torch
from torch.nn import functional
from torchvision.transforms.v2 import functional as transforms
from transformers.image_transforms import get_size_with_aspect_ratio

from cv_hf.runs import from_mask

Size = tuple[int, int]
# Class logits (Q, C), mask logits (Q, h, w) and the size of the image.
_Image = tuple[torch.Tensor, torch.Tensor, Size]
# (H, W) logits or probabilities of one query, or of one class.
MaskOf = Callable[[int], torch.Tensor]

# What pipeline() calls the image processors with when it is given no arguments.
PIPELINE_ARGUMENTS = {"threshold": 0.9, "mask_threshold": 0.5, "overlap_mask_area_threshold": 0.5}

# By the name of the image processor. All but RF-DETR have a last class that is "no object".
_QUERIES = {
    "Detr": ("logits", "pred_masks"),
    "Eomt": ("class_queries_logits", "masks_queries_logits"),
    "Mask2Former": ("class_queries_logits", "masks_queries_logits"),
    "MaskFormer": ("class_queries_logits", "masks_queries_logits"),
    "OneFormer": ("class_queries_logits", "masks_queries_logits"),
    "RfDetr": ("logits", "pred_masks"),
}
_LOGITS = {"Beit", "CHMv2", "DPT", "MobileNetV2", "MobileViT", "Sapiens2", "Segformer", "Tipsv2Dpt"}
_MASK2FORMER_SIZE = (384, 384)
# PyTorch's kernel by vectors of channels takes at most so many output rows and columns together, and channels-last
# input of at least so many channels. Whole multiples of any CPU's vector: of channels, and of what a loop takes.
_SMALL, _FEW, _CHANNELS, _VECTORS = 128, 4, 16, 64
# Masks, and pixels of them, that are scored at a time; and up to where floats count one by one.
_TOGETHER, _PIXELS, _EXACT = 4, 2**20, 2**24
# Floats that may be held at a time where channels are resized together, if so few suffice.
_AT_ONCE = 2**26


def semantic_maps(outputs: Any, processor: Any, sizes: Sequence[Size]) -> list[np.ndarray]:
    """What `post_process_semantic_segmentation` gives, without the scores of all classes at the size of the image.

    Args:
        outputs: what the model returned for a batch.
        processor: its image processor.
        sizes: (height, width) of each image before preprocessing.

    Returns:
        Per image (height, width) uint16: the class of each pixel.
    """
    name = _family(outputs, processor)
    if name is None or name == "RfDetr":
        maps = processor.post_process_semantic_segmentation(outputs, target_sizes=_plain(sizes))
        return [np.asarray(labels.cpu()).astype(np.uint16) for labels in maps]
    return [_winners(planes) for planes in _class_planes(outputs, processor, name, _plain(sizes))]


def instance_segments(
    outputs: Any, processor: Any, sizes: Sequence[Size], arguments: Mapping[str, float] | None = None
) -> list[dict[str, Any]]:
    """What `post_process_instance_segmentation` gives: one map in which instances exclude each other.

    pipeline(subtask="instance") cuts its masks from it. Average precision is measured on `instance_masks`.

    Args:
        outputs, processor, sizes: as for `semantic_maps`.
        arguments: any of threshold, mask_threshold, overlap_mask_area_threshold; pipeline()'s own for those missing.
            What they mean is up to the family: RF-DETR's mask_threshold is one of logits, Mask2Former has none.

    Returns:
        Per image {"segmentation": (height, width) int32 of ids, "segments_info": [{"id", "label_id", "score", ...}]}.
        Pixels of no segment have an id that no segment has: -1, or 0 where ids begin with 1.
    """
    arguments = {**PIPELINE_ARGUMENTS, **(arguments or {})}
    name = _family(outputs, processor)
    if name not in _QUERIES:
        found = processor.post_process_instance_segmentation(outputs, target_sizes=_plain(sizes), **arguments)
        return _as_arrays(found)
    if name == "Detr":
        return panoptic_segments(outputs, processor, sizes, arguments)
    return [
        _instance_map(processor, name, classes, masks, size, **arguments)
        for classes, masks, size in _images(outputs, name, _plain(sizes))
    ]


def panoptic_segments(
    outputs: Any,
    processor: Any,
    sizes: Sequence[Size],
    arguments: Mapping[str, float] | None = None,
    fuse: Collection[int] = (),
) -> list[dict[str, Any]]:
    """What `post_process_panoptic_segmentation` gives; pipeline(subtask="panoptic") cuts its masks from it.

    With `fuse`, each of its classes becomes one segment with an id of its own and the score of its first query, as
    MaskFormer (arXiv 2107.06278) defines it. Transformers lists such a segment once for each query and, for all
    families but EoMT, gives ids out anew that things have already.

    Args:
        outputs, processor, sizes, arguments: as for `instance_segments`.
        fuse: the label ids of stuff. pipeline() has none.

    Returns:
        As `instance_segments`.
    """
    arguments = {**PIPELINE_ARGUMENTS, **(arguments or {})}
    name = _family(outputs, processor)
    if name not in _QUERIES or name == "RfDetr":
        more = {"label_ids_to_fuse": set(fuse)} if fuse else {}
        found = processor.post_process_panoptic_segmentation(outputs, target_sizes=_plain(sizes), **arguments, **more)
        return _as_arrays(found)
    return [
        _panoptic_map(processor, name, classes, masks, size, fuse=frozenset(fuse), **arguments)
        for classes, masks, size in _images(outputs, name, _plain(sizes))
    ]


def instance_masks(outputs: Any, processor: Any, sizes: Sequence[Size], top: int = 100) -> list[dict[str, Any]]:
    """The overlapping instances that mask average precision is measured on, scored as in each family's evaluation.

    - Mask2Former (arXiv 2112.01527), OneFormer (2211.06220), EoMT (2503.19108), MaskFormer as Mask2Former's code
      evaluates it: the best (query, class) pairs; class probability x mean probability inside the mask.
    - RF-DETR (2511.09554): the best (query, class) pairs by class probability alone.
    - DETR (2005.12872): a query's best class and its probability.

    Mask2Former and MaskFormer are cut at the size where Transformers cuts them (`return_binary_maps=True`), 384 x 384
    and that of the model's masks, and enlarged by nearest pixels; the others at the size of the image.

    Args:
        outputs, processor, sizes: as for `semantic_maps`.
        top: how many pairs of an image are taken at most. Those whose mask is empty are left out.

    Returns:
        Per image {"masks": [COCO run-length encoding], "scores": (n,) float32, "labels": (n,) int64}, in no order.
    """
    name = _family(outputs, processor)
    sizes = _plain(sizes)
    if name not in _QUERIES:
        return [_encoded(image) for image in _overlapping_of_unknown(outputs, processor, sizes, top)]
    return _each(
        lambda image: _encoded(_overlapping(processor, name, *image, top)), list(_images(outputs, name, sizes))
    )


def _encoded(found: Iterable[tuple[float, int, np.ndarray]]) -> dict[str, Any]:
    """The answer of `instance_masks` for one image; no two of its masks are held at a time."""
    scores, labels, masks = [], [], []
    for score, label, mask in found:
        scores.append(score)
        labels.append(label)
        masks.append(from_mask(mask))
    return {"masks": masks, "scores": np.array(scores, np.float32), "labels": np.array(labels, np.int64)}


def _each(function: Callable[[_Image], dict[str, Any]], images: Sequence[_Image]) -> list[dict[str, Any]]:
    """`function` of each image, at a time as many as PyTorch has threads here, of which each then has one.

    One mask is too small for several threads to share.
    """
    threads = torch.get_num_threads()
    if min(threads, len(images)) < 2:
        return [function(image) for image in images]
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return list(pool.map(function, images))
    finally:
        # It is counted for each thread, but what threads to come begin with is the last that any has set.
        torch.set_num_threads(threads)


def _family(outputs: Any, processor: Any) -> str | None:
    """The key of `_QUERIES` or the entry of `_LOGITS`; None: left to the image processor's own functions."""
    kind = type(processor)
    name = kind.__name__.removesuffix("Pil").removesuffix("ImageProcessor")
    if not kind.__module__.startswith("transformers.models."):
        return None
    if name in _QUERIES:
        return name if getattr(outputs, _QUERIES[name][1]).is_contiguous() else None
    return name if name in _LOGITS else None


def _logits(outputs: Any) -> torch.Tensor:
    logits = getattr(outputs, "segmentation_logits", None)
    return (outputs.logits if logits is None else logits).detach().cpu()


def _images(outputs: Any, name: str, sizes: list[Size]) -> Iterator[_Image]:
    """Each image's class logits (Q, C), mask logits (Q, h, w) and size."""
    classes, masks = (getattr(outputs, field) for field in _QUERIES[name])
    return zip(classes.detach().cpu(), masks.detach().cpu(), sizes, strict=True)


def _plain(sizes: Sequence[Size]) -> list[Size]:
    return [(int(height), int(width)) for height, width in sizes]


def _as_arrays(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**image, "segmentation": image["segmentation"].cpu().numpy().astype(np.int32)} for image in found]


def _bilinear(masks: torch.Tensor, size: Size) -> torch.Tensor:
    """(N, h, w), resized as channels of one image."""
    return functional.interpolate(masks[None], size=size, mode="bilinear", align_corners=False)[0]


def _resized(mask: MaskOf, count: int, size: Size, antialias: bool = False) -> MaskOf:
    """The masks of `mask`, each resized as if all `count` of them were at once."""
    if antialias:
        return lambda index: transforms.resize(mask(index)[None, None], list(size))[0, 0]
    if sum(size) > _SMALL or not count:
        return lambda index: _bilinear(mask(index)[None], size)[0]
    return _bilinear(torch.stack([mask(index) for index in range(count)]), size).__getitem__


def _planes(scores: torch.Tensor, size: Size) -> Iterator[tuple[np.ndarray, Any]]:
    """For `_winners`: (C, h, w), resized to (H, W) as if at once, by itself or the largest of a few channels."""
    count = len(scores)
    channels_last = count > 1 and scores[None].is_contiguous(memory_format=torch.channels_last)
    if sum(size) <= _SMALL or not channels_last:
        yield from _numbered(map(_resized(scores.__getitem__, count, size), range(count)))
        return
    step = max(1, _AT_ONCE // (_CHANNELS * size[0] * size[1])) * _CHANNELS
    for start in range(0, count, step):
        part = scores[None, start : start + step]
        part = functional.pad(part, (0, 0, 0, 0, 0, max(0, min(count, _FEW) - part.shape[1])))
        part = part.contiguous(memory_format=torch.channels_last)
        part = functional.interpolate(part, size=size, mode="bilinear", align_corners=False)
        largest, labels = part[0, : count - start].max(dim=0)
        del part
        yield largest.float().numpy(), labels.numpy().astype(np.uint16) + np.uint16(start)


def _numbered(planes: Iterable[torch.Tensor]) -> Iterator[tuple[np.ndarray, Any]]:
    return ((plane.float().numpy(), np.uint16(label)) for label, plane in enumerate(planes))


def _sigmoid(mask: torch.Tensor, index: int, count: int) -> torch.Tensor:
    """Mask `index` of `count` of its shape: its sigmoid as if that of all were taken at once."""
    length = mask.numel()
    before = index * length % _VECTORS
    after = 0 if index == count - 1 else -(before + length) % _VECTORS
    if not before and not after:
        return mask.sigmoid()
    return functional.pad(mask.flatten(), (before, after)).sigmoid()[before : before + length].view_as(mask)


def _winners(planes: Iterable[tuple[np.ndarray, Any]]) -> np.ndarray:
    """(H, W) uint16: at each pixel the code of the largest plane, of equals the first.

    Args:
        planes: (H, W) and its code, a uint16 or one for each pixel; larger than the codes before it.
    """
    best = codes = None
    for plane, code in planes:
        if best is None:
            best, codes = plane.copy(), np.zeros(plane.shape, np.uint16) + code
            continue
        # Codes grow, so that the larger of two is the later: much faster than assigning through a mask.
        np.maximum(codes, np.multiply(plane > best, code, dtype=np.uint16), out=codes)
        np.maximum(best, plane, out=best)
    return codes


def _class_planes(
    outputs: Any, processor: Any, name: str, sizes: list[Size]
) -> Iterator[Iterator[tuple[np.ndarray, Any]]]:
    """For each image, its scores of the classes at its size, for `_winners`."""
    if name in _LOGITS:
        yield from (_planes(logits, size) for logits, size in zip(_logits(outputs), sizes, strict=True))
        return
    patches = getattr(outputs, "patch_offsets", None) if name == "Eomt" else None
    if patches:
        yield from (_numbered(_merged(outputs, processor, name, index, size)) for index, size in enumerate(sizes))
        return
    for classes, masks, size in _images(outputs, name, sizes):
        scores = _class_scores(processor, name, classes[None], masks[None])[0]
        if name == "OneFormer" and not type(processor).__name__.endswith("Pil"):
            resized = _resized(scores.__getitem__, len(scores), size, antialias=True)
            yield _numbered(map(resized, range(len(scores))))
        else:
            yield _planes(scores, size)


def _class_scores(processor: Any, name: str, classes: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """(B, C, h, w) from class logits (B, Q, C + 1) and mask logits (B, Q, h', w')."""
    inner = _MASK2FORMER_SIZE if name == "Mask2Former" else _eomt_size(processor) if name == "Eomt" else None
    if inner:
        masks = functional.interpolate(masks, size=inner, mode="bilinear", align_corners=False)
    return torch.einsum("bqc, bqhw -> bchw", classes.softmax(dim=-1)[..., :-1], masks.sigmoid())


def _merged(outputs: Any, processor: Any, name: str, index: int, size: Size) -> Iterator[torch.Tensor]:
    """The planes of EoMT's image `index`, which went through the model in patches."""
    own = [patch for patch, offset in enumerate(outputs.patch_offsets) if int(offset[0]) == index]
    offsets = [(0, int(start), int(end)) for _, start, end in (outputs.patch_offsets[patch] for patch in own)]
    classes, masks = (getattr(outputs, field)[own].detach().cpu() for field in _QUERIES[name])
    scores = _class_scores(processor, name, classes, masks)
    step = scores.shape[1] if sum(size) <= _SMALL else 1
    for start in range(0, scores.shape[1], step):
        yield from processor.merge_image_patches(scores[:, start : start + step], offsets, [size], processor.size)[0]


def _eomt_size(processor: Any) -> Size:
    edge = processor.size["shortest_edge"]
    return edge, processor.size["longest_edge"] or edge


def _cut_logits(processor: Any, name: str, masks: torch.Tensor, size: Size) -> MaskOf:
    """The mask logits of a query at the size where Transformers compares them with 0."""
    mask, count = masks.__getitem__, len(masks)
    if name == "Mask2Former":
        return _resized(mask, count, _MASK2FORMER_SIZE)
    if name == "Eomt":
        inner = _resized(mask, count, _eomt_size(processor))
        height, width = get_size_with_aspect_ratio(
            size, processor.size["shortest_edge"], processor.size["longest_edge"]
        )
        return _resized(lambda query: inner(query)[:height, :width], count, size)
    return mask


def _pairs(classes: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Class probabilities, labels and queries of the `count` best pairs of logits (Q, C + 1), in PyTorch's order."""
    scores = classes.softmax(dim=-1)[:, :-1]
    scores, pairs = scores.flatten().topk(min(count, scores.numel()), sorted=False)
    return scores, pairs % (classes.shape[1] - 1), pairs // (classes.shape[1] - 1)


def _best_classes(classes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The same with the best class of each query."""
    scores, labels = classes.softmax(dim=-1)[:, :-1].max(dim=-1)
    return scores, labels, torch.arange(len(classes))


def _scored(
    pairs: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    logits: Callable[[list[int]], Iterator[torch.Tensor]],
    threshold: float,
) -> Iterator[tuple[float, int, np.ndarray]]:
    """Score, label and mask of those pairs whose class probability x mean mask probability reaches the threshold.

    `logits` are those of `_few`.
    """
    scores, labels, queries = pairs
    left = (scores >= threshold).nonzero().flatten().tolist()
    for masks in logits(queries[left].tolist()):
        some, left = left[: len(masks)], left[len(masks) :]
        inside = np.greater(masks.float().numpy(), 0)
        # Of these the sigmoid is 0, so that the sum is that of the inside.
        functional.threshold_(masks, 0, -torch.inf)
        if masks[0].numel() % _VECTORS:
            masks = torch.stack([_sigmoid(mask, index, len(scores)) for mask, index in zip(masks, some, strict=True)])
        else:
            masks.sigmoid_()
        totals = _sums(masks.to(torch.promote_types(masks.dtype, torch.float32)))
        found = (scores[some] * (totals / (_areas(inside).to(totals.dtype) + 1e-6))).tolist()
        for index, score, mask in zip(some, found, inside, strict=True):
            if score >= threshold:
                yield score, int(labels[index]), mask


def _areas(masks: np.ndarray) -> torch.Tensor:
    """The areas of masks (N, H, W) as a sum of floats has them, which are exact as far as these count."""
    if masks[0].size <= _EXACT:
        return torch.tensor([float(np.count_nonzero(mask)) for mask in masks])
    return _sums(torch.from_numpy(masks).to(torch.float32))


def _sums(masks: torch.Tensor) -> torch.Tensor:
    """The sum of each of (N, H, W), never of one alone: several threads would split it, and round otherwise."""
    rows = masks.flatten(1)
    return (rows if len(rows) > 1 else rows.repeat(2, 1)).sum(1)[: len(masks)]


def _few(processor: Any, name: str, masks: torch.Tensor, size: Size) -> Callable[[list[int]], Iterator[torch.Tensor]]:
    """The mask logits (N, H, W) of queries where Transformers compares them with 0, as many at a time as a core's own
    memory holds. Whoever takes them may change them.
    """
    inner = _MASK2FORMER_SIZE if name == "Mask2Former" else size
    if name in ("Mask2Former", "OneFormer") and sum(inner) > _SMALL:

        def cut(queries: list[int]) -> torch.Tensor:
            return _bilinear(masks[queries], inner)

    else:
        oneformer = name == "OneFormer"
        one = _resized(masks.__getitem__, len(masks), size) if oneformer else _cut_logits(processor, name, masks, size)

        def cut(queries: list[int]) -> torch.Tensor:
            return torch.stack([one(query) for query in queries])

    step = min(_TOGETHER, max(1, _PIXELS // (inner[0] * inner[1])))
    return lambda queries: (cut(queries[start : start + step]) for start in range(0, len(queries), step))


def _nearest(source: int, target: int) -> np.ndarray:
    """Of each of `target` pixels in a line, the one of `source` that nearest resizing takes."""
    line = torch.arange(source, dtype=torch.float32)[None, None, :, None]
    return functional.interpolate(line, size=(target, 1), mode="nearest").flatten().numpy().astype(np.int64)


def _instance_map(
    processor: Any,
    name: str,
    classes: torch.Tensor,
    masks: torch.Tensor,
    size: Size,
    *,
    threshold: float,
    mask_threshold: float,
    overlap_mask_area_threshold: float,
) -> dict[str, Any]:
    if name == "RfDetr":
        return _first_come(classes, masks, size, threshold, mask_threshold)
    if name == "OneFormer":
        scores, labels, queries = _pairs(classes, len(classes))
        keep = scores > threshold
        scores, labels, queries = scores[keep], labels[keep].tolist(), queries[keep].tolist()
        logits = _resized(lambda index: masks[queries[index]], len(queries), size, antialias=True)
        return _competition(
            name, scores, labels, logits, size, mask_threshold, overlap_mask_area_threshold, frozenset()
        )
    pairs = _best_classes(classes) if name == "Eomt" else _pairs(classes, len(classes))
    logits = _few(processor, name, masks, size)
    height, width = size if name == "Eomt" else _MASK2FORMER_SIZE if name == "Mask2Former" else masks.shape[1:]
    rows, columns = _nearest(height, size[0]), _nearest(width, size[1])
    seen = np.zeros((height, width), bool)
    seen[np.ix_(rows, columns)] = True
    segmentation = np.full((height, width), -1, np.int32)
    segments: list[dict[str, Any]] = []
    for score, label, mask in _scored(pairs, logits, threshold):
        if (mask & seen).any():
            np.copyto(segmentation, len(segments), where=mask)
            fused = {} if name == "Eomt" else {"was_fused": False}
            segments.append({"id": len(segments), "label_id": label, **fused, "score": round(score, 6)})
    return {"segmentation": segmentation.take(columns, axis=1).take(rows, axis=0), "segments_info": segments}


def _first_come(
    classes: torch.Tensor, masks: torch.Tensor, size: Size, threshold: float, mask_threshold: float
) -> dict[str, Any]:
    """RF-DETR's map: a pixel belongs to the best instance that covers it."""
    segmentation = np.full(size, -1, np.int32)
    segments: list[dict[str, Any]] = []
    scores, labels, queries = _sigmoid_pairs(classes, len(classes))
    for score, label, query in zip(*(values[scores > threshold] for values in (scores, labels, queries)), strict=True):
        free = (_bilinear(masks[query][None].float(), size)[0] > mask_threshold).numpy() & (segmentation == -1)
        if free.any():
            np.copyto(segmentation, len(segments) + 1, where=free)
            segments.append({"id": len(segments) + 1, "label_id": int(label), "score": round(score.item(), 6)})
    return {"segmentation": segmentation, "segments_info": segments}


def _sigmoid_pairs(classes: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """As `_pairs`, of logits (Q, C) that each are a class of their own, sorted."""
    scores, pairs = torch.topk(classes.sigmoid().reshape(1, -1), min(count, classes.numel()), dim=1)
    return scores[0], pairs[0] % classes.shape[1], pairs[0] // classes.shape[1]


def _panoptic_map(
    processor: Any,
    name: str,
    classes: torch.Tensor,
    masks: torch.Tensor,
    size: Size,
    *,
    threshold: float,
    mask_threshold: float,
    overlap_mask_area_threshold: float,
    fuse: frozenset[int],
) -> dict[str, Any]:
    scores, labels = classes.softmax(dim=-1).max(dim=-1)
    keep = ((labels != classes.shape[1] - 1) & (scores > threshold)).nonzero()[:, 0]
    queries, count = keep.tolist(), len(masks)
    logits = _cut_logits(processor, name, masks, size)
    if name == "Eomt":

        def probabilities(index: int) -> torch.Tensor:
            return _sigmoid(logits(queries[index]), index, len(queries))

    else:
        probabilities = _resized(
            lambda index: _sigmoid(logits(queries[index]), queries[index], count),
            len(queries),
            size,
            antialias=name == "OneFormer",
        )
    return _competition(
        name,
        scores[keep],
        labels[keep].tolist(),
        probabilities,
        size,
        mask_threshold,
        overlap_mask_area_threshold,
        fuse,
    )


def _competition(
    name: str,
    scores: torch.Tensor,
    labels: list[int],
    masks: MaskOf,
    size: Size,
    mask_threshold: float,
    overlap: float,
    fuse: frozenset[int],
) -> dict[str, Any]:
    """Each pixel goes to the query with the largest score x mask; a query that wins too little of its own gets none.

    Args:
        scores: (K,).
        labels: of the K queries.
        masks: (H, W) of query 0 to K - 1.
    """
    eomt = name == "Eomt"
    first = 0 if eomt else 1
    if not labels:
        return {"segmentation": np.full(size, -1, np.int32), "segments_info": []}
    own_areas = []
    limit = torch.tensor(mask_threshold, dtype=scores.dtype).item()

    def planes() -> Iterator[tuple[np.ndarray, Any]]:
        for index, score in enumerate(scores):
            mask = masks(index)
            weighted = (mask * score).float().numpy()
            inside = (mask.float().numpy() if eomt else weighted) >= limit
            own_areas.append(np.count_nonzero(inside))
            yield weighted, inside + np.uint16(2 * index) if eomt else np.uint16(2 * index)

    codes = _winners(planes())
    # Per query: won pixels outside and, for EoMT, inside its own mask.
    areas = np.bincount(codes.ravel(), minlength=2 * len(labels)).reshape(-1, 2)
    ids = np.full((len(labels), 2), first - 1, np.int32)
    segments: list[dict[str, Any]] = []
    fused: dict[int, int] = {}
    for index, (label, own) in enumerate(zip(labels, own_areas, strict=True)):
        area = areas[index].sum()
        if not area or not own or (eomt and not areas[index, 1]):
            continue
        if not float(np.float32(area) / np.float32(own)) > overlap:
            continue
        given = slice(1, 2) if eomt else slice(0, 2)
        if label in fused:
            ids[index, given] = fused[label]
            continue
        ids[index, given] = number = len(segments) + first
        if label in fuse:
            fused[label] = number
        was_fused = {} if eomt else {"was_fused": label in fuse}
        segments.append({"id": number, "label_id": label, **was_fused, "score": round(scores[index].item(), 6)})
    return {"segmentation": ids.take(codes), "segments_info": segments}


def _overlapping(
    processor: Any, name: str, classes: torch.Tensor, masks: torch.Tensor, size: Size, top: int
) -> Iterator[tuple[float, int, np.ndarray]]:
    """Score, label and mask (H, W) of the best instances of an image."""
    if name in ("Detr", "RfDetr"):
        scores, labels, queries = _best_classes(classes) if name == "Detr" else _sigmoid_pairs(classes, top)
        best = range(len(scores)) if name == "RfDetr" else scores.topk(min(top, len(scores)))[1].tolist()
        for index in best:
            mask = (_bilinear(masks[queries[index]][None].float(), size)[0] > 0).numpy()
            if mask.any():
                yield scores[index].item(), int(labels[index]), mask
        return
    rows = columns = None
    for score, label, mask in _scored(_pairs(classes, top), _few(processor, name, masks, size), 0.0):
        if mask.shape != size:
            if rows is None:
                rows, columns = _nearest(mask.shape[0], size[0]), _nearest(mask.shape[1], size[1])
            # Whole rows are copied faster than their parts are picked.
            mask = cv2.transpose(mask.take(rows, axis=0).view(np.uint8)).take(columns, axis=0).T.view(bool)
        if mask.any():
            yield score, label, mask


def _overlapping_of_unknown(
    outputs: Any, processor: Any, sizes: list[Size], top: int
) -> Iterator[Iterator[tuple[float, int, np.ndarray]]]:
    """The same from the processor's own function: its overlapping masks, if it has them, or its map's segments."""
    function = processor.post_process_instance_segmentation
    more = {"return_binary_maps": True} if "return_binary_maps" in inspect.signature(function).parameters else {}
    for found in function(outputs, threshold=0.0, target_sizes=sizes, **more):
        segmentation, segments = found["segmentation"].cpu().numpy(), found["segments_info"]
        best = sorted(range(len(segments)), key=lambda index: -segments[index]["score"])[:top]
        yield (
            (
                segments[index]["score"],
                segments[index]["label_id"],
                segmentation[index] > 0 if more else segmentation == segments[index]["id"],
            )
            for index in best
        )
