"""Parts of packed weights: some of a matrix's outputs or inputs, and several matrices one above the other.

Everything here is exact and moves packed numbers about; nothing is expanded or rounded again.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from octavo.errors import ModelError
from octavo.kernels import memory
from octavo.kernels.packed import (
    BlockWeight,
    Fp8Weight,
    Int4Weight,
    Int8Weight,
    Operand,
    PackedWeight,
    PerExpert,
    StackedWeight,
)


def take_rows(weight: Operand, rows: slice) -> Operand:
    """Outputs ``rows`` (a step of 1) of a ``[N, K]`` weight: views of the same memory.

    Raises:
        ModelError: the border is inside a block of rows that share a scale.
    """
    first, last, _ = rows.indices(weight.shape[0])
    part = slice(first, last)
    match weight:
        case Int8Weight():
            return replace(weight, values=weight.values[part], scales=weight.scales[part])
        case Int4Weight():
            zeros = None if weight.zeros is None else weight.zeros[part]
            return replace(weight, values=weight.values[part], scales=weight.scales[part], zeros=zeros)
        case Fp8Weight():
            return _fp8_rows(weight, first, last)
        case BlockWeight():
            return replace(weight, blocks=weight.blocks[part])
        case StackedWeight():
            return _stacked_rows(weight, first, last)
        case Tensor():
            return weight[part]
    raise TypeError(f"rows of {type(weight).__name__}")


def take_columns(weight: Operand, columns: slice) -> Operand:
    """Inputs ``columns`` (a step of 1) of a ``[N, K]`` weight: views where that is possible.

    Raises:
        ModelError: the border is inside a group of inputs that share a scale, or the inputs are not in order.
    """
    first, last, _ = columns.indices(weight.shape[1])
    if (first, last) == (0, weight.shape[1]):
        return weight
    match weight:
        case Int8Weight():
            scales = _group_columns(weight.scales, weight.group, weight.shape[1], first, last)
            return replace(weight, values=weight.values[:, first:last], scales=scales)
        case Int4Weight():
            return _int4_columns(weight, first, last)
        case Fp8Weight():
            scales = _group_columns(weight.scales, weight.block[1], weight.shape[1], first, last)
            block = (weight.block[0], min(weight.block[1], last - first))
            return replace(weight, values=weight.values[:, first:last], scales=scales, block=block)
        case BlockWeight():
            size, each = weight.type_size, weight.block_size
            _at_border(each, weight.shape[1], first, last)
            return replace(weight, blocks=weight.blocks[:, first // each * size : last // each * size])
        case StackedWeight():
            return replace(weight, parts=tuple(take_columns(part, columns) for part in weight.parts))
        case Tensor():
            return weight[:, first:last]
    raise TypeError(f"columns of {type(weight).__name__}")


def take_expert(weight: Operand, e: int, count: int) -> Operand:
    """Matrix e of ``count`` of the same shape that are one above the other in ``weight``."""
    if isinstance(weight, PerExpert):
        return weight.parts[e]
    rows = weight.shape[0] // count
    return take_rows(weight, slice(e * rows, (e + 1) * rows))


def stack_rows(parts: list[Operand]) -> Operand:
    """Matrices of the same K one above the other: as one matrix where they are packed alike, else a `StackedWeight`."""
    if len(parts) == 1:
        return parts[0]
    parts = _rowwise(parts)
    if all(_alike(parts[0], part) for part in parts[1:]):
        return _joined(parts)
    return StackedWeight(parts=tuple(parts))


def _fp8_rows(weight: Fp8Weight, first: int, last: int) -> Fp8Weight:
    """The block stays as it is, even where fewer rows are left: how x is rounded depends on it."""
    each, num_rows = weight.block[0], weight.shape[0]
    values = weight.values[first:last]
    if each >= num_rows:
        return replace(weight, values=values)
    _at_border(each, num_rows, first, last)
    return replace(weight, values=values, scales=weight.scales[first // each : -(-last // each)])


def _stacked_rows(weight: StackedWeight, first: int, last: int) -> Operand:
    parts, begin = [], 0
    for part in weight.parts:
        size = part.shape[0]
        inside = slice(max(first - begin, 0), min(last - begin, size))
        if inside.start < inside.stop:
            parts.append(take_rows(part, inside))
        begin += size
    return stack_rows(parts) if parts else take_rows(weight.parts[0], slice(0, 0))


def _int4_columns(weight: Int4Weight, first: int, last: int) -> Int4Weight:
    if weight.order is not None:
        raise ModelError("an int4 weight with act-order has its inputs in another order: it cannot be split by them")
    k, group = weight.shape[1], weight.group
    _at_border(2, k, first, last)  # two are a byte
    scales = _group_columns(weight.scales, group, k, first, last)
    zeros = None if weight.zeros is None else _group_columns(weight.zeros, group, k, first, last)
    return replace(weight, values=weight.values[:, first // 2 : last // 2], scales=scales, zeros=zeros)


def _group_columns(scales: Tensor, group: int, k: int, first: int, last: int) -> Tensor:
    """The columns of ``scales`` for inputs ``first`` to ``last``; one scale for all of a row stays as it is."""
    if group >= k:
        return scales
    _at_border(group, k, first, last)
    return scales[:, first // group : -(-last // group)]


def _at_border(each: int, size: int, first: int, last: int) -> None:
    """Cuts must be between blocks of ``each``; one block of all has none inside."""
    if first % each or (last % each and last != size):
        raise ModelError(f"a packed weight cannot be cut at {first}:{last} of {size}; accepted: multiples of {each}")


def _alike(a: Operand, b: Operand) -> bool:
    if type(a) is not type(b):
        return False
    match a, b:
        case Tensor(), Tensor():
            return a.dtype == b.dtype
        case BlockWeight(), BlockWeight():
            return a.kind == b.kind
        case Int8Weight(), Int8Weight():
            same = a.group == b.group and a.scales.dtype == b.scales.dtype
            return same and a.quantizes_input == b.quantizes_input
        case Int4Weight(), Int4Weight():
            whole = a.order is None and b.order is None and (a.zeros is None) == (b.zeros is None)
            return whole and a.group == b.group and a.scales.dtype == b.scales.dtype
        case Fp8Weight(), Fp8Weight():
            return _fp8_alike(a, b)
    return False


def _fp8_alike(a: Fp8Weight, b: Fp8Weight) -> bool:
    """The upper one's rows must be whole blocks, so that the lower one's blocks begin where a block begins."""
    if (a.input_scale is None) != (b.input_scale is None):
        return False
    if a.input_scale is not None and b.input_scale is not None and not torch.equal(a.input_scale, b.input_scale):
        return False
    return a.block == b.block and a.quantizes_input == b.quantizes_input and a.shape[0] % a.block[0] == 0


def _rowwise(parts: list[Operand]) -> list[Operand]:
    """Fp8 matrices with different scales for all of a matrix get the same scales row by row, so that they can join."""
    blocks = [part.block for part in parts if isinstance(part, Fp8Weight) and part.block[1] >= part.shape[1]]
    if len(blocks) < len(parts) or (len(set(blocks)) == 1 and blocks[0][0] == 1):
        return parts
    return [_with_row_scales(part) for part in parts if isinstance(part, Fp8Weight)]


def _with_row_scales(weight: Fp8Weight) -> Fp8Weight:
    scales = weight.scales.repeat_interleave(weight.block[0], 0)[: weight.shape[0]]
    return replace(weight, scales=scales.contiguous(), block=(1, weight.shape[1]))


def _joined(parts: list[Operand]) -> Operand:
    first = parts[0]
    if isinstance(first, Tensor):
        return _cat([part for part in parts if isinstance(part, Tensor)])
    tensors = [part.tensors() for part in parts if isinstance(part, PackedWeight)]
    names = [name for name in tensors[0] if name != "input_scale"]  # which is the same for all
    return replace(first, **{name: _cat([each[name] for each in tensors]) for name in names})


def _cat(parts: list[Tensor]) -> Tensor:
    """One above the other, in memory that goes back to the system when it is freed."""
    first, rows = parts[0], sum(len(part) for part in parts)
    return torch.cat(parts, out=memory.empty((rows, *first.shape[1:]), first.dtype, first.device))
