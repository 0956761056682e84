"""Which experts each token goes to, and which tokens each expert gets.

``top_experts``: one program a token. All logits are in registers, so the k likeliest are found by looking for the
largest k times. Floor: the launch.

``assign``: each expert has a list with room for every token. A choice takes the next free place of its expert's list by
one atomic addition: no sort, and no sum over experts. In which order tokens stand in a list differs from run to run; no
result depends on it, as each row of a product is computed for itself.

``find_tile``: which expert's tile a program of a grouped product computes.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 256
"""Choices that a program of ``assign`` takes."""


@triton.jit
def _top_experts(
    logits: tl.tensor,
    weights: tl.tensor,
    ids: tl.tensor,
    stride: int,
    E: tl.constexpr,
    K: tl.constexpr,
    E_BLOCK: tl.constexpr,
    K_BLOCK: tl.constexpr,
    NORMALISE: tl.constexpr,
) -> None:
    token = tl.program_id(0).to(tl.int64)
    expert, rank = tl.arange(0, E_BLOCK), tl.arange(0, K_BLOCK)
    x = tl.load(logits + token * stride + expert, mask=expert < E, other=-float("inf")).to(tl.float32)
    p = tl.exp(x - tl.max(x, axis=0))
    p = tl.where(expert < E, p / tl.sum(p, axis=0), -1.0)
    best_p, best = tl.zeros([K_BLOCK], tl.float32), tl.zeros([K_BLOCK], tl.int32)
    for j in tl.static_range(K):
        likeliest = tl.argmax(p, axis=0)
        best_p = tl.where(rank == j, tl.max(p, axis=0), best_p)
        best = tl.where(rank == j, likeliest, best)
        p = tl.where(expert == likeliest, -1.0, p)
    if NORMALISE:
        best_p = best_p / tl.sum(best_p, axis=0)
    place = token * K + rank
    tl.store(weights + place, best_p, mask=rank < K)
    tl.store(ids + place, best.to(tl.int64), mask=rank < K)


@triton.jit(do_not_specialize=["num_choices", "num_tokens"])
def _assign(
    ids: tl.tensor, counts: tl.tensor, lists: tl.tensor, num_choices: int, num_tokens: int, BLOCK: tl.constexpr
) -> None:
    choice = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    real = choice < num_choices
    expert = tl.load(ids + choice, mask=real, other=0)
    place = tl.atomic_add(counts + expert, 1, mask=real, sem="relaxed")
    tl.store(lists + expert * num_tokens + place, choice, mask=real)


def top_experts(logits: Tensor, k: int, *, normalise: bool) -> tuple[Tensor, Tensor]:
    """As ``Ops.top_experts``; of equally likely experts the one with the lower number."""
    tokens, experts = logits.shape
    logits = logits if logits.stride(1) == 1 else logits.contiguous()
    weights = torch.empty(tokens, k, dtype=torch.float32, device=logits.device)
    ids = torch.empty(tokens, k, dtype=torch.int64, device=logits.device)
    if tokens:
        sizes = {"E": experts, "K": k, "E_BLOCK": triton.next_power_of_2(experts), "K_BLOCK": triton.next_power_of_2(k)}
        _top_experts[(tokens,)](logits, weights, ids, logits.stride(0), **sizes, NORMALISE=normalise, num_warps=1)
    return weights, ids


def assign(ids: Tensor, num_experts: int) -> tuple[Tensor, Tensor]:
    """The choices of each expert: of ``ids [T, k]`` its places in ``ids.flatten()``.

    Returns:
        How many choices each expert has, int32 ``[E]``, and its choices, int32 ``[E, T]``, as many as that.
    """
    counts = torch.zeros(num_experts, dtype=torch.int32, device=ids.device)
    lists = torch.empty(num_experts, len(ids), dtype=torch.int32, device=ids.device)
    if len(ids):
        grid = (triton.cdiv(ids.numel(), BLOCK),)
        _assign[grid](ids.contiguous(), counts, lists, ids.numel(), len(ids), BLOCK=BLOCK, num_warps=4)
    return counts, lists


@triton.jit
def find_tile(counts: tl.tensor, tile: int, E: tl.constexpr, E_BLOCK: tl.constexpr, TOKENS: tl.constexpr) -> tuple:
    """Whose a tile is (an expert's, an adapter's), its first place in the list, and the list's length; E: nobody's."""
    expert = tl.arange(0, E_BLOCK)
    count = tl.load(counts + expert, mask=expert < E, other=0)
    tiles = (count + TOKENS - 1) // TOKENS
    ends = tl.cumsum(tiles, axis=0)
    mine = tl.sum(((ends <= tile) & (expert < E)).to(tl.int32), axis=0)
    first = (tile - tl.sum(tl.where(expert == mine, ends - tiles, 0), axis=0)) * TOKENS
    return mine, first, tl.sum(tl.where(expert == mine, count, 0), axis=0)
