"""How a row's context is split for decoding, and how the splits' results become one.

Each split gives the softmax-weighted mean of its values and the logarithm (to the base 2) of its sum of weights. The
whole is the mean of the means, weighted by these sums.
"""

from __future__ import annotations

import triton
import triton.language as tl

from octavo.kernels.triton.pdl import trigger, wait


@triton.jit
def first_and_split(
    context: int, window: int, min_split: int, splits: int, TILE: tl.constexpr, WINDOW: tl.constexpr
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """The first key that a row sees, the length of its splits, and how many it has (1 even for an empty row)."""
    first = tl.maximum(context - window, 0) if WINDOW else 0
    share = tl.cdiv(tl.cdiv(context - first, splits), TILE) * TILE
    length = tl.maximum(share, min_split)
    return first, length, tl.maximum(tl.cdiv(context - first, length), 1)


@triton.jit(
    do_not_specialize=["window", "min_split", "splits"],
    do_not_specialize_on_alignment=["query_starts", "context_lens", "decode_rows"],
)
def merge_splits(
    out: tl.tensor,
    partials: tl.tensor,
    query_starts: tl.tensor,
    context_lens: tl.tensor,
    decode_rows: tl.tensor,
    window: int,
    min_split: int,
    splits: int,
    HEADS: tl.constexpr,
    D: tl.constexpr,
    TILE: tl.constexpr,
    ALL_ROWS: tl.constexpr,
    WINDOW: tl.constexpr,
    AT_ONCE: tl.constexpr,
    PDL: tl.constexpr,
) -> None:
    """Add up the splits of a row and key/value head after all programs of the kernel that made them have ended."""
    index, kv_head, kv_heads = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    line = index if ALL_ROWS else tl.load(decode_rows + index)
    row = tl.maximum(line, 0)
    _, _, used = first_and_split(tl.load(context_lens + row), window, min_split, splits, TILE, WINDOW)
    token = tl.load(query_starts + row).to(tl.int64)
    wait(PDL)
    trigger(PDL)
    if (used > 1) & (line >= 0):
        pair = index.to(tl.int64) * kv_heads + kv_head
        logs = partials + tl.num_programs(0).to(tl.int64) * kv_heads * splits * HEADS * D
        add_up(out + (token * kv_heads + kv_head) * HEADS * D, partials, logs, pair * splits, used, HEADS, D, AT_ONCE)


@triton.jit
def leave_split(
    out: tl.tensor,
    partials: tl.tensor,
    arrivals: tl.tensor,
    token: tl.tensor,
    index: tl.tensor,
    kv_head: tl.tensor,
    split: tl.tensor,
    used: tl.tensor,
    result: tl.tensor,
    log: tl.tensor,
    HEADS: tl.constexpr,
    D: tl.constexpr,
    SPLIT: tl.constexpr,
    COUNT: tl.constexpr,
    AT_ONCE: tl.constexpr,
) -> None:
    """Write a split's ``result [HEADS_PADDED, D_PADDED]`` and ``log [HEADS_PADDED]``, and the sum if it is the last.

    A row of one split is written to ``out`` at once. COUNT: the last program to arrive adds up; else nobody does here.
    """
    heads, d = tl.arange(0, result.shape[0]), tl.arange(0, result.shape[1])
    mask = (heads < HEADS)[:, None] & (d < D)[None, :]
    kv_heads, splits = tl.num_programs(1), tl.num_programs(2)
    target = out + (token * kv_heads + kv_head) * HEADS * D
    if not SPLIT or used == 1:
        tl.store(target + heads[:, None] * D + d[None, :], result.to(out.dtype.element_ty), mask=mask)
    else:
        pair = index.to(tl.int64) * kv_heads + kv_head
        logs = partials + tl.num_programs(0).to(tl.int64) * kv_heads * splits * HEADS * D
        part = (pair * splits + split) * HEADS + heads
        tl.store(partials + part[:, None] * D + d[None, :], result, mask=mask)
        tl.store(logs + part, log, mask=heads < HEADS)
        if COUNT:
            # The barrier puts all threads' stores before the one thread's release; whoever comes last has acquired
            # those of all others.
            tl.debug_barrier()
            arrived = tl.atomic_add(arrivals + pair, 1, sem="acq_rel", scope="gpu")
            if arrived == used - 1:
                tl.store(arrivals + pair, 0)  # for the next launch
                add_up(target, partials, logs, pair * splits, used, HEADS, D, AT_ONCE)


@triton.jit
def add_up(
    out: tl.tensor,
    partials: tl.tensor,
    logs: tl.tensor,
    first: int,
    used: int,
    HEADS: tl.constexpr,
    D: tl.constexpr,
    AT_ONCE: tl.constexpr,
) -> None:
    """``out [HEADS, D]`` from ``used`` partial results: the mean, weighted by the sums of weights.

    Several are loaded before the first is used, as each load is as long a wait as a tile of keys: AT_ONCE numbers. A
    thread has the same places of all of them, and loads their logarithms itself, so that no two threads exchange
    anything.
    """
    SIZE: tl.constexpr = triton.next_power_of_2(HEADS * D)
    CHUNK: tl.constexpr = max(2, min(16, AT_ONCE // SIZE))
    place = tl.arange(0, SIZE)
    acc = tl.zeros([SIZE], tl.float32)
    peak = tl.full([SIZE], float("-inf"), tl.float32)
    mass = tl.zeros([SIZE], tl.float32)
    for start in range(0, used, CHUNK):
        means, weights = (), ()
        for i in tl.static_range(CHUNK):
            part, here = first + start + i, (place < HEADS * D) & (start + i < used)
            mean = tl.load(partials + part * (HEADS * D) + place, mask=here, other=0.0, cache_modifier=".cg")
            log = tl.load(logs + part * HEADS + place // D, mask=here, other=float("-inf"), cache_modifier=".cg")
            means = means + (mean,)  # type: ignore[assignment]  # noqa: RUF005
            weights = weights + (log,)  # type: ignore[assignment]  # noqa: RUF005
        higher = peak
        for i in tl.static_range(CHUNK):
            higher = tl.maximum(higher, weights[i])
        shift = tl.where(higher == float("-inf"), 0.0, higher)  # places that only fill up
        decay = tl.exp2(peak - shift)
        acc, mass, peak = acc * decay, mass * decay, higher
        for i in tl.static_range(CHUNK):
            weight = tl.exp2(weights[i] - shift)
            acc += means[i] * weight
            mass += weight
    result = acc / tl.where(mass > 0, mass, 1.0)
    tl.store(out + place, result.to(out.dtype.element_ty), mask=place < HEADS * D)
