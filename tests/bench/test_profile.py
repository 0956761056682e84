"""Where a step's time goes: sums of spans, and real steps of a tiny model under the profiler."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import DeviceType

from helpers_cli import make_chat_model
from octavo import LLM
from octavo.bench import profile as profiles
from octavo.bench.kernel_times import Kernel, Span, _spans, record, summarize, top
from octavo.bench.profile import SETTLE, Profile, Recorder, profile_decode, profile_prompt
from octavo.bench.report import columns
from octavo.bench.summary import Summary
from octavo.core.plan import Event, StepPlan
from octavo.errors import OctavoError, UsageError
from octavo.kernels.cpu.tasks import Tasks

LAYERS = 2


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 60), st.integers(0, 20)), max_size=20))
def test_busy_time_counts_once(runs: list[tuple[str, int, int]]) -> None:
    """The oracle marks each microsecond."""
    recording = summarize(Span(name, start, start + length) for name, start, length in runs)
    marked = {at for _, start, length in runs for at in range(start, start + length)}
    assert recording.busy == pytest.approx(len(marked) * 1e-6)
    for kernel in recording.kernels:
        mine = [length for name, _, length in runs if name == kernel.name]
        assert (kernel.calls, kernel.seconds) == (len(mine), pytest.approx(sum(mine) * 1e-6))
    assert {kernel.name for kernel in recording.kernels} == {name for name, _, _ in runs}
    seconds = [kernel.seconds for kernel in recording.kernels]
    assert seconds == sorted(seconds, reverse=True)


def test_only_what_ran_on_the_gpu_is_a_kernel() -> None:
    def event(name: str, device: DeviceType, note: bool = False) -> SimpleNamespace:
        return SimpleNamespace(
            name=name, device_type=device, time_range=SimpleNamespace(start=1.0, end=3.0), is_user_annotation=note
        )

    events = [event("launch", DeviceType.CPU), event("kernel", DeviceType.CUDA), event("note", DeviceType.CUDA, True)]
    assert list(_spans(SimpleNamespace(events=lambda: events))) == [Span("kernel", 1.0, 3.0)]


def test_the_rest_is_one_line() -> None:
    kernels = [Kernel(name, calls, seconds) for name, calls, seconds in (("a", 1, 5.0), ("b", 2, 3.0), ("c", 4, 1.0))]
    assert top(kernels, 3) == (kernels, None)
    assert top(kernels, 1) == (kernels[:1], Kernel("2 others", 6, 4.0))


def profile(on_gpu: bool, busy: float, step: float, recorded: float) -> Profile:
    return Profile(
        unit="step",
        rows=2,
        tokens=10.4,
        on_gpu=on_gpu,
        step_time=Summary(3, step, step, step, step, step),
        recorded=4,
        recorded_time=recorded,
        busy=busy,
        kernels=(Kernel("long " * 40, 2.0, 0.003), Kernel("b", 1.0, 0.001)),
    )


def test_the_share_without_kernels() -> None:
    assert profile(True, 0.003, 0.004, 0.3).idle == pytest.approx(0.25)
    assert profile(True, 0.005, 0.004, 0.3).idle == 0.0
    assert profile(False, 0.003, 0.001, 0.006).idle == pytest.approx(0.5)


def test_the_tables() -> None:
    one = profile(True, 0.003, 0.004, 0.005)
    rows = dict(profiles.profile_rows(one))
    assert rows["kernels a step"] == "4.000 ms"
    assert rows["device idle"] == "25.0 %"
    assert rows["steps recorded"] == "4, 5.00 ms each"
    assert rows["tokens a row"] == "10"
    assert "outside operators" in dict(profiles.profile_rows(profile(False, 0.003, 0.004, 0.005)))
    text = columns(profiles.profile_columns(one), 4).splitlines()
    assert text[0].endswith("kernel")
    assert text[1].split()[:5] == ["3000.0", "2.0", "1500.00", "75.0", "%"]
    assert text[2].split() == ["1000.0", "1.0", "1000.00", "25.0", "%", "b"]
    assert len(text[1]) < 120
    results = profiles.profile_results(one)
    assert (results["idle"], results["kernel_time"]) == (pytest.approx(0.25), pytest.approx(0.004))
    assert results["kernels"][1] == {"name": "b", "calls": 1.0, "seconds": 0.001}


PRODUCTS = ("octavo_product", "aten::mm", "aten::addmm")
"""By the C kernels, and by torch where there is no compiler."""


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    model = make_chat_model(tmp_path_factory.mktemp("profile") / "chat")
    with LLM(str(model), kv_cache_memory=8 << 20, max_num_batched_tokens=32, max_num_seqs=8, device="cpu") as made:
        yield made


class Steps(list[StepPlan]):
    """The plans of an engine's steps."""

    def __call__(self, plan: StepPlan | None, events: Sequence[Event]) -> None:
        if plan is not None:
            self.append(plan)


