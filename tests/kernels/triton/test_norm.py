"""Normalisation against the formula in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from octavo.kernels.triton.norm import add_rms_norm, rms_norm

TOLERANCE = {torch.float32: 3e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
SHAPES = [(1, 8), (5, 64), (9, 100), (3, 576), (2, 1024), (2, 1536)]
LARGE = [(1, 4096), (3, 16384), (1000, 5120), (257, 128), (8192, 1024)]


def randn(*shape: int, seed: int, device: str, dtype: torch.dtype) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(device, dtype)


def norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    x = x.double()
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + eps) * weight.double()


def close(actual: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    assert actual.dtype is dtype
    torch.testing.assert_close(actual.double(), expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@pytest.mark.parametrize("shape", SHAPES + [pytest.param(shape, marks=pytest.mark.gpu) for shape in LARGE])
def test_rms_norm(device, dtype, shape):
    x, weight = (randn(*s, seed=i, device=device, dtype=dtype) for i, s in enumerate([shape, shape[1:]]))
    before = x.clone()
    close(rms_norm(x, weight, 1e-5), norm(x, weight, 1e-5), dtype)
    assert torch.equal(x, before)


def test_rms_norm_of_any_view(device, dtype):
    x, weight = (randn(*s, seed=i, device=device, dtype=dtype) for i, s in enumerate([(4, 6, 40), (20,)]))
    for view in (x[..., 20:], x[:, 1, :20], x.transpose(0, 1)[..., :20], x[:2].unflatten(-1, (20, 2))[..., 1]):
        close(rms_norm(view, weight, 1e-6), norm(view, weight, 1e-6), dtype)
    assert rms_norm(x[:0, 0, :20], weight, 1e-6).shape == (0, 20)


def test_large_numbers_do_not_overflow_and_zeros_stay(device, dtype):
    weight = torch.ones(64, device=device, dtype=dtype)
    x = torch.full((2, 64), 3e4, device=device, dtype=dtype)
    x[1] = 0
    close(rms_norm(x, weight, 1e-6), torch.tensor([[1.0], [0.0]], device=device).double().expand(2, 64), dtype)


@pytest.mark.parametrize("stream", ["model's dtype", "float32"])
@pytest.mark.parametrize("shape", SHAPES + [pytest.param(shape, marks=pytest.mark.gpu) for shape in LARGE])
def test_add_rms_norm(device, dtype, shape, stream):
    x, residual = (randn(*shape, seed=s, device=device, dtype=dtype) for s in (1, 2))
    weight = randn(shape[1], seed=3, device=device, dtype=dtype)
    residual = residual.float() / 3 if stream == "float32" else residual
    total, before = residual.float() + x.float(), residual.clone()
    normed, found = add_rms_norm(x, residual, weight, 1e-6)
    assert torch.equal(found, total)  # one addition in float32: not a bit of difference
    close(normed, norm(total, weight, 1e-6), dtype)
    if residual.dtype is torch.float32:
        assert found is residual  # in place
    else:
        assert torch.equal(residual, before)  # the embedding
