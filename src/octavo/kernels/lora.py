"""Low-rank adapters (LoRA, arXiv:2106.09685) of linear layers, several beside each other.

A layer ``y = x @ W.T`` with an adapter computes ``y = x @ W.T + scale * (x @ A.T) @ B.T``, where A has few rows and B
few columns. The adapters of one layer are stacked, so that a kernel finds each token's by its number: 1 to S, or 0 for
a token without. A layer that was fused from several (queries, keys and values) has an A and a B of its own for each
part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TypeVar

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class LoraSizes:
    """How many adapters are on the device at once, and how many rows A may have."""

    max_loras: int
    max_rank: int


@dataclass(frozen=True, slots=True, eq=False)
class LoraStack:
    """The adapters of one linear layer ``[K] -> [N]`` of P parts; adapter number s has index ``s - 1`` here.

    Attributes:
        a: ``[S, P * R, K]``: for each part R rows; those beyond an adapter's own rank are 0.
        b: ``[S, N, R]``, likewise.
        scales: ``[S, P]`` float32; 0 where an adapter has nothing for a part.
        parts: outputs of each part, N in all.
        ranks: ``[S, P]`` int32 on the host: an adapter's own rank, 0 where it has nothing for a part.
        ends: ``[P]`` int64 on the host: where the outputs of each part end.
    """

    a: Tensor
    b: Tensor
    scales: Tensor
    parts: tuple[int, ...]
    ranks: Tensor
    ends: Tensor

    @classmethod
    def empty(
        cls, sizes: LoraSizes, inputs: int, parts: Sequence[int], dtype: torch.dtype, device: torch.device
    ) -> LoraStack:
        """A stack in which no adapter has anything."""
        count, rank = sizes.max_loras, sizes.max_rank
        a = torch.zeros(count, len(parts) * rank, inputs, dtype=dtype, device=device)
        b = torch.zeros(count, sum(parts), rank, dtype=dtype, device=device)
        scales = torch.zeros(count, len(parts), dtype=torch.float32, device=device)
        ranks = torch.zeros(count, len(parts), dtype=torch.int32)
        return cls(a, b, scales, tuple(parts), ranks, torch.tensor(list(accumulate(parts)), dtype=torch.int64))

    @property
    def max_rank(self) -> int:
        return self.b.shape[2]

    @property
    def nbytes(self) -> int:
        return self.a.nbytes + self.b.nbytes + self.scales.nbytes

    def write(self, number: int, layer: LoraLayer | None) -> None:
        """Make ``layer`` that of adapter ``number``; None: it has nothing for this layer. The host does not wait."""
        s = number - 1
        if layer is None:
            self.scales[s].zero_()
            self.ranks[s].zero_()
            return
        for target, source in ((self.a, layer.a), (self.b, layer.b), (self.scales, layer.scales)):
            target[s].copy_(source, non_blocking=True)
        self.ranks[s] = torch.tensor(layer.ranks, dtype=torch.int32)


@dataclass(frozen=True, slots=True, eq=False)
class LoraLayer:
    """What one adapter has for one linear layer, in host memory: a ``[P * R, K]``, b ``[N, R]``, scales ``[P]``; see
    `LoraStack`.
    """

    a: Tensor
    b: Tensor
    scales: Tensor
    ranks: tuple[int, ...]

    @classmethod
    def like(cls, stack: LoraStack) -> LoraLayer:
        """An empty one, to be filled; in pinned memory if the stack is on a GPU, so that copies do not wait."""
        pinned = stack.a.device.type == "cuda"
        tensors = (torch.zeros(t.shape[1:], dtype=t.dtype) for t in (stack.a, stack.b, stack.scales))
        a, b, scales = (t.pin_memory() if pinned else t for t in tensors)
        return cls(a, b, scales, (0,) * len(stack.parts))


class LoraPlan:
    """Which tokens of a step have which adapter, sorted once by ``Ops.plan_lora`` and read by every layer. Opaque: each
    backend has its own."""


Plan = TypeVar("Plan", bound=LoraPlan)


def own_lora(plan: LoraPlan, kind: type[Plan]) -> Plan:
    """``plan``, which must be of a backend's own ``kind``. Raises ``TypeError``."""
    if not isinstance(plan, kind):
        raise TypeError("the plan is not from plan_lora of the same ops")
    return plan
