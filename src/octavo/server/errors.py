"""What goes wrong, as an answer: OpenAI's shape, or Anthropic's at its endpoints; the status; headers."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, field

import msgspec
from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from octavo.anthropic.errors import anthropic_error
from octavo.client.verbs import BusyError, EngineDeadError, FailedError
from octavo.errors import OctavoError, RequestError
from octavo.openai.errors import INVALID_REQUEST, SERVER_ERROR, ErrorBody, ErrorInfo, refusal
from octavo.server.caller import REQUEST_ID, caller_of
from octavo.server.names import ModelNotFoundError

log = logging.getLogger("octavo.server")

GONE = 499
"""nginx's status for a client that has closed the connection; nobody reads it but logs."""

HIDDEN = "the server failed; its log says why"


class DeadlineError(OctavoError):
    """A request has taken longer than it may, and there is nothing to answer with."""


class ClientGoneError(Exception):
    """The client has closed the connection before its answer was ready."""


@dataclass(frozen=True, slots=True)
class Trouble:
    """An error on its way out."""

    status: int
    body: ErrorBody
    headers: dict[str, str] = field(default_factory=dict)


def trouble_of(error: Exception, fields: tuple[str, ...] = ()) -> Trouble:
    """What a client is told about ``error``; ``fields`` are those of its body. What is not foreseen stays hidden."""
    if isinstance(error, RequestError):
        return Trouble(404 if isinstance(error, ModelNotFoundError) else 400, refusal(error, fields))
    if isinstance(error, BusyError):
        retry = {"Retry-After": str(max(1, math.ceil(error.retry_after)))}
        return Trouble(429, _body(str(error), "rate_limit_error", "queue_full"), retry)
    if isinstance(error, EngineDeadError):
        return Trouble(503, _body(str(error), "service_unavailable_error"))
    if isinstance(error, FailedError):
        return Trouble(500, _body(str(error), SERVER_ERROR))
    if isinstance(error, DeadlineError):
        return Trouble(504, _body(str(error), "timeout_error", "timeout"))
    if isinstance(error, HTTPException):
        kind = INVALID_REQUEST if error.status_code < 500 else SERVER_ERROR
        return Trouble(error.status_code, _body(str(error.detail), kind), dict(error.headers or {}))
    if isinstance(error, ClientGoneError):
        return Trouble(GONE, _body("the client has closed the connection", INVALID_REQUEST))
    return Trouble(500, _body(HIDDEN, SERVER_ERROR))


def encode_trouble(trouble: Trouble, path: str) -> bytes:
    """The JSON of an error answer, in the shape that clients of ``path`` expect."""
    info = trouble.body.error
    info.message = _clean(info.message)
    info.param = None if info.param is None else _clean(info.param)
    if path.startswith("/v1/messages"):
        return msgspec.json.encode(anthropic_error(trouble.status, info.message))
    return msgspec.json.encode(trouble.body)


def error_event(error: Exception, path: str, fields: tuple[str, ...] = ()) -> bytes:
    """The last event of a stream that failed; ``fields`` are those of the request's body."""
    trouble = trouble_of(error, fields)
    note(error, trouble, path)
    name = b"event: error\n" if path.startswith("/v1/messages") else b""
    return b"%sdata: %s\n\n" % (name, encode_trouble(trouble, path))


def error_info(error: Exception, path: str) -> dict[str, str]:
    """The ``error`` of a response that failed while it was streamed; its codes have one word for a sender's mistake."""
    trouble = trouble_of(error)
    note(error, trouble, path)
    code = "invalid_prompt" if trouble.status == 400 else "server_error"
    return {"code": code, "message": _clean(trouble.body.error.message)}


def note(error: Exception, trouble: Trouble, path: str) -> None:
    """Log what the client is not told."""
    if trouble.status == 500:
        log.error("%s failed", path, exc_info=error)


async def answer_error(request: Request, error: Exception) -> Response:
    """The handler of all exceptions."""
    path = request.url.path
    trouble = trouble_of(error, request.scope.get("octavo.fields", ()))
    note(error, trouble, path)
    headers = {**trouble.headers, REQUEST_ID: caller_of(request).request_id}  # what is unforeseen is answered outside
    return Response(encode_trouble(trouble, path), trouble.status, headers, "application/json")


def install_error_handlers(app: FastAPI) -> None:
    for kind in (OctavoError, HTTPException, ClientGoneError, Exception):
        app.add_exception_handler(kind, answer_error)


def _body(message: str, kind: str, code: str | None = None) -> ErrorBody:
    return ErrorBody(ErrorInfo(message, kind, None, code))


def _clean(text: str) -> str:
    """Without halves of surrogate pairs, which a body may smuggle into a message and no encoder takes."""
    return text.encode("utf-8", "replace").decode()
