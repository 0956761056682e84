"""From a process that has just been started to an engine that takes requests."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from octavo.client.connection import Connection
from octavo.client.process import EngineProcess
from octavo.client.verbs import EngineDeadError, EngineInfo
from octavo.client.wire import Loading, Ready, decode_from_engine


async def wait_ready(
    process: EngineProcess, connection: Connection, death: asyncio.Task[str], on_phase: Callable[[str], None]
) -> EngineInfo:
    """Wait until the engine is ready or its process has died, whichever comes first."""
    while True:
        message = asyncio.ensure_future(connection.receive())
        await asyncio.wait([death, message], return_when=asyncio.FIRST_COMPLETED)
        if not message.done():
            message.cancel()
            words = process.last_words
            raise (words and words.as_error()) or EngineDeadError(f"the engine did not start: {death.result()}")
        match decode_from_engine(message.result()):
            case Loading(phase):
                on_phase(phase)
            case Ready(info):
                return info
