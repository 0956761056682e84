"""When what is new in streams is told, by a clock of the test's own."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from octavo import AsyncLLM
from octavo.client.wire import Limits
from octavo.core.plan import RowStep, StepPlan
from octavo.engine_process.pace import ON_CPU_MS, Pace, default_interval_ms
from octavo.errors import UsageError


class Engine:
    """Steps that take as long as the test says."""

    def __init__(self, interval: float) -> None:
        self.now, self.waiting, self.listeners = 100.0, 0, []  # type: ignore[var-annotated]
        self.scheduler = SimpleNamespace(stats=lambda: SimpleNamespace(waiting=self.waiting))
        engine: Any = self
        self.pace = Pace(engine, interval, clock=lambda: self.now)

    def step(self, *tokens: int, takes: float) -> bool:
        """Whether it is told what a step with so many tokens in its rows has brought."""
        rows = tuple(RowStep(slot, 0, count, (), samples=True) for slot, count in enumerate(tokens))
        self._tell(StepPlan(0, rows))
        self.now += takes
        self._tell(None)
        due = self.pace.is_due()
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
    engine.waiting = 1
    assert engine.pace.is_due()


def test_a_cpu_is_spared() -> None:
    assert (default_interval_ms("cpu"), default_interval_ms("cuda")) == (ON_CPU_MS, 0)


@pytest.mark.parametrize("interval", [-1.0, float("nan"), float("inf")])
def test_an_interval_that_is_none(interval: float) -> None:
    with pytest.raises(UsageError, match=r"stream_interval_ms is .*; accepted: milliseconds, from 0 on"):
        Limits(stream_interval_ms=interval)
    with pytest.raises(UsageError, match="stream_interval_ms"):
        AsyncLLM("smollm2-135m", stream_interval_ms=interval)
