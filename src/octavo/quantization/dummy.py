"""Packed weights of random numbers: to measure speed, without a plain weight to begin with."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from octavo.kernels.packed import Fp8Weight, PackedWeight
from octavo.quantization.pack import quantize
from octavo.quantization.schemes import Scheme

ROWS = 256
"""So many rows are quantized; all others repeat them."""


def random_weight(shape: tuple[int, int], scheme: Scheme, pattern: Tensor, device: torch.device) -> PackedWeight:
    """``[N, K]`` on ``device``, of a scheme that fits: rows of ``pattern``, float32 ``[P]`` and quantized, again and
    again.
    """
    rows = torch.empty(min(shape[0], ROWS), shape[1], device=device)
    tile(rows.view(-1), pattern.to(device))
    few = quantize(rows, scheme)
    packed = replace(few, **{name: _repeated(few_of, len(rows), shape[0]) for name, few_of in few.tensors().items()})
    if isinstance(packed, Fp8Weight) and scheme.rows is None:
        return replace(packed, block=(shape[0], packed.block[1]))
    return packed


def tile(target: Tensor, pattern: Tensor) -> None:
    """Fill ``target [n, ...]`` with ``pattern [m, ...]``, over and over."""
    for part in target.split(len(pattern)):
        part.copy_(pattern[: len(part)])


def _repeated(part: Tensor, few: int, many: int) -> Tensor:
    """What a packed weight of ``many`` rows has where one of ``few`` rows has ``part``."""
    if few == many or (len(part) == 1 and few > 1):  # one scale for all rows
        return part
    out = part.new_empty(-(-many * len(part) // few), *part.shape[1:])
    tile(out, part)
    return out
