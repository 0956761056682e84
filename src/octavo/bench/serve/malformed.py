"""Bodies that a server must refuse with a status from 400 to 499: what broken clients send."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

_Body = Mapping[str, Any]

_BREAK: dict[str, Callable[[_Body], bytes]] = {
    "empty": lambda body: b"",
    "cut": lambda body: _encode(body)[:-2],
    "no UTF-8": lambda body: _encode(body).replace(b'"model"', b'"\xff\xfe"', 1),
    "no object": lambda body: _encode([body]),
    "deep": lambda body: b"[" * 100_000,
    "wrong type": lambda body: _encode({**body, "max_tokens": "many"}),
    "out of range": lambda body: _encode({**body, "temperature": -5}),
    "too many": lambda body: _encode({**body, "n": 10**9}),
    "no prompt": lambda body: _encode({k: v for k, v in body.items() if k not in ("prompt", "messages")}),
    "wrong prompt": lambda body: _encode({**body, "prompt": {"text": 1}, "messages": "hello"}),
}
KINDS = tuple(_BREAK)


def malform(body: _Body, kind: str) -> bytes:
    """``body`` as JSON, broken in the way that ``kind`` says."""
    return _BREAK[kind](body)


def _encode(value: Any) -> bytes:
    return json.dumps(value).encode()
