"""Post-processing of segmentation models: cv_hf against Transformers' image processors, fed the same outputs."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import transformers

from cv_hf.models.segments import PIPELINE_ARGUMENTS, instance_segments, panoptic_segments, semantic_maps

# Input of 384 x 384, whose masks have a quarter of it; the image has 480 x 640.
QUERIES, OBJECTS, CLASSES, MASK, SIZE = 100, 12, 20, 96, (480, 640)
LOW = {"threshold": 0.05, "mask_threshold": 0.5, "overlap_mask_area_threshold": 0.5}
RUNS = 9


def segments(folder: Path) -> list[dict[str, Any]]:
    """One row per family and task: median milliseconds an image, the two alternating on one thread.

    Raises:
        RuntimeError: the two do not give the same segments.
    """
    (folder / "classes.json").write_text(json.dumps({"0": {"name": "thing", "isthing": 1}}))
    one_former = transformers.OneFormerImageProcessor(repo_path=str(folder), class_info_file="classes.json")
    universal, detr = ("class_queries_logits", "masks_queries_logits"), ("logits", "pred_masks")
    families = {
        "Mask2Former": (transformers.Mask2FormerImageProcessor(), universal),
        "MaskFormer": (transformers.MaskFormerImageProcessor(), universal),
        "OneFormer": (one_former, universal),
        "EoMT": (transformers.EomtImageProcessor(size={"shortest_edge": 384, "longest_edge": 384}), universal),
        "DETR": (transformers.DetrImageProcessor(), detr),
        "RF-DETR": (transformers.RfDetrImageProcessor(), detr),
    }
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    rows = []
    for family, (processor, fields) in families.items():
        outputs = _outputs(fields, no_object=family != "RF-DETR")
        for task, ours in (("instance", instance_segments), ("panoptic", panoptic_segments)):
            method = getattr(processor, f"post_process_{task}_segmentation", None)
            for arguments in (PIPELINE_ARGUMENTS, LOW) if method else ():
                there = arguments if (family, task) != ("EoMT", "instance") else {"threshold": arguments["threshold"]}
                rows.append(
                    _row(
                        f"{family} {task}, threshold {arguments['threshold']}",
                        partial(ours, outputs, processor, [SIZE], arguments),
                        partial(method, outputs, target_sizes=[SIZE], **there),
                    )
                )
        if hasattr(processor, "post_process_semantic_segmentation"):
            rows.append(_semantic_row(family, outputs, processor))
    # As SegFormer's and DPT's are.
    logits = torch.randn(1, 150, 128, 128, generator=torch.Generator().manual_seed(0))
    logits = logits.contiguous(memory_format=torch.channels_last)
    segformer = transformers.SegformerImageProcessor()
    rows.append(_semantic_row("SegFormer, 150 classes,", SimpleNamespace(logits=logits), segformer))
    torch.set_num_threads(threads)
    return rows


def _semantic_row(name: str, outputs: Any, processor: Any) -> dict[str, Any]:
    return _row(
        f"{name} semantic",
        lambda: [{"segmentation": semantic_maps(outputs, processor, [SIZE])[0]}],
        lambda: [{"segmentation": processor.post_process_semantic_segmentation(outputs, [SIZE])[0]}],
    )


def _row(name: str, ours: Callable[[], list], theirs: Callable[[], list]) -> dict[str, Any]:
    times: list[tuple[float, float]] = []
    for _ in range(RUNS):
        start = time.perf_counter()
        (our,) = ours()
        middle = time.perf_counter()
        (their,) = theirs()
        times.append((middle - start, time.perf_counter() - middle))
    same = np.array_equal(our["segmentation"], their["segmentation"].numpy())
    if not same or our.get("segments_info") != their.get("segments_info"):
        raise RuntimeError(f"{name}: different segments")
    ratios = [slow / fast for fast, slow in times]
    return {
        "post-processing": name,
        "segments": len(our["segments_info"]) if "segments_info" in our else "",
        "cv_hf ms": f"{1000 * statistics.median(fast for fast, _ in times):.1f}",
        "Transformers ms": f"{1000 * statistics.median(slow for _, slow in times):.1f}",
        "times as fast": f"{statistics.median(ratios):.1f} ({min(ratios):.1f}-{max(ratios):.1f})",
    }


def _outputs(fields: tuple[str, str], no_object: bool) -> SimpleNamespace:
    """As a trained model's: some queries are sure of a disc and its class, the others see bits of them."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, QUERIES, CLASSES + no_object, generator=generator) - (0 if no_object else 6)
    logits[:, OBJECTS:, -1] += 6 if no_object else 0
    sure = torch.arange(OBJECTS)
    logits[0, sure, sure % CLASSES] += 9
    y, x = torch.meshgrid(torch.linspace(0, 1, MASK), torch.linspace(0, 1, MASK), indexing="ij")
    center = torch.rand(QUERIES, 2, generator=generator)[:, :, None, None]
    radius = 0.05 + 0.15 * torch.rand(QUERIES, generator=generator)[:, None, None]
    masks = 80 * (radius - ((y - center[:, 0]) ** 2 + (x - center[:, 1]) ** 2).sqrt())
    masks += torch.randn(masks.shape, generator=generator)
    return SimpleNamespace(**{fields[0]: logits, fields[1]: masks[None]}, patch_offsets=None)
