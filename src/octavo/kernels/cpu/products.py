"""Products with weights in panels, by `native/product.c`.

A weight of whole numbers (int8, int4, most of GGML's blocks) is multiplied in whole numbers, with x rounded to int8, a
scale for each 32 inputs of a row: what that costs is about what bfloat16 costs elsewhere in a model. An x in float32 is
rounded three times, each time what was lost before, and loses no more than float32's additions do.
"""

from __future__ import annotations

import ctypes
from ctypes import c_float, c_int, c_int32, c_int64, c_void_p
from dataclasses import dataclass

import torch
from torch import Tensor

from octavo.kernels.cpu.arena import Arena, Scratch
from octavo.kernels.cpu.panels import LANES, Panels, Weaver
from octavo.kernels.cpu.tasks import Tasks, function
from octavo.kernels.packed import Fp8Weight, Int8Weight, Operand, StackedWeight
from octavo.kernels.reference.quantized import round_fp8

_DTYPES = (torch.bfloat16, torch.float32)


class _ProductCall(ctypes.Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("form", "panels", "x", "order", "norm", "residual", "total", "bias", "out")),
        *(("scratch", c_void_p), ("rows", c_int64), ("out_stride", c_int64)),
        *((name, c_int32) for name in ("bf16", "out_bf16", "parts", "gated")),
        ("eps", c_float),
    )


@dataclass(frozen=True, slots=True)
class Normalization:
    """What happens to x before a product: ``rms_norm(x + residual) * weight``.

    Attributes:
        weight: ``[K]``, of x's dtype.
        residual: float32 ``[T, K]``, or None.
        total: float32 ``[T, K]``, where ``x + residual`` is left; another tensor than ``residual``.
    """

    weight: Tensor
    residual: Tensor | None
    total: Tensor
    eps: float


