"""Adapters by plain products: the tokens of each adapter are gathered, and go through it together."""

from __future__ import annotations

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
        ranks = stack.ranks[number - 1]
        if not any(ranks):
            continue
        rows = x if tokens is None else x[tokens]
        for part, (rank, outputs) in enumerate(zip(ranks, _outputs(stack), strict=True)):
            if rank:
                delta = _delta(rows, stack, number - 1, part, rank, outputs)
                if tokens is None:
                    y[:, outputs] += delta
                else:
                    y[tokens, outputs] += delta
    return y


def _outputs(stack: LoraStack) -> list[slice]:
    """The columns of y that each part is."""
    ends = [sum(stack.parts[: i + 1]) for i in range(len(stack.parts))]
    return [slice(end - size, end) for end, size in zip(ends, stack.parts, strict=True)]


def _delta(x: Tensor, stack: LoraStack, s: int, part: int, rank: int, outputs: slice) -> Tensor:
    """``scale * (x @ A.T) @ B.T`` of one part of adapter index ``s``, in x's dtype."""
    first = part * stack.max_rank
    a, b = stack.a[s, first : first + rank], stack.b[s, outputs, :rank]
    return (x @ a.T @ b.T) * stack.scales[s, part]
