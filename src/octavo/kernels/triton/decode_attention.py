"""Attention of rows with one query: flash decoding over the paged cache (Dao et al., "Flash-Decoding", 2023).

Decoding reads every cached key and value once and computes little, so the goal is bandwidth: all multiprocessors must
have loads in flight. A program takes one row, one key/value head and one stretch ("split") of the context. The query
heads that share the key/value head are the rows of one small matrix (at least 16 rows, which is what a tensor core
takes), so keys are read once for all of them. Floor: bytes of the keys and values over the bandwidth.

Each split gives the softmax of its own keys and the logarithm of their weights' sum; the last program of a row and head
to arrive adds them up, always in the order of the splits. How many splits a row gets follows from its own context, read
on the device; the host chooses only how many there may be. So a CUDA graph serves any lengths up to a bound.

Measured before on an H100 (bfloat16, 16-token blocks): 90 to 96% of the bandwidth for heads of 128, 84 to 91% for 64.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from octavo.kernels.forward_batch import KVLayer
from octavo.kernels.triton.attention_plan import Scores, TritonPlan
from octavo.kernels.triton.attention_splits import first_and_split, leave_split, merge_splits
from octavo.kernels.triton.attention_step import Factors, load_rows, load_scales, soft_cap, softmax_step
from octavo.kernels.triton.pdl import trigger, wait

MAX_COUNTED = 1 << 16
"""Pairs of a row and a head for which arrivals can be counted. Only small batches are split, so more are rare."""
WANTED_PROGRAMS = 264
"""Two for each of an H100's 132 multiprocessors; batches that give fewer are split."""
LOADED_AT_ONCE = 1024
"""Numbers of partial results that a warp loads before it uses the first: 32 registers of a thread."""
MAX_SPLITS = 33
MIN_SPLITS = 4
"""Splits that a row may have even in a large batch, so that one long row does not keep all others waiting."""
IDLE_PROGRAMS = 8192
"""Programs of a large batch, for splits that only long rows have: the others leave at once, but are not free."""
LONG_SPLIT = 2048
"""Keys of a split in a batch that fills the device without splits: only rows that are longer are split."""
DETERMINISTIC_SPLIT = 512


class DecodeSettings(NamedTuple):
    """How a launch is cut.

    Attributes:
        tile: keys that a program takes at once.
        num_warps: of a program.
        num_stages: tiles that are under way at once, plus one.
        splits: stretches that a row may be cut into: the third dimension of the grid.
        min_split: keys that a stretch has at least, unless it is the last: a multiple of ``tile``.
        count_arrivals: the last program adds up the splits; else a second kernel does.
    """

    tile: int
    num_warps: int
    num_stages: int
    splits: int
    min_split: int
    count_arrivals: bool = True


def settings(
    num_rows: int, num_kv_heads: int, group: int, row_bytes: int, max_keys: int, deterministic: bool
) -> DecodeSettings:
    """The settings for rows that see ``max_keys`` keys at most, of ``row_bytes`` a head, ``group`` query heads to each.

    Measured on an H100, bfloat16. 8 rows of 1025 keys, 8 heads of 128: 17.8 us with (tile 16, 1 warp, 6 stages), 20.0
    with (64, 4, 2); of 64: 12.1 and 14.2. 64 rows of 1025 keys: 102 us unsplit, 106 in splits of 512; 256 rows of 100
    to 2000 keys: 391 with tiles of 128 unsplit, 397 in splits of 512. 63 rows of 500 keys and one of 32768: 136 us
    in 16 splits, 257 in 4.
    """
    programs = num_rows * num_kv_heads
    small = 64 if row_bytes <= 512 else 32  # a tile's keys and values must fit into shared memory
    counted = programs <= MAX_COUNTED
    if deterministic:
        splits = triton.cdiv(max_keys, DETERMINISTIC_SPLIT)
        return DecodeSettings(small, 4, 2, max(1, splits), DETERMINISTIC_SPLIT, counted)
    length = min_split(programs)
    splits = min(max_splits(programs), max(1, triton.cdiv(max_keys, length)))
    if 2 * programs < WANTED_PROGRAMS and row_bytes <= 256 and group <= 16:
        return DecodeSettings(16, 1, 6, splits, length, counted)
    tile = 128 if programs >= 1024 and row_bytes <= 256 else small
    return DecodeSettings(tile, 4, 2, splits, length, counted)


