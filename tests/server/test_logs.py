"""Lines of the log, for people and for programs."""

from __future__ import annotations

import io
import json
import logging
import threading
from typing import Any

import pytest

from helpers_records import make_record
from octavo.outputs import RequestMetrics
from octavo.server.caller import Caller
from octavo.server.log_lines import log_http, log_request, request_fields
from octavo.server.logs import QUEUED, logging_to
from octavo.server.observation import HttpRecord

EXPECTED = {
    "id": "cmpl-1",
    "request_id": "http-1",
    "key": "alice",
    "model": "tiny",
    "finish_reason": "stop",
    "prompt_tokens": 20,
    "cached_tokens": 16,
    "output_tokens": 5,
    "queued": 1.0,
    "waited_for": "needs 212 blocks, 96 free",
    "first_token": 1.5,
    "per_token": 0.5,
    "total": 3.5,
    "preemptions": 2,
}


def written(style: str, *records: Any) -> list[str]:
    stream = io.StringIO()
    with logging_to(stream, style):
        for record in records:
            (log_http if isinstance(record, HttpRecord) else log_request)(record)
    return stream.getvalue().splitlines()


def test_a_request_as_json() -> None:
    (line,) = written("json", make_record())
    fields = json.loads(line)
    assert {name: fields.pop(name) for name in ("level", "logger", "message")} == {
        "level": "info",
        "logger": "octavo.requests",
        "message": "request",
    }
    assert fields.pop("time").endswith("+00:00")
    assert fields == EXPECTED


@pytest.mark.parametrize("logger", ["octavo.server", "uvicorn.error", "opentelemetry.sdk.trace.export"])
def test_lines_of_what_runs_in_the_server_have_the_same_form(logger: str) -> None:
    stream = io.StringIO()
    with logging_to(stream, "json"):
        logging.getLogger(logger).warning("the collector is gone")
    (line,) = stream.getvalue().splitlines()
    fields = json.loads(line)
    assert (fields["logger"], fields["level"], fields["message"]) == (logger, "warning", "the collector is gone")


def test_a_request_as_text() -> None:
    (line,) = written("text", make_record())
    _, rest = line.split(" ", 1)
    assert rest == (
        "info request id=cmpl-1 request_id=http-1 key=alice model=tiny finish_reason=stop prompt_tokens=20 "
        'cached_tokens=16 output_tokens=5 queued=1.0 waited_for="needs 212 blocks, 96 free" first_token=1.5 '
        "per_token=0.5 total=3.5 preemptions=2"
    )


def test_what_is_not_known_is_left_out() -> None:
    record = make_record(caller=Caller(), metrics=RequestMetrics(), params=None, prompt_tokens=0, output_tokens=0)
    assert set(request_fields(record)) == {"id", "model", "finish_reason", "prompt_tokens", "output_tokens", "total"}


def test_prompts_are_in_it_only_if_the_record_has_them() -> None:
    assert "prompt" not in request_fields(make_record())
    fields = request_fields(make_record(prompt="Say", texts=("Hi", "Ho")))
    assert (fields["prompt"], fields["texts"]) == ("Say", ["Hi", "Ho"])


HOSTILE = 'a\n2026-01-01 info forged="yes"\r\x1b[2J\x7f\u2028 \udc80'


@pytest.mark.parametrize("style", ["text", "json"])
def test_nothing_that_was_sent_begins_a_line_or_moves_the_cursor(style: str) -> None:
    lines = written(style, make_record(prompt=HOSTILE, error=HOSTILE))
    (line,) = lines
    assert line.isprintable()
    if style == "json":
        assert json.loads(line)["prompt"] == HOSTILE


def http(status: int) -> HttpRecord:
    return HttpRecord("http-1", "", "GET", "/v1/models", status, 0.25)


def test_only_errors_of_http_have_a_line() -> None:
    assert written("text", http(200)) == []
    lines = written("json", http(404), http(503))
    assert [(json.loads(line)["status"], json.loads(line)["level"]) for line in lines] == [
        (404, "info"),
        (503, "error"),
    ]
    assert "key" not in json.loads(lines[0])


def test_a_failure_has_its_traceback_and_the_right_level() -> None:
    (line,) = written("json", make_record(finish_reason="error", error="no finite maximum"))
    assert (json.loads(line)["level"], json.loads(line)["error"]) == ("warning", "no finite maximum")
    stream = io.StringIO()
    with logging_to(stream, "json"):
        try:
            raise ValueError("a bug")
        except ValueError:
            logging.getLogger("octavo.server").exception("failed")
    assert "ValueError: a bug" in json.loads(stream.getvalue())["traceback"]


class Stuck(io.StringIO):
    """A pipe that nobody reads."""

    def __init__(self) -> None:
        super().__init__()
        self.released = threading.Event()

    def write(self, text: str) -> int:
        self.released.wait(20)
        return super().write(text)


@pytest.mark.parametrize("reads_later", [True, False])
def test_a_stuck_reader_does_not_stop_the_server(reads_later: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not reads_later:
        monkeypatch.setattr("octavo.server.logs.PATIENCE", 0.01)
    stream, record = Stuck(), make_record()
    with logging_to(stream):
        for _ in range(QUEUED + 100):
            log_request(record)
        if reads_later:
            stream.released.set()
    lines = len(stream.getvalue().splitlines())
    assert QUEUED - 1 <= lines <= QUEUED + 2 if reads_later else lines == 0
    stream.released.set()


def test_afterwards_logging_is_as_it_was() -> None:
    logger = logging.getLogger("octavo")
    before = (logger.level, logger.propagate, list(logger.handlers))
    written("text", make_record())
    assert (logger.level, logger.propagate, list(logger.handlers)) == before
