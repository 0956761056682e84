"""Between which two pivots a row's kept tokens end, and after which token: the third launch of `sampling_filters`.

A *cut* of a row is a number in the order of its tokens. It is closed if no token below it is kept: the tokens from
there upwards are as many, or weigh as much, as the rule allows. Lower cuts of a closed one are closed, too, so the
last kept token is found by bisection between a closed and an open cut.
"""

from __future__ import annotations

import triton
import triton.language as tl

from octavo.kernels.triton import sampling_rows

CANDIDATES = 4096
SCAN = 4096
"""Logits that a program reads at a time: 8 a thread."""

NO_LIMIT = tl.constexpr(1 << 60)
LOWEST = tl.constexpr(-(1 << 62))


@triton.jit
def _middle(low: tl.tensor, high: tl.tensor) -> tl.tensor:
    """A number between two that ``order`` made, at least 2 apart: half-way by logit, or if that is no news by bits."""
    logit = sampling_rows.logit_of(low) * 0.5 + sampling_rows.logit_of(high) * 0.5
    middle = sampling_rows.key_of(logit).to(tl.int64) << sampling_rows.ID_BITS
    return tl.where((middle > low) & (middle < high), middle, low + ((high - low) >> 1))


@triton.jit
def _measure(
    logits: tl.tensor,
    vocab_size: tl.tensor,
    best: tl.tensor,
    temperature: tl.tensor,
    least: tl.tensor,
    cut: tl.tensor,
    SCAN: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """Count and weight of the tokens of a whole row from ``cut`` upwards, int64."""
    tallies = tl.zeros((SCAN,), tl.int64)
    for start in range(0, vocab_size, SCAN):
        ids = start + tl.arange(0, SCAN)
        values = sampling_rows.load_logits(logits, ids, vocab_size)
        tally = sampling_rows.tally(sampling_rows.weights(values, best, temperature), least)
        tallies += tl.where(sampling_rows.order(values, ids) >= cut, tally, 0)
    return tl.sum(sampling_rows.counted(tallies), axis=0), tl.sum(sampling_rows.weighed(tallies), axis=0)


@triton.jit
def _gather(
    logits: tl.tensor,
    vocab_size: tl.tensor,
    best: tl.tensor,
    temperature: tl.tensor,
    least: tl.tensor,
    low: tl.tensor,
    high: tl.tensor,
    candidates: tl.tensor,
    SCAN: tl.constexpr,
    CANDIDATES: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """The tokens from ``low`` to below ``high``, by way of memory: their orders and tallies, int64 [CANDIDATES]."""
    tl.debug_barrier()  # whoever still reads the candidates of the cut before
    filled = tl.full((), 0, tl.int32)
    for start in range(0, vocab_size, SCAN):
        ids = start + tl.arange(0, SCAN)
        values = sampling_rows.load_logits(logits, ids, vocab_size)
        rank = sampling_rows.order(values, ids)
        inside = (rank >= low) & (rank < high) & (sampling_rows.weights(values, best, temperature) >= least)
        found = inside.to(tl.int32)
        more = tl.sum(found, axis=0)
        if more > 0:
            tl.store(candidates + filled + tl.cumsum(found, axis=0) - 1, rank, mask=inside)
            filled += more
    tl.debug_barrier()
    index = tl.arange(0, CANDIDATES)
    real = index < filled
    ranks = tl.load(candidates + index, mask=real, other=LOWEST)
    weight = sampling_rows.weights(sampling_rows.logit_of(ranks), best, temperature)
    return ranks, tl.where(real, sampling_rows.tally(weight, least), 0)


@triton.jit
def _pick(values: tl.tensor, index: tl.tensor, wanted: tl.tensor) -> tl.tensor:
    return tl.sum(tl.where(index == wanted, values, 0), axis=0)


@triton.jit
def _last_kept(
    logits: tl.tensor,
    vocab_size: tl.tensor,
    best: tl.tensor,
    temperature: tl.tensor,
    least: tl.tensor,
    most: tl.tensor,
    goal: tl.tensor,
    closed: tl.tensor,
    edges: tl.tensor,
    count: tl.tensor,
    total: tl.tensor,
    candidates: tl.tensor,
    SCAN: tl.constexpr,
    CANDIDATES: tl.constexpr,
    PIVOTS: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """The highest closed cut, or one just as good, and the weight of the tokens from there upwards.

    ``closed`` is the first closed pivot. ``low`` stays closed and ``high`` open; ``n`` and ``s`` are count and
    weight from there upwards. Once only one token is between them, it is the last one that is kept.
    """
    index = tl.arange(0, PIVOTS)
    low, high = _pick(edges, index, closed), _pick(edges, index, closed - 1)
    n_low, n_high = _pick(count, index, closed), _pick(count, index, closed - 1)
    s_low, s_high = _pick(total, index, closed), _pick(total, index, closed - 1)
    if closed == 0:
        high = (sampling_rows.key_of(best).to(tl.int64) + 1) << sampling_rows.ID_BITS
    while n_low - n_high > CANDIDATES:
        cut = _middle(low, high)
        n, s = _measure(logits, vocab_size, best, temperature, least, cut, SCAN)
        if (n >= most) | (s.to(tl.float64) >= goal):
            low, n_low, s_low = cut, n, s
        else:
            high, n_high, s_high = cut, n, s
    ranks, tallies = _gather(logits, vocab_size, best, temperature, least, low, high, candidates, SCAN, CANDIDATES)
    n_base, s_base = n_high, s_high
    while n_low - n_high > 1:
        cut = _middle(low, high)
        above = tl.sum(tl.where(ranks >= cut, tallies, 0), axis=0)
        n, s = n_base + sampling_rows.counted(above), s_base + sampling_rows.weighed(above)
        if (n >= most) | (s.to(tl.float64) >= goal):
            low, n_low, s_low = cut, n, s
        else:
            high, n_high = cut, n
    return low, s_low


@triton.jit(do_not_specialize=["splits"], do_not_specialize_on_alignment=["records"])
def search(
    logits: tl.tensor,
    records: tl.tensor,
    likeliest: tl.tensor,
    pivots: tl.tensor,
    counts: tl.tensor,
    sums: tl.tensor,
    candidates: tl.tensor,
    thresholds: tl.tensor,
    stride: int,
    vocab_size: int,
    splits: int,
    SCAN: tl.constexpr,
    CANDIDATES: tl.constexpr,
    PIVOTS: tl.constexpr,
    MAX_SPLITS: tl.constexpr,
) -> None:
    """The threshold of each row. Top-k comes first, because top-p takes its share of what that leaves."""
    row = tl.program_id(0).to(tl.int64)
    logits += row * stride
    candidates += row * CANDIDATES
    if sampling_rows.filters(records, row):
        threshold = tl.full((), LOWEST, tl.int64)
        best = tl.load(likeliest + row)
        if (best < float("inf")) & (best > float("-inf")):
            temperature = sampling_rows.temperature_of(records, row)
            top_k, top_p, min_p = sampling_rows.rules_of(records, row)
            least = sampling_rows.least_weight(min_p)
            index, part = tl.arange(0, PIVOTS), tl.arange(0, MAX_SPLITS)[:, None]
            place = (row * splits + part) * PIVOTS + index[None, :]
            count = tl.sum(tl.load(counts + place, mask=part < splits, other=0), axis=0)
            total = tl.sum(tl.load(sums + place, mask=part < splits, other=0), axis=0)
            edges = sampling_rows.key_of(tl.load(pivots + row * PIVOTS + index)).to(tl.int64) << sampling_rows.ID_BITS
            most = tl.where(top_k > 0, top_k, NO_LIMIT)
            mass = tl.max(total, axis=0)
            for rule in range(2):
                goal = tl.full((), float("inf"), tl.float64)
                wanted = top_k > 0
                if rule == 1:
                    goal = mass.to(tl.float64) * top_p
                    wanted = top_p < 1
                closed = tl.sum(((count < most) & (total.to(tl.float64) < goal)).to(tl.int32), axis=0)
                if wanted & (closed < PIVOTS):
                    threshold, mass = _last_kept(
                        logits,
                        vocab_size,
                        best,
                        temperature,
                        least,
                        most,
                        goal,
                        closed,
                        edges,
                        count,
                        total,
                        candidates,
                        SCAN,
                        CANDIDATES,
                        PIVOTS,
                    )
        tl.store(thresholds + row, threshold)
