"""Those that wait: in the policy's order, but for some that are set aside until there is what they lack.

A request whose adapter finds no place would be in the way of all behind it, who lack nothing. So it is taken out of
the queue, and put back when a place is free: it then comes before them, as its key in the policy has not changed.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

from octavo.core.fair import FairQueue
from octavo.core.policy import WaitingQueue
from octavo.core.request import Request


class Waiting:
    """All requests that wait, of which ``queue`` has those that are not set aside.

    Attributes:
        num_tokens: tokens that those who wait had when they were added. What is cached of them is not known before
            they are admitted.
        longest_aside: of those that are set aside, the one that was set aside first; None: nobody is.
    """

    def __init__(self, queue: WaitingQueue | FairQueue) -> None:
        self._queue = queue
        self._aside: dict[str, Request] = {}
        self._count = 0
        self.num_tokens = 0
        self.longest_aside: Request | None = None

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Request]:
        """In no particular order."""
        return chain(self._queue, self._aside.values())

    def push(self, request: Request) -> None:
        """Add a request, whose status is WAITING."""
        self._queue.push(request)
        request.num_queued_tokens = len(request.tokens)
        self.num_tokens += request.num_queued_tokens
        self._count += 1

    def first(self) -> Request | None:
        """The next one in the queue."""
        return self._queue.first()

    def pop(self) -> Request:
        """Remove and return the first one of the queue, which must not be empty."""
        request = self._queue.pop()
        request.set_aside_at = None
        self._leave(request)
        return request

    def set_aside(self, now: float) -> None:
        """Take the first one out of the queue until `bring_back`."""
        request = self._queue.pop()
        if request.set_aside_at is None:
            request.set_aside_at = now
        self._aside[request.id] = request
        self._find_longest()

    def bring_back(self) -> None:
        """Put all that are set aside back into the queue."""
        for request in self._aside.values():
            self._queue.push(request)
        self._aside.clear()
        self.longest_aside = None

    def discard(self, request: Request) -> None:
        """Note that one who waits has just been finished."""
        self._leave(request)
        if self._aside.pop(request.id, None) is None:
            self._queue.discard(request)
        elif request is self.longest_aside:
            self._find_longest()

    def charge(self, request: Request, count: int) -> None:
        """Note that ``count`` more tokens of a request will be computed."""
        self._queue.charge(request, count)

    def _leave(self, request: Request) -> None:
        self._count -= 1
        self.num_tokens -= request.num_queued_tokens

    def _find_longest(self) -> None:
        self.longest_aside = min(self._aside.values(), key=lambda r: r.set_aside_at or 0.0, default=None)
