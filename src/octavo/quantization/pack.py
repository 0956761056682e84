"""From a weight in floating point to a packed one: the rounding.

Rows are worked on some at a time, on the device where the weight is, so that a large matrix takes little memory beside
what goes in and what comes out.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from octavo.errors import ModelError
from octavo.kernels import memory
from octavo.kernels.packed import FP8_MAX, Fp8Weight, Int4Weight, Int8Weight, PackedWeight, pack_nibbles
from octavo.quantization.round_int4 import round_groups
from octavo.quantization.schemes import Scheme
from octavo.quantization.schemes import scheme as scheme_named

CHUNKS = {"cpu": 1 << 16, "cuda": 1 << 24}
"""Weights in work at a time, by device: 256 KiB of float32 and some temporaries of that size stay in a core's cache; a
GPU needs more to be busy."""


class Rows(Protocol):
    """A matrix ``[N, K]`` of floating-point numbers: a tensor, or what reads some rows when they are asked for."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def device(self) -> torch.device: ...

    def __getitem__(self, rows: slice, /) -> Tensor: ...


def quantize(weight: Rows, scheme: str | Scheme) -> PackedWeight:
    """Round ``weight [N, K]`` of any floating-point dtype.

    Where the scheme's group does not divide K, the next smaller one that does is taken.

    Raises:
        UsageError: there is no such scheme.
        ModelError: no group fits, or the weight has a NaN or an infinity.
    """
    how = scheme_named(scheme) if isinstance(scheme, str) else scheme
    group = how.group_for(weight.shape[1])
    if group is None:
        raise ModelError(f"{how.name} does not fit a weight of {weight.shape[1]} inputs; accepted: a multiple of 16")
    return _PACKERS[how.kind](weight, how, group)


def _int8(weight: Rows, scheme: Scheme, group: int) -> Int8Weight:
    if scheme.group is None:
        return _int8_with(weight, scheme, group, torch.float32)[0]
    return _in_groups(lambda dtype: _int8_with(weight, scheme, group, dtype))


def _int8_with(weight: Rows, scheme: Scheme, group: int, dtype: torch.dtype) -> tuple[Int8Weight, float]:
    """With scales of ``dtype``; and the largest magnitude of all."""
    n, k = weight.shape
    values = memory.empty((n, k), torch.int8, weight.device)
    scales = memory.empty((n, k // group), dtype, weight.device)
    largest = Largest()
    for rows in _chunks(weight):
        groups = weight[rows].float().unflatten(1, (-1, group))
        top = groups.abs().amax(-1, keepdim=True)
        largest.add(top)
        scale = (top / 127).to(dtype)
        values[rows] = (groups / _nonzero(scale.float())).round_().clamp_(-127, 127).flatten(1)
        scales[rows] = scale.squeeze(-1)
    packed = Int8Weight(values=values, scales=scales, quantizes_input=scheme.quantizes_input)
    return packed, largest.value


def _fp8(weight: Rows, scheme: Scheme, group: int) -> Fp8Weight:
    n, k = weight.shape
    block = (scheme.rows or max(n, 1), group)
    values = memory.empty((n, k), torch.float8_e4m3fn, weight.device)
    scales = torch.zeros(-(-n // block[0]), -(-k // group), device=weight.device)
    largest = Largest()
    if scheme.rows is None:
        for rows in _chunks(weight):
            torch.maximum(scales, weight[rows].float().abs().max() / FP8_MAX, out=scales)
    for rows in _chunks(weight, of=scheme.rows or 1):
        plain = weight[rows].float()
        own = slice(rows.start // block[0], -(-rows.stop // block[0]))
        if scheme.rows is not None:
            scales[own] = _tops(plain, block) / FP8_MAX
        largest.add(plain)
        wide = _nonzero(scales[own]).repeat_interleave(block[0], 0)[: len(plain)].repeat_interleave(group, 1)[:, :k]
        values[rows] = (plain / wide).clamp_(-FP8_MAX, FP8_MAX).to(values.dtype)
    return Fp8Weight(values=values, scales=scales, block=block, quantizes_input=scheme.quantizes_input)


def _int4(weight: Rows, scheme: Scheme, group: int) -> Int4Weight:
    return _in_groups(lambda dtype: _int4_with(weight, group, dtype))


def _int4_with(weight: Rows, group: int, dtype: torch.dtype) -> tuple[Int4Weight, float]:
    n, k = weight.shape
    values = memory.empty((n, k // 2), torch.uint8, weight.device)
    scales, zeros = (memory.empty((n, k // group), dtype, weight.device) for _ in range(2))
    largest = Largest()
    for rows in _chunks(weight):
        groups = weight[rows].float().unflatten(1, (-1, group))
        largest.add(groups)
        q, scales[rows], zeros[rows] = round_groups(groups, dtype)
        values[rows] = pack_nibbles(q.flatten(1))
    return Int4Weight(values=values, scales=scales, zeros=zeros), largest.value


Packed = TypeVar("Packed", Int8Weight, Int4Weight)


def _in_groups(attempt: Callable[[torch.dtype], tuple[Packed, float]]) -> Packed:
    """With float16 for scales of groups, unless the largest weight is so large or so small that it cannot say them
    well: then once more with float32. So the rule costs no look at the weights before they are rounded.
    """
    packed, largest = attempt(torch.float16)
    return packed if 2.0**-9 <= largest <= 2.0**15 else attempt(torch.float32)[0]


class Largest:
    """The largest magnitude of what was added. A number, as a small tensor for each chunk would keep the allocator from
    giving back what lies around it.
    """

    def __init__(self) -> None:
        self.value = 0.0

    def add(self, numbers: Tensor) -> None:
        """Raises ``ModelError`` for a NaN or an infinity."""
        largest = float(torch.stack(torch.aminmax(numbers)).abs().max()) if numbers.numel() else 0.0
        if not math.isfinite(largest):
            raise ModelError("a weight with a NaN or an infinity cannot be quantized")
        self.value = max(self.value, largest)


_PACKERS: dict[str, Callable[[Rows, Scheme, int], PackedWeight]] = {"int8": _int8, "int4": _int4, "fp8": _fp8}


def _chunks(weight: Rows, of: int = 1) -> list[slice]:
    """Some rows at a time, a multiple of ``of``."""
    n, k = weight.shape
    step = max(1, CHUNKS.get(weight.device.type, CHUNKS["cuda"]) // max(k, 1) // of) * of
    return [slice(begin, min(begin + step, n)) for begin in range(0, n, step)]


def _tops(plain: Tensor, block: tuple[int, int]) -> Tensor:
    """The largest magnitude of each block of rows and columns, ``[ceil(N / rows), ceil(K / columns)]``."""
    (n, k), (rows, columns) = plain.shape, block
    padded = F.pad(plain.abs(), (0, -k % columns, 0, -n % rows))
    return padded.unflatten(1, (-1, columns)).amax(-1).unflatten(0, (-1, rows)).amax(1)


def _nonzero(scale: Tensor) -> Tensor:
    """1 instead of 0: a group of zeros can be divided."""
    return torch.where(scale == 0, 1.0, scale)
