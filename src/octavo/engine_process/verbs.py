"""What an engine can be asked to do, besides stepping."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from octavo.client.wire import Call, Generate
from octavo.engine import Engine
from octavo.engine_process.adapter_reader import AdapterRead, AdapterReader
from octavo.errors import RequestError
from octavo.lora import AdapterInfo
from octavo.outputs import RequestOutput
from octavo.sampling_params import PoolingParams

LATER = object()
"""In place of an answer that will come when something was done beside the loop."""


class Verbs:
    """An engine's verbs by their names in ``EngineClient``. All run between two steps.

    Args:
        come: gets each adapter that was read, in another thread; it must then be given to `keep_lora`.
    """

    def __init__(self, engine: Engine, come: Callable[[AdapterRead], None]) -> None:
        self._engine = engine
        self._reader = AdapterReader(engine.adapters.read, come)

    def add(self, message: Generate, token_ids: list[int]) -> RequestOutput:
        """Queue a request; its output, which grows. Raises ``RequestError`` if it can never be served."""
        self._engine.add_request(
            token_ids,
            PoolingParams() if message.embed else message.params,
            request_id=message.request_id,
            priority=message.priority,
            cache_salt=message.cache_salt,
            share_key=message.share_key,
            lora=message.lora,
        )
        output = self._engine.output(message.request_id)
        assert output is not None
        return output

    def call(self, call: Call) -> Any:
        """The answer, or `LATER`. Raises ``RequestError``: it was refused. ``AssertionError``: the check has failed."""
        verbs: dict[str, Callable[..., Any]] = {
            "add_lora": partial(self._read_lora, call.key),
            "remove_lora": self._engine.remove_lora,
            "reset_prefix_cache": self._engine.reset_prefix_cache,
            "debug_check": self._check,
        }
        if call.verb not in verbs:
            raise RequestError(f"the engine has no verb {call.verb!r}; accepted: {', '.join(verbs)}")
        return verbs[call.verb](*call.arguments)

    def _read_lora(self, key: int, name: str, path: str) -> object:
        """The first half of ``add_lora``: an `AdapterRead` will come."""
        self._engine.adapters.check_room(name)
        self._reader.start(key, name, path)
        return LATER

    def keep_lora(self, come: AdapterRead) -> AdapterInfo:
        """The second half. Raises what reading has raised, and ``RequestError`` where there is no room any more."""
        return self._engine.adapters.keep(come.name, come.path, come.read.result())

    def stop(self) -> None:
        """Let go of the thread that reads adapters."""
        self._reader.stop()

    def _check(self) -> dict[str, int]:
        scheduler = self._engine.scheduler
        scheduler.check()
        stats = scheduler.stats()
        return {
            "unfinished": self._engine.num_unfinished_requests,
            "running": stats.running,
            "waiting": stats.waiting,
            "free_blocks": stats.free_blocks,
            "cached_blocks": stats.cached_blocks,
            "num_blocks": stats.num_blocks,
        }