def min_split(programs: int) -> int:
    """Keys of a split at least, for so many pairs of a row and a key/value head.

    Rows of about 1000 keys become as many programs as are wanted.
    """
    if programs >= WANTED_PROGRAMS:
        return LONG_SPLIT
    return max(64, triton.next_power_of_2(1024 * programs // WANTED_PROGRAMS))


def max_splits(programs: int) -> int:
    """Splits of a row at most, for so many pairs of a row and a key/value head."""
    few = 4 * WANTED_PROGRAMS // programs
    many = max(MIN_SPLITS, min(16, IDLE_PROGRAMS // programs))
    return min(MAX_SPLITS, max(few, many))


class DecodeAttention:
    """Launches the kernels. Keeps the arrivals' counters, which are 0 between launches; serves one stream."""

    def __init__(self, device: torch.device) -> None:
        with torch.inference_mode(False):
            self._arrivals = torch.zeros(MAX_COUNTED, dtype=torch.int32, device=device)

    def __call__(
        self,
        q: Tensor,
        kv: KVLayer,
        out: Tensor,
        plan: TritonPlan,
        scores: Scores,
        *,
        pdl: bool = False,
        chosen: DecodeSettings | None = None,
    ) -> None:
        """Write the results of the plan's decode rows into ``out [T, Hq * D]``.

        Args:
            q: ``[T, Hq, D]``, heads one behind the other.
            kv: the layer's cache.
            out: other rows' results are left alone.
            plan: the step's.
            scores: scale, window and cap.
            pdl: launch before the previous kernel has ended, and wait for it in the kernel (from sm90 on).
            chosen: settings other than ``settings``', to measure them.
        """
        num_heads, d = q.shape[1], q.shape[2]
        _, hk, block_size, _ = kv.keys.shape
        rows, group = plan.num_decode_rows, num_heads // hk
        keys = plan.max_decode_context if scores.window is None else min(plan.max_decode_context, scores.window)
        row_bytes = d * max(q.element_size(), kv.keys.element_size())  # a tile is held as it is computed with
        s = chosen or settings(rows, hk, group, row_bytes, keys, plan.deterministic)
        partials = out if s.splits == 1 else q.new_empty(rows * hk * s.splits * group * (d + 1), dtype=torch.float32)
        padded = {"HEADS": group, "HEADS_PADDED": max(16, triton.next_power_of_2(group)), "D": d}
        padded["D_PADDED"] = max(16, triton.next_power_of_2(d))
        _decode[(rows, hk, s.splits)](
            q,
            kv.keys,
            kv.values,
            kv.scales,
            out,
            partials,
            self._arrivals,
            plan.rows.query_starts,
            plan.rows.context_lens,
            plan.rows.table_rows,
            plan.block_tables,
            plan.decode_rows,
            q.stride(0),
            plan.block_tables.stride(0),
            scores.window or 0,
            s.min_split,
            len(kv.keys),
            *Factors.of(scores),
            **padded,
            BLOCK_SIZE=block_size,
            TILE=s.tile,
            ALL_ROWS=plan.decode_rows is None,
            WINDOW=scores.window is not None,
            CAP=scores.soft_cap is not None,
            SPLIT=s.splits > 1,
            COUNT=s.count_arrivals,
            AT_ONCE=LOADED_AT_ONCE * s.num_warps,
            PDL=pdl,
            num_warps=s.num_warps,
            num_stages=s.num_stages,
            **({"launch_pdl": True} if pdl else {}),
        )
        if s.splits > 1 and not s.count_arrivals:
            merge_splits[(rows, hk)](
                out,
                partials,
                plan.rows.query_starts,
                plan.rows.context_lens,
                plan.decode_rows,
                scores.window or 0,
                s.min_split,
                s.splits,
                HEADS=group,
                D=d,
                TILE=s.tile,
                ALL_ROWS=plan.decode_rows is None,
                WINDOW=scores.window is not None,
                AT_ONCE=LOADED_AT_ONCE * 4,
                PDL=pdl,
                num_warps=4,
                **({"launch_pdl": True} if pdl else {}),
            )


@triton.jit(
    do_not_specialize=["window", "min_split", "table_stride", "num_blocks"],
    do_not_specialize_on_alignment=["query_starts", "context_lens", "table_rows", "block_tables", "decode_rows"],
)
def _decode(
    q: tl.tensor,
    keys: tl.tensor,
    values: tl.tensor,
    scales: tl.tensor | None,
    out: tl.tensor,
    partials: tl.tensor,
    arrivals: tl.tensor,
    query_starts: tl.tensor,
    context_lens: tl.tensor,
    table_rows: tl.tensor,
    block_tables: tl.tensor,
    decode_rows: tl.tensor,
    q_stride: int,
    table_stride: int,
    window: int,
    min_split: int,
    num_blocks: int,
    factor: float,
    cap: float,
    cap_factor: float,
    HEADS: tl.constexpr,  # query heads of a key/value head
    HEADS_PADDED: tl.constexpr,
    D: tl.constexpr,
    D_PADDED: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    TILE: tl.constexpr,
    ALL_ROWS: tl.constexpr,
    WINDOW: tl.constexpr,
    CAP: tl.constexpr,
    SPLIT: tl.constexpr,
    COUNT: tl.constexpr,
    AT_ONCE: tl.constexpr,
    PDL: tl.constexpr,
) -> None:
    index, kv_head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    line = index if ALL_ROWS else tl.load(decode_rows + index)
    row = tl.maximum(line, 0)
    context = tl.load(context_lens + row)
    table = block_tables + tl.load(table_rows + row).to(tl.int64) * table_stride
    token = tl.load(query_starts + row).to(tl.int64)
    first, length, used = first_and_split(context, window, min_split, tl.num_programs(2), TILE, WINDOW)
    # A program without work need not wait: it touches nothing, and the row's first program waits for all.
    if (split >= used) | (line < 0):
        return
    # The kernel before wrote this step's queries, keys and values. It lets this one begin only after its own wait, so
    # lengths and tables, which are older, could be read before.
    wait(PDL)
    trigger(PDL)

    heads, d = tl.arange(0, HEADS_PADDED), tl.arange(0, D_PADDED)
    mask = (heads < HEADS)[:, None] & (d < D)[None, :]
    places = (kv_head * HEADS + heads)[:, None] * D + d[None, :]
    query = tl.load(q + token * q_stride + places, mask=mask, other=0.0)
    acc = tl.zeros([HEADS_PADDED, D_PADDED], tl.float32)
    peak = tl.full([HEADS_PADDED], float("-inf"), tl.float32)
    mass = tl.zeros([HEADS_PADDED], tl.float32)
    start = first + split * length
    end = tl.minimum(start + length, context)
    kv_heads = tl.num_programs(1)
    for tile in range(start, end, TILE):
        position = tile + tl.arange(0, TILE)
        # Beyond the end the last key is read again: it is this row's own, so it is finite, and its score is hidden.
        t = tl.minimum(position, end - 1)
        block = tl.load(table + t // BLOCK_SIZE).to(tl.int64)
        at = ((block * kv_heads + kv_head) * BLOCK_SIZE + t % BLOCK_SIZE) * D
        k = load_rows(keys, at, query, D, D_PADDED)
        v = load_rows(values, at, query, D, D_PADDED)
        score = tl.dot(query, tl.trans(k), input_precision="ieee")
        value_scales = None
        if scales is not None:
            sizes = (num_blocks, kv_heads, BLOCK_SIZE)
            key_scales, value_scales = load_scales(scales, block, kv_head, t % BLOCK_SIZE, sizes)
            score *= key_scales[None, :]
        if CAP:
            score = soft_cap(score, cap, cap_factor)
        score = tl.where((position < end)[None, :], score, float("-inf"))
        acc, peak, mass = softmax_step(acc, peak, mass, score, factor, v, False, value_scales)
    result = acc / tl.where(mass > 0, mass, 1.0)[:, None]  # an empty row, which only fills up a graph's batch, gives 0
    log = peak + tl.log2(mass)
    leave_split(
        out, partials, arrivals, token, index, kv_head, split, used, result, log, HEADS, D, SPLIT, COUNT, AT_ONCE
    )
