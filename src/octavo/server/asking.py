"""What every generating route does with a request before it runs: who asks, for which model, how urgently."""

from __future__ import annotations

import secrets

from starlette.requests import Request

from octavo.openai.errors import FieldError
from octavo.openai.schema import SamplingFields
from octavo.server.caller import Caller, caller_of
from octavo.server.names import Served
from octavo.server.run import Ask

MAX_PRIORITY = 2**31 - 1


def ask_of(request: Request, prefix: str, served: Served, body: SamplingFields | None = None) -> Ask:
    """How the engine is to be asked. ``prefix`` begins the answer's id, as is the custom of its endpoint.

    Raises:
        FieldError: ``priority`` or ``timeout`` is out of range.
    """
    caller = caller_of(request)
    name = f"{prefix}{secrets.token_hex(12)}"
    known = (name, caller.request_id) if caller.request_id else (name,)
    return Ask(
        name,
        known,
        lora=served.lora,
        priority=caller.priority + _priority(body),
        share_key=caller.name,
        timeout=_timeout(caller, body),
        cache_salt=(body.cache_salt or "") if body is not None else "",
    )


def _priority(body: SamplingFields | None) -> int:
    priority = (body.priority or 0) if body is not None else 0
    if abs(priority) > MAX_PRIORITY:
        raise FieldError(f"priority={priority}; accepted: from -{MAX_PRIORITY} to {MAX_PRIORITY}", "priority")
    return priority


def _timeout(caller: Caller, body: SamplingFields | None) -> float | None:
    """The shorter of what the body asks for and what the caller may have."""
    wanted = body.timeout if body is not None else None
    if wanted is not None and not wanted > 0:
        raise FieldError(f"timeout={wanted}; accepted: seconds, more than 0", "timeout")
    return min((t for t in (wanted, caller.timeout) if t is not None), default=None)
