"""Where a row's kept tokens end under min-p, top-k and top-p, without sorting: three launches.

All these rules keep a beginning of the row sorted by (logit, lower id), so the kept set is one number: tokens whose
``order`` is at least a threshold. With the weights as whole numbers, counts and sums are exact, and any cut of the
row gives the same threshold, the one at which the sorted row would have been cut:

    keep a token if fewer than k tokens come before it, and their weight is less than p times the total,

which is a yes or no that only changes once from the bottom to the top, so it can be found by bisection.

1. ``_extremes``: the largest and the smallest finite logit of each part of a row.
2. ``_pivots``: count and weight of the tokens from each of 16 evenly spaced logits upwards, for each part.
3. ``search``, one program a row: pick the two pivots between which the threshold is, halve that interval by
   passes over the row until at most ``CANDIDATES`` tokens are inside, bring these together, and bisect among them
   in registers. Rows of a trained model need no such pass: few of their tokens have any weight.

Floor: the logits are read three times. Rows that do not filter leave all three at once.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from octavo.kernels.triton import sampling_rows, sampling_search
from octavo.kernels.triton.sampling_rows import MAX_SPLITS, TILE

PIVOTS = 16
SPAN = tl.constexpr(23.6)  # a token this many temperatures below the best weighs less than half a grain


@triton.jit(do_not_specialize=["tiles"], do_not_specialize_on_alignment=["records", "bottoms"])
def _extremes(
    logits: tl.tensor,
    records: tl.tensor,
    tops: tl.tensor,
    bottoms: tl.tensor,
    stride: int,
    vocab_size: int,
    tiles: int,
    TILE: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    if sampling_rows.filters(records, row):
        top = tl.full((TILE,), float("-inf"), tl.float32)
        bottom = tl.full((TILE,), float("inf"), tl.float32)
        for tile in range(part * tiles, tl.minimum((part + 1) * tiles, tl.cdiv(vocab_size, TILE))):
            values = sampling_rows.load_logits(logits + row * stride, tile * TILE + tl.arange(0, TILE), vocab_size)
            top = tl.maximum(top, values)
            bottom = tl.minimum(bottom, tl.where(values == float("-inf"), float("inf"), values))
        place = row * tl.num_programs(1) + part
        tl.store(tops + place, tl.max(top, axis=0))
        tl.store(bottoms + place, tl.min(bottom, axis=0))


@triton.jit
def _pivot(top: tl.tensor, floor: tl.tensor, i: tl.constexpr, PIVOTS: tl.constexpr) -> tl.tensor:
    """The last one is ``floor`` itself: no token below it has any weight."""
    if i == PIVOTS - 1:
        return floor
    return top - (top - floor) * ((i + 1) / PIVOTS)


@triton.jit
def _side_by_side(columns: tl.tuple, PIVOTS: tl.constexpr, THREADS: tl.constexpr) -> tl.tensor:
    """16 columns [THREADS] as a table [THREADS, 16]."""
    tl.static_assert(PIVOTS == 16)
    eight: tl.tuple = ()
    four: tl.tuple = ()
    two: tl.tuple = ()
    for i in tl.static_range(8):
        eight += (tl.join(columns[i], columns[i + 8]),)
    for i in tl.static_range(4):
        four += (tl.join(eight[i], eight[i + 4]),)
    for i in tl.static_range(2):
        two += (tl.join(four[i], four[i + 2]),)
    return tl.reshape(tl.join(two[0], two[1]), (THREADS, PIVOTS))


@triton.jit(do_not_specialize=["tiles"], do_not_specialize_on_alignment=["records", "bottoms"])
def _pivots(
    logits: tl.tensor,
    records: tl.tensor,
    tops: tl.tensor,
    bottoms: tl.tensor,
    likeliest: tl.tensor,
    pivots: tl.tensor,
    counts: tl.tensor,
    sums: tl.tensor,
    stride: int,
    vocab_size: int,
    tiles: int,
    TILE: tl.constexpr,
    THREADS: tl.constexpr,
    EACH: tl.constexpr,
    PIVOTS: tl.constexpr,
    MAX_SPLITS: tl.constexpr,
) -> None:
    """``counts`` and ``sums`` int64 [S, parts, PIVOTS] of the tokens of a part that are at or above each pivot.

    A thread reads ``EACH`` logits, one vector, adds them up for all pivots, and meets the others only at the end.
    """
    row = tl.program_id(0).to(tl.int64)
    part, splits = tl.program_id(1), tl.num_programs(1)
    if sampling_rows.filters(records, row):
        other = tl.arange(0, MAX_SPLITS)
        top = tl.max(tl.load(tops + row * splits + other, mask=other < splits, other=float("-inf")), axis=0)
        bottom = tl.min(tl.load(bottoms + row * splits + other, mask=other < splits, other=float("inf")), axis=0)
        if part == 0:
            tl.store(likeliest + row, top)
        if (top < float("inf")) & (top > float("-inf")):
            temperature = sampling_rows.temperature_of(records, row)
            _, _, min_p = sampling_rows.rules_of(records, row)
            least = sampling_rows.least_weight(min_p)
            floor = tl.maximum(bottom, top - temperature * SPAN)
            tallies: tl.tuple = ()
            for _ in tl.static_range(PIVOTS):
                tallies += (tl.zeros((THREADS,), tl.int64),)
            STEPS: tl.constexpr = TILE // (THREADS * EACH)
            last = tl.minimum((part + 1) * tiles * STEPS, tl.cdiv(vocab_size, THREADS * EACH))
            ids = tl.arange(0, THREADS)[:, None] * EACH + tl.arange(0, EACH)[None, :]
            for tile in range(part * tiles * STEPS, last):
                values = sampling_rows.load_logits(logits + row * stride, tile * (THREADS * EACH) + ids, vocab_size)
                tally = sampling_rows.tally(sampling_rows.weights(values, top, temperature), least)
                more: tl.tuple = ()
                for i in tl.static_range(PIVOTS):
                    above = values >= _pivot(top, floor, i, PIVOTS)
                    more += (tallies[i] + tl.sum(tl.where(above, tally, 0), axis=1),)
                tallies = more
            table = _side_by_side(tallies, PIVOTS, THREADS)
            place = (row * splits + part) * PIVOTS + tl.arange(0, PIVOTS)
            tl.store(counts + place, tl.sum(sampling_rows.counted(table), axis=0))
            tl.store(sums + place, tl.sum(sampling_rows.weighed(table), axis=0))
            if part == 0:
                for i in tl.static_range(PIVOTS):
                    tl.store(pivots + row * PIVOTS + i, _pivot(top, floor, i, PIVOTS))


def thresholds(logits: Tensor, records: Tensor) -> tuple[Tensor, Tensor]:
    """For each row of ``logits [S, V]`` that filters: the ``order`` of the last token that it keeps, int64 [S], and
    its largest logit, float32 [S]. Nothing is written for the other rows.
    """
    num_rows, vocab_size = logits.shape
    splits, tiles = sampling_rows.split(num_rows, vocab_size)
    floats = torch.empty(2, num_rows, splits, device=logits.device)
    likeliest = torch.empty(num_rows, device=logits.device)
    pivots = torch.empty(num_rows, PIVOTS, device=logits.device)
    counts, sums = torch.empty(2, num_rows, splits, PIVOTS, dtype=torch.int64, device=logits.device)
    candidates = torch.empty(num_rows, sampling_search.CANDIDATES, dtype=torch.int64, device=logits.device)
    found = torch.empty(num_rows, dtype=torch.int64, device=logits.device)
    grid, row = (num_rows, splits), (logits.stride(0), vocab_size)
    _extremes[grid](logits, records, *floats, *row, tiles, TILE, num_warps=4)
    pivoted = likeliest, pivots, counts, sums
    pivot_constants = TILE, 128, 16 // logits.element_size(), PIVOTS, MAX_SPLITS
    _pivots[grid](logits, records, *floats, *pivoted, *row, tiles, *pivot_constants, num_warps=4)
    constants = sampling_search.SCAN, sampling_search.CANDIDATES, PIVOTS, MAX_SPLITS
    results = candidates, found
    sampling_search.search[(num_rows,)](logits, records, *pivoted, *results, *row, splits, *constants, num_warps=16)
    return found, likeliest
