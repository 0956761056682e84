"""The whole application, as those see it who operate it."""

from __future__ import annotations

import asyncio
import io
import json
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI

from helpers_client import FakeClient
from helpers_http import asgi, call, events_of, make, tokenizer
from octavo.client.verbs import BusyError
from octavo.errors import UsageError
from octavo.server.logs import logging_to
from octavo.server.routes import models

URL = "/v1/completions"
ASK = {"prompt": "Hello there", "max_tokens": 4}


def metric(app: FastAPI, start: str) -> list[float]:
    """Values of the series that begin so."""
    lines = call(app, "GET", "/metrics").text.splitlines()
    return [float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(start)]


def logged(app: FastAPI, *requests: tuple[Any, ...], **options: Any) -> list[dict[str, Any]]:
    stream = io.StringIO()
    with logging_to(stream, "json"):
        for method, path, body in requests:
            call(app, method, path, body, **options)
    return [json.loads(line) for line in stream.getvalue().splitlines()]


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_is_counted(stream: bool) -> None:
    app, _ = make(served_model_names=("mine",))
    assert call(app, "POST", URL, {**ASK, "stream": stream}).status_code == 200
    series = 'engine="0",model_name="mine"}'
    assert metric(app, f"octavo:request_generation_tokens_sum{{{series}") == [4]
    assert metric(app, f"octavo:inter_token_latency_seconds_count{{{series}") == [3]
    assert metric(app, f"octavo:request_queue_time_seconds_sum{{{series}") == [0.25]
    assert metric(app, 'http_requests_total{handler="/v1/completions",method="POST",status="200"}') == [1]
    assert metric(app, 'http_requests_total{handler="/metrics"') == [4]


def test_the_prefix_of_names_can_be_vllms() -> None:
    app, _ = make(metrics_prefix="vllm")
    assert metric(app, "vllm:num_requests_running") == [0]
    assert metric(app, "octavo:") == []


def test_a_request_has_a_line_in_the_log() -> None:
    app, _ = make(api_keys=("sk-1",))
    headers = {"x-request-id": "mine-1", "authorization": "Bearer sk-1"}
    (line,) = logged(app, ("POST", URL, ASK), headers=headers)
    assert {name: line[name] for name in ("request_id", "key", "model", "finish_reason", "output_tokens")} == {
        "request_id": "mine-1",
        "key": "key-1",
        "model": "tiny",
        "finish_reason": "length",
        "output_tokens": 4,
    }
    assert (line["queued"], line["waited_for"], line["cached_tokens"]) == (0.25, "needs blocks", 1)
    assert "Hello" not in json.dumps(line)


def test_whoever_loads_and_unloads_an_adapter_is_in_the_log() -> None:
    app, _ = make(allow_lora_loading=True, api_keys=("sk-1",))
    headers = {"authorization": "Bearer sk-1", "x-request-id": "mine-1"}
    load = ("POST", "/v1/load_lora_adapter", {"lora_name": "poet", "lora_path": "/poet"})
    unload = ("POST", "/v1/unload_lora_adapter", {"lora_name": "poet"})
    lines = logged(app, load, unload, headers=headers)
    assert [line["message"] for line in lines] == ["adapter loaded", "adapter unloaded"]
    assert (lines[0]["name"], lines[0]["path"], lines[0]["key"], lines[0]["request_id"]) == (
        *("poet", "/poet"),
        *("key-1", "mine-1"),
    )


def test_texts_are_logged_only_where_that_is_wanted() -> None:
    app, client = make(log_texts=True)
    (line,) = logged(app, ("POST", URL, ASK))
    assert line["prompt"] == "Hello there"
    assert line["texts"] == [tokenizer().decode(client.calls[0]["prompt"][::-1][:4])]


def test_an_error_of_http_has_a_line_too() -> None:
    app, _ = make()
    refused, missing = logged(app, ("POST", URL, {"prompt": "x", "nothing": 1}), ("GET", "/v1/nothing", None))
    assert (refused["message"], refused["status"], refused["path"]) == ("http", 400, URL)
    assert missing["status"] == 404