@pytest.fixture
def steps(llm: LLM) -> Iterator[Steps]:
    watch = Steps()
    llm.engine.listeners.append(watch)
    yield watch
    llm.engine.listeners.remove(watch)
    assert not llm.engine.has_unfinished_requests()


def test_decode_steps_are_settled_timed_and_recorded(llm: LLM, steps: Steps, tmp_path: Path) -> None:
    trace, ticks = tmp_path / "trace.json", itertools.count()
    recorder = Recorder(timed=4, recorded=3, trace=trace, clock=lambda: float(next(ticks)))
    result = profile_decode(llm.engine, 3, 40, recorder, random.Random(0))
    alike = list(itertools.takewhile(lambda plan: plan.num_tokens == 3, reversed(steps)))
    assert len(alike) >= SETTLE + 4 + 3
    assert all(len(plan.rows) == 3 for plan in alike)
    assert (result.unit, result.rows, result.recorded, result.step_time.count) == ("step", 3, 3, 4)
    assert (result.step_time.mean, result.recorded_time) == (1.0, 1.0)
    last = sum(row.start + 1 for row in steps[-1].rows) / 3
    assert result.tokens == last - 3 + 1  # each of the recorded steps adds one, the last one's is not computed
    products = sum(kernel.calls for kernel in result.kernels if kernel.name in PRODUCTS)
    assert products == 4 * LAYERS + 1  # of qkv, output, gate and up, down; logits
    assert 0 <= result.idle < 1
    assert result.kernel_time == pytest.approx(result.busy)
    assert len(json.loads(trace.read_text())["traceEvents"]) > 3


def test_a_prompt_is_computed_alone_in_as_many_steps_as_it_takes(llm: LLM, steps: Steps) -> None:
    result = profile_prompt(llm.engine, 70, Recorder(timed=2, recorded=1), random.Random(1))
    assert [plan.num_tokens for plan in steps] == [32, 32, 6] * 4  # one to warm up, two timed, one recorded
    assert (result.unit, result.rows, result.tokens, result.step_time.count) == ("prompt", 1, 70, 2)
    products = sum(kernel.calls for kernel in result.kernels if kernel.name in PRODUCTS)
    assert products == 3 * 4 * LAYERS + 1


def test_our_c_kernels_have_names_while_recorded() -> None:
    before = dict(vars(Tasks))
    seen: list[bool] = []

    def work() -> None:
        seen.append(vars(Tasks)["run"] is not before["run"] and vars(Tasks)["run_all"] is not before["run_all"])
        torch.ones(3).add_(1)

    recording = record(work, on_gpu=False)
    assert seen == [True]
    assert vars(Tasks) == before
    assert "aten::add_" in {kernel.name for kernel in recording.kernels}


def test_a_recording_of_nothing_is_an_error() -> None:
    with pytest.raises(OctavoError, match="the profiler saw no kernels"):
        record(lambda: None, on_gpu=False)


@pytest.mark.usefixtures("steps")
def test_what_does_not_fit_is_told_beforehand(llm: LLM) -> None:
    recorder, rng = Recorder(2, 2), random.Random(0)
    with pytest.raises(UsageError, match=r"a context of 8190 grows by up to .* and at most 8192 fit"):
        profile_decode(llm.engine, 1, 8190, recorder, rng)
    room = llm.engine.ledger.kv_tokens
    with pytest.raises(UsageError, match=f"8 rows of .* KV cache of {room} tokens; at most 4 rows are accepted"):
        profile_decode(llm.engine, 8, 5000, recorder, rng)
    with pytest.raises(UsageError, match="a prompt of 8192 tokens and one more do not fit; at most 8191"):
        profile_prompt(llm.engine, 8192, recorder, rng)


@pytest.mark.usefixtures("steps")
def test_a_row_that_is_missing_is_an_error(llm: LLM) -> None:
    llm.engine.add_request([1, 2, 3])
    with pytest.raises(OctavoError, match="1 of 2 rows were in a step: the KV cache is full"):
        profiles._decode(llm.engine, 2)
    llm.engine.abort_all()


@pytest.mark.usefixtures("steps")
def test_an_interrupt_leaves_nothing_behind(llm: LLM) -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        profile_decode(llm.engine, 2, 9, Recorder(1, 1, check=stop), random.Random(0))


def test_a_thread_that_cannot_be_seen_is_refused(tmp_path: Path) -> None:
    model = make_chat_model(tmp_path / "chat")
    with (
        LLM(str(model), kv_cache_memory=8 << 20, async_scheduling=True, device="cpu") as ahead,
        pytest.raises(UsageError, match="with async_scheduling a CPU computes in a thread"),
    ):
        profile_decode(ahead.engine, 1, 9, Recorder(1, 1), random.Random(0))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_kernels_of_a_gpu() -> None:
    a = torch.ones(512, 512, device="cuda")
    a @ a
    recording = record(lambda: [a @ a for _ in range(3)] and None, on_gpu=True)
    assert sum(kernel.calls for kernel in recording.kernels) == 3
    assert 0 < recording.busy <= sum(kernel.seconds for kernel in recording.kernels) + 1e-9
