"""What ran while something was recorded, and for how long: kernels on a GPU, operators on a CPU."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function

from octavo.errors import OctavoError
from octavo.kernels.cpu.tasks import Step, Tasks

MICROSECOND = 1e-6


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel, or operator: how often it ran, and for how many seconds in all, without others that it called."""

    name: str
    calls: float
    seconds: float

    def per(self, count: int) -> Kernel:
        return Kernel(self.name, self.calls / count, self.seconds / count)


@dataclass(frozen=True, slots=True)
class Span:
    """One run of a kernel, in microseconds."""

    name: str
    start: float
    end: float


@dataclass(frozen=True, slots=True)
class Recording:
    """The kernels, the longest first, and the seconds in which at least one of them ran."""

    kernels: tuple[Kernel, ...]
    busy: float


def record(work: Callable[[], None], on_gpu: bool, trace: Path | None = None) -> Recording:
    """Run ``work`` under torch's profiler, which writes a Chrome trace to ``trace``.

    What the GPU was given before does not count, and it has done all when this returns.

    Raises:
        OctavoError: the profiler saw nothing, or the trace could not be written.
    """
    activity = ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU
    _wait(on_gpu)
    with _tasks_named(), profile(activities=[activity], acc_events=True) as profiler:
        work()
        _wait(on_gpu)
    recording = summarize(_spans(profiler)) if on_gpu else _operators(profiler)
    if not recording.kernels:
        raise OctavoError("the profiler saw no kernels; on a GPU it needs CUPTI, which other profilers may hold")
    if trace is not None:
        _write_trace(profiler, trace)
    return recording


def _wait(on_gpu: bool) -> None:
    if on_gpu:
        torch.cuda.synchronize()


def _spans(profiler: Any) -> Iterator[Span]:
    for event in profiler.events():
        if event.device_type == DeviceType.CUDA and not getattr(event, "is_user_annotation", False):
            yield Span(event.name, event.time_range.start, event.time_range.end)


def summarize(spans: Iterable[Span]) -> Recording:
    """Kernels may run at the same time, on several streams or launched early: ``busy`` counts such a time once."""
    spans = sorted(spans, key=lambda span: span.start)
    sums: dict[str, tuple[int, float]] = {}
    busy, end = 0.0, float("-inf")
    for span in spans:
        calls, micros = sums.get(span.name, (0, 0.0))
        sums[span.name] = calls + 1, micros + span.end - span.start
        busy += max(span.end - max(span.start, end), 0.0)
        end = max(end, span.end)
    return Recording(_longest_first(Kernel(n, c, m * MICROSECOND) for n, (c, m) in sums.items()), busy * MICROSECOND)


def _operators(profiler: Any) -> Recording:
    """On a CPU: the thread's operators, each less those that it called, so that no time counts twice."""
    averages = profiler.key_averages()
    kernels = [Kernel(a.key, a.count, a.self_cpu_time_total * MICROSECOND) for a in averages]
    return Recording(_longest_first(kernels), sum(kernel.seconds for kernel in kernels))


def _longest_first(kernels: Iterable[Kernel]) -> tuple[Kernel, ...]:
    return tuple(sorted(kernels, key=lambda kernel: -kernel.seconds))


@contextmanager
def _tasks_named() -> Iterator[None]:
    """Our C kernels are no operators of torch: for a while the profiler sees them under their names, and those of a
    recorded step are run one by one.
    """
    run, run_all = Tasks.run, Tasks.run_all

    def run_named(self: Tasks, task: int, call: ctypes.Structure, *tensors: Tensor | None) -> None:
        with record_function(self.names[task]):
            run(self, task, call, *tensors)

    def run_each(self: Tasks, steps: ctypes.Array[Step]) -> None:
        for step in steps:
            with record_function(self.names[step.task]):
                run_all(self, (Step * 1)(step))

    setattr(Tasks, "run", run_named)  # noqa: B010 - an assignment to a method is none that a type checker takes
    setattr(Tasks, "run_all", run_each)  # noqa: B010
    try:
        yield
    finally:
        setattr(Tasks, "run", run)  # noqa: B010
        setattr(Tasks, "run_all", run_all)  # noqa: B010


def _write_trace(profiler: Any, trace: Path) -> None:
    try:
        profiler.export_chrome_trace(str(trace))
    except (OSError, RuntimeError) as error:
        raise OctavoError(f"cannot write the trace to {str(trace)!r}: {error}") from None


def top(kernels: Sequence[Kernel], count: int) -> tuple[list[Kernel], Kernel | None]:
    """The ``count`` longest, and the rest as one; None if there is none."""
    rest = kernels[count:]
    if not rest:
        return list(kernels), None
    return list(kernels[:count]), Kernel(
        f"{len(rest)} others", sum(k.calls for k in rest), sum(k.seconds for k in rest)
    )
