"""The packed forms' reference: against their formulas, number by number in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from helpers_packed import EVERY_FORM, random_blocks, random_fp8, random_int8, stands_for
from octavo.kernels.packed import Fp8Weight, Int8Weight
from octavo.kernels.reference import quantized
from octavo.kernels.reference.quantized import dequantize, linear, round_fp8, round_int8

FORMS = pytest.mark.parametrize("form", EVERY_FORM)
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)


def randn(*shape: int, seed: int = 7) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def e4m3_values() -> np.ndarray:
    """All finite numbers of e4m3, from its bits: sign, 4 bits of exponent with bias 7, 3 of mantissa."""
    positive = [m / 8 * 2**-6 for m in range(8)]
    positive += [(1 + m / 8) * 2.0 ** (e - 7) for e in range(1, 16) for m in range(8) if (e, m) != (15, 7)]
    return np.array(sorted({*positive, *(-v for v in positive)}))


@FORMS
@DTYPES
def test_dequantize(form, dtype):
    weight = EVERY_FORM[form]
    actual, expected = dequantize(weight, dtype), stands_for(weight)
    assert actual.shape == weight.shape == expected.shape
    assert actual.dtype == dtype
    if dtype is torch.float32:
        np.testing.assert_allclose(actual.numpy(), expected, rtol=3e-7, atol=1e-9)
    else:
        assert torch.equal(actual, dequantize(weight, torch.float32).to(dtype))


@FORMS
@DTYPES
@pytest.mark.parametrize("shape", [(0,), (1,), (5,), (2, 3)], ids=str)
def test_linear(form, dtype, shape):
    weight = EVERY_FORM[form]
    x, bias = randn(*shape, weight.shape[1]).to(dtype), randn(weight.shape[0]).to(dtype)
    for b in (None, bias):
        actual = linear(x, weight, b)
        assert actual.shape == (*shape, weight.shape[0])
        assert actual.dtype == dtype
        expected = x.double().numpy() @ stands_for(weight).T + (0 if b is None else b.double().numpy())
        error = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}[dtype]
        np.testing.assert_allclose(actual.double().numpy(), expected, rtol=error, atol=error * 10)


def test_rows_are_expanded_some_at_a_time(monkeypatch):
    monkeypatch.setattr(quantized, "CHUNK", 1)
    for weight in (random_int8(300, 32, 16), random_fp8(300, 32, (128, 16)), random_blocks(300, 32, "Q8_0")):
        x = randn(3, 32)
        expected = x.double().numpy() @ stands_for(weight).T
        np.testing.assert_allclose(linear(x, weight).double().numpy(), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("k", [48, 4096])
def test_w8a8_is_exact_in_whole_numbers(k):
    weight = random_int8(5, k, k, quantizes_input=True)
    x = randn(4, k) * 3
    x[2] = 0
    scales = np.abs(x.numpy()).max(1, keepdims=True).astype(np.float32) / np.float32(127)
    with np.errstate(invalid="ignore"):
        q = np.nan_to_num(np.rint(x.numpy() / scales)).astype(np.int64)
    whole = q @ weight.values.numpy().astype(np.int64).T
    expected = whole * scales.astype(np.float64) * weight.scales.double().numpy().T
    np.testing.assert_allclose(linear(x, weight).double().numpy(), expected, rtol=4e-7)


def test_int8_rows():
    q, scales = round_int8(randn(6, 20) * 100)
    assert ((q.abs().amax(1)) == 127).all()
    assert torch.equal(q, q.round())
    assert ((q * scales - randn(6, 20) * 100).abs() <= scales * 0.5001).all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_stays_in_its_row(bad):
    x = randn(3, 48)
    x[1, 5] = bad
    weights = [random_int8(9, 48, 48, quantizes_input=True), random_fp8(9, 48, (1, 48), quantizes_input=True)]
    for weight in [*weights, EVERY_FORM["int4"]]:
        y = linear(x, weight)
        assert not y[1].isfinite().any()
        assert y[[0, 2]].isfinite().all()


@pytest.mark.parametrize("block", [(1, 300), (300, 300), (128, 128)], ids=str)
def test_fp8_input_is_rounded_to_the_nearest(block):
    weight, x = random_fp8(130, 300, block, quantizes_input=True), randn(3, 300)
    x[0] *= 1000
    x[1, :128] = 0
    rounded, values = round_fp8(x, weight).numpy(), e4m3_values()
    width = 128 if block == (128, 128) else 300
    for begin in range(0, 300, width):
        part = x[:, begin : begin + width].numpy().astype(np.float64)
        scales = np.abs(part).max(1, keepdims=True) / 448
        scaled = part / np.where(scales == 0, 1, scales)
        nearest = np.abs(scaled[..., None] - values).min(-1) * scales
        np.testing.assert_allclose(np.abs(rounded[:, begin : begin + width] - part), nearest, atol=1e-4 * scales.max())
    expected = rounded.astype(np.float64) @ stands_for(weight).T
    np.testing.assert_allclose(linear(x, weight).double().numpy(), expected, rtol=1e-4, atol=1e-2)


def test_fp8_input_scale_of_the_checkpoint():
    plain = random_fp8(4, 16, (1, 16))
    weight = Fp8Weight(**plain.tensors(), block=(1, 16), quantizes_input=True, input_scale=torch.tensor(0.5))
    x = torch.tensor([[1000.0, 1.0, 0.51, 0.0] * 4])
    assert round_fp8(x, weight)[0, :4].tolist() == [224.0, 1.0, 0.5, 0.0]  # 448 is the most, times 0.5


def test_an_unknown_form_is_named():
    with pytest.raises(TypeError, match="str"):
        dequantize("weight", torch.float32)


def test_shapes_groups_and_bytes():
    weight = random_int8(9, 48, 16)
    assert (weight.shape, weight.group, weight.nbytes) == ((9, 48), 16, 9 * 48 + 9 * 3 * 4)
    assert isinstance(weight.to("cpu"), Int8Weight)
    assert EVERY_FORM["stacked"].shape == (9, 64)
    assert EVERY_FORM["stacked"].nbytes == 4 * 36 + 2 * 64 * 4 + 3 * 64 + 3 * 4
