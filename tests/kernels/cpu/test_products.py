"""The C products against float64, compiled for several sets of instructions."""

from __future__ import annotations

import ctypes
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from helpers_native import INSTRUCTION_SETS, library_for
from octavo.ggml.block_types import BLOCK_TYPES
from octavo.kernels.cpu import build
from octavo.kernels.cpu.ops import CpuOps
from octavo.kernels.cpu.panels import BLOCK_FORMS, Panels
from octavo.kernels.cpu.products import Normalization, Products, fits_gate, fits_norm
from octavo.kernels.cpu.tasks import Tasks
from octavo.kernels.packed import BlockWeight, Fp8Weight, Int4Weight, Int8Weight, Operand, StackedWeight
from octavo.kernels.reference import quantized as reference
from octavo.quantization.pack import quantize

pytestmark = pytest.mark.skipif(build.load_library() is None, reason="no C compiler")

SETS = (*INSTRUCTION_SETS, "portable")
ROWS = (0, 1, 2, 3, 4, 5, 7, 8, 12, 13, 21, 38)
PLAIN = (torch.bfloat16, torch.float32)
SOURCES = ("pack.c", "product.c", "multiply_integers.c", "multiply_floats.c", "team.c")
SCHEMES = ("int8", "int8-channel", "int8-g128", "int8-g32", "int4", "int4-g32", "fp8", "fp8-tensor", "fp8-block")
NUMBERS_AT = {"Q4_K": (0, 2), "Q5_K": (0, 2), "Q4_1": (0, 2), "Q5_1": (0, 2), "Q6_K": (208,)}
FP8 = torch.float8_e4m3fn
ONE = torch.ones(1, 1)


class Team(Tasks):
    """Of so many members, however many cores there are."""

    def __init__(self, library: ctypes.CDLL, members: int) -> None:
        super().__init__(library)
        self.threads = members