def test_the_key_shares_and_comes_first(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("alice:sk-1 priority=-5\n")
    app, client = make(api_key_file=keys)
    assert call(app, "POST", URL, ASK).status_code == 401
    answer = call(app, "POST", URL, {**ASK, "priority": 2}, headers={"authorization": "Bearer sk-1"})
    assert answer.status_code == 200
    assert (client.calls[0]["share_key"], client.calls[0]["priority"]) == ("alice", -3)


def test_how_far_a_body_may_push_ahead_is_for_the_operator_to_say(tmp_path: Path) -> None:
    """Who has a key may let others go first; without keys everybody is trusted. Either way there is a range."""
    keys = tmp_path / "keys"
    keys.write_text("alice:sk-1\n")
    with_keys, client = make(api_key_file=keys)
    headers = {"authorization": "Bearer sk-1"}
    for priority in (-1, 2**31):
        refused = call(with_keys, "POST", URL, {**ASK, "priority": priority}, headers=headers)
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "priority")
        assert "accepted with an API key: from 0 to 2147483647" in refused.text
    assert client.calls == []
    app, client = make()
    for priority in (-(2**31) + 1, 2**31 - 1):
        assert call(app, "POST", URL, {**ASK, "priority": priority}).status_code == 200
    assert call(app, "POST", URL, {**ASK, "priority": -(2**31)}).status_code == 400
    assert [one["priority"] for one in client.calls] == [-(2**31) + 1, 2**31 - 1]


def test_a_priority_that_would_do_nothing_is_refused_by_name(tmp_path: Path) -> None:
    app, client = make(FakeClient(tokenizer(), policy="fcfs"))
    for priority in (5, -1):
        refused = call(app, "POST", URL, {**ASK, "priority": priority})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "priority")
        assert "--scheduling-policy priority or fair" in refused.text
    assert client.calls == []
    assert call(app, "POST", URL, {**ASK, "priority": 0}).status_code == 200
    fair, client = make(FakeClient(tokenizer(), policy="fair"))
    assert call(fair, "POST", URL, {**ASK, "priority": 5}).status_code == 200
    assert client.calls[0]["priority"] == 5


@pytest.mark.parametrize(
    ("policy", "option", "told"),
    [
        ("fcfs", "priority=4", True),
        ("fair", "priority=4", True),
        ("priority", "priority=4", False),
        ("fcfs", "max_requests=4", False),
    ],
)
def test_priorities_of_keys_that_would_do_nothing_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, policy: str, option: str, told: bool
) -> None:
    keys = tmp_path / "keys"
    keys.write_text(f"alice:sk-1\nbob:sk-2 {option}\n")
    make(FakeClient(tokenizer(), policy=policy), api_key_file=keys)
    assert ("priorities have no effect" in caplog.text) == told


def test_the_deadline_reaches_the_engine() -> None:
    app, client = make(max_timeout=60.0)
    call(app, "POST", URL, ASK)
    call(app, "POST", URL, {**ASK, "timeout": 7})
    call(app, "POST", URL, ASK, headers={"x-request-timeout": "3"})
    assert [one["timeout"] for one in client.calls] == pytest.approx([60, 7, 3], abs=0.5)


def test_a_failure_of_our_own_is_counted_and_has_the_callers_id(monkeypatch: pytest.MonkeyPatch) -> None:
    app, client = make()

    def fail() -> None:
        raise KeyError("a mistake of ours")

    monkeypatch.setattr(client, "loras", fail)
    answer = call(app, "POST", URL, {**ASK, "model": "other"}, headers={"x-request-id": "mine-2"})
    assert (answer.status_code, answer.headers["x-request-id"]) == (500, "mine-2")
    assert metric(app, 'http_requests_total{handler="/v1/completions",method="POST",status="500"}') == [1]


