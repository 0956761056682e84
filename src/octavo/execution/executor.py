"""Who runs the steps: the same verbs whether in this thread, in another one, or (later) in other processes."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

from octavo.core.plan import StepPlan, StepResult
from octavo.execution.device_runner import DeviceRunner
from octavo.execution.runner import Runner


class Pending(Protocol):
    """A step on its way; a ``Future`` is one."""

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


class InlineExecutor:
    """Runs each step at once in the caller's thread. For debugging: a breakpoint in the model works as expected."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner

    def execute(self, plan: StepPlan) -> Future[StepResult]:
        future: Future[StepResult] = Future()
        try:
            future.set_result(self._runner.run(plan))
        except Exception as error:  # it belongs to whoever waits for the result
            future.set_exception(error)
        return future

    def wait(self) -> None:
        pass

    def stop(self) -> None:
        pass


class ThreadExecutor:
    """Runs steps in one thread of its own, so that the caller can plan and decode text meanwhile.

    The kernels release the interpreter lock, so the two overlap.
    """

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="octavo-step")

    def execute(self, plan: StepPlan) -> Future[StepResult]:
        return self._pool.submit(self._runner.run, plan)

    def wait(self) -> None:
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
