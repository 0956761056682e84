"""OpenTelemetry: a span for each request to the engine, made when it has ended, so that none costs a living one.

Attributes have the names of OpenTelemetry's conventions for generative AI, and vLLM's for times:
https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-spans/
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from octavo.errors import UsageError
from octavo.server.request_record import RequestRecord, Sink
from octavo.version import __version__

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

SPAN = "llm_request"

LAST_SECONDS = 3.0
"""For sending the last spans. OpenTelemetry tries for much longer when a collector is gone, and nobody could end us."""


def check_export(endpoint: str) -> None:
    """Raise ``UsageError`` if OpenTelemetry is not installed, or ``endpoint`` is no address."""
    if not _is_address(endpoint):
        raise UsageError(f"{endpoint!r} is no collector's address; accepted: http://HOST:4318/v1/traces")
    try:
        import opentelemetry.exporter.otlp.proto.http.trace_exporter
        import opentelemetry.sdk.trace.export  # noqa: F401
    except ImportError:
        raise UsageError("traces need OpenTelemetry: pip install 'octavo[otel]'") from None


def _is_address(endpoint: str) -> bool:
    try:
        parts = urlsplit(endpoint)
    except ValueError:  # half of an IPv6 address
        return False
    return parts.scheme in ("http", "https") and bool(parts.hostname)


def export_to(endpoint: str) -> TracerProvider:
    """A provider that sends spans to a collector by OTLP over HTTP, in batches and from a thread of its own.

    Args:
        endpoint: as ``http://localhost:4318/v1/traces``; the variables ``OTEL_*`` say the rest.

    Raises:
        UsageError: as `check_export` does.
    """
    check_export(endpoint)
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    ours = Resource.create({"service.name": "octavo", "service.version": __version__})
    resource = ours.merge(OTELResourceDetector().detect())  # once more: what is given in code would win
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
    return provider


def end_traces(provider: TracerProvider) -> None:
    """Send what is left; spans that no collector has taken after `LAST_SECONDS` are lost."""
    sending = threading.Thread(target=provider.shutdown, daemon=True)
    sending.start()
    sending.join(LAST_SECONDS)


def tracing_to(provider: TracerProvider) -> Sink:
    """A sink that makes a span of each record, below the span that the caller's ``traceparent`` names."""
    from opentelemetry.trace import SpanKind, Status, StatusCode
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    tracer = provider.get_tracer("octavo.server", __version__)
    propagator = TraceContextTextMapPropagator()

    def trace(record: RequestRecord) -> None:
        start = _nanoseconds(record.started_at)
        span = tracer.start_span(
            SPAN,
            context=propagator.extract(dict(record.caller.trace)),
            kind=SpanKind.SERVER,
            attributes=span_attributes(record),
            start_time=start,
        )
        if record.finish_reason == "error":
            span.set_status(Status(StatusCode.ERROR, record.error))
        span.end(start + _nanoseconds(record.latency))

    return trace


def span_attributes(record: RequestRecord) -> dict[str, Any]:
    """What a span says; what is not known is left out. Times are in seconds."""
    params, metrics = record.params, record.metrics
    attributes = {
        "gen_ai.system": "octavo",
        "gen_ai.response.model": record.model,
        "gen_ai.request.id": record.id,
        "gen_ai.request.temperature": params and float(params.temperature),
        "gen_ai.request.top_p": params and float(params.top_p),
        "gen_ai.request.max_tokens": params and params.max_tokens,
        "gen_ai.request.n": params and params.n,
        "gen_ai.usage.prompt_tokens": record.prompt_tokens,
        "gen_ai.usage.completion_tokens": record.output_tokens,
        "gen_ai.usage.cached_tokens": metrics.num_cached_tokens,
        "gen_ai.response.finish_reasons": (record.finish_reason,),
        "gen_ai.latency.time_in_queue": record.queue_time,
        "gen_ai.latency.time_to_first_token": metrics.time_to_first_token,
        "gen_ai.latency.time_in_model_prefill": record.prefill_time,
        "gen_ai.latency.time_in_model_decode": record.decode_time,
        "gen_ai.latency.time_in_model_inference": record.inference_time,
        "gen_ai.latency.e2e": record.latency,
        "octavo.waited_for": metrics.waited_for or None,
        "octavo.preemptions": metrics.num_preemptions,
        "http.request.id": record.caller.request_id or None,
        "enduser.id": record.caller.name or None,
    }
    return {name: value for name, value in attributes.items() if value is not None}


def _nanoseconds(seconds: float) -> int:
    return round(seconds * 1e6) * 1000  # a float has no nanoseconds since 1970
