"""Adapters of mixed batches against float64, token by token."""

from __future__ import annotations

import pytest
import torch

from helpers_lora_stacks import expected, make_stack, mixture, randn, run
from octavo.kernels.reference.ops import ReferenceOps
from octavo.kernels.triton import lora
from octavo.kernels.triton.deterministic import DeterministicOps
from octavo.kernels.triton.ops import TritonOps

TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.5e-2}
GPU = [
    (1, 4096, (4096, 1024, 1024), 64, 8),
    (300, 2048, (5632, 5632), 16, 4),
    (3000, 1024, (1024,), 256, 2),
    (17, 4097, (999, 33), 130, 3),
]
SHAPES = [
    (1, 40, (24,), 16, 1),
    (7, 33, (20, 7, 9), 3, 3),
    (40, 600, (70, 65), 8, 2),
    (35, 16, (130,), 70, 4),
    *(pytest.param(*s, marks=pytest.mark.gpu) for s in GPU),
]


@pytest.mark.parametrize(("tokens", "inputs", "parts", "rank", "count"), SHAPES)
def test_each_token_with_its_adapter(device, dtype, tokens, inputs, parts, rank, count, monkeypatch):
    stack = make_stack(inputs, parts, rank, count, dtype, device)
    x, y = randn(tokens, inputs, seed=1).to(device, dtype), randn(tokens, sum(parts), seed=2).to(device, dtype)
    mixed, alike = mixture(tokens, count), [count] * tokens
    ways = [(TritonOps(), mixed, lora.MANY_TOKENS), (TritonOps(), alike, 1), (DeterministicOps(), mixed, 1)]
    for ops, numbers, many in ways if device == "cuda" else [*ways, (ReferenceOps(), mixed, 1)]:
        monkeypatch.setattr(lora, "MANY_TOKENS", many)  # 1: tall tiles
        found, wanted = run(ops, y, x, stack, numbers).cpu(), expected(y, x, stack, numbers)
        assert found.dtype is dtype
        assert (found.double() - wanted).norm() <= TOLERANCE[dtype] * wanted.norm()


@pytest.mark.parametrize("numbers", [[0] * 5, [2] * 5])
def test_what_has_no_adapter_is_left_as_it_is(device, dtype, numbers):
    """Neither tokens without, nor adapters without anything for the layer change a bit."""
    stack = make_stack(40, (24,), 4, 2, dtype, device)
    stack.write(2, None)
    x, y = randn(5, 40, seed=1).to(device, dtype), randn(5, 24, seed=2).to(device, dtype)
    for ops in (TritonOps(), ReferenceOps()):
        assert torch.equal(run(ops, y, x, stack, numbers), y)


def test_a_tokens_bits_do_not_depend_on_the_others(device, dtype, monkeypatch):
    monkeypatch.setattr(lora, "MANY_TOKENS", 30)  # which the deterministic backend must not heed
    stack = make_stack(600, (70, 20), 8, 3, dtype, device)
    x, y, numbers = randn(40, 600, seed=1).to(device, dtype), randn(40, 90, seed=2).to(device, dtype), mixture(40, 3)
    together = run(DeterministicOps(), y, x, stack, numbers)
    for some in ([3], [39, 0, 7], list(range(20))):
        alone = run(DeterministicOps(), y[some], x[some], stack, [numbers[i] for i in some])
        assert torch.equal(alone, together[some])


def test_no_tokens(device, dtype):
    stack = make_stack(16, (8,), 4, 2, dtype, device)
    x, y = randn(0, 16, seed=1).to(device, dtype), randn(0, 8, seed=2).to(device, dtype)
    assert run(TritonOps(), y, x, stack, []).shape == (0, 8)


def test_a_plan_of_other_ops_is_refused(device):
    stack = make_stack(16, (8,), 4, 2, torch.float32, device)
    x, numbers = torch.ones(1, 16, device=device), torch.ones(1, dtype=torch.int32, device=device)
    for ours, others in ((TritonOps(), ReferenceOps()), (ReferenceOps(), TritonOps())):
        with pytest.raises(TypeError, match="not from plan_lora of the same ops"):
            ours.lora_add(torch.ones(1, 8, device=device), x, stack, others.plan_lora(numbers, 2))
