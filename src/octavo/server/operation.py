"""What operators have of a server, joined: metrics, health, log, traces, and the doors before its routes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from octavo.client.verbs import EngineClient
from octavo.server.authentication import Authentication
from octavo.server.body_limit import BodyLimit
from octavo.server.caller import REQUEST_ID
from octavo.server.deadline import Deadline
from octavo.server.debugging import debug_router
from octavo.server.draining import Draining
from octavo.server.exposition import Exporter, metrics_router
from octavo.server.health import Health, health_router
from octavo.server.keys import KeyRing, make_key
from octavo.server.log_lines import log_http, log_request
from octavo.server.metrics import Metrics
from octavo.server.observation import Observation
from octavo.server.observed import ObservedClient
from octavo.server.options import ServerOptions
from octavo.server.request_record import Sink
from octavo.server.tracing import end_traces, export_to, tracing_to
from octavo.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Operation:
    """The parts that live as long as the server.

    Attributes:
        client: the engine, seen: what goes through it is counted, logged and traced.
        traces: None where there are none.
    """

    client: ObservedClient
    metrics: Metrics
    health: Health
    keys: KeyRing
    traces: TracerProvider | None


def make_operation(client: EngineClient, options: ServerOptions, tokenizer: Tokenizer | None) -> Operation:
    """Raises ``UsageError`` for a wrong file of keys, and for traces that cannot be sent."""
    metrics = Metrics(client.info.token_limit)
    traces = None if options.otlp_endpoint is None else export_to(options.otlp_endpoint)
    sinks: list[Sink] = [log_request] if traces is None else [log_request, tracing_to(traces)]
    name = (*options.served_model_names, client.info.model)[0]
    keys = KeyRing([make_key(f"key-{i}", key) for i, key in enumerate(options.api_keys, 1)], options.api_key_file)
    if keys.ranked and client.info.scheduling_policy != "priority":
        log.warning("the API keys' priorities have no effect; they have with --scheduling-policy priority")
    return Operation(
        ObservedClient(client, metrics, name, sinks, decode=_decoder(tokenizer) if options.log_texts else None),
        metrics,
        Health(client, options.stall_seconds),
        keys,
        traces,
    )


def _decoder(tokenizer: Tokenizer | None) -> Callable[[Sequence[int]], str]:
    """Ids stand for themselves where there is no tokenizer."""
    return str if tokenizer is None else tokenizer.decode


def install(app: FastAPI, operation: Operation, options: ServerOptions) -> None:
    """Add the operators' routes, and the doors: a request comes through the last one added first."""
    health, client = operation.health, operation.client
    exporter = Exporter(
        client, operation.metrics, client.model, options.metrics_prefix, lambda: health.trouble() is None
    )
    app.include_router(metrics_router(exporter))
    app.include_router(health_router(health))
    if options.debug_routes:
        app.include_router(debug_router(client))
    app.add_middleware(BodyLimit, limit=options.max_body_bytes)
    app.add_middleware(Deadline, limit=options.max_timeout)
    app.add_middleware(Authentication, keys=operation.keys)
    app.add_middleware(Draining, health=health)
    if options.cors_origins:
        origins, every = options.cors_origins, ("*",)
        app.add_middleware(
            CORSMiddleware,
            allow_origins=origins,
            allow_methods=every,
            allow_headers=every,
            expose_headers=(REQUEST_ID, "retry-after"),
        )
    app.add_middleware(Observation, metrics=operation.metrics, note=log_http)


@asynccontextmanager
async def running(operation: Operation) -> AsyncIterator[None]:
    """Watch the engine inside the block; send the last traces after it."""
    watching = asyncio.create_task(operation.health.watch())
    try:
        yield
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        if operation.traces is not None:
            await asyncio.to_thread(end_traces, operation.traces)
