"""Rows of x rounded to 8 bits, each by its own scale, alone and behind the norm: the input of `quantized_eights`.

``q = round(x / s)`` with ``s = max |x| / 127`` (int8) or ``max |x| / 448`` (e4m3), for a row or for each 128 columns of
it; or by a scale that is given. One pass over memory, since a row fits into the registers of a program: rounding behind
the norm costs nothing but the bytes, which are half of what the norm would write in 16 bits.

A normalised row is rounded to x's dtype first, as it would be if norm and product were two operations. A row with a NaN
or an infinity gets the scale NaN, so that its results are.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from octavo.kernels.triton.pdl import trigger, use_pdl, wait

GROUP = 128
"""Columns of a row that share a scale, if not all do."""


def quantize_rows(
    x: Tensor,
    dtype: torch.dtype,
    *,
    grouped: bool = False,
    scale: Tensor | None = None,
    norm_weight: Tensor | None = None,
    residual: Tensor | None = None,
    eps: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """``x [T, K]``, or ``rms_norm(x + residual)`` with a ``norm_weight``, in 8 bits.

    Args:
        x: float32 or 16 bits.
        dtype: int8 or float8_e4m3fn.
        grouped: a scale for each ``GROUP`` columns.
        scale: float32 scalar that all rows are divided by, instead of scales of their own.
        norm_weight, residual, eps: of a norm before; a float32 residual is overwritten.

    Returns:
        ``q [T, K]`` of ``dtype``; float32 scales ``[T, 1]`` or ``[T, ceil(K / GROUP)]``; the sum of x and residual.
    """
    x, (rows, k) = x.contiguous(), x.shape
    groups = triton.cdiv(k, GROUP) if grouped else 1
    q = torch.empty(rows, k, dtype=dtype, device=x.device)
    scales = torch.empty(rows, groups, dtype=torch.float32, device=x.device)
    total = None
    if residual is not None:
        residual = residual.contiguous()
        total = residual if residual.dtype == torch.float32 else torch.empty_like(residual, dtype=torch.float32)
    if rows:
        block, pdl = max(triton.next_power_of_2(k), GROUP), use_pdl(x.device)
        sizes = {"K": k, "BLOCK": block, "WIDTH": GROUP if grouped else block, "INT8": dtype == torch.int8}
        sizes["HARDWARE"] = x.device.type == "cuda"
        options = {"num_warps": min(max(block // 512, 4), 16), "launch_pdl": pdl}
        _quantize[(rows,)](x, residual, norm_weight, scale, total, q, scales, eps, PDL=pdl, **sizes, **options)
    return q, scales, total


@triton.jit
def _quantize(
    x: tl.tensor,
    residual: tl.tensor,
    norm: tl.tensor,
    given: tl.tensor,
    total: tl.tensor,
    q: tl.tensor,
    scales: tl.tensor,
    eps: float,
    K: tl.constexpr,
    BLOCK: tl.constexpr,
    WIDTH: tl.constexpr,
    INT8: tl.constexpr,
    HARDWARE: tl.constexpr,
    PDL: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    groups: tl.constexpr = BLOCK // WIDTH
    column = (tl.arange(0, groups) * WIDTH)[:, None] + tl.arange(0, WIDTH)[None, :]
    mask = column < K
    if norm is not None:
        g = tl.load(norm + column, mask=mask, other=0.0).to(tl.float32)
    wait(PDL)
    trigger(PDL)
    v = tl.load(x + row * K + column, mask=mask, other=0.0).to(tl.float32)
    if residual is not None:
        v += tl.load(residual + row * K + column, mask=mask, other=0.0).to(tl.float32)
        tl.store(total + row * K + column, v, mask=mask)
    if norm is not None:
        v = (v * tl.rsqrt(tl.sum(v * v) / K + eps) * g).to(x.dtype.element_ty).to(tl.float32)
    limit: tl.constexpr = 127.0 if INT8 else 448.0
    if given is not None:
        s = tl.zeros([groups], tl.float32) + tl.load(given)
    else:
        largest = tl.reduce(tl.abs(v), 1, _larger)
        s = tl.where(largest == 0.0, 1.0, tl.where(largest == float("inf"), float("nan"), largest)) / limit
    v = tl.div_rn(v, tl.broadcast_to(s[:, None], v.shape))
    group = tl.arange(0, groups)
    used: tl.constexpr = (K + WIDTH - 1) // WIDTH
    tl.store(scales + row * used + group, s, mask=group < used)
    if INT8:
        # The last bits of 1.5 * 2^23 and a number are the number, rounded to an even one if it is between two.
        number = ((v + 12582912.0).to(tl.int32, bitcast=True) & 0xFF).to(tl.int8)
    else:
        v = tl.minimum(tl.maximum(v, -limit), limit)
        number = (v if HARDWARE else _to_grid(v)).to(tl.float8e4nv)
    tl.store(q + row * K + column, number, mask=mask)


@triton.jit
def _to_grid(v: tl.tensor) -> tl.tensor:
    """The nearest number of e4m3, or the even one of two: Triton's interpreter does not round so."""
    bits = v.to(tl.int32, bitcast=True)
    normal = ((bits + 0x7FFFF + ((bits >> 20) & 1)) & -0x100000).to(tl.float32, bitcast=True)
    small = (v + 24576.0) - 24576.0  # multiples of 2^-9
    return tl.where(tl.abs(v) < 0.015625, small, normal)


@triton.jit
def _larger(a: tl.tensor, b: tl.tensor) -> tl.tensor:
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)
