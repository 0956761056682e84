"""Weights woven into panels of 16 outputs, which `native/product.c` multiplies with.

``native/panels.h`` describes the layout. All of `octavo.kernels.packed`, and plain bfloat16 and float32 weights, become
one form of it: codes of some bits, a scale and perhaps a floor for each group of inputs. Weaving moves numbers about
and rounds none.
"""

from __future__ import annotations

import ctypes
from ctypes import c_int32, c_int64, c_void_p
from dataclasses import dataclass, field, replace
from math import ceil

import torch
from torch import Tensor

from octavo.kernels.cpu.arena import Arena
from octavo.kernels.cpu.tasks import Tasks, function
from octavo.kernels.packed import BlockWeight, Fp8Weight, Int4Weight, Int8Weight, Operand, PackedWeight

LANES = 16
"""Outputs of a panel."""

_CODES4, _CODES8, _FLOAT8 = 4, 8, 9
_NUMBERS = {torch.bfloat16: 16, torch.float32: 32}
_TILE = {_CODES4: 32, 5: 32, 6: 16, _CODES8: 32, _FLOAT8: 16, 16: 16, 32: 16}
_INT8, _INT4, _FP8, _PLAIN = 9, 10, 11, 12


class Form(ctypes.Structure):
    """The numbers that describe a matrix in panels: see ``native/panels.h``."""

    _fields_ = (
        ("outputs", c_int64),
        ("inputs", c_int64),
        *((name, c_int32) for name in ("kind", "centre", "unit", "units", "groups", "headers")),
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
    kind: int
    centre: int = 0
    floors: bool = False
    groups: int = 1
    sub: bool = False


BLOCK_FORMS = {
    "Q4_0": BlockForm(1, 4, centre=8),
    "Q4_1": BlockForm(2, 4, floors=True),
    "Q5_0": BlockForm(3, 5, centre=16),
    "Q5_1": BlockForm(4, 5, floors=True),
    "Q8_0": BlockForm(5, 8, centre=128),
    "Q4_K": BlockForm(6, 4, floors=True, groups=8, sub=True),
    "Q5_K": BlockForm(7, 5, floors=True, groups=8, sub=True),
    "Q6_K": BlockForm(8, 6, centre=32, groups=16, sub=True),
}


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Panels(PackedWeight):
    """A matrix in panels.

    Attributes:
        form: what the bytes mean.
        data: uint8, 64-byte aligned.
        order: of the columns of x, int32 ``[K]``, or None.
        rounding: how x is rounded, if that is part of the model: a weight of which only that matters; or None.
        scratch: bytes that a product needs, by rows (the next power of two, so that there are few entries), whether x
            is bfloat16, parts and threads: asked for once.
    """

    form: Form
    data: Tensor
    order: Tensor | None = None
    rounding: PackedWeight | None = None
    scratch: dict[tuple[int, bool, int, int], int] = field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, int]:
        return self.form.outputs, self.form.inputs

    @property
    def is_quantized(self) -> bool:
        return self.form.kind not in _NUMBERS.values()


class _PackCall(ctypes.Structure):
    _fields_ = tuple((name, c_void_p) for name in ("form", "stored", "to", "scratch"))


