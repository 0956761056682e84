"""Quantized weights woven into panels of 16 outputs, which `native/product.c` multiplies with.

``native/panels.h`` describes the layout. All of `octavo.kernels.packed` becomes one form of it: codes of 4, 5, 6 or 8
bits, a scale and perhaps a floor for each group of inputs. Weaving moves numbers about and rounds none.
"""

from __future__ import annotations

import ctypes
from ctypes import c_int, c_int32, c_int64, c_void_p
from dataclasses import dataclass, field, replace
from math import ceil

import torch
from torch import Tensor

from octavo.kernels.cpu.arena import Arena, Scratch
from octavo.kernels.cpu.tasks import Tasks, function
from octavo.kernels.packed import BlockWeight, Fp8Weight, Int4Weight, Int8Weight, PackedWeight

TILE = 16
"""Inputs in a tile: a group of inputs that share a scale must be a multiple."""

_INTEGERS, _FLOAT8 = 0, 1
_INT8, _INT4, _FP8 = 9, 10, 11


class Form(ctypes.Structure):
    """The numbers that describe a matrix in panels: see ``native/panels.h``."""

    _fields_ = (
        ("outputs", c_int64),
        ("inputs", c_int64),
        *((name, c_int32) for name in ("bits", "codebook", "centre", "tiles", "groups", "headers")),
        *((name, c_int32) for name in ("half", "sub", "floors")),
    )


class Stored(ctypes.Structure):
    """A matrix as a checkpoint has it: see ``native/pack.c``."""

    _fields_ = (
        *((name, c_void_p) for name in ("rows", "scales", "floors")),
        ("row_bytes", c_int64),
        ("kind", c_int32),
    )


@dataclass(frozen=True, slots=True)
class BlockForm:
    """How a block type of GGML's becomes panels; ``number`` is its name in ``native/pack.c``."""

    number: int
    bits: int
    centre: int = 0
    floors: bool = False
    tiles: int = 2
    groups: int = 1
    sub: bool = False


BLOCK_FORMS = {
    "Q4_0": BlockForm(1, 4, centre=8),
    "Q4_1": BlockForm(2, 4, floors=True),
    "Q5_0": BlockForm(3, 5, centre=16),
    "Q5_1": BlockForm(4, 5, floors=True),
    "Q8_0": BlockForm(5, 8),
    "Q4_K": BlockForm(6, 4, floors=True, groups=8, sub=True),
    "Q5_K": BlockForm(7, 5, floors=True, groups=8, sub=True),
    "Q6_K": BlockForm(8, 6, centre=32, tiles=1, groups=16, sub=True),
}


