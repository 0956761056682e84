"""Products in whole numbers: int8 weights with x rounded to int8 row by row (W8A8), by `native/product8.c`."""

from __future__ import annotations

import ctypes
from ctypes import c_int32, c_int64, c_void_p
from dataclasses import dataclass

import torch
from torch import Tensor

from octavo.kernels.cpu.arena import Arena, Scratch
from octavo.kernels.cpu.tasks import Tasks, function
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


class _Pack8Call(ctypes.Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("values", "scales", "to")),
        *(("outputs", c_int64), ("inputs", c_int64)),
    )


class _Product8Call(ctypes.Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("panels", "x", "bias", "out", "scratch")),
        *((name, c_int64) for name in ("rows", "outputs", "inputs", "out_stride")),
        ("bf16", c_int32),
    )


class RoundedProducts:
    """The tasks of the compiled library that make such panels and multiply with them."""

    def __init__(self, library: ctypes.CDLL, tasks: Tasks, arena: Arena) -> None:
        self._tasks, self._arena = tasks, arena
        self._bytes = function(library, "octavo_panels8_bytes", (c_int64, c_int64), c_int64)
        self._scratch = function(library, "octavo_product8_scratch", (c_int64, c_int64), c_int64)
        self._pack, self._product = tasks.address("octavo_pack8"), tasks.address("octavo_product8")

    def weave(self, weight: Int8Weight) -> RoundedPanels:
        """A weight with one scale for each output."""
        n, k = weight.shape
        values, scales = weight.values.contiguous(), weight.scales.float().contiguous()
        data = self._arena.take(self._bytes(n, k))
        self._tasks.run(
            self._pack, _Pack8Call(values.data_ptr(), scales.data_ptr(), data.data_ptr(), n, k), values, scales, data
        )
        return RoundedPanels(data=data, outputs=n, inputs=k)

    def multiply(self, x: Tensor, weight: RoundedPanels, bias: Tensor | None, out: Tensor, scratch: Scratch) -> None:
        """As `octavo.kernels.cpu.panels.Products.multiply`."""
        rows, n, k = x.shape[0], weight.outputs, weight.inputs
        memory = scratch.take(self._scratch(rows, k))
        call = _Product8Call(
            *(weight.data.data_ptr(), x.data_ptr(), None if bias is None else bias.data_ptr(), out.data_ptr()),
            *(memory.data_ptr(), rows, n, k, n, x.dtype is torch.bfloat16),
        )
        self._tasks.run(self._product, call, weight.data, x, bias, out, memory)
