"""GGML's blocks in words: the same numbers to the last bit, in planes that a GPU can load 16 bytes at a time.

A block mixes its scales and numbers and is 18 bytes or 210 long: rows of them begin anywhere. Here numbers of 4 bits
are words of nibbles, and all others words of bytes: Q6_K then has 8.6 bits a weight instead of 6.6, Q2_K 9.1 instead of
2.6. Small integer scales of groups stay small integers, beside the float16 that sizes them. What is where in a block,
and the formula of each type, is told in `octavo.ggml.formulas`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from octavo.kernels.packed import BlockWeight
from octavo.kernels.triton.quantized_words import (
    FLOORS,
    INT4,
    INT8,
    SCALES_ONLY,
    WordWeight,
    bytes_to_words,
    nibbles_to_words,
)

Parts: TypeAlias = tuple[Tensor, ...]

CHUNK_BYTES = 8 << 20
"""Bytes of blocks that are taken apart at a time."""


def words(weight: BlockWeight) -> WordWeight:
    """A matrix of one of ``KINDS`` in words, on its device."""
    take, kind, group, move = _FORMS[weight.kind]
    n, k = weight.shape
    rows = max(1, CHUNK_BYTES // weight.blocks.shape[1])
    pieces: list[tuple[Tensor, ...]] = []
    for begin in range(0, n, rows):
        part = weight.blocks[begin : begin + rows].contiguous()
        q, *scales = take(part.view(-1, weight.type_size))
        q = q.reshape(len(part), k)
        packed = nibbles_to_words(q[:, 0::2] | q[:, 1::2] << 4) if kind == INT4 else bytes_to_words(q.view(torch.uint8))
        pieces.append((packed, *(s.reshape(len(part), -1) for s in scales)))
    whole = [torch.cat(parts) for parts in zip(*pieces, strict=True)]
    factors, *rest = whole[1:]
    moves = rest.pop(0) if move else None
    super_scales, super_moves = (*rest, None, None)[:2]
    return WordWeight(
        kind=kind,
        words=whole[0],
        scales=factors,
        moves=moves,
        super_scales=super_scales,
        super_moves=super_moves,
        group=group,
        move=move,
    )


def _half(blocks: Tensor, at: int) -> Tensor:
    """The float16 at byte ``at`` of each block, ``[n, 1]``."""
    return blocks[:, at : at + 2].contiguous().view(torch.float16)


def _planes(packed: Tensor, bits: int) -> Tensor:
    """``[..., w]`` bytes of ``8 / bits`` numbers each to ``[..., 8 / bits, w]``: the lowest bits first."""
    return torch.stack([packed >> shift & (1 << bits) - 1 for shift in range(0, 8, bits)], dim=-2)


def _q4_0(blocks: Tensor) -> Parts:
    return _planes(blocks[:, 2:], 4), _half(blocks, 0)


def _q4_1(blocks: Tensor) -> Parts:
    return _planes(blocks[:, 4:], 4), _half(blocks, 0), _half(blocks, 2)


def _q5_0(blocks: Tensor) -> Parts:
    return _five_bits(blocks[:, 2:]).to(torch.int8) - 16, _half(blocks, 0)


def _q5_1(blocks: Tensor) -> Parts:
    return _five_bits(blocks[:, 4:]), _half(blocks, 0), _half(blocks, 2)


def _five_bits(blocks: Tensor) -> Tensor:
    """32 fifth bits, then 32 nibbles, as ``[n, 32]``."""
    fifth = _planes(blocks[:, :4], 1).transpose(1, 2).reshape(-1, 32)
    return _planes(blocks[:, 4:], 4).reshape(-1, 32) | fifth << 4


def _q8_0(blocks: Tensor) -> Parts:
    return blocks[:, 2:].contiguous(), _half(blocks, 0)


def _iq4_nl(blocks: Tensor) -> Parts:
    return _from_table(_planes(blocks[:, 2:], 4)), _half(blocks, 0)


def _iq4_xs(blocks: Tensor) -> Parts:
    low = _planes(blocks[:, 4:8, None], 4).reshape(-1, 8)
    high = _planes(blocks[:, 2:4, None], 2).reshape(-1, 8)
    scale = (low | high << 4).to(torch.int8) - 32
    return _from_table(_planes(blocks[:, 8:].reshape(-1, 8, 16), 4)), scale, _half(blocks, 0)


def _from_table(indices: Tensor) -> Tensor:
    return torch.tensor(IQ4_VALUES, dtype=torch.int8, device=indices.device)[indices.int()]


def _q2_k(blocks: Tensor) -> Parts:
    q = _planes(blocks[:, 16:80].reshape(-1, 2, 32), 2)
    return q, blocks[:, :16] & 15, blocks[:, :16] >> 4, _half(blocks, 80), -_half(blocks, 82)


def _q3_k(blocks: Tensor) -> Parts:
    low = _planes(blocks[:, 96:104], 4).reshape(-1, 16)
    high = _planes(blocks[:, 104:108], 2).reshape(-1, 16)
    pairs = _planes(blocks[:, 32:96].reshape(-1, 2, 32), 2).reshape(-1, 256)
    third = _planes(blocks[:, :32], 1).reshape(-1, 256)
    return (pairs | third << 2).to(torch.int8) - 4, (low | high << 4).to(torch.int8) - 32, _half(blocks, 108)


def _q4_k(blocks: Tensor) -> Parts:
    return _planes(blocks[:, 16:].reshape(-1, 4, 32), 4), *_scales_and_floors(blocks)


def _q5_k(blocks: Tensor) -> Parts:
    q = _planes(blocks[:, 48:].reshape(-1, 4, 32), 4).reshape(-1, 8, 32)
    return q | _planes(blocks[:, 16:48], 1) << 4, *_scales_and_floors(blocks)


def _scales_and_floors(blocks: Tensor) -> Parts:
    """Eight scales and eight floors of 6 bits in 12 bytes, and the two float16 numbers that size them."""
    a, b, c = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    s = torch.cat([a & 63, (c & 15) | (a >> 6) << 4], dim=1)
    t = torch.cat([b & 63, (c >> 4) | (b >> 6) << 4], dim=1)
    return s, t, _half(blocks, 0), -_half(blocks, 2)


def _q6_k(blocks: Tensor) -> Parts:
    low = _planes(blocks[:, :128].reshape(-1, 2, 64), 4).reshape(-1, 256)
    high = _planes(blocks[:, 128:192].reshape(-1, 2, 32), 2).reshape(-1, 256)
    return (low | high << 4).to(torch.int8) - 32, blocks[:, 192:208].contiguous().view(torch.int8), _half(blocks, 208)


IQ4_VALUES = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
_FORMS: dict[str, tuple[Callable[[Tensor], Parts], str, int, int]] = {
    "Q4_0": (_q4_0, INT4, 32, SCALES_ONLY),
    "Q4_1": (_q4_1, INT4, 32, FLOORS),
    "Q5_0": (_q5_0, INT8, 32, SCALES_ONLY),
    "Q5_1": (_q5_1, INT8, 32, FLOORS),
    "Q8_0": (_q8_0, INT8, 32, SCALES_ONLY),
    "IQ4_NL": (_iq4_nl, INT8, 32, SCALES_ONLY),
    "IQ4_XS": (_iq4_xs, INT8, 32, SCALES_ONLY),
    "Q2_K": (_q2_k, INT8, 16, FLOORS),
    "Q3_K": (_q3_k, INT8, 16, SCALES_ONLY),
    "Q4_K": (_q4_k, INT4, 32, FLOORS),
    "Q5_K": (_q5_k, INT8, 32, FLOORS),
    "Q6_K": (_q6_k, INT8, 16, SCALES_ONLY),
}
"""Of each type: its numbers, scales, what moves them, and their float16 sizes; the words' form; columns of a group."""
KINDS = frozenset(_FORMS)
"""Block types that become words."""
