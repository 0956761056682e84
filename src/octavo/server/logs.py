"""The log: a line for each request to the engine when it has ended, as text or as JSON.

Prompts and answers are in it only where the operator has asked for them.
"""

from __future__ import annotations

import json
import logging
import queue
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from logging.handlers import QueueHandler, QueueListener
from typing import Any, TextIO

from octavo.server.observation import HttpRecord
from octavo.server.request_record import RequestRecord

FORMATS = ("text", "json")
QUEUED = 10_000
"""Lines that may wait to be written. Whoever reads our output slowly loses lines; he does not stop the server."""
PATIENCE = 2.0
"""Seconds for which the end of the server waits for whoever reads our output."""

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
        "text": record.text,
    }
    return _given({name: round(value, 4) if isinstance(value, float) else value for name, value in fields.items()})


def _given(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


class JsonFormatter(logging.Formatter):
    """One JSON object a line: ``time``, ``level``, ``logger``, ``message``, and the line's own fields."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return _json(line)


class TextFormatter(logging.Formatter):
    """``time level message name=value …``, where nothing that a caller sent can begin a line of its own."""

    def format(self, record: logging.LogRecord) -> str:
        fields = getattr(record, "fields", {})
        words = [_time(record), record.levelname.lower(), _escaped(record.getMessage())]
        words += [f"{name}={_quoted(value)}" for name, value in fields.items()]
        traceback = "\n" + self.formatException(record.exc_info) if record.exc_info else ""
        return " ".join(words) + traceback


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")


def _quoted(value: Any) -> str:
    text = str(value)
    return text if re.fullmatch(r"[\w.:@/+-]+", text, re.ASCII) else f'"{_escaped(text, quote=True)}"'


def _escaped(text: str, quote: bool = False) -> str:
    """Without line ends and terminal controls."""
    escaped = _json(text)[1:-1]
    return escaped if quote else escaped.replace('\\"', '"')


def _json(value: Any) -> str:
    """In ASCII: what a caller sends, halves of surrogate pairs too, can neither fail nor move a terminal's cursor."""
    return json.dumps(value).replace("\x7f", "\\u007f")


class _Dropping(QueueHandler):
    """Puts lines into a queue, and forgets those for which there is no place."""

    def enqueue(self, record: logging.LogRecord) -> None:
        try:
            self.queue.put_nowait(record)
        except queue.Full:
            return

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        return record  # formatted by the thread that writes: it keeps the fields


class _Writing(QueueListener):
    """The thread that writes. At the end it has `PATIENCE` to write what is queued."""

    def enqueue_sentinel(self) -> None:
        self.queue.put(None, timeout=PATIENCE)  # type: ignore[attr-defined]  # it is our Queue

    def stop(self) -> None:
        with suppress(queue.Full):  # nobody reads: what is queued is lost, and the process may end
            self.enqueue_sentinel()
            if self._thread is not None:
                self._thread.join(PATIENCE)
        self._thread = None


@contextmanager
def logging_to(stream: TextIO = sys.stderr, style: str = "text", level: int = logging.INFO) -> Iterator[None]:
    """Inside the block all of Octavo's and uvicorn's loggers write to ``stream``, from a thread of their own: a full
    pipe or a slow disk must not hold up the event loop.

    Args:
        style: one of `FORMATS`.
    """
    writer = logging.StreamHandler(stream)
    writer.setFormatter(JsonFormatter() if style == "json" else TextFormatter())
    lines: queue.Queue[logging.LogRecord] = queue.Queue(QUEUED)
    handler, listener = _Dropping(lines), _Writing(lines, writer)
    loggers = [logging.getLogger(name) for name in ("octavo", "uvicorn.error")]
    before = [(logger, logger.level, logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(level)
        logger.propagate = False
    listener.start()
    try:
        yield
    finally:
        for logger, old_level, propagate in before:
            logger.removeHandler(handler)
            logger.setLevel(old_level)
            logger.propagate = propagate
        listener.stop()
