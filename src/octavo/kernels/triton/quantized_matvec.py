"""Products of one row with weights in words (`quantized_words`), with the norm before and the gate behind them.

The kernels are `matvec`'s in all that is not about the form of the weight: a few whole rows a program, all of their
words and scales requested before ``pdl.wait``, the norm folded into the product, the new stream in a buffer of its own.
The floor is bytes again, a half or a quarter as many, so that two other things come near it:

- *Instructions.* `quantized_words` counts them. Scales are applied to sums: a thread multiplies a unit (16 or 32
  columns, of one group) and only then with the group's scale.
- *x.* Each program reads all of x, its stream and the norm's weight, and makes whole numbers of them: for 4 bits that
  is as much traffic as 8 rows of the weight, if from the cache, and as many instructions as the product of 16. So a
  program takes more rows than in 16 bits; and where x costs most, before a gate and of long rows, there are only as
  many programs as can be under way at once, each takes block after block, and has requested the next in time.

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

from octavo.kernels.triton.capability import MULTIPROCESSORS
from octavo.kernels.triton.matvec import new_stream
from octavo.kernels.triton.pdl import trigger, use_pdl, wait
from octavo.kernels.triton.quantized_dot import dot
from octavo.kernels.triton.quantized_input import add_stream, load_planes, quantize
from octavo.kernels.triton.quantized_load import load_block
from octavo.kernels.triton.quantized_words import WordWeight, form_of

MIN_PROGRAMS = 128
"""About one for each multiprocessor."""
THREAD_UNITS = {4: 16, 8: 8}
"""Bits of a number to the units of 16 bytes of weights that a thread holds; twice as many of rows of several tiles.

Measured on an H100, one stream of the 8B shape, tokens/s: 4 bits 232, 349, 413 and 342 with 4, 8, 16 and 32 units, 422
with 32 in long rows alone; 8 bits 332 and 344 with 8 and 16. Programs of fewer rows cost smaller models up to 15%.
"""
LOOP_PROGRAMS = 2 * MULTIPROCESSORS
"""Programs that take block after block.

