"""The outermost layer: each HTTP request gets an id, is counted and timed, and may get a line in the log."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from octavo.server.caller import SCOPE_KEY, caller_in
from octavo.server.metrics import Metrics

HEADER = "x-request-id"
NO_ROUTE = "none"
"""Stands for all paths that no route has, and for what was refused before it came to a route."""
NO_ANSWER = 499
"""Stands for a status where none was sent, because the client had gone."""


@dataclass(frozen=True, slots=True)
class HttpRecord:
    """An HTTP request that has been answered. ``seconds`` run until the last byte of the answer."""

    request_id: str
    key: str
    method: str
    path: str
    status: int
    seconds: float


HttpSink = Callable[[HttpRecord], None]


@dataclass(frozen=True, slots=True)
class Observation:
    """ASGI middleware. ``note`` gets each request when it has been answered."""

    app: ASGIApp
    metrics: Metrics
    note: HttpSink
    clock: Callable[[], float] = time.perf_counter

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        started, status = self.clock(), NO_ANSWER
        headers = Headers(scope=scope)
        request_id = request_id_of(headers.get(HEADER))
        scope[SCOPE_KEY] = replace(caller_in(scope), request_id=request_id, trace=_trace(headers))

        async def marked(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[HEADER] = request_id
            await send(message)

        try:
            await self.app(scope, receive, marked)
        except Exception:
            status = 500 if status == NO_ANSWER else status  # whoever is further out answers with it
            raise
        finally:
            self._finished(scope, status, self.clock() - started)

    def _finished(self, scope: Scope, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", NO_ROUTE)
        caller = caller_in(scope)
        self.metrics.http(_method(scope), route, status, seconds)
        self.note(HttpRecord(caller.request_id, caller.name, scope["method"], scope["path"], status, seconds))


def request_id_of(given: str | None) -> str:
    """The caller's own id, if it is one that may stand in a log and a header; else a new one."""
    if given is not None and re.fullmatch(r"[\w.:@/+=-]{1,128}", given, re.ASCII):
        return given
    return secrets.token_hex(16)


def _trace(headers: Headers) -> dict[str, str]:
    return {name: headers[name] for name in ("traceparent", "tracestate") if name in headers}


def _method(scope: Scope) -> str:
    """Methods may be any word: only known ones become a series."""
    known = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
    return scope["method"] if scope["method"] in known else "other"
