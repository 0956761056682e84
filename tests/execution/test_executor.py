"""Both executors run plans in order and hand over results and errors."""

from __future__ import annotations

import threading

import pytest

from octavo.core.plan import StepPlan, StepResult
from octavo.execution.executor import InlineExecutor, ThreadExecutor


class Recorder:
    """Stands for a runner: notes which steps ran, and in which thread; step 2 fails."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.threads: set[int] = set()

    def run(self, plan: StepPlan) -> StepResult:
        self.steps.append(plan.step)
        self.threads.add(threading.get_ident())
        if plan.step == 2:
            raise ValueError("step 2 fails")
        return StepResult(plan.step, ())


@pytest.mark.parametrize("kind", [InlineExecutor, ThreadExecutor])
def test_steps_run_in_order_and_errors_reach_the_caller(kind):
    recorder = Recorder()
    executor = kind(recorder)
    futures = [executor.execute(StepPlan(i, ())) for i in range(4)]
    assert [futures[i].result().step for i in (0, 1, 3)] == [0, 1, 3]
    with pytest.raises(ValueError, match="step 2 fails"):
        futures[2].result()
    executor.stop()
    executor.stop()
    assert recorder.steps == [0, 1, 2, 3]
    assert len(recorder.threads) == 1
    assert (threading.get_ident() in recorder.threads) == (kind is InlineExecutor)
