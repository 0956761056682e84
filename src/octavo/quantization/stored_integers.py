"""Whole numbers of 4 and 8 bits as checkpoints store them, with a scale and maybe a zero for each group of columns.

What AWQ, GPTQ and compressed-tensors have in common; which tensor holds what is told in `octavo.weights.quantized`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from octavo.errors import ModelError
from octavo.kernels import memory
from octavo.kernels.packed import Int4Weight, Int8Weight, Operand, pack_nibbles, unpack_nibbles

AT_ONCE = 1 << 20
"""Numbers that are brought into another order at a time."""


def as_bytes(words: Tensor) -> Tensor:
    """int32 ``[A, B]`` -> its bytes, uint8 ``[A, B, 4]``, those of the lowest bits first."""
    return words.unsqueeze(-1).view(torch.uint8)


def centred(data: Tensor) -> Tensor:
    """Bytes in which 128 means 0 -> int8."""
    return (data ^ 128).view(torch.int8)


def packed_kind(bits: int, columns: int, groups: int, zeros: Tensor | None, group_of: Tensor | None) -> str | None:
    """Of which kind the result of `int4_weight` or `int8_weight` is, by ``bits``; None: plain numbers."""
    order = _order(group_of, columns, groups)
    if order is None or (bits == 8 and (order.numel() or (zeros is not None and bool(zeros.any())))):
        return None
    return f"int{bits}"


def int4_weight(values: Tensor, scales: Tensor, zeros: Tensor | None, group_of: Tensor | None = None) -> Operand:
    """A matrix of 4-bit numbers q that stand for ``(q - zero) * scale``.

    Args:
        values: uint8 ``[N, K / 2]``, as `pack_nibbles` makes it.
        scales: ``[N, G]``, of any floating-point type.
        zeros: ``[N, G]``, or None: 8.
        group_of: int ``[K]``: each column's group, or None: in their order, and all of the same length.
    """
    order = _order(group_of, 2 * values.shape[1], scales.shape[1])
    if order is None:
        return _expand(unpack_nibbles(values), scales, torch.tensor(8) if zeros is None else zeros, group_of)
    if order.numel():
        values = _ordered(values, order.long())
    if zeros is not None:
        zeros = None if bool((zeros == 8).all()) else zeros.to(scales.dtype).contiguous()
    return Int4Weight(
        values=values.contiguous(), scales=scales.contiguous(), zeros=zeros, order=order if order.numel() else None
    )


def int8_weight(
    values: Tensor,
    scales: Tensor,
    zeros: Tensor | None = None,
    group_of: Tensor | None = None,
    quantizes_input: bool = False,
) -> Operand:
    """As `int4_weight`, of int8 ``values [N, K]``, with zeros of 0 where there are none."""
    if packed_kind(8, values.shape[1], scales.shape[1], zeros, group_of) is None:
        return _expand(values, scales, torch.tensor(0) if zeros is None else zeros, group_of)
    return Int8Weight(values=values.contiguous(), scales=scales.float().contiguous(), quantizes_input=quantizes_input)


def _order(group_of: Tensor | None, columns: int, groups: int) -> Tensor | None:
    """Columns by group: int32 ``[K]``, empty if that is the order they have. None: groups differ in length."""
    if columns % groups:
        return None
    if group_of is None or torch.equal(group_of.long(), torch.arange(columns) // (columns // groups)):
        return torch.empty(0, dtype=torch.int32)
    if not torch.equal(group_of.long().bincount(minlength=groups), torch.full((groups,), columns // groups)):
        return None
    return group_of.argsort(stable=True).int()


def _ordered(values: Tensor, order: Tensor) -> Tensor:
    """Nibbles with their columns in another order, some rows at a time: each is a byte meanwhile."""
    out = memory.empty(tuple(values.shape), values.dtype, values.device)
    step = max(1, AT_ONCE // max(len(order), 1))
    for begin in range(0, len(values), step):
        rows = slice(begin, begin + step)
        out[rows] = pack_nibbles(unpack_nibbles(values[rows])[:, order])
    return out


def _expand(values: Tensor, scales: Tensor, zeros: Tensor, group_of: Tensor | None) -> Tensor:
    """The numbers themselves, float32 ``[N, K]``."""
    columns, groups = values.shape[1], scales.shape[1]
    which = torch.arange(columns) // -(-columns // groups) if group_of is None else group_of.long()
    scale = scales.float()[:, which]
    return (values.float() - (zeros.float()[:, which] if zeros.ndim else zeros)) * scale


def checked_groups(group_of: Tensor, groups: int, module: str) -> Tensor:
    """``group_of`` if all its numbers are those of groups."""
    if group_of.numel() and not 0 <= int(group_of.min()) <= int(group_of.max()) < groups:
        raise ModelError(f"{module}: g_idx has numbers out of its {groups} groups")
    return group_of
