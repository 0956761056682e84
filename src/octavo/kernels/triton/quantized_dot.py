"""A block of weights in words times one row of x, all of it in registers: see `quantized_matvec`."""

from __future__ import annotations

import triton
import triton.language as tl

from octavo.kernels.triton.quantized_words import integer_dot, unpack_fp8


@triton.jit
def dot(
    tiles: tl.tuple,
    factors: tl.tuple,
    v: tl.tuple,
    xq: tl.tuple,
    KIND: tl.constexpr,
    BYTES: tl.constexpr,
    GROUP: tl.constexpr,
    UNITS: tl.constexpr,
    MOVE: tl.constexpr,
    HARDWARE: tl.constexpr,
) -> tl.tensor:
    """Each row of the block times x, ``[ROWS]`` float32."""
    whole: tl.constexpr = UNITS * (32 if KIND == "int4" else 16) <= GROUP
    sums = 0.0
    for tile in tl.static_range(len(tiles)):
        if KIND == "fp8":
            part = _float_dot(tiles[tile], v[4 * tile : 4 * tile + 4], HARDWARE)
            if not whole:
                part *= factors[tile][0]
        else:
            part = _scaled_dot(tiles[tile], xq[tile], factors[0 if whole else tile], KIND, BYTES, MOVE, whole, HARDWARE)
        sums += part
    y = tl.sum(sums, axis=0)
    if whole and MOVE == 0:
        y *= tl.sum(factors[0][0], axis=0)
    return y


@triton.jit
def _float_dot(words: tl.tensor, v: tl.tuple, HARDWARE: tl.constexpr) -> tl.tensor:
    """A tile of e4m3 numbers times x: ``[TILE, ROWS]``."""
    q = unpack_fp8(words, HARDWARE)
    acc = q[0] * v[0][:, None, :]
    for i in tl.static_range(1, 4):
        acc += q[i] * v[i][:, None, :]
    return tl.sum(acc, axis=2)


@triton.jit
def _scaled_dot(
    words: tl.tensor,
    x: tl.tuple,
    factors: tl.tuple,
    KIND: tl.constexpr,
    BYTES: tl.constexpr,
    MOVE: tl.constexpr,
    WHOLE: tl.constexpr,
    HARDWARE: tl.constexpr,
) -> tl.tensor:
    """A tile of integers times x, ``[TILE, ROWS]``, with the groups' scales unless one is for all and nothing moves."""
    numbers, x_scale, total = x
    s, m = factors
    middle: tl.constexpr = 8 if KIND == "int4" else 0
    product = integer_dot(words, numbers, KIND, BYTES, HARDWARE)
    if KIND == "int4":
        product -= (total * 8)[:, None]
    part = product.to(tl.float32) * x_scale[:, None]
    moved = (total.to(tl.float32) * x_scale)[:, None]
    if MOVE == 1:
        part = (part + (middle - m) * moved) * s
    elif MOVE == 2:
        part = part * s + (m + middle * s) * moved
    elif not WHOLE:
        part *= s
    return part
