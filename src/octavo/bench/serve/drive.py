"""Sends the requests of a plan when they are due, and notes what comes back when."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext

import aiohttp
import msgspec

from octavo.bench.serve.events import Event, EventReader, error_text
from octavo.bench.serve.outcome import Outcome
from octavo.bench.serve.plan import Planned
from octavo.bench.serve.target import Target

LEAVE_UNANSWERED = 0.05
"""Seconds after which a client hangs up that does not want even the first piece."""


class _FailedError(Exception):
    """The server did not do its part; the message says in which way."""


async def drive(
    target: Target,
    plan: Sequence[Planned],
    start: float,
    concurrency: int | None = None,
    report: Callable[[], None] = lambda: None,
) -> list[Outcome]:
    """Run ``plan`` to its end; the outcomes are in its order.

    Args:
        start: the moment that the plan's times count from, of the monotonic clock.
        concurrency: most requests at once; the others are sent late.
        report: called when a request has ended.
    """
    places = nullcontext() if concurrency is None else asyncio.Semaphore(concurrency)
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=target.timeout)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout, headers=target.headers) as session:
        async with asyncio.TaskGroup() as group:
            tasks = []
            for planned in plan:
                await _sleep_until(start + planned.at)
                tasks.append(group.create_task(_in_place(places, session, target, planned, start, report)))
        return [task.result() for task in tasks]


async def _sleep_until(moment: float) -> None:
    if (seconds := moment - time.monotonic()) > 0:
        await asyncio.sleep(seconds)


async def _in_place(
    places: asyncio.Semaphore | nullcontext[None],
    session: aiohttp.ClientSession,
    target: Target,
    planned: Planned,
    start: float,
    report: Callable[[], None],
) -> Outcome:
    async with places:
        waited = isinstance(places, asyncio.Semaphore)  # for a place, which is not the client's slowness
        outcome = await ask(session, target, planned, time.monotonic() if waited else start + planned.at)
    report()
    return outcome


async def ask(session: aiohttp.ClientSession, target: Target, planned: Planned, due: float) -> Outcome:
    """One request, from its sending to its end."""
    body, outcome = target.body(planned), Outcome(due, times=[])
    limit = LEAVE_UNANSWERED if planned.leave_after == 0 else target.timeout
    outcome.sent = time.monotonic()
    try:
        async with asyncio.timeout(limit), session.post(target.endpoint, data=body) as answer:
            await _read(answer, planned, outcome)
    except TimeoutError:
        outcome.left = planned.leave_after == 0
        outcome.error = None if outcome.left else "timeout"
    except _FailedError as error:
        outcome.error = str(error)
    except aiohttp.ClientConnectorError as error:
        outcome.error = f"cannot connect: {error.os_error.strerror or error.os_error}"
    except (aiohttp.ClientError, OSError) as error:
        outcome.error = f"connection: {type(error).__name__}"
    except msgspec.MsgspecError:
        outcome.error = "an event that is no JSON"
    outcome.ended = time.monotonic()
    return outcome


async def _read(answer: aiohttp.ClientResponse, planned: Planned, outcome: Outcome) -> None:
    if planned.malformed is not None:
        outcome.malformed = 400 <= answer.status < 500
        if not outcome.malformed:
            raise _FailedError(f"malformed ({planned.malformed}): HTTP {answer.status}")
        await answer.read()
    elif answer.status != 200:
        outcome.said = error_text(await answer.read())
        raise _FailedError(f"HTTP {answer.status}")
    else:
        await _read_stream(answer, planned.leave_after, outcome)


async def _read_stream(answer: aiohttp.ClientResponse, leave_after: int | None, outcome: Outcome) -> None:
    reader, times = EventReader(), outcome.times
    async for data in answer.content.iter_any():
        now = time.monotonic()
        for event in reader.feed(data):
            _take(event, now, outcome)
        if leave_after is not None and len(times) >= leave_after:
            outcome.left = True
            answer.close()
            return
    if not reader.done:
        raise _FailedError("the stream broke off")
    outcome.output_tokens = outcome.output_tokens or len(times)
    if not outcome.output_tokens:
        raise _FailedError("an empty answer")


def _take(event: Event, now: float, outcome: Outcome) -> None:
    if event.error is not None:
        raise _FailedError("an error in the stream")
    if event.choices and any(choice.has_news for choice in event.choices):
        outcome.times.append(now)
    if event.usage is not None:
        outcome.prompt_tokens = event.usage.prompt_tokens
        outcome.output_tokens = event.usage.completion_tokens or 0
