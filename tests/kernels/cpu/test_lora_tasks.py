"""Adapters of decoding tokens in C against float64: ranks, parts, mixtures, numbers of threads."""

from __future__ import annotations

import pytest
import torch

from helpers_lora_stacks import expected, make_stack, mixture, randn, run
from octavo.kernels.cpu import build, lora
from octavo.kernels.cpu.lora import CpuLora
from octavo.kernels.cpu.ops import CpuOps
from octavo.kernels.lora import LoraSizes, LoraStack
from octavo.kernels.reference.ops import ReferenceOps

pytestmark = pytest.mark.skipif(build.load_library() is None, reason="no C compiler")

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
SHAPES = [
    (1, 16, (1,), 1, 1),
    (3, 48, (20, 7, 9), 3, 3),
    (8, 576, (576, 192, 192), 16, 4),
    (5, 64, (70, 65), 8, 2),
    (2, 32, (33,), 40, 2),
    (63, 32, (16, 48), 17, 5),
    (4, 64, (96,), 256, 2),
]


@pytest.fixture
def ops() -> CpuOps:
    return CpuOps()


@DTYPES
@pytest.mark.parametrize("threads", [1, 2, 4])
@pytest.mark.parametrize(("tokens", "inputs", "parts", "rank", "count"), SHAPES)
def test_each_token_with_its_adapter(ops, dtype, threads, tokens, inputs, parts, rank, count, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    stack = make_stack(inputs, parts, rank, count, dtype, "cpu")
    x, y = randn(tokens, inputs, seed=1).to(dtype), randn(tokens, sum(parts), seed=2).to(dtype)
    assert lora.fits(y, x, stack)
    for numbers in (mixture(tokens, count), [count] * tokens, [1] + [0] * (tokens - 1)):
        found, wanted = run(ops, y, x, stack, numbers), expected(y, x, stack, numbers)
        assert found.dtype is dtype
        assert (found.double() - wanted).norm() <= TOLERANCE[dtype] * wanted.norm()


@DTYPES
def test_what_has_no_adapter_is_left_as_it_is(ops, dtype):
    """Neither tokens without, nor parts for which an adapter has nothing, change a bit; NaN does not spread."""
    stack = make_stack(64, (32, 16, 48), 8, 3, dtype, "cpu")
    assert stack.ranks.tolist()[1] == [6, 6, 0]
    x, y = randn(4, 64, seed=1).to(dtype), randn(4, 96, seed=2).to(dtype)
    x[0] = torch.nan
    found = run(ops, y, x, stack, [0, 2, 0, 3])
    assert torch.equal(found[0], y[0])
    assert torch.equal(found[2], y[2])
    assert torch.equal(found[1, 48:], y[1, 48:])
    assert found.isfinite().all()
    assert ops.plan_lora(torch.zeros(4, dtype=torch.int64), 3) is None


@DTYPES
def test_an_adapter_that_is_replaced_is_forgotten(ops, dtype):
    stack = make_stack(64, (32,), 8, 2, dtype, "cpu")
    x, y = randn(3, 64, seed=1).to(dtype), randn(3, 32, seed=2).to(dtype)
    stack.write(2, None)
    assert torch.equal(run(ops, y, x, stack, [2, 2, 2]), y)


@pytest.mark.parametrize(
    ("tokens", "inputs", "dtype"),
    [(lora.MANY_TOKENS, 64, torch.bfloat16), (3, 40, torch.bfloat16), (3, 64, torch.float16)],
)
def test_what_does_not_fit_goes_to_the_reference(ops, tokens, inputs, dtype):
    stack = make_stack(inputs, (32, 20), 8, 3, dtype, "cpu")
    x, y = randn(tokens, inputs, seed=1).to(dtype), randn(tokens, 52, seed=2).to(dtype)
    assert not lora.fits(y, x, stack)
    numbers = mixture(tokens, 3)
    assert torch.equal(run(ops, y, x, stack, numbers), run(ReferenceOps(), y, x, stack, numbers))


def test_a_plan_follows_another():
    first, second = CpuLora(torch.tensor([1, 0, 2])), CpuLora(torch.tensor([0, 2, 1]))
    at = first.numbers.data_ptr()
    first.follow(second)
    assert first.numbers.tolist() == [0, 2, 1]
    assert first.numbers.data_ptr() == at


def test_ends_of_parts():
    stack = LoraStack.empty(LoraSizes(2, 4), 16, (3, 5, 8), torch.float32, torch.device("cpu"))
    assert stack.ends.tolist() == [3, 8, 16]
    assert not stack.ranks.any()