AS_FAST = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")
"""Block types whose products take no more time than bfloat16's, for one row (half or less) and for 32 (0.95 to 1.1 x as
fast). The K types take two thirds of it for one row, but 1.1 x for 32: a scale and a floor for each 32 inputs, or a
scale for each 16, cost there what reading saves."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Panels(PackedWeight):
    """A matrix in panels.

    Attributes:
        form: what the bytes mean.
        data: uint8, 64-byte aligned.
        order: of the columns of x, int32 ``[K]``, or None.
        rounding: how x is rounded first, or None: a weight of which only that matters.
        scratch: bytes that a product needs, by rows (the next power of two, so that there are few entries), whether x
            is bfloat16, and threads: asked for once.
    """

    form: Form
    data: Tensor
    order: Tensor | None = None
    rounding: PackedWeight | None = None
    scratch: dict[tuple[int, bool, int], int] = field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, int]:
        return self.form.outputs, self.form.inputs


class _PackCall(ctypes.Structure):
    _fields_ = tuple((name, c_void_p) for name in ("form", "stored", "to", "scratch"))


class _ProductCall(ctypes.Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("form", "panels", "x", "order", "bias", "out", "scratch")),
        *(("rows", c_int64), ("out_stride", c_int64), ("bf16", c_int32)),
    )


class Products:
    """The tasks of the compiled library that make panels and multiply with them."""

    def __init__(self, library: ctypes.CDLL, tasks: Tasks, arena: Arena) -> None:
        self._tasks, self._arena = tasks, arena
        self._bytes = function(library, "octavo_panels_bytes", (c_void_p,), c_int64)
        self._pack_scratch = function(library, "octavo_pack_scratch", (c_void_p,), c_int64)
        sizes = (c_void_p, c_int64, c_int, c_int, c_int)
        self._scratch = function(library, "octavo_product_scratch", sizes, c_int64)
        self._pack, self._product = tasks.address("octavo_pack"), tasks.address("octavo_product")

    def weave(self, weight: PackedWeight) -> Panels | None:
        """``weight`` in panels; None if they cannot say what it is."""
        if not weight.shape[0] or not weight.shape[1]:
            return None
        match weight:
            case BlockWeight() if weight.kind in BLOCK_FORMS:
                return self._weave(_block_form(weight), weight.blocks, BLOCK_FORMS[weight.kind].number)
            case Int8Weight() if fits_groups(weight) and not weight.quantizes_input:
                return self._weave(_form(weight, weight.scales, bits=8), weight.values, _INT8, weight.scales)
            case Int4Weight() if fits_groups(weight):
                return self._weave_int4(weight)
            case Fp8Weight() if weight.block[1] >= weight.shape[1] or weight.block[1] % TILE == 0:
                return self._weave_fp8(weight)
        return None

    def _weave_int4(self, weight: Int4Weight) -> Panels:
        scales = weight.scales.float()
        floors = None if weight.zeros is None else -weight.zeros.float() * scales
        form = _form(weight, scales, bits=4, centre=8 if floors is None else 0, floors=floors is not None)
        panels = self._weave(form, weight.values, _INT4, scales, floors)
        order = None if weight.order is None else weight.order.to(torch.int32).contiguous()
        return replace(panels, order=order)

    def _weave_fp8(self, weight: Fp8Weight) -> Panels:
        n, k = weight.shape
        scales = weight.scales.float().repeat_interleave(weight.block[0], 0)[:n]
        form = _form(weight, scales, bits=8, codebook=_FLOAT8, group=min(weight.block[1], k))
        panels = self._weave(form, weight.values.view(torch.uint8), _FP8, scales)
        only = replace(weight, values=weight.values.new_empty(0, k), scales=weight.scales[:0])
        return replace(panels, rounding=only if weight.quantizes_input else None)

    def _weave(
        self, form: Form, rows: Tensor, kind: int, scales: Tensor | None = None, floors: Tensor | None = None
    ) -> Panels:
        rows = rows.contiguous()
        numbers = [None if x is None else x.contiguous() for x in (scales, floors)]
        stored = Stored(
            *(rows.data_ptr(), *(None if x is None else x.data_ptr() for x in numbers), rows.stride(0), kind),
        )
        at = ctypes.addressof(form)
        data = self._arena.take(self._bytes(at))
        scratch = torch.empty(self._tasks.threads * self._pack_scratch(at), dtype=torch.uint8)
        call = _PackCall(at, ctypes.addressof(stored), data.data_ptr(), scratch.data_ptr())
        self._tasks.run(self._pack, call, rows, *numbers, data, scratch)
        return Panels(form=form, data=data)

    def multiply(self, x: Tensor, weight: Panels, bias: Tensor | None, out: Tensor, scratch: Scratch) -> None:
        """``out [T, N] = x [T, K] @ weight.T + bias``, all bfloat16 or all float32 and contiguous."""
        rows, bf16, order = x.shape[0], x.dtype is torch.bfloat16, weight.order
        memory = scratch.take(self._scratch_bytes(weight, rows, bf16))
        call = _ProductCall(
            *(ctypes.addressof(weight.form), weight.data.data_ptr(), x.data_ptr()),
            *(None if tensor is None else tensor.data_ptr() for tensor in (order, bias)),
            *(out.data_ptr(), memory.data_ptr(), rows, weight.form.outputs, bf16),
        )
        self._tasks.run(self._product, call, weight.data, x, order, bias, out, memory)

    def _scratch_bytes(self, weight: Panels, rows: int, bf16: bool) -> int:
        key = 1 << max(rows - 1, 0).bit_length(), bf16, self._tasks.threads
        if key not in weight.scratch:
            at, ordered = ctypes.addressof(weight.form), weight.order is not None
            weight.scratch[key] = self._scratch(at, key[0], bf16, ordered, key[2])
        return weight.scratch[key]


def fits_groups(weight: Int8Weight | Int4Weight) -> bool:
    """Whether groups are whole tiles, or one group is all."""
    return weight.scales.shape[1] == 1 or weight.group % TILE == 0


def _form(
    weight: PackedWeight,
    scales: Tensor,
    *,
    bits: int,
    codebook: int = _INTEGERS,
    centre: int = 0,
    floors: bool = False,
    group: int | None = None,
) -> Form:
    """Of a weight with float32 or float16 scales ``[N, headers]``, each of one group."""
    (n, k), headers, half = weight.shape, scales.shape[1], scales.dtype is torch.float16
    tiles = ceil((group or k // headers) / TILE)
    return Form(n, k, bits, codebook, centre, tiles, 1, headers, half, False, floors)


def _block_form(weight: BlockWeight) -> Form:
    (n, k), how = weight.shape, BLOCK_FORMS[weight.kind]
    headers = k // weight.block_size
    return Form(
        *(n, k, how.bits, _INTEGERS, how.centre, how.tiles, how.groups, headers, True, how.sub, how.floors),
    )
