"""Products of few rows against float64, with every part that may be fused into them."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from octavo.kernels.triton import matvec
from octavo.kernels.triton.matvec_settings import (
    TABLE,
    THREAD_BYTES,
    Settings,
    choose,
)
from octavo.kernels.triton.pdl import AFTER_SUMS, AFTER_WAIT, FIRST, NEVER

EPS = 1e-5
TOLERANCE = {torch.float32: 1e-6, torch.float16: 6e-4, torch.bfloat16: 5e-3}
"""Of the norm of the difference over the norm of the result."""

SMALL = [
    # tokens, outputs, inputs, settings
    (1, 5, 8, None),  # fewer rows than a block, fewer columns than a tile
    (1, 64, 128, Settings(16, 32, 4)),  # four pieces a tile
    (2, 21, 72, Settings(8, 32, 4, AFTER_WAIT)),  # three tiles, the last one in part; the last block, too
    (4, 12, 40, Settings(4, 64, 2, AFTER_SUMS)),
    (1, 40, 96, Settings(4, 32, 4, AFTER_WAIT)),
    (1, 18, 24, Settings(4, 32, 4, NEVER)),
]
LARGE = [(1, n, k, None) for n, k, _ in TABLE] + [
    (2, 1001, 18944, None),
    (3, 896, 4864, None),
    (4, 6144, 4096, None),
    (1, 128256 + 3, 896, None),
    (1, 128256, 4096, None),
]
CASES = SMALL + [pytest.param(*case, marks=pytest.mark.gpu) for case in LARGE]
PRODUCTS = pytest.mark.parametrize(("tokens", "n", "k", "settings"), CASES)


def randn(*shape: int, seed: int, device: str, dtype: torch.dtype = torch.float32, scale: float = 1) -> Tensor:
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale).to(device, dtype)


def close(actual: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    """NaN is never close."""
    assert actual.dtype is dtype
    assert actual.shape == expected.shape
    assert (actual.double() - expected).norm() <= TOLERANCE[dtype] * expected.norm()


def normed(x: Tensor, residual: Tensor | None, weight: Tensor) -> tuple[Tensor, Tensor]:
    """float64: the normalised sum, and the sum."""
    total = x.double() + (0 if residual is None else residual.double())
    return F.rms_norm(total, weight.shape, weight.double(), EPS), total


@pytest.fixture(autouse=True)
def _large_shapes_in_the_dtype_of_large_models_only(request):
    is_large = "n" in request.fixturenames and request.getfixturevalue("n") > 64
    if is_large and request.getfixturevalue("dtype") is not torch.bfloat16:
        pytest.skip("small shapes tell as much")


@PRODUCTS
@pytest.mark.parametrize("with_bias", [False, True])
def test_linear(device, dtype, tokens, n, k, settings, with_bias):
    x = randn(tokens, k, seed=0, device=device, dtype=dtype)
    weight = randn(n, k, seed=1, device=device, dtype=dtype, scale=k**-0.5)
    bias = randn(n, seed=2, device=device, dtype=dtype) if with_bias else None
    expected = x.double() @ weight.double().T + (0 if bias is None else bias.double())
    close(matvec.linear(x, weight, bias, settings), expected, dtype)


@PRODUCTS
@pytest.mark.parametrize(("stream", "with_bias"), [(None, False), ("float32", True), ("x", False)])
def test_norm_and_product(device, dtype, tokens, n, k, settings, with_bias, stream):
    x = randn(tokens, k, seed=0, device=device, dtype=dtype)
    residual = None
    if stream is not None:
        stream_dtype = dtype if stream == "x" else torch.float32
        residual = randn(tokens, k, seed=1, device=device, dtype=stream_dtype, scale=3)
    norm_weight = randn(k, seed=2, device=device, dtype=dtype)
    weight = randn(n, k, seed=3, device=device, dtype=dtype, scale=k**-0.5)
    bias = randn(n, seed=4, device=device, dtype=dtype) if with_bias else None
    kept = None if residual is None else residual.clone()
    out, total = matvec.add_norm_linear(x, residual, norm_weight, EPS, weight, bias, settings)
    row, exact = normed(x, residual, norm_weight)
    close(out, row @ weight.double().T + (0 if bias is None else bias.double()), dtype)
    if residual is None:
        assert total is x
    else:
        close(total, exact, torch.float32)
        assert torch.equal(residual, kept)  # other programs still read it when the sum is written


@PRODUCTS
@pytest.mark.parametrize("with_bias", [False, True])
def test_norm_and_gated_product(device, dtype, tokens, n, k, settings, with_bias):
    n = min(n, 1 << 14)
    x = randn(tokens, k, seed=0, device=device, dtype=dtype)
    residual = randn(tokens, k, seed=1, device=device)
    norm_weight = randn(k, seed=2, device=device, dtype=dtype)
    weight = randn(2 * n, k, seed=3, device=device, dtype=dtype, scale=k**-0.5)
    bias = randn(2 * n, seed=4, device=device, dtype=dtype) if with_bias else None
    out, total = matvec.add_norm_gate_up(x, residual, norm_weight, EPS, weight, bias, settings)
    row, exact = normed(x, residual, norm_weight)
    gate, up = (row @ weight.double().T + (0 if bias is None else bias.double())).chunk(2, dim=-1)
    close(out, F.silu(gate) * up, dtype)
    close(total, exact, torch.float32)


def test_a_row_of_zeros_and_large_numbers(device, dtype):
    k, weight = 16, randn(6, 16, seed=0, device=device, dtype=dtype)
    ones = torch.ones(k, device=device, dtype=dtype)
    x = torch.stack((torch.zeros(k), torch.full((k,), 3e4))).to(device, dtype)
    out, _ = matvec.add_norm_linear(x, None, ones, EPS, weight)
    assert torch.equal(out[0], torch.zeros_like(out[0]))
    close(out[1], weight.double().sum(dim=1), dtype)


def test_fits_says_what_the_kernels_take(device):
    def weight(n: int = 32, k: int = 64, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(n, k, dtype=dtype, device=device)

    x = torch.empty(matvec.MAX_TOKENS, 64, device=device)
    assert matvec.fits(x, weight())
    assert matvec.fits(x[:2], weight(), norm=True)
    assert not matvec.fits(x, weight(), norm=True)
    assert not matvec.fits(torch.cat((x, x)), weight())
    assert not matvec.fits(x[:0], weight())
    assert not matvec.fits(x, weight().half())
    assert not matvec.fits(x[:, :60].contiguous(), weight(k=60))
    assert not matvec.fits(x, weight(k=128)[:, ::2])


def test_large_weights_are_for_few_tokens():
    assert matvec.most_tokens(1 << 20, 1024, False) == matvec.MAX_TOKENS
    assert matvec.most_tokens(1 << 26, 1024, False) == 2
    assert matvec.most_tokens(1 << 20, 2048, True) == 2
    assert matvec.most_tokens(1 << 26, 4096, True) == 1


def test_settings_are_within_bounds():
    rows = (8, 576, 1024, 6144, 28672, 151936)
    columns = (8, 576, 896, 1024, 2560, 4096, 5120, 14336, 18944, 28672)
    for n, k, itemsize, gated, tokens in itertools.product(rows, columns, (2, 4), (False, True), (1, 4)):
        s = choose(n, k, itemsize, gated=gated, tokens=tokens)
        assert all(size & (size - 1) == 0 for size in (s.rows, s.width, s.warps))
        assert s.trigger in (NEVER, FIRST, AFTER_WAIT, AFTER_SUMS)
        block_bytes = s.rows * k * itemsize * (1 + gated)
        assert s.rows == 1 or block_bytes <= THREAD_BYTES * 32 * s.warps


@pytest.mark.gpu
def test_a_chain_in_a_graph_is_the_chain_without_early_launches(device, dtype, monkeypatch):
    """Layers whose buffers are handed out again at once, replayed many times: the same bits as kernel after kernel."""
    h, i, layers = 1024, 3072, 12
    shapes = [(2 * h, h), (h, 2 * h), (2 * i, h), (h, i)]
    weights = [
        [randn(*s, seed=10 * layer + j, device=device, dtype=dtype, scale=s[1] ** -0.5) for j, s in enumerate(shapes)]
        for layer in range(layers)
    ]
    norm_weight = randn(h, seed=1, device=device, dtype=dtype)
    x = randn(1, h, seed=2, device=device, dtype=dtype)

    def chain() -> tuple[Tensor, Tensor]:
        y, residual = x, None
        for qkv, o, gate_up, down in weights:
            y, residual = matvec.add_norm_linear(y, residual, norm_weight, EPS, qkv)
            y = matvec.linear(y, o)
            y, residual = matvec.add_norm_gate_up(y, residual, norm_weight, EPS, gate_up)
            y = matvec.linear(y, down)
        return y, residual

    monkeypatch.setenv("OCTAVO_PDL", "0")
    expected = [t.clone() for t in chain()]
    monkeypatch.delenv("OCTAVO_PDL")
    chain()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = chain()
    for _ in range(50):
        for t in found:
            t.fill_(torch.nan)
        graph.replay()
        for a, b in zip(found, expected, strict=True):
            assert torch.equal(a, b)
