"""A server that is about to end answers what it has begun, and sends away what is new."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from octavo.server.authentication import PUBLIC
from octavo.server.health import Health
from octavo.server.refusal import refuse

AWAY = {"connection": "close", "retry-after": "5"}


@dataclass(frozen=True, slots=True)
class Draining:
    """ASGI middleware: while ``health`` says that the server drains, 503 for new requests.

    Each answer then closes its connection, so that a client with an open one goes to another server next time.
    """

    app: ASGIApp
    health: Health

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in PUBLIC:
            return await self.app(scope, receive, send)
        if self.health.draining:
            return await refuse(scope, send, 503, "the server is about to end; ask another one", headers=AWAY)

        async def closing(message: Message) -> None:
            if message["type"] == "http.response.start" and self.health.draining:
                MutableHeaders(scope=message)["connection"] = "close"
            await send(message)

        return await self.app(scope, receive, closing)
