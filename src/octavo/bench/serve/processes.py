"""A load from several processes, where one could not send and read it all."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import chain
from multiprocessing import get_context

from octavo.bench.serve.drive import drive
from octavo.bench.serve.outcome import Outcome
from octavo.bench.serve.plan import Planned
from octavo.bench.serve.target import Target

HEAD_START = 3.0
"""Seconds for processes to start in, so that all of them begin at the same moment."""


@dataclass(frozen=True, slots=True)
class Driven:
    """What a load gave.

    Attributes:
        busy: the share of the time that the busiest process computed; near 1 the client was the limit.
    """

    outcomes: list[Outcome]
    busy: float


def run_load(
    target: Target,
    plan: Sequence[Planned],
    concurrency: int | None = None,
    processes: int = 1,
    report: Callable[[], None] = lambda: None,
) -> Driven:
    """Run ``plan``, in this process or in others. ``report`` is called at each request's end, here only."""
    if processes == 1:
        return _drive_share(target, plan, time.monotonic(), concurrency, report)
    start = time.monotonic() + HEAD_START
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        shares = [
            pool.submit(_drive_share, target, plan[i::processes], start, _share(concurrency, i, processes))
            for i in range(processes)
        ]
        driven = [share.result() for share in shares]
    return Driven(list(chain.from_iterable(d.outcomes for d in driven)), max(d.busy for d in driven))


def _share(concurrency: int | None, i: int, processes: int) -> int | None:
    """Places of process ``i``: all shares together are ``concurrency``."""
    return None if concurrency is None else len(range(i, concurrency, processes))


def _drive_share(
    target: Target,
    plan: Sequence[Planned],
    start: float,
    concurrency: int | None,
    report: Callable[[], None] = lambda: None,
) -> Driven:
    time.sleep(max(start - time.monotonic(), 0.0))
    wall, computed = time.monotonic(), time.process_time()
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        outcomes = runner.run(drive(target, plan, start, concurrency, report))
    return Driven(outcomes, (time.process_time() - computed) / max(time.monotonic() - wall, 1e-9))


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    """uvloop's, where there is one: it reads twice as many pieces a second."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory
