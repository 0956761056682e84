"""Streams: what becomes of them when the engine fails, the client leaves, nothing comes, or a prompt is huge."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncGenerator
from contextlib import suppress
from dataclasses import replace
from typing import Any

import httpx
import pytest

from helpers_client import FakeClient
from helpers_http import asgi, call, events_of, live_url, make, tokenizer
from octavo.client.verbs import BusyError, EngineDeadError
from octavo.errors import FormError
from octavo.server.body import MAX_BRACKETS
from octavo.server.options import ServerOptions
from octavo.server.stream import EventStream

URL = "/v1/chat/completions"
HI = [{"role": "user", "content": "Hi"}]


@pytest.mark.parametrize(
    ("failure", "status", "kind"),
    [
        (BusyError("the queue is full", 2.3), 429, "rate_limit_error"),
        (EngineDeadError("the engine was killed"), 503, "service_unavailable_error"),
        (RuntimeError("a secret"), 500, "server_error"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_failures_before_the_first_token_are_statuses(failure: Exception, status: int, kind: str, stream: bool) -> None:
    app, client = make(FakeClient(tokenizer(), failure=failure))
    answer = call(app, "POST", URL, {"messages": HI, "stream": stream})
    assert (answer.status_code, answer.json()["error"]["type"]) == (status, kind)
    assert answer.headers.get("retry-after") == ("3" if status == 429 else None)
    assert "secret" not in answer.text
    assert not client.running


@pytest.mark.parametrize("path", [URL, "/v1/completions", "/v1/messages", "/v1/responses"])
def test_a_failure_in_the_middle_is_the_last_event(path: str) -> None:
    app, client = make(FakeClient(tokenizer(), failure=EngineDeadError("the engine was killed"), fail_after=2))
    ask: dict[str, Any] = {"stream": True, "max_tokens": 9, "messages": HI}
    if path == "/v1/completions":
        ask = {"stream": True, "prompt": "Hi there"}
    if path == "/v1/responses":
        ask = {"stream": True, "input": "Hi"}
    events = events_of(call(app, "POST", path, ask))
    assert "[DONE]" not in events
    last = events[-1]["response"] if path == "/v1/responses" else events[-1]
    assert last["error"]["message"] == "the engine was killed"
    assert not client.running
    assert not len(app.state.server.live)


FORMED: list[tuple[str, dict[str, Any], str]] = [
    (URL, {"messages": HI, "guided_regex": "a+"}, "guided_regex"),
    ("/v1/completions", {"prompt": "Hi there", "guided_regex": "a+"}, "guided_regex"),
    ("/v1/messages", {"messages": HI, "max_tokens": 9}, "tools"),
    ("/v1/responses", {"input": "Hi", "text": {"format": {"type": "json_object"}}}, "text"),
]


@pytest.mark.parametrize(("path", "ask", "field"), FORMED)
def test_a_form_that_fails_in_the_middle_is_the_senders_mistake(path: str, ask: dict[str, Any], field: str) -> None:
    app, client = make(FakeClient(tokenizer(), failure=FormError("it is too complex"), fail_after=2))
    whole = call(app, "POST", path, ask)
    assert (whole.status_code, whole.json()["error"]["message"]) == (400, f"{field}: it is too complex")
    last = events_of(call(app, "POST", path, {**ask, "stream": True}))[-1]
    error = last["response"]["error"] if path == "/v1/responses" else last["error"]
    assert error["message"] == f"{field}: it is too complex"
    assert "invalid" in error.get("type", error.get("code"))
    assert not client.running
    counted = re.search(r"octavo:request_generation_tokens_count.* (\S+)", call(app, "GET", "/metrics").text)
    assert counted is not None
    assert float(counted[1]) == 2, "they have been at work, so they count"


def test_a_stream_of_several_prompts_fails_as_a_whole() -> None:
    app, client = make(FakeClient(tokenizer(), broken_after=2))
    events = events_of(call(app, "POST", "/v1/completions", {"prompt": ["ab cd", "ef gh"], "stream": True}))
    assert events[-1]["error"]["message"] == "the model failed: the device is lost"
    assert not client.running


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_ends_its_request(stream: bool) -> None:
    app, client = make(FakeClient(tokenizer(), gap=0.01))
    with live_url(app) as url, httpx.Client(base_url=url) as http:
        body = {"prompt": ["ab", "cd"], "max_tokens": 4000, "stream": stream}
        with suppress(httpx.ReadTimeout), http.stream("POST", "/v1/completions", json=body, timeout=0.3) as answer:
            next(answer.iter_lines())
        _until(lambda: len(client.ended_early) == 2)
    assert not client.running
    assert not len(app.state.server.live)


def test_a_request_is_aborted_by_its_id() -> None:
    app, client = make(FakeClient(tokenizer(), gap=0.005))

    async def go() -> tuple[Any, Any]:
        async with asgi(app) as http:
            asked = asyncio.create_task(http.post(URL, json={"messages": HI, "max_tokens": 4000}))
            while not client.running:
                await asyncio.sleep(0.001)
            (name,) = client.running
            aborted = await http.post("/v1/abort", json={"request_id": name})
            return aborted.json(), (await asked).json()

    aborted, answer = asyncio.run(go())
    assert aborted["aborted"] is True
    assert answer["choices"][0]["finish_reason"] == "abort"
    assert call(app, "POST", "/v1/abort", {"request_id": answer["id"]}).status_code == 404


def test_silence_gets_its_head_and_comments() -> None:
    """A request that waits long for its first token keeps its connection."""
    client = FakeClient(tokenizer(), hold=asyncio.Event())
    assert client.hold is not None
    client.hold.set()
    app, _ = make(client, stream_patience=0.05, keep_alive=0.05)
    with live_url(app) as url, httpx.stream("POST", url + URL, json={"messages": HI, "stream": True}) as answer:
        lines = answer.iter_lines()
        assert [line for line, _ in zip(lines, range(4), strict=False)] == [": waiting", "", ": waiting", ""]
        client.hold.clear()
        assert "data: [DONE]" in list(lines)


def test_errors_after_the_patience_are_events() -> None:
    async def events() -> AsyncGenerator[bytes, None]:
        await asyncio.sleep(0.1)
        raise BusyError("too late", 1)
        yield b""

    sent: list[Any] = []

    async def go() -> None:
        async def receive() -> Any:
            await asyncio.Event().wait()

        async def send(message: Any) -> None:
            sent.append(message)

        await EventStream(events(), ServerOptions(stream_patience=0.01))({"type": "http", "path": URL}, receive, send)

    asyncio.run(go())
    assert sent[0]["status"] == 200
    assert json.loads(sent[1]["body"].removeprefix(b"data: "))["error"]["message"] == "too late"
    assert sent[2]["more_body"] is False


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\xff\xfe{", "not a JSON object"),
        (b'{"prompt": "\xff"}', "not a JSON object"),
        (b"", "not a JSON object"),
        (b"[1]", "not a JSON object"),
        (b'{"prompt": "a", "n": ' + b"[" * 100_000, "not a JSON object"),
        (b'{"prompt": "\\ud800"}', ""),
        (b'{"prompt": "a", "model": "\\ud800"}', ""),
        (b'{"prompt": "a", "\\ud800": 1}', ""),
        (b'{"prompt": "a", "max_tokens": 1e400}', ""),
        (b'{"prompt": "a", "seed": 99999999999999999999999}', ""),
        (b'{"prompt": "a", "logit_bias": {"99999999": 1}, "timeout": -1}', "timeout"),
        (json.dumps({"prompt": "a" * 10_000_000}).encode(), "far more than the 4095 tokens"),
        (json.dumps({"prompt": [1] * 1_000_000, "max_tokens": 1}).encode(), "accepted: up to 4095"),
        (json.dumps({"prompt": "a", "stop": ["x"] * 100_000}).encode(), "at most 64"),
        (json.dumps({"prompt": ["a"] * 100_000}).encode(), "at most 4096"),
    ],
)
def test_hostile_bodies_get_a_clear_answer(data: bytes, message: str) -> None:
    app, _ = make()
    answer = call(app, "POST", "/v1/completions", content=data, headers={"content-type": "application/json"})
    assert answer.status_code == 400, answer.text[:300]
    assert message in answer.json()["error"]["message"]


def test_other_content_types_are_refused() -> None:
    app, _ = make()
    answer = call(app, "POST", URL, content=b"{}", headers={"content-type": "text/plain"})
    assert answer.status_code == 415
    assert "accepted: application/json" in answer.json()["error"]["message"]


def test_unknown_paths_and_methods_have_openais_shape() -> None:
    app, _ = make()
    assert call(app, "GET", "/nothing").json()["error"]["message"] == "Not Found"
    assert call(app, "GET", URL).status_code == 405
    assert call(app, "GET", "/v1/messages").json()["type"] == "error"


def test_a_huge_prompt_delays_no_other_stream() -> None:
    """While 10 MB are read, rendered and refused, another stream's tokens come with no gap of a second."""
    app, _ = make(FakeClient(tokenizer(), gap=0.002))
    huge = {"messages": [{"role": "user", "content": "word " * 2_000_000}]}

    async def go() -> tuple[float, int]:
        async with asgi(app) as http:
            task = asyncio.create_task(http.post(URL, json=huge))
            worst = 0.0
            while not task.done():
                before = time.monotonic()
                await http.post(URL, json={"messages": HI, "max_tokens": 2})
                worst = max(worst, time.monotonic() - before)
            return worst, task.result().status_code

    worst, status = asyncio.run(go())
    assert status == 400
    assert worst < 5