def test_a_large_body_is_refused_in_the_shape_of_its_api() -> None:
    app, _ = make(max_body_bytes=1000)

    async def chunks() -> Any:
        for _ in range(20):
            yield b"x" * 100

    for body in ({"content": b"x" * 2000}, {"content": chunks()}):
        answer = call(app, "POST", URL, **body)
        assert answer.status_code == 413
        assert answer.json()["error"]["message"] == "the body is too large; accepted: up to 1000 bytes"
        assert answer.headers["connection"] == "close"
        assert "x-request-id" in answer.headers


def test_a_full_queue_says_when_to_try_again() -> None:
    client = FakeClient(tokenizer(), failure=BusyError("100 requests wait already", 2.4))
    app, _ = make(client)
    answer = call(app, "POST", URL, ASK)
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "3")
    assert metric(app, "octavo:e2e_request_latency_seconds_count") == [0]


def test_a_stream_that_is_left_is_counted_as_aborted() -> None:
    app, client = make(FakeClient(tokenizer(), gap=0.005))
    stream = io.StringIO()

    async def leave() -> None:
        async with asgi(app) as http:
            task = asyncio.create_task(http.post(URL, json={**ASK, "max_tokens": 2000, "stream": True}))
            while not client.running:
                await asyncio.sleep(0.001)
            await asyncio.sleep(0.05)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    with logging_to(stream, "json"):
        asyncio.run(leave())
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [line["finish_reason"] for line in lines if line["message"] == "request"] == ["abort"]
    assert not client.running


def test_a_server_that_ends_answers_what_it_has_begun() -> None:
    app, client = make(FakeClient(tokenizer(), gap=0.005))

    async def drain() -> tuple[Any, Any]:
        async with asgi(app) as http:
            begun = asyncio.create_task(http.post(URL, json={**ASK, "max_tokens": 20, "stream": True}))
            while not client.running:
                await asyncio.sleep(0.001)
            app.state.operation.health.draining = True
            return await http.post(URL, json=ASK), await begun

    refused, begun = asyncio.run(drain())
    assert (refused.status_code, refused.headers["connection"]) == (503, "close")
    assert len(events_of(begun)) == 21
    assert call(app, "GET", "/ready").status_code == 503


def test_web_pages_of_other_origins_ask_only_where_they_may() -> None:
    preflight = {"origin": "https://a.example", "access-control-request-method": "POST"}
    app, _ = make(cors_origins=("https://a.example",), api_keys=("sk-1",))
    answer = call(app, "OPTIONS", URL, headers={**preflight, "access-control-request-headers": "authorization"})
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, "https://a.example")
    assert call(app, "OPTIONS", URL, headers={**preflight, "origin": "https://b.example"}).status_code == 400
    refused = call(app, "POST", URL, ASK, headers={"origin": "https://a.example"})
    assert "retry-after" in refused.headers["access-control-expose-headers"]
    plain, _ = make()
    assert "access-control-allow-origin" not in call(plain, "OPTIONS", URL, headers=preflight).headers


def test_debug_routes_are_there_only_on_demand() -> None:
    assert call(make()[0], "POST", "/debug/check").status_code == 404
    assert call(make(debug_routes=True)[0], "POST", "/debug/check").json() == {}


def test_wrong_options_are_told_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot read the API keys"):
        make(api_key_file=tmp_path / "none")
    with pytest.raises(UsageError, match="no collector's address"):
        make(otlp_endpoint="localhost")


def test_what_nobody_foresaw_is_counted_as_the_servers_failure_and_keeps_its_id(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    app, _ = make()
    monkeypatch.setattr(models, "_cards", lambda server: 1 // 0)
    response = call(app, "GET", "/v1/models", headers={"x-request-id": "mine-1"})
    assert (response.status_code, response.headers["x-request-id"]) == (500, "mine-1")
    assert "division" not in response.text
    assert metric(app, 'http_requests_total{handler="/v1/models",method="GET",status="500"}') == [1]
    assert metric(app, 'http_requests_total{handler="/v1/models",method="GET",status="499"}') == []
