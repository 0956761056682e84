"""Products of one row (or very few), with the norm before them and the gate behind them in the same kernel.

One row leaves nothing to reuse: each weight is read once and multiplied once, so the floor is the weights' bytes
over the memory's bandwidth (4 MB: 1.4 us on an H100), and the time above it is latency: until the first weights
arrive, until x is known, until the sums are ready. Hence:

- A program takes a few whole rows of the weight and holds them in registers. All 16-byte loads are issued at once,
  *before* ``pdl.wait``: the weights travel while the kernel before is still busy with x.
- After the wait x is read once. The RMS norm needs no pass of its own: as ``W (s g v) = s (W (g v))`` with
  ``v = x + residual``, norm weight g and ``s = 1 / sqrt(mean(v²) + eps)``, the squares are summed beside the product
  and s scales its result. So the normalised row is not rounded to 16 bits here.
- The new residual stream goes to a buffer of its own, written by one program: the others still read the old one.
- With a gate, a program takes the same rows of both halves and writes ``silu(gate) * up``.

A block of the weight is held as tiles ``[rows, pieces, width]``: the warps share out ``width`` consecutive columns
first, then rows; the pieces of a row stay within a thread. So the sum over pieces is free, and x, loaded
``[pieces, width]``, changes its layout at most once.

A vocabulary is done the same way: that each of many programs reads x again, from the cache, costs less than a loop's
start and end (on an H100 98 to 103% of the bandwidth, against 84 to 98% of few programs with a pipeline).

Sums are float32 of float32 products for all dtypes. Order: see `pdl` for why the chain of kernels is safe.
"""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from octavo.kernels.triton.matvec_settings import Settings, choose
from octavo.kernels.triton.pdl import AFTER_SUMS, AFTER_WAIT, FIRST, trigger, use_pdl, wait

MAX_TOKENS = 4
"""Rows of x that these kernels can take: each costs another pass over the weights in registers."""
LONG_ROW = 4096
"""Columns from which on two rows of x and their streams are too much for each program to read."""
FEW_WEIGHTS = 1 << 22
"""A matrix of at most so many numbers."""


def fits(x: Tensor, weight: Tensor, *, norm: bool = False) -> bool:
    """Whether these kernels can, and should, compute ``x [T, K] @ weight [N, K].T``, after a ``norm`` or without."""
    few = 0 < len(x) <= most_tokens(weight.numel(), x.shape[1], norm)
    return few and x.shape[1] % 8 == 0 and x.is_contiguous() and weight.is_contiguous() and x.dtype == weight.dtype


def most_tokens(weights: int, k: int, norm: bool) -> int:
    """For how many tokens these kernels beat cuBLAS, as measured on an H100: with a norm, two unless their streams are
    long; without, as many as can be computed while so many weights arrive.
    """
    if norm:
        return 2 if k < LONG_ROW else 1
    return MAX_TOKENS if weights <= FEW_WEIGHTS else 2


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, settings: Settings | None = None) -> Tensor:
    """``x [T, K] @ weight [N, K].T + bias [N]``, T <= ``MAX_TOKENS``: ``[T, N]`` in x's dtype."""
    out = x.new_empty(len(x), len(weight))
    _launch(x, None, None, 0.0, weight, bias, out, None, False, settings)
    return out


def add_norm_linear(
    x: Tensor,
    residual: Tensor | None,
    norm_weight: Tensor,
    eps: float,
    weight: Tensor,
    bias: Tensor | None = None,
    settings: Settings | None = None,
) -> tuple[Tensor, Tensor]:
    """``(linear(rms_norm(x + residual)), x + residual)`` as ``Ops.add_norm_linear``, T <= ``MAX_TOKENS``. Overwrites
    nothing.
    """
    out, total = x.new_empty(len(x), len(weight)), new_stream(x, residual)
    _launch(x, residual, norm_weight, eps, weight, bias, out, total, False, settings)
    return out, x if total is None else total


