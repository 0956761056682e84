"""The formula of each GGML block format, from packed bytes to float32.

A row of weights is cut into blocks of 32 or 256; a block is stored in a fixed number of bytes: small integers
``q`` and the numbers that give them back their size.

    ``_0`` formats (symmetric)      w = d * q         q is centred on zero
    ``_1`` formats (with a floor)   w = d * q + m     q starts at zero, m is the block's least weight
    K formats, 256 weights          w = (d * s) * q [- dmin * t]
                                    each group of 16 or 32 weights has its own small integer scale s (and
                                    floor t), and the block has one float16 to size all of them: a scale of
                                    scales

Each function takes blocks ``uint8[n, bytes]`` and returns ``float32[n, weights]``. Multiplications and
additions are done in float32 and in the order in which GGML's reference does them, so that the result is
equal to the last bit. The layouts are those of ``ggml-common.h`` of the GGML project.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]


def f32(blocks: Bytes) -> Floats:
    """float32 as it is."""
    return blocks.view("<f4")


def f16(blocks: Bytes) -> Floats:
    """IEEE half precision."""
    return blocks.view("<f2").astype(np.float32)


def bf16(blocks: Bytes) -> Floats:
    """The upper half of a float32."""
    return (blocks.view("<u2").astype(np.uint32) << np.uint32(16)).view(np.float32)


def q4_0(blocks: Bytes) -> Floats:
    """``d`` float16 | 16 bytes of nibbles. w = d * (q - 8)."""
    q = _planes(blocks[:, 2:], 4).reshape(-1, 32)
    return _scaled(_centred(q, 8), _half(blocks, 0))


def q4_1(blocks: Bytes) -> Floats:
    """``d``, ``m`` float16 | 16 bytes of nibbles. w = d * q + m."""
    q = _planes(blocks[:, 4:], 4).reshape(-1, 32)
    return _scaled(q, _half(blocks, 0), plus=_half(blocks, 2))


def q5_0(blocks: Bytes) -> Floats:
    """``d`` float16 | 32 fifth bits | 16 bytes of nibbles. w = d * (q - 16)."""
    return _scaled(_centred(_five_bits(blocks[:, 2:]), 16), _half(blocks, 0))


def q5_1(blocks: Bytes) -> Floats:
    """``d``, ``m`` float16 | 32 fifth bits | 16 bytes of nibbles. w = d * q + m."""
    return _scaled(_five_bits(blocks[:, 4:]), _half(blocks, 0), plus=_half(blocks, 2))


def q8_0(blocks: Bytes) -> Floats:
    """``d`` float16 | 32 int8. w = d * q."""
    return _scaled(blocks[:, 2:].view(np.int8), _half(blocks, 0))


def iq4_nl(blocks: Bytes) -> Floats:
    """``d`` float16 | 16 bytes of nibbles, indices of a table of unevenly spaced values. w = d * table[q]."""
    q = _planes(blocks[:, 2:], 4).reshape(-1, 32)
    return _scaled(_IQ4_VALUES[q], _half(blocks, 0))


def iq4_xs(blocks: Bytes) -> Floats:
    """``d`` float16 | 8 scales: 16 bits of high pairs, 4 bytes of low nibbles | 128 bytes of nibbles.

    w = d * (s - 32) * table[q] in 8 groups of 32; the table is that of IQ4_NL.
    """
    low = _planes(blocks[:, 4:8, None], 4).reshape(-1, 8)
    high = _planes(blocks[:, 2:4, None], 2).reshape(-1, 8)
    scale = _scaled(_centred(low | high << 4, 32), _half(blocks, 0))
    q = _planes(blocks[:, 8:].reshape(-1, 8, 16), 4).reshape(-1, 8, 32)
    return _scaled(_IQ4_VALUES[q], scale[..., None]).reshape(-1, 256)


def q2_k(blocks: Bytes) -> Floats:
    """16 bytes of (s, t) nibbles | 64 bytes of bit pairs | ``d``, ``dmin`` float16.

    w = d * s * q - dmin * t in 16 groups of 16.
    """
    scales, d, dmin = blocks[:, :16], _half(blocks, 80), _half(blocks, 82)
    q = _planes(blocks[:, 16:80].reshape(-1, 2, 32), 2).reshape(-1, 16, 16)
    scale, floor = _scaled(scales & 15, d), _scaled(scales >> 4, dmin)
    return _scaled(q, scale[..., None], minus=floor[..., None]).reshape(-1, 256)


def q3_k(blocks: Bytes) -> Floats:
    """32 bytes of third bits | 64 bytes of bit pairs | 12 bytes of 6-bit scales | ``d`` float16.

    w = d * (s - 32) * (q - 4) in 16 groups of 16.
    """
    low = _planes(blocks[:, 96:104], 4).reshape(-1, 16)
    high = _planes(blocks[:, 104:108], 2).reshape(-1, 16)
    scale = _scaled(_centred(low | high << 4, 32), _half(blocks, 108))
    pairs = _planes(blocks[:, 32:96].reshape(-1, 2, 32), 2).reshape(-1, 16, 16)
    third = _planes(blocks[:, :32], 1).reshape(-1, 16, 16)
    return _scaled(_centred(pairs | third << 2, 4), scale[..., None]).reshape(-1, 256)


def q4_k(blocks: Bytes) -> Floats:
    """``d``, ``dmin`` float16 | 12 bytes of 6-bit (s, t) | 128 bytes of nibbles.

    w = d * s * q - dmin * t in 8 groups of 32.
    """
    scale, floor = _scales_and_floors(blocks)
    q = _planes(blocks[:, 16:].reshape(-1, 4, 32), 4).reshape(-1, 8, 32)
    return _scaled(q, scale, minus=floor).reshape(-1, 256)


def q5_k(blocks: Bytes) -> Floats:
    """``d``, ``dmin`` float16 | 12 bytes of 6-bit (s, t) | 32 bytes of fifth bits | 128 bytes of nibbles.

    w = d * s * q - dmin * t in 8 groups of 32. Group g keeps its fifth bits in bit g of each of the 32 bytes.
    """
    scale, floor = _scales_and_floors(blocks)
    q = _planes(blocks[:, 48:].reshape(-1, 4, 32), 4).reshape(-1, 8, 32)
    q |= _planes(blocks[:, 16:48], 1) << 4
    return _scaled(q, scale, minus=floor).reshape(-1, 256)


def q6_k(blocks: Bytes) -> Floats:
    """128 bytes of low nibbles | 64 bytes of high pairs | 16 int8 scales | ``d`` float16.

    w = d * s * (q - 32) in 16 groups of 16.
    """
    low = _planes(blocks[:, :128].reshape(-1, 2, 64), 4).reshape(-1, 256)
    high = _planes(blocks[:, 128:192].reshape(-1, 2, 32), 2).reshape(-1, 256)
    scale = _scaled(blocks[:, 192:208].view(np.int8), _half(blocks, 208))
    q = _centred(low | high << 4, 32).reshape(-1, 16, 16)
    return _scaled(q, scale[..., None]).reshape(-1, 256)


_IQ4_VALUES = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], dtype=np.float32)


def _half(blocks: Bytes, at: int) -> Floats:
    """The float16 at byte ``at`` of each block, as ``[n, 1]``."""
    return blocks[:, at : at + 2].view("<f2").astype(np.float32)


def _planes(packed: Bytes, bits: int) -> Bytes:
    """Unpack ``[..., w]`` bytes that hold ``8 / bits`` integers each into ``[..., 8 / bits, w]``.

    GGML never keeps neighbours in one byte: plane k takes bits ``k * bits`` and up of all ``w`` bytes, which
    suits SIMD.
    """
    planes = np.empty((*packed.shape[:-1], 8 // bits, packed.shape[-1]), np.uint8)
    for k in range(8 // bits):
        np.right_shift(packed, k * bits, out=planes[..., k, :])
    planes &= (1 << bits) - 1
    return planes


def _five_bits(blocks: Bytes) -> Bytes:
    """32 high bits (one little-endian word), then 32 nibbles, as ``[n, 32]`` integers 0 to 31."""
    high = np.unpackbits(blocks[:, :4], axis=-1, bitorder="little")
    q = _planes(blocks[:, 4:], 4).reshape(-1, 32)
    q |= high << 4
    return q


def _centred(q: NDArray[np.integer], middle: int) -> NDArray[np.int8]:
    """``uint8`` integers below 128 moved so that ``middle`` becomes zero."""
    return q.view(np.int8) - np.int8(middle)


def _scaled(
    q: NDArray[np.generic], scale: Floats, *, plus: Floats | None = None, minus: Floats | None = None
) -> Floats:
    """``q * scale [+ plus] [- minus]`` in float32; the others broadcast over the last axis of ``q``."""
    weights = q.astype(np.float32)
    weights *= scale
    if plus is not None:
        weights += plus
    if minus is not None:
        weights -= minus
    return weights


def _scales_and_floors(blocks: Bytes) -> tuple[Floats, Floats]:
    """``d * s`` and ``dmin * t`` of Q4_K and Q5_K, each ``[n, 8, 1]``.

    Eight scales and eight floors of six bits in 12 bytes, as three rows of four:
    row 0 has s0..s3 in its low six bits, row 1 has t0..t3 there, row 2 has the low nibbles of s4..s7 below
    those of t4..t7; their high pairs are the spare top bits of rows 0 and 1.
    """
    first, second, third = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    s = np.concatenate([first & 63, (third & 15) | (first >> 6) << 4], axis=-1)
    t = np.concatenate([second & 63, (third >> 4) | (second >> 6) << 4], axis=-1)
    return _scaled(s, _half(blocks, 0))[..., None], _scaled(t, _half(blocks, 2))[..., None]
