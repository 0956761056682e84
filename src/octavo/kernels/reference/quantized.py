"""What the packed forms of `octavo.kernels.packed` stand for, and products with them: exact, and slow.

A product expands some rows at a time to float32, so that it needs little memory beside the packed weight.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from octavo.ggml.block_types import dequantize as expand_blocks
from octavo.kernels.packed import (
    FP8_MAX,
    BlockWeight,
    Fp8Weight,
    Int4Weight,
    Int8Weight,
    Operand,
    PackedWeight,
    PerExpert,
    StackedWeight,
    unpack_nibbles,
)
from octavo.kernels.packed_parts import take_rows

CHUNK = 1 << 22
"""Weights that a product expands at a time: 16 MiB of float32."""

EXACT_TERMS = (1 << 24) // 127**2
"""So many products of two int8 numbers have a sum that float32 holds exactly, in any order."""

INT8_MAX = 127.0


def dequantize(weight: Operand, dtype: torch.dtype) -> Tensor:
    """The matrix ``[N, K]`` that a weight stands for, computed in float32 and rounded to ``dtype``.

    With act-order the columns are those of x again.
    """
    match weight:
        case Tensor():
            return weight.to(dtype)
        case Int8Weight():
            return _by_groups(weight.values, weight.scales).to(dtype)
        case Int4Weight():
            return _int4(weight).to(dtype)
        case Fp8Weight():
            return _by_blocks(weight.values, weight.scales, weight.block).to(dtype)
        case BlockWeight():
            return _ggml(weight, dtype)
        case StackedWeight() | PerExpert():
            return torch.cat([dequantize(part, dtype) for part in weight.parts])
    raise TypeError(f"{type(weight).__name__} is not a packed weight of `octavo.kernels.packed`")


def linear(x: Tensor, weight: Operand, bias: Tensor | None = None) -> Tensor:
    """``x [..., K] @ weight [N, K].T + bias [N]``, with x rounded first where the weight says so: ``[..., N]``."""
    if isinstance(weight, StackedWeight):
        parts = (part.to(x.dtype) if isinstance(part, Tensor) else part for part in weight.parts)
        product = torch.cat([linear(x, part) for part in parts], dim=-1)
        return product if bias is None else product + bias
    if isinstance(weight, Tensor):
        return F.linear(x, weight, bias)
    out = _product(x.reshape(-1, x.shape[-1]), weight)
    out = out if bias is None else out + bias.float()
    return out.to(x.dtype).view(*x.shape[:-1], weight.shape[0])


def round_int8(x: Tensor) -> tuple[Tensor, Tensor]:
    """``(q, scales)`` of rows ``x [T, K]``: whole numbers of -127 to 127 in float32, and float32 ``[T, 1]``, so that
    ``x`` is about ``q * scales``. A row with a NaN or an infinity is NaN.
    """
    scales = _nonzero(x.float().abs().amax(-1, keepdim=True)) / INT8_MAX
    return (x.float() / scales).round(), scales


def round_fp8(x: Tensor, weight: Fp8Weight) -> Tensor:
    """``x [T, K]`` as `Fp8Weight.quantizes_input` rounds it: float32 values that e4m3 and the scales can say."""
    if weight.input_scale is not None:
        return _fp8(x.float() / weight.input_scale) * weight.input_scale
    each = 128 if weight.block == (128, 128) else max(x.shape[-1], 1)
    groups = F.pad(x.float(), (0, -x.shape[-1] % each)).unflatten(-1, (-1, each))
    scales = _nonzero(groups.abs().amax(-1, keepdim=True)) / FP8_MAX
    return (_fp8(groups / scales) * scales).flatten(-2)[..., : x.shape[-1]]


def _product(x: Tensor, weight: PackedWeight) -> Tensor:
    """``x [T, K]`` with ``[N, K]`` in float32, some rows of the weight at a time."""
    multiply = _exact_int8 if isinstance(weight, Int8Weight) and weight.quantizes_input else _expanded
    if isinstance(weight, Fp8Weight) and weight.quantizes_input:
        x = round_fp8(x, weight)
    step = max(1, CHUNK // max(weight.shape[1], 1) // 128) * 128  # whole blocks of fp8
    out = torch.empty(x.shape[0], weight.shape[0], dtype=torch.float32, device=x.device)
    for begin in range(0, weight.shape[0], step):
        rows = slice(begin, begin + step)
        out[:, rows] = multiply(x, take_rows(weight, rows))
    return out


def _expanded(x: Tensor, weight: Operand) -> Tensor:
    return x.float() @ dequantize(weight, torch.float32).T


def _exact_int8(x: Tensor, weight: Operand) -> Tensor:
    """W8A8: the sum of whole numbers is exact, then both scales."""
    assert isinstance(weight, Int8Weight)
    q, scales = round_int8(x)
    total = torch.zeros(x.shape[0], weight.shape[0], dtype=torch.float64, device=x.device)
    for a, b in zip(q.split(EXACT_TERMS, -1), weight.values.split(EXACT_TERMS, -1), strict=True):
        total += a @ b.float().T
    return total.float() * scales * weight.scales.T


def _nonzero(largest: Tensor) -> Tensor:
    """1 instead of 0, so that a row of zeros can be divided; an infinity becomes NaN, which makes its row NaN."""
    return torch.where(largest == 0, 1.0, torch.where(largest.isinf(), torch.nan, largest))


def _fp8(x: Tensor) -> Tensor:
    """Rounded to e4m3 and back; what is too large becomes the largest number."""
    return x.clamp(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn).float()


def _by_groups(values: Tensor, scales: Tensor) -> Tensor:
    """``values [N, K]`` times ``scales [N, K / group]`` in float32."""
    groups = values.float().unflatten(1, (scales.shape[1], -1))
    return (groups * scales.float()[..., None]).flatten(1)


def _int4(weight: Int4Weight) -> Tensor:
    groups = unpack_nibbles(weight.values).float().unflatten(1, (weight.scales.shape[1], -1))
    zeros = 8.0 if weight.zeros is None else weight.zeros.float()[..., None]
    values = ((groups - zeros) * weight.scales.float()[..., None]).flatten(1)
    return values if weight.order is None else torch.empty_like(values).index_copy_(1, weight.order.long(), values)


def _by_blocks(values: Tensor, scales: Tensor, block: tuple[int, int]) -> Tensor:
    """``values [N, K]`` times the scale of their block of rows and columns, in float32."""
    rows, columns = (torch.arange(n, device=values.device) // b for n, b in zip(values.shape, block, strict=True))
    return values.float() * scales[rows][:, columns]


def _ggml(weight: BlockWeight, dtype: torch.dtype) -> Tensor:
    values = np.empty(weight.shape, np.float32)
    expand_blocks(weight.blocks.contiguous().cpu().numpy(), weight.kind, out=values)
    return torch.from_numpy(values).to(weight.blocks.device, dtype)
