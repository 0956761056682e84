"""Matrix products in which a row's result is the same, to the bit, whatever other rows are computed with it.

Libraries choose another kernel for another number of rows, and with it another order of the sum over K: other tiles,
K split over programs. Here the order is fixed. A program computes a tile of the result over the whole of K, from the
first column to the last, in steps of the matrix instruction's own depth and in float32; nothing is split. A row's place
in its tile changes neither the operands of its instructions nor their order, and rows beyond the last are zeros of
their own.

The tile is chosen by the weight's shape and dtype alone, never by the number of rows. Tiles of other sizes should give
the same bits, too, as long as they are computed with the same instruction: each result is then the same chain of sums
over 16 columns. But that is a property of the hardware that is nowhere promised, so it is not relied upon.

Floor: bytes of the weight for few rows, ``2 T N K`` operations over the tensor cores' rate for many. One tile for both
is a compromise: 128 tokens fill the tensor cores for a prompt, and for few tokens the rows beyond the last are not
loaded, so that what is left is to stream the weight. Tiles of neighbouring programs share rows of both operands, which
the second-level cache then holds.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from octavo.kernels.triton.pdl import trigger, use_pdl, wait

GROUP = 8
"""Tiles of tokens that are computed side by side with the same tile of the weight."""
WIDE = 16384
"""Rows of a weight from which on wide tiles still give every multiprocessor of a large GPU work for few tokens."""


class Tile(NamedTuple):
    """How a product is cut.

    Attributes:
        tokens: rows of x that a program takes.
        outputs: rows of the weight that it takes.
        depth: columns that it takes at once.
        num_warps: of a program.
        num_stages: steps along K that are under way at once.
    """

    tokens: int
    outputs: int
    depth: int
    num_warps: int
    num_stages: int


def choose(n: int, dtype: torch.dtype) -> Tile:
    """The tile for a weight ``[n, K]``. All fit into the 99 KB of shared memory that the smallest GPUs have."""
    if dtype == torch.float32:
        return Tile(64, 64, 32, 8, 3)
    return Tile(128, 128, 64, 8, 3) if n >= WIDE else Tile(128, 64, 64, 8, 4)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, tile: Tile | None = None) -> Tensor:
    """``x [T, K] @ weight [N, K].T + bias [N]``: ``[T, N]`` in x's dtype, rounded once from float32.

    Args:
        x: in the weight's dtype.
        weight: contiguous.
        bias: added before rounding.
        tile: another one than ``choose``'s, to measure it. Bits are the same for the same tile only.
    """
    rows, (n, k) = len(x), weight.shape
    x = _aligned(x)
    out = x.new_empty(rows, n)
    if rows:
        t, pdl = tile or choose(n, x.dtype), use_pdl(x.device)
        sizes = {"N": n, "K": k, "TOKENS": t.tokens, "OUTPUTS": t.outputs, "DEPTH": t.depth, "GROUP": GROUP}
        options = {"num_warps": t.num_warps, "num_stages": t.num_stages, "launch_pdl": pdl}
        grid = (triton.cdiv(rows, t.tokens) * triton.cdiv(n, t.outputs),)
        _matmul[grid](x, weight, bias, out, rows, **sizes, PDL=pdl, **options)
    return out


def _aligned(x: Tensor) -> Tensor:
    """``x`` contiguous and at a multiple of 16 bytes: another alignment would mean another kernel."""
    x = x.contiguous()
    return x if x.data_ptr() % 16 == 0 else x.clone()


@triton.jit(do_not_specialize=["num_rows"])
def _matmul(
    x: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    out: tl.tensor,
    num_rows: int,
    N: tl.constexpr,
    K: tl.constexpr,
    TOKENS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    DEPTH: tl.constexpr,
    GROUP: tl.constexpr,
    PDL: tl.constexpr,
) -> None:
    token_tile, output_tile = _place(tl.program_id(0), num_rows, N, TOKENS, OUTPUTS, GROUP)
    token = token_tile * TOKENS + tl.arange(0, TOKENS)
    output = output_tile * OUTPUTS + tl.arange(0, OUTPUTS)
    column = tl.arange(0, DEPTH)
    real = (token < num_rows)[:, None]
    # Outputs beyond the last compute the last one again, and are not stored.
    source = weight + tl.minimum(output, N - 1).to(tl.int64)[:, None] * K + column[None, :]
    rows = x + token.to(tl.int64)[:, None] * K + column[None, :]
    wait(PDL)
    trigger(PDL)
    acc = tl.zeros([TOKENS, OUTPUTS], tl.float32)
    for start in range(0, K, DEPTH):
        if K % DEPTH == 0:
            a = tl.load(rows + start, mask=real, other=0.0)
            b = tl.load(source + start)
        else:
            here = (column < K - start)[None, :]
            a = tl.load(rows + start, mask=real & here, other=0.0)
            b = tl.load(source + start, mask=here, other=0.0)
        acc = tl.dot(a, tl.trans(b), acc, input_precision="ieee")
    inside = (output < N)[None, :]
    if bias is not None:
        acc += tl.load(bias + output, mask=output < N, other=0.0).to(tl.float32)[None, :]
    place = out + token.to(tl.int64)[:, None] * N + output[None, :]
    tl.store(place, acc.to(out.dtype.element_ty), mask=real & inside)


@triton.jit
def _place(
    program: tl.tensor,
    num_rows: tl.tensor,
    N: tl.constexpr,
    TOKENS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    GROUP: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """A program's tile of tokens and of outputs: down a group of token tiles first, then to the next outputs."""
    output_tiles = tl.cdiv(N, OUTPUTS)
    first = program // (GROUP * output_tiles) * GROUP
    size = tl.minimum(tl.cdiv(num_rows, TOKENS) - first, GROUP)
    inside = program % (GROUP * output_tiles)
    return first + inside % size, inside // size
