"""Mixtures of experts whose weights are packed: against the same weights expanded, in float64."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from helpers_small_weights import random_weight
from octavo.kernels.packed import Fp8Weight, Int4Weight, Int8Weight, PackedWeight, PerExpert, StackedWeight
from octavo.kernels.packed_parts import stack_rows, take_expert
from octavo.kernels.reference.quantized import dequantize, round_fp8, round_int8
from octavo.kernels.triton import quantized_experts
from octavo.kernels.triton.deterministic import DeterministicOps
from octavo.kernels.triton.experts import experts
from octavo.kernels.triton.quantized_experts import ExpertWords, Tile, choose, pack

pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered in exp:RuntimeWarning")  # the interpreter's numpy
TOLERANCE = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 2e-2}
FORMS = ["int8", "int4-g32", "int4-zeros", "fp8", "fp8-block", "Q4_1", "Q8_0", "Q4_K"]
ROUNDED = ["w8a8", "fp8-w8a8", "fp8-w8a8-block", "fp8-w8a8-static"]
COUNT, K = 3, 2
FEW_FORMS = ("int8", "int4-zeros", "fp8", "w8a8", "fp8-w8a8-block")
"""Enough of them for more than one dtype; the interpreter is slow."""


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def stack(form: str, rows: int, columns: int, seed: int) -> PackedWeight:
    """Random matrices of ``COUNT`` experts, one above the other."""
    parts = [random_weight(form, rows, columns, seed=seed + e) for e in range(COUNT)]
    whole = stack_rows(parts)
    assert isinstance(whole, PackedWeight)
    return whole


def rounded(x: Tensor, weight: PackedWeight) -> Tensor:
    """x as a weight that rounds it sees it."""
    if isinstance(weight, Int8Weight) and weight.quantizes_input:
        q, scales = round_int8(x)
        return (q * scales).double()
    return (round_fp8(x, weight) if isinstance(weight, Fp8Weight) and weight.quantizes_input else x).double()


def reference(x: Tensor, gate_up: PackedWeight, down: PackedWeight, weights: Tensor, ids: Tensor) -> Tensor:
    both = [dequantize(w, torch.float64).chunk(COUNT) for w in (gate_up, down)]
    out = torch.zeros(x.shape, dtype=torch.float64)
    for t in range(len(x)):
        for p, e in zip(weights[t].double(), ids[t].tolist(), strict=True):
            gate, up = (both[0][e] @ rounded(x[t : t + 1], gate_up)[0]).chunk(2)
            inner = (gate / (1 + torch.exp(-gate)) * up).to(x.dtype)
            out[t] += p * (both[1][e] @ rounded(inner[None], down)[0])
    return out


def routed(tokens: int) -> tuple[Tensor, Tensor]:
    return randn(tokens, COUNT, seed=4).softmax(-1).topk(K)


def close(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    """NaN is never close."""
    assert (actual.double().cpu() - expected).norm() <= tolerance * expected.norm()


@pytest.fixture(autouse=True)
def _what_one_dtype_has_shown(request):
    if {"form", "dtype"} <= set(request.fixturenames):
        form, dtype = (request.getfixturevalue(name) for name in ("form", "dtype"))
        if form not in FEW_FORMS and dtype is not torch.float16:
            pytest.skip("shown in float16")


@pytest.mark.parametrize(("form", "tokens"), [*((form, 2) for form in FORMS), ("int4-zeros", 37)])
def test_packed_experts(device, dtype, form, tokens):
    wide, size = 256 if form == "Q4_K" else 128 if form == "fp8-block" else 96, 64
    gate_up, down = stack(form, 2 * size, wide, 1), stack("int4-g32" if form != "fp8" else form, wide, size, 9)
    x, (weights, ids) = randn(tokens, wide, seed=3).to(dtype), routed(tokens)
    expected = reference(x, gate_up, down, weights, ids)
    packed = [pack(weight.to(device), dtype) for weight in (gate_up, down)]
    assert all(isinstance(weight, ExpertWords) for weight in packed)
    found = experts(x.to(device), *packed, weights.to(device), ids.to(device))
    assert found.dtype is dtype
    close(found, expected, TOLERANCE[dtype])


@pytest.mark.parametrize("form", ROUNDED)
def test_experts_that_round_their_input(device, dtype, form):
    size = 128 if form.endswith("block") else 32
    gate_up, down = stack(form, 2 * size, 128, 1), stack(form, 128, size, 9)
    x, (weights, ids) = randn(3, 128, seed=3).to(dtype), routed(3)
    expected = reference(x, gate_up, down, weights, ids)
    packed = [pack(weight.to(device), dtype) for weight in (gate_up, down)]
    found = experts(x.to(device), *packed, weights.to(device), ids.to(device))
    close(found, expected, 2e-2)  # what is between the products may fall to the next step of 8 bits
    unrounded = [replace(weight, quantizes_input=False) for weight in (gate_up, down)]
    assert (reference(x, *unrounded, weights, ids) - expected).norm() > 2e-3 * expected.norm()


def test_one_form_for_the_gate_and_none_for_the_rest(device):
    gate_up, down = stack("int4-g32", 64, 96, 1), randn(COUNT * 96, 32, seed=2) / 32**0.5
    x, (weights, ids) = randn(9, 96, seed=3), routed(9)
    on_device = [arg.to(device) for arg in (weights, ids)]
    found = experts(x.to(device), pack(gate_up.to(device), x.dtype), pack(down.to(device), x.dtype), *on_device)
    expanded = dequantize(gate_up, torch.float64).chunk(COUNT)
    expected = torch.zeros(9, 96, dtype=torch.float64)
    for t in range(9):
        for p, e in zip(weights[t].double(), ids[t].tolist(), strict=True):
            gate, up = (expanded[e] @ x[t].double()).chunk(2)
            expected[t] += p * (down.chunk(COUNT)[e].double() @ (gate / (1 + torch.exp(-gate)) * up))
    close(found, expected, 1e-5)


def test_what_has_no_words_is_expanded():
    mixed = StackedWeight(parts=(random_weight("int8", 64, 96), random_weight("int4-g32", 64, 96)))
    order = torch.randperm(96, generator=torch.Generator().manual_seed(0)).int()
    shuffled = replace(random_weight("int4-g32", 64, 96), order=order)
    assert isinstance(shuffled, Int4Weight)
    for weight in (mixed, shuffled, random_weight("int8", 64, 84), PerExpert(parts=mixed.parts)):
        expanded = pack(weight, torch.float16)
        assert torch.equal(expanded, dequantize(weight, torch.float16))


def test_a_form_that_was_not_packed_is_an_error():
    weight = stack("int8", 64, 32, 1)
    x, (weights, ids) = randn(2, 32, seed=3), routed(2)
    with pytest.raises(TypeError, match="Int8Weight has not been through pack_experts"):
        experts(x, weight, stack("int8", 32, 32, 2), weights, ids)


def test_an_experts_matrix_in_the_whole():
    whole = stack("int4-g32", 64, 96, 1)
    for e in range(COUNT):
        one = take_expert(whole, e, COUNT)
        assert torch.equal(dequantize(one, torch.float32), dequantize(whole, torch.float32).chunk(COUNT)[e])
    each = PerExpert(parts=tuple(take_expert(whole, e, COUNT) for e in range(COUNT)))
    assert each.shape == whole.shape
    assert each.nbytes == whole.nbytes
    assert torch.equal(dequantize(each.to("cpu"), torch.float32), dequantize(whole, torch.float32))


@pytest.mark.parametrize("form", ["fp8", "Q4_1"])
def test_many_choices_are_multiplied_with_expanded_matrices(device, dtype, form, monkeypatch):
    gate_up, down = stack(form, 64, 32, 1), stack(form, 32, 32, 9)
    x, (weights, ids) = randn(9, 32, seed=3).to(dtype), routed(9)
    packed = [pack(weight.to(device), dtype) for weight in (gate_up, down)]
    monkeypatch.setattr(quantized_experts, "EXPANDED", 5)
    monkeypatch.setattr(quantized_experts, "product", None)
    found = experts(x.to(device), *packed, weights.to(device), ids.to(device))
    close(found, reference(x, gate_up, down, weights, ids), TOLERANCE[dtype])


def test_weights_that_round_their_input_are_never_expanded(device, monkeypatch):
    gate_up, down = stack("w8a8", 64, 96, 1), stack("w8a8", 96, 32, 9)
    x, (weights, ids) = randn(9, 96, seed=3), routed(9)
    packed = [pack(weight.to(device), x.dtype) for weight in (gate_up, down)]
    monkeypatch.setattr(quantized_experts, "EXPANDED", 5)
    found = experts(x.to(device), *packed, weights.to(device), ids.to(device))
    close(found, reference(x, gate_up, down, weights, ids), 2e-2)


def test_one_order_is_one_cut_whatever_the_number_of_tokens(device, monkeypatch):
    cuts, choose_tile = set(), choose
    packed = [pack(w.to(device), torch.float16) for w in (stack("int8", 64, 32, 1), stack("int8", 32, 32, 9))]

    def noted(choices: int, *args: int, **options: bool) -> Tile:
        cuts.add((choices, tile := choose_tile(choices, *args, **options)))
        return tile

    monkeypatch.setattr(quantized_experts, "choose", noted)
    monkeypatch.setattr(quantized_experts, "EXPANDED", 1)
    x, (weights, ids) = randn(20, 32, seed=3).half().to(device), (t.to(device) for t in routed(20))
    ops = DeterministicOps()
    together = ops.experts(x, *packed, weights, ids)
    for rows in ([3], [19, 0, 7]):
        assert torch.equal(ops.experts(x[rows], *packed, weights[rows], ids[rows]), together[rows])
    assert len(cuts) == 1


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("choices", [1, 8, 8 * 9, 10**6])
def test_tiles_fit_into_the_smallest_gpus(choices, gated):
    tile: Tile = choose(choices, 8, 2, gated=gated)
    words = quantized_experts.pack(random_weight("int4-zeros", 64, 128), torch.float16).words
    one_stage = quantized_experts._stage_bytes(tile, torch.empty(1, 128, dtype=torch.float16), words, 1 + gated)
    assert one_stage <= 99 << 10
