"""Products with quantized weights: which form of the backend's own each becomes, and what x must be for it."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from octavo.kernels.cpu.arena import Arena, Scratch
from octavo.kernels.cpu.panels import Panels, Products
from octavo.kernels.cpu.rounded import RoundedPanels, RoundedProducts
from octavo.kernels.cpu.tasks import Tasks
from octavo.kernels.packed import Fp8Weight, Int8Weight, PackedWeight
from octavo.kernels.reference.quantized import round_fp8

_DTYPES = (torch.bfloat16, torch.float32)


class QuantizedProducts:
    """Makes packed weights and multiplies with them."""

    def __init__(self, library: ctypes.CDLL, tasks: Tasks) -> None:
        arena = Arena()
        self._exact, self._rounded = Products(library, tasks, arena), RoundedProducts(library, tasks, arena)
        self._scratch = Scratch()

    def pack(self, weight: PackedWeight) -> PackedWeight:
        """``weight`` in a form of our own, or as it is where there is none for it."""
        if isinstance(weight, Int8Weight) and weight.quantizes_input and weight.scales.shape[1] == 1:
            return self._rounded.weave(weight)
        return self._exact.weave(weight) or weight

    def linear(self, x: Tensor, weight: Panels | RoundedPanels, bias: Tensor | None) -> Tensor:
        """``x [..., K] @ weight [N, K].T + bias [N]``: ``[..., N]``."""
        if x.ndim != 2 or x.dtype not in _DTYPES or not x.is_contiguous():
            rows = x.reshape(-1, x.shape[-1]).to(x.dtype if x.dtype in _DTYPES else torch.float32).contiguous()
            return self.linear(rows, weight, bias).to(x.dtype).view(*x.shape[:-1], weight.shape[0])
        if bias is not None:
            bias = bias.to(x.dtype).contiguous()
        return self._rows(x, weight, bias)

    def _rows(self, x: Tensor, weight: Panels | RoundedPanels, bias: Tensor | None) -> Tensor:
        if isinstance(weight, Panels) and isinstance(weight.rounding, Fp8Weight):
            dtype, x = x.dtype, round_fp8(x, weight.rounding)
            return self._product(x, weight, None if bias is None else bias.float()).to(dtype)
        return self._product(x, weight, bias)

    def _product(self, x: Tensor, weight: Panels | RoundedPanels, bias: Tensor | None) -> Tensor:
        out = x.new_empty(x.shape[0], weight.shape[0])
        if isinstance(weight, Panels):
            self._exact.multiply(x, weight, bias, out, self._scratch)
        else:
            self._rounded.multiply(x, weight, bias, out, self._scratch)
        return out
