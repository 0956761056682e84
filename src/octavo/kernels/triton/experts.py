"""A mixture of experts as grouped products: every expert's tokens are gathered into tiles, all experts in one launch.

The grid must not hang on how many tokens an expert gets, which only the device knows (and a graph fixes it). There are
at most ``choices / TOKENS + experts`` tiles, as each expert leaves one of its own partly empty; a program finds the
expert of its tile from the counts, and those beyond the last tile end at once.

Two launches: x to ``silu(gate) * up`` for each choice, then that to the expert's result, times its weight. A third one
adds a token's results up in float32, in the order in which its experts were chosen.

Floor for few tokens: the bytes of the experts that are asked for. Tiles are 16 rows then, the least that the tensor
cores take, and narrow, so that there are programs for all multiprocessors. For many tokens it is the operations, and
the tiles are those of a usual product; quantized weights are then unpacked once, beforehand.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from octavo.kernels.packed import Operand, PackedWeight
from octavo.kernels.triton import quantized_expand, quantized_experts
from octavo.kernels.triton.quantized_experts import ExpertWords
from octavo.kernels.triton.quantized_words import stages_that_fit
from octavo.kernels.triton.routing import assign, find_tile

MAX_TOKENS = 8192
"""Computed at once: each choice takes two rows of memory."""
SUM_BLOCK = 1024


class Tile(NamedTuple):
    """How a product is cut: choices and outputs of a program, inputs that it takes at once, its warps, its stages."""

    tokens: int
    outputs: int
    depth: int
    num_warps: int
    num_stages: int


FEW, SOME, MANY = Tile(16, 32, 128, 4, 4), Tile(64, 64, 64, 4, 3), Tile(128, 128, 64, 8, 3)
FEW_FLOAT32, MANY_FLOAT32 = Tile(16, 32, 32, 4, 4), Tile(64, 32, 32, 4, 3)
"""The best of ``benchmarks/kernels/experts.py`` on an H100 in 16 bits, for 8 large and for 128 small experts."""


def choose(choices: int, experts: int, dtype: torch.dtype) -> Tile:
    """The tile for so many choices. Experts differ in how many they get: high tiles pay long before the average expert
    fills one.
    """
    few, many = choices <= 8 * experts, choices > 32 * experts
    if dtype == torch.float32:
        return FEW_FLOAT32 if few else MANY_FLOAT32
    return FEW if few else MANY if many else SOME


def stages(tile: Tile, itemsize: int, matrices: int, device: torch.device) -> int:
    """How many of the tile's steps are under way at once: fewer than it says where the GPU has not the memory."""
    step = (tile.tokens + matrices * tile.outputs) * tile.depth * itemsize
    return stages_that_fit(device, tile.num_stages, step)


def experts(
    x: Tensor, gate_up: Operand, down: Operand, weights: Tensor, ids: Tensor, cut_for: int | None = None
) -> Tensor:
    """As ``Ops.experts``. ``cut_for``: products are cut as for so many choices, however many there are. A token's bits
    are the same for the same cut only.
    """
    parts = zip(x.split(MAX_TOKENS), weights.split(MAX_TOKENS), ids.split(MAX_TOKENS), strict=True)
    done = [_experts(rows, gate_up, down, p, chosen, cut_for) for rows, p, chosen in parts]
    return done[0] if len(done) == 1 else torch.cat(done)


def _experts(x: Tensor, gate_up: Operand, down: Operand, weights: Tensor, ids: Tensor, cut_for: int | None) -> Tensor:
    (tokens, hidden), k = x.shape, ids.shape[1]
    if not tokens:
        return torch.empty_like(x)
    count, size = down.shape[0] // hidden, down.shape[1]
    choices = cut_for or tokens * k
    counts, lists = assign(ids, count)
    inner = torch.empty(tokens * k, size, dtype=x.dtype, device=x.device)
    _product(x.contiguous(), gate_up, None, inner, counts, lists, k, choices)
    results = torch.empty(tokens * k, hidden, dtype=x.dtype, device=x.device)
    _product(inner, down, weights.contiguous(), results, counts, lists, 1, choices)
    out = torch.empty(tokens, hidden, dtype=x.dtype, device=x.device)
    _sum[tokens, triton.cdiv(hidden, SUM_BLOCK)](results, out, H=hidden, K=k, BLOCK=SUM_BLOCK, num_warps=4)
    return out


