"""Products of a small batch of rows (5 to 16), with the gate behind them in the same kernel.

The floor is still the weights' bytes over the bandwidth, but there is too much arithmetic for `matvec`: matrix
instructions do it. The weights are the operand with many rows and the tokens the narrow one, padded to 16, so little
is computed in vain. A program takes some rows of the weight and runs over K with a deep pipeline of asynchronous
copies, which is what fills the memory's queues: 16 rows x 128 columns x 5 stages are 20 KB in flight.

The norm is a kernel of its own here: folded in, each program would read the float32 stream of all tokens, more than
its weights. Before ``pdl.wait`` a program asks for its first weights to be brought to the L2 cache; its copies then
find them there. It triggers after its sums: for more than one token, earlier triggers were slower on an H100.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from octavo.kernels.triton.matvec_settings import LOOP_ROWS
from octavo.kernels.triton.pdl import trigger, use_pdl, wait

MAX_TOKENS = 16
"""More rows of x are cuBLAS's."""
COLUMNS = 128
"""Of a step along K."""
PREFETCH_BYTES = 128 << 10
"""Weights that a program asks for before x is known, at most."""
LINE_BYTES = 128
"""Of the L2 cache."""


def fits(x: Tensor, weight: Tensor) -> bool:
    """Whether this kernel can compute ``x [T, K] @ weight [N, K].T``, and is meant to."""
    small = 0 < len(x) <= MAX_TOKENS and len(weight) < LOOP_ROWS
    dtypes = x.dtype == weight.dtype and x.dtype in (torch.bfloat16, torch.float16)
    return small and dtypes and x.shape[1] % 8 == 0 and x.is_contiguous() and weight.is_contiguous()


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x [T, K] @ weight [N, K].T + bias [N]``, T <= ``MAX_TOKENS``: ``[T, N]`` in x's dtype, 16 bits."""
    return _launch(x, weight, bias, len(weight), False)


def gate_up(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``silu(gate) * up`` of the product with ``weight [2N, K]``, whose first half is the gate: ``[T, N]``."""
    return _launch(x, weight, bias, len(weight) // 2, True)


def _launch(x: Tensor, weight: Tensor, bias: Tensor | None, n: int, gated: bool) -> Tensor:
    k, out, pdl = x.shape[1], x.new_empty(len(x), n), use_pdl(x.device)
    rows = block_rows(n, gated)
    prefetch = min(k, PREFETCH_BYTES // (rows * x.element_size() * (1 + gated)))
    _product[(-(-n // rows),)](
        x, weight, bias, out, len(x), N=n, K=k, GATED=gated, ROWS=rows, TOKENS=max(16, triton.next_power_of_2(len(x))),
        COLUMNS=COLUMNS, LINES=triton.next_power_of_2(-(-prefetch * x.element_size() // LINE_BYTES)),
        LINE=LINE_BYTES // x.element_size(), PDL=pdl, num_warps=4, num_stages=5, launch_pdl=pdl,
    )  # fmt: skip
    return out


def block_rows(n: int, gated: bool) -> int:
    """Rows of the weight for a program (of each half, if gated): 32 unless too few programs would be left."""
    return 16 if gated or n < 32 * 128 else 32


@triton.jit(do_not_specialize=["num_tokens"])
def _product(
    x: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    out: tl.tensor,
    num_tokens: int,
    N: tl.constexpr,
    K: tl.constexpr,
    GATED: tl.constexpr,
    ROWS: tl.constexpr,
    TOKENS: tl.constexpr,
    COLUMNS: tl.constexpr,
    LINES: tl.constexpr,
    LINE: tl.constexpr,
    PDL: tl.constexpr,
) -> None:
    first, row = tl.program_id(0) * ROWS, tl.arange(0, ROWS)
    # A last block in part computes the last row again.
    own = tl.minimum(first + row, N - 1).to(tl.int64) * K
    token = tl.arange(0, TOKENS)
    if PDL:
        _prefetch(weight, own, K, LINES, LINE)
        if GATED:
            _prefetch(weight + N * K, own, K, LINES, LINE)
    wait(PDL)
    y = tl.zeros([ROWS, TOKENS], tl.float32)
    z = y
    for start in tl.range(0, K, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        inside = column < K
        xs = tl.load(x + token[None, :] * K + column[:, None], (token < num_tokens)[None, :] & inside[:, None], 0.0)
        y = tl.dot(tl.load(weight + own[:, None] + column[None, :], inside[None, :], 0.0), xs, y)
        if GATED:
            z = tl.dot(tl.load(weight + N * K + own[:, None] + column[None, :], inside[None, :], 0.0), xs, z)
    trigger(PDL)
    if bias is not None:
        y += tl.load(bias + first + row, first + row < N, 0.0).to(tl.float32)[:, None]
        if GATED:
            z += tl.load(bias + N + first + row, first + row < N, 0.0).to(tl.float32)[:, None]
    if GATED:
        y = y * tl.sigmoid(y) * z
    mask = (token < num_tokens)[None, :] & (first + row < N)[:, None]
    tl.store(out + token[None, :] * N + (first + row)[:, None], y.to(out.dtype.element_ty), mask)


@triton.jit
def _prefetch(weight: tl.tensor, own: tl.tensor, K: tl.constexpr, LINES: tl.constexpr, LINE: tl.constexpr) -> None:
    """Ask for the first ``LINES`` lines of each row; the last ones again where a row is shorter."""
    column = tl.minimum(tl.arange(0, LINES) * LINE, K - 1)
    lines = (weight + own[:, None] + column[None, :]).to(tl.uint64, bitcast=True)
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.b32 $0, 0;", "=r,l", [lines], dtype=tl.int32, is_pure=False, pack=1
    )
