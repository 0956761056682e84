"""Products in whole numbers: int8 weights with x rounded to int8 row by row (W8A8), by `native/product8.c`."""

from __future__ import annotations

import ctypes
from ctypes import c_int, c_int64, c_void_p
from dataclasses import dataclass

import torch
from torch import Tensor

from octavo.kernels.cpu.arena import Arena, Scratch
from octavo.kernels.cpu.panels import function
from octavo.kernels.packed import Int8Weight, PackedWeight


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class RoundedPanels(PackedWeight):
    """An int8 weight in panels of 16 outputs, for an x that is rounded.

    Attributes:
        data: uint8, 64-byte aligned.
        outputs, inputs: N, K.
    """

    data: Tensor
    outputs: int
    inputs: int

    @property
    def shape(self) -> tuple[int, int]:
        return self.outputs, self.inputs


class RoundedProducts:
    """The functions of the compiled library that make such panels and multiply with them."""

    def __init__(self, library: ctypes.CDLL, arena: Arena) -> None:
        self._arena = arena
        self._bytes = function(library, "octavo_panels8_bytes", (c_int64, c_int64), c_int64)
        self._pack = function(library, "octavo_pack8", (c_void_p, c_void_p, c_int64, c_int64, c_void_p, c_int))
        self._scratch = function(library, "octavo_product8_scratch", (c_int64, c_int64), c_int64)
        product = (c_void_p, c_void_p, *(c_int64,) * 3, c_int, c_void_p, c_void_p, c_int64, c_void_p, c_int)
        self._product = function(library, "octavo_product8", product)

    def weave(self, weight: Int8Weight) -> RoundedPanels:
        """A weight with one scale for each output."""
        n, k = weight.shape
        values, scales = weight.values.contiguous(), weight.scales.float().contiguous()
        data = self._arena.take(self._bytes(n, k))
        self._pack(values.data_ptr(), scales.data_ptr(), n, k, data.data_ptr(), torch.get_num_threads())
        return RoundedPanels(data=data, outputs=n, inputs=k)

    def multiply(self, x: Tensor, weight: RoundedPanels, bias: Tensor | None, out: Tensor, scratch: Scratch) -> None:
        """As `octavo.kernels.cpu.panels.Products.multiply`."""
        rows, n, k = x.shape[0], weight.outputs, weight.inputs
        self._product(
            *(weight.data.data_ptr(), x.data_ptr(), rows, n, k, x.dtype is torch.bfloat16),
            *(None if bias is None else bias.data_ptr(), out.data_ptr(), n),
            *(scratch.take(self._scratch(rows, k)), torch.get_num_threads()),
        )
