"""Who runs the steps: the same verbs whether in this thread, in another one, or (later) in other processes."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

from octavo.core.plan import StepPlan, StepResult, TokenMasks
from octavo.execution.device_runner import DeviceRunner
from octavo.execution.runner import Runner


class Pending(Protocol):
    """A step on its way."""

    def mask(self, masks: TokenMasks) -> None:
        """Hand over what the plan's masked rows wait for: once, and before the plan after the next one is executed.

        A plan without such rows waits for nothing; then this must not be called.
        """

    def result(self) -> StepResult:
        """Wait for it. Raises what went wrong."""


class Executor(Protocol):
    """Runs plans in the order in which they are given."""

    def execute(self, plan: StepPlan) -> Pending:
        """Start a step, or queue it behind the one that runs."""

    def wait(self) -> None:
        """Wait until no step runs, whatever became of those that were given."""

    def stop(self) -> None:
        """Wait for the steps that were given, then let go of the thread or process. Safe to call twice."""


class InlineStep:
    """A step that ran when it was given, or when its masks were."""

    def __init__(self, runner: Runner, plan: StepPlan) -> None:
        self._runner, self._plan = runner, plan
        self._done: Future[StepResult] = Future()
        if not plan.masked:
            self.mask({})

    def mask(self, masks: TokenMasks) -> None:
        try:
            self._done.set_result(self._runner.run(self._plan, lambda: masks))
        except Exception as error:  # it belongs to whoever waits for the result
            self._done.set_exception(error)

    def result(self) -> StepResult:
        return self._done.result()


class InlineExecutor:
    """Runs each step at once in the caller's thread. For debugging: a breakpoint in the model works as expected."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner

    def execute(self, plan: StepPlan) -> InlineStep:
        return InlineStep(self._runner, plan)

    def wait(self) -> None:
        pass

    def stop(self) -> None:
        pass


class ThreadStep:
    """A step in another thread, which may wait there for its masks."""

    def __init__(self, pool: ThreadPoolExecutor, runner: Runner, plan: StepPlan) -> None:
        self._masks: Future[TokenMasks] = Future()
        self._done = pool.submit(runner.run, plan, self._masks.result)

    def mask(self, masks: TokenMasks) -> None:
        self._masks.set_result(masks)

    def give_up(self) -> None:
        """Let it fail if it waits for masks."""
        self._masks.cancel()

    def result(self) -> StepResult:
        return self._done.result()


class ThreadExecutor:
    """Runs steps in one thread of its own, so that the caller can plan and decode text meanwhile.

    The kernels release the interpreter lock, so the two overlap.
    """

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="octavo-step")
        self._newest: deque[ThreadStep] = deque(maxlen=2)  # of the others, all are long over

    def execute(self, plan: StepPlan) -> ThreadStep:
        self._newest.append(ThreadStep(self._pool, self._runner, plan))
        return self._newest[-1]

    def wait(self) -> None:
        for step in self._newest:
            step.give_up()
        self._pool.submit(lambda: None).result()  # one thread runs all, in order: this one comes last

    def stop(self) -> None:
        self._pool.shutdown(wait=True)


class DeviceExecutor:
    """Launches steps on a device that runs by itself, from the caller's thread, and waits for none."""

    def __init__(self, runner: DeviceRunner) -> None:
        self._runner = runner

    def execute(self, plan: StepPlan) -> Pending:
        return self._runner.launch(plan)

    def wait(self) -> None:
        self._runner.wait()

    def stop(self) -> None:
        self._runner.wait()


def make_executor(runner: Runner | DeviceRunner, *, ahead: bool) -> Executor:
    """What runs the steps of ``runner``; ``ahead``: while the caller plans the next one."""
    if isinstance(runner, DeviceRunner):
        return DeviceExecutor(runner)
    return ThreadExecutor(runner) if ahead else InlineExecutor(runner)
