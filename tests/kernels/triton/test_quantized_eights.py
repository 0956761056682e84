"""Products of rounded rows against the reference, which rounds them in plain torch."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from helpers_small_weights import ROUNDED, WEIGHT_ONLY, random_weight
from octavo.kernels.packed import Fp8Weight, Int8Weight, StackedWeight
from octavo.kernels.reference import quantized as reference
from octavo.kernels.reference.ops import ReferenceOps
from octavo.kernels.triton import quantized_eights
from octavo.kernels.triton.deterministic import DeterministicOps
from octavo.kernels.triton.ops import TritonOps
from octavo.kernels.triton.quantized_rows import quantize_rows

EPS = 1e-5
TOLERANCE = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 6e-3}


def randn(*shape: int, seed: int, device: str, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(device, dtype)


def close(actual: Tensor, expected: Tensor, dtype: torch.dtype, tolerance: float = 0) -> None:
    """NaN is never close."""
    assert actual.dtype is dtype
    assert actual.shape == expected.shape
    difference = (actual.double() - expected.double()).norm()
    assert difference <= max(tolerance, TOLERANCE[dtype]) * expected.double().norm()


@pytest.mark.parametrize("k", [48, 256, pytest.param(14336, marks=pytest.mark.gpu)])
@pytest.mark.parametrize("kind", ["int8", "fp8", "grouped", "given"])
def test_rounded_rows_are_the_references(device, dtype, k, kind):
    x = randn(5, k, seed=0, device=device, dtype=dtype) * 3
    x[1] = 0
    eight = torch.int8 if kind == "int8" else torch.float8_e4m3fn
    scale = torch.tensor(0.01, device=device) if kind == "given" else None
    q, scales, _ = quantize_rows(x, eight, grouped=kind == "grouped", scale=scale)
    width = 128 if kind == "grouped" else k
    found = q.float() * scales.repeat_interleave(width, dim=1)[:, :k]
    if kind == "int8":
        whole, s = reference.round_int8(x)
        expected = whole * s
    else:
        block = (128, 128) if kind == "grouped" else (1, k)
        weight = Fp8Weight(values=q, scales=scales, block=block, quantizes_input=True, input_scale=scale)
        expected = reference.round_fp8(x, weight)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


def test_a_row_with_a_nan_or_an_infinity_is_nan(device, dtype):
    weight = random_weight("w8a8", 16, 64, device)
    assert isinstance(weight, Int8Weight)
    x = randn(3, 64, seed=0, device=device, dtype=dtype)
    x[0, 5], x[2, 7] = torch.nan, torch.inf
    out = quantized_eights.linear(x, weight)
    assert out[0].isnan().all()
    assert out[2].isnan().all()
    assert out[1].isfinite().all()


@pytest.mark.parametrize("form", ROUNDED)
@pytest.mark.parametrize(
    ("tokens", "n", "k"),
    [
        (1, 40, 256),
        (20, 130, 192),
        *(pytest.param(t, 6144, 4096, marks=pytest.mark.gpu) for t in (1, 16, 33, 64, 256)),
        pytest.param(700, 1001, 896, marks=pytest.mark.gpu),
    ],
)
def test_products_of_rounded_rows(device, dtype, form, tokens, n, k):
    if n > 1000 and dtype is not torch.bfloat16:
        pytest.skip("small shapes tell as much")
    weight = random_weight(form, n, k, device)
    assert isinstance(weight, Int8Weight | Fp8Weight)
    assert quantized_eights.fits(weight) or torch.cuda.get_device_capability() < (8, 9)
    x, bias = randn(tokens, k, seed=1, device=device, dtype=dtype), randn(n, seed=2, device=device, dtype=dtype)
    # The units' e4m3 products keep 14 bits of a step's sum.
    close(quantized_eights.linear(x, weight, bias), reference.linear(x.float(), weight, bias.float()), dtype, 1e-3)
    if form == "w8a8":
        close(quantized_eights.linear(x, weight, bias), reference.linear(x.float(), weight, bias.float()), dtype)


@pytest.mark.parametrize("form", [*ROUNDED, *WEIGHT_ONLY])
@pytest.mark.parametrize("tokens", [1, 3, 70])
def test_operations_are_the_references(device, dtype, form, tokens):
    """Through the seam: whichever kernel a form and a number of rows take."""
    quick = ("int4-g32", "w8a8") if tokens > 1 else ("int4-zeros", "fp8-block", "Q4_K", "w8a8", "fp8-w8a8-block")
    if dtype is torch.float32 or ((device == "cpu" or dtype is torch.float16) and form not in quick):
        pytest.skip("slow there")
    n, k = (8 if device == "cpu" else 48), 256
    weight = random_weight(form, n, k, device)
    x, bias = randn(tokens, k, seed=1, device=device, dtype=dtype), randn(n, seed=2, device=device, dtype=dtype)
    norm = randn(k, seed=3, device=device, dtype=dtype)
    ours, theirs = TritonOps(), ReferenceOps()
    packed = ours.pack_linear(weight)
    # A norm that is rounded another way before 8 bits may cross the border between two of these. And the reference's
    # norm is rounded to x's dtype, where ours may not be: in bfloat16 up to 5e-3 behind the gate.
    loose = 2e-2 if form in ROUNDED else 8e-3 if dtype is torch.bfloat16 else 3e-3
    close(ours.linear(x, packed, bias), theirs.linear(x, weight, bias), dtype, loose)
    for name in ("add_norm_linear", "add_norm_gate_up"):
        for stream in (None, randn(tokens, k, seed=4, device=device)):
            (a, t), (b, u) = (
                getattr(ops, name)(x.clone(), None if stream is None else stream.clone(), norm, EPS, w, bias)
                for ops, w in ((ours, packed), (theirs, weight))
            )
            close(a, b, dtype, loose)
            close(t, u, u.dtype)


def test_stacked_parts(device, dtype):
    parts = (random_weight("Q4_K", 24, 256, device), random_weight("Q6_K", 8, 256, device))
    weight = StackedWeight(parts=(*parts, randn(16, 256, seed=5, device=device, dtype=dtype)))
    x, ops = randn(2, 256, seed=0, device=device, dtype=dtype), TritonOps()
    close(ops.linear(x, ops.pack_linear(weight)), reference.linear(x, weight), dtype, 3e-3)


@pytest.mark.parametrize("form", ["int4-g32", "w8a8", "fp8-w8a8-block"])
def test_deterministic_rows_do_not_depend_on_others(device, dtype, form):
    if device == "cpu" and dtype is not torch.float16:
        pytest.skip("slow there")
    ops = DeterministicOps()
    weight = ops.pack_linear(random_weight(form, 32, 256, device))
    x = randn(70, 256, seed=0, device=device, dtype=dtype)
    together = ops.linear(x, weight)
    for row in (0, 69):
        assert torch.equal(ops.linear(x[row : row + 1], weight), together[row : row + 1])


def test_silu_of_a_rounded_product(device, dtype):
    weight = random_weight("w8a8", 32, 64, device)
    assert isinstance(weight, Int8Weight)
    x, norm = randn(2, 64, seed=0, device=device, dtype=dtype), torch.ones(64, device=device, dtype=dtype)
    out, _ = TritonOps().add_norm_gate_up(x, None, norm, EPS, weight)
    normed = F.rms_norm(x.float(), (64,), None, EPS).to(dtype)
    gate, up = reference.linear(normed.float(), weight).chunk(2, dim=1)
    close(out, F.silu(gate) * up, dtype, 2e-2)
