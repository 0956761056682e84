"""Words to plain numbers: of one plane in registers, and of a whole matrix in memory.

A product of many rows has enough work for the matrix units that unpacking a weight once, to the dtype of x, and giving
both to cuBLAS costs little: bytes of the words and of the plain matrix, written once and read once. The matrix lives as
long as the product; the next one takes its memory again.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from octavo.kernels.triton.pdl import trigger, use_pdl, wait
from octavo.kernels.triton.quantized_words import WordWeight, form_of, load_scale, unpack_fp8

ROWS, WORDS = 2, 256
"""Of a program's tile. On an H100, GB/s of all bytes (28672 x 4096 to bfloat16): int4 2741, int8 2760, fp8 2758, Q4_K
2712; with 8 rows of 128 words 2395 to 2762.
"""


def expand(weight: WordWeight, dtype: torch.dtype) -> Tensor:
    """The matrix ``[N, K]``, computed in float32 and rounded to ``dtype``. With act-order, columns stay as they are."""
    (n, k), pdl = weight.shape, use_pdl(weight.words.device)
    out = torch.empty(n, k, dtype=dtype, device=weight.words.device)
    grid = (triton.cdiv(n, ROWS), triton.cdiv(k // weight.unit * 4, WORDS))
    tensors = (weight.words, weight.scales, weight.super_scales, weight.moves, weight.super_moves)
    sizes = {"N": n, "UNITS": k // weight.unit, "ROWS": ROWS, "WORDS": WORDS}
    _expand[grid](*tensors, out, **sizes, **form_of(weight), PDL=pdl, launch_pdl=pdl)
    return out


@triton.jit
def _expand(
    words: tl.tensor,
    scales: tl.tensor,
    super_scales: tl.tensor,
    moves: tl.tensor,
    super_moves: tl.tensor,
    out: tl.tensor,
    N: tl.constexpr,
    UNITS: tl.constexpr,
    ROWS: tl.constexpr,
    WORDS: tl.constexpr,
    KIND: tl.constexpr,
    GROUP: tl.constexpr,
    SCALE_ROWS: tl.constexpr,
    MOVE: tl.constexpr,
    HARDWARE: tl.constexpr,
    PDL: tl.constexpr,
) -> None:
    width: tl.constexpr = 32 if KIND == "int4" else 16
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]
    word = (tl.program_id(1) * WORDS + tl.arange(0, WORDS))[None, :]
    inside = (row < N) & (word < UNITS * 4)
    tile = tl.load(words + row * (UNITS * 4) + word, mask=inside, other=0)
    s, m = load_factors(
        scales, super_scales, moves, super_moves, row, word, inside, UNITS, KIND, GROUP, SCALE_ROWS, MOVE
    )
    wait(PDL)
    trigger(PDL)
    numbers = _columns(tile, s, m, out.dtype.element_ty, KIND, MOVE, HARDWARE)
    column = (tl.program_id(1) * (WORDS // 4 * width) + tl.arange(0, WORDS // 4 * width))[None, :]
    tl.store(out + row * (UNITS * width) + column, numbers, mask=(row < N) & (column < UNITS * width))


@triton.jit
def _columns(
    words: tl.tensor,
    s: tl.tensor,
    m: tl.tensor,
    dtype: tl.constexpr,
    KIND: tl.constexpr,
    MOVE: tl.constexpr,
    HARDWARE: tl.constexpr,
) -> tl.tensor:
    """The numbers of ``words [R, W]`` in the order of their columns. Those of a plane lie four by four: stored as they
    come, they fill a quarter of a sector of memory at a time, which took 2.4 to 4.5 times as long.
    """
    SHAPE: tl.constexpr = (words.shape[0], words.shape[1] // 4, 4)
    a = _pair(words, 0, s, m, dtype, KIND, MOVE, HARDWARE)
    b = _pair(words, 2, s, m, dtype, KIND, MOVE, HARDWARE)
    low = tl.join(a, b)  # [R, W, bit 0 of the plane, bit 1]
    if KIND == "int4":
        a = _pair(words, 4, s, m, dtype, KIND, MOVE, HARDWARE)
        b = _pair(words, 6, s, m, dtype, KIND, MOVE, HARDWARE)
        both = tl.join(low, tl.join(a, b)).reshape(SHAPE[0], SHAPE[1], 4, 2, 2, 2)
        ordered = both.permute(0, 1, 5, 4, 3, 2)
    else:
        ordered = low.reshape(SHAPE[0], SHAPE[1], 4, 2, 2).permute(0, 1, 4, 3, 2)
    return ordered.reshape(SHAPE[0], SHAPE[1] * (32 if KIND == "int4" else 16))


@triton.jit
def _pair(
    words: tl.tensor,
    i: tl.constexpr,
    s: tl.tensor,
    m: tl.tensor,
    dtype: tl.constexpr,
    KIND: tl.constexpr,
    MOVE: tl.constexpr,
    HARDWARE: tl.constexpr,
) -> tl.tensor:
    """Planes i and i + 1, side by side."""
    first = plane(words, i, s, m, KIND, MOVE, HARDWARE).to(dtype)
    return tl.join(first, plane(words, i + 1, s, m, KIND, MOVE, HARDWARE).to(dtype))


@triton.jit
def load_factors(
    scales: tl.tensor,
    super_scales: tl.tensor,
    moves: tl.tensor,
    super_moves: tl.tensor,
    row: tl.tensor,
    word: tl.tensor,
    inside: tl.tensor,
    UNITS: tl.constexpr,
    KIND: tl.constexpr,
    GROUP: tl.constexpr,
    SCALE_ROWS: tl.constexpr,
    MOVE: tl.constexpr,
) -> tl.tuple:
    """The scale of each word, and what moves it (or 0), float32 in the words' shape."""
    column = word // 4 * (32 if KIND == "int4" else 16)
    s = load_scale(scales, super_scales, row, column, inside, UNITS, KIND, GROUP, SCALE_ROWS)
    m = 0.0
    if MOVE != 0:
        m = load_scale(moves, super_moves, row, column, inside, UNITS, KIND, GROUP, SCALE_ROWS)
    return s, m


@triton.jit
def plane(
    words: tl.tensor,
    i: tl.constexpr,
    s: tl.tensor,
    m: tl.tensor,
    KIND: tl.constexpr,
    MOVE: tl.constexpr,
    HARDWARE: tl.constexpr,
) -> tl.tensor:
    """Number i of each word, in float32, as the canonical forms define it."""
    if KIND == "fp8":
        q = unpack_fp8(words, HARDWARE)[i]
    elif KIND == "int8":
        q = ((words << (24 - 8 * i)) >> 24).to(tl.float32)
    else:
        q = ((words >> (4 * i)) & 15).to(tl.float32)
    if MOVE == 1:
        q = (q - m) * s
    elif MOVE == 2:
        q = q * s + m
    elif KIND == "int4":
        q = (q - 8.0) * s
    else:
        q = q * s
    return q
