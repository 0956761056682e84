"""A server that speaks OpenAI's API with answers and delays that are known."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web


@dataclass
class FakeOpenAI:
    """What it does, and what it saw.

    Attributes:
        first, gap: seconds until the first token, and between two.
        gather: so many requests must have come before any is answered.
        manner: "well"; or what goes wrong: "status", "break", "error event", "rubbish", "silent", "accepts all".
        bodies: the JSON bodies that came.
        left: requests whose client went away before the end.
    """

    first: float = 0.0
    gap: float = 0.0
    gather: int = 0
    manner: str = "well"
    api_key: str | None = None
    usage: bool = True
    bodies: list[dict[str, Any]] = field(default_factory=list)
    left: int = 0
    active: int = 0
    most_active: int = 0

    async def models(self, request: web.Request) -> web.Response:
        if self.api_key and request.headers.get("Authorization") != f"Bearer {self.api_key}":
            return web.json_response({}, status=401)
        return web.json_response({"data": [{"id": "fake-1"}, {"id": "fake-2"}]})

    async def answer(self, request: web.Request) -> web.StreamResponse:
        body = await self._body(request)
        if body is None:
            return web.json_response({"error": {}}, status=400)
        self.bodies.append(body)
        self.active += 1
        self.most_active = max(self.most_active, self.active)
        try:
            return await self._stream(request, body)
        except (ConnectionResetError, asyncio.CancelledError):
            self.left += 1
            raise
        finally:
            self.active -= 1

    async def _body(self, request: web.Request) -> dict[str, Any] | None:
        """The body of a proper request."""
        if self.manner == "accepts all":
            return {"max_tokens": 1}
        try:
            body = json.loads(await request.read())
            proper = isinstance(body["max_tokens"], int) and body.get("temperature", 0) >= 0 and body.get("n", 1) < 100
            prompt = body.get("prompt", body.get("messages"))
            return body if proper and prompt and not isinstance(prompt, dict) else None
        except (ValueError, TypeError, KeyError, RecursionError):
            return None

    async def _stream(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        if self.manner == "status":
            return web.json_response({"error": {"message": "full"}}, status=429)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await asyncio.sleep(self.first)
        while len(self.bodies) < self.gather:
            await asyncio.sleep(0.005)
        await response.prepare(request)
        for i in range(body["max_tokens"]):
            if i:
                await asyncio.sleep(self.gap)
            if self.manner in ("break", "error event", "rubbish") and i == 2:
                return await self._misbehave(response)
            await self._send(response, {"choices": [self._choice(request.path, i)]})
        if self.usage:
            await self._send(response, {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": i + 1}})
        await response.write(b": comment\n\ndata: [DONE]\n\n")
        return response

    def _choice(self, path: str, i: int) -> dict[str, Any]:
        text = "" if self.manner == "silent" else f"t{i}"
        return {"delta": {"content": text}} if "chat" in path else {"text": text}

    async def _misbehave(self, response: web.StreamResponse) -> web.StreamResponse:
        if self.manner == "error event":
            await self._send(response, {"error": {"message": "the model failed"}})
        if self.manner == "rubbish":
            await response.write(b"data: {rubbish\n\n")
        return response

    async def _send(self, response: web.StreamResponse, value: Any) -> None:
        await response.write(b"data: " + json.dumps(value).encode() + b"\n\n")

    def app(self) -> web.Application:
        app = web.Application(client_max_size=1 << 26)
        app.router.add_get("/v1/models", self.models)
        for path in ("/v1/completions", "/v1/chat/completions"):
            app.router.add_post(path, self.answer)
        return app


@contextmanager
def serving(fake: FakeOpenAI) -> Iterator[str]:
    """The address of ``fake``, which answers from a thread inside the block."""
    loop, ready, found = asyncio.new_event_loop(), threading.Event(), list[int]()

    async def start() -> web.AppRunner:
        runner = web.AppRunner(fake.app(), handler_cancellation=True, shutdown_timeout=1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        found.append(site._server.sockets[0].getsockname()[1])  # type: ignore[union-attr]
        return runner

    def run() -> None:
        asyncio.set_event_loop(loop)
        runner = loop.run_until_complete(start())
        ready.set()
        loop.run_forever()
        loop.run_until_complete(runner.cleanup())
        loop.close()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert ready.wait(20)
    try:
        yield f"http://127.0.0.1:{found[0]}"
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(20)
