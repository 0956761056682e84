"""Products of one row with weights in words (`quantized_words`), with the norm before and the gate behind them.

The kernels are `matvec`'s in all that is not about the form of the weight: a few whole rows a program, all of their
words and scales requested before ``pdl.wait``, the norm folded into the product, the new stream in a buffer of its own.
The floor is bytes again, a half or a quarter as many, so that two other things come near it:

- *Instructions.* `quantized_words` counts them. Scales are applied to sums: a thread multiplies a unit (16 or 32
  columns, of one group) and only then with the group's scale.
- *x.* Each program reads all of x, its stream and the norm's weight, and makes float32 of them: for 4 bits that is as
  much traffic as 8 rows of the weight, if from the cache. So a program takes more rows than in 16 bits.

A group's zero point (or least value) multiplies the sum of x over a unit, which is the same for all rows.

x's numbers are as many registers as a unit has columns, for each unit that a thread has of a row: 1, or 2 of long rows.
So the threads of a program lie along K, and rows are in registers.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from octavo.kernels.triton.matvec import new_stream
from octavo.kernels.triton.pdl import AFTER_SUMS, AFTER_WAIT, FIRST, trigger, use_pdl, wait
from octavo.kernels.triton.quantized_dot import dot, quantize
from octavo.kernels.triton.quantized_words import (
    WordWeight,
    form_of,
    load_scale,
    load_words,
)

MIN_PROGRAMS = 128
"""About one for each multiprocessor."""
THREAD_UNITS = {4: 16, 8: 8}
"""Bits of a number to the units of 16 bytes of weights that a thread holds; twice as many of rows of several tiles.

Measured on an H100, one stream of the 8B shape, tokens/s: 4 bits 232, 349, 413 and 342 with 4, 8, 16 and 32 units, 422
with 32 in long rows alone; 8 bits 332 and 344 with 8 and 16. Programs of fewer rows cost smaller models up to 15%.
"""


@dataclass(frozen=True, slots=True)
class Settings:
    """One way to compute a product.

    Attributes:
        rows: of the weight, in one program; a power of two. With a gate, so many of each half.
        tile: units of a row that lie beside each other in the threads; a power of two.
        warps: of a program.
        trigger: when the next kernel may begin (`pdl`).
    """

    rows: int
    tile: int
    warps: int
    trigger: int = FIRST


def fits(x: Tensor, weight: WordWeight, *, norm: bool = False) -> bool:
    """Whether these kernels can compute ``x [T, K] @ weight [N, K].T``, after a ``norm`` or without."""
    return len(x) == 1 and x.is_contiguous() and not (norm and weight.order is not None)


def choose(n: int, units: int, *, gated: bool, bits: int) -> Settings:
    """Settings for a weight of ``n`` rows (twice that if gated) of ``units`` of numbers of so many ``bits``."""
    tile = max(min(triton.next_power_of_2(units), 128 if bits == 8 and units <= 256 else 256), 32)
    warps = min(max(tile // 32, 4), 8)
    tiles = -(-units // tile)
    held = THREAD_UNITS[bits] * (2 if tiles > 1 else 1)
    rows = held * 32 * warps // (tiles * tile) // (2 if gated else 1)
    rows = 1 << max(rows.bit_length() - 1, 0)
    while rows > 1 and -(-n // rows) < MIN_PROGRAMS:
        rows //= 2
    return Settings(rows, tile, warps)


def linear(x: Tensor, weight: WordWeight, bias: Tensor | None = None, settings: Settings | None = None) -> Tensor:
    """``x [1, K] @ weight [N, K].T + bias [N]``: ``[1, N]`` in x's dtype."""
    x = x if weight.order is None else x.index_select(1, weight.order)
    out = x.new_empty(1, weight.shape[0])
    _launch(x, None, None, 0.0, weight, bias, out, None, False, settings)
    return out


