"""Neighborhood attention in plain PyTorch, and its installation into Transformers' DiNAT.

Each query attends to the `kernel_size` x `kernel_size` keys around it (arXiv 2204.07143), with dilation to those of
every `dilation`-th row and column (arXiv 2209.15001). At a border the window shifts inwards and keeps its size:
nothing is padded. To each score is added the learnt bias of its relative position,
`bias[head, key row - query row + kernel_size - 1, key column - query column + kernel_size - 1]`, in units of dilation.

How it is computed. The pixels of one dilation residue form a map of their own, and neighbouring queries share most of
their keys. So each map is cut into blocks of about 8 x 8 queries; a block reads the (8 + kernel_size - 1) squared keys
that its windows cover, and masks those that a query does not see. That is two matrix products a block, on a multiple
of the keys that does not grow with the map. Blocks are taken a chunk at a time and the backward pass computes the
attention weights anew, so that memory is that of queries, keys, values and output, and of one chunk.

Chosen by measurement on one thread of a CPU (56 x 56, batch 8, 2 heads of 32, kernel size 7; milliseconds of forward
and backward pass at dilation 1 and 8): this takes 200 and 70. With all blocks in one chunk, so that scores leave the
cache, it is 350 and 100; the same blocks through scaled_dot_product_attention, 255 and 77, but autograd keeps all the
scores, as only its unfused form has a gradient for the bias; a loop over the 49 offsets, 730 and 770; unfolded keys and
values, 1870 and 1660; dense masked attention, 3200. flex_attention has no backward pass on a CPU, and with
torch.compile it needs a C++ compiler wherever the model is loaded.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import transformers.utils
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers.modeling_layers import GradientCheckpointingLayer

_BLOCK = 8
# Scores computed at once: what a cache holds, or a sixteenth where a map has more, so that a GPU is not kept waiting.
_CHUNK, _CHUNKS = 2**20, 16


def uses_dinat(config: Mapping[str, Any]) -> bool:
    """Whether a model is a DiNAT or has one as its backbone, by its configuration as config.json holds it."""
    return "dinat" in (config.get("model_type"), (config.get("backbone_config") or {}).get("model_type"))


def enable_dinat() -> None:
    """Make Transformers' DiNAT work, with or without NATTEN installed. Calling it again does nothing.

    cv_hf calls it where it loads models. Other code calls it once before it loads a DiNAT, for instance through
    `pipeline()`; checkpoints are plain ones. It mends in `transformers.models.dinat.modeling_dinat`:

    - the import of functions that NATTEN has dropped in 0.20, and the demand that NATTEN be installed;
    - the attention, whose `.view(batch, height, width, heads, size).transpose(1, 2)` swaps height and width where
      heads were meant to come forward;
    - gradient checkpointing, which it lacks.
    """
    utils = transformers.utils
    is_natten_available = utils.is_natten_available
    utils.is_natten_available = lambda: False
    try:
        dinat = importlib.import_module("transformers.models.dinat.modeling_dinat")
    finally:
        utils.is_natten_available = is_natten_available
    if dinat.NeighborhoodAttention.forward is _forward:
        return
    dinat.NeighborhoodAttention.forward = _forward
    dinat.requires_backends = lambda model, backends: None
    dinat.DinatLayer = type(
        "DinatLayer", (GradientCheckpointingLayer, dinat.DinatLayer), {"__module__": dinat.__name__}
    )
    dinat.DinatPreTrainedModel.supports_gradient_checkpointing = True


def neighborhood_attention(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor, dilation: int = 1, dropout: float = 0.0
) -> Tensor:
    """Attend to the neighbourhood of each pixel; scores are scaled by 1 / sqrt(head_size).

    Args:
        query, key, value: (batch, height, width, heads, head_size), of one floating type.
        bias: (heads, 2 * kernel_size - 1, 2 * kernel_size - 1), with an odd kernel_size.
        dilation: step between neighbours, in pixels.
        dropout: probability of dropping an attention weight.

    Returns:
        (batch, height, width, heads, head_size), of the queries' type; differentiable once.

    Raises:
        ValueError: kernel_size is even, or kernel_size * dilation exceeds height or width.
    """
    _check(query, bias, dilation)
    return _Attention.apply(query, key, value, bias, dilation, dropout)


def neighborhood_weights(query: Tensor, key: Tensor, bias: Tensor, dilation: int = 1) -> Tensor:
    """The weights of `neighborhood_attention`, to look at: (batch, heads, height, width, kernel_size ** 2).

    The neighbours of a pixel are in row-major order. Arguments and errors are those of `neighborhood_attention`.
    """
    kernel = _check(query, bias, dilation)
    query = query * query.shape[-1] ** -0.5
    (rows, down), (columns, across) = (
        _neighbors(length, kernel, dilation, query.device) for length in query.shape[1:3]
    )
    scores = []
    for row, y in zip(rows.T, down.T, strict=True):
        keys = key[:, row]
        for column, x in zip(columns.T, across.T, strict=True):
            products = (query * keys[:, :, column]).sum(-1).permute(0, 3, 1, 2)
            scores.append(products + bias[:, y[:, None], x[None, :]])
    return torch.stack(scores, dim=-1).softmax(-1)


def _forward(self: nn.Module, hidden_states: Tensor, output_attentions: bool | None = False) -> tuple[Tensor, ...]:
    """`NeighborhoodAttention.forward`: (batch, height, width, channels) to the same, and weights where asked for."""
    query, key, value = (
        layer(hidden_states).unflatten(-1, (self.num_attention_heads, self.attention_head_size))
        for layer in (self.query, self.key, self.value)
    )
    dropout = self.dropout.p if self.dropout.training else 0.0
    context = neighborhood_attention(query, key, value, self.rpb, self.dilation, dropout).flatten(-2)
    return (context, neighborhood_weights(query, key, self.rpb, self.dilation)) if output_attentions else (context,)


def _check(query: Tensor, bias: Tensor, dilation: int) -> int:
    """The kernel size, or ValueError."""
    kernel, (height, width) = (bias.shape[-1] + 1) // 2, query.shape[1:3]
    if kernel % 2 == 0:
        raise ValueError(f"kernel_size {kernel} is even: a window has a middle.")
    if kernel * dilation > min(height, width):
        raise ValueError(f"kernel_size {kernel} x dilation {dilation} does not fit into a map of {height} x {width}.")
    return kernel


class _Attention(torch.autograd.Function):
    """Inside, maps are tables of (batch * heads, height * width + 1, head_size).

    The last row is nobody's: queries that fill up the last block of an axis read zeros from it and write into it.
    Scores are float32 at least; products of matrices have the type of the queries. Autocast is off, as both are chosen.
    """

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, bias: Tensor, dilation: int, dropout: float
    ) -> Tensor:
        with torch.autocast(query.device.type, enabled=False):
            q, k, v = _table(query * query.shape[-1] ** -0.5), _table(key), _table(value)
            out, kept = torch.zeros_like(q), []
            for queries, keys, biases, *_ in _chunks(query.shape, bias, dilation):
                weights = _weights(_take(q, queries), _take(k, keys), biases)
                if dropout:
                    kept.append(torch.rand_like(weights) >= dropout)
                    weights = weights * kept[-1] / (1 - dropout)
                out[:, queries.flatten()] = (weights.to(v.dtype) @ _take(v, keys)).flatten(1, 2)
        ctx.save_for_backward(q, k, v, out, bias, *kept)
        ctx.shape, ctx.dilation, ctx.dropout = query.shape, dilation, dropout
        return _map(out, query.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, bias, *kept = ctx.saved_tensors
        with torch.autocast(grad.device.type, enabled=False):
            grad = _table(grad)
            # Of softmax: the sum of weight times gradient over a query's keys, which is also that over its channels.
            inner = (grad * out).to(_score_type(bias)).sum(-1, keepdim=True)
            of_q, of_k, of_v = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
            of_bias = torch.zeros_like(bias, dtype=_score_type(bias))
            for number, (queries, keys, biases, down, across) in enumerate(_chunks(ctx.shape, bias, ctx.dilation)):
                query, key, out_grad = _take(q, queries), _take(k, keys), _take(grad, queries)
                weights = _weights(query, key, biases)
                scores_grad = (out_grad @ _take(v, keys).mT).to(weights.dtype)
                dropped = weights
                if ctx.dropout:
                    dropped = weights * kept[number] / (1 - ctx.dropout)
                    scores_grad = scores_grad * kept[number] / (1 - ctx.dropout)
                scores_grad = (scores_grad - _take(inner, queries)).mul_(weights)
                of_v.index_add_(1, keys.flatten(), (dropped.to(v.dtype).mT @ out_grad).flatten(1, 2))
                sums = scores_grad.unflatten(0, (-1, len(bias))).sum(0)
                sums = sums.unflatten(3, (down.shape[2], -1)).unflatten(2, (down.shape[1], -1))
                sums = torch.einsum("hnyxuv,nxvj->hnyuj", sums, across)
                of_bias += torch.einsum("hnyuj,nyui->hij", sums, down)
                scores_grad = scores_grad.to(q.dtype)
                of_q[:, queries.flatten()] = (scores_grad @ key).flatten(1, 2)
                of_k.index_add_(1, keys.flatten(), (scores_grad.mT @ query).flatten(1, 2))
        grads = (_map(of_q * q.shape[-1] ** -0.5, ctx.shape), _map(of_k, ctx.shape), _map(of_v, ctx.shape))
        return *grads, of_bias.to(bias.dtype), None, None


def _chunks(shape: torch.Size, bias: Tensor, dilation: int) -> Iterator[tuple[Tensor, ...]]:
    """Yield blocks, a chunk at a time.

    Yields:
        rows of their queries (blocks, queries) and keys (blocks, keys) in a table; the bias between them, -inf where a
        query does not see a key (heads, blocks, queries, keys); and which row and which column of `bias` that is, as
        ones among zeros, (blocks, query rows, key rows, 2 * kernel_size - 1) and the same of columns.
    """
    batch, height, width, heads, _ = shape
    kernel = (bias.shape[-1] + 1) // 2
    (query_rows, key_rows, down), (query_columns, key_columns, across) = (
        _blocks(length, kernel, dilation, bias.device) for length in (height, width)
    )
    blocks = len(query_rows) * len(query_columns)
    scores = batch * heads * query_rows[0].numel() * query_columns[0].numel() * key_rows[0].numel()
    scores *= key_columns[0].numel()
    step = max(_CHUNK, scores * blocks // _CHUNKS) // scores
    for chunk in torch.arange(blocks, device=bias.device).split(max(1, step)):
        y, x = chunk // len(query_columns), chunk % len(query_columns)
        rows, columns = query_rows[y][:, :, None], query_columns[x][:, None, :]
        queries = torch.where((rows < height) & (columns < width), rows * width + columns, height * width)
        keys = key_rows[y][:, :, None] * width + key_columns[x][:, None, :]
        seen = down[y].any(-1)[:, :, None, :, None] & across[x].any(-1)[:, None, :, None, :]
        vertical, horizontal = down[y].to(_score_type(bias)), across[x].to(_score_type(bias))
        biases = torch.einsum("hij,nyui->hnyuj", bias.to(vertical.dtype), vertical)
        biases = torch.einsum("hnyuj,nxvj->hnyxuv", biases, horizontal)
        biases = biases.masked_fill(~seen, -torch.inf).flatten(4).flatten(2, 3)
        yield queries.flatten(1), keys.flatten(1), biases, vertical, horizontal


def _blocks(length: int, kernel: int, dilation: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Cut an axis into blocks of neighbouring queries, those of each dilation residue apart.

    Returns:
        positions of their queries (blocks, queries), `length` for those that only fill up; of the keys that these see
        (blocks, keys); and whether key k is at offset o of query q's bias and in its window, (blocks, q, k, o).
    """
    residues = torch.arange(dilation, device=device)[:, None, None]
    lengths = (length - residues + dilation - 1) // dilation
    longest = -(-length // dilation)
    blocks = -(-longest // _BLOCK)
    size = -(-longest // blocks)
    reach = min(longest, size + kernel - 1)
    starts = size * torch.arange(blocks, device=device)[:, None]
    places = starts + torch.arange(size, device=device)
    queries = torch.minimum(places, lengths - 1)
    keys = torch.minimum((starts - kernel // 2).clamp(min=0), (lengths - reach).clamp(min=0))
    keys = keys + torch.arange(reach, device=device)
    windows = _windows(queries, lengths, kernel)[..., None]
    seen = (keys[..., None, :] >= windows) & (keys[..., None, :] < windows + kernel)
    offsets = keys[..., None, :] - queries[..., None] + kernel - 1
    at = (offsets[..., None] == torch.arange(2 * kernel - 1, device=device)) & seen[..., None]
    positions = torch.where(places < lengths, queries * dilation + residues, length)
    keys = torch.minimum(keys, lengths - 1) * dilation + residues
    return positions.flatten(0, 1), keys.flatten(0, 1), at.flatten(0, 1)


def _neighbors(length: int, kernel: int, dilation: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The positions that each position of an axis sees, and their places in the bias: (length, kernel_size) each."""
    residues = torch.arange(length, device=device) % dilation
    places = torch.arange(length, device=device) // dilation
    starts = _windows(places, (length - residues + dilation - 1) // dilation, kernel)
    seen = starts[:, None] + torch.arange(kernel, device=device)
    return seen * dilation + residues[:, None], seen - places[:, None] + kernel - 1


def _windows(places: Tensor, lengths: Tensor, kernel: int) -> Tensor:
    """Where the windows of places on axes of these lengths start: centred, but for the borders."""
    return torch.minimum((places - kernel // 2).clamp(min=0), lengths - kernel)


def _score_type(bias: Tensor) -> torch.dtype:
    return torch.promote_types(bias.dtype, torch.float32)


def _weights(query: Tensor, key: Tensor, biases: Tensor) -> Tensor:
    scores = (query @ key.mT).to(biases.dtype)
    scores.unflatten(0, (-1, len(biases))).add_(biases)
    return scores.softmax(-1)


def _take(table: Tensor, rows: Tensor) -> Tensor:
    return table.index_select(1, rows.flatten()).unflatten(1, rows.shape)


def _table(maps: Tensor) -> Tensor:
    batch, height, width, heads, size = maps.shape
    table = maps.new_zeros(batch * heads, height * width + 1, size)
    table[:, :-1].view(batch, heads, height, width, size).copy_(maps.permute(0, 3, 1, 2, 4))
    return table


def _map(table: Tensor, shape: torch.Size) -> Tensor:
    batch, height, width, heads, size = shape
    return table[:, :-1].view(batch, heads, height, width, size).permute(0, 2, 3, 1, 4)
