"""Queries and keys are normalised and turned, keys and values are written into the paged cache: one kernel, one pass.

``qkv`` is read once. Turned queries and keys go back to where they were read, so that no other memory is needed and a
fresh prompt's attention can read keys and values from ``qkv`` without looking up blocks; keys and values also go to
their slots in the cache. Floor for T tokens: ``T * D * (2 Hq + 3 Hk + 2 Hk)`` numbers (values are not written back).

RoPE (arXiv:2104.09864) turns the pairs ``(x[i], x[i + D/2])``, so a program holds the two halves of some heads of one
token as two tiles ``[heads, D/2]``, and turning is four products without any exchange between threads. The token's
angles are loaded once a program. All three kinds of heads go through the same tile, for values the angle is 0: masks
decide what is stored where. 1024 numbers a tile with 128 threads are one 16-byte access each.

Programmatic dependent launch (`pdl`): besides the model's parameters, positions and slots are read before the kernel
waits for the one that computes ``qkv``. So the first kernel of a step, which looks up the embeddings, is launched in
the ordinary way: it begins when whatever wrote positions and slots has ended, and all others begin after it.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from octavo.kernels.forward_batch import KVLayer
from octavo.kernels.triton.pdl import trigger, wait

TILE = 1024
"""Numbers in each half of a program's heads."""


@triton.jit
def _norm_scale(low: tl.tensor, high: tl.tensor, eps: float, D: tl.constexpr) -> tl.tensor:
    """``1 / rms`` of each head: [heads, 1]."""
    return tl.rsqrt(tl.sum(low * low + high * high, axis=1) / D + eps)[:, None]


@triton.jit
def _head_weight(q_norm: tl.tensor, k_norm: tl.tensor, is_q: tl.tensor, is_k: tl.tensor) -> tl.tensor:
    """Each head's own norm weight, [heads, D/2]: loaded as heads are, so that it is where it is needed."""
    return (tl.load(q_norm, mask=is_q, other=0.0) + tl.load(k_norm, mask=is_k, other=0.0)).to(tl.float32)


