"""Server-sent events: sends what a request's iterator yields, and notices when nobody listens any more.

One task writes; another waits for the client to leave, and says something when nothing was said for long. So a token
costs one switch of tasks. While a slow reader's connection takes nothing, the writer stands still, and news are joined
where they come from.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Coroutine
from contextlib import aclosing
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from octavo.server.errors import ClientGoneError, error_event
from octavo.server.options import ServerOptions

T = TypeVar("T")

COMMENT = b": waiting\n\n"
"""Clients skip it."""

_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


class EventStream(Response):
    """Answers with the events that an iterator yields, each whole and ready to be sent.

    An error that comes before the first event, or within the first seconds, is raised, so that it becomes an error
    status; a later one becomes the last event.

    Args:
        events: closed when the client leaves.
        options: say how long errors are waited for, and what counts as silence.
        ping: what is sent into a silence.
    """

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[bytes, None], options: ServerOptions, ping: bytes = COMMENT) -> None:
        super().__init__(headers=_HEADERS)
        del self.headers["content-length"]
        self._events = events
        self._patience = options.stream_patience
        self._keep_alive = options.keep_alive
        self._ping = ping
        self._sending = False
        self._sent = 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        writer = asyncio.create_task(self._write(scope["path"], send))
        gone = asyncio.create_task(disconnected(receive))
        try:
            await self._watch(writer, gone, send)
        finally:
            await cancel(writer, gone)

    async def _watch(self, writer: asyncio.Task[None], gone: asyncio.Task[None], send: Send) -> None:
        while not writer.done() and not gone.done():
            await asyncio.wait({writer, gone}, timeout=self._keep_alive, return_when=asyncio.FIRST_COMPLETED)
            silent = self._sent and not self._sending and time.monotonic() - self._sent >= self._keep_alive
            if silent and not writer.done() and not gone.done():
                await self._send(send, self._ping)
        if writer.done():
            writer.result()

    async def _write(self, path: str, send: Send) -> None:
        async with aclosing(self._events) as events:
            first = asyncio.ensure_future(anext(events))
            try:
                await asyncio.wait({first}, timeout=self._patience)
                if first.done():
                    first.result()
                await self._start(send)
                await self._rest(first, events, path, send)
            finally:
                await cancel(first)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _rest(
        self, first: asyncio.Future[bytes], events: AsyncGenerator[bytes, None], path: str, send: Send
    ) -> None:
        try:
            await self._send(send, await first)
            async for event in events:
                await self._send(send, event)
        except Exception as error:
            await self._send(send, error_event(error, path))

    async def _start(self, send: Send) -> None:
        self._sent = time.monotonic()
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})

    async def _send(self, send: Send, event: bytes) -> None:
        self._sending = True
        await send({"type": "http.response.body", "body": event, "more_body": True})
        self._sending, self._sent = False, time.monotonic()


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """What ``work`` returns; it is cancelled, and `ClientGoneError` raised, when the client leaves."""
    task, gone = asyncio.create_task(work), asyncio.create_task(disconnected(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientGoneError
    finally:
        await cancel(task, gone)


async def disconnected(receive: Receive) -> None:
    """Wait until the client has closed the connection. Its body must have been read."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def cancel(*tasks: asyncio.Future[Any]) -> None:
    """Cancel tasks and wait until they have ended; their errors are nobody's."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