def add_norm_gate_up(
    x: Tensor,
    residual: Tensor | None,
    norm_weight: Tensor,
    eps: float,
    weight: Tensor,
    bias: Tensor | None = None,
    settings: Settings | None = None,
) -> tuple[Tensor, Tensor]:
    """``(silu(gate) * up, x + residual)`` of weight ``[2N, K]``, as ``Ops.add_norm_gate_up``: ``[T, N]``."""
    out, total = x.new_empty(len(x), len(weight) // 2), new_stream(x, residual)
    _launch(x, residual, norm_weight, eps, weight, bias, out, total, True, settings)
    return out, x if total is None else total


def new_stream(x: Tensor, residual: Tensor | None) -> Tensor | None:
    """Memory for ``x + residual`` in float32; None if there is no residual, as x is the sum then."""
    return None if residual is None else torch.empty_like(x, dtype=torch.float32)


def _launch(
    x: Tensor,
    residual: Tensor | None,
    norm: Tensor | None,
    eps: float,
    weight: Tensor,
    bias: Tensor | None,
    out: Tensor,
    total: Tensor | None,
    gated: bool,
    settings: Settings | None,
) -> None:
    n, k = out.shape[1], x.shape[1]
    s = settings or _choose(n, k, x.element_size(), gated, len(x))
    pdl = use_pdl(x.device)
    sizes = {"N": n, "K": k, "TOKENS": len(x), "ROWS": s.rows, "WIDTH": s.width, "PIECES": _pieces(k, s.width)}
    options = {"TRIGGER": s.trigger, "PDL": pdl, "num_warps": s.warps, "launch_pdl": pdl}
    grid = (-(-n // s.rows),)
    _matvec[grid](x, residual, norm, weight, bias, out, total, eps, GATED=gated, **sizes, **options)


@functools.cache
def _choose(n: int, k: int, itemsize: int, gated: bool, tokens: int) -> Settings:
    return choose(n, k, itemsize, gated=gated, tokens=tokens)


def _pieces(k: int, width: int) -> int:
    """How many pieces of a row a tile has: a power of two of which the row is made without waste."""
    pieces = -(-k // width)
    return pieces & -pieces


_FIRST, _AFTER_WAIT, _AFTER_SUMS = tl.constexpr(FIRST), tl.constexpr(AFTER_WAIT), tl.constexpr(AFTER_SUMS)


@triton.jit
def _matvec(
    x: tl.tensor,
    residual: tl.tensor,
    norm: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    out: tl.tensor,
    total: tl.tensor,
    eps: float,
    N: tl.constexpr,
    K: tl.constexpr,
    TOKENS: tl.constexpr,
    GATED: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    PIECES: tl.constexpr,
    TRIGGER: tl.constexpr,
    PDL: tl.constexpr,
) -> None:
    """Each program one block of rows, for all tokens."""
    program = tl.program_id(0)
    trigger(PDL and TRIGGER == _FIRST)
    g = _load_row(norm, K, WIDTH, PIECES)
    w, u, b, c = _load_block(weight, bias, program, N, K, GATED, ROWS, WIDTH, PIECES)
    wait(PDL)
    trigger(PDL and TRIGGER == _AFTER_WAIT)
    nxt = _load_x(x, residual, 0, K, WIDTH, PIECES)
    for t in tl.static_range(TOKENS):
        xs, rs = nxt
        nxt = _load_x(x, residual, (t + 1) % TOKENS, K, WIDTH, PIECES)  # while this token is computed
        v, squares = _add(xs, rs, g, total + t * K if total is not None else None, K, WIDTH, PIECES, program == 0)
        y, z = _dot(w, v), _dot(u, v)
        y = _finish(y, z, _scale(squares, g, eps, K), b, c, GATED)
        trigger(PDL and TRIGGER == _AFTER_SUMS and t == TOKENS - 1)
        _store(out, y, t, program, N, ROWS)


@triton.jit
def _load_block(
    weight: tl.tensor,
    bias: tl.tensor,
    block: tl.tensor,
    N: tl.constexpr,
    K: tl.constexpr,
    GATED: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    PIECES: tl.constexpr,
) -> tl.tuple:
    """The tiles of a block of rows, those of the same rows of the other half (or none), and both biases."""
    w, u = _load_tiles(weight, block, N, K, ROWS, WIDTH, PIECES), ()
    rows = block * ROWS + tl.arange(0, ROWS)
    b = _load_bias(bias, rows, N)
    c = b
    if GATED:
        u = _load_tiles(weight + N * K, block, N, K, ROWS, WIDTH, PIECES)
        if bias is not None:
            c = _load_bias(bias + N, rows, N)
    return w, u, b, c


@triton.jit
def _load_tiles(
    weight: tl.tensor,
    block: tl.tensor,
    N: tl.constexpr,
    K: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    PIECES: tl.constexpr,
) -> tl.tuple:
    """A block of rows as tiles ``[ROWS, PIECES, WIDTH]``. Masked only where a shape does not divide."""
    first = weight + block.to(tl.int64) * (ROWS * K)
    row = tl.arange(0, ROWS)[:, None, None]
    piece = (tl.arange(0, PIECES) * WIDTH)[None, :, None] + tl.arange(0, WIDTH)[None, None, :]
    tiles = ()
    for start in tl.static_range(0, K, PIECES * WIDTH):
        column = start + piece
        if N % ROWS != 0:
            tile = tl.load(first + (row * K + column), mask=(row < N - block * ROWS) & (column < K), other=0.0)
        elif start + PIECES * WIDTH > K:
            tile = tl.load(first + (row * K + column), mask=column < K, other=0.0)
        else:
            tile = tl.load(first + (row * K + column))
        tiles = tiles + (tile,)  # type: ignore[assignment]  # noqa: RUF005
    return tiles


@triton.jit
def _load_bias(bias: tl.tensor, rows: tl.tensor, N: tl.constexpr) -> tl.tensor:
    return 0.0 if bias is None else tl.load(bias + rows, mask=rows < N, other=0.0).to(tl.float32)


@triton.jit
def _columns(start: tl.constexpr, WIDTH: tl.constexpr, PIECES: tl.constexpr) -> tl.tensor:
    """The columns of the tile that begins at ``start``, ``[PIECES, WIDTH]``."""
    return start + (tl.arange(0, PIECES) * WIDTH)[:, None] + tl.arange(0, WIDTH)[None, :]


@triton.jit
def _load_row(row: tl.tensor, K: tl.constexpr, WIDTH: tl.constexpr, PIECES: tl.constexpr) -> tl.tuple:
    """A vector [K] as tiles ``[PIECES, WIDTH]``; none of None."""
    tiles = ()
    if row is not None:
        for start in tl.static_range(0, K, PIECES * WIDTH):
            column = _columns(start, WIDTH, PIECES)
            if start + PIECES * WIDTH > K:
                tile = tl.load(row + column, mask=column < K, other=0.0)
            else:
                tile = tl.load(row + column)
            tiles = tiles + (tile,)  # type: ignore[assignment]  # noqa: RUF005
    return tiles


@triton.jit
def _load_x(
    x: tl.tensor, residual: tl.tensor, t: tl.constexpr, K: tl.constexpr, WIDTH: tl.constexpr, PIECES: tl.constexpr
) -> tl.tuple:
    """Token t of x and, if there is one, of the residual."""
    xs, rs = _load_row(x + t * K, K, WIDTH, PIECES), ()
    if residual is not None:
        rs = _load_row(residual + t * K, K, WIDTH, PIECES)
    return xs, rs


@triton.jit
def _add(
    xs: tl.tuple,
    rs: tl.tuple,
    g: tl.tuple,
    total: tl.tensor,
    K: tl.constexpr,
    WIDTH: tl.constexpr,
    PIECES: tl.constexpr,
    writes: tl.tensor,
) -> tl.tuple:
    """A token's ``g * (x + residual)`` as float32 tiles, and the squares of the sum, which one program writes."""
    squares = tl.zeros([PIECES, WIDTH], tl.float32)
    vs = ()
    for i in tl.static_range(len(xs)):
        v = xs[i].to(tl.float32)
        if len(rs) > 0:
            v += rs[i].to(tl.float32)
            if writes:
                column = _columns(i * PIECES * WIDTH, WIDTH, PIECES)
                tl.store(total + column, v, mask=column < K)
        if len(g) > 0:
            squares += v * v
            v *= g[i].to(tl.float32)
        vs = vs + (v,)  # type: ignore[assignment]  # noqa: RUF005
    return vs, squares


@triton.jit
def _scale(squares: tl.tensor, g: tl.tuple, eps: float, K: tl.constexpr) -> tl.tensor:
    """What a norm multiplies its row with; 1 without a norm."""
    scale = 1.0
    if len(g) > 0:
        scale = tl.rsqrt(tl.sum(squares) / K + eps)
    return scale


@triton.jit
def _dot(tiles: tl.tuple, vs: tl.tuple) -> tl.tensor:
    """Each row of the tiles times the vector, ``[ROWS]`` float32; 0 without tiles."""
    y = 0.0
    if len(tiles) > 0:
        sums = tl.sum(tiles[0].to(tl.float32) * vs[0][None, :, :], axis=1)
        for i in tl.static_range(1, len(tiles)):
            sums += tl.sum(tiles[i].to(tl.float32) * vs[i][None, :, :], axis=1)
        y = tl.sum(sums, axis=1)
    return y


@triton.jit
def _finish(y: tl.tensor, z: tl.tensor, scale: tl.tensor, b: tl.tensor, c: tl.tensor, GATED: tl.constexpr) -> tl.tensor:
    """The block's outputs of the products y, and z where y is a gate: ``[ROWS]`` float32."""
    y = y * scale + b
    if GATED:
        y = y * tl.sigmoid(y) * (z * scale + c)
    return y


@triton.jit
def _store(
    out: tl.tensor, y: tl.tensor, t: tl.constexpr, block: tl.tensor, N: tl.constexpr, ROWS: tl.constexpr
) -> None:
    rows = block * ROWS + tl.arange(0, ROWS)
    tl.store(out + t * N + rows, y.to(out.dtype.element_ty), mask=rows < N)
