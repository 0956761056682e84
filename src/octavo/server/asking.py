"""What every generating route does with a request before it runs: who asks, for which model, how urgently."""

from __future__ import annotations

import secrets
import time

from starlette.requests import Request

from octavo.openai.errors import FieldError
from octavo.openai.schema import SamplingFields
from octavo.server.caller import Caller, caller_of
from octavo.server.names import Served
from octavo.server.run import Ask
from octavo.server.state import server_of

MAX_PRIORITY = 2**31 - 1
"""The largest that a body may say; smaller comes first. The smallest is 0 for those with an API key, else its negative:
how urgent a key's requests are at most is for the operator to say, who gives keys a priority of their own.
"""


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
        FieldError: ``priority`` or ``timeout`` is out of range, or ``priority`` would have no effect.
    """
    caller, policy = caller_of(request), server_of(request).client.info.scheduling_policy
    name = f"{prefix}{secrets.token_hex(12)}"
    known = (name, caller.request_id) if caller.request_id else (name,)
    return Ask(
        name,
        known,
        lora=served.lora,
        priority=caller.priority + _priority(caller, priority or 0, policy),
        share_key=caller.name,
        deadline=deadline_of(request, timeout),
        cache_salt=cache_salt or "",
    )


def ask_of_body(request: Request, prefix: str, served: Served, body: SamplingFields) -> Ask:
    """`ask_of` with what the body says."""
    return ask_of(request, prefix, served, priority=body.priority, timeout=body.timeout, cache_salt=body.cache_salt)


def _priority(caller: Caller, priority: int, policy: str) -> int:
    """What the body says. Where there are keys, it may let others go first, but not go before what its key has."""
    if priority and policy == "fcfs":
        ways = "0, or others where the server runs with --scheduling-policy priority or fair"
        raise FieldError(f"priority={priority} has no effect on this server; accepted: {ways}", "priority")
    least = 0 if caller.name else -MAX_PRIORITY
    if not least <= priority <= MAX_PRIORITY:
        whose = " with an API key" if caller.name else ""
        raise FieldError(f"priority={priority}; accepted{whose}: from {least} to {MAX_PRIORITY}", "priority")
    return priority


def deadline_of(request: Request, wanted: float | None = None) -> float | None:
    """When a request that has just come ends at the latest, in seconds of the monotonic clock: the earlier of what the
    body asks for (``wanted`` seconds) and what the caller may have. Raises ``FieldError``.
    """
    if wanted is not None and not wanted > 0:
        raise FieldError(f"timeout={wanted}; accepted: seconds, more than 0", "timeout")
    seconds = [t for t in (wanted, caller_of(request).timeout) if t is not None]
    return time.monotonic() + min(seconds) if seconds else None
