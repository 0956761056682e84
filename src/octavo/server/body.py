"""Reading a request's body, and writing an answer's."""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from octavo.openai.decode import Fields, decode_body
from octavo.openai.errors import FieldError
from octavo.server.errors import ClientGoneError

B = TypeVar("B", bound=Fields)

MAX_BRACKETS = 1 << 19
"""That may open a list or an object. Millions of empty lists take seconds to read, in which no other stream goes on."""


async def read_body(request: Request, kind: type[B]) -> B:
    """The body as ``kind``. Raises ``FieldError``; 415 for a body that says it is no JSON."""
    declared = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if declared != "application/json":
        raise HTTPException(415, f"the content type {declared!r:.80} is not supported; accepted: application/json")
    request.scope["octavo.fields"] = kind.__struct_fields__
    try:
        data = await request.body()
    except ClientDisconnect:
        raise ClientGoneError from None
    if data.count(b"[") + data.count(b"{") > MAX_BRACKETS:
        raise FieldError(f"the body has more than {MAX_BRACKETS} opening brackets, which is the most that is accepted")
    return decode_body(data, kind)


def answer(body: Any, status: int = 200) -> Response:
    """A JSON answer of a struct."""
    return Response(msgspec.json.encode(body), status, media_type="application/json")
