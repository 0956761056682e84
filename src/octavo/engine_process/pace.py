"""When the news of streams are told: after each step, or those of several steps at once.

To tell a token costs whoever writes it to a client about 0.1 ms of a processor. A GPU has processors enough beside it.
On a CPU that time is taken from the model, and all threads of a step wait for the one that has lost its core: a step of
32 streams took 4 ms longer. So where many run, tokens that come faster than anybody reads are told together there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from octavo.core.plan import Event, StepPlan
from octavo.engine import Engine

Interval = Callable[[int], float]
"""How many seconds are to lie between two tellings of so many streams. 0: each step is told."""

SECONDS_EACH = 0.003
"""So that telling costs a thirtieth of the time or so."""

LONGEST = 0.2


class Queue(NamedTuple):
    """How many requests run, how many wait, and how many of these are held until their grammars are compiled."""

    running: int
    waiting: int
    held: int


def choose_interval(asked_ms: float | None, device_type: str) -> Interval:
    """What was asked for; else none on a GPU, and on a CPU one that grows with the streams."""
    if asked_ms is None and device_type == "cpu":
        return lambda streams: min(streams * SECONDS_EACH, LONGEST)
    fixed = (asked_ms or 0.0) / 1e3
    return lambda streams: fixed


class Pace:
    """Listens to an engine."""

    def __init__(self, engine: Engine, interval: Interval, clock: Callable[[], float] = time.monotonic) -> None:
        self._scheduler = engine.scheduler
        self._interval = interval
        self._clock = clock
        self._decodes = False
        self._queue = Queue(0, 0, 0)
        self._launched = self._told = clock()
        self._step = 0.0
        engine.listeners.append(self._hear)

    def is_due(self, streams: int) -> bool:
        """Whether what is new in so many streams is to be told now.

        It is before a step that reads a prompt, or may: such a step takes long, and nobody shall wait for it. And when
        now is nearer to the time than the end of the next step is likely to be.
        """
        if not self._decodes or self._may_admit():
            return True
        return self._clock() + self._step / 2 >= self._told + self._interval(streams)

    def told(self) -> None:
        """All that was new has been told."""
        self._told = self._clock()

    def _may_admit(self) -> bool:
        """Whether the next step may take in who waits: not if nobody has come or left since the last one did not.

        One who is held may be let go within the step, when it is too late to tell anything.
        """
        queue = self._look()
        return queue.held > 0 or (queue.waiting > 0 and queue != self._queue)

    def _look(self) -> Queue:
        stats = self._scheduler.stats()
        return Queue(stats.running, stats.waiting, held=stats.waiting - len(self._scheduler.waiting))

    def _hear(self, plan: StepPlan | None, events: Sequence[Event]) -> None:
        if plan is not None:
            now = self._clock()
            self._step, self._launched = now - self._launched, now
            self._decodes = plan.num_tokens == len(plan.rows)
            self._queue = self._look()
