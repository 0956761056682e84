"""Adapters by plain products: the tokens of each adapter are gathered, and go through it together."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from octavo.kernels.lora import LoraPlan, LoraStack


class GroupedLora(LoraPlan):
    """The step's tokens by adapter.

    Attributes:
        groups: an adapter's number, and the indices of its tokens (int64); None: all tokens.
    """

    def __init__(self, numbers: Tensor) -> None:
        present = [number for number in numbers.unique().tolist() if number]
        alone = len(present) == 1 and bool(numbers.all())
        self.groups = [(number, None if alone else (numbers == number).nonzero()[:, 0]) for number in present]


def lora_add(y: Tensor, x: Tensor, stack: LoraStack, plan: GroupedLora) -> Tensor:
    """As ``Ops.lora_add``."""
    for number, tokens in plan.groups:
        if not stack.ranks[number - 1].any():
            continue
        if tokens is None:
            _add_all(y, x, stack, number - 1)
        else:
            y[tokens] = _add_all(y[tokens], x[tokens], stack, number - 1)
    return y


def _add_all(y: Tensor, x: Tensor, stack: LoraStack, s: int) -> Tensor:
    """The same where all tokens have the adapter of index ``s``: in few operations, as each is a small one."""
    shrunk = F.linear(x, stack.a[s])
    ranks, ends = stack.ranks[s].tolist(), stack.ends.tolist()
    for part, (rank, size, end) in enumerate(zip(ranks, stack.parts, ends, strict=True)):
        if rank:
            first, outputs = part * stack.max_rank, slice(end - size, end)
            delta = F.linear(shrunk[:, first : first + rank], stack.b[s, outputs, :rank])
            y[:, outputs].add_(delta * stack.scales[s, part])
    return y