def _until(condition: Any) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize(("path", "body"), [(URL, {"messages": HI}), ("/v1/completions", {"prompt": "Hi"})])
def test_scores_of_the_prompt_have_no_place_in_a_stream(path: str, body: dict[str, Any]) -> None:
    app, client = make()
    response = call(app, "POST", path, {**body, "stream": True, "prompt_logprobs": 1})
    assert (response.status_code, response.json()["error"]["param"]) == (400, "prompt_logprobs")
    assert client.calls == []


def test_a_message_begins_once_though_its_first_news_have_no_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    app, client = make()
    piece = client._piece

    def empty_at_first(index: int, token: int, step: int, *others: Any) -> Any:
        whole = piece(index, token, step, *others)
        return replace(whole, text="", token_ids=[]) if step == 0 else whole

    monkeypatch.setattr(client, "_piece", empty_at_first)
    events = events_of(call(app, "POST", "/v1/messages", {"messages": HI, "max_tokens": 3, "stream": True}))
    assert [event["type"] for event in events].count("message_start") == 1


@pytest.mark.parametrize("bracket", ["[]", "{}"])
def test_a_body_of_millions_of_empty_lists_is_refused(bracket: str) -> None:
    app, _ = make()
    body = '{"prompt":[' + ",".join([bracket] * (MAX_BRACKETS + 1)) + "]}"
    response = call(app, "POST", "/v1/completions", content=body)
    assert (response.status_code, response.json()["error"]["type"]) == (400, "invalid_request_error")
    assert "opening brackets" in response.json()["error"]["message"]
