"""Products with quantized weights: which kernel takes which form and number of rows.

- Weight only, in words: `quantized_matvec` for one row, with norm and gate; `quantized_matmul` for up to 64; beyond,
  `quantized_expand` and cuBLAS.
- x is rounded, too: `quantized_rows`, with the norm, and `quantized_eights` for any number of rows.

What fits into neither (a K that is no multiple of 16, say) is left to the reference.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from octavo.kernels.packed import Fp8Weight, Int8Weight, PackedWeight, StackedWeight
from octavo.kernels.reference import quantized as reference
from octavo.kernels.triton import matmul, quantized_expand, quantized_matmul
from octavo.kernels.triton import quantized_eights as eights
from octavo.kernels.triton import quantized_matvec as matvec
from octavo.kernels.triton.activations import silu_mul
from octavo.kernels.triton.pdl import use_pdl
from octavo.kernels.triton.quantized_words import WordWeight

FIXED_TOKENS = 64
FIXED_TILE = eights.Tile(FIXED_TOKENS, 64, 128, 4, 4)
"""Of products with one order for any number of rows."""


def linear(x: Tensor, weight: PackedWeight, bias: Tensor | None = None) -> Tensor:
    """``x [T, K] @ weight [N, K].T + bias [N]``: ``[T, N]`` in x's dtype."""
    if isinstance(weight, WordWeight):
        return _words(x.contiguous(), weight, bias)
    if isinstance(weight, Int8Weight | Fp8Weight) and eights.fits(weight):
        return eights.linear(x, weight, bias)
    if isinstance(weight, StackedWeight):
        return _stacked(linear, x, weight, bias)
    return reference.linear(x, weight, bias)


def linear_in_one_order(x: Tensor, weight: PackedWeight, bias: Tensor | None = None) -> Tensor:
    """``linear`` with one kernel and tile for any T: a row's bits do not depend on the others (`deterministic`)."""
    if isinstance(weight, WordWeight):
        return quantized_matmul.linear(x, weight, bias, quantized_matmul.choose(FIXED_TOKENS, 1, x.element_size()))
    if isinstance(weight, Int8Weight | Fp8Weight) and eights.fits(weight):
        return eights.linear(x, weight, bias, FIXED_TILE)
    if isinstance(weight, StackedWeight):
        return _stacked(linear_in_one_order, x, weight, bias)
    return _row_by_row(x, weight, bias)


def add_norm_linear(
    x: Tensor,
    residual: Tensor | None,
    norm_weight: Tensor,
    eps: float,
    weight: PackedWeight,
    bias: Tensor | None = None,
) -> tuple[Tensor, Tensor] | None:
    """As ``Ops.add_norm_linear``, if one kernel does both or the norm's rounds; None if not."""
    if isinstance(weight, WordWeight) and matvec.fits(x, weight, norm=True):
        return matvec.add_norm_linear(x, residual, norm_weight, eps, weight, bias)
    if isinstance(weight, Int8Weight | Fp8Weight) and eights.fits(weight):
        return eights.add_norm_linear(x, residual, norm_weight, eps, weight, bias)
    return None


def add_norm_gate_up(
    x: Tensor,
    residual: Tensor | None,
    norm_weight: Tensor,
    eps: float,
    weight: PackedWeight,
    bias: Tensor | None = None,
) -> tuple[Tensor, Tensor] | None:
    """As ``Ops.add_norm_gate_up``, if one kernel does more than one step of it; None if not."""
    if isinstance(weight, WordWeight) and matvec.fits(x, weight, norm=True):
        return matvec.add_norm_gate_up(x, residual, norm_weight, eps, weight, bias)
    if isinstance(weight, Int8Weight | Fp8Weight) and eights.fits(weight):
        gate_up, total = eights.add_norm_linear(x, residual, norm_weight, eps, weight, bias)
        return silu_mul(gate_up, pdl=use_pdl(x.device)), total
    return None


def _stacked(multiply: Callable[..., Tensor], x: Tensor, weight: StackedWeight, bias: Tensor | None) -> Tensor:
    """Part after part; plain ones by the kernel that has one order for any number of rows."""
    parts = (matmul.linear(x, p.to(x.dtype)) if isinstance(p, Tensor) else multiply(x, p) for p in weight.parts)
    product = torch.cat(list(parts), dim=1)
    return product if bias is None else product + bias


def _row_by_row(x: Tensor, weight: PackedWeight, bias: Tensor | None) -> Tensor:
    rows = [reference.linear(row[None], weight, bias) for row in x]
    return torch.cat(rows) if rows else x.new_empty(0, weight.shape[0])


def _words(x: Tensor, weight: WordWeight, bias: Tensor | None) -> Tensor:
    if matvec.fits(x, weight):
        return matvec.linear(x, weight, bias)
    if quantized_matmul.fits(x, weight):
        return quantized_matmul.linear(x, weight, bias)
    x = x if weight.order is None else x.index_select(1, weight.order)
    return F.linear(x, quantized_expand.expand(weight, x.dtype), bias)
