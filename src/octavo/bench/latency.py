"""How long one request, or one small batch, takes: to its first token, between tokens, to its end."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING

from octavo.bench.summary import Summary
from octavo.bench.workload import Work, check_complete

if TYPE_CHECKING:
    from octavo.engine import Engine


@dataclass(slots=True)
class Timings:
    """What was seen, in seconds, of every request of every iteration.

    Attributes:
        first: from arrival to the first token.
        between: from one token to the next.
        whole: from arrival to the last token.
    """

    first: list[float] = field(default_factory=list)
    between: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)

    def add(self, arrival: float, tokens: Sequence[float]) -> None:
        """Note the times at which one request's tokens came."""
        self.first.append(tokens[0] - arrival)
        self.between += [later - earlier for earlier, later in pairwise(tokens)]
        self.whole.append(tokens[-1] - arrival)

    def summaries(self) -> dict[str, Summary | None]:
        return {
            "time_to_first_token": Summary.of(self.first),
            "time_per_output_token": Summary.of(self.between),
            "end_to_end": Summary.of(self.whole),
        }


def measure_latency(
    engine: Engine,
    iterations: Sequence[Sequence[Work]],
    check: Callable[[], None] = lambda: None,
    report: Callable[[], None] = lambda: None,
    clock: Callable[[], float] = time.perf_counter,
) -> Timings:
    """Run one batch of requests after the other. ``check`` is called between steps and may raise; ``report`` after
    each batch.

    Raises:
        RequestError: a request does not fit. OctavoError: the model failed.
    """
    timings = Timings()
    try:
        for batch in iterations:
            _run_batch(engine, batch, timings, check, clock)
            report()
    finally:
        engine.abort_all()
    return timings


def _run_batch(
    engine: Engine, batch: Sequence[Work], timings: Timings, check: Callable[[], None], clock: Callable[[], float]
) -> None:
    arrival = clock()
    waiting = {engine.add_request(work.token_ids, work.params): work for work in batch}
    came: dict[str, list[float]] = {request_id: [] for request_id in waiting}
    while waiting:
        check()
        outputs = engine.step()
        now = clock()
        for output in outputs:
            times = came[output.request_id]
            times += [now] * (len(output.outputs[0].token_ids) - len(times))
            if output.finished:
                check_complete(output, waiting.pop(output.request_id))
                timings.add(arrival, times)
