"""When the news of streams are told: after each step, or those of several steps at once.

To tell a token costs whoever writes it to a client about 0.1 ms of a processor. A GPU has processors enough beside it.
On a CPU that time is taken from the model, and all threads of a step wait for the one that has lost its core. So
tokens that come faster than anybody reads are told together there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from octavo.core.plan import Event, StepPlan
from octavo.engine import Engine

ON_CPU_MS = 50.0
"""Twenty times a second: text still flows."""


def default_interval_ms(device_type: str) -> float:
    return ON_CPU_MS if device_type == "cpu" else 0.0


class Pace:
    """Listens to an engine.

    Args:
        interval: seconds between two tellings, as nearly as whole steps allow. 0: each step is told.
    """

    def __init__(self, engine: Engine, interval: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._scheduler = engine.scheduler
        self._interval = interval
        self._clock = clock
        self._decodes = False
        self._launched = self._told = clock()
        self._step = 0.0
        engine.listeners.append(self._hear)

    def is_due(self) -> bool:
        """Whether what is new is to be told now.

        It is before a step that reads a prompt, or may: such a step takes long, and nobody shall wait for it. And when
        now is nearer to the time than the end of the next step is likely to be.
        """
        if not self._decodes or self._scheduler.stats().waiting:
            return True
        return self._clock() + self._step / 2 >= self._told + self._interval

    def told(self) -> None:
        """All that was new has been told."""
        self._told = self._clock()

    def _hear(self, plan: StepPlan | None, events: Sequence[Event]) -> None:
        if plan is not None:
            now = self._clock()
            self._step, self._launched = now - self._launched, now
            self._decodes = plan.num_tokens == len(plan.rows)
