"""Server-sent events: sends what a request's iterator yields, and notices when nobody listens any more.

The task of the HTTP request writes; another waits for the client to leave, and ends that one. So a token costs one
switch of tasks. Timers see to what has to be said when the engine says nothing. While a slow reader's connection takes
nothing, the writer stands still, and news are joined where they come from.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Coroutine
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
        self._beginning, self._begun = False, asyncio.Event()
        self._sending, self._sent = False, 0.0
        self._later: set[asyncio.TimerHandle | asyncio.Task[None]] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._send_message = send
        self._after(self._patience, self._begin)
        try:
            await unless_gone(receive, self._write(scope))
        except ClientGoneError:
            return  # nobody is left to be told anything
        finally:
            for later in self._later:
                later.cancel()

    async def _write(self, scope: Scope) -> None:
        """All events. An error before the stream has begun is raised, a later one is the last event."""
        async with aclosing(self._events) as events:
            try:
                async for event in events:
                    await self._send(event)
            except Exception as error:
                if not self._beginning:
                    raise
                await self._send(error_event(error, scope["path"], scope.get("octavo.fields", ())))
        await self._send_message({"type": "http.response.body", "body": b"", "more_body": False})

    async def _begin(self) -> None:
        """Send the head, unless another task does."""
        if not self._beginning:
            self._beginning = True
            try:
                await self._send_message({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            finally:
                self._begun.set()
            self._sent = time.monotonic()
            self._after(self._keep_alive, self._end_silence)

    async def _send(self, event: bytes) -> None:
        if not self._begun.is_set():
            await self._begin()
            await self._begun.wait()
        self._sending = True
        await self._send_message({"type": "http.response.body", "body": event, "more_body": True})
        self._sending, self._sent = False, time.monotonic()

    async def _end_silence(self) -> None:
        """Say something if nothing was said for long; and ask again when it may be time."""
        if not self._sending and time.monotonic() - self._sent >= self._keep_alive:
            await self._send(self._ping)
        silent = 0.0 if self._sending else time.monotonic() - self._sent
        self._after(max(self._keep_alive - silent, 0.0), self._end_silence)

    def _after(self, seconds: float, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Do ``work`` so much later, unless the stream is over by then."""

        def start() -> None:
            self._later.discard(timer)
            task = asyncio.create_task(work())
            self._later.add(task)
            task.add_done_callback(self._later.discard)

        timer = asyncio.get_running_loop().call_later(seconds, start)
        self._later.add(timer)


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """What ``work`` returns; it is cancelled, and `ClientGoneError` raised, when the client leaves.

    It runs in the task that waits for it: to start another would cost more than all else here.
    """
    task, has_left = asyncio.current_task(), False
    assert task is not None
    before = task.cancelling()

    def leave(watching: asyncio.Task[None]) -> None:
        nonlocal has_left
        has_left = not watching.cancelled()
        if has_left:
            task.cancel()

    watching = asyncio.create_task(disconnected(receive))
    watching.add_done_callback(leave)
    try:
        return await work
    except asyncio.CancelledError:
        if has_left and task.uncancel() <= before:
            raise ClientGoneError from None
        raise
    finally:
        watching.remove_done_callback(leave)
        watching.cancel()


async def disconnected(receive: Receive) -> None:
    """Wait until the client has closed the connection. Its body must have been read."""
    while (await receive())["type"] != "http.disconnect":
        pass