@triton.jit(do_not_specialize=["num_blocks"], do_not_specialize_on_alignment=["positions", "slots"])
def _rotate_and_store(
    qkv: tl.tensor,
    positions: tl.tensor,
    slots: tl.tensor,
    cos_sin: tl.tensor,
    q_norm: tl.tensor,
    k_norm: tl.tensor,
    keys: tl.tensor,
    values: tl.tensor,
    scales: tl.tensor | None,
    stride: int,
    num_blocks: int,
    eps: float,
    HQ: tl.constexpr,
    HK: tl.constexpr,
    D: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    HEADS: tl.constexpr,
    HALF: tl.constexpr,
    NORM: tl.constexpr,
    PDL: tl.constexpr,
) -> None:
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)[:, None]
    column = tl.arange(0, HALF)[None, :]
    in_head = column < D // 2
    is_q = (head < HQ) & in_head
    is_k = (head >= HQ) & (head < HQ + HK) & in_head
    is_v = (head >= HQ + HK) & (head < HQ + 2 * HK) & in_head

    angle = cos_sin + tl.load(positions + token).to(tl.int64) * D + column
    cos = tl.load(angle, mask=is_q | is_k, other=1.0)
    sin = tl.load(angle + D // 2, mask=is_q | is_k, other=0.0)
    slot = tl.load(slots + token).to(tl.int64)
    if NORM:
        low_weight = _head_weight(q_norm + column, k_norm + column, is_q, is_k)
        high_weight = _head_weight(q_norm + D // 2 + column, k_norm + D // 2 + column, is_q, is_k)
    wait(PDL)
    trigger(PDL)

    own = qkv + token * stride + head * D + column
    raw_low = tl.load(own, mask=is_q | is_k | is_v, other=0.0)
    raw_high = tl.load(own + D // 2, mask=is_q | is_k | is_v, other=0.0)
    low, high = raw_low.to(tl.float32), raw_high.to(tl.float32)
    if NORM:
        scale = _norm_scale(low, high, eps, D)
        low, high = low * scale * low_weight, high * scale * high_weight
    # A value is not multiplied by 1, but kept: it may be infinite.
    new_low = tl.where(is_v, raw_low, (low * cos - high * sin).to(raw_low.dtype))
    new_high = tl.where(is_v, raw_high, (high * cos + low * sin).to(raw_low.dtype))
    tl.store(own, new_low, mask=is_q | is_k)
    tl.store(own + D // 2, new_high, mask=is_q | is_k)

    block, offset = slot // BLOCK_SIZE, slot % BLOCK_SIZE
    kv_head = tl.where(is_v, head - HQ - HK, head - HQ)
    line = (block * HK + kv_head) * BLOCK_SIZE + offset
    place = line * D + column
    if scales is not None:
        new_low, new_high, scale = _quantized(new_low, new_high)
        first, is_kv = column == 0, is_k | is_v
        side = tl.where(is_v, tl.cast(num_blocks, tl.int64) * HK * BLOCK_SIZE, 0)
        tl.store(scales + side + line, tl.broadcast_to(scale, side.shape), mask=first & is_kv & (slot >= 0))
    tl.store(keys + place, new_low, mask=is_k & (slot >= 0))
    tl.store(keys + place + D // 2, new_high, mask=is_k & (slot >= 0))
    tl.store(values + place, new_low, mask=is_v & (slot >= 0))
    tl.store(values + place + D // 2, new_high, mask=is_v & (slot >= 0))


@triton.jit
def _quantized(low: tl.tensor, high: tl.tensor) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """The two halves of heads ``[heads, D/2]`` as int8, and the scales ``[heads, 1]``: the largest of each over 127."""
    low, high = low.to(tl.float32), high.to(tl.float32)
    largest = tl.maximum(tl.max(tl.abs(low), axis=1), tl.max(tl.abs(high), axis=1))[:, None]
    scale = largest / 127
    step = tl.where(scale > 0, scale, 1.0)
    return _rounded(low / step), _rounded(high / step), scale


@triton.jit
def _rounded(x: tl.tensor) -> tl.tensor:
    return tl.minimum(tl.maximum(tl.floor(x + 0.5), -127.0), 127.0).to(tl.int8)


def rotate_and_store(
    qkv: Tensor,
    positions: Tensor,
    slots: Tensor,
    cos_sin: Tensor,
    q_norm: Tensor | None,
    k_norm: Tensor | None,
    eps: float,
    kv: KVLayer,
    *,
    pdl: bool = False,
) -> Tensor:
    """See ``Ops.rotate_and_store``.

    Args:
        qkv: ``[T, (Hq + 2 Hk) * D]``, rows contiguous. Its queries and keys are overwritten by the turned ones.
        positions, slots: ``[T]`` int64 or int32. A negative slot writes nothing: padding of a graph's batch.
        pdl: launch as a programmatic dependent of the kernel before (from compute capability 9.0 on).

    Returns:
        The queries ``[T, Hq, D]``: a view of ``qkv``.
    """
    _, hk, block_size, d = kv.keys.shape
    tokens, heads = len(qkv), qkv.shape[1] // d
    q = qkv[:, : (heads - 2 * hk) * d].unflatten(1, (heads - 2 * hk, d))
    if tokens == 0:
        return q
    tile = _tile(heads, d)
    _rotate_and_store[(tokens, triton.cdiv(heads, tile["HEADS"]))](
        qkv,
        positions,
        slots,
        cos_sin,
        q_norm,
        k_norm,
        kv.keys,
        kv.values,
        kv.scales,
        qkv.stride(0),
        len(kv.keys),
        eps,
        HQ=heads - 2 * hk,
        HK=hk,
        D=d,
        BLOCK_SIZE=block_size,
        NORM=q_norm is not None,
        PDL=pdl,
        launch_pdl=pdl,
        **tile,
    )
    return q


def _tile(heads: int, d: int) -> dict[str, int]:
    half = triton.next_power_of_2(d // 2)
    return {"HEADS": max(1, min(TILE // half, triton.next_power_of_2(heads))), "HALF": half, "num_warps": 4}
