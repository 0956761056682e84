"""Rotation, cache write and attention in one kernel, for steps of very few rows with one query each.

With few rows attention is not about bandwidth but about how many waits for memory follow each other. Separate kernels
(`rotary`, `decode_attention`) wait for queries twice, and for block numbers and keys only after that. Here a program
takes one row, one key/value head and one split of the context, and

- before ``pdl.wait``, while ``qkv`` is still being computed, loads lengths, block numbers, angles and norm weights,
  and its first tile of old keys and values into registers;
- after it loads its queries, normalises and turns them in registers, and attends at once.

The row's last split also has the new token, whose key and value never come from the cache: they begin the softmax
(weight 1, score the peak), so that no tile has to be patched. That program writes them to the cache. ``qkv`` is left
as it was.

**Why old keys may be read before the wait.** They were written by earlier steps, as were block tables and lengths. The
first kernel of a step is launched in the ordinary way, so it begins when all earlier steps have ended, and no kernel
of the step begins before it. Within a step nobody writes where another row's old tokens are: a new token's slot is in
a block of its row alone. What is stored (results, keys, values, counters) is stored after the wait.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from octavo.kernels.forward_batch import KVLayer
from octavo.kernels.triton.attention_plan import Scores, TritonPlan
from octavo.kernels.triton.attention_splits import first_and_split, leave_split, merge_splits
from octavo.kernels.triton.attention_step import Factors, soft_cap, softmax_step
from octavo.kernels.triton.decode_attention import LOADED_AT_ONCE, DecodeSettings, max_splits, min_split
from octavo.kernels.triton.pdl import trigger, wait

MAX_PAIRS = 32
"""Pairs of a row and a key/value head up to which this kernel is taken."""


def fits(qkv: Tensor, kv: KVLayer, plan: TritonPlan) -> bool:
    """Whether this kernel can compute the step, and is meant to."""
    few = plan.num_prefill_rows == 0 and 0 < plan.num_decode_rows * kv.keys.shape[1] <= MAX_PAIRS
    return few and qkv.dtype == kv.keys.dtype and qkv.stride(1) == 1 and not plan.deterministic


def settings(pairs: int, row_bytes: int, max_keys: int) -> DecodeSettings:
    """The settings for ``pairs`` rows times heads that see ``max_keys`` keys at most, of ``row_bytes`` each.

    The first tile is held in registers: 64 keys and values of 128 numbers are 64 registers of 128 threads.
    """
    length = min_split(pairs)
    splits = min(max_splits(pairs), max(1, triton.cdiv(max_keys, length)))
    return DecodeSettings(64 if row_bytes <= 256 else 32 if row_bytes <= 512 else 16, 4, 2, splits, length)


class FusedDecode:
    """Launches the kernel. Keeps the arrivals' counters, which are 0 between launches; serves one stream."""

    def __init__(self, device: torch.device) -> None:
        with torch.inference_mode(False):
            self._arrivals = torch.zeros(MAX_PAIRS, dtype=torch.int32, device=device)

    def __call__(
        self,
        qkv: Tensor,
        kv: KVLayer,
        plan: TritonPlan,
        cos_sin: Tensor,
        q_norm: Tensor | None,
        k_norm: Tensor | None,
        eps: float,
        scores: Scores,
        *,
        pdl: bool = False,
        chosen: DecodeSettings | None = None,
    ) -> Tensor:
        """``Ops.attend`` of a step that ``fits``: ``qkv [T, (Hq + 2 Hk) * D]`` to ``[T, Hq * D]``.

        Args:
            qkv: one token for each row; not overwritten.
            kv: the layer's cache; the tokens' keys and values are written to their slots.
            plan: the step's.
            cos_sin: float32 ``[positions, D]``.
            q_norm, k_norm: ``[D]``, or None.
            eps: of the norms.
            scores: scale, window and cap.
            pdl: launch as a programmatic dependent of the kernel before (from compute capability 9.0 on).
            chosen: settings other than ``settings``', to measure them.
        """
        _, hk, block_size, d = kv.keys.shape
        rows, heads = len(qkv), qkv.shape[1] // d - 2 * hk
        group = heads // hk
        keys = plan.max_decode_context if scores.window is None else min(plan.max_decode_context, scores.window)
        s = chosen or settings(rows * hk, d * qkv.element_size(), keys)
        out = qkv.new_empty(rows, heads * d)
        partials = out if s.splits == 1 else qkv.new_empty(rows * heads * s.splits * (d + 1), dtype=torch.float32)
        sizes = {"HEADS": group, "D": d, "TILE": s.tile, "WINDOW": scores.window is not None, "PDL": pdl}
        _decode_fused[(rows, hk, s.splits)](
            qkv,
            kv.keys,
            kv.values,
            out,
            partials,
            self._arrivals,
            plan.positions,
            plan.slot_mapping,
            plan.rows.context_lens,
            plan.rows.table_rows,
            plan.block_tables,
            cos_sin,
            q_norm,
            k_norm,
            eps,
            qkv.stride(0),
            plan.block_tables.stride(0),
            scores.window or 0,
            s.min_split,
            *Factors.of(scores),
            **sizes,
            HEADS_PADDED=max(16, triton.next_power_of_2(group)),
            D_PADDED=max(16, triton.next_power_of_2(d)),
            BLOCK_SIZE=block_size,
            NORM=q_norm is not None,
            CAP=scores.soft_cap is not None,
            SPLIT=s.splits > 1,
            COUNT=s.count_arrivals,
            AT_ONCE=LOADED_AT_ONCE * s.num_warps,
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
                None,
                scores.window or 0,
                s.min_split,
                s.splits,
                **sizes,
                ALL_ROWS=True,
                AT_ONCE=LOADED_AT_ONCE * 4,
                num_warps=4,
                **({"launch_pdl": True} if pdl else {}),
            )
        return out


