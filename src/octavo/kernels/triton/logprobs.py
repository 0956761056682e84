"""Log-probability and rank of one token in each row of logits, in one pass over them.

A program reads one part of a row and keeps three numbers of it: the largest logit, the sum of the exponentials
relative to it, and how many logits are above the token's own. A second launch joins the parts. Parts have a fixed
length, and sums a fixed order, so a row's result is bitwise the same in any batch. Floor: the logits are read once.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from octavo.kernels.sampling import Logprobs
from octavo.kernels.triton.sampling_rows import ID_BITS, LAST_ID

PART = 8192
MAX_PARTS = 128
_TOP_ROWS = 64
"""So many rows are sorted out at a time: each takes some 30 bytes a token meanwhile."""


@triton.jit(do_not_specialize_on_alignment=["token_ids", "sums"])
def _parts(
    logits: tl.tensor,
    token_ids: tl.tensor,
    tops: tl.tensor,
    sums: tl.tensor,
    counts: tl.tensor,
    stride: int,
    vocab_size: int,
    PART: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    chosen = tl.load(logits + row * stride + tl.load(token_ids + row))
    ids = part * PART + tl.arange(0, PART)
    values = tl.load(logits + row * stride + ids, mask=ids < vocab_size, other=float("-inf"))
    top = tl.max(values, axis=0)
    place = row * tl.num_programs(1) + part
    tl.store(tops + place, top)
    tl.store(sums + place, tl.sum(tl.exp(values - tl.where(top == float("-inf"), 0.0, top)), axis=0))
    tl.store(counts + place, tl.sum((values > chosen).to(tl.int32), axis=0))


@triton.jit(do_not_specialize=["parts"], do_not_specialize_on_alignment=["token_ids", "sums", "logprobs"])
def _join(
    logits: tl.tensor,
    token_ids: tl.tensor,
    tops: tl.tensor,
    sums: tl.tensor,
    counts: tl.tensor,
    normalisers: tl.tensor,
    logprobs: tl.tensor,
    ranks: tl.tensor,
    stride: int,
    parts: int,
    MAX_PARTS: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    part = tl.arange(0, MAX_PARTS)
    place, real = row * parts + part, part < parts
    top = tl.load(tops + place, mask=real, other=float("-inf"))
    most = tl.max(top, axis=0)
    scale = tl.exp(top - tl.where(most == float("-inf"), 0.0, most))
    normaliser = most + tl.log(tl.sum(tl.load(sums + place, mask=real, other=0.0) * scale, axis=0))
    chosen = tl.load(logits + row * stride + tl.load(token_ids + row))
    tl.store(normalisers + row, normaliser)
    tl.store(logprobs + row, chosen - normaliser)
    tl.store(ranks + row, tl.sum(tl.load(counts + place, mask=real, other=0), axis=0).to(tl.int64) + 1)


def gather_logprobs(logits: Tensor, token_ids: Tensor, k: int) -> Logprobs:
    """What `Ops.gather_logprobs` says, for ``logits [N, V]`` float32 with V at most 2**20. Waits for nothing."""
    (num_rows, vocab_size), device = logits.shape, logits.device
    parts = triton.cdiv(vocab_size, PART)
    normaliser, chosen = torch.empty(2, num_rows, device=device)
    rank = torch.empty(num_rows, dtype=torch.int64, device=device)
    if num_rows:
        found = (
            *torch.empty(2, num_rows, parts, device=device),
            torch.empty(num_rows, parts, dtype=torch.int32, device=device),
        )
        stride = logits.stride(0)
        _parts[(num_rows, parts)](logits, token_ids, *found, stride, vocab_size, PART, num_warps=8)
        results = normaliser, chosen, rank
        _join[(num_rows,)](logits, token_ids, *found, *results, stride, parts, MAX_PARTS, num_warps=1)
    ids = top_ids(logits, min(k, vocab_size))
    return Logprobs(chosen, rank, ids, logits.gather(1, ids) - normaliser[:, None])


def top_ids(logits: Tensor, k: int) -> Tensor:
    """The ``k`` likeliest tokens of each row of ``logits [N, V]`` float32, ties by lower id: int64 [N, k]."""
    if not k or not len(logits):
        return torch.empty(len(logits), k, dtype=torch.int64, device=logits.device)
    return torch.cat([_order(rows).topk(k, dim=1)[1] for rows in logits.split(_TOP_ROWS)])


def _order(logits: Tensor) -> Tensor:
    """As `sampling_rows.order`: int64 numbers in the order of the tokens, all different."""
    bits = torch.where(logits == 0, 0.0, logits).view(torch.int32)
    keys = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).long() << ID_BITS.value
    return keys + (LAST_ID.value - torch.arange(logits.shape[1], device=logits.device))
