"""What is noted of requests that pass: times, tokens, and how they ended."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from helpers_scripted_engine import Clock, News, ScriptedEngine
from octavo.client.verbs import BusyError, EngineDeadError, Load
from octavo.errors import RequestError
from octavo.outputs import RequestMetrics
from octavo.sampling_params import SamplingParams
from octavo.server.caller import Caller
from octavo.server.metrics import Metrics
from octavo.server.observed import ObservedClient
from octavo.server.request_record import RequestRecord

CALLER = Caller(request_id="http-1", name="alice")
DONE = RequestMetrics(
    arrival_time=100.0, first_scheduled_time=101.0, first_token_time=101.5, finished_time=103.5, num_cached_tokens=3
)


def observe(engine: ScriptedEngine, **options: Any) -> tuple[ObservedClient, list[RequestRecord]]:
    records: list[RequestRecord] = []
    client = ObservedClient(engine, Metrics(300), "tiny", [records.append], clock=engine.clock, **options)
    return client, records


async def read(client: ObservedClient, most: int = 99, prompt: Any = (1, 2, 3), **params: Any) -> int:
    count = 0
    news = client.of(CALLER).generate(prompt, SamplingParams(**params), request_id="r", priority=5, share_key="alice")
    async for _ in news:
        count += 1
        if count == most:
            break
    await news.aclose()  # type: ignore[attr-defined]
    return count


def run(client: ObservedClient, **options: Any) -> int:
    return asyncio.run(read(client, **options))


def counts(client: ObservedClient, name: str) -> tuple[int, float]:
    histogram = client.metrics.histograms[name]
    return sum(histogram.counts), histogram.total


def test_times_and_tokens_of_a_request() -> None:
    script = [News(1.5), News(0.5, 2), News(1.0, 1), News(0.5, 1, finish_reason="length", metrics=DONE)]
    engine = ScriptedEngine(Clock(), script)
    client, records = observe(engine)
    assert run(client, max_tokens=5) == 4
    (record,) = records
    assert (record.id, record.model, record.caller, record.finish_reason) == ("r", "tiny", CALLER, "length")
    assert (record.prompt_tokens, record.output_tokens, record.latency) == (3, 5, 3.5)
    assert (record.queue_time, record.prefill_time, record.decode_time) == (1.0, 0.5, 2.0)
    assert (record.inference_time, record.time_per_output_token) == (2.5, 0.5)
    assert counts(client, "time_to_first_token_seconds") == (1, 1.5)
    assert counts(client, "inter_token_latency_seconds") == (4, 2.0)
    assert client.metrics.histograms["inter_token_latency_seconds"].counts[10] == 2  # two gaps of 0.25 s
    assert counts(client, "e2e_request_latency_seconds") == (1, 3.5)
    assert counts(client, "request_generation_tokens") == (1, 5)
    assert engine.asked == [{"request_id": "r", "lora": None, "priority": 5, "share_key": "alice"}]


def test_completions_of_a_prompt_have_gaps_of_their_own() -> None:
    script = [News(1.0, index=0), News(1.0, index=1), News(1.0, index=0), News(1.0, index=1, finish_reason="stop")]
    client, _ = observe(ScriptedEngine(Clock(), script))
    run(client, n=2)
    assert counts(client, "time_to_first_token_seconds") == (1, 1.0)
    assert counts(client, "inter_token_latency_seconds") == (2, 4.0)


def test_the_longest_completion_counts_too() -> None:
    script = [News(1.0, 3), News(1.0, 2, index=1), News(1.0, 4, finish_reason="stop")]
    client, records = observe(ScriptedEngine(Clock(), script))
    run(client, n=2)
    assert (records[0].output_tokens, records[0].longest_output) == (9, 7)
    assert counts(client, "request_max_num_generation_tokens") == (1, 7)


def test_a_request_that_is_left_is_aborted_at_once() -> None:
    engine = ScriptedEngine(Clock(), [News(1.0)] * 5)
    client, records = observe(engine)
    assert run(client, most=2) == 2
    assert engine.left == 1
    assert (records[0].finish_reason, records[0].output_tokens) == ("abort", 2)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RequestError("too long"), "refused"),
        (BusyError("full", 2.0), "refused"),
        (EngineDeadError("killed by signal 9"), "error"),
        (KeyError("a bug"), "error"),
    ],
)
def test_errors_pass_and_are_noted(error: Exception, reason: str) -> None:
    client, records = observe(ScriptedEngine(Clock(), [], failure=error))
    with pytest.raises(type(error)):
        run(client)
    assert (records[0].finish_reason, records[0].error) == (reason, str(error))
    assert counts(client, "e2e_request_latency_seconds")[0] == (reason == "error")


def test_an_error_inside_the_engine_has_its_message() -> None:
    client, records = observe(ScriptedEngine(Clock(), [News(1.0, finish_reason="error")]))
    run(client)
    assert records[0].finish_reason == "error"


@pytest.mark.parametrize(
    ("reason", "why", "expected"),
    [
        ("abort", "deadline", "deadline"),
        ("abort", None, None),
        ("error", "no memory", "no memory"),
        ("stop", "END", None),
    ],
)
def test_why_it_was_cut_off_is_noted(reason: str, why: str | None, expected: str | None) -> None:
    client, records = observe(ScriptedEngine(Clock(), [News(1.0, finish_reason=reason, stop_reason=why)]))
    run(client)
    assert (records[0].finish_reason, records[0].error) == (reason, expected)


def test_texts_are_kept_only_on_demand() -> None:
    script = [News(1.0, text="Hel"), News(1.0, text="A", index=1), News(1.0, text="lo")]
    for decode, prompt, expected in (
        (None, "Say it", (None, None)),
        (str, "Say it", ("Say it", ("Hello", "A"))),
        (str, [1, 2], ("[1, 2]", ("Hello", "A"))),
    ):
        client, records = observe(ScriptedEngine(Clock(), script), decode=decode)
        run(client, prompt=prompt)
        assert (records[0].prompt, records[0].texts) == expected


def test_a_prompt_that_was_refused_has_its_length() -> None:
    client, records = observe(ScriptedEngine(Clock(), [], failure=RequestError("too long")))
    with pytest.raises(RequestError):
        run(client)
    assert records[0].prompt_tokens == 3


def test_an_embedding_is_a_request_too() -> None:
    engine = ScriptedEngine()
    client, records = observe(engine)
    output = asyncio.run(client.of(CALLER).embed([1, 2], request_id="e", priority=3))
    assert output.embedding == [1.0]
    assert (records[0].finish_reason, records[0].prompt_tokens, records[0].output_tokens) == ("stop", 2, 0)
    assert counts(client, "time_to_first_token_seconds") == (0, 0)
    assert engine.asked == [{"request_id": "e", "lora": None, "priority": 3}]


LOADS = (
    Load(steps=2, prompt_tokens=30, cached_tokens=20),
    Load(steps=2),
    Load(steps=3, prompt_tokens=30, cached_tokens=20, generated_tokens=4),
)


def test_tokens_of_steps_are_counted_between_snapshots() -> None:
    metrics = Metrics(300)
    for load in LOADS:
        metrics.step(load)
    histogram = metrics.histograms["iteration_tokens_total"]
    assert (sum(histogram.counts), histogram.total) == (3, 14)
    assert histogram.counts[1] == 3  # two steps of 5 each on average, one of 4
