"""The one row of x of `quantized_matvec`: with the stream added and the norm's weight, as planes, in whole numbers."""

from __future__ import annotations

import triton
import triton.language as tl

from octavo.kernels.triton.quantized_words import fixed_point


@triton.jit
def load_planes(row: tl.tensor, UNITS: tl.constexpr, TILE: tl.constexpr, KIND: tl.constexpr) -> tl.tuple:
    """A vector [K] as tiles ``[TILE, 4]``, those of the first units plane by plane, then the next; none of None."""
    tiles = ()
    if row is not None:
        width: tl.constexpr = 32 if KIND == "int4" else 16
        for start in tl.static_range(0, UNITS, TILE):
            for i in tl.static_range(width // 4):
                column = _columns(i, start, TILE, KIND)
                if start + TILE > UNITS:
                    tile = tl.load(row + column, mask=column < UNITS * width, other=0.0)
                else:
                    tile = tl.load(row + column)
                tiles = tiles + (tile,)  # type: ignore[assignment]  # noqa: RUF005
    return tiles


@triton.jit
def add_stream(
    xs: tl.tuple,
    rs: tl.tuple,
    g: tl.tuple,
    total: tl.tensor,
    UNITS: tl.constexpr,
    TILE: tl.constexpr,
    KIND: tl.constexpr,
    writes: tl.tensor,
) -> tl.tuple:
    """``g * (x + residual)`` in float32, and the squares of the sum, which one program writes."""
    width: tl.constexpr = 32 if KIND == "int4" else 16
    squares = tl.zeros([TILE, 4], tl.float32)
    vs = ()
    for i in tl.static_range(len(xs)):
        v = xs[i].to(tl.float32)
        if len(rs) > 0:
            v += rs[i].to(tl.float32)
            if writes:
                column = _columns(i % (width // 4), i // (width // 4) * TILE, TILE, KIND)
                tl.store(total + column, v, mask=column < UNITS * width)
        if len(g) > 0:
            squares += v * v
            v *= g[i].to(tl.float32)
        vs = vs + (v,)  # type: ignore[assignment]  # noqa: RUF005
    return vs, squares


@triton.jit
def _columns(i: tl.constexpr, start: tl.constexpr, TILE: tl.constexpr, KIND: tl.constexpr) -> tl.tensor:
    """The columns of plane i of the units from ``start`` on, ``[TILE, 4]``."""
    width: tl.constexpr = 32 if KIND == "int4" else 16
    return (start + tl.arange(0, TILE))[:, None] * width + (4 * i + tl.arange(0, 4)[None, :])


@triton.jit
def quantize(v: tl.tuple, KIND: tl.constexpr, BYTES: tl.constexpr) -> tl.tuple:
    """x as `fixed_point` makes it, tile by tile, for integer weights."""
    tiles = ()
    if KIND != "fp8":
        planes: tl.constexpr = 8 if KIND == "int4" else 4
        for tile in tl.static_range(len(v) // planes):
            tiles = tiles + (fixed_point(v[tile * planes : (tile + 1) * planes], KIND, BYTES),)  # type: ignore[assignment]  # noqa: RUF005
    return tiles
