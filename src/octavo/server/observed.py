"""An `EngineClient` that sees what goes by: it counts tokens, and makes a record of each request that ends."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

from octavo.client.verbs import AdapterInfo, EngineClient, EngineInfo, Load
from octavo.outputs import RequestOutput
from octavo.sampling_params import SamplingParams
from octavo.server.caller import NOBODY, Caller
from octavo.server.metrics import Metrics
from octavo.server.request_record import Sink
from octavo.server.request_watch import RequestWatch


@dataclass(frozen=True, slots=True)
class ObservedClient:
    """All verbs of ``client``, seen.

    Attributes:
        model: the name it is served under.
        sinks: each gets the record of each request that has ended.
        caller: who sends the requests; `of` gives a client for another one.
        decode: makes text of a prompt's token ids, where records shall have texts; None: they have none.
    """

    client: EngineClient
    metrics: Metrics
    model: str
    sinks: Sequence[Sink] = ()
    caller: Caller = NOBODY
    decode: Callable[[Sequence[int]], str] | None = None
    clock: Callable[[], float] = time.monotonic

    def of(self, caller: Caller) -> ObservedClient:
        """The same client, for the requests of ``caller``."""
        return replace(self, caller=caller)

    @property
    def info(self) -> EngineInfo:
        return self.client.info

    async def generate(
        self,
        prompt: str | Sequence[int],
        params: SamplingParams,
        *,
        request_id: str,
        lora: str | None = None,
        **options: Any,
    ) -> AsyncIterator[RequestOutput]:
        watch = self._watch(request_id, prompt, params, lora)
        try:
            news = self.client.generate(prompt, params, request_id=request_id, lora=lora, **options)
            async with aclosing(news):  # type: ignore[type-var]  # an iterator that is left early is aborted now
                async for output in news:
                    watch.see(output)
                    self.metrics.step(self.client.load())
                    yield output
        except Exception as error:
            watch.fail(error)
            raise
        finally:
            self._end(watch)

    async def embed(
        self, prompt: str | Sequence[int], *, request_id: str, lora: str | None = None, **options: Any
    ) -> RequestOutput:
        watch = self._watch(request_id, prompt, None, lora)
        try:
            output = await self.client.embed(prompt, request_id=request_id, lora=lora, **options)
            watch.see(output)
            return output
        except Exception as error:
            watch.fail(error)
            raise
        finally:
            self._end(watch)

    def _watch(
        self, request_id: str, prompt: str | Sequence[int], params: SamplingParams | None, lora: str | None
    ) -> RequestWatch:
        count = 0 if isinstance(prompt, str) else len(prompt)
        watch = RequestWatch(request_id, self.caller, lora or self.model, params, self.metrics, self.clock, count)
        if self.decode is not None:
            watch.prompt = prompt if isinstance(prompt, str) else self.decode(prompt)
        return watch

    def _end(self, watch: RequestWatch) -> None:
        record = watch.record()
        self.metrics.finished(record)
        for sink in self.sinks:
            sink(record)

    async def abort(self, request_id: str) -> bool:
        return await self.client.abort(request_id)

    def load(self) -> Load:
        return self.client.load()

    async def wait_failed(self) -> str:
        return await self.client.wait_failed()

    async def add_lora(self, name: str, path: str) -> AdapterInfo:
        return await self.client.add_lora(name, path)

    async def remove_lora(self, name: str) -> None:
        await self.client.remove_lora(name)

    def loras(self) -> Sequence[AdapterInfo]:
        return self.client.loras()

    async def reset_prefix_cache(self) -> None:
        await self.client.reset_prefix_cache()

    async def debug_check(self) -> dict[str, Any]:
        return await self.client.debug_check()

    async def shutdown(self, drain: float) -> None:
        await self.client.shutdown(drain)
