"""Who comes first: the order of the waiting queue, and so of preemption."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator

from octavo.core.request import Request, Status

Policy = Callable[[Request], tuple[float, ...]]
"""Sort key of a request: the smallest runs first and is preempted last. It never changes."""


def fcfs(request: Request) -> tuple[float, ...]:
    """First come, first served. No one starves: the oldest request is never preempted for another."""
    return (request.sequence,)


def priority(request: Request) -> tuple[float, ...]:
    """Lowest ``priority`` first, then first come. Urgent requests can starve others, as asked."""
    return (request.priority, request.sequence)


POLICIES: dict[str, Policy] = {"fcfs": fcfs, "priority": priority, "fair": fcfs}
"""The order of those that run. Under "fair", `octavo.core.fair` says who is admitted next; who has begun goes on."""


class WaitingQueue:
    """Waiting requests in a policy's order: O(log n) to add, O(1) to see the first.

    A request that stops waiting is not searched for: it is skipped when it comes to the front.
    """

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._heap: list[tuple[tuple[float, ...], Request]] = []
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Request]:
        """Those that wait, in no particular order."""
        return (request for _, request in self._heap if request.status is Status.WAITING)

    def push(self, request: Request) -> None:
        """Add a request, whose status is WAITING. The sequence number makes each key unique."""
        heapq.heappush(self._heap, (self._policy(request), request))
        self._count += 1

    def first(self) -> Request | None:
        while self._heap and self._heap[0][1].status is not Status.WAITING:
            heapq.heappop(self._heap)
        return self._heap[0][1] if self._heap else None

    def pop(self) -> Request:
        """Remove and return the first; the queue must not be empty."""
        request = self.first()
        assert request is not None
        heapq.heappop(self._heap)
        self._count -= 1
        return request

    def charge(self, request: Request, count: int) -> None:
        """Note that ``count`` more tokens of a request will be computed: no matter here, where keys have no shares."""

    def discard(self, request: Request) -> None:
        """Note that a request in the queue has just been finished; it is dropped when it comes to the front.

        Once most of the heap is such requests they are swept out, so that a stuck front does not make it grow
        for ever.
        """
        self._count -= 1
        if len(self._heap) > 2 * self._count + 16:
            self._heap = [entry for entry in self._heap if entry[1].status is Status.WAITING]
            heapq.heapify(self._heap)
