"""How many tokens a second, when all requests are there from the start."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from octavo.bench.summary import Summary
from octavo.bench.workload import Work, check_complete
from octavo.core.plan import Event, Preempted, StepPlan

if TYPE_CHECKING:
    from octavo.engine import Engine


@dataclass(frozen=True, slots=True, kw_only=True)
class Throughput:
    """``seconds`` run from the first request's arrival to the last one's last token.

    ``step_time`` is the time from one step's end to the next one's. Tokens that were computed again after a
    preemption count once.
    """

    requests: int
    prompt_tokens: int
    output_tokens: int
    seconds: float
    steps: int
    step_time: Summary | None
    preemptions: int

    @property
    def rates(self) -> dict[str, float]:
        """Each of the counts a second."""
        return {
            "prompt_tokens_per_second": self.prompt_tokens / self.seconds,
            "output_tokens_per_second": self.output_tokens / self.seconds,
            "total_tokens_per_second": (self.prompt_tokens + self.output_tokens) / self.seconds,
            "requests_per_second": self.requests / self.seconds,
        }


@dataclass(slots=True)
class _Watch:
    """Listens to the engine's steps."""

    clock: Callable[[], float]
    ends: list[float] = field(default_factory=list)
    preemptions: int = 0

    def __call__(self, plan: StepPlan | None, events: Sequence[Event]) -> None:
        if plan is None:
            self.ends.append(self.clock())
        self.preemptions += sum(isinstance(event, Preempted) for event in events)


def measure_throughput(
    engine: Engine,
    work: Sequence[Work],
    check: Callable[[], None] = lambda: None,
    report: Callable[[int], None] = lambda _: None,
    clock: Callable[[], float] = time.perf_counter,
) -> Throughput:
    """Run ``work`` to its end. ``check`` is called between steps and may raise; ``report`` gets how many are done.

    Raises:
        RequestError: a request does not fit. OctavoError: the model failed.
    """
    watch = _Watch(clock)
    engine.listeners.append(watch)
    try:
        start = clock()
        _run(engine, work, check, report)
        seconds = max(clock() - start, 1e-9)
    finally:
        engine.listeners.remove(watch)
        engine.abort_all()
    return Throughput(
        requests=len(work),
        prompt_tokens=sum(len(w.token_ids) for w in work),
        output_tokens=sum(w.output_len for w in work),
        seconds=seconds,
        steps=len(watch.ends),
        step_time=Summary.of([b - a for a, b in zip([start, *watch.ends], watch.ends, strict=False)]),
        preemptions=watch.preemptions,
    )


def _run(engine: Engine, work: Sequence[Work], check: Callable[[], None], report: Callable[[int], None]) -> None:
    waiting = {engine.add_request(w.token_ids, w.params): w for w in work}
    while waiting:
        check()
        for output in engine.step():
            if output.finished:
                check_complete(output, waiting.pop(output.request_id))
        report(len(work) - len(waiting))
