"""Calls of the engine's rarer verbs that wait for their answers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

from octavo.client.verbs import EngineDeadError, FailedError
from octavo.client.wire import Answer
from octavo.errors import RequestError


class Calls:
    """Those under way, by key."""

    def __init__(self) -> None:
        self._waiting: dict[int, asyncio.Future[Any]] = {}

    async def answer(self, key: int) -> Any:
        """What the call of this key gives.

        Raises:
            RequestError: it was refused. FailedError: the engine failed at it. EngineDeadError: as `fail` says.
        """
        future = self._waiting[key] = asyncio.get_running_loop().create_future()
        try:
            return await future
        finally:
            del self._waiting[key]

    def take(self, answers: Iterable[Answer]) -> None:
        for answer in answers:
            future = self._waiting.get(answer.key)
            if future is None or future.done():
                continue
            if answer.error is not None:
                future.set_exception(FailedError(answer.error) if answer.failed else RequestError(answer.error))
            else:
                future.set_result(answer.value)

    def fail(self, reason: str) -> None:
        """No answer comes any more: all calls raise ``EngineDeadError``."""
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(EngineDeadError(reason))
