"""LayerNorm and its sum against torch in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from octavo.kernels.triton.layer_norm import add_layer_norm

TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
SHAPES = [(1, 8), (5, 84), (3, 1000), pytest.param((700, 6144), marks=pytest.mark.gpu)]


def randn(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("first", [None, torch.float32, "own"])
@pytest.mark.parametrize("shape", SHAPES)
def test_against_torch(device, dtype, shape, first):
    x, weight, bias = randn(*shape, seed=1), randn(shape[1], seed=2), randn(shape[1], seed=3)
    x, weight, bias = (tensor.to(device, dtype) for tensor in (x + 3, weight, bias))  # a mean that is not 0
    residual = None if first is None else randn(*shape, seed=4).to(device, dtype if first == "own" else first)
    total = x.double() if residual is None else x.double() + residual.double()
    normed, stream = add_layer_norm(x, residual, weight, bias, 1e-5)
    expected = F.layer_norm(total, shape[1:], weight.double(), bias.double(), 1e-5)
    assert normed.dtype is dtype
    assert stream.dtype is (x.dtype if residual is None else torch.float32)
    torch.testing.assert_close(stream.double(), total, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(normed.double(), expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


def test_no_rows(device, dtype):
    x, weight = torch.empty(0, 8, dtype=dtype, device=device), torch.ones(8, dtype=dtype, device=device)
    assert add_layer_norm(x, None, weight, weight, 1e-5)[0].shape == (0, 8)
