"""How long a request may take: what it asks for in a header, the operator's limit, or the shorter of both."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from octavo.server.caller import SCOPE_KEY, caller_in
from octavo.server.refusal import refuse

HEADER = "x-request-timeout"


@dataclass(frozen=True, slots=True)
class Deadline:
    """ASGI middleware: leaves the request's ``timeout`` with its caller. ``limit`` is the longest, in seconds."""

    app: ASGIApp
    limit: float | None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        given = Headers(scope=scope).get(HEADER)
        wanted = None if given is None else seconds_of(given)
        if given is not None and wanted is None:
            message = f"{HEADER}: {given[:40]!r} is no timeout; accepted: seconds, more than 0"
            return await refuse(scope, send, 400, message)
        shortest = min((t for t in (wanted, self.limit) if t is not None), default=None)
        scope[SCOPE_KEY] = replace(caller_in(scope), timeout=shortest)
        return await self.app(scope, receive, send)


def seconds_of(text: str) -> float | None:
    """A positive, finite number; None for anything else."""
    try:
        seconds = float(text)
    except ValueError:
        return None
    return seconds if 0 < seconds < math.inf else None
