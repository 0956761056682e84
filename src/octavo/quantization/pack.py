"""From a weight in floating point to a packed one: the rounding.

Rows are worked on some at a time, on the device where the weight is, so that a large matrix takes little memory beside
what goes in and what comes out.
"""

from __future__ import annotations

from collections.abc import Callable

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


def quantize(weight: Tensor, scheme: str | Scheme) -> PackedWeight:
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
    if weight.numel() and not bool(torch.stack(torch.aminmax(weight)).isfinite().all()):
        raise ModelError("a weight with a NaN or an infinity cannot be quantized")
    return _PACKERS[how.kind](weight, how, group)


def _int8(weight: Tensor, scheme: Scheme, group: int) -> Int8Weight:
    n, k = weight.shape
    values = memory.empty((n, k), torch.int8, weight.device)
    scales = weight.new_empty(n, k // group, dtype=torch.float32 if scheme.group is None else _scale_dtype(weight))
    for rows in _chunks(weight):
        groups = weight[rows].float().unflatten(1, (-1, group))
        scale = (groups.abs().amax(-1, keepdim=True) / 127).to(scales.dtype)
        values[rows] = (groups / _nonzero(scale.float())).round_().clamp_(-127, 127).flatten(1)
        scales[rows] = scale.squeeze(-1)
    return Int8Weight(values=values, scales=scales, quantizes_input=scheme.quantizes_input)


def _fp8(weight: Tensor, scheme: Scheme, group: int) -> Fp8Weight:
    n, k = weight.shape
    block = (scheme.rows or max(n, 1), group)
    scales = _largest(weight, block) / FP8_MAX
    columns = torch.arange(k, device=weight.device) // block[1]
    values = memory.empty((n, k), torch.float8_e4m3fn, weight.device)
    for rows in _chunks(weight):
        scale = _nonzero(scales)[torch.arange(rows.start, rows.stop, device=weight.device) // block[0]][:, columns]
        values[rows] = (weight[rows].float() / scale).clamp_(-FP8_MAX, FP8_MAX).to(values.dtype)
    return Fp8Weight(values=values, scales=scales, block=block, quantizes_input=scheme.quantizes_input)


def _int4(weight: Tensor, scheme: Scheme, group: int) -> Int4Weight:
    n, k = weight.shape
    values = memory.empty((n, k // 2), torch.uint8, weight.device)
    scales = weight.new_empty(n, k // group, dtype=_scale_dtype(weight))
    zeros = torch.empty_like(scales)
    for rows in _chunks(weight):
        groups = weight[rows].float().unflatten(1, (-1, group))
        q, scales[rows], zeros[rows] = round_groups(groups, scales.dtype)
        values[rows] = pack_nibbles(q.flatten(1))
    return Int4Weight(values=values, scales=scales, zeros=zeros)


def _scale_dtype(weight: Tensor) -> torch.dtype:
    """float16 for scales of groups, unless the largest one is so large or so small that it cannot say them well."""
    largest = max((abs(extreme) for extreme in torch.aminmax(weight)), default=0.0) if weight.numel() else 0.0
    return torch.float16 if 2.0**-9 <= largest <= 2.0**15 else torch.float32


_PACKERS: dict[str, Callable[[Tensor, Scheme, int], PackedWeight]] = {"int8": _int8, "int4": _int4, "fp8": _fp8}


def _chunks(weight: Tensor) -> list[slice]:
    """Some rows at a time."""
    n, k = weight.shape
    step = max(1, CHUNKS.get(weight.device.type, CHUNKS["cuda"]) // max(k, 1))
    return [slice(begin, min(begin + step, n)) for begin in range(0, n, step)]


def _largest(weight: Tensor, block: tuple[int, int]) -> Tensor:
    """The largest magnitude of each block of rows and columns, float32 ``[ceil(N / rows), ceil(K / columns)]``."""
    (n, k), (rows, columns) = weight.shape, block
    of_rows = weight.new_empty(n, -(-k // columns), dtype=torch.float32)
    for part in _chunks(weight):
        of_rows[part] = F.pad(weight[part].float().abs(), (0, -k % columns)).unflatten(1, (-1, columns)).amax(-1)
    return F.pad(of_rows, (0, 0, 0, -n % rows)).view(-(-n // rows), rows, of_rows.shape[1]).amax(1)


def _nonzero(scale: Tensor) -> Tensor:
    """1 instead of 0: a group of zeros can be divided."""
    return torch.where(scale == 0, 1.0, scale)
