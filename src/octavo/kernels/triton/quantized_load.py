"""A block of rows of a weight in words, with its scales and biases: all of it requested at once."""

from __future__ import annotations

import triton
import triton.language as tl

from octavo.kernels.triton.quantized_words import load_scale, load_words


@triton.jit
def load_block(
    weight: tl.tuple,
    block: tl.tensor,
    N: tl.constexpr,
    UNITS: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
    GATED: tl.constexpr,
    KIND: tl.constexpr,
    GROUP: tl.constexpr,
    SCALE_ROWS: tl.constexpr,
    MOVE: tl.constexpr,
) -> tl.tuple:
    """Rows of the weight (if ``GATED`` of each half): for each half their words, their scales and biases.

    Args:
        weight: pointers to words, scales, super-scales, moves, super-moves (see ``WordWeight``) and to the bias.
    """
    words, bias = weight[0], weight[5]
    first = block * ROWS
    all_rows: tl.constexpr = 2 * N if GATED else N
    tiles, factors = _load_rows(
        words, weight, first, first, N, all_rows, UNITS, ROWS, TILE, KIND, GROUP, SCALE_ROWS, MOVE
    )
    halves = ((tiles, factors, _load_bias(bias, 0, first, N, ROWS)),)
    if GATED:
        tiles, factors = _load_rows(
            words + N * (UNITS * 4),
            weight,
            first,
            first + N,
            N,
            all_rows,
            UNITS,
            ROWS,
            TILE,
            KIND,
            GROUP,
            SCALE_ROWS,
            MOVE,
        )
        halves = halves + ((tiles, factors, _load_bias(bias, N, first, N, ROWS)),)  # type: ignore[assignment]  # noqa: RUF005
    return halves


@triton.jit
def _load_rows(
    words: tl.tensor,
    weight: tl.tuple,
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
    scales, super_scales, moves, super_moves = weight[1], weight[2], weight[3], weight[4]
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
def _load_bias(
    bias: tl.tensor, offset: tl.constexpr, first: tl.tensor, N: tl.constexpr, ROWS: tl.constexpr
) -> tl.tensor:
    rows = first + tl.arange(0, ROWS)
    return 0.0 if bias is None else tl.load(bias + offset + rows, mask=rows < N, other=0.0).to(tl.float32)
