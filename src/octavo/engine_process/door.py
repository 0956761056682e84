"""Who may come in: a limit to what waits, and when it is worth to try again."""

from __future__ import annotations

import math

from octavo.client.verbs import BusyError
from octavo.client.wire import Limits

_SHORTEST, _LONGEST = 1.0, 60.0
"""Seconds that a refused caller is told to wait."""


class Rate:
    """How much happens a second, with less weight on what was longer ago.

    Args:
        half_life: seconds after which something counts half.
    """

    def __init__(self, half_life: float = 10.0) -> None:
        self._decay = math.log(2) / half_life
        self._sum = 0.0
        self._at: float | None = None
        self._since = 0.0

    def add(self, amount: float, now: float) -> None:
        if self._at is None:
            self._since = now
        self._sum = self._decayed(now) + amount
        self._at = now

    def per_second(self, now: float) -> float:
        """0 before anything has happened. Counts as if the first second were a whole one."""
        seen = 1 - math.exp(-self._decay * max(now - self._since, 1.0))
        return self._decayed(now) * self._decay / seen

    def _decayed(self, now: float) -> float:
        return 0.0 if self._at is None else self._sum * math.exp(-self._decay * (now - self._at))


class Door:
    """Refuses a request when those that wait already are too many.

    Only those count as waiting that the batch has no row for: in a burst that comes between two steps, nobody has been
    given a row yet. A request that is larger than ``max_queue_tokens`` by itself is taken when nothing else waits.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._requests = Rate()
        self._tokens = Rate()

    def left_the_queue(self, num_tokens: int, now: float) -> None:
        """Note that a request with so many tokens has begun to run."""
        self._requests.add(1, now)
        self._tokens.add(num_tokens, now)

    def check(self, count: int, num_tokens: int, *, waiting: int, rows: int, waiting_tokens: int, now: float) -> None:
        """Raise ``BusyError`` unless ``count`` requests with ``num_tokens`` tokens in all may come in.

        Args:
            waiting: requests in the queue, with ``waiting_tokens`` tokens in all.
            rows: of the batch that are free.
        """
        limits = self._limits
        queued = max(0, waiting - rows)
        room = max(0, rows - waiting)
        if limits.max_queue is not None and queued + count - room > limits.max_queue:
            over = queued + count - room - limits.max_queue
            wait = self._wait(over, self._requests, now)
            raise BusyError(f"{queued} requests wait already; at most {limits.max_queue} are queued", wait)
        if limits.max_queue_tokens is not None and waiting and waiting_tokens + num_tokens > limits.max_queue_tokens:
            over = waiting_tokens + num_tokens - limits.max_queue_tokens
            wait = self._wait(over, self._tokens, now)
            raise BusyError(
                f"{waiting_tokens} tokens wait already; with these {num_tokens} it would be more than "
                f"{limits.max_queue_tokens}",
                wait,
            )

    def _wait(self, over: float, rate: Rate, now: float) -> float:
        """Seconds until so much more has left the queue, if it goes on as it did."""
        per_second = rate.per_second(now)
        return min(max(over / per_second if per_second else _LONGEST, _SHORTEST), _LONGEST)
