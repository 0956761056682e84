"""Lets in who has a key, and not more of his requests at once than the key allows."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from octavo.server.caller import SCOPE_KEY, caller_in
from octavo.server.keys import ApiKey, KeyRing
from octavo.server.refusal import refuse

PUBLIC = frozenset({"/health", "/ready", "/metrics", "/version"})
"""For supervisors and scrapers, which have no keys. They tell nothing of prompts."""


@dataclass(slots=True)
class Authentication:
    """ASGI middleware: 401 without a key that is in ``keys``; 429 beyond the key's ``max_requests``."""

    app: ASGIApp
    keys: KeyRing
    _active: Counter[str] = field(default_factory=Counter)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in PUBLIC or not self.keys.wanted:
            return await self.app(scope, receive, send)
        given = given_key(Headers(scope=scope))
        key = self.keys.find(given) if given else None
        if key is None:
            return await _refuse(scope, send, given is not None)
        scope[SCOPE_KEY] = replace(caller_in(scope), name=key.name, priority=key.priority)
        if key.max_requests is not None and self._active[key.name] >= key.max_requests:
            message = f"the key {key.name!r} has {key.max_requests} requests at work, which is its limit"
            return await refuse(scope, send, 429, message, "rate_limit_exceeded", {"retry-after": "1"})
        return await self._serve(key, scope, receive, send)

    async def _serve(self, key: ApiKey, scope: Scope, receive: Receive, send: Send) -> None:
        self._active[key.name] += 1
        try:
            await self.app(scope, receive, send)
        finally:
            self._active[key.name] -= 1


def given_key(headers: Headers) -> str | None:
    """The key that a request brings, OpenAI's way (``Authorization: Bearer``) or Anthropic's (``x-api-key``)."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and token.strip():
        return token.strip()
    return headers.get("x-api-key") or None


async def _refuse(scope: Scope, send: Send, wrong: bool) -> None:
    ways = "Authorization: Bearer KEY or x-api-key: KEY"
    message = f"the API key is not known; accepted: one of this server's, as {ways}" if wrong else f"send {ways}"
    await refuse(scope, send, 401, message, "invalid_api_key", {"www-authenticate": "Bearer"})
