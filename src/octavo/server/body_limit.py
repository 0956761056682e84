"""A request's body has a largest size, whether or not its length is told beforehand."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from octavo.server.refusal import refuse


@dataclass(frozen=True, slots=True)
class BodyLimit:
    """ASGI middleware: 413 for a body of more than ``limit`` bytes, before more than those have been read.

    The connection is closed, so that nobody waits for the rest of a body that will not be read.
    """

    app: ASGIApp
    limit: int

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        length = Headers(scope=scope).get("content-length", "")
        if length.isdecimal() and int(length) > self.limit:
            return await refuse(scope, send, 413, self._message, headers={"connection": "close"})
        return await self.app(scope, self._counted(receive), send)

    @property
    def _message(self) -> str:
        return f"the body is too large; accepted: up to {self.limit} bytes"

    def _counted(self, receive: Receive) -> Receive:
        """A chunked body does not tell its length: it is counted while a route reads it."""
        read = 0

        async def counted() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > self.limit:
                raise HTTPException(413, self._message, {"Connection": "close"})
            return message

        return counted
