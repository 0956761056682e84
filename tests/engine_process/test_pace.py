"""When what is new in streams is told, by a clock of the test's own."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from octavo import AsyncLLM
from octavo.client.wire import Limits
from octavo.core.plan import RowStep, StepPlan
from octavo.engine_process.pace import LONGEST, Pace, choose_interval
from octavo.errors import UsageError


class Engine:
    """Steps that take as long as the test says."""

    def __init__(self, interval: float) -> None:
        self.now, self.listeners = 100.0, []  # type: ignore[var-annotated]
        self.running, self.held, self.queue = 2, 0, []  # type: ignore[var-annotated]
        self.scheduler = SimpleNamespace(stats=self._stats, waiting=self.queue)
        engine: Any = self
        self.pace = Pace(engine, lambda streams: interval, clock=lambda: self.now)

    def _stats(self) -> SimpleNamespace:
        return SimpleNamespace(running=self.running, waiting=len(self.queue) + self.held)

    def step(self, *tokens: int, takes: float) -> bool:
        """Whether it is told what a step with so many tokens in its rows has brought."""
        rows = tuple(RowStep(slot, 0, count, (), samples=True) for slot, count in enumerate(tokens))
        self._tell(StepPlan(0, rows))
        self.now += takes
        self._tell(None)
        due = self.pace.is_due(1)
        if due:
            self.pace.told()
        return due

    def _tell(self, plan: StepPlan | None) -> None:
        for listener in self.listeners:
            listener(plan, ())


@pytest.mark.parametrize(
    ("takes", "told"),
    [
        (0.010, "....#....#....#"),
        (0.020, ".#.#.#.#"),
        (0.030, ".#.#.#"),
        (0.040, "######"),
        (0.200, "######"),
    ],
)
def test_steps_are_told_together_as_near_to_the_interval_as_they_end(takes: float, told: str) -> None:
    engine = Engine(0.05)
    engine.step(1, 1, takes=takes)
    engine.pace.told()
    assert "".join(".#"[engine.step(1, 1, takes=takes)] for _ in told) == told


def test_each_step_is_told_where_no_interval_is_wanted() -> None:
    engine = Engine(0.0)
    assert all(engine.step(1, 1, takes=0.0) for _ in range(5))


def test_a_step_that_reads_a_prompt_is_told_and_so_is_what_is_there_before_one() -> None:
    engine = Engine(1.0)
    assert engine.step(1, 64, takes=0.01)
    assert not engine.step(1, 1, takes=0.01)
    engine.queue.append("a")
    assert engine.pace.is_due(1), "it may be admitted now"


def test_those_who_wait_for_a_row_in_vain_change_nothing_until_one_is_free() -> None:
    engine = Engine(1.0)
    engine.queue.extend("abcdefghi")
    assert not any(engine.step(1, 1, takes=0.01) for _ in range(3))
    engine.running = 1
    assert engine.pace.is_due(1)


def test_nothing_is_held_back_while_one_waits_for_a_grammar_that_any_step_may_find_compiled() -> None:
    engine = Engine(1.0)
    engine.held = 1
    assert all(engine.step(1, 1, takes=0.01) for _ in range(3))
    engine.held = 0
    assert not engine.step(1, 1, takes=0.01)


@pytest.mark.parametrize(
    ("asked_ms", "device", "streams", "seconds"),
    [
        (None, "cuda", 256, 0.0),
        (None, "cpu", 1, 0.003),
        (None, "cpu", 32, 0.096),
        (None, "cpu", 1000, LONGEST),
        (0.0, "cpu", 32, 0.0),
        (500.0, "cpu", 1, 0.5),
        (30.0, "cuda", 256, 0.03),
    ],
)
def test_the_interval(asked_ms: float | None, device: str, streams: int, seconds: float) -> None:
    assert choose_interval(asked_ms, device)(streams) == seconds


@pytest.mark.parametrize("interval", [-1.0, float("nan"), float("inf")])
def test_an_interval_that_is_none(interval: float) -> None:
    with pytest.raises(UsageError, match=r"stream_interval_ms is .*; accepted: milliseconds, from 0 on"):
        Limits(stream_interval_ms=interval)
    with pytest.raises(UsageError, match="stream_interval_ms"):
        AsyncLLM("smollm2-135m", stream_interval_ms=interval)