def add_norm_linear(
    x: Tensor,
    residual: Tensor | None,
    norm_weight: Tensor,
    eps: float,
    weight: WordWeight,
    bias: Tensor | None = None,
    settings: Settings | None = None,
) -> tuple[Tensor, Tensor]:
    """``(linear(rms_norm(x + residual)), x + residual)`` as ``Ops.add_norm_linear``, of one row. Overwrites nothing."""
    out, total = x.new_empty(1, weight.shape[0]), new_stream(x, residual)
    _launch(x, residual, norm_weight, eps, weight, bias, out, total, False, settings)
    return out, x if total is None else total


def add_norm_gate_up(
    x: Tensor,
    residual: Tensor | None,
    norm_weight: Tensor,
    eps: float,
    weight: WordWeight,
    bias: Tensor | None = None,
    settings: Settings | None = None,
) -> tuple[Tensor, Tensor]:
    """``(silu(gate) * up, x + residual)`` of weight ``[2N, K]``, as ``Ops.add_norm_gate_up``: ``[1, N]``."""
    out, total = x.new_empty(1, weight.shape[0] // 2), new_stream(x, residual)
    _launch(x, residual, norm_weight, eps, weight, bias, out, total, True, settings)
    return out, x if total is None else total


def _launch(
    x: Tensor,
    residual: Tensor | None,
    norm: Tensor | None,
    eps: float,
    weight: WordWeight,
    bias: Tensor | None,
    out: Tensor,
    total: Tensor | None,
    gated: bool,
    settings: Settings | None,
) -> None:
    n, units = out.shape[1], x.shape[1] // weight.unit
    s, pdl = settings or _choose(n, units, gated, 128 // weight.unit), use_pdl(x.device)
    tensors = (weight.words, weight.scales, weight.super_scales, weight.moves, weight.super_moves)
    sizes = {"N": n, "UNITS": units, "ROWS": s.rows, "TILE": s.tile, "GATED": gated, "TRIGGER": s.trigger, "PDL": pdl}
    form = form_of(weight)
    form["BYTES"] = 3 if x.dtype == torch.float32 else 2
    options = {"num_warps": s.warps, "launch_pdl": pdl}
    _matvec[(-(-n // s.rows),)](x, residual, norm, *tensors, bias, out, total, eps, **sizes, **form, **options)


_choose = functools.cache(lambda n, units, gated, bits: choose(n, units, gated=gated, bits=bits))


_FIRST, _AFTER_WAIT, _AFTER_SUMS = tl.constexpr(FIRST), tl.constexpr(AFTER_WAIT), tl.constexpr(AFTER_SUMS)


@triton.jit
def _matvec(
    x: tl.tensor,
    residual: tl.tensor,
    norm: tl.tensor,
    words: tl.tensor,
    scales: tl.tensor,
    super_scales: tl.tensor,
    moves: tl.tensor,
    super_moves: tl.tensor,
    bias: tl.tensor,
    out: tl.tensor,
    total: tl.tensor,
    eps: float,
    N: tl.constexpr,
    UNITS: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
    GATED: tl.constexpr,
    TRIGGER: tl.constexpr,
    PDL: tl.constexpr,
    KIND: tl.constexpr,
    BYTES: tl.constexpr,
    GROUP: tl.constexpr,
    SCALE_ROWS: tl.constexpr,
    MOVE: tl.constexpr,
    HARDWARE: tl.constexpr,
) -> None:
    """Each program one block of rows."""
    first = tl.program_id(0) * ROWS
    trigger(PDL and TRIGGER == _FIRST)
    TOTAL: tl.constexpr = 2 * N if GATED else N
    w, sw = _load_block(
        words,
        scales,
        super_scales,
        moves,
        super_moves,
        first,
        first,
        N,
        TOTAL,
        UNITS,
        ROWS,
        TILE,
        KIND,
        GROUP,
        SCALE_ROWS,
        MOVE,
    )
    u, su = (), ()
    b = _load_bias(bias, first, N, ROWS)
    c = b
    if GATED:
        second = words + N * (UNITS * 4)
        u, su = _load_block(
            second,
            scales,
            super_scales,
            moves,
            super_moves,
            first,
            first + N,
            N,
            TOTAL,
            UNITS,
            ROWS,
            TILE,
            KIND,
            GROUP,
            SCALE_ROWS,
            MOVE,
        )
        if bias is not None:
            c = _load_bias(bias + N, first, N, ROWS)
    g = _load_planes(norm, UNITS, TILE, KIND)
    wait(PDL)
    trigger(PDL and TRIGGER == _AFTER_WAIT)
    xs = _load_planes(x, UNITS, TILE, KIND)
    rs = _load_planes(residual, UNITS, TILE, KIND)
    v, squares = _add(xs, rs, g, total, UNITS, TILE, KIND, tl.program_id(0) == 0)
    xq = quantize(v, KIND, BYTES)
    y = dot(w, sw, v, xq, KIND, BYTES, GROUP, UNITS, MOVE, HARDWARE)
    scale = 1.0
    if norm is not None:
        planes: tl.constexpr = 8 if KIND == "int4" else 4
        scale = tl.rsqrt(tl.sum(squares) / (UNITS * 4 * planes) + eps)
    y = y * scale + b
    if GATED:
        z = dot(u, su, v, xq, KIND, BYTES, GROUP, UNITS, MOVE, HARDWARE)
        y = y * tl.sigmoid(y) * (z * scale + c)
    trigger(PDL and TRIGGER == _AFTER_SUMS)
    rows = first + tl.arange(0, ROWS)
    tl.store(out + rows, y.to(out.dtype.element_ty), mask=rows < N)


@triton.jit
def _load_block(
    words: tl.tensor,
    scales: tl.tensor,
    super_scales: tl.tensor,
    moves: tl.tensor,
    super_moves: tl.tensor,
    first: tl.tensor,
    scale_row: tl.tensor,
    N: tl.constexpr,
    TOTAL: tl.constexpr,
    UNITS: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
    KIND: tl.constexpr,
    GROUP: tl.constexpr,
    SCALE_ROWS: tl.constexpr,
    MOVE: tl.constexpr,
) -> tl.tuple:
    """The words of a block of rows, tile by tile, and of each tile its units' scales, and what moves them (or 0)."""
    tiles, factors = (), ()
    width: tl.constexpr = 32 if KIND == "int4" else 16
    groups: tl.constexpr = (UNITS * width + GROUP - 1) // GROUP
    row = tl.minimum(scale_row + tl.arange(0, ROWS), TOTAL - 1)[None, :]  # a row beyond the last is not stored
    for start in tl.static_range(0, UNITS, TILE):
        tiles = tiles + (load_words(words, first, start, N, UNITS, ROWS, TILE),)  # type: ignore[assignment]  # noqa: RUF005
    for start in tl.static_range(0, UNITS, TILE):
        if groups > 1 or start == 0:
            unit = start + tl.arange(0, TILE)[:, None] if groups > 1 else tl.zeros([1, 1], tl.int32)
            if start + TILE > UNITS:
                unit = tl.minimum(unit, UNITS - 1)
            column = unit * width
            s = load_scale(scales, super_scales, row, column, None, UNITS, KIND, GROUP, SCALE_ROWS)
            m = 0.0
            if MOVE != 0:
                m = load_scale(moves, super_moves, row, column, None, UNITS, KIND, GROUP, SCALE_ROWS)
            factors = factors + ((s, m),)  # type: ignore[assignment]  # noqa: RUF005
    return tiles, factors


@triton.jit
def _load_bias(bias: tl.tensor, first: tl.tensor, N: tl.constexpr, ROWS: tl.constexpr) -> tl.tensor:
    rows = first + tl.arange(0, ROWS)
    return 0.0 if bias is None else tl.load(bias + rows, mask=rows < N, other=0.0).to(tl.float32)


@triton.jit
def _columns(i: tl.constexpr, start: tl.constexpr, TILE: tl.constexpr, KIND: tl.constexpr) -> tl.tensor:
    """The columns of plane i of the units from ``start`` on, ``[TILE, 4]``."""
    width: tl.constexpr = 32 if KIND == "int4" else 16
    return (start + tl.arange(0, TILE))[:, None] * width + (4 * i + tl.arange(0, 4)[None, :])


@triton.jit
def _load_planes(row: tl.tensor, UNITS: tl.constexpr, TILE: tl.constexpr, KIND: tl.constexpr) -> tl.tuple:
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
def _add(
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
