"""Who waits for a prompt to be read: only as long as he is there, and as long as he wanted to."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from helpers_http import asgi, make
from octavo.openai.schema import CompletionRequest
from octavo.server.errors import ClientGoneError, DeadlineError
from octavo.server.prompts import LIGHT_IDS, LIGHT_TEXT, are_light
from octavo.server.text_pool import TextPool

HI = [{"role": "user", "content": "Hi"}]
FORM = {"type": "json_schema", "json_schema": {"schema": {"type": "object"}}}
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": HI},
    "/v1/completions": {"prompt": "Hi " * 300},
    "/v1/responses": {"input": "Hi"},
    "/v1/messages": {"messages": HI, "max_tokens": 1},
    "/v1/messages/count_tokens": {"messages": HI},
    "/v1/embeddings": {"input": "Hi"},
    "/tokenize": {"prompt": "Hi"},
    "/detokenize": {"tokens": [5]},
    "/apply-template": {"messages": HI},
}


class Busy:
    """A pool with one thread, which is at work until `free` is set."""

    def __init__(self) -> None:
        self.free = threading.Event()
        self.pool = TextPool(1)
        self.done: list[str] = []

    async def occupy(self) -> asyncio.Task[Any]:
        """Give the thread something to do; what ends with it."""
        task = asyncio.ensure_future(self.pool.run(self.free.wait, 20))
        await asyncio.sleep(0)  # now it is in the pool, before all others
        return task


@pytest.fixture
def busy() -> Iterator[Busy]:
    busy = Busy()
    yield busy
    busy.free.set()
    busy.pool.close()


async def nobody_leaves() -> Any:
    await asyncio.Event().wait()


def test_work_is_dropped_when_the_client_leaves(busy: Busy) -> None:
    async def go() -> None:
        first, left = await busy.occupy(), asyncio.Event()

        async def receive() -> Any:
            await left.wait()
            return {"type": "http.disconnect"}

        waits = asyncio.ensure_future(busy.pool.run_for(receive, None, busy.done.append, "dropped"))
        stays = asyncio.ensure_future(busy.pool.run_for(nobody_leaves, None, busy.done.append, "done"))
        await asyncio.sleep(0.02)
        left.set()
        with pytest.raises(ClientGoneError):
            await waits
        busy.free.set()
        await asyncio.gather(first, stays)

    asyncio.run(go())
    assert busy.done == ["done"]


def test_the_deadline_ends_the_wait_whether_or_not_the_work_has_begun(busy: Busy) -> None:
    async def go() -> None:
        for work in (lambda: busy.free.wait(20), lambda: busy.done.append("dropped")):
            with pytest.raises(DeadlineError):
                await busy.pool.run_for(nobody_leaves, time.monotonic() + 0.05, work)
        with pytest.raises(DeadlineError):
            await busy.pool.run_for(nobody_leaves, time.monotonic() - 1, busy.done.append, "late")
        busy.free.set()
        assert await busy.pool.run_for(nobody_leaves, time.monotonic() + 20, lambda: "in time") == "in time"

    asyncio.run(go())
    assert busy.done == []


def test_a_timeout_of_the_work_itself_is_not_the_requests(busy: Busy) -> None:
    def fail() -> None:
        raise TimeoutError("a socket's")

    with pytest.raises(TimeoutError, match="a socket's"):
        asyncio.run(busy.pool.run_for(nobody_leaves, time.monotonic() + 20, fail))


@pytest.mark.parametrize("path", BODIES)
def test_every_route_answers_504_when_its_prompt_is_not_read_in_time(path: str, busy: Busy) -> None:
    async def go() -> tuple[int, Any]:
        app, client = make()
        object.__setattr__(app.state.server, "texts", busy.pool)
        first = await busy.occupy()
        async with asgi(app) as http:
            answer = await http.post(path, json=BODIES[path], headers={"x-request-timeout": "0.05"})
        busy.free.set()
        await first
        assert client.calls == []
        return answer.status_code, answer.json()

    status, body = asyncio.run(go())
    assert (status, body["error"]["type"]) == (504, "timeout_error")
    assert body.get("type") == ("error" if path.startswith("/v1/messages") else None)
    assert "has run out before it was read" in body["error"]["message"]


def test_a_form_that_is_not_tried_in_time(busy: Busy) -> None:
    async def go() -> int:
        app, client = make()
        app.state.server.forms._thread = busy.pool
        first = await busy.occupy()
        async with asgi(app) as http:
            body = {"messages": HI, "response_format": FORM, "timeout": 0.2}
            answer = await http.post("/v1/chat/completions", json=body)
        busy.free.set()
        await first
        assert client.calls == []
        return answer.status_code

    assert asyncio.run(go()) == 504


def test_a_short_prompt_waits_for_no_thread(busy: Busy) -> None:
    async def go() -> None:
        app, client = make()
        object.__setattr__(app.state.server, "texts", busy.pool)
        first = await busy.occupy()
        async with asgi(app) as http:
            for prompt in ("Hi", ["a", "b"], [5, 6, 7], [[5], [6]]):
                answer = await http.post("/v1/completions", json={"prompt": prompt, "max_tokens": 1})
                assert answer.status_code == 200, answer.text
        assert not first.done()
        assert len(client.calls) == 6
        busy.free.set()
        await first

    asyncio.run(go())


@pytest.mark.parametrize(
    ("prompt", "suffix", "light"),
    [
        ("x" * LIGHT_TEXT, None, True),
        ("x" * LIGHT_TEXT, "y", False),
        (["x"] * LIGHT_TEXT, None, True),
        (["x"] * (LIGHT_TEXT + 1), None, False),
        ([5] * LIGHT_IDS, None, True),
        ([[5] * LIGHT_IDS, [5]], None, False),
    ],
)
def test_how_much_is_read_at_once(prompt: Any, suffix: str | None, light: bool) -> None:
    assert are_light(CompletionRequest(prompt=prompt, suffix=suffix)) == light
