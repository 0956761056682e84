"""Where the time of a step goes: steps are timed as a user sees them, then as many are recorded kernel by kernel."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from octavo.bench.kernel_times import Kernel, record, top
from octavo.bench.report import Row, summary_text
from octavo.bench.summary import Summary
from octavo.bench.workload import LengthRange, Work, check_complete, random_work
from octavo.errors import OctavoError, UsageError

if TYPE_CHECKING:
    from octavo.engine import Engine

SETTLE = 5
"""Decode steps before any is timed."""
IN_FLIGHT = 2
"""Steps that may have been planned beyond the last one that is looked at."""
LINES = 20
"""Kernels with a line of their own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """Times are in seconds. A step is a decode step of all rows, or a whole prompt.

    Attributes:
        unit: "step" or "prompt".
        rows: requests in each.
        tokens: of each request when the recording began, on average; of the prompt.
        on_gpu: the kernels are a GPU's; else they are operators of torch, and our C kernels, on the CPU.
        step_time: of the steps that were not recorded.
        recorded: how many were.
        recorded_time: seconds that each of these took, the profiler's work included.
        busy: how much of a step at least one kernel ran.
        kernels: what a step has of each, the longest first.
    """

    unit: str
    rows: int
    tokens: float
    on_gpu: bool
    step_time: Summary
    recorded: int
    recorded_time: float
    busy: float
    kernels: tuple[Kernel, ...]

    @property
    def kernel_time(self) -> float:
        """Seconds a step, of all kernels; more than ``busy`` where some run at the same time."""
        return sum(kernel.seconds for kernel in self.kernels)

    @property
    def idle(self) -> float:
        """The share of a step in which no kernel ran.

        Recording makes the host slower, not a GPU's kernels: these are compared with a step that was not recorded.
        """
        whole = self.step_time.median if self.on_gpu else self.recorded_time
        return max(1 - self.busy / whole, 0.0)


@dataclass(frozen=True, slots=True)
class Recorder:
    """How to time and record: the same for decode steps and for prompts.

    Attributes:
        timed, recorded: numbers of steps.
        trace: where to write the Chrome trace.
        check: called before each step; may raise.
    """

    timed: int
    recorded: int
    trace: Path | None = None
    check: Callable[[], None] = lambda: None
    clock: Callable[[], float] = time.perf_counter

    def run(
        self, engine: Engine, unit: str, step: Callable[[], None], rows: int, tokens: Callable[[], float]
    ) -> Profile:
        """Time ``step``, then record it."""
        on_gpu = engine.config.device.startswith("cuda")
        times = Summary.of([self._time(step) for _ in range(self.timed)])
        assert times is not None
        length = tokens()
        wall: list[float] = []
        recording = record(lambda: wall.extend(self._time(step) for _ in range(self.recorded)), on_gpu, self.trace)
        return Profile(
            unit=unit,
            rows=rows,
            tokens=length,
            on_gpu=on_gpu,
            step_time=times,
            recorded=self.recorded,
            recorded_time=sum(wall) / self.recorded,
            busy=recording.busy / self.recorded,
            kernels=tuple(kernel.per(self.recorded) for kernel in recording.kernels),
        )

    def _time(self, step: Callable[[], None]) -> float:
        self.check()
        start = self.clock()
        step()
        return self.clock() - start


# ---------------------------------------------------------------- decode steps


def profile_decode(engine: Engine, rows: int, context: int, recorder: Recorder, rng: random.Random) -> Profile:
    """Decode steps of ``rows`` requests, each with a prompt of ``context`` random tokens.

    Raises:
        UsageError: they do not fit, with what would. OctavoError: the model failed.
    """
    _check_is_visible(engine)
    spare = _spare(engine, rows, context, recorder)
    _check_fits(engine, rows, context, spare)
    length = LengthRange(context, context)
    work = random_work(rng, rows, engine.model_config.vocab_size, length, LengthRange(spare, spare))
    try:
        ids = _bring_to_decode(engine, work, recorder.check)
        for _ in range(SETTLE):
            _decode(engine, rows)
        return recorder.run(engine, "step", lambda: _decode(engine, rows), rows, lambda: _mean_tokens(engine, ids))
    finally:
        engine.abort_all()


