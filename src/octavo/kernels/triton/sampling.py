"""One token for each row of logits, in two launches; four when rows filter (`sampling_filters`).

To draw from a softmax needs no sum and no running total: the largest of ``logit + temperature * G``, with an
independent Gumbel variable G for each token, is distributed as the softmax of ``logit / temperature`` is (Gumbel-max;
Yellott 1977). So drawing is one pass over the logits, as taking the largest one is. A maximum does not depend on the
order in which it is found, and G is made of (seed, position, token id) alone, by Philox; so a token is bitwise the same
whatever else is in the batch and however rows are cut into parts.

``_choose`` finds the best token of each part of each row, ``_finish`` the best of the parts. Floor: the logits are read
once. Philox gives four numbers for one counter, each for a token of another quarter of a tile.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import libdevice

from octavo.kernels.sampling import LastTokens, Sampled
from octavo.kernels.triton import sampling_filters, sampling_rows
from octavo.kernels.triton.sampling_rows import MAX_SPLITS, TILE

QUARTER = TILE // 4
ROUNDS = tl.constexpr(7)  # the fewest with which Philox passes all of BigCrush (Salmon et al., SC 2011, table 2)
INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)
NO_TOKEN = tl.constexpr(2**31 - 1)


@triton.jit
def _log2(x: tl.tensor) -> tl.tensor:
    if INTERPRETED:
        return tl.log2(x)
    return libdevice.fast_log2f(x)  # one instruction, where the exact one takes some twenty


@triton.jit
def _log2_exponential(bits: tl.tensor) -> tl.tensor:
    """log2 of exponentially distributed numbers, up to the same constant for all, of 32 random bits each.

    Large draws of G come from small exponentials, -log(1 - u) of a small u, which a series gives to 3e-6 or better;
    so near its zero, where it is good to 2**-22 only, the fast logarithm is not asked.
    """
    u = (bits.to(tl.uint32, bitcast=True).to(tl.float32) + 0.5) * 2.3283064365386963e-10
    series = u * (1.0 + u * (0.5 + u * (0.3333333333 + u * 0.25))) * 1.4426950408889634
    return _log2(tl.where(u < 0.0625, series, -_log2(tl.maximum(1.0 - u, 2.9802322387695312e-08))))


@triton.jit
def noise(
    seed: tl.tensor, position: tl.tensor, temperature: tl.tensor, tile: tl.tensor, QUARTER: tl.constexpr
) -> tuple[tl.tensor, tl.tensor, tl.tensor, tl.tensor]:
    """``temperature * G`` for the four quarters of a tile of tokens, float32 [QUARTER] each."""
    counter = tile * QUARTER + tl.arange(0, QUARTER)
    low = counter * 0 + (position & 0xFFFFFFFF).to(tl.int32)
    high = counter * 0 + (position >> 32).to(tl.int32)
    a, b, c, d = tl.philox(seed, counter, low, high, counter * 0, ROUNDS)
    scale = temperature * -0.6931471805599453
    return (
        _log2_exponential(a) * scale,
        _log2_exponential(b) * scale,
        _log2_exponential(c) * scale,
        _log2_exponential(d) * scale,
    )


@triton.jit
def _better(
    best: tl.tensor, best_ids: tl.tensor, top: tl.tensor, values: tl.tensor, scores: tl.tensor, ids: tl.tensor
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Take in a quarter of a tile; ids only grow, so that an equal score does not replace a lower id."""
    more = scores > best
    return tl.where(more, scores, best), tl.where(more, ids, best_ids), tl.maximum(top, values)


@triton.jit
def _kept(
    scores: tl.tensor,
    values: tl.tensor,
    ids: tl.tensor,
    threshold: tl.tensor,
    likeliest: tl.tensor,
    temperature: tl.tensor,
    least: tl.tensor,
) -> tl.tensor:
    """The scores of tokens that pass the row's filters; -inf for the others."""
    keep = sampling_rows.order(values, ids) >= threshold
    keep &= sampling_rows.weights(values, likeliest, temperature) >= least
    return tl.where(keep, scores, float("-inf"))


