"""Fair shares: between keys (users, tenants), whoever has had the fewest tokens computed comes next.

This is the Virtual Token Counter of arXiv:2401.00588. Each key has a counter of the tokens that were computed for it.
A key that comes back after a pause starts with the smallest counter of those that wait, so that no one saves up
a claim by being idle. Between keys that all have requests waiting, the counters then differ by no more than what fits
into the batch at once, whatever each one sends; so a key with a thousand requests delays another by a batch, not by a
thousand requests.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator

from octavo.core.policy import WaitingQueue, priority
from octavo.core.request import Request

_SPARE_COUNTERS = 1000
"""Counters of keys without waiting requests that are kept before the useless ones among them are dropped."""


class FairQueue:
    """Waiting requests in turns by key, and by priority and arrival within one; it has `WaitingQueue`'s methods.

    O(log keys) to add and to remove. The heap has one entry for each key in ``_queues``; an entry's counter may be too
    small, as counters grow, and is corrected when the entry comes to the front.
    """

    def __init__(self) -> None:
        self._queues: dict[str, WaitingQueue] = {}
        self._heap: list[tuple[int, int, str]] = []  # (counter, turn, key)
        self._turns = itertools.count()  # of equal counters, the one that has waited longest for its turn is first
        self._counters: dict[str, int] = {}
        self._floor = 0  # the counter of the last one who had a turn: no one who waits has less

    def __len__(self) -> int:
        return sum(map(len, self._queues.values()))

    def __iter__(self) -> Iterator[Request]:
        """Those that wait, in no particular order."""
        return itertools.chain.from_iterable(self._queues.values())

    def push(self, request: Request) -> None:
        """Add a request, whose status is WAITING."""
        key = request.share_key
        if not self._queues.get(key):
            self._begin(key)
        self._queues[key].push(request)

    def _begin(self, key: str) -> None:
        """A key has nothing waiting and is about to: it starts where the others are."""
        floor = self._heap[0][0] if self.first() is not None else self._floor
        self._drop_useless_counters()
        self._counters[key] = max(self._counters.get(key, 0), floor)
        if key not in self._queues:
            self._queues[key] = WaitingQueue(priority)
            heapq.heappush(self._heap, (self._counters[key], next(self._turns), key))

    def _drop_useless_counters(self) -> None:
        """Forget keys that would be lifted anyway when they come back, so that there can be any number of keys."""
        if len(self._counters) > 2 * len(self._queues) + _SPARE_COUNTERS:
            self._counters = {k: n for k, n in self._counters.items() if n > self._floor or k in self._queues}

    def first(self) -> Request | None:
        while self._heap:
            counter, turn, key = self._heap[0]
            request = self._queues[key].first()
            if request is None:
                heapq.heappop(self._heap)
                del self._queues[key]
            elif counter < self._counters[key]:
                heapq.heapreplace(self._heap, (self._counters[key], turn, key))
            else:
                return request
        return None

    def pop(self) -> Request:
        """Remove and return the first; the queue must not be empty."""
        assert self.first() is not None
        self._floor, _, key = self._heap[0]
        heapq.heapreplace(self._heap, (self._floor, next(self._turns), key))
        return self._queues[key].pop()

    def discard(self, request: Request) -> None:
        """Note that a request in the queue has just been finished."""
        self._queues[request.share_key].discard(request)

    def charge(self, request: Request, count: int) -> None:
        """Note that ``count`` more tokens of a request, up to its ``num_computed``, will be computed.

        Tokens that were computed before and lost in a preemption are not charged again.
        """
        new = min(count, request.num_computed - request.num_charged)
        if new > 0:
            request.num_charged = request.num_computed
            self._counters[request.share_key] = self._counters.get(request.share_key, self._floor) + new
