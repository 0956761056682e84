"""Products of 8-bit rows with 8-bit weights on the matrix units: int8 with exact sums, or e4m3.

Beside half of the weight's bytes, what 8 bits give is twice the matrix units' rate and half of the traffic between the
caches: a tile of the result reads its rows of x and of the weight through all of K, and for 256 rows this is several
times the weight. So a program takes as large a tile as its accumulators' registers allow. Scales are applied to sums in
the epilogue; where they belong to blocks of 128 columns, after each block. Sums of e4m3 are carried in float32 after
each step along K, because the units themselves keep only 14 bits (arXiv:2412.19437, section 3.3.2).

For batches of e4m3 rows the library (CUTLASS through torch) has a pipeline that Triton's lacks, and carries sums, too.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from octavo.kernels.packed import Fp8Weight, Int8Weight
from octavo.kernels.triton.matmul import _place as place_of
from octavo.kernels.triton.pdl import trigger, use_pdl, wait
from octavo.kernels.triton.quantized_rows import GROUP, quantize_rows
from octavo.kernels.triton.quantized_words import converts_fp8, stages_that_fit

PLACES = 8
"""Tiles of tokens that are computed side by side with the same rows of the weight."""
LIBRARY_ROWS = 65
"""From so many rows of e4m3 on the library wins (H100, the 8B shape's four products, 256 rows: 131 us against 204)."""


class Tile(NamedTuple):
    """How a product is cut: rows of x and of the weight, columns at once, warps, steps along K under way at once."""

    tokens: int
    outputs: int
    depth: int
    num_warps: int
    num_stages: int


def choose(tokens: int, weight: Int8Weight | Fp8Weight) -> Tile:
    """The tile for x of ``tokens`` rows. Sums that are carried take as many registers as the result."""
    n, blocks = weight.shape[0], _has_blocks(weight)
    wide = n > 8192
    if tokens <= 16:
        return Tile(16, 64 if wide else 32, 128 if blocks else 256, 4, 4)
    if tokens <= 64:
        return Tile(32 if tokens <= 32 else 64, 64 if wide else 32, 128, 4, 5)
    if tokens <= 512 and not wide:
        return Tile(128, 64, 128, 4, 5)
    wider = isinstance(weight, Int8Weight) and tokens > 128
    return Tile(128, 256, 128, 8, 4) if wider else Tile(128, 128, 128, 8, 4)


def fits(weight: Int8Weight | Fp8Weight) -> bool:
    """Whether these kernels can multiply with a weight that rounds its input."""
    if not weight.quantizes_input or weight.shape[1] % 16:
        return False
    if isinstance(weight, Int8Weight):
        return weight.scales.shape[1] == 1
    device = weight.values.device
    shaped = weight.block == (GROUP, GROUP) or weight.block[1] >= weight.shape[1]
    return shaped and (device.type != "cuda" or converts_fp8(device))


def linear(x: Tensor, weight: Int8Weight | Fp8Weight, bias: Tensor | None = None, tile: Tile | None = None) -> Tensor:
    """``x [T, K]``, rounded as the weight says, ``@ weight [N, K].T + bias [N]``: ``[T, N]`` in x's dtype."""
    q, scales, _ = quantize_rows(x, weight.values.dtype, grouped=_has_blocks(weight), scale=_given(weight))
    return multiply(q, scales, weight, x.dtype, bias, tile)


def add_norm_linear(
    x: Tensor,
    residual: Tensor | None,
    norm_weight: Tensor,
    eps: float,
    weight: Int8Weight | Fp8Weight,
    bias: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """``(linear(rms_norm(x + residual)), x + residual)``, as ``Ops.add_norm_linear``. Overwrites a float32 residual."""
    q, scales, total = quantize_rows(
        x,
        weight.values.dtype,
        grouped=_has_blocks(weight),
        scale=_given(weight),
        norm_weight=norm_weight,
        residual=residual,
        eps=eps,
    )
    return multiply(q, scales, weight, x.dtype, bias), x if total is None else total


def multiply(
    q: Tensor,
    scales: Tensor,
    weight: Int8Weight | Fp8Weight,
    dtype: torch.dtype,
    bias: Tensor | None = None,
    tile: Tile | None = None,
) -> Tensor:
    """``(q * scales) [T, K] @ weight [N, K].T + bias [N]`` of `quantize_rows`'s result: ``[T, N]`` of ``dtype``."""
    if tile is None and _is_the_librarys(q, weight, dtype):
        out = torch._scaled_mm(q, weight.values.t(), scales, weight.scales.t(), out_dtype=dtype)
        return out if bias is None else out.add_(bias)
    (rows, k), n, blocks = q.shape, weight.shape[0], _has_blocks(weight)
    out = torch.empty(rows, n, dtype=dtype, device=q.device)
    if rows:
        t, pdl = tile or choose(rows, weight), use_pdl(q.device)
        grid = (triton.cdiv(rows, t.tokens) * triton.cdiv(n, t.outputs),)
        sizes = {"N": n, "K": k, "TOKENS": t.tokens, "OUTPUTS": t.outputs, "DEPTH": t.depth, "BLOCKS": blocks}
        sizes |= {"SCALE_ROWS": weight.block[0] if isinstance(weight, Fp8Weight) else 1, "PLACES": PLACES}
        stages = stages_that_fit(q.device, t.num_stages, (t.tokens + t.outputs) * t.depth)
        options = {"num_warps": t.num_warps, "num_stages": stages, "launch_pdl": pdl}
        _matmul[grid](q, scales, weight.values, weight.scales, bias, out, rows, **sizes, PDL=pdl, **options)
    return out


def _is_the_librarys(q: Tensor, weight: Int8Weight | Fp8Weight, dtype: torch.dtype) -> bool:
    """Whether torch's product with a scale for each row and each channel computes this, and sooner: bfloat16 only."""
    if not isinstance(weight, Fp8Weight) or len(q) < LIBRARY_ROWS or dtype != torch.bfloat16:
        return False
    n, k = weight.shape
    return q.is_cuda and weight.block[0] == 1 and weight.block[1] >= k and n % 16 == 0 and k % 16 == 0


def _has_blocks(weight: Int8Weight | Fp8Weight) -> bool:
    return isinstance(weight, Fp8Weight) and weight.block == (GROUP, GROUP)


def _given(weight: Int8Weight | Fp8Weight) -> Tensor | None:
    return weight.input_scale if isinstance(weight, Fp8Weight) else None


@triton.jit(do_not_specialize=["num_rows"])
def _matmul(
    x: tl.tensor,
    x_scales: tl.tensor,
    weight: tl.tensor,
    scales: tl.tensor,
    bias: tl.tensor,
    out: tl.tensor,
    num_rows: int,
    N: tl.constexpr,
    K: tl.constexpr,
    TOKENS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    DEPTH: tl.constexpr,
    BLOCKS: tl.constexpr,
    SCALE_ROWS: tl.constexpr,
    PLACES: tl.constexpr,
    PDL: tl.constexpr,
) -> None:
    token_tile, output_tile = place_of(tl.program_id(0), num_rows, N, TOKENS, OUTPUTS, PLACES)
    token = token_tile * TOKENS + tl.arange(0, TOKENS)
    output = output_tile * OUTPUTS + tl.arange(0, OUTPUTS)
    column = tl.arange(0, DEPTH)
    real = (token < num_rows)[:, None]
    chosen = tl.minimum(output, N - 1)  # outputs beyond the last compute it again, and are not stored
    source = weight + chosen.to(tl.int64)[:, None] * K + column[None, :]
    rows = x + token.to(tl.int64)[:, None] * K + column[None, :]
    integers: tl.constexpr = weight.dtype.element_ty == tl.int8
    sums: tl.constexpr = tl.int32 if integers else tl.float32
    used: tl.constexpr = (K + DEPTH - 1) // DEPTH if BLOCKS else 1
    wait(PDL)
    trigger(PDL)
    acc = tl.zeros([TOKENS, OUTPUTS], sums)
    for start in range(0, K, DEPTH):
        if K % DEPTH == 0:
            a = tl.load(rows + start, mask=real, other=0.0)
            b = tl.load(source + start)
        else:
            here = (column < K - start)[None, :]
            a = tl.load(rows + start, mask=real & here, other=0.0)
            b = tl.load(source + start, mask=here, other=0.0)
        if BLOCKS:
            s = tl.load(x_scales + token * used + start // DEPTH, mask=token < num_rows, other=0.0)
            w = tl.load(scales + chosen // SCALE_ROWS * used + start // DEPTH)
            acc += tl.dot(a, tl.trans(b), out_dtype=tl.float32) * s[:, None] * w[None, :]
        elif integers:
            acc = tl.dot(a, tl.trans(b), acc, out_dtype=tl.int32)
        else:
            acc = tl.dot(a, tl.trans(b), acc, max_num_imprecise_acc=DEPTH)
    y = acc.to(tl.float32)
    if not BLOCKS:
        y *= tl.load(x_scales + token, mask=token < num_rows, other=0.0)[:, None]
        y *= tl.load(scales + chosen // SCALE_ROWS)[None, :]
    if bias is not None:
        y += tl.load(bias + output, mask=output < N, other=0.0).to(tl.float32)[None, :]
    place = out + token.to(tl.int64)[:, None] * N + output[None, :]
    tl.store(place, y.to(out.dtype.element_ty), mask=real & (output < N)[None, :])
