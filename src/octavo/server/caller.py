"""Who sent a request, as what stands before the routes (keys, limits) has found out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from starlette.requests import Request
from starlette.types import Scope

SCOPE_KEY = "octavo.caller"
"""Under this name a middleware leaves a `Caller` in the ASGI scope."""

REQUEST_ID = "x-request-id"
"""The header with a request's id, in both directions."""


@dataclass(frozen=True, slots=True)
class Caller:
    """What is known about the sender of a request.

    Attributes:
        name: of its API key; fair shares and aborts go by it. Empty where there are no keys.
        priority: added to what the body says.
        timeout: the longest that its requests may take, in seconds.
        request_id: the ``X-Request-Id`` that it sent, or one that was made for it; empty if there is none.
        trace: its ``traceparent`` and ``tracestate`` headers, where it sent them.
    """

    name: str = ""
    priority: int = 0
    timeout: float | None = None
    request_id: str = ""
    trace: Mapping[str, str] = field(default_factory=dict)


NOBODY = Caller()


def caller_of(request: Request) -> Caller:
    """The request's `Caller`; `NOBODY` if nothing stands before the routes."""
    return caller_in(request.scope)


def caller_in(scope: Scope) -> Caller:
    caller: Caller = scope.get(SCOPE_KEY, NOBODY)
    return caller
