"""Neighborhood attention of DiNAT-mini's first stage: cv_hf against dense masked attention, and NATTEN where it is."""

from __future__ import annotations

import gc
import importlib.util
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from cv_hf.models.neighborhood import neighborhood_attention

SIZE, KERNEL = 32, 7
# Edge of the map in pixels, images, heads, runs. One head of one image of 112 x 112 has 0.6 GB of dense scores.
CASES = [(56, 8, 2, 5), (112, 1, 1, 3)]


def neighborhood(folder: Path) -> list[dict[str, Any]]:
    """One row per map, dilation and pass: median CPU milliseconds on one thread, the implementations alternating.

    Dense attention is PyTorch's own, scaled_dot_product_attention, with the mask made beforehand, and for the forward
    pass alone the bias as well. NATTEN on a CPU computes dense masked scores by flex_attention, without a bias, and has
    no backward pass.

    Raises:
        RuntimeError: they do not give the same.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    rows = []
    for edge, batch, heads, runs in CASES:
        for dilation in (1, 8):
            shape = {"map": f"{edge} x {edge}", "images": batch, "heads": heads, "dilation": dilation}
            generator = torch.Generator().manual_seed(0)
            maps = [torch.randn(batch, edge, edge, heads, SIZE, generator=generator) for _ in range(3)]
            bias = torch.randn(heads, 2 * KERNEL - 1, 2 * KERNEL - 1, generator=generator)
            axis = _axis(edge, dilation)
            fixed = _dense_bias(bias, axis)
            forward = {
                "cv_hf": partial(neighborhood_attention, *maps, bias, dilation),
                "dense": partial(_dense, *maps, fixed),
            }
            _check(forward)
            if importlib.util.find_spec("natten"):
                from natten import na2d

                forward["NATTEN"] = partial(na2d, *maps, kernel_size=KERNEL, dilation=dilation, backend="flex-fna")
            rows.append({**shape, "pass": "forward", **_measured(forward, runs)})
            del forward, fixed

            leaves = [tensor.requires_grad_() for tensor in (*maps, bias)]
            both = {
                "cv_hf": partial(_train, partial(neighborhood_attention, *leaves, dilation), leaves),
                "dense": partial(
                    _train, lambda maps=maps, bias=bias, axis=axis: _dense(*maps, _dense_bias(bias, axis)), leaves
                ),
            }
            rows.append({**shape, "pass": "forward and backward", **_measured(both, runs)})
    torch.set_num_threads(threads)
    return rows


def _measured(functions: dict[str, Callable[[], Any]], runs: int) -> dict[str, str]:
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for run in range(runs + 1):
        for name, function in functions.items():
            gc.collect()
            start = time.process_time()
            function()
            # The first run fills caches.
            if run:
                seconds[name].append(time.process_time() - start)
    row = {}
    for name in ("cv_hf", "dense", "NATTEN"):
        row[f"{name}, ms"] = f"{1000 * statistics.median(seconds[name]):.0f}" if name in seconds else "-"
    for name in ("dense", "NATTEN"):
        ratios = [slow / fast for slow, fast in zip(seconds.get(name, []), seconds["cv_hf"], strict=False)]
        spread = f"{statistics.median(ratios):.1f} ({min(ratios):.1f}-{max(ratios):.1f})" if ratios else "-"
        row[f"times as fast as {name}"] = spread
    return row


def _train(forward: Callable[[], Tensor], leaves: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return torch.autograd.grad(forward().sum(), leaves)


def _check(functions: dict[str, Callable[[], Tensor]]) -> None:
    ours, theirs = (functions[name]() for name in ("cv_hf", "dense"))
    if not torch.allclose(ours, theirs, atol=1e-4):
        raise RuntimeError(f"different by {(ours - theirs).abs().max().item():.2g}")


def _dense(query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
    query, key, value = (tensor.flatten(1, 2).transpose(1, 2) for tensor in (query, key, value))
    out = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
    return out.transpose(1, 2).unflatten(1, (int(out.shape[2] ** 0.5), -1))


def _axis(length: int, dilation: int) -> Tensor:
    """1 where key k is at offset o of query q's bias and in its window: (q, k, o)."""
    place = torch.arange(length)
    same = place[:, None] % dilation == place[None] % dilation
    start = (place // dilation - KERNEL // 2).clamp(min=0)
    start = torch.minimum(start, (length - place % dilation + dilation - 1) // dilation - KERNEL)[:, None]
    inside = same & (place // dilation >= start) & (place // dilation < start + KERNEL)
    offset = place // dilation - (place // dilation)[:, None] + KERNEL - 1
    return ((offset[..., None] == torch.arange(2 * KERNEL - 1)) & inside[..., None]).float()


def _dense_bias(bias: Tensor, axis: Tensor) -> Tensor:
    """Bias and mask of all pairs of pixels of a square map: (heads, pixels, pixels)."""
    seen = axis.any(-1)
    seen = (seen[:, None, :, None] & seen[None, :, None, :]).flatten(2).flatten(0, 1)
    pairs = torch.einsum("hij,yui,xvj->hyxuv", bias, axis, axis).flatten(3).flatten(1, 2)
    return pairs.masked_fill(~seen, -torch.inf)