def _spare(engine: Engine, rows: int, context: int, recorder: Recorder) -> int:
    """Tokens that the first request may generate until all is done: it decodes while the last prompts are computed."""
    per_step = max(engine.scheduler.max_num_batched_tokens - rows, 1)
    prompts = -(-rows * context // per_step) + 1
    return prompts + SETTLE + recorder.timed + recorder.recorded + IN_FLIGHT


def _check_fits(engine: Engine, rows: int, context: int, spare: int) -> None:
    limit, ledger = engine.scheduler.token_limit, engine.ledger
    if context + spare > limit:
        raise UsageError(
            f"a context of {context} grows by up to {spare} tokens while it is measured, and at most {limit} fit; "
            f"lower the context, or raise max_model_len or max_num_batched_tokens"
        )
    blocks = -(-(context + spare) // ledger.block_size)
    if rows * blocks > ledger.num_blocks:
        raise UsageError(
            f"{rows} rows of {context + spare} tokens do not fit into the KV cache of {ledger.kv_tokens} tokens; "
            f"at most {ledger.num_blocks // blocks} rows are accepted"
        )


def _bring_to_decode(engine: Engine, work: Sequence[Work], check: Callable[[], None]) -> list[str]:
    """Step until each request has a token; their ids."""
    ids = [engine.add_request(one.token_ids, one.params) for one in work]
    waiting = set(ids)
    while waiting:
        check()
        for output in engine.step():
            if output.finished:
                check_complete(output, work[0])
                raise OctavoError("a request ended before all were there; lower the number of rows or the context")
            waiting.discard(output.request_id)
    return ids


def _decode(engine: Engine, rows: int) -> None:
    """One step, in which every request must take part."""
    outputs = engine.step()
    if len(outputs) != rows or any(output.finished for output in outputs):
        ended = next((o.outputs[0].stop_reason for o in outputs if o.finished), None)
        raise OctavoError(f"{len(outputs)} of {rows} rows were in a step: {ended or 'the KV cache is full'}")


def _mean_tokens(engine: Engine, ids: Sequence[str]) -> float:
    outputs = [output for output in map(engine.output, ids) if output is not None]
    return sum(len(o.prompt_token_ids) + len(o.outputs[0].token_ids) for o in outputs) / len(ids)


# ---------------------------------------------------------------- prompts


def profile_prompt(engine: Engine, length: int, recorder: Recorder, rng: random.Random) -> Profile:
    """Prompts of ``length`` random tokens, one after the other, each until its first token.

    Raises:
        UsageError: they do not fit, with what would. OctavoError: the model failed.
    """
    _check_is_visible(engine)
    limit = engine.scheduler.token_limit
    if length >= limit:
        raise UsageError(f"a prompt of {length} tokens and one more do not fit; at most {limit - 1} are accepted")

    def prompt() -> None:
        one, only = LengthRange(1, 1), LengthRange(length, length)
        _finish(engine, random_work(rng, 1, engine.model_config.vocab_size, only, one)[0])

    try:
        prompt()
        return recorder.run(engine, "prompt", prompt, 1, lambda: length)
    finally:
        engine.abort_all()


def _finish(engine: Engine, work: Work) -> None:
    engine.add_request(work.token_ids, work.params)
    while engine.has_unfinished_requests():
        for output in engine.step():
            if output.finished:
                check_complete(output, work)


def _check_is_visible(engine: Engine) -> None:
    if engine.scheduler.max_in_flight > 1 and engine.config.device == "cpu":
        raise UsageError(
            "with async_scheduling a CPU computes in a thread that the profiler does not see; leave it out"
        )


# ---------------------------------------------------------------- reports


def profile_rows(profile: Profile) -> list[Row]:
    """Label and text of each line of the first table."""
    unit = profile.unit
    what, idle = ("kernels", "device idle") if profile.on_gpu else ("operators", "outside operators")
    return [
        ("rows", str(profile.rows)),
        ("tokens a row", f"{profile.tokens:.0f}"),
        (f"{unit} time", summary_text(profile.step_time)),
        (f"{unit}s recorded", f"{profile.recorded}, {1000 * profile.recorded_time:.2f} ms each"),
        (f"{what} a {unit}", f"{1000 * profile.kernel_time:.3f} ms"),
        (idle, f"{100 * profile.idle:.1f} %"),
    ]


def profile_columns(profile: Profile) -> list[Sequence[str]]:
    """The table of kernels, with its head."""
    shown, rest = top(profile.kernels, LINES)
    head = [
        f"us a {profile.unit}",
        f"calls a {profile.unit}",
        "us each",
        "share",
        "kernel" if profile.on_gpu else "operator",
    ]
    return [head, *(_columns(kernel, profile.kernel_time) for kernel in [*shown, *([rest] if rest else [])])]


def _columns(kernel: Kernel, total: float) -> list[str]:
    micros = 1e6 * kernel.seconds
    share = kernel.seconds / total if total else 0.0
    return [f"{micros:.1f}", f"{kernel.calls:.1f}", f"{micros / kernel.calls:.2f}", f"{100 * share:.1f} %", kernel.name]


def profile_results(profile: Profile) -> dict[str, Any]:
    """Plain values, in seconds."""
    return {**msgspec.to_builtins(profile), "kernel_time": profile.kernel_time, "idle": profile.idle}