class Weaver:
    """Makes panels, by the compiled library."""

    def __init__(self, library: ctypes.CDLL, tasks: Tasks, arena: Arena) -> None:
        self._tasks, self._arena = tasks, arena
        self._bytes = function(library, "octavo_panels_bytes", (c_void_p,), c_int64)
        self._pack_scratch = function(library, "octavo_pack_scratch", (c_void_p,), c_int64)
        self._pack = tasks.address("octavo_pack")

    def weave(self, weight: Operand) -> Panels | None:
        """``weight`` in panels; None if they cannot say what it is."""
        if not weight.shape[0] or not weight.shape[1]:
            return None
        match weight:
            case Tensor() if weight.dtype in _NUMBERS:
                return self._weave_plain(weight)
            case BlockWeight() if weight.kind in BLOCK_FORMS:
                return self._weave(_block_form(weight), weight.blocks, BLOCK_FORMS[weight.kind].number)
            case Int8Weight() if fits_groups(weight):
                return self._weave_int8(weight)
            case Int4Weight() if fits_groups(weight):
                return self._weave_int4(weight)
            case Fp8Weight() if weight.block[1] >= weight.shape[1] or weight.block[1] % _TILE[_FLOAT8] == 0:
                return self._weave_fp8(weight)
        return None

    def _weave_plain(self, weight: Tensor) -> Panels:
        ones = torch.ones(len(weight), 1)
        form = _form(weight, ones, _NUMBERS[weight.dtype], whole=True)
        return self._weave(form, weight, _PLAIN, ones)

    def _weave_int8(self, weight: Int8Weight) -> Panels:
        rounds = weight.quantizes_input and weight.scales.shape[1] == 1
        form = _form(weight, weight.scales, _CODES8, centre=128, whole=rounds)
        panels = self._weave(form, weight.values, _INT8, weight.scales)
        only = replace(weight, values=weight.values[:0], scales=weight.scales[:0])
        return replace(panels, rounding=only if rounds else None)

    def _weave_int4(self, weight: Int4Weight) -> Panels:
        scales = weight.scales.float()
        floors = None if weight.zeros is None else -weight.zeros.float() * scales
        form = _form(weight, scales, _CODES4, centre=8 if floors is None else 0, floors=floors is not None)
        panels = self._weave(form, weight.values, _INT4, scales, floors)
        order = None if weight.order is None else weight.order.to(torch.int32).contiguous()
        return replace(panels, order=order)

    def _weave_fp8(self, weight: Fp8Weight) -> Panels:
        n, k = weight.shape
        scales = weight.scales.float().repeat_interleave(weight.block[0], 0)[:n]
        form = _form(weight, scales, _FLOAT8, whole=True, group=min(weight.block[1], k))
        panels = self._weave(form, weight.values.view(torch.uint8), _FP8, scales)
        only = replace(weight, values=weight.values.new_empty(0, k), scales=weight.scales[:0])
        return replace(panels, rounding=only if weight.quantizes_input else None)

    def _weave(
        self, form: Form, rows: Tensor, kind: int, scales: Tensor | None = None, floors: Tensor | None = None
    ) -> Panels:
        rows = rows.contiguous()
        numbers = [None if x is None else x.contiguous() for x in (scales, floors)]
        stored = Stored(
            *(rows.data_ptr(), *(None if x is None else x.data_ptr() for x in numbers)),
            *(rows.stride(0) * rows.element_size(), kind),
        )
        at = ctypes.addressof(form)
        data = self._arena.take(self._bytes(at))
        scratch = torch.empty(self._tasks.threads * self._pack_scratch(at), dtype=torch.uint8)
        call = _PackCall(at, ctypes.addressof(stored), data.data_ptr(), scratch.data_ptr())
        self._tasks.run(self._pack, call, rows, *numbers, data, scratch)
        return Panels(form=form, data=data)


def fits_groups(weight: Int8Weight | Int4Weight) -> bool:
    """Whether groups are whole tiles, or one group is all."""
    return weight.scales.shape[1] == 1 or weight.group % _TILE[_CODES8] == 0


def _form(
    weight: Tensor | PackedWeight,
    scales: Tensor,
    kind: int,
    *,
    centre: int = 0,
    floors: bool = False,
    group: int | None = None,
    whole: bool = False,
) -> Form:
    """Of a weight with float32 or float16 scales ``[N, headers]``, each of one group.

    ``whole``: a group is one unit, which x has one scale for.
    """
    (n, k), headers, half = weight.shape, scales.shape[1], scales.dtype is torch.float16
    tiles = ceil((group or k // headers) / _TILE[kind])
    unit, units = (tiles, 1) if whole else (1, tiles)
    return Form(n, k, kind, centre, unit, units, 1, headers, half, False, floors)


def _block_form(weight: BlockWeight) -> Form:
    (n, k), how = weight.shape, BLOCK_FORMS[weight.kind]
    headers = k // weight.block_size
    units = weight.block_size // how.groups // _TILE[how.kind]
    return Form(
        *(n, k, how.kind, how.centre, 1, units, how.groups, headers, True, how.sub, how.floors),
    )
