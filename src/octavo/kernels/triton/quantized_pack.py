"""From the canonical forms of small weights to the words that weight-only kernels read: once, at load time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from octavo.kernels.packed import BlockWeight, Fp8Weight, Int4Weight, Int8Weight, Operand, StackedWeight
from octavo.kernels.triton import quantized_blocks
from octavo.kernels.triton.quantized_words import (
    FP8,
    INT4,
    INT8,
    SCALES_ONLY,
    ZEROS,
    WordWeight,
    bytes_to_words,
    nibbles_to_words,
)

CHUNK_BYTES = 16 << 20
"""Packed bytes that are put in order at a time, so that a large matrix needs little memory beside itself."""


def pack(weight: Operand) -> Operand:
    """In words, if the kernels can multiply with it so. Those that round x stay rows, with a scale for each channel in
    place of one for many; all others as they are.
    """
    match weight:
        case StackedWeight():
            return replace(weight, parts=tuple(pack(part) for part in weight.parts))
        case Int8Weight(quantizes_input=False) if weight.group % 16 == 0:
            words = _chunked(lambda v: bytes_to_words(v.view(torch.uint8)), weight.values)
            return WordWeight(kind=INT8, words=words, scales=weight.scales.contiguous(), group=weight.group)
        case Int4Weight() if weight.group % 32 == 0:
            return _int4(weight)
        case Fp8Weight(quantizes_input=False) if weight.shape[1] % 16 == 0 and _whole_units(weight):
            words = _chunked(lambda v: bytes_to_words(v.view(torch.uint8)), weight.values)
            rows, group = weight.block
            return WordWeight(kind=FP8, words=words, scales=weight.scales.contiguous(), group=group, rows=rows)
        case Fp8Weight(quantizes_input=True, block=(rows, columns)) if rows > 1 and columns >= weight.shape[1]:
            scales = weight.scales.repeat_interleave(rows, dim=0)[: weight.shape[0]].contiguous()
            return replace(weight, scales=scales, block=(1, weight.shape[1]))
        case BlockWeight() if weight.kind in quantized_blocks.KINDS:
            return quantized_blocks.words(weight)
    return weight


def _int4(weight: Int4Weight) -> WordWeight:
    zeros = None if weight.zeros is None else weight.zeros.contiguous()
    return WordWeight(
        kind=INT4,
        words=_chunked(nibbles_to_words, weight.values),
        scales=weight.scales.contiguous(),
        moves=zeros,
        move=SCALES_ONLY if zeros is None else ZEROS,
        group=weight.group,
        order=weight.order,
    )


def _whole_units(weight: Fp8Weight) -> bool:
    return weight.block[1] % 16 == 0 or weight.block[1] >= weight.shape[1]


def _chunked(to_words: Callable[[Tensor], Tensor], values: Tensor) -> Tensor:
    """``to_words`` of some rows at a time."""
    rows = max(1, CHUNK_BYTES // values.shape[1])
    out = torch.empty(values.shape[0], values.shape[1] // 4, dtype=torch.int32, device=values.device)
    for begin in range(0, len(values), rows):
        out[begin : begin + rows] = to_words(values[begin : begin + rows].contiguous())
    return out
