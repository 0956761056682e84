"""Spans, as an exporter gets them."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Sequence

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from helpers_records import make_record
from octavo.errors import UsageError
from octavo.outputs import RequestMetrics
from octavo.server import tracing
from octavo.server.caller import Caller
from octavo.server.request_record import RequestRecord
from octavo.server.tracing import end_traces, export_to, tracing_to
from octavo.version import __version__

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


def span_of(record: RequestRecord):  # type: ignore[no-untyped-def]
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracing_to(provider)(record)
    (span,) = exporter.get_finished_spans()
    return span


def test_a_request_is_a_span() -> None:
    span = span_of(make_record())
    assert (span.name, span.kind, span.status.status_code) == ("llm_request", SpanKind.SERVER, StatusCode.UNSET)
    assert (span.start_time, span.end_time) == (1_700_000_000_250_000_000, 1_700_000_003_750_000_000)
    assert span.parent is None
    assert dict(span.attributes) == {
        "gen_ai.system": "octavo",
        "gen_ai.response.model": "tiny",
        "gen_ai.request.id": "cmpl-1",
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.top_p": 0.9,
        "gen_ai.request.max_tokens": 7,
        "gen_ai.request.n": 1,
        "gen_ai.usage.prompt_tokens": 20,
        "gen_ai.usage.completion_tokens": 5,
        "gen_ai.usage.cached_tokens": 16,
        "gen_ai.response.finish_reasons": ("stop",),
        "gen_ai.latency.time_in_queue": 1.0,
        "gen_ai.latency.time_to_first_token": 1.5,
        "gen_ai.latency.time_in_model_prefill": 0.5,
        "gen_ai.latency.time_in_model_decode": 2.0,
        "gen_ai.latency.time_in_model_inference": 2.5,
        "gen_ai.latency.e2e": 3.5,
        "octavo.waited_for": "needs 212 blocks, 96 free",
        "octavo.preemptions": 2,
        "http.request.id": "http-1",
        "enduser.id": "alice",
    }


def test_it_hangs_below_the_callers_span() -> None:
    caller = Caller(trace={"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "a=1"})
    span = span_of(make_record(caller=caller))
    assert f"{span.context.trace_id:032x}" == TRACE
    assert f"{span.parent.span_id:016x}" == PARENT
    assert span.context.trace_state.get("a") == "1"


@pytest.mark.parametrize("hostile", ["", "rubbish", f"00-{TRACE}-{'0' * 16}-01", "00-" + "g" * 32 + f"-{PARENT}-01"])
def test_a_parent_that_is_none_is_ignored(hostile: str) -> None:
    assert span_of(make_record(caller=Caller(trace={"traceparent": hostile}))).parent is None


def test_a_failure_is_an_error_and_a_refusal_has_no_times() -> None:
    failed = span_of(make_record(finish_reason="error", error="no finite maximum"))
    assert (failed.status.status_code, failed.status.description) == (StatusCode.ERROR, "no finite maximum")
    refused = span_of(make_record(finish_reason="refused", metrics=RequestMetrics(), params=None))
    assert "gen_ai.latency.time_in_queue" not in refused.attributes
    assert "gen_ai.request.n" not in refused.attributes


@pytest.mark.parametrize("wrong", ["localhost:4317", "http://", "https:///v1/traces", "http://[::1/v1/traces", ""])
def test_the_collectors_address_is_checked(wrong: str) -> None:
    with pytest.raises(UsageError, match="accepted: http://HOST:4318/v1/traces"):
        export_to(wrong)


def test_a_collector_is_told_who_we_are() -> None:
    provider = export_to("http://127.0.0.1:9/v1/traces")
    assert provider.resource.attributes["service.name"] == "octavo"
    provider.shutdown()


def test_variables_say_whose_spans_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "chat")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "team=red")
    provider = export_to("http://127.0.0.1:9/v1/traces")
    attributes = provider.resource.attributes
    assert (attributes["service.name"], attributes["team"]) == ("chat", "red")
    assert attributes["service.version"] == __version__
    provider.shutdown()


class StuckExporter(SpanExporter):
    """Of a collector that takes no end."""

    def __init__(self) -> None:
        self.begun, self.go_on = threading.Event(), threading.Event()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.begun.set()
        self.go_on.wait(60)
        return SpanExportResult.SUCCESS


def test_the_end_does_not_wait_for_a_collector_that_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "LAST_SECONDS", 0.2)
    exporter, provider = StuckExporter(), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    tracing_to(provider)(make_record())
    ended = threading.Thread(target=end_traces, args=(provider,), daemon=True)
    ended.start()
    assert exporter.begun.wait(20)
    ended.join(20)
    assert not ended.is_alive()
    exporter.go_on.set()


def test_without_traces_nothing_of_opentelemetry_is_loaded() -> None:
    code = "import sys, octavo.server.tracing; sys.exit(any(name.startswith('opentelemetry') for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
