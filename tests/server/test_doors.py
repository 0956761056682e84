"""What stands before the routes: ids, counts, sizes, deadlines, and the door that closes at the end."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from fastapi import FastAPI, Request
from fastapi.testclient import TestClient

from helpers_scripted_engine import ScriptedEngine
from octavo.server.body_limit import BodyLimit
from octavo.server.caller import caller_of
from octavo.server.deadline import Deadline, seconds_of
from octavo.server.draining import Draining
from octavo.server.health import Health
from octavo.server.metrics import Metrics
from octavo.server.observation import HttpRecord, Observation, request_id_of


def app_with(middleware: Any, **options: Any) -> TestClient:
    app = FastAPI()
    app.add_middleware(middleware, **options)

    @app.post("/v1/echo/{name}")
    async def echo(name: str, request: Request) -> dict[str, Any]:
        caller = caller_of(request)
        size = len(await request.body())
        return {"size": size, "id": caller.request_id, "trace": caller.trace, "timeout": caller.timeout}

    @app.get("/broken")
    async def broken() -> None:
        raise RuntimeError("a bug")

    return TestClient(app, raise_server_exceptions=False)


# ---------------------------------------------------------------- observation


def observed() -> tuple[TestClient, Metrics, list[HttpRecord]]:
    metrics, records = Metrics(300), list[HttpRecord]()
    ticks = iter(range(1000))
    client = app_with(Observation, metrics=metrics, note=records.append, clock=lambda: float(next(ticks)))
    return client, metrics, records


def test_a_request_has_its_senders_id_or_a_new_one() -> None:
    client, _, records = observed()
    answer = client.post("/v1/echo/a", headers={"X-Request-Id": "my-1", "traceparent": "00-ab-cd-01"})
    assert (answer.headers["x-request-id"], answer.json()["id"]) == ("my-1", "my-1")
    assert answer.json()["trace"] == {"traceparent": "00-ab-cd-01"}
    new = {client.post("/v1/echo/a").headers["x-request-id"] for _ in range(3)}
    assert len(new) == 3
    assert records[0] == HttpRecord("my-1", "", "POST", "/v1/echo/a", 200, 1.0)


@pytest.mark.parametrize("hostile", ["", "a b", "a\tb", "x" * 129, "a\nINFO forged", '{"a":1}', "ü", "\x1b[2J"])
def test_an_id_that_could_forge_a_log_is_replaced(hostile: str) -> None:
    assert request_id_of(hostile) != hostile
    assert len(request_id_of(hostile)) == 32


@pytest.mark.parametrize("good", ["a", "req_01-AB.c:d@e/f+g=", "x" * 128])
def test_an_id_that_may_stand_in_a_header_is_kept(good: str) -> None:
    assert request_id_of(good) == good


def test_requests_are_counted_by_pattern_so_that_callers_make_no_series() -> None:
    client, metrics, _ = observed()
    for name in ("a", "b", "c"):
        client.post(f"/v1/echo/{name}")
    client.get("/nothing/1")
    client.get("/nothing/2")
    client.request("BREW", "/v1/echo/a")
    client.get("/broken")
    assert metrics.http_requests["POST", "/v1/echo/{name}", "200"] == 3
    assert metrics.http_requests["GET", "none", "404"] == 2
    assert [key for key in metrics.http_requests if key[0] not in ("GET", "POST")] == [
        ("other", "/v1/echo/{name}", "405")
    ]
    assert metrics.http_durations["POST", "/v1/echo/{name}"].total == 3.0
    assert sum(count for (_, route, _), count in metrics.http_requests.items() if route == "/broken") == 1


# ---------------------------------------------------------------- sizes


def chunks(count: int, size: int, sent: list[int]) -> Iterator[bytes]:
    for i in range(count):
        sent.append(i)
        yield b"x" * size


@pytest.mark.parametrize(("size", "status"), [(0, 200), (100, 200), (101, 413)])
def test_a_body_has_a_largest_size(size: int, status: int) -> None:
    client = app_with(BodyLimit, limit=100)
    assert client.post("/v1/echo/a", content=b"x" * size).status_code == status
    assert client.post("/v1/echo/a", content=chunks(size, 1, [])).status_code == status


def test_a_refused_body_says_what_is_accepted_and_closes() -> None:
    answer = app_with(BodyLimit, limit=100).post("/v1/echo/a", content=b"x" * 1000)
    assert answer.headers["connection"] == "close"
    assert answer.json()["error"]["message"] == "the body is too large; accepted: up to 100 bytes"


# ---------------------------------------------------------------- deadlines


@pytest.mark.parametrize(
    ("limit", "header", "timeout"),
    [(None, None, None), (60, None, 60), (60, "5.5", 5.5), (60, "90", 60), (None, "9", 9)],
)
def test_the_shorter_deadline_counts(limit: float | None, header: str | None, timeout: float | None) -> None:
    client = app_with(Deadline, limit=limit)
    headers = {} if header is None else {"X-Request-Timeout": header}
    assert client.post("/v1/echo/a", headers=headers).json()["timeout"] == timeout


@pytest.mark.parametrize("text", ["", "0", "-1", "soon", "nan", "inf", "1e999", "5s"])
def test_what_is_no_timeout_is_refused(text: str) -> None:
    assert seconds_of(text) is None
    answer = app_with(Deadline, limit=None).post("/v1/echo/a", headers={"X-Request-Timeout": text})
    assert answer.status_code == 400
    assert "accepted: seconds, more than 0" in answer.json()["error"]["message"]


# ---------------------------------------------------------------- the end


def test_a_draining_server_sends_new_requests_away() -> None:
    health = Health(ScriptedEngine())
    client = app_with(Draining, health=health)
    assert "connection" not in client.post("/v1/echo/a").headers
    health.draining = True
    answer = client.post("/v1/echo/a")
    assert (answer.status_code, answer.headers["connection"], answer.headers["retry-after"]) == (503, "close", "5")


def test_an_answer_that_begins_while_the_server_drains_closes_its_connection() -> None:
    health = Health(ScriptedEngine())
    app = FastAPI()
    app.add_middleware(Draining, health=health)

    @app.get("/slow")
    async def slow() -> str:
        health.draining = True
        return "done"

    answer = TestClient(app).get("/slow")
    assert (answer.status_code, answer.headers["connection"]) == (200, "close")
