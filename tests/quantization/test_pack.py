"""Quantizing: errors no larger than rounding explains, for every scheme, and what cannot be quantized is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from octavo.config import QUANTIZATIONS
from octavo.errors import ModelError, UsageError
from octavo.kernels.packed import Fp8Weight, Int4Weight, Int8Weight
from octavo.kernels.reference.quantized import dequantize
from octavo.quantization import pack
from octavo.quantization.dummy import random_weight
from octavo.quantization.error import error
from octavo.quantization.pack import quantize
from octavo.quantization.schemes import SCHEMES, Scheme, scheme

EVERY = pytest.mark.parametrize("name", SCHEMES)


def randn(*shape: int, seed: int = 3) -> torch.Tensor:
    """Normal numbers with some larger ones, as weights are."""
    g = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=g) * 0.05 * (1 + 4 * (torch.rand(*shape, generator=g) < 0.01))


def test_the_names_are_those_of_the_configuration():
    assert set(SCHEMES) == set(QUANTIZATIONS)
    assert all(name == scheme.name for name, scheme in SCHEMES.items())


def test_an_unknown_scheme_is_an_error_that_lists_them():
    with pytest.raises(UsageError, match=r"'int9' is not supported .did you mean 'int[84]'.*w8a8.*int4-g32"):
        scheme("int9")
    with pytest.raises(UsageError, match="accepted: int8"):
        quantize(randn(4, 32), "")


@EVERY
@pytest.mark.parametrize("shape", [(7, 256), (130, 320), (1, 128), (128, 128)], ids=str)
def test_each_weight_is_rounded_to_a_near_one(name, shape):
    weight = randn(*shape)
    packed = quantize(weight, name)
    assert packed.shape == shape
    difference = (dequantize(packed, torch.float32) - weight).abs()
    if isinstance(packed, Int8Weight):
        step = packed.scales.float().repeat_interleave(packed.group, 1)
        assert (difference <= step * 0.57).all()  # half a step, and what a scale in 16 bits takes off 127 of them
    elif isinstance(packed, Int4Weight):
        groups = weight.unflatten(1, (-1, packed.group))
        span = (groups.amax(-1) - groups.amin(-1)).repeat_interleave(packed.group, 1)
        assert (difference <= span * 0.2).all()  # half a step is 1/30; what is clipped may be further
        assert (difference.square().mean().sqrt() <= span.square().mean().sqrt() / 30).all()
    else:
        assert isinstance(packed, Fp8Weight)
        largest = packed.scales.max() * 448
        assert (difference <= torch.maximum(weight.abs() / 16, largest * 2.0**-9 / 448) * 1.001).all()


def test_the_layouts():
    weight = randn(130, 320)
    int8, groups, w8a8 = (quantize(weight, name) for name in ("int8-channel", "int8", "w8a8"))
    assert (int8.scales.shape, groups.scales.shape) == ((130, 1), (130, 5))
    assert (int8.scales.dtype, groups.scales.dtype) == (torch.float32, torch.float16)
    assert (int8.quantizes_input, w8a8.quantizes_input) == (False, True)
    assert torch.equal(int8.values.abs().amax(1), torch.full((130,), 127, dtype=torch.int8))
    channel, tensor, block = (quantize(weight, name) for name in ("fp8", "fp8-tensor", "fp8-block"))
    assert [fp8.scales.shape for fp8 in (channel, tensor, block)] == [(130, 1), (1, 1), (2, 3)]
    assert [fp8.block for fp8 in (channel, tensor, block)] == [(1, 320), (130, 320), (128, 128)]
    assert quantize(weight, "fp8-w8a8").quantizes_input
    assert block.scales[1, 2] == weight[128:, 256:].abs().max() / 448


@pytest.mark.parametrize(("k", "group"), [(4096, 128), (1024, 128), (576, 64), (96, 32), (48, 16), (40, None)])
def test_int4_takes_a_group_that_fits(k, group):
    assert SCHEMES["int4"].group_for(k) == group
    assert SCHEMES["int4-g32"].group_for(k) == (group and min(group, 32))
    if group is None:
        with pytest.raises(ModelError, match="40 inputs; accepted: a multiple of 16"):
            quantize(randn(3, k), "int4")
    else:
        assert quantize(randn(3, k), "int4").group == group


@pytest.mark.parametrize("hidden", [64, 576, 2047])
def test_a_small_model_gets_smaller_groups_and_8_bits_where_it_is_sensitive(hidden):
    small = SCHEMES["int4"].fitted(hidden)
    assert (small.name, small.group_for(4096), small.for_sensitive, small.for_head) == (
        *("int4", 32, SCHEMES["int8"], SCHEMES["int8"]),
    )
    assert small.fitted(hidden) == small


def test_what_is_sensitive_does_not_depend_on_the_head():
    own_head = replace(SCHEMES["int4"], head=None).fitted(64)
    assert (own_head.for_head, own_head.for_sensitive) == (own_head, SCHEMES["int8"])


@pytest.mark.parametrize(("name", "hidden"), [("int4", 2048), ("int4", 4096), ("int4-g64", 64), ("int8", 64)])
def test_other_models_and_schemes_stay_as_they_are(name, hidden):
    how = SCHEMES[name].fitted(hidden)
    assert how.for_sensitive is how is SCHEMES[name]


def test_other_schemes_fit_everything():
    for name, how in SCHEMES.items():
        if how.kind != "int4":
            assert quantize(randn(3, 41), name).shape == (3, 41)
    assert SCHEMES["int8-g32"].group_for(41) == 41


@EVERY
def test_zeros_and_one_group_of_equal_weights(name):
    weight = torch.zeros(4, 128)
    weight[1] = 0.25
    weight[2, 64:] = -3e-6
    packed = dequantize(quantize(weight, name), torch.float32)
    assert (packed[0] == 0).all()
    assert (packed[3] == 0).all()
    assert torch.allclose(packed[1], weight[1], rtol=2e-3)


@EVERY
@pytest.mark.parametrize("scale", [1e-4, 1e4])
def test_the_error_does_not_hang_on_the_size(name, scale):
    weight = randn(32, 256)
    expected, actual = (error(w, quantize(w, name)).relative_rms for w in (weight, weight * scale))
    assert actual == pytest.approx(expected, rel=0.02)


@EVERY
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_is_refused(name, bad):
    weight = randn(4, 128)
    weight[2, 100] = bad
    with pytest.raises(ModelError, match="NaN or an infinity"):
        quantize(weight, name)


@EVERY
def test_rows_are_rounded_some_at_a_time(name, monkeypatch):
    weight = randn(300, 256)
    whole = quantize(weight, name)
    monkeypatch.setitem(pack.CHUNKS, "cpu", 1000)
    parts = quantize(weight, name)
    for key, tensor in whole.tensors().items():
        assert torch.equal(tensor.view(torch.uint8), parts.tensors()[key].view(torch.uint8)), key


@EVERY
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_narrow_weights(name, dtype):
    weight = randn(16, 256).to(dtype)
    for key, tensor in quantize(weight.float(), name).tensors().items():
        assert torch.equal(tensor.view(torch.uint8), quantize(weight, name).tensors()[key].view(torch.uint8)), key


@pytest.mark.parametrize("size", [1e-30, 1e-6, 2.0**-10, 1.0, 3e4, 1e6, 1e30])
def test_groups_of_int8_of_any_size(size):
    """Scales in 16 bits are taken where they can say all; one group is far smaller than the others."""
    weight = randn(8, 256) * size
    weight[3, 64:128] *= 1e-5
    weight[4, :64] = 0
    packed = quantize(weight, "int8")
    assert packed.scales.dtype is (torch.float16 if 2.0**-9 <= weight.abs().max() <= 2.0**15 else torch.float32)
    assert int(packed.values.min()) >= -127
    back = dequantize(packed, torch.float32)
    assert back.isfinite().all()
    assert (back - weight).double().norm() < 0.02 * weight.double().norm()


@EVERY
def test_empty(name):
    assert dequantize(quantize(torch.empty(0, 128), name), torch.float32).shape == (0, 128)


def test_finer_is_better():
    weight = randn(64, 1024)
    errors = {name: error(weight, quantize(weight, name)).relative_rms for name in SCHEMES}
    assert errors["int8-g32"] < errors["int8-g64"] < errors["int8-g128"] < errors["int8-channel"] < 0.03
    assert errors["int4-g32"] < errors["int4-g64"] < errors["int4-g128"] < 0.15
    assert errors["int8-channel"] < errors["fp8"] < 0.04
    assert errors["int8"] == errors["int8-g64"]
    assert errors["int4"] == errors["int4-g128"]


def test_weights_on_a_grid_of_16_levels_are_exact():
    """What another quantizer has rounded by groups of 32 comes out as it was."""
    g = torch.Generator().manual_seed(0)
    q = torch.randint(0, 16, (40, 18, 32), generator=g)
    q[..., 0], q[..., 1] = 0, 15
    scales = torch.rand(40, 18, 1, generator=g).half().float() * 0.1
    weight = (q * scales - scales * 7.3).flatten(1)
    assert error(weight, quantize(weight, "int4-g32")).relative_rms < 2e-3


def test_error():
    weight = torch.tensor([[3.0, -4.0]])
    assert error(weight, weight) == error(torch.zeros(2, 2), torch.zeros(2, 2))
    packed = Int8Weight(values=torch.tensor([[3, -3]], dtype=torch.int8), scales=torch.ones(1, 1))
    assert (error(weight, packed).relative_rms, error(weight, packed).largest) == (pytest.approx(0.2), 1.0)


def test_error_looks_at_all_rows(monkeypatch):
    weight = randn(300, 64)
    packed = quantize(weight, "int8")
    whole = error(weight, packed)
    monkeypatch.setattr("octavo.quantization.error.CHUNK", 1)
    parts = error(weight, packed)
    assert (parts.relative_rms, parts.largest) == (pytest.approx(whole.relative_rms), whole.largest)


@EVERY
@pytest.mark.parametrize("rows", [3, 128, 300, 1000])
def test_random_weights_have_the_form_of_real_ones(name, rows):
    pattern = torch.randn(1003, generator=torch.Generator().manual_seed(0)) * 0.02
    packed = random_weight((rows, 320), SCHEMES[name], pattern, torch.device("cpu"))
    real = quantize(randn(rows, 320), name)
    shapes = {key: (tensor.shape, tensor.dtype) for key, tensor in real.tensors().items()}
    assert {key: (tensor.shape, tensor.dtype) for key, tensor in packed.tensors().items()} == shapes
    assert getattr(packed, "block", None) == getattr(real, "block", None)
    assert 0.015 < dequantize(packed, torch.float32).std() < 0.025


def test_a_scheme_of_ones_own():
    assert quantize(randn(4, 96), Scheme(name="mine", kind="int4", group=48)).group == 32
