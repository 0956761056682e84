"""Products of a few rows with weights in words: numbers are unpacked where they are multiplied.

For up to ``MAX_TOKENS`` rows the weight's bytes are still the floor, so it is read once, and packed. A program takes
some rows of it and all of x's rows, padded to a tile of the matrix units; along K it takes whole units, unpacks plane
after plane (`quantized_words`) to x's dtype with scales applied, and multiplies with the columns of x that belong to
the plane. The numbers are those that `quantized_expand` makes, so that a few rows and many differ in the order of sums
only.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from octavo.kernels.triton.pdl import trigger, use_pdl, wait
from octavo.kernels.triton.quantized_expand import load_factors, plane
from octavo.kernels.triton.quantized_words import WordWeight, form_of, stages_that_fit

MAX_TOKENS = 64
"""Rows of x up to which these kernels are meant; beyond, a weight is expanded."""


class Tile(NamedTuple):
    """How a product is cut.

    Attributes:
        tokens, outputs: rows of x and of the weight that a program takes.
        units: units of K that it takes at once.
        num_warps: of a program.
        num_stages: steps along K that are under way at once.
    """

    tokens: int
    outputs: int
    units: int
    num_warps: int
    num_stages: int


def choose(tokens: int, n: int, itemsize: int = 2) -> Tile:
    """The tile for x of ``tokens`` rows and a weight of ``n``. Numbers of 4 bytes have no matrix units: a small one."""
    padded = 16 if itemsize == 4 else max(16, triton.next_power_of_2(min(tokens, MAX_TOKENS)))
    outputs = 32 if n <= 8192 else 64
    return Tile(padded, outputs, 8, 4, 4 if padded < 64 else 3)


def fits(x: Tensor, weight: WordWeight) -> bool:
    """Whether these kernels can, and should, compute ``x [T, K] @ weight [N, K].T``."""
    return 0 < len(x) <= MAX_TOKENS


def linear(x: Tensor, weight: WordWeight, bias: Tensor | None = None, tile: Tile | None = None) -> Tensor:
    """``x [T, K] @ weight [N, K].T + bias [N]``: ``[T, N]`` in x's dtype; any T."""
    x = x.contiguous() if weight.order is None else x.index_select(1, weight.order)
    n, units = weight.shape[0], x.shape[1] // weight.unit
    t, pdl, out = tile or choose(len(x), n, x.element_size()), use_pdl(x.device), x.new_empty(len(x), n)
    grid = (triton.cdiv(n, t.outputs), triton.cdiv(len(x), t.tokens))
    tensors = (weight.words, weight.scales, weight.super_scales, weight.moves, weight.super_moves)
    sizes = {"N": n, "UNITS": units, "TOKENS": t.tokens, "OUTPUTS": t.outputs, "STEP": t.units}
    stages = stages_that_fit(x.device, t.num_stages, _stage_bytes(t, x, weight))
    options = {"num_warps": t.num_warps, "num_stages": stages, "launch_pdl": pdl}
    _matmul[grid](x, *tensors, bias, out, len(x), **sizes, **form_of(weight), PDL=pdl, **options)
    return out


def _stage_bytes(tile: Tile, x: Tensor, weight: WordWeight) -> int:
    """Of x, and of words with as many factors of 4 bytes each."""
    factors = sum(t is not None for t in (weight.scales, weight.super_scales, weight.moves, weight.super_moves))
    of_words = tile.outputs * tile.units * 16 * (1 + factors)
    return tile.tokens * tile.units * weight.unit * x.element_size() + of_words


@triton.jit(do_not_specialize=["num_tokens"])
def _matmul(
    x: tl.tensor,
    words: tl.tensor,
    scales: tl.tensor,
    super_scales: tl.tensor,
    moves: tl.tensor,
    super_moves: tl.tensor,
    bias: tl.tensor,
    out: tl.tensor,
    num_tokens: int,
    N: tl.constexpr,
    UNITS: tl.constexpr,
    TOKENS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    STEP: tl.constexpr,
    KIND: tl.constexpr,
    GROUP: tl.constexpr,
    SCALE_ROWS: tl.constexpr,
    MOVE: tl.constexpr,
    HARDWARE: tl.constexpr,
    PDL: tl.constexpr,
) -> None:
    width: tl.constexpr = 32 if KIND == "int4" else 16
    output = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    row = tl.minimum(output, N - 1)[:, None]  # outputs beyond the last compute it again, and are not stored
    token = (tl.program_id(1) * TOKENS + tl.arange(0, TOKENS))[:, None]
    source = words + row.to(tl.int64) * (UNITS * 4)
    rows = x + token.to(tl.int64) * (UNITS * width)
    wait(PDL)
    trigger(PDL)
    acc = tl.zeros([TOKENS, OUTPUTS], tl.float32)
    for start in range(0, UNITS * 4, STEP * 4):
        word = (start + tl.arange(0, STEP * 4))[None, :]
        inside = (word < UNITS * 4) & (row >= 0) if UNITS % STEP != 0 else None
        tile = tl.load(source + word, mask=inside, other=0 if UNITS % STEP != 0 else None)
        s, m = load_factors(
            scales, super_scales, moves, super_moves, row, word, inside, UNITS, KIND, GROUP, SCALE_ROWS, MOVE
        )
        real = token < num_tokens
        if UNITS % STEP != 0:
            real = real & (word < UNITS * 4)
        for i in tl.static_range(width // 4):
            column = word // 4 * width + 4 * i + word % 4
            a = tl.load(rows + column, mask=real, other=0.0)
            b = plane(tile, i, s, m, KIND, MOVE, HARDWARE).to(a.dtype)
            acc = tl.dot(a, tl.trans(b), acc, input_precision="ieee")
    if bias is not None:
        acc += tl.load(bias + output, mask=output < N, other=0.0).to(tl.float32)[None, :]
    place = out + token.to(tl.int64) * N + output[None, :]
    tl.store(place, acc.to(out.dtype.element_ty), mask=(token < num_tokens) & (output < N)[None, :])