def _product(
    x: Tensor,
    weight: Operand,
    scales: Tensor | None,
    out: Tensor,
    counts: Tensor,
    lists: Tensor,
    share: int,
    choices: int,
) -> None:
    """``out[choice] = weight of its expert @ x[choice // share]``, gated if there are no ``scales``; cut as for so many
    ``choices``.
    """
    if isinstance(weight, ExpertWords):
        if not quantized_experts.pays_to_expand(weight, choices, len(counts)):
            quantized_experts.product(x, weight, scales, out, counts, lists, share, choices)
            return
        weight = quantized_expand.expand(weight.words, x.dtype)
    if isinstance(weight, PackedWeight):
        raise TypeError(f"{type(weight).__name__} has not been through pack_experts")
    plain_product(x, weight, scales, out, counts, lists, share, choose(choices, len(counts), x.dtype))


def plain_product(
    x: Tensor,
    weight: Tensor,
    scales: Tensor | None,
    out: Tensor,
    counts: Tensor,
    lists: Tensor,
    share: int,
    tile: Tile,
) -> None:
    """``out[choice] = weight of its expert @ x[choice // share]``, gated if there are no ``scales`` to multiply with.

    Args:
        x: ``[choices / share, K]``, contiguous, in the weight's dtype.
        weight: ``[E * N, K]``, twice as many rows if gated.
        scales: float32, a number for each choice; or None.
        out: ``[choices, N]``.
        counts, lists: of `octavo.kernels.triton.routing.assign`.
    """
    count, n, inputs = len(counts), out.shape[1], x.shape[1]
    num_tiles = len(out) // tile.tokens + min(count, len(out))
    sizes = {"E": count, "N": n, "K": inputs, "SHARE": share, "GATED": scales is None}
    blocks = {"TOKENS": tile.tokens, "OUTPUTS": tile.outputs, "DEPTH": tile.depth}
    num_stages = stages(tile, x.element_size(), 2 if scales is None else 1, x.device)
    options = {"E_BLOCK": triton.next_power_of_2(count), "num_warps": tile.num_warps, "num_stages": num_stages}
    grid = (triton.cdiv(n, tile.outputs), num_tiles)
    _grouped[grid](x, weight.contiguous(), scales, out, counts, lists, lists.shape[1], **sizes, **blocks, **options)


@triton.jit(do_not_specialize=["num_tokens"])
def _grouped(
    x: tl.tensor,
    weight: tl.tensor,
    scales: tl.tensor,
    out: tl.tensor,
    counts: tl.tensor,
    lists: tl.tensor,
    num_tokens: int,
    E: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
    SHARE: tl.constexpr,
    GATED: tl.constexpr,
    TOKENS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    DEPTH: tl.constexpr,
    E_BLOCK: tl.constexpr,
) -> None:
    expert, first, count = find_tile(counts, tl.program_id(1), E, E_BLOCK, TOKENS)
    if expert >= E:
        return
    place = first + tl.arange(0, TOKENS)
    real = place < count
    choice = tl.load(lists + expert.to(tl.int64) * num_tokens + place, mask=real, other=0).to(tl.int64)
    output = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    column = tl.arange(0, DEPTH)
    # Outputs beyond the last compute the last one again, and are not stored.
    row = tl.minimum(output, N - 1).to(tl.int64) + expert.to(tl.int64) * (2 * N if GATED else N)
    source = weight + row[:, None] * K + column[None, :]
    rows = x + (choice // SHARE)[:, None] * K + column[None, :]
    acc = tl.zeros([TOKENS, OUTPUTS], tl.float32)
    up = tl.zeros([TOKENS, OUTPUTS], tl.float32)
    for start in range(0, K, DEPTH):
        here = (column < K - start)[None, :]
        a = tl.load(rows + start, mask=real[:, None] & here, other=0.0)
        acc = tl.dot(a, tl.trans(tl.load(source + start, mask=here, other=0.0)), acc, input_precision="ieee")
        if GATED:
            b = tl.load(source + N * K + start, mask=here, other=0.0)
            up = tl.dot(a, tl.trans(b), up, input_precision="ieee")
    if GATED:
        acc = acc / (1.0 + tl.exp(-acc)) * up
    if scales is not None:
        acc *= tl.load(scales + choice, mask=real, other=0.0)[:, None]
    target = out + choice[:, None] * N + output[None, :]
    tl.store(target, acc.to(out.dtype.element_ty), mask=real[:, None] & (output < N)[None, :])


@triton.jit
def _sum(results: tl.tensor, out: tl.tensor, H: tl.constexpr, K: tl.constexpr, BLOCK: tl.constexpr) -> None:
    """``results [T * K, H]`` to ``out [T, H]``."""
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    for j in tl.static_range(K):
        total += tl.load(results + (token * K + j) * H + column, mask=column < H, other=0.0).to(tl.float32)
    tl.store(out + token * H + column, total.to(out.dtype.element_ty), mask=column < H)