class Products:
    """Brings weights into panels and multiplies with them."""

    def __init__(self, library: ctypes.CDLL, tasks: Tasks) -> None:
        self._weaver, self._tasks, self._memory = Weaver(library, tasks, Arena()), tasks, Scratch()
        sizes = (c_void_p, c_int64, c_int, c_int, c_int)
        self._scratch = function(library, "octavo_product_scratch", sizes, c_int64)
        self._product = tasks.address("octavo_product")

    def pack(self, weight: Operand) -> Operand:
        """``weight`` in panels, or as it is where they cannot say it."""
        return self._weaver.weave(weight) or weight

    def linear(self, x: Tensor, weight: Panels, bias: Tensor | None) -> Tensor:
        """``x [..., K] @ weight [N, K].T + bias [N]``: ``[..., N]``."""
        if x.ndim != 2 or x.dtype not in _DTYPES or not x.is_contiguous():
            rows = x.reshape(-1, x.shape[-1]).to(x.dtype if x.dtype in _DTYPES else torch.float32).contiguous()
            return self.linear(rows, weight, bias).to(x.dtype).view(*x.shape[:-1], weight.shape[0])
        if bias is not None:
            bias = bias.to(x.dtype).contiguous()
        if isinstance(weight.rounding, Fp8Weight):
            dtype, x = x.dtype, round_fp8(x, weight.rounding)
            return self._rows(x, weight, None if bias is None else bias.float()).to(dtype)
        return self._rows(x, weight, bias)

    def logits(self, x: Tensor, weight: Panels) -> Tensor:
        """``x [T, K] @ weight [N, K].T``: ``[T, N]`` in float32, as the sums are."""
        if x.ndim != 2 or x.dtype not in _DTYPES or not x.is_contiguous():
            return self.linear(x, weight, None).float()
        if isinstance(weight.rounding, Fp8Weight):
            x = round_fp8(x, weight.rounding)
        return self._rows(x, weight, None, torch.float32)

    def _rows(self, x: Tensor, weight: Panels, bias: Tensor | None, dtype: torch.dtype | None = None) -> Tensor:
        out = x.new_empty(x.shape[0], weight.shape[0], dtype=dtype)
        self.multiply(x, weight, bias, out)
        return out

    def stacked(self, x: Tensor, weight: StackedWeight, bias: Tensor | None) -> Tensor | None:
        """The products with all parts beside each other; None if these are not all in panels, or x fits none."""
        panels = [
            part for part in weight.parts if isinstance(part, Panels) and not isinstance(part.rounding, Fp8Weight)
        ]
        if len(panels) < len(weight.parts) or x.ndim != 2 or x.dtype not in _DTYPES or not x.is_contiguous():
            return None
        out, first = x.new_empty(x.shape[0], weight.shape[0]), 0
        for part in panels:
            last = first + part.shape[0]
            self.multiply(x, part, None if bias is None else bias[first:last].to(x.dtype), out[:, first:last])
            first = last
        return out

    def after_norm(self, x: Tensor, norm: Normalization, weight: Panels, bias: Tensor | None, *, gated: bool) -> Tensor:
        """The product with ``rms_norm(x + residual)``; ``fits_norm`` says whether it can be."""
        out = x.new_empty(x.shape[0], weight.shape[0] // (2 if gated else 1))
        self.multiply(x, weight, bias, out, norm=norm, gated=gated)
        return out

    def multiply(
        self,
        x: Tensor,
        weight: Panels,
        bias: Tensor | None,
        out: Tensor,
        *,
        norm: Normalization | None = None,
        gated: bool = False,
        parts: int | None = None,
    ) -> None:
        """``out [T, N] = x [T, K] @ weight.T + bias``, all bfloat16 or all float32, or out alone in float32; x is
        contiguous, out's rows are.

        Args:
            norm: what happens to x first.
            gated: ``out [T, N / 2]`` is the first half of the outputs, through SiLU, times the second; these halves are
                multiples of 16.
            parts: in how many times 8 bits x is rounded, if the weight has whole numbers; None: one for bfloat16 and
                for W8A8, else three.
        """
        bf16 = x.dtype is torch.bfloat16
        if parts is None:
            parts = 1 if bf16 or isinstance(weight.rounding, Int8Weight) else 3
        memory = self._memory.take(self._scratch_bytes(weight, x.shape[0], bf16, parts))
        before = (None, None, None) if norm is None else (norm.weight, norm.residual, norm.total)
        tensors = (weight.data, x, weight.order, *before, bias, out, memory)
        call = _ProductCall(
            *(ctypes.addressof(weight.form), *(None if each is None else each.data_ptr() for each in tensors)),
            *(x.shape[0], out.stride(0), bf16, out.dtype is torch.bfloat16, parts, gated),
            0 if norm is None else norm.eps,
        )
        self._tasks.run(self._product, call, *tensors)

    def _scratch_bytes(self, weight: Panels, rows: int, bf16: bool, parts: int) -> int:
        key = 1 << max(rows - 1, 0).bit_length(), bf16, parts, self._tasks.threads
        if key not in weight.scratch:
            weight.scratch[key] = self._scratch(ctypes.addressof(weight.form), *key)
        return weight.scratch[key]


def fits_norm(x: Tensor, residual: Tensor | None, norm: Tensor, weight: Operand, bias: Tensor | None) -> bool:
    """Whether a product can take its norm along."""
    same = x.dtype in _DTYPES and norm.dtype is x.dtype and (bias is None or bias.dtype is x.dtype)
    dense = x.ndim == 2 and x.is_contiguous() and norm.is_contiguous() and x.shape[1] % LANES == 0
    own = residual is None or (residual.dtype is torch.float32 and residual.is_contiguous())
    if not isinstance(weight, Panels) or weight.order is not None or isinstance(weight.rounding, Fp8Weight):
        return False
    return same and dense and own


def fits_gate(weight: Panels) -> bool:
    """Whether a product can be gated: its halves are whole panels."""
    return weight.shape[0] % (2 * LANES) == 0
