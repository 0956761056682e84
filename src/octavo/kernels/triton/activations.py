"""Gated activations: ``activation(gate) * up`` of a product whose first half is the gate (arXiv:2002.05202).

Floor: ``gate_up [T, 2I]`` read once, ``[T, I]`` written once, 6 bytes a result in 16 bits. A program takes 1024
results of one row: with 128 threads two 16-byte loads a thread, both issued before the first use. Everything is
computed in float32 and rounded once.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from octavo.kernels.triton.pdl import trigger, wait

BLOCK = 1024


@triton.jit
def _silu(x: tl.tensor) -> tl.tensor:
    return x / (1.0 + tl.exp(-x))


@triton.jit
def _gelu_tanh(x: tl.tensor) -> tl.tensor:
    """``x / 2 * (1 + tanh(u))``, where ``(1 + tanh(u)) / 2`` is ``sigmoid(2u)`` (arXiv:1606.08415)."""
    u = 0.7978845608028654 * (x + 0.044715 * x * x * x)
    return x / (1.0 + tl.exp(-2.0 * u))


@triton.jit
def _gelu(x: tl.tensor) -> tl.tensor:
    return 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))


@triton.jit
def _gated(
    gate_up: tl.tensor,
    out: tl.tensor,
    stride: int,
    I: tl.constexpr,  # noqa: E741
    BLOCK: tl.constexpr,
    ACTIVATION: tl.constexpr,
    PDL: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = column < I
    wait(PDL)
    trigger(PDL)
    source = gate_up + row * stride + column
    gate = tl.load(source, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(source + I, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + row * I + column, ACTIVATION(gate) * up, mask=mask)


def silu_mul(gate_up: Tensor, *, pdl: bool = False) -> Tensor:
    """``silu(gate) * up`` of ``gate_up [T, 2I]``: ``[T, I]``, in the same dtype. ``pdl``: see `pdl`."""
    return _launch(gate_up, _silu, pdl)


def gelu_mul(gate_up: Tensor, *, approximate: bool, pdl: bool = False) -> Tensor:
    """``gelu(gate) * up`` of ``gate_up [T, 2I]``: ``[T, I]``; ``approximate``: GELU by tanh instead of erf."""
    return _launch(gate_up, _gelu_tanh if approximate else _gelu, pdl)


def _launch(gate_up: Tensor, activation: triton.JITFunction, pdl: bool) -> Tensor:
    gate_up = gate_up if gate_up.stride(1) == 1 else gate_up.contiguous()
    rows, size = len(gate_up), gate_up.shape[1] // 2
    out = torch.empty(rows, size, dtype=gate_up.dtype, device=gate_up.device)
    if rows:
        grid = (rows, triton.cdiv(size, BLOCK))
        constants = {"I": size, "BLOCK": BLOCK, "ACTIVATION": activation, "PDL": pdl}
        _gated[grid](gate_up, out, gate_up.stride(0), launch_pdl=pdl, **constants)
    return out
