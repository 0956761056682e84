"""What an engine can be asked to do, besides stepping."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from octavo.client.wire import Generate
from octavo.engine import Engine
from octavo.errors import RequestError
from octavo.outputs import RequestOutput
from octavo.sampling_params import PoolingParams


class Verbs:
    """An engine's verbs by their names in ``EngineClient``. All run between two steps."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def add(self, message: Generate, token_ids: list[int]) -> RequestOutput:
        """Queue a request; its output, which grows. Raises ``RequestError`` if it can never be served."""
        options: dict[str, Any] = {}
        if message.lora is not None:
            self._with_adapters()
            options["lora"] = message.lora
        self._engine.add_request(
            token_ids,
            PoolingParams() if message.embed else message.params,
            request_id=message.request_id,
            priority=message.priority,
            cache_salt=message.cache_salt,
            share_key=message.share_key,
            **options,
        )
        output = self._engine.output(message.request_id)
        assert output is not None
        return output

    def call(self, verb: str, arguments: tuple[Any, ...]) -> Any:
        """Raises ``RequestError``: it was refused. ``AssertionError``: the check has failed."""
        verbs: dict[str, Callable[..., Any]] = {
            "add_lora": self._add_lora,
            "remove_lora": self._remove_lora,
            "reset_prefix_cache": self._engine.reset_prefix_cache,
            "debug_check": self._check,
        }
        if verb not in verbs:
            raise RequestError(f"the engine has no verb {verb!r}; accepted: {', '.join(verbs)}")
        return verbs[verb](*arguments)

    def _add_lora(self, name: str, path: str) -> Any:
        return self._with_adapters().add_lora(name, path)

    def _remove_lora(self, name: str) -> None:
        self._with_adapters().remove_lora(name)

    def _with_adapters(self) -> Any:
        if not hasattr(self._engine, "add_lora"):
            raise RequestError("adapters are not enabled")
        return self._engine

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
