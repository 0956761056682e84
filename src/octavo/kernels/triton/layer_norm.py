"""LayerNorm (arXiv:1607.06450) behind the addition to the residual stream: `norm` with a mean to subtract, and a bias.

A row is in the registers of one program, so mean and variance are sums over what is there already: the second one is of
squared distances from the mean, which loses nothing where the mean is large.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from octavo.kernels.triton.pdl import trigger, wait


@triton.jit(do_not_specialize=["num_rows"])
def _add_layer_norm(
    x: tl.tensor,
    residual: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    total: tl.tensor,
    out: tl.tensor,
    num_rows: int,
    eps: float,
    H: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
) -> None:
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]
    column = tl.arange(0, BLOCK)[None, :]
    mask = (row < num_rows) & (column < H)
    offsets = row * H + column
    w = tl.load(weight + column, mask=column < H, other=0.0).to(tl.float32)
    b = tl.load(bias + column, mask=column < H, other=0.0).to(tl.float32)
    wait(PDL)
    trigger(PDL)
    values = tl.load(x + offsets, mask=mask, other=0.0).to(tl.float32)
    if residual is not None:
        values += tl.load(residual + offsets, mask=mask, other=0.0).to(tl.float32)
        tl.store(total + offsets, values, mask=mask)
    mean = tl.sum(values, axis=1)[:, None] / H
    centred = tl.where(column < H, values - mean, 0.0)
    variance = tl.sum(centred * centred, axis=1)[:, None] / H
    normed = centred * tl.rsqrt(variance + eps) * w + b
    tl.store(out + offsets, normed.to(out.dtype.element_ty), mask=mask)


def add_layer_norm(
    x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor, eps: float, *, pdl: bool = False
) -> tuple[Tensor, Tensor]:
    """``(layer_norm(x + residual), x + residual)`` of ``[T, H]``, as ``Ops.add_layer_norm``: the first is new memory in
    x's dtype, the sum is float32 and overwrites a float32 residual. Without a residual it is x.
    """
    x, out, total = x.contiguous(), torch.empty_like(x, memory_format=torch.contiguous_format), x
    if residual is not None:
        residual = residual.contiguous()
        total = residual if residual.dtype == torch.float32 else torch.empty_like(residual, dtype=torch.float32)
    if len(x):
        grid, tile = _tiling(*x.shape)
        _add_layer_norm[grid](*(x, residual, weight, bias, total, out, len(x), eps), PDL=pdl, launch_pdl=pdl, **tile)
    return out, total


def _tiling(num_rows: int, hidden: int) -> tuple[tuple[int], dict[str, int]]:
    """The grid, and the kernel's constants: as in `norm`, short rows share a program."""
    block = triton.next_power_of_2(hidden)
    rows = max(1, 1024 // block)
    warps = min(max(rows * block // 256, 4), 8 if block <= 4096 else 16)
    return (triton.cdiv(num_rows, rows),), {"H": hidden, "ROWS": rows, "BLOCK": block, "num_warps": warps}
