"""Adapters of many tokens in two launches, whichever mixture of adapters they have.

After Punica's SGMV (arXiv:2310.18547) and S-LoRA (arXiv:2311.03285): tokens of one adapter are gathered into tiles; one
kernel shrinks x to ``x @ A.T``, another expands that to ``scale * (..) @ B.T`` and adds it to y. The grid must not hang
on who has which adapter, which only the device knows (and a graph fixes it): there are at most ``T / TOKENS +
adapters`` tiles, as each adapter leaves one of its own partly empty. A program finds its tile's adapter from counts
that were made once a step; those beyond the last tile, and those whose adapter has nothing for a part, end at once.

Floor for few tokens: the bytes of the As and Bs that are asked for. A has few rows, so K is cut, too: each program of
the first kernel sums a stretch of K, and the second adds the stretches up in their order. No sum hangs on how programs
are timed, and where the cut and the tile are always the same (``deterministic``), none hangs on the rest of the batch.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from octavo.kernels.lora import LoraPlan, LoraStack
from octavo.kernels.triton.routing import assign, find_tile

DEPTH = 64
"""Columns of x that are taken at once."""
RANKS = 64
"""Rows of A that a program takes at most, and columns of B that it takes at once."""
STRETCH = 512
"""Columns of x that a program sums, where K is cut."""
MOST_CUTS = 16
MANY_TOKENS = 1024
"""From so many tokens on there are enough tiles without cutting K, and tiles are tall."""
MOST_PARTS = 3


class Cut(NamedTuple):
    """How the work is cut: tokens of a tile, outputs of a program, stretches of K, warps of a program."""

    tokens: int
    outputs: int
    stretches: int
    num_warps: int


class SortedLora(LoraPlan):
    """The step's tokens by adapter, on the device.

    Attributes:
        counts: int32 ``[S + 1]``: tokens of each number; 0 is no adapter.
        lists: int32 ``[S + 1, T]``: their places in the step.
        one_cut: cut all steps like those of few tokens.
    """

    def __init__(self, numbers: Tensor, max_loras: int, *, one_cut: bool = False) -> None:
        self.counts, self.lists = assign(numbers, max_loras + 1)
        self.one_cut = one_cut

    @property
    def num_tokens(self) -> int:
        return self.lists.shape[1]


def choose(num_tokens: int, inputs: int, *, one_cut: bool = False) -> Cut:
    """The cut for a step of so many tokens and a layer of so many inputs."""
    if num_tokens >= MANY_TOKENS and not one_cut:
        return Cut(64, 64, 1, 4)
    return Cut(16, 64, min(triton.cdiv(inputs, STRETCH), MOST_CUTS), 4)


def lora_add(y: Tensor, x: Tensor, stack: LoraStack, plan: SortedLora) -> Tensor:
    """As ``Ops.lora_add``. A layer has at most three parts."""
    (tokens, inputs), (count, _, rank), parts = x.shape, stack.b.shape, len(stack.parts)
    if not tokens:
        return y
    cut = choose(tokens, inputs, one_cut=plan.one_cut)
    x, y = x.contiguous(), y.contiguous()
    partial = torch.empty(cut.stretches, tokens, parts * rank, dtype=torch.float32, device=x.device)
    num_tiles = tokens // cut.tokens + min(count, tokens)
    shared = (stack.scales, partial, plan.counts, plan.lists, tokens)
    ranks = min(RANKS, max(16, triton.next_power_of_2(rank)))
    sizes = {"S": count, "K": inputs, "R": rank, "PARTS": parts, "STRETCHES": cut.stretches}
    blocks = {"S_BLOCK": triton.next_power_of_2(count + 1), "TOKENS": cut.tokens, "RANKS": ranks}
    grid = (parts * triton.cdiv(rank, ranks) * cut.stretches, num_tiles)
    _shrink[grid](x, stack.a, *shared, **sizes, **blocks, DEPTH=DEPTH, num_warps=cut.num_warps)
    n0, n1, n2 = (*stack.parts, 0, 0)[:MOST_PARTS]
    del sizes["K"]
    grid = (sum(triton.cdiv(n, cut.outputs) for n in stack.parts), num_tiles)
    outputs = {"N0": n0, "N1": n1, "N2": n2, "OUTPUTS": cut.outputs}
    # Two stages fit into the 99 KB of shared memory that the smallest GPUs have, whatever the rank and dtype.
    _expand[grid](y, stack.b, *shared, **sizes, **blocks, **outputs, num_warps=cut.num_warps, num_stages=2)
    return y


@triton.jit(do_not_specialize=["num_tokens"])
def _shrink(
    x: tl.tensor,
    a: tl.tensor,
    scales: tl.tensor,
    partial: tl.tensor,
    counts: tl.tensor,
    lists: tl.tensor,
    num_tokens: int,
    S: tl.constexpr,
    K: tl.constexpr,
    R: tl.constexpr,
    PARTS: tl.constexpr,
    STRETCHES: tl.constexpr,
    S_BLOCK: tl.constexpr,
    TOKENS: tl.constexpr,
    RANKS: tl.constexpr,
    DEPTH: tl.constexpr,
) -> None:
    """``partial[stretch, token, part * R + rank]``: one stretch of K of ``x @ A.T``."""
    index, first, count = find_tile(counts + 1, tl.program_id(1), S, S_BLOCK, TOKENS)  # number 0 is no adapter
    number = index + 1
    if number > S:
        return
    stretch, rest = tl.program_id(0) % STRETCHES, tl.program_id(0) // STRETCHES
    part, rank = rest % PARTS, rest // PARTS * RANKS + tl.arange(0, RANKS)
    if tl.load(scales + (number - 1) * PARTS + part) == 0.0:
        return
    place = first + tl.arange(0, TOKENS)
    real = place < count
    token = tl.load(lists + number * num_tokens + place, mask=real, other=0).to(tl.int64)
    LENGTH: tl.constexpr = (K + STRETCHES * DEPTH - 1) // (STRETCHES * DEPTH) * DEPTH
    column = stretch * LENGTH + tl.arange(0, DEPTH)
    # Ranks beyond the last compute the last one again, and are not stored.
    row = ((number - 1) * PARTS + part).to(tl.int64) * R + tl.minimum(rank, R - 1)
    source, rows = a + row[:, None] * K + column[None, :], x + token[:, None] * K + column[None, :]
    acc = tl.zeros([TOKENS, RANKS], tl.float32)
    for start in range(0, LENGTH, DEPTH):
        here = (column < K - start)[None, :]
        taken = tl.load(rows + start, mask=real[:, None] & here, other=0.0)
        acc = tl.dot(taken, tl.trans(tl.load(source + start, mask=here, other=0.0)), acc, input_precision="ieee")
    target = partial + (stretch * num_tokens + token)[:, None] * (PARTS * R) + (part * R + rank)[None, :]
    tl.store(target, acc, mask=real[:, None] & (rank < R)[None, :])


@triton.jit(do_not_specialize=["num_tokens"])
def _expand(
    y: tl.tensor,
    b: tl.tensor,
    scales: tl.tensor,
    partial: tl.tensor,
    counts: tl.tensor,
    lists: tl.tensor,
    num_tokens: int,
    S: tl.constexpr,
    R: tl.constexpr,
    PARTS: tl.constexpr,
    STRETCHES: tl.constexpr,
    S_BLOCK: tl.constexpr,
    TOKENS: tl.constexpr,
    RANKS: tl.constexpr,
    N0: tl.constexpr,
    N1: tl.constexpr,
    N2: tl.constexpr,
    OUTPUTS: tl.constexpr,
) -> None:
    """``y[token, column] += scale * (x @ A.T) @ B.T``; N0, N1 and N2 are the columns of the parts."""
    index, first, count = find_tile(counts + 1, tl.program_id(1), S, S_BLOCK, TOKENS)  # number 0 is no adapter
    number = index + 1
    if number > S:
        return
    T0: tl.constexpr = (N0 + OUTPUTS - 1) // OUTPUTS
    T1: tl.constexpr = T0 + (N1 + OUTPUTS - 1) // OUTPUTS
    tile = tl.program_id(0)
    part = (tile >= T0).to(tl.int32) + (tile >= T1).to(tl.int32)
    scale = tl.load(scales + (number - 1) * PARTS + part)
    if scale == 0.0:
        return
    begin = tl.where(part == 0, 0, tl.where(part == 1, N0, N0 + N1))
    size = tl.where(part == 0, N0, tl.where(part == 1, N1, N2))
    output = (tile - tl.where(part == 0, 0, tl.where(part == 1, T0, T1))) * OUTPUTS + tl.arange(0, OUTPUTS)
    # Outputs beyond the last compute the last one again, and are not stored.
    column = begin + tl.minimum(output, size - 1)
    place = first + tl.arange(0, TOKENS)
    real = place < count
    token = tl.load(lists + number * num_tokens + place, mask=real, other=0).to(tl.int64)
    row = (number - 1).to(tl.int64) * (N0 + N1 + N2) + column
    acc = tl.zeros([TOKENS, OUTPUTS], tl.float32)
    for start in range(0, R, RANKS):
        rank = start + tl.arange(0, RANKS)
        known = (rank < R)[None, :]
        shrunk = tl.zeros([TOKENS, RANKS], tl.float32)
        for stretch in tl.static_range(STRETCHES):
            source = partial + (stretch * num_tokens + token)[:, None] * (PARTS * R) + (part * R + rank)[None, :]
            shrunk += tl.load(source, mask=real[:, None] & known, other=0.0)
        weight = tl.load(b + row[:, None] * R + rank[None, :], mask=known, other=0.0)
        acc = tl.dot(shrunk.to(weight.dtype), tl.trans(weight), acc, input_precision="ieee")
    target = y + token[:, None] * (N0 + N1 + N2) + column[None, :]
    inside = real[:, None] & (output < size)[None, :]
    old = tl.load(target, mask=inside, other=0.0).to(tl.float32)
    tl.store(target, (old + scale * acc).to(y.dtype.element_ty), mask=inside)
