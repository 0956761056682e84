"""When requests end at the latest."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator

_FEW = 64
"""Deadlines that are kept without a look at whose they are."""


class Deadlines:
    """Moments, each with a request's key, that come up in their order.

    A request that ends early leaves its deadline behind, which may be years away. These are thrown out whenever the
    number of all has doubled, so that there are never many more than requests.

    Args:
        lives: whether the request of a key has not ended.
    """

    def __init__(self, lives: Callable[[int], bool]) -> None:
        self._lives = lives
        self._heap: list[tuple[float, int]] = []
        self._bound = _FEW

    def __len__(self) -> int:
        return len(self._heap)

    def add(self, moment: float, key: int) -> None:
        """``moment`` is in seconds of the monotonic clock."""
        heapq.heappush(self._heap, (moment, key))
        if len(self._heap) > self._bound:
            self._heap = [entry for entry in self._heap if self._lives(entry[1])]
            heapq.heapify(self._heap)
            self._bound = max(2 * len(self._heap), _FEW)

    def overdue(self, now: float) -> Iterator[int]:
        """Take out the keys whose moment has come; some of them may have ended."""
        while self._heap and self._heap[0][0] <= now:
            yield heapq.heappop(self._heap)[1]
