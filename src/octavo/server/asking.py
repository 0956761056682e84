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


def ask_of(
    request: Request,
    prefix: str,
    served: Served,
    *,
    priority: int | None = None,
    timeout: float | None = None,
    cache_salt: str | None = None,
) -> Ask:
    """How the engine is to be asked.

    Args:
        prefix: begins the answer's id, as is the custom of its endpoint.
        priority, timeout, cache_salt: as the body says, if it does.

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
        priority=caller.priority + _priority(priority or 0),
        share_key=caller.name,
        timeout=_timeout(caller, timeout),
        cache_salt=cache_salt or "",
    )


def ask_of_body(request: Request, prefix: str, served: Served, body: SamplingFields) -> Ask:
    """`ask_of` with what the body says."""
    return ask_of(request, prefix, served, priority=body.priority, timeout=body.timeout, cache_salt=body.cache_salt)


def _priority(priority: int) -> int:
    if abs(priority) > MAX_PRIORITY:
        raise FieldError(f"priority={priority}; accepted: from -{MAX_PRIORITY} to {MAX_PRIORITY}", "priority")
    return priority


def _timeout(caller: Caller, wanted: float | None) -> float | None:
    """The shorter of what the body asks for and what the caller may have."""
    if wanted is not None and not wanted > 0:
        raise FieldError(f"timeout={wanted}; accepted: seconds, more than 0", "timeout")
    return min((t for t in (wanted, caller.timeout) if t is not None), default=None)
