"""What the log says: a line for each request to the engine when it has ended, and for each refusal.

Prompts and answers are in it only where the operator has asked for them.
"""

from __future__ import annotations

import logging
from typing import Any

from octavo.server.observation import HttpRecord
from octavo.server.request_record import RequestRecord

log = logging.getLogger("octavo.requests")


def log_request(record: RequestRecord) -> None:
    """One line about a request that has ended. A `Sink`."""
    level = logging.WARNING if record.finish_reason == "error" else logging.INFO
    log.log(level, "request", extra={"fields": request_fields(record)})


def log_http(record: HttpRecord) -> None:
    """One line about an HTTP request that was answered with an error; the others have their engine's requests."""
    if record.status >= 400:
        fields = {
            "request_id": record.request_id,
            "key": record.key or None,
            "method": record.method,
            "path": record.path,
            "status": record.status,
            "seconds": round(record.seconds, 4),
        }
        level = logging.ERROR if record.status >= 500 else logging.INFO
        log.log(level, "http", extra={"fields": _given(fields)})


def request_fields(record: RequestRecord) -> dict[str, Any]:
    """What the line says; what is not known is left out. Times are in seconds."""
    metrics = record.metrics
    fields = {
        "id": record.id,
        "request_id": record.caller.request_id or None,
        "key": record.caller.name or None,
        "model": record.model,
        "finish_reason": record.finish_reason,
        "error": record.error,
        "prompt_tokens": record.prompt_tokens,
        "cached_tokens": metrics.num_cached_tokens or None,
        "output_tokens": record.output_tokens,
        "queued": record.queue_time,
        "waited_for": metrics.waited_for or None,
        "first_token": metrics.time_to_first_token,
        "per_token": record.time_per_output_token,
        "total": record.latency,
        "preemptions": metrics.num_preemptions or None,
        "prompt": record.prompt,
        "texts": None if record.texts is None else list(record.texts),
    }
    return _given({name: round(value, 4) if isinstance(value, float) else value for name, value in fields.items()})


def _given(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}