Measured on an H100, the four products of a layer of the 8B shape, us: 4 bits 65.4 with a program for each block, 57.5,
60.9 and 60.2 with 2, 3 and 4 programs a multiprocessor; Q4_K 84.1 and 72.7 with 2. With 8 bits nothing is gained
(87.2 and 88.2), nor by the head, which has no norm before it (89 and 92).
"""
LOOP_BLOCKS = 2.5
"""Blocks of a program that loops, at least: with fewer, some programs have half as many again to do as others."""


@dataclass(frozen=True, slots=True)
class Settings:
    """One way to compute a product.

    Attributes:
        rows: of the weight, in one program; a power of two. With a gate, so many of each half.
        tile: units of a row that lie beside each other in the threads; a power of two.
        warps: of a program.
        programs: that take block after block; None: one for each block.
    """

    rows: int
    tile: int
    warps: int
    programs: int | None = None


def fits(x: Tensor, weight: WordWeight, *, norm: bool = False) -> bool:
    """Whether these kernels can compute ``x [T, K] @ weight [N, K].T``, after a ``norm`` or without."""
    return len(x) == 1 and x.is_contiguous() and not (norm and weight.order is not None)


def choose(n: int, units: int, *, gated: bool, bits: int) -> Settings:
    """Settings for a weight of ``n`` rows (twice that if gated) of ``units`` of numbers of so many ``bits``."""
    looped = _looped(n, units, gated) if bits == 4 else None
    return looped or _at_once(n, units, gated, bits)


def _looped(n: int, units: int, gated: bool) -> Settings | None:
    """None where x costs little, or where there is too little for all programs."""
    tile = max(min(triton.next_power_of_2(units), 128), 32)
    rows = _rows(THREAD_UNITS[4], units, tile, 4, gated)
    costly = gated or units > tile
    enough = -(-n // rows) >= LOOP_BLOCKS * LOOP_PROGRAMS
    return Settings(rows, tile, 4, programs=LOOP_PROGRAMS) if costly and enough else None


def _at_once(n: int, units: int, gated: bool, bits: int) -> Settings:
    tile = max(min(triton.next_power_of_2(units), 128 if bits == 8 and units <= 256 else 256), 32)
    warps = min(max(tile // 32, 4), 8)
    rows = _rows(THREAD_UNITS[bits] * (2 if units > tile else 1), units, tile, warps, gated)
    while rows > 1 and -(-n // rows) < MIN_PROGRAMS:
        rows //= 2
    return Settings(rows, tile, warps)


def _rows(held: int, units: int, tile: int, warps: int, gated: bool) -> int:
    """Rows of which a thread holds ``held`` units, as a power of two."""
    tiles = -(-units // tile)
    rows = held * 32 * warps // (tiles * tile) // (2 if gated else 1)
    return 1 << max(rows.bit_length() - 1, 0)


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
    blocks = -(-n // s.rows)
    programs = min(s.programs or blocks, blocks)
    sizes = {"N": n, "UNITS": units, "ROWS": s.rows, "TILE": s.tile, "PROGRAMS": programs}
    sizes |= {"GATED": gated, "PDL": pdl}
    form = form_of(weight)
    form["BYTES"] = 3 if x.dtype == torch.float32 else 2
    options = {"num_warps": s.warps, "launch_pdl": pdl}
    _matvec[(programs,)](x, residual, norm, *tensors, bias, out, total, eps, **sizes, **form, **options)


_choose = functools.cache(lambda n, units, gated, bits: choose(n, units, gated=gated, bits=bits))


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
    PROGRAMS: tl.constexpr,
    GATED: tl.constexpr,
    PDL: tl.constexpr,
    KIND: tl.constexpr,
    BYTES: tl.constexpr,
    GROUP: tl.constexpr,
    SCALE_ROWS: tl.constexpr,
    MOVE: tl.constexpr,
    HARDWARE: tl.constexpr,
) -> None:
    """Each program every ``PROGRAMS``-th block of rows; it requests the next before it computes one."""
    block = tl.program_id(0)
    trigger(PDL)
    weight = (words, scales, super_scales, moves, super_moves, bias)
    loaded = load_block(weight, block, N, UNITS, ROWS, TILE, GATED, KIND, GROUP, SCALE_ROWS, MOVE)
    g = load_planes(norm, UNITS, TILE, KIND)
    wait(PDL)
    xs = load_planes(x, UNITS, TILE, KIND)
    rs = load_planes(residual, UNITS, TILE, KIND)
    v, squares = add_stream(xs, rs, g, total, UNITS, TILE, KIND, block == 0)
    scale = 1.0
    if norm is not None:
        planes: tl.constexpr = 8 if KIND == "int4" else 4
        scale = tl.rsqrt(tl.sum(squares) / (UNITS * 4 * planes) + eps)
    row = (v, quantize(v, KIND, BYTES), scale)
    blocks: tl.constexpr = (N + ROWS - 1) // ROWS
    if blocks > PROGRAMS:
        for following in range(block + PROGRAMS, blocks, PROGRAMS):
            then = load_block(weight, following, N, UNITS, ROWS, TILE, GATED, KIND, GROUP, SCALE_ROWS, MOVE)
            _multiply(loaded, row, out, block, N, UNITS, ROWS, KIND, BYTES, GROUP, MOVE, HARDWARE)
            loaded = then
            block = following
    _multiply(loaded, row, out, block, N, UNITS, ROWS, KIND, BYTES, GROUP, MOVE, HARDWARE)


@triton.jit
def _multiply(
    halves: tl.tuple,
    row: tl.tuple,
    out: tl.tensor,
    block: tl.tensor,
    N: tl.constexpr,
    UNITS: tl.constexpr,
    ROWS: tl.constexpr,
    KIND: tl.constexpr,
    BYTES: tl.constexpr,
    GROUP: tl.constexpr,
    MOVE: tl.constexpr,
    HARDWARE: tl.constexpr,
) -> None:
    """A block of `load_block` times x, with the gate's SiLU if there are two halves, to ``out``."""
    v, xq, scale = row
    w, factors, bias = halves[0]
    y = dot(w, factors, v, xq, KIND, BYTES, GROUP, UNITS, MOVE, HARDWARE) * scale + bias
    if len(halves) > 1:
        w, factors, bias = halves[1]
        z = dot(w, factors, v, xq, KIND, BYTES, GROUP, UNITS, MOVE, HARDWARE) * scale + bias
        y = y * tl.sigmoid(y) * z
    rows = block * ROWS + tl.arange(0, ROWS)
    tl.store(out + rows, y.to(out.dtype.element_ty), mask=rows < N)
