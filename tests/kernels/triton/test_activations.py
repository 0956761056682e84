"""Gated activations against torch in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from octavo.kernels.triton.activations import gelu_mul, silu_mul

pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered in exp:RuntimeWarning")  # the interpreter's numpy
TOLERANCE = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
ACTIVATIONS = {
    "silu": (silu_mul, F.silu),
    "gelu": (lambda x: gelu_mul(x, approximate=False), F.gelu),
    "gelu_tanh": (lambda x: gelu_mul(x, approximate=True), lambda x: F.gelu(x, approximate="tanh")),
}
SHAPES = [(1, 8), (3, 100), (2, 1536), (1, 3072)]
LARGE = [(1000, 14336), (8192, 3072)]


@pytest.mark.parametrize("name", list(ACTIVATIONS))
@pytest.mark.parametrize("shape", SHAPES + [pytest.param(shape, marks=pytest.mark.gpu) for shape in LARGE])
def test_activation_times_up(device, dtype, name, shape):
    rows, size = shape
    fused, activation = ACTIVATIONS[name]
    gate_up = torch.randn(rows, 2 * size, generator=torch.Generator().manual_seed(size)).mul(4).to(device, dtype)
    gate, up = gate_up.double().chunk(2, dim=-1)
    found = fused(gate_up)
    assert (found.shape, found.dtype) == (shape, dtype)
    torch.testing.assert_close(found.double(), activation(gate) * up, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@pytest.mark.parametrize("name", list(ACTIVATIONS))
def test_large_gates(device, dtype, name):
    gates = torch.tensor([-6e4, -300.0, -90.0, 0.0, 90.0, 6e4])
    gate_up = torch.cat((gates, torch.ones(6)))[None].to(device, dtype)
    expected = torch.tensor([0, 0, 0, 0, 90, 6e4]).to(device, dtype)
    torch.testing.assert_close(ACTIVATIONS[name][0](gate_up)[0], expected)


def test_rows_with_gaps_between_them_and_no_rows(device, dtype):
    wide = torch.randn(4, 80).to(device, dtype)
    assert torch.equal(silu_mul(wide[:, :48]), silu_mul(wide[:, :48].contiguous()))
    assert torch.equal(silu_mul(wide[:, ::2]), silu_mul(wide[:, ::2].contiguous()))
    assert silu_mul(wide[:0]).shape == (0, 40)
