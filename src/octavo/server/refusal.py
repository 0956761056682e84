"""Answers that no route gives: refused at the door, in the shape that the caller's client understands."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec
from starlette.types import Scope, Send

from octavo.openai.errors import ErrorBody, ErrorInfo

_ANTHROPIC = {
    401: "authentication_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}
_OPENAI = {401: "authentication_error", 429: "rate_limit_error", 503: "server_error"}


def error_body(path: str, status: int, message: str, code: str | None = None) -> Any:
    """The body of an error: Anthropic's shape for their API's paths, OpenAI's for all others."""
    if path.startswith("/v1/messages"):
        return {"type": "error", "error": {"type": _ANTHROPIC[status], "message": message}}
    return ErrorBody(ErrorInfo(message, _OPENAI.get(status, "invalid_request_error"), None, code))


async def refuse(
    scope: Scope,
    send: Send,
    status: int,
    message: str,
    code: str | None = None,
    headers: Iterable[tuple[bytes, bytes]] = (),
) -> None:
    """Answer with an error."""
    body = msgspec.json.encode(error_body(scope["path"], status, message, code))
    fixed = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": [*fixed, *headers]})
    await send({"type": "http.response.body", "body": body})
