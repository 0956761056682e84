"""Products of a small batch against float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from octavo.kernels.triton import small_batch
from octavo.kernels.triton.matvec_settings import LOOP_ROWS

TOLERANCE = {torch.float16: 6e-4, torch.bfloat16: 5e-3}
"""Of the norm of the difference over the norm of the result."""

SMALL = [(1, 5, 8), (5, 40, 128), (16, 33, 264)]  # tokens, outputs, inputs
LARGE = [(5, 4096, 1024), (16, 1024, 3072), (9, 6144, 4096), (16, 4096, 14336), (7, 1152, 896), (13, 1001, 4864)]
CASES = SMALL + [pytest.param(*case, marks=pytest.mark.gpu) for case in LARGE]
PRODUCTS = pytest.mark.parametrize(("tokens", "n", "k"), CASES)


@pytest.fixture(autouse=True)
def _only_16_bits(request):
    if "dtype" in request.fixturenames and request.getfixturevalue("dtype") not in TOLERANCE:
        pytest.skip("float32 is left to cuBLAS")
    if request.node.get_closest_marker("gpu") and request.getfixturevalue("device") == "cpu":
        pytest.skip("too slow in the interpreter")


def operands(tokens: int, n: int, k: int, device: str, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(tokens * n + k)
    parts = torch.randn(tokens, k, generator=generator), torch.randn(n, k, generator=generator) * k**-0.5
    x, weight, bias = (part.to(device, dtype) for part in (*parts, torch.randn(n, generator=generator)))
    return x, weight, bias


def close(actual: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    """NaN is never close."""
    assert actual.dtype is dtype
    assert actual.shape == expected.shape
    assert (actual.double() - expected).norm() <= TOLERANCE[dtype] * expected.norm()


@PRODUCTS
@pytest.mark.parametrize("with_bias", [False, True])
def test_linear(device, dtype, tokens, n, k, with_bias):
    x, weight, bias = operands(tokens, n, k, device, dtype)
    found = small_batch.linear(x, weight, bias if with_bias else None)
    close(found, x.double() @ weight.double().T + (bias.double() if with_bias else 0), dtype)


@PRODUCTS
@pytest.mark.parametrize("with_bias", [False, True])
def test_gated(device, dtype, tokens, n, k, with_bias):
    x, weight, bias = operands(tokens, 2 * n, k, device, dtype)
    found = small_batch.gate_up(x, weight, bias if with_bias else None)
    product = x.double() @ weight.double().T + (bias.double() if with_bias else 0)
    close(found, F.silu(product[:, :n]) * product[:, n:], dtype)


def test_fits_says_what_the_kernel_takes(device):
    weight = torch.empty(32, 64, device=device, dtype=torch.float16)
    x = torch.empty(small_batch.MAX_TOKENS, 64, device=device, dtype=torch.float16)
    assert small_batch.fits(x, weight)
    assert not small_batch.fits(torch.cat((x, x)), weight)
    assert not small_batch.fits(x[:0], weight)
    assert not small_batch.fits(x, weight.bfloat16())
    assert not small_batch.fits(x.float(), weight.float())
    assert not small_batch.fits(x[:, :60].contiguous(), weight[:, :60].contiguous())
    assert not small_batch.fits(x[:, :32], weight[:, :32].contiguous())
    assert not small_batch.fits(x, weight.new_empty(LOOP_ROWS, 64))
