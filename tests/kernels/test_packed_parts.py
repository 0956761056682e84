"""Cutting and stacking packed weights is exact: the same numbers as cutting and stacking what they stand for."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from helpers_packed import EVERY_FORM, random_blocks, random_fp8, random_int4, random_int8, stands_for
from octavo.errors import ModelError
from octavo.kernels.packed import StackedWeight
from octavo.kernels.packed_parts import stack_rows, take_columns, take_rows
from octavo.kernels.reference.quantized import dequantize, linear, round_fp8


def numbers(weight):
    return dequantize(weight, torch.float32).numpy()


@pytest.mark.parametrize("form", EVERY_FORM)
@pytest.mark.parametrize("rows", [slice(None), slice(4, 8), slice(0, 4), slice(8, None), slice(4, 4)], ids=str)
def test_rows(form, rows):
    weight = EVERY_FORM[form]
    np.testing.assert_array_equal(numbers(take_rows(weight, rows)), numbers(weight)[rows])


@pytest.mark.parametrize("form", [form for form in EVERY_FORM if form != "int4-order"])
@pytest.mark.parametrize("half", [0, 1])
def test_columns(form, half):
    weight = EVERY_FORM[form]
    border = {"fp8-blocks": 20, "int8-groups": 16, "int4": 16, "int4-float32": 16, "int4-bfloat16": 16}.get(form, 32)
    columns = slice(border, None) if half else slice(0, border)
    np.testing.assert_array_equal(numbers(take_columns(weight, columns)), numbers(weight)[:, columns])


def test_rows_are_views():
    weight = random_blocks(9, 64, "Q4_1")
    assert take_rows(weight, slice(2, 5)).blocks.data_ptr() == weight.blocks[2].data_ptr()


@pytest.mark.parametrize("weight", [random_int8(4, 48, 16), random_int4(4, 48, 16), random_fp8(4, 48, (1, 16))])
def test_a_cut_through_a_group_is_refused(weight):
    with pytest.raises(ModelError, match=r"cannot be cut at 8:48 of 48.*multiples of 16"):
        take_columns(weight, slice(8, 48))
    with pytest.raises(ModelError, match="cannot be cut"):
        take_columns(weight, slice(0, 24))


def test_a_cut_through_rows_that_share_a_scale_is_refused():
    with pytest.raises(ModelError, match="multiples of 4"):
        take_rows(random_fp8(9, 48, (4, 16)), slice(2, 9))


@pytest.mark.parametrize("rows", [slice(None), slice(0, 64), slice(8, 40)], ids=str)
def test_fewer_rows_than_a_block_round_x_as_the_whole_does(rows):
    """x is rounded 128 inputs at a time, however few outputs there are."""
    weight = random_fp8(64, 384, (128, 128), quantizes_input=True)
    x = torch.randn(3, 384, generator=torch.Generator().manual_seed(1)) * torch.tensor(
        [0.01, 1, 100]
    ).repeat_interleave(128)
    part = take_rows(weight, rows)
    assert torch.equal(round_fp8(x, part), round_fp8(x, weight))
    assert not torch.equal(round_fp8(x, weight), round_fp8(x, replace(weight, block=(64, 128))))
    torch.testing.assert_close(linear(x, part), linear(x, weight)[:, rows], rtol=1e-5, atol=1e-3)


def test_a_cut_through_a_byte_is_refused():
    """One scale for all of a row allows cuts anywhere, but two int4 numbers are a byte."""
    weight = random_int4(4, 48, 48)
    for columns in (slice(1, 48), slice(0, 7)):
        with pytest.raises(ModelError, match="multiples of 2"):
            take_columns(weight, columns)


def test_act_order_is_not_cut():
    assert take_columns(EVERY_FORM["int4-order"], slice(0, 48)) is EVERY_FORM["int4-order"]
    with pytest.raises(ModelError, match="act-order"):
        take_columns(EVERY_FORM["int4-order"], slice(0, 32))


ALIKE = {
    "int8": [random_int8(3, 48, 16, seed=1), random_int8(5, 48, 16, seed=2)],
    "int4": [random_int4(3, 48, 16, seed=1), random_int4(5, 48, 16, seed=2)],
    "Q8_0": [random_blocks(3, 64, "Q8_0", seed=1), random_blocks(5, 64, "Q8_0", seed=2)],
    "fp8-tensor": [random_fp8(3, 48, (3, 48), seed=1), random_fp8(5, 48, (5, 48), seed=2)],
    "fp8-channel": [random_fp8(3, 48, (1, 48), seed=1), random_fp8(5, 48, (1, 48), seed=2)],
    "fp8-blocks": [random_fp8(8, 48, (4, 16), seed=1), random_fp8(5, 48, (4, 16), seed=2)],
    "plain": [torch.randn(3, 48), torch.randn(5, 48)],
}
DIFFERENT = {
    "groups": [random_int8(3, 48, 16), random_int8(5, 48, 48)],
    "inputs": [random_int8(3, 48, 48), random_int8(5, 48, 48, quantizes_input=True)],
    "zeros": [random_int4(3, 48, 16), random_int4(5, 48, 16, zeros=False)],
    "orders": [random_int4(3, 48, 16, order=True), random_int4(5, 48, 16, order=True)],
    "kinds": [random_blocks(3, 64, "Q8_0"), random_blocks(5, 64, "Q4_0")],
    "part of a block": [random_fp8(6, 48, (4, 16)), random_fp8(5, 48, (4, 16))],
    "forms": [random_int8(3, 64, 64), random_blocks(5, 64, "Q4_0"), torch.randn(2, 64)],
}


@pytest.mark.parametrize("name", ALIKE)
def test_alike_become_one(name):
    joined = stack_rows(ALIKE[name])
    assert type(joined) is type(ALIKE[name][0])
    np.testing.assert_allclose(numbers(joined), np.concatenate([stands_for(part) for part in ALIKE[name]]), rtol=3e-7)


@pytest.mark.parametrize("name", DIFFERENT)
def test_different_are_stacked(name):
    stacked = stack_rows(DIFFERENT[name])
    assert isinstance(stacked, StackedWeight)
    np.testing.assert_array_equal(numbers(stacked), np.concatenate([numbers(part) for part in DIFFERENT[name]]))
    np.testing.assert_array_equal(numbers(take_rows(stacked, slice(4, 6))), numbers(stacked)[4:6])


def test_one_is_itself():
    weight = random_int8(3, 48, 16)
    assert stack_rows([weight]) is weight