@triton.jit(do_not_specialize=["tiles"], do_not_specialize_on_alignment=["records", "part_tops"])
def _choose(
    logits: tl.tensor,
    records: tl.tensor,
    thresholds: tl.tensor,
    likeliest: tl.tensor,
    part_scores: tl.tensor,
    part_ids: tl.tensor,
    part_tops: tl.tensor,
    stride: int,
    vocab_size: int,
    tiles: int,
    FILTERS: tl.constexpr,
    QUARTER: tl.constexpr,
) -> None:
    """The best score, its token, and the largest logit of part ``program_id(1)`` of row ``program_id(0)``."""
    row = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    logits += row * stride
    temperature = sampling_rows.temperature_of(records, row)
    seed, position = sampling_rows.seed_and_position_of(records, row)
    filtered = False
    threshold = tl.full((), 0, tl.int64)
    least = tl.full((), 0, tl.int64)
    most = tl.full((), 0, tl.float32)
    if FILTERS:
        filtered = sampling_rows.filters(records, row)
        if filtered:
            threshold = tl.load(thresholds + row)
            most = tl.load(likeliest + row)
            _, _, min_p = sampling_rows.rules_of(records, row)
            least = sampling_rows.least_weight(min_p)
    lane = tl.arange(0, QUARTER)
    best = tl.full((QUARTER,), float("-inf"), tl.float32)
    best_ids = tl.full((QUARTER,), NO_TOKEN, tl.int32)
    top = tl.full((QUARTER,), float("-inf"), tl.float32)
    last = tl.minimum((part + 1) * tiles, tl.cdiv(vocab_size, 4 * QUARTER))
    for tile in range(part * tiles, last):
        ids0 = tile * (4 * QUARTER) + lane
        ids1, ids2, ids3 = ids0 + QUARTER, ids0 + 2 * QUARTER, ids0 + 3 * QUARTER
        v0 = sampling_rows.load_logits(logits, ids0, vocab_size)
        v1 = sampling_rows.load_logits(logits, ids1, vocab_size)
        v2 = sampling_rows.load_logits(logits, ids2, vocab_size)
        v3 = sampling_rows.load_logits(logits, ids3, vocab_size)
        s0, s1, s2, s3 = v0, v1, v2, v3
        if temperature > 0:
            n0, n1, n2, n3 = noise(seed, position, temperature, tile, QUARTER)
            s0, s1, s2, s3 = v0 + n0, v1 + n1, v2 + n2, v3 + n3
        if filtered:  # never, and so left out, without FILTERS
            s0 = _kept(s0, v0, ids0, threshold, most, temperature, least)
            s1 = _kept(s1, v1, ids1, threshold, most, temperature, least)
            s2 = _kept(s2, v2, ids2, threshold, most, temperature, least)
            s3 = _kept(s3, v3, ids3, threshold, most, temperature, least)
        best, best_ids, top = _better(best, best_ids, top, v0, s0, ids0)
        best, best_ids, top = _better(best, best_ids, top, v1, s1, ids1)
        best, best_ids, top = _better(best, best_ids, top, v2, s2, ids2)
        best, best_ids, top = _better(best, best_ids, top, v3, s3, ids3)
    place = row * tl.num_programs(1) + part
    score = tl.max(best, axis=0)
    tl.store(part_scores + place, score)
    tl.store(part_ids + place, tl.min(tl.where(best == score, best_ids, NO_TOKEN), axis=0))
    tl.store(part_tops + place, tl.max(top, axis=0))


@triton.jit(do_not_specialize=["splits"], do_not_specialize_on_alignment=["part_tops", "slots", "last_tokens"])
def _finish(
    part_scores: tl.tensor,
    part_ids: tl.tensor,
    part_tops: tl.tensor,
    tokens: tl.tensor,
    bad: tl.tensor,
    slots: tl.tensor,
    last_tokens: tl.tensor,
    splits: int,
    FEED: tl.constexpr,
    MAX_SPLITS: tl.constexpr,
) -> None:
    """The best token of all parts of a row; a row without a finite maximum gets token 0 and a mark."""
    row = tl.program_id(0)
    part = tl.arange(0, MAX_SPLITS)
    place, real = row * splits + part, part < splits
    scores = tl.load(part_scores + place, mask=real, other=float("-inf"))
    ids = tl.load(part_ids + place, mask=real, other=NO_TOKEN)
    top = tl.max(tl.load(part_tops + place, mask=real, other=float("-inf")), axis=0)
    token = tl.min(tl.where(scores == tl.max(scores, axis=0), ids, NO_TOKEN), axis=0)
    hopeless = (top == float("inf")) | (top == float("-inf"))
    token = tl.where(hopeless, 0, token)
    tl.store(tokens + row, token.to(tl.int64))
    tl.store(bad + row, hopeless.to(tl.int8))
    if FEED:
        slot = tl.load(slots + row).to(tl.int64)
        tl.store(last_tokens + slot, token, mask=slot >= 0)


def sample(logits: Tensor, records: Tensor, last: LastTokens | None = None, filters: bool = True) -> Sampled:
    """What `Ops.sample` says: ``logits [S, V]`` of any floating dtype, rows contiguous, V at most 2**20."""
    num_rows, vocab_size = logits.shape
    tokens = torch.empty(num_rows, dtype=torch.int64, device=logits.device)
    bad = torch.empty(num_rows, dtype=torch.int8, device=logits.device)
    if num_rows:
        splits, tiles = sampling_rows.split(num_rows, vocab_size)
        found = sampling_filters.thresholds(logits, records) if filters else (records, records)
        floats = torch.empty(2, num_rows, splits, device=logits.device)
        ids = torch.empty(num_rows, splits, dtype=torch.int32, device=logits.device)
        grid, row = (num_rows, splits), (logits.stride(0), vocab_size)
        _choose[grid](logits, records, *found, floats[0], ids, floats[1], *row, tiles, filters, QUARTER, num_warps=4)
        feed = (last.slots, last.tokens) if last else (tokens, tokens)
        parts = floats[0], ids, floats[1]
        _finish[(num_rows,)](*parts, tokens, bad, *feed, splits, last is not None, MAX_SPLITS, num_warps=1)
    return Sampled(tokens, bad.view(torch.bool))
