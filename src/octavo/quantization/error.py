"""How far a packed weight is from the plain one."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from octavo.kernels.packed import Operand
from octavo.kernels.packed_parts import take_rows
from octavo.kernels.reference.quantized import dequantize

CHUNK = 1 << 22
"""Weights that are expanded at a time; whole blocks of 128 rows."""


@dataclass(frozen=True, slots=True)
class QuantizationError:
    """The difference between a packed weight and the plain one.

    Attributes:
        relative_rms: root of the mean square of the difference, as a part of that of the plain weight.
        largest: the largest difference, in units of the weight.
    """

    relative_rms: float
    largest: float


def error(weight: Tensor, packed: Operand) -> QuantizationError:
    """Compare ``packed`` with ``weight [N, K]``, in float32 and some rows at a time."""
    step = max(1, CHUNK // max(weight.shape[1], 1) // 128) * 128
    squares = of_weight = largest = 0.0
    for begin in range(0, weight.shape[0], step):
        rows = slice(begin, begin + step)
        plain = weight[rows].float()
        difference = dequantize(take_rows(packed, rows), plain.dtype) - plain
        squares += difference.square().sum().item()
        of_weight += plain.square().sum().item()
        largest = max(largest, difference.abs().max().item())
    return QuantizationError(math.sqrt(squares / of_weight) if of_weight else math.sqrt(squares), largest)
