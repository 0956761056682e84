"""The executors run plans in order, hand over results and errors, and wait for masks where a plan has masked rows."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import CancelledError

import pytest

from octavo.core.plan import StepPlan, StepResult, TokenMasks
from octavo.execution.executor import InlineExecutor, ThreadExecutor

MASKED = ((0, "a"),)


class Recorder:
    """Stands for a runner: notes which steps ran, with which masks, and in which thread; step 2 fails."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.masks: list[TokenMasks] = []
        self.threads: set[int] = set()
        self.begun = threading.Event()

    def run(self, plan: StepPlan, masks: Callable[[], TokenMasks]) -> StepResult:
        self.begun.set()
        self.steps.append(plan.step)
        self.threads.add(threading.get_ident())
        if plan.masked:
            self.masks.append(masks())
        if plan.step == 2:
            raise ValueError("step 2 fails")
        return StepResult(plan.step, ())


@pytest.mark.parametrize("kind", [InlineExecutor, ThreadExecutor])
def test_steps_run_in_order_and_errors_reach_the_caller(kind):
    recorder = Recorder()
    executor = kind(recorder)
    pending = [executor.execute(StepPlan(i, ())) for i in range(4)]
    assert [pending[i].result().step for i in (0, 1, 3)] == [0, 1, 3]
    with pytest.raises(ValueError, match="step 2 fails"):
        pending[2].result()
    executor.stop()
    executor.stop()
    assert recorder.steps == [0, 1, 2, 3]
    assert len(recorder.threads) == 1
    assert (threading.get_ident() in recorder.threads) == (kind is InlineExecutor)


@pytest.mark.parametrize("kind", [InlineExecutor, ThreadExecutor])
def test_a_masked_step_gets_its_masks(kind):
    recorder = Recorder()
    executor = kind(recorder)
    for step, masks in ((0, {0: b"x"}), (2, {0: b"y"}), (3, {})):
        pending = executor.execute(StepPlan(step, (), masked=MASKED))
        pending.mask(masks)
        if step == 2:
            with pytest.raises(ValueError, match="step 2 fails"):
                pending.result()
        else:
            assert pending.result().step == step
    executor.stop()
    assert recorder.masks == [{0: b"x"}, {0: b"y"}, {}]


def test_a_thread_begins_a_masked_step_before_its_masks_have_come():
    recorder = Recorder()
    executor = ThreadExecutor(recorder)
    first, second = executor.execute(StepPlan(0, (), masked=MASKED)), executor.execute(StepPlan(1, ()))
    assert recorder.begun.wait(30)
    assert recorder.masks == []
    first.mask({0: b"x"})
    assert second.result().step == 1
    assert recorder.masks == [{0: b"x"}]
    executor.stop()


def test_waiting_for_a_thread_does_not_wait_for_masks_that_will_not_come():
    recorder = Recorder()
    executor = ThreadExecutor(recorder)
    pending = [executor.execute(StepPlan(i, (), masked=MASKED)) for i in (0, 1)]
    executor.wait()
    for step in pending:
        with pytest.raises(CancelledError):
            step.result()
    assert executor.execute(StepPlan(3, ())).result().step == 3
    executor.stop()