@triton.jit(
    do_not_specialize=["window", "min_split", "table_stride"],
    do_not_specialize_on_alignment=["positions", "slots", "context_lens", "table_rows", "block_tables"],
)
def _decode_fused(
    qkv: tl.tensor,
    keys: tl.tensor,
    values: tl.tensor,
    out: tl.tensor,
    partials: tl.tensor,
    arrivals: tl.tensor,
    positions: tl.tensor,
    slots: tl.tensor,
    context_lens: tl.tensor,
    table_rows: tl.tensor,
    block_tables: tl.tensor,
    cos_sin: tl.tensor,
    q_norm: tl.tensor,
    k_norm: tl.tensor,
    eps: float,
    stride: int,
    table_stride: int,
    window: int,
    min_split: int,
    factor: float,
    cap: float,
    cap_factor: float,
    HEADS: tl.constexpr,  # query heads of a key/value head
    HEADS_PADDED: tl.constexpr,
    D: tl.constexpr,
    D_PADDED: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    TILE: tl.constexpr,
    NORM: tl.constexpr,
    WINDOW: tl.constexpr,
    CAP: tl.constexpr,
    SPLIT: tl.constexpr,
    COUNT: tl.constexpr,
    AT_ONCE: tl.constexpr,
    PDL: tl.constexpr,
) -> None:
    row, kv_head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    kv_heads = tl.num_programs(1)
    context = tl.load(context_lens + row)
    position = tl.load(positions + row).to(tl.int64)
    slot = tl.load(slots + row).to(tl.int64)
    table = block_tables + tl.load(table_rows + row).to(tl.int64) * table_stride
    first, length, used = first_and_split(context, window, min_split, tl.num_programs(2), TILE, WINDOW)
    if split >= used:
        return
    start = first + split * length
    old = tl.minimum(start + length, context - 1)  # the end of the split's tokens that are in the cache

    head, d = tl.arange(0, HEADS_PADDED)[:, None], tl.arange(0, D_PADDED)[None, :]
    low = d < D // 2
    other = tl.where(low, d + D // 2, d - D // 2)  # the column with which this one is turned
    angle = cos_sin + position * D + tl.where(low, d, other)
    cos = tl.load(angle, mask=d < D, other=0.0)
    sin = tl.load(angle + D // 2, mask=d < D, other=0.0)
    sin = tl.where(low, -sin, sin)
    q_weight, k_weight = (), ()
    if NORM:
        q_weight = _load_pair(q_norm, d, other, d < D, False)
        k_weight = _load_pair(k_norm, d, other, d < D, False)
    k_tile, v_tile = _load_tile(keys, values, table, start, old, kv_head, kv_heads, D, D_PADDED, BLOCK_SIZE, TILE)
    wait(PDL)
    trigger(PDL)

    own = qkv + row.to(tl.int64) * stride
    # Volatile loads stay in order: else the compiler puts off some until the others have arrived, and waits twice.
    new_value = tl.load(own + (kv_heads * (HEADS + 1) + kv_head) * D + d, mask=d < D, other=0.0, volatile=True)
    new_key = _load_pair(own + (kv_heads * HEADS + kv_head) * D, d, other, d < D, True)
    query = _load_pair(own + (kv_head * HEADS + head) * D, d, other, (head < HEADS) & (d < D), True)
    query = _turn(query, q_weight, cos, sin, eps, D, NORM).to(keys.dtype.element_ty)
    new_key = _turn(new_key, k_weight, cos, sin, eps, D, NORM).to(keys.dtype.element_ty)
    last = (split == used - 1) & (context > 0)
    if last & (slot >= 0):
        place = ((slot // BLOCK_SIZE * kv_heads + kv_head) * BLOCK_SIZE + slot % BLOCK_SIZE) * D + d
        tl.store(keys + place, new_key, mask=d < D)
        tl.store(values + place, new_value, mask=d < D)

    score = tl.sum(query.to(tl.float32) * new_key.to(tl.float32), axis=1)
    if CAP:
        score = soft_cap(score, cap, cap_factor)
    peak = tl.where(last, score * factor, float("-inf"))
    mass = tl.where(last, 1.0, 0.0) + tl.zeros([HEADS_PADDED], tl.float32)
    acc = tl.where(last, new_value.to(tl.float32), 0.0) + tl.zeros([HEADS_PADDED, D_PADDED], tl.float32)
    sight = (factor, cap, cap_factor)
    acc, peak, mass = _take_in(acc, peak, mass, query, k_tile, v_tile, start, old, sight, TILE, CAP, True)
    for tile in range(start + TILE, old, TILE):
        k_tile, v_tile = _load_tile(keys, values, table, tile, old, kv_head, kv_heads, D, D_PADDED, BLOCK_SIZE, TILE)
        acc, peak, mass = _take_in(acc, peak, mass, query, k_tile, v_tile, tile, old, sight, TILE, CAP, False)

    result = acc / tl.where(mass > 0, mass, 1.0)[:, None]  # an empty row, which only fills up a graph's batch, gives 0
    log = peak + tl.log2(mass)
    token = row.to(tl.int64)
    leave_split(out, partials, arrivals, token, row, kv_head, split, used, result, log, HEADS, D, SPLIT, COUNT, AT_ONCE)


@triton.jit
def _load_pair(
    x: tl.tensor, d: tl.tensor, other: tl.tensor, mask: tl.tensor, IN_ORDER: tl.constexpr
) -> tuple[tl.tensor, tl.tensor]:
    """The numbers at ``x`` in columns ``d``, and those in the columns with which they are turned."""
    own = tl.load(x + d, mask=mask, other=0.0, volatile=IN_ORDER)
    return own, tl.load(x + other, mask=mask, other=0.0, volatile=IN_ORDER)


@triton.jit
def _turn(
    x: tl.tuple, weight: tl.tuple, cos: tl.tensor, sin: tl.tensor, eps: float, D: tl.constexpr, NORM: tl.constexpr
) -> tl.tensor:
    """Heads ``[N, D_PADDED]``, given as ``_load_pair`` gives them, normalised and turned, in float32."""
    own, other = x[0].to(tl.float32), x[1].to(tl.float32)
    if NORM:
        scale = tl.rsqrt(tl.sum(own * own, axis=1) / D + eps)[:, None]
        own = own * scale * weight[0].to(tl.float32)
        other = other * scale * weight[1].to(tl.float32)
    return own * cos + other * sin


@triton.jit
def _load_tile(
    keys: tl.tensor,
    values: tl.tensor,
    table: tl.tensor,
    start: tl.tensor,
    end: tl.tensor,
    kv_head: tl.tensor,
    kv_heads: tl.tensor,
    D: tl.constexpr,
    D_PADDED: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    TILE: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """Keys and values ``start`` to ``start + TILE - 1`` of the cache, 0 from ``end`` on."""
    t, d = start + tl.arange(0, TILE), tl.arange(0, D_PADDED)[None, :]
    block = tl.load(table + t // BLOCK_SIZE, mask=t < end, other=0).to(tl.int64)
    at = (((block * kv_heads + kv_head) * BLOCK_SIZE + t % BLOCK_SIZE) * D)[:, None] + d
    mask = (t < end)[:, None] & (d < D)
    return tl.load(keys + at, mask=mask, other=0.0), tl.load(values + at, mask=mask, other=0.0)


@triton.jit
def _take_in(
    acc: tl.tensor,
    peak: tl.tensor,
    mass: tl.tensor,
    query: tl.tensor,
    k: tl.tensor,
    v: tl.tensor,
    start: tl.tensor,
    end: tl.tensor,
    sight: tl.tuple,
    TILE: tl.constexpr,
    CAP: tl.constexpr,
    MAY_SEE_NOTHING: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """The softmax's state after the keys of a tile that stand before ``end``."""
    factor, cap, cap_factor = sight
    score = tl.dot(query, tl.trans(k), input_precision="ieee")
    if CAP:
        score = soft_cap(score, cap, cap_factor)
    score = tl.where((start + tl.arange(0, TILE) < end)[None, :], score, float("-inf"))
    return softmax_step(acc, peak, mass, score, factor, v, MAY_SEE_NOTHING)
