"""Attention of rows with several queries: prompts, chunks of prompts, and drafts (FlashAttention-2, arXiv:2307.08691).

The goal is arithmetic: every key meets many queries. A program takes a tile of a row's queries, with all query heads
that share a key/value head, as the rows of one matrix, and goes over the keys that the tile sees. The heads in one
matrix fill it even for a short chunk, and keep the triangle at the diagonal small. Only the tiles of keys at the edges
(the diagonal, the end of a window) are masked; the loop over all others does not know of masks. Floor: 4 D operations
for each query head and key seen, over the rate of the tensor cores.

Keys come from the cache through the block table, or, for fresh rows, from ``qkv`` itself. On Hopper the latter can be
fetched by the copy engine, which computes the addresses (a tensor descriptor).

Measured before on an H100 (8192 tokens, 32/8 heads of 128, causal): 399 TFLOP/s from pages, 457 from a plain buffer,
539 with descriptors.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from octavo.kernels.forward_batch import KVLayer
from octavo.kernels.triton.attention_plan import Scores, TritonPlan
from octavo.kernels.triton.attention_step import Factors, load_rows, load_scales, soft_cap, softmax_step
from octavo.kernels.triton.capability import HOPPER, capability


class PrefillSettings(NamedTuple):
    """How a launch is cut.

    Attributes:
        block_m: rows of a tile: queries times heads of a group.
        block_n: keys that a program takes at once.
        num_warps: of a program.
        num_stages: tiles of keys that are under way at once.
        descriptors: fresh keys and values are fetched by the copy engine.
    """

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int
    descriptors: bool = False


def settings(
    max_queries: int, group: int, head_dim: int, dtype: torch.dtype, device: torch.device, deterministic: bool
) -> PrefillSettings:
    """The settings for rows of ``max_queries`` queries at most, ``group`` query heads to a key/value head.

    Measured on an H100, 8192 tokens, TFLOP/s from pages / ``qkv`` by pointers / by descriptors: 32/8 heads of 128 with
    (128, 128, 8, 3) 395 / 461 / 571, with (128, 64, 8, 3) 348 / 497 / 543; heads of 64: 293 / 347 / 359 and 377 / 442 /
    453. Smaller tiles are for what its 227 KB of shared memory, or the 99 KB of the smallest GPUs of Ampere, do not
    hold.
    """
    padded = max(16, triton.next_power_of_2(head_dim))
    if dtype == torch.float32:
        return PrefillSettings(max(32, triton.next_power_of_2(group)), 32 if padded <= 128 else 16, 8, 1)
    hopper = capability(device)[0] == HOPPER
    few = max_queries * group <= 64 and group <= 64 and not deterministic
    block_m = 64 if few else max(128, triton.next_power_of_2(group))
    warps = 4 if few else 8
    if not hopper:
        return PrefillSettings(block_m if padded <= 128 else max(64, triton.next_power_of_2(group)), 32, warps, 2)
    if padded > 128:
        return PrefillSettings(block_m, 64, warps, 2)
    if few:
        return PrefillSettings(block_m, 64, warps, 3)
    return PrefillSettings(block_m, 128 if padded > 64 else 64, warps, 3, descriptors=head_dim == padded >= 64)


def attend_pages(
    q: Tensor, kv: KVLayer, out: Tensor, plan: TritonPlan, tiles: Tensor, scores: Scores, chosen: PrefillSettings
) -> None:
    """Attention of ``tiles`` over the cache: ``q [T, Hq, D]`` to ``out [T, Hq * D]``, whose other rows are left alone.

    ``tiles`` are the plan's, of ``queries_per_tile`` queries.
    """
    _launch(q, kv.keys, kv.values, kv.scales, None, 0, kv.keys.shape, out, plan, tiles, scores, chosen)


def attend_fresh(
    q: Tensor,
    qkv: Tensor,
    kv: KVLayer,
    out: Tensor,
    plan: TritonPlan,
    tiles: Tensor,
    scores: Scores,
    chosen: PrefillSettings,
) -> None:
    """As ``attend_pages``, for rows that have no cached prefix: keys and values are read from ``qkv [T, width]``."""
    keys, values, descriptor = _views(qkv, kv.keys.shape[1], q.shape[2], chosen)
    _launch(q, keys, values, None, descriptor, qkv.stride(0), kv.keys.shape, out, plan, tiles, scores, chosen)


def queries_per_tile(chosen: PrefillSettings, group: int) -> int:
    """How many queries of ``group`` heads make a tile."""
    return chosen.block_m // group


def _views(qkv: Tensor, hk: int, d: int, chosen: PrefillSettings) -> tuple[Tensor, Tensor, TensorDescriptor | None]:
    keys, values = qkv[:, -2 * hk * d : -hk * d], qkv[:, -hk * d :]
    if not chosen.descriptors:
        return keys, values, None
    return keys, values, TensorDescriptor.from_tensor(qkv, [chosen.block_n, d])


def _launch(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    kv_scales: Tensor | None,
    descriptor: TensorDescriptor | None,
    key_stride: int,
    shape: torch.Size,
    out: Tensor,
    plan: TritonPlan,
    tiles: Tensor,
    scores: Scores,
    chosen: PrefillSettings,
) -> None:
    num_blocks, hk, block_size, d = shape
    _prefill[(len(tiles) * hk,)](
        q,
        keys,
        values,
        kv_scales,
        descriptor,
        out,
        tiles,
        plan.rows.query_starts,
        plan.rows.context_lens,
        plan.rows.table_rows,
        plan.block_tables,
        q.stride(0),
        key_stride,
        plan.block_tables.stride(0),
        scores.window or 0,
        num_blocks,
        *Factors.of(scores),
        KV_HEADS=hk,
        HEADS=q.shape[1] // hk,
        D=d,
        D_PADDED=max(16, triton.next_power_of_2(d)),
        BLOCK_SIZE=block_size,
        BLOCK_M=chosen.block_m,
        BLOCK_N=chosen.block_n,
        PAGED=key_stride == 0,
        TMA=descriptor is not None,
        WINDOW=scores.window is not None,
        CAP=scores.soft_cap is not None,
        num_warps=chosen.num_warps,
        num_stages=chosen.num_stages,
    )


@triton.jit(
    do_not_specialize=["window", "table_stride", "num_blocks"],
    do_not_specialize_on_alignment=["tiles", "query_starts", "context_lens", "table_rows", "block_tables"],
)
def _prefill(
    q: tl.tensor,
    keys: tl.tensor,
    values: tl.tensor,
    kv_scales: tl.tensor | None,
    descriptor: tl.tensor,
    out: tl.tensor,
    tiles: tl.tensor,
    query_starts: tl.tensor,
    context_lens: tl.tensor,
    table_rows: tl.tensor,
    block_tables: tl.tensor,
    q_stride: int,
    key_stride: int,
    table_stride: int,
    window: int,
    num_blocks: int,
    factor: float,
    cap: float,
    cap_factor: float,
    KV_HEADS: tl.constexpr,
    HEADS: tl.constexpr,  # query heads of a key/value head
    D: tl.constexpr,
    D_PADDED: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PAGED: tl.constexpr,
    TMA: tl.constexpr,
    WINDOW: tl.constexpr,
    CAP: tl.constexpr,
) -> None:
    # The heads of a tile are neighbours in the launch, so that they all begin with the longest tiles.
    tile, kv_head = tl.program_id(0) // KV_HEADS, tl.program_id(0) % KV_HEADS
    row, first_query = tl.load(tiles + 2 * tile), tl.load(tiles + 2 * tile + 1)
    if row < 0:  # only fills up the list of a graph
        return
    row_start = tl.load(query_starts + row)
    num_queries = tl.load(query_starts + row + 1) - row_start
    first = tl.load(context_lens + row) - num_queries + first_query  # position of the tile's first query
    QUERIES: tl.constexpr = BLOCK_M // HEADS
    stop = first + tl.minimum(QUERIES, num_queries - first_query)  # behind the last one's

    m_index, d = tl.arange(0, BLOCK_M), tl.arange(0, D_PADDED)
    position = first + m_index // HEADS
    token = (row_start + first_query + m_index // HEADS).to(tl.int64)
    head = kv_head * HEADS + m_index % HEADS
    # A tile may have rows to spare: the division leaves some, and a row's last queries do not fill theirs.
    mask = ((m_index < QUERIES * HEADS) & (position < stop))[:, None] & (d < D)[None, :]
    query = tl.load(q + token[:, None] * q_stride + head[:, None] * D + d[None, :], mask=mask, other=0.0)
    acc = tl.zeros([BLOCK_M, D_PADDED], tl.float32)
    peak = tl.full([BLOCK_M], float("-inf"), tl.float32)
    mass = tl.zeros([BLOCK_M], tl.float32)

    if PAGED:
        where = block_tables + tl.load(table_rows + row).to(tl.int64) * table_stride
        keys += kv_head * BLOCK_SIZE * D
        values += kv_head * BLOCK_SIZE * D
    else:
        where = row_start
        keys += row_start.to(tl.int64) * key_stride + kv_head * D
        values += row_start.to(tl.int64) * key_stride + kv_head * D
    # Keys [begin, seen_by_all) are beyond some query's window, [seen_by_all, old) are seen by all, [old, stop) are
    # newer than some query.
    begin = 0
    seen_by_all = 0
    if WINDOW:
        begin = tl.maximum(first - window + 1, 0) // BLOCK_N * BLOCK_N
        seen_by_all = begin + tl.cdiv(tl.maximum(stop - window - begin, 0), BLOCK_N) * BLOCK_N
    old = begin + (first + 1 - begin) // BLOCK_N * BLOCK_N
    state = (acc, peak, mass)
    source = (query, keys, values, kv_scales, descriptor, where, key_stride, kv_head, num_blocks)
    sight = (position, stop, window, factor, cap, cap_factor)
    SIZES: tl.constexpr = (KV_HEADS, HEADS, D, D_PADDED, BLOCK_SIZE, BLOCK_N)
    if WINDOW:
        state = _over_keys(
            begin, tl.minimum(seen_by_all, stop), state, source, sight, SIZES, PAGED, False, WINDOW, CAP, True
        )
    state = _over_keys(seen_by_all, old, state, source, sight, SIZES, PAGED, TMA, WINDOW, CAP, False)
    state = _over_keys(tl.maximum(seen_by_all, old), stop, state, source, sight, SIZES, PAGED, False, WINDOW, CAP, True)
    acc, _, mass = state
    result = (acc / tl.where(mass > 0, mass, 1.0)[:, None]).to(out.dtype.element_ty)  # spare rows may see nothing
    tl.store(out + token[:, None] * (KV_HEADS * HEADS * D) + head[:, None] * D + d[None, :], result, mask=mask)


@triton.jit
def _over_keys(
    begin: tl.tensor,
    end: tl.tensor,
    state: tl.tuple,
    source: tl.tuple,
    sight: tl.tuple,
    SIZES: tl.constexpr,
    PAGED: tl.constexpr,
    TMA: tl.constexpr,
    WINDOW: tl.constexpr,
    CAP: tl.constexpr,
    MASKED: tl.constexpr,
) -> tl.tuple:
    """Take in the keys ``begin`` to ``end - 1``, in whole tiles unless MASKED.

    ``keys`` and ``values`` point to this head: of the first block if PAGED, else of the row's first token. ``where`` is
    the row's block table, or its first token. ``descriptor`` is ``qkv``'s.
    """
    acc, peak, mass = state
    query, keys, values, kv_scales, descriptor, where, key_stride, kv_head, num_blocks = source
    position, stop, window, factor, cap, cap_factor = sight
    KV_HEADS: tl.constexpr = SIZES[0]
    HEADS: tl.constexpr = SIZES[1]
    D: tl.constexpr = SIZES[2]
    D_PADDED: tl.constexpr = SIZES[3]
    BLOCK_SIZE: tl.constexpr = SIZES[4]
    BLOCK_N: tl.constexpr = SIZES[5]
    for start in range(begin, end, BLOCK_N):
        if TMA:
            column = (KV_HEADS * HEADS + kv_head) * D
            k = descriptor.load([where + start, column])
            v = descriptor.load([where + start, column + KV_HEADS * D])
        else:
            n = tl.arange(0, BLOCK_N)
            if MASKED:
                # Beyond the end the last key is read again: it is the row's own, so it is finite, and hidden.
                n = tl.minimum(n, stop - 1 - start)
            if PAGED:
                t = start + n
                block = tl.load(where + t // BLOCK_SIZE).to(tl.int64)
                at = block * (KV_HEADS * BLOCK_SIZE * D) + t % BLOCK_SIZE * D
            else:
                at = n * key_stride + tl.cast(start, tl.int64) * key_stride
            k = load_rows(keys, at, query, D, D_PADDED)
            v = load_rows(values, at, query, D, D_PADDED)
        score = tl.dot(query, tl.trans(k), input_precision="ieee")
        value_scales = None
        if kv_scales is not None:
            sizes = (num_blocks, KV_HEADS, BLOCK_SIZE)
            key_scales, value_scales = load_scales(kv_scales, block, kv_head, t % BLOCK_SIZE, sizes)
            score *= key_scales[None, :]
        if CAP:
            score = soft_cap(score, cap, cap_factor)
        if MASKED:
            at_key = (start + tl.arange(0, BLOCK_N))[None, :]
            seen = at_key <= position[:, None]
            if WINDOW:
                seen &= at_key > position[:, None] - window
            score = tl.where(seen, score, float("-inf"))
        acc, peak, mass = softmax_step(acc, peak, mass, score, factor, v, MASKED and WINDOW, value_scales)
    return acc, peak, mass
