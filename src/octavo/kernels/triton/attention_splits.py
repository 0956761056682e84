"""How a row's context is split for decoding, and how the splits' results become one.

Each split gives the softmax-weighted mean of its values and the logarithm (to the base 2) of its sum of weights. The
whole is the mean of the means, weighted by these sums.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def first_and_split(
    context: int, window: int, min_split: int, splits: int, TILE: tl.constexpr, WINDOW: tl.constexpr
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """The first key that a row sees, the length of its splits, and how many it has (1 even for an empty row)."""
    first = tl.maximum(context - window, 0) if WINDOW else 0
    share = tl.cdiv(tl.cdiv(context - first, splits), TILE) * TILE
    length = tl.maximum(share, min_split)
    return first, length, tl.maximum(tl.cdiv(context - first, length), 1)


@triton.jit(do_not_specialize=["window", "min_split", "splits"])
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
    HEADS_PADDED: tl.constexpr,
    D: tl.constexpr,
    D_PADDED: tl.constexpr,
    TILE: tl.constexpr,
    ALL_ROWS: tl.constexpr,
    WINDOW: tl.constexpr,
) -> None:
    """Add up the splits of a row and key/value head after all programs of the kernel that made them have ended."""
    index, kv_head, kv_heads = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    row = index if ALL_ROWS else tl.load(decode_rows + index)
    _, _, used = first_and_split(tl.load(context_lens + row), window, min_split, splits, TILE, WINDOW)
    if used > 1:
        pair = index.to(tl.int64) * kv_heads + kv_head
        logs = partials + tl.num_programs(0).to(tl.int64) * kv_heads * splits * HEADS * D
        target = out + (tl.load(query_starts + row).to(tl.int64) * kv_heads + kv_head) * HEADS * D
        add_up(target, partials, logs, pair * splits, used, HEADS, D, D_PADDED)


@triton.jit
def add_up(
    out: tl.tensor,
    partials: tl.tensor,
    logs: tl.tensor,
    first: int,
    used: int,
    HEADS: tl.constexpr,
    D: tl.constexpr,
    D_PADDED: tl.constexpr,
) -> None:
    """``out [HEADS, D]`` from ``used`` partial results: the mean, weighted by the sums of weights.

    Several are loaded at once, since each load is as long a wait as a whole tile of keys.
    """
    PADDED: tl.constexpr = triton.next_power_of_2(HEADS)
    CHUNK: tl.constexpr = max(2, min(16, 4096 // (PADDED * D_PADDED)))  # 32 registers of 128 threads
    heads, d = tl.arange(0, PADDED), tl.arange(0, D_PADDED)
    acc = tl.zeros([PADDED, D_PADDED], tl.float32)
    peak = tl.full([PADDED], float("-inf"), tl.float32)
    mass = tl.zeros([PADDED], tl.float32)
    for start in range(0, used, CHUNK):
        split = start + tl.arange(0, CHUNK)
        part = (first + split)[:, None] * HEADS + heads[None, :]
        here = (split < used)[:, None] & (heads < HEADS)[None, :]
        log = tl.load(logs + part, mask=here, other=float("-inf"), cache_modifier=".cg")
        at = part[:, :, None] * D + d[None, None, :]
        x = tl.load(partials + at, mask=here[:, :, None] & (d < D)[None, None, :], other=0.0, cache_modifier=".cg")
        higher = tl.maximum(peak, tl.max(log, 0))
        shift = tl.where(higher == float("-inf"), 0.0, higher)  # heads that only fill up
        weight = tl.exp2(log - shift[None, :])
        decay = tl.exp2(peak - shift)
        acc = acc * decay[:, None] + tl.sum(x * weight[:, :, None], 0)
        mass = mass * decay + tl.sum(weight, 0)
        peak = higher
    result = acc / tl.where(mass > 0, mass, 1.0)[:, None]
    mask = (heads < HEADS)[:, None] & (d < D)[None, :]
    tl.store(out + heads[:, None] * D + d[None, :], result.to(out.dtype.element_ty), mask=mask)
