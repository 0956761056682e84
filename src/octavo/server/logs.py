"""How the log is written: as text or as JSON, and without ever holding up the server."""

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

FORMATS = ("text", "json")
QUEUED = 10_000
"""Lines that may wait to be written. Whoever reads our output slowly loses lines; he does not stop the server."""
LOGGERS = ("octavo", "uvicorn.error", "opentelemetry")
"""Whose lines are ours: OpenTelemetry tells here that a collector is gone."""
PATIENCE = 2.0
"""Seconds for which the end of the server waits for whoever reads our output."""


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
def logging_to(stream: TextIO | None = None, style: str = "text", level: int = logging.INFO) -> Iterator[None]:
    """Inside the block the loggers of `LOGGERS` write to ``stream``, from a thread of their own: a full
    pipe or a slow disk must not hold up the event loop.

    Args:
        stream: None is standard error.
        style: one of `FORMATS`.
    """
    writer = logging.StreamHandler(sys.stderr if stream is None else stream)
    writer.setFormatter(JsonFormatter() if style == "json" else TextFormatter())
    lines: queue.Queue[logging.LogRecord] = queue.Queue(QUEUED)
    handler, listener = _Dropping(lines), _Writing(lines, writer)
    loggers = [logging.getLogger(name) for name in LOGGERS]
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
