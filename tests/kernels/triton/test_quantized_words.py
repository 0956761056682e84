"""Words against the reference's expansion, to the last bit, and products of few rows with them against float64."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from helpers_small_weights import OTHER_BLOCKS, WEIGHT_ONLY, random_weight
from octavo.kernels.packed import Int4Weight, Int8Weight, PackedWeight
from octavo.kernels.reference.quantized import dequantize
from octavo.kernels.triton import quantized_expand, quantized_matmul, quantized_matvec
from octavo.kernels.triton.quantized_matvec import Settings, choose
from octavo.kernels.triton.quantized_pack import pack
from octavo.kernels.triton.quantized_words import WordWeight

EPS = 1e-5
TOLERANCE = {torch.float32: 6e-6, torch.float16: 1e-3, torch.bfloat16: 6e-3}
"""Of the norm of the difference over the norm of the result. x has 20 bits of a unit's largest in float32, 16 else."""

SMALL = [
    (6, 256, Settings(4, 4, 4)),
    (5, 256, Settings(8, 32, 4)),
    (14, 256, Settings(2, 8, 4, programs=3)),
]
"""The last block in part, several tiles of a row, a tile that is longer than one; programs with two blocks or three."""
LARGE = [(6144, 4096, None), (4096, 14336, None), (1024, 3072, None), (151936, 1024, None), (1002, 18944, None)]
SHAPES = pytest.mark.parametrize(
    ("n", "k", "settings"), SMALL + [pytest.param(*s, marks=pytest.mark.gpu) for s in LARGE]
)
FORMS = pytest.mark.parametrize("form", WEIGHT_ONLY)


