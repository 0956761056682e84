"""Answers that no route gives: refused at the door."""

from __future__ import annotations

from starlette.types import Scope, Send

from octavo.openai.errors import ErrorBody, ErrorInfo
from octavo.server.errors import Trouble, encode_trouble

_KINDS = {401: "authentication_error", 429: "rate_limit_error", 503: "service_unavailable_error"}


async def refuse(
    scope: Scope, send: Send, status: int, message: str, code: str | None = None, headers: dict[str, str] | None = None
) -> None:
    """Answer with an error, in the shape that the path's clients expect."""
    kind = _KINDS.get(status, "invalid_request_error")
    body = encode_trouble(Trouble(status, ErrorBody(ErrorInfo(message, kind, None, code))), scope["path"])
    fields = {"content-type": "application/json", "content-length": str(len(body)), **(headers or {})}
    head = [(name.encode(), value.encode()) for name, value in fields.items()]
    await send({"type": "http.response.start", "status": status, "headers": head})
    await send({"type": "http.response.body", "body": body})
