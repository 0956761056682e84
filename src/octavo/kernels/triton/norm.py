"""Root mean square normalisation (arXiv:1910.07467), alone and behind the addition to the residual stream.

Both are one pass over memory, because a whole row fits into the registers of one program: load it, (add,) sum the
squares, scale, store. Floor in bytes for T rows of H: ``rms_norm`` reads and writes x; ``add_rms_norm`` reads x and
the stream, writes the stream and the result, of which the float32 stream is two thirds in a 16-bit model. Arithmetic
is a few operations a number and never the limit.

Tiling: one row a program with enough threads that each holds 8 to 32 numbers of it, so that all loads of a row are in
flight at once and several programs share a multiprocessor. Short rows (a head of a query) are taken several at a time.
The row's length is a compile-time constant: it differs between models, not between calls.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from octavo.kernels.triton.pdl import trigger, wait

TILE = 1024
"""Rows shorter than this share a program."""


@triton.jit
def _normalise(x: tl.tensor, weight: tl.tensor, eps: float, H: tl.constexpr) -> tl.tensor:
    """``x [rows, columns]`` float32, 0 beyond column H, to ``x / rms(x) * weight``."""
    mean_square = tl.sum(x * x, axis=1) / H
    return x * tl.rsqrt(mean_square + eps)[:, None] * weight.to(tl.float32)


@triton.jit(do_not_specialize=["num_rows"])
def _rms_norm(
    x: tl.tensor,
    weight: tl.tensor,
    out: tl.tensor,
    num_rows: int,
    x_stride: int,
    eps: float,
    H: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
    EARLY: tl.constexpr,
) -> None:
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]
    column = tl.arange(0, BLOCK)[None, :]
    mask = (row < num_rows) & (column < H)
    trigger(PDL and EARLY)
    w = tl.load(weight + column, mask=mask, other=0.0)
    wait(PDL)
    trigger(PDL and not EARLY)
    values = tl.load(x + row * x_stride + column, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + row * H + column, _normalise(values, w, eps, H), mask=mask)


@triton.jit(do_not_specialize=["num_rows"])
def _add_rms_norm(
    x: tl.tensor,
    residual: tl.tensor,
    weight: tl.tensor,
    total: tl.tensor,
    out: tl.tensor,
    num_rows: int,
    eps: float,
    H: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
    EARLY: tl.constexpr,
) -> None:
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]
    column = tl.arange(0, BLOCK)[None, :]
    mask = (row < num_rows) & (column < H)
    offsets = row * H + column
    trigger(PDL and EARLY)
    w = tl.load(weight + column, mask=mask, other=0.0)
    wait(PDL)
    trigger(PDL and not EARLY)
    values = tl.load(residual + offsets, mask=mask, other=0.0).to(tl.float32)
    values += tl.load(x + offsets, mask=mask, other=0.0).to(tl.float32)
    tl.store(total + offsets, values, mask=mask)
    tl.store(out + offsets, _normalise(values, w, eps, H), mask=mask)


def rms_norm(x: Tensor, weight: Tensor, eps: float, *, pdl: bool = False, early: bool = False) -> Tensor:
    """``x / sqrt(mean(x²) + eps) * weight`` over the last dimension of ``x [..., H]``; sums are float32.

    ``weight [H]``; the result is a new contiguous tensor in x's dtype. ``pdl``: see `pdl`. ``early``: the next kernel
    may begin before x is known, to ask for its weights meanwhile.
    """
    rows = x.reshape(-1, x.shape[-1])
    rows = rows if rows.stride(1) == 1 else rows.contiguous()
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if len(rows):
        grid, tile = _tiling(*rows.shape)
        _rms_norm[grid](rows, weight, out, len(rows), rows.stride(0), eps, PDL=pdl, EARLY=early, launch_pdl=pdl, **tile)
    return out


def add_rms_norm(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float, *, pdl: bool = False, early: bool = False
) -> tuple[Tensor, Tensor]:
    """``(rms_norm(x + residual), x + residual)`` of ``x, residual [T, H]``, the first in x's dtype, the sum float32.

    The sum overwrites a float32 residual, and the result overwrites x, so that later layers need no new memory.
    """
    x, residual = x.contiguous(), residual.contiguous()
    total = residual if residual.dtype == torch.float32 else torch.empty_like(residual, dtype=torch.float32)
    if len(x):
        grid, tile = _tiling(*x.shape)
        _add_rms_norm[grid](x, residual, weight, total, x, len(x), eps, PDL=pdl, EARLY=early, launch_pdl=pdl, **tile)
    return x, total


def _tiling(num_rows: int, hidden: int) -> tuple[tuple[int], dict[str, int]]:
    """The grid, and the kernel's constants: 8 numbers a thread up to 2048 columns, 16 or 32 of longer rows."""
    block = triton.next_power_of_2(hidden)
    rows = max(1, TILE // block)
    warps = min(max(rows * block // 256, 4), 8 if block <= 4096 else 16)
    return (triton.cdiv(num_rows, rows),), {"H": hidden, "ROWS": rows, "BLOCK": block, "num_warps": warps}
