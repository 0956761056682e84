"""One model over several devices (tensor parallelism, arXiv:1909.08053): a value that layers are built
with.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from octavo.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor


def identity(x: Tensor) -> Tensor:
    """What a collective operation is when there is one shard."""
    return x


@dataclass(frozen=True, slots=True)
class Shard:
    """Which part of a model this process holds, and how it meets the others.

    Attributes:
        rank: 0 to ``size - 1``.
        size: number of shards.
        all_reduce: the sum of ``x`` over all shards.
        all_gather: the ``x`` of all shards, joined along the last dimension in order of rank.
    """

    rank: int = 0
    size: int = 1
    all_reduce: Callable[[Tensor], Tensor] = identity
    all_gather: Callable[[Tensor], Tensor] = identity

    def part(self, total: int, what: str) -> slice:
        """This shard's share of ``total`` things. Raises ``ModelError`` if they cannot be shared evenly."""
        if total % self.size:
            raise ModelError(f"{total} {what} cannot be split over {self.size} devices; accepted: a divisor of it")
        each = total // self.size
        return slice(self.rank * each, (self.rank + 1) * each)
