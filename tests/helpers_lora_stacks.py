"""Stacks of random LoRA adapters, and what they add to a layer, in float64 and token by token."""

from __future__ import annotations

import torch
from torch import Tensor

from octavo.kernels.lora import LoraLayer, LoraSizes, LoraStack
from octavo.kernels.ops import Ops


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make_stack(
    inputs: int, parts: tuple[int, ...], rank: int, count: int, dtype: torch.dtype, device: str
) -> LoraStack:
    """Adapters of different ranks, some of which have nothing for some parts."""
    stack = LoraStack.empty(LoraSizes(count, rank), inputs, parts, dtype, torch.device(device))
    for s in range(count):
        layer = LoraLayer.like(stack)
        ranks = tuple(0 if (s + part) % 4 == 3 else max(1, rank - s * 2) for part in range(len(parts)))
        row = 0
        for part, (size, own) in enumerate(zip(parts, ranks, strict=True)):
            if own:
                layer.a[part * rank : part * rank + own] = randn(own, inputs, seed=s * 10 + part) / inputs**0.5
                layer.b[row : row + size, :own] = randn(size, own, seed=s * 10 + part + 100) / own**0.5
                layer.scales[part] = 0.5 + s
            row += size
        stack.write(s + 1, LoraLayer(layer.a, layer.b, layer.scales, ranks))
    return stack


def expected(y: Tensor, x: Tensor, stack: LoraStack, numbers: list[int]) -> Tensor:
    out = y.double().cpu()
    for t, number in enumerate(numbers):
        row = 0
        for part, size in enumerate(stack.parts if number else ()):
            a, b = stack.a[number - 1].double().cpu(), stack.b[number - 1].double().cpu()
            shrunk = a[part * stack.max_rank :][: stack.max_rank] @ x[t].double().cpu()
            out[t, row : row + size] += stack.scales[number - 1, part].item() * (b[row : row + size] @ shrunk)
            row += size
    return out


def mixture(tokens: int, count: int) -> list[int]:
    return torch.randint(0, count + 1, (tokens,), generator=torch.Generator().manual_seed(tokens)).tolist()


def run(ops: Ops, y: Tensor, x: Tensor, stack: LoraStack, numbers: list[int]) -> Tensor:
    plan = ops.plan_lora(torch.tensor(numbers, dtype=torch.int32, device=x.device), len(stack.a))
    return y.clone() if plan is None else ops.lora_add(y.clone(), x, stack, plan)