@pytest.fixture(scope="session", params=SETS)
def products(request, tmp_path_factory) -> Products:
    """The kernels compiled for the processor itself, or as for an older one."""
    library = library_for(request.param, tmp_path_factory.mktemp("native"), SOURCES)
    return Products(library, Team(library, 2 if request.param == "native" else 1))


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def blocks(kind: str, n: int, k: int, size: float = 0.01) -> BlockWeight:
    """Random bytes; the float16 numbers in them of about ``size``."""
    block = BLOCK_TYPES[kind]
    random = np.random.default_rng(n * k)
    data = random.integers(0, 256, (n, k // block.block_size, block.type_size), dtype=np.uint8)
    for at in NUMBERS_AT.get(kind, (0,)):
        numbers = (random.uniform(-1, 1, (n, k // block.block_size, 1)) * size).astype(np.float16)
        data[:, :, at : at + 2] = numbers.view(np.uint8)
    rows = torch.from_numpy(data.reshape(n, -1))
    return BlockWeight(kind=kind, blocks=rows, block_size=block.block_size, type_size=block.type_size)


def matrix_of(weight: Operand) -> Tensor:
    plain = weight if isinstance(weight, Tensor) else reference.dequantize(weight, torch.float32)
    return plain.double()


def rounded(x: Tensor, unit: int) -> Tensor:
    """Each ``unit`` numbers of a row as whole multiples of their largest magnitude / 127."""
    inputs = x.shape[1]
    padded = torch.nn.functional.pad(x.float(), (0, -inputs % unit)).unflatten(1, (-1, unit))
    scales = padded.abs().amax(-1, keepdim=True) / 127
    multiples = torch.where(scales == 0, 0, padded / scales).round()
    return (multiples.double() * scales.double()).flatten(1)[:, :inputs]


def seen(x: Tensor, panels: Panels) -> Tensor:
    """x as the product should see it."""
    whole, integers = panels.form.unit > 1, panels.form.kind <= 8
    if not integers or not (x.dtype is torch.bfloat16 or whole):
        return x.double()
    order = torch.arange(x.shape[1]) if panels.order is None else panels.order.long()
    found = rounded(x[:, order], x.shape[1] if whole else 16 if panels.form.kind == 6 else 32)
    return found[:, order.argsort()]


def close(found: Tensor, x: Tensor, weight: Operand, panels: Panels, bias: Tensor | None = None) -> None:
    """Within float32's rounding of the sum's terms, then within one rounding to the result's dtype."""
    matrix, x = matrix_of(weight), seen(x, panels)
    exact = x @ matrix.T + (0 if bias is None else bias.double())
    error = 4e-6 * (x.abs() @ matrix.abs().T) + 1e-30
    if found.dtype is torch.bfloat16:
        error = error + exact.abs() * 2**-8
    assert found.shape == exact.shape
    assert ((found.double() - exact).abs() <= error).all()


def check(products: Products, weight: Operand, rows=ROWS) -> None:
    panels = products.pack(weight)
    assert isinstance(panels, Panels)
    assert panels.shape == tuple(weight.shape)
    for count in rows:
        for dtype in PLAIN:
            x = randn(count, weight.shape[1], seed=count).to(dtype)
            close(products.linear(x, panels, None), x, weight, panels)


@pytest.mark.parametrize("dtype", PLAIN, ids=str)
@pytest.mark.parametrize(("n", "k"), [(37, 256), (1, 1), (5, 3), (16, 33), (257, 576), (48, 1056)])
def test_plain_weights(products, dtype, n, k):
    check(products, (randn(n, k) * 0.02).to(dtype))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_schemes(products, scheme):
    check(products, quantize(randn(37, 256) * 0.02, scheme))


@pytest.mark.parametrize("scheme", ["int8", "int4-g32"])
def test_what_a_matrix_remembers_does_not_grow_with_the_row_counts(products, scheme):
    weight = quantize(randn(37, 256) * 0.02, scheme)
    panels = products.pack(weight)
    for count in reversed(range(1, 131, 3)):
        x = randn(count, 256, seed=count)
        close(products.linear(x, panels, None), x, weight, panels)
    assert len(panels.scratch) <= 9


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_scratch_for_more_rows_is_enough_for_fewer(products, dtype):
    for weight in (quantize(randn(37, 256), "int4-g32"), quantize(randn(37, 264), "int8"), blocks("Q4_K", 37, 256)):
        panels, bf16 = products.pack(weight), dtype is torch.bfloat16
        for parts, members in ((1, 1), (1, 2), (3, 2), (1, 64)):
            form = ctypes.addressof(panels.form)
            sizes = [products._scratch(form, rows, bf16, parts, members) for rows in range(1, 300)]
            assert sizes == sorted(sizes)


@pytest.mark.parametrize("kind", BLOCK_FORMS)
def test_block_types(products, kind):
    check(products, blocks(kind, 37, 256))


@pytest.mark.parametrize(("n", "k"), [(1, 32), (5, 96), (16, 64), (257, 160), (48, 1056)])
def test_shapes(products, n, k):
    """Inputs that are no multiple of a chunk or a group, outputs that fill no panel."""
    check(products, quantize(randn(n, k), "int8"), rows=(1, 3, 14))
    check(products, quantize(randn(n, k), "int4-g32"), rows=(1, 3, 14))
    check(products, quantize(randn(n, k), "fp8-block"), rows=(1, 3, 14))
    if k % 32 == 0:
        check(products, blocks("Q5_1", n, k), rows=(1, 3, 14))


def test_inputs_that_fill_no_tile(products):
    weight = Int8Weight(values=torch.arange(-60, 60, dtype=torch.int8).view(8, 15), scales=torch.rand(8, 1))
    check(products, weight, rows=(1, 2, 13))
    values = torch.randint(0, 256, (4, 9), dtype=torch.uint8)
    check(products, Int4Weight(values=values, scales=torch.rand(4, 1)), rows=(1, 2, 13))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("ordered", [False, True])
def test_int4(products, dtype, zeros, ordered):
    """Zeros that are not whole, scales of any dtype, columns of x in another order."""
    n, k, group = 20, 192, 64
    weight = Int4Weight(
        values=torch.randint(0, 256, (n, k // 2), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)),
        scales=(randn(n, k // group, seed=2) * 0.1).to(dtype),
        zeros=(randn(n, k // group, seed=3) * 3 + 8).to(dtype) if zeros else None,
        order=torch.randperm(k, generator=torch.Generator().manual_seed(4)).int() if ordered else None,
    )
    check(products, weight, rows=(1, 2, 8, 13, 40))


def test_every_code(products):
    """All int8 numbers, -128 too, and all of float8: what they give with unit vectors are the numbers."""
    codes = torch.arange(-128, 128, dtype=torch.int8).view(16, 16)
    float8 = codes.clone()
    float8[[7, 15], 15] = 0  # its two NaN
    for weight, expected in (
        (Int8Weight(values=codes, scales=torch.ones(16, 1)), codes.float()),
        (Fp8Weight(values=float8.view(FP8), scales=torch.ones(1, 1), block=(16, 16)), float8.view(FP8).float()),
    ):
        found = products.linear(torch.eye(16), products.pack(weight), None)
        assert torch.equal(found.T, expected)


def test_a_nan_of_float8_is_one(products):
    weight = Fp8Weight(values=torch.tensor([[127], [-1], [1]], dtype=torch.int8).view(FP8), scales=ONE, block=(3, 1))
    found = products.linear(torch.ones(1, 1), products.pack(weight), None)
    assert found.isnan().tolist() == [[True, True, False]]


@pytest.mark.parametrize("count", [1, 4, 14])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_what_is_not_finite_stays_in_its_row(products, count, value, dtype):
    plain = (randn(20, 64), randn(20, 64).bfloat16())
    for weight in (*plain, blocks("Q4_1", 20, 64), *(quantize(randn(20, 64), name) for name in ("int8", "w8a8"))):
        x = randn(count, 64).to(dtype)
        panels = products.pack(weight)
        clean = products.linear(x, panels, None)
        x[-1, 5] = value
        found = products.linear(x, panels, None)
        assert torch.equal(found[:-1], clean[:-1])
        assert not found[-1].isfinite().any()


@pytest.mark.parametrize("size", [1e-7, 6.5e4])
@pytest.mark.parametrize("kind", ["Q4_0", "Q8_0", "Q4_1"])
def test_extreme_scales(products, kind, size):
    """Subnormal and the largest float16 numbers."""
    check(products, blocks(kind, 19, 64, size), rows=(1, 8, 20))


def test_extreme_scales_of_int8(products):
    weight = quantize(randn(18, 64), "int8-g32")
    for factor in (1e-30, 1e30):
        check(products, replace(weight, scales=weight.scales.float() * factor), rows=(1, 8, 20))
    for half in (1e-7, 6.5e4):
        check(products, replace(weight, scales=torch.full_like(weight.scales, half)), rows=(1, 8, 20))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("scheme", ["none", "int8", "w8a8", "int4-g32", "fp8-w8a8"])
def test_bias_and_layout(products, dtype, scheme):
    """A bias; x of three dimensions, and one whose rows are not neighbours; float16."""
    weight, bias = randn(21, 64), randn(21, seed=1)
    weight = weight.bfloat16() if scheme == "none" else quantize(weight, scheme)
    panels = products.pack(weight)
    x = randn(2, 3, 128, seed=2).to(dtype)[..., ::2]
    for own in (x, x[0, :1], x.half()):
        found = products.linear(own, panels, bias.to(own.dtype))
        whole = weight.to(own.dtype) if scheme == "none" else weight
        expected = reference.linear(own, whole, bias.to(own.dtype))
        assert found.dtype is own.dtype
        rounds = own.dtype is torch.bfloat16 and scheme in ("int8", "int4-g32")
        atol = 0.4 if rounds else 1e-2  # a sum of 64 products of x, each rounded by up to 1/100
        torch.testing.assert_close(found, expected, rtol=2**-7 if own.itemsize == 2 else 1e-5, atol=atol)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize(("n", "k"), [(1, 16), (37, 256), (48, 100), (16, 4100)])
def test_rounded_products(products, dtype, n, k):
    weight = quantize(randn(n, k), "w8a8")
    weight.values[0, 0] = -128
    panels = products.pack(weight)
    for count in ROWS:
        x = randn(count, k, seed=count).to(dtype)
        if count > 1:
            x[1] = 0
        found, expected = products.linear(x, panels, None), reference.linear(x, weight)
        torch.testing.assert_close(found, expected, rtol=2**-7 if dtype is torch.bfloat16 else 1e-6, atol=0)


def test_half_way_numbers_are_rounded_to_even(products):
    weight = Int8Weight(values=torch.eye(16, dtype=torch.int8), scales=torch.ones(16, 1), quantizes_input=True)
    x = torch.tensor([[127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 126.5, -126.5, 63.5, 0.4999, -3, 1e-9, 0, 5, 6]])
    assert torch.equal(products.linear(x, products.pack(weight), None), x.round())


@pytest.mark.parametrize("members", [1, 2, 3, 7])
def test_any_number_of_members(members):
    """They share panels, or rows and panels, of which there are more or fewer than members."""
    library = build.load_library()
    own, one = Products(library, Team(library, members)), Products(library, Team(library, 1))
    for weight in (blocks("Q4_1", 50, 256), quantize(randn(20, 512), "w8a8"), randn(100, 48).bfloat16()):
        panels = own.pack(weight)
        assert torch.equal(panels.data, one.pack(weight).data)
        for count in (1, 3, 40):
            x = randn(count, weight.shape[1]).bfloat16()
            assert torch.equal(own.linear(x, panels, None), one.linear(x, panels, None))


def test_what_memory_held_before_does_not_matter(products):
    for weight in (blocks("Q4_1", 37, 256), blocks("Q6_K", 37, 256), randn(37, 100), randn(37, 99).bfloat16()):
        panels = products.pack(weight)
        for count in (1, 5, 14, 33):
            x = randn(count, weight.shape[1]).to(weight.dtype if isinstance(weight, Tensor) else torch.bfloat16)
            outs = []
            for value in (0, 255):
                products._memory.take(1).fill_(value)  # 255s are NaN
                out = torch.full((count, 40), torch.nan, dtype=x.dtype)
                products.multiply(x, panels, None, out[:, :37])
                outs.append(out)
            assert torch.equal(outs[0][:, :37], outs[1][:, :37])
            assert outs[1][:, 37:].isnan().all()


def test_each_part_takes_up_what_the_one_before_lost(products):
    weight, x = quantize(randn(40, 256), "int8"), randn(9, 256)
    panels, exact, errors = products.pack(weight), x.double() @ matrix_of(weight).T, []
    for parts in (1, 2, 3):
        out = torch.empty(9, 40)
        products.multiply(x, panels, None, out, parts=parts)
        errors.append(((out.double() - exact).norm() / exact.norm()).item())
    assert errors[0] < 1e-2
    assert errors[1] < errors[0] / 100
    assert errors[2] < 1e-6


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("dtype", PLAIN, ids=str)
@pytest.mark.parametrize("kind", ["none", "Q4_1", "int8"])
@pytest.mark.parametrize(("n", "k"), [(64, 288), (2 * 16 * 37, 64)])
def test_norm_and_gate(products, kind, dtype, gated, n, k):
    """The residual's sum is written once and to the last bit; the product is that of the normalized sum.

    Each member has several runs of panels in the larger one, and the last is shorter.
    """
    plain = {"none": (randn(n, k) * 0.05).to(dtype), "Q4_1": blocks("Q4_1", n, k)}
    weight = plain[kind] if kind in plain else quantize(randn(n, k) * 0.05, kind)
    panels, gamma, bias = products.pack(weight), 1 + 0.1 * randn(k, seed=8).to(dtype), randn(n, seed=9).to(dtype)
    for count in (1, 2, 4, 12, 13, 40):
        x, residual = randn(count, k, seed=count).to(dtype), randn(count, k, seed=count + 1)
        for start in (residual, None):
            total = torch.full((count, k), torch.nan)
            norm = Normalization(gamma, start, total, 1e-5)
            assert fits_norm(x, start, gamma, panels, bias)
            found = products.after_norm(x, norm, panels, bias, gated=gated)
            summed = x.float() + (0 if start is None else start)
            assert torch.equal(total, summed)
            normed = summed / (summed.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * gamma.float()
            expected = normed.double() @ matrix_of(weight).T + bias.double()
            if gated:
                expected = torch.nn.functional.silu(expected[:, : n // 2]) * expected[:, n // 2 :]
            error = (found.double() - expected).norm() / expected.norm()
            assert error < (1e-5 if dtype is torch.float32 else 5e-3 if kind == "none" else 2e-2)


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("kind", ["none", "Q4_1"])
def test_runs_of_panels(products, kind, gated):
    """So many panels, 37 in each half, that a member of a team of two goes through several runs and a part of one."""
    n, k = 2 * 16 * 37, 64
    weight = randn(n, k) * 0.05 if kind == "none" else blocks(kind, n, k)
    panels, gamma = products.pack(weight), torch.ones(k)
    for count in (1, 12, 13):
        x = randn(count, k, seed=count)
        norm = Normalization(gamma, None, torch.empty(count, k), 1e-5)
        found = products.after_norm(x, norm, panels, None, gated=gated)
        expected = (x / (x.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()).double() @ matrix_of(weight).T
        if gated:
            expected = torch.nn.functional.silu(expected[:, : n // 2]) * expected[:, n // 2 :]
        assert (found.double() - expected).abs().max() < (1e-4 if kind == "none" else 0.2) * expected.std()


def test_what_a_norm_or_a_gate_cannot_go_with(products):
    x, gamma, odd = randn(2, 40).bfloat16(), torch.ones(40).bfloat16(), products.pack(randn(48, 40).bfloat16())
    assert not fits_norm(x, None, gamma, odd, None)  # 40 inputs are no multiple of 16
    x, gamma = randn(2, 64).bfloat16(), torch.ones(64).bfloat16()
    panels = products.pack(randn(48, 64).bfloat16())
    assert fits_norm(x, None, gamma, panels, None)
    assert not fits_norm(x, None, gamma.float(), panels, None)
    assert not fits_norm(x[:, ::2], None, gamma[::2], panels, None)
    assert not fits_norm(x, randn(2, 64).bfloat16(), gamma, panels, None)
    assert not fits_norm(x, None, gamma, randn(48, 64), None)
    assert not fits_gate(panels)  # 24 gates


def test_an_empty_matrix_stays_as_it_is(products):
    weight = Int8Weight(values=torch.empty(0, 16, dtype=torch.int8), scales=torch.empty(0, 1))
    assert products.pack(weight) is weight


def test_groups_that_are_no_tiles_stay_as_they_are(products):
    weight = Int8Weight(values=torch.ones(4, 24, dtype=torch.int8), scales=torch.ones(4, 3))
    assert products.pack(weight) is weight


def test_the_backend_takes_every_form():
    """Also those that it has no panels for, and stacks of any of them."""
    ops = CpuOps()
    odd = Int8Weight(values=torch.ones(4, 64, dtype=torch.int8), scales=torch.ones(4, 8))
    parts = (randn(7, 64).bfloat16() * 0.1, quantize(randn(5, 64) * 0.1, "int4-g32"), odd, blocks("Q5_0", 3, 64))
    stack = StackedWeight(parts=parts)
    x, bias = randn(3, 64).bfloat16(), randn(19, seed=1).bfloat16()
    for weight in (*parts, stack):
        own = bias[: weight.shape[0]]
        found = ops.linear(x, ops.pack_linear(weight), own)
        torch.testing.assert_close(found, reference.linear(x, weight, own), rtol=2**-6, atol=0.1)


def test_the_backend_works_without_a_compiler(monkeypatch):
    monkeypatch.setattr("octavo.kernels.cpu.ops.load_library", lambda: None)
    ops, weight, x = CpuOps(), blocks("Q4_K", 5, 256), randn(2, 256)
    assert not ops.multiplies("Q4_K")
    assert ops.pack_linear(weight) is weight
    torch.testing.assert_close(ops.linear(x, weight), reference.linear(x, weight))


def test_what_is_packed_takes_little_more_memory():
    ops = CpuOps()
    for weight in (quantize(randn(64, 256), "int8"), *(blocks(kind, 64, 512) for kind in BLOCK_FORMS)):
        assert ops.pack_linear(weight).nbytes <= 1.03 * weight.nbytes


@pytest.mark.parametrize("form", ["plain", "int8", "fp8", "fp8-w8a8", "Q8_0"])
def test_logits_are_the_sums_in_float32(products, form):
    weight = randn(50, 96).bfloat16()
    operand = weight if form == "plain" else blocks(form, 50, 96) if form == "Q8_0" else quantize(weight, form)
    panels = products.pack(operand)
    for rows in (1, 9):
        x = randn(rows, 96, seed=rows).bfloat16()
        logits, short = products.logits(x, panels), products.linear(x, panels, None)
        assert logits.dtype is torch.float32
        assert torch.equal(logits.bfloat16(), short)
        assert not torch.equal(logits, short.float())
        close(logits, reference.round_fp8(x, operand) if form == "fp8-w8a8" else x, operand, panels)
