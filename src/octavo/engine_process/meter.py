"""How busy the engine is: counters that the loop keeps, and a snapshot of them."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence

from octavo.client.verbs import Load
from octavo.core.plan import Admitted, Embedded, Event, Preempted, Sampled, StepPlan
from octavo.engine import Engine
from octavo.engine_process.door import Door


class Meter:
    """Listens to an engine. A snapshot may be taken in any thread: it reads numbers, each of which is right by itself.

    Attributes:
        generated_tokens: as steps bring them, told to callers or not yet, so that they go with the number of steps.
        finished: completions by reason, as told to callers.
    """

    def __init__(self, engine: Engine, door: Door) -> None:
        self.generated_tokens = 0
        self.finished: Counter[str] = Counter()
        self._launched = 0
        self._prompt_tokens = 0
        self._cached_tokens = 0
        self._preemptions = 0
        self._scheduler = engine.scheduler
        self._door = door
        engine.listeners.append(self._hear)

    def snapshot(self) -> Load:
        scheduler = self._scheduler
        stats = scheduler.stats()
        return Load(
            steps=self._launched - scheduler.num_in_flight,
            running=stats.running,
            waiting=stats.waiting,
            waiting_tokens=scheduler.waiting.num_tokens,
            blocks_used=stats.num_blocks - stats.free_blocks,
            prompt_tokens=self._prompt_tokens,
            generated_tokens=self.generated_tokens,
            cached_tokens=self._cached_tokens,
            preemptions=self._preemptions,
            finished=dict(self.finished),
            at=time.monotonic(),
        )

    def _hear(self, plan: StepPlan | None, events: Sequence[Event]) -> None:
        self._launched += plan is not None
        embedded = set()
        for event in events:
            kind = type(event)
            if kind is Sampled:
                self.generated_tokens += event.request_id not in embedded
            elif kind is Embedded:
                embedded.add(event.request_id)  # a token follows that nobody gets
            elif kind is Admitted:
                self._admitted(event.request_id)
            elif kind is Preempted:
                self._preemptions += 1

    def _admitted(self, request_id: str) -> None:
        request = self._scheduler.requests.get(request_id)
        if request is None or request.metrics.num_preemptions:  # it has ended, or it was counted when it first ran
            return
        self._prompt_tokens += request.num_prompt_tokens
        self._cached_tokens += request.metrics.num_cached_tokens
        self._door.left_the_queue(request.num_prompt_tokens, time.monotonic())