def randn(*shape: int, seed: int, device: str, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(device, dtype)


def close(actual: Tensor, expected: Tensor, dtype: torch.dtype, scale: Tensor | None = None) -> None:
    """NaN is never close. ``scale``: what the tolerance is a share of the norm of, if not of ``expected``."""
    assert actual.dtype is dtype
    assert actual.shape == expected.shape
    assert (actual.double() - expected).norm() <= TOLERANCE[dtype] * (expected if scale is None else scale).norm()


def in_words(weight: PackedWeight) -> WordWeight:
    packed = pack(weight)
    assert isinstance(packed, WordWeight)
    assert packed.shape == weight.shape
    return packed


FEW_FORMS = ("int4-g128", "int8", "fp8-block", "Q4_K")
"""Enough of them for large shapes, and for more than one dtype on a GPU, where each case is a kernel to compile."""


@pytest.fixture(autouse=True)
def _what_small_shapes_of_one_dtype_have_shown(request):
    if "form" not in request.fixturenames or request.getfixturevalue("form") in FEW_FORMS:
        is_new = True
    else:
        is_new = request.getfixturevalue("device") == "cpu" or request.getfixturevalue("dtype") is torch.bfloat16
    is_large = "n" in request.fixturenames and request.getfixturevalue("n") > 64
    if is_large:
        is_new = request.getfixturevalue("form") in FEW_FORMS and request.getfixturevalue("dtype") is torch.bfloat16
    if not is_new:
        pytest.skip("others tell as much")


@pytest.mark.parametrize("form", [*WEIGHT_ONLY, *OTHER_BLOCKS])
@pytest.mark.parametrize(("n", "k"), [(5, 256), pytest.param(300, 512, marks=pytest.mark.gpu)])
def test_words_are_the_numbers_of_the_canonical_form(device, dtype, form, n, k):
    weight = random_weight(form, n, k, device)
    assert torch.equal(quantized_expand.expand(in_words(weight), dtype), dequantize(weight, dtype))


@FORMS
@SHAPES
def test_one_row(device, dtype, form, n, k, settings):
    if device == "cpu" and dtype is torch.float16 and n % 2:
        pytest.skip("float32 tells as much")
    weight = random_weight(form, n, k, device)
    exact = dequantize(weight, torch.float32)
    x, bias = randn(1, k, seed=1, device=device, dtype=dtype), randn(n, seed=2, device=device, dtype=dtype)
    residual, norm = randn(1, k, seed=3, device=device), randn(k, seed=4, device=device, dtype=dtype)
    words, kept = in_words(weight), residual.clone()
    close(quantized_matvec.linear(x, words, bias, settings), x.double() @ exact.double().T + bias.double(), dtype)
    row = F.rms_norm(x.double() + residual.double(), (k,), norm.double(), EPS)
    expected = row @ exact.double().T + bias.double()
    out, total = quantized_matvec.add_norm_linear(x, residual, norm, EPS, words, bias, settings)
    close(out, expected, dtype)
    close(total, x.double() + residual.double(), torch.float32)
    assert torch.equal(residual, kept)
    if n % 2 == 0:
        out, _ = quantized_matvec.add_norm_gate_up(x, residual, norm, EPS, words, bias, settings)
        gate, up = expected.chunk(2, dim=1)
        close(out, F.silu(gate) * up, dtype, gate * up)  # SiLU makes a gate smaller, but not its error


@FORMS
@pytest.mark.parametrize(
    ("tokens", "n", "k"),
    [(3, 40, 512), (17, 5, 256), *(pytest.param(t, 6144, 4096, marks=pytest.mark.gpu) for t in (2, 16, 33, 64, 100))],
)
def test_few_rows(device, dtype, form, tokens, n, k):
    weight = random_weight(form, n, k, device)
    x, bias = randn(tokens, k, seed=1, device=device, dtype=dtype), randn(n, seed=2, device=device, dtype=dtype)
    expected = x.double() @ dequantize(weight, dtype).double().T + bias.double()
    close(quantized_matmul.linear(x, in_words(weight), bias), expected, dtype)


def test_a_row_with_a_nan_is_nan_and_a_row_of_zeros_is_zero(device, dtype):
    words = in_words(random_weight("int4-g32", 8, 64, device))
    x = torch.zeros(1, 64, device=device, dtype=dtype)
    assert torch.equal(quantized_matvec.linear(x, words), torch.zeros(1, 8, device=device, dtype=dtype))
    x[0, 40] = torch.nan
    assert quantized_matvec.linear(x, words).isnan().all()


def test_large_numbers_beside_small_ones(device, dtype):
    """A unit's largest number is what its others are rounded by; other units keep their own."""
    weight = random_weight("int8", 8, 64, device)
    x = randn(1, 64, seed=0, device=device, dtype=dtype) * 1e-3
    x[0, 3] = 3e4
    close(quantized_matvec.linear(x, in_words(weight)), x.double() @ dequantize(weight, torch.float64).T, dtype)
    x[0, 3] = 0
    close(quantized_matvec.linear(x, in_words(weight)), x.double() @ dequantize(weight, torch.float64).T, dtype)


@pytest.mark.parametrize("tokens", [1, 3])
def test_act_order(device, dtype, tokens):
    weight = random_weight("int4-g32", 12, 128, device)
    assert isinstance(weight, Int4Weight)
    weight = replace(weight, order=torch.randperm(128, generator=torch.Generator().manual_seed(0)).int().to(device))
    x, words = randn(tokens, 128, seed=1, device=device, dtype=dtype), in_words(weight)
    kernel = quantized_matvec.linear if tokens == 1 else quantized_matmul.linear
    close(kernel(x, words), x.double() @ dequantize(weight, dtype).double().T, dtype)
    assert not quantized_matvec.fits(x[:1], words, norm=True)


def test_what_does_not_divide_stays_as_it_is():
    odd = Int8Weight(values=torch.zeros(4, 24, dtype=torch.int8), scales=torch.ones(4, 3))
    assert pack(odd) is odd
    plain = torch.zeros(4, 8)
    assert pack(plain) is plain


def test_settings_are_powers_of_two():
    for n in (8, 576, 4096, 28672, 151936):
        for units in (1, 18, 32, 128, 448, 896, 1792):
            for gated, bits in itertools.product((False, True), (4, 8)):
                s = choose(n, units, gated=gated, bits=bits)
                assert all(size & (size - 1) == 0 and size > 0 for size in (s.rows, s.tile, s.warps))


def test_programs_loop_where_x_costs_most_and_all_have_enough_to_do():
    loops = {
        (14336, 128, True, 4): True,  # the 8B shape's gate, and its long rows
        (4096, 448, False, 4): True,
        (6144, 128, False, 4): False,  # one tile of x and no gate
        (3072, 32, True, 4): False,  # too few blocks
        (14336, 256, True, 8): False,
    }
    for (n, units, gated, bits), looped in loops.items():
        s = choose(n, units, gated=gated, bits=bits)
        assert (s.programs is not None) == looped
        assert not looped or n / s.rows >= 2.5 * s.programs
