"""An `EngineClient` that sees what goes by: it counts tokens, and makes a record of each request that ends."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any

from octavo.client.verbs import AdapterInfo, BusyError, EngineClient, EngineInfo, Load
from octavo.errors import RequestError
from octavo.outputs import RequestMetrics, RequestOutput
from octavo.sampling_params import SamplingParams
from octavo.server.caller import NOBODY, Caller
from octavo.server.metrics import Metrics
from octavo.server.request_record import RequestRecord, Sink


@dataclass(slots=True)
class _Watch:
    """One request while it lives. The clock is the monotonic one, which the engine's metrics are of, too."""

    id: str
    caller: Caller
    model: str
    params: SamplingParams | None
    counts: Metrics
    clock: Callable[[], float]
    keep_text: bool
    arrived: float = field(init=False)
    started_at: float = field(init=False)
    prompt_tokens: int = 0
    output_tokens: int = 0
    finish_reason: str = "abort"  # of a request that nobody read to its end
    error: str | None = None
    metrics: RequestMetrics = field(init=False)
    prompt: str | None = None
    pieces: list[str] = field(default_factory=list)
    latest: dict[int, float] = field(default_factory=dict)
    """When a completion's newest tokens came, by its index."""

    def __post_init__(self) -> None:
        self.arrived, self.started_at = self.clock(), time.time()
        self.metrics = RequestMetrics(arrival_time=self.arrived)

    def see(self, output: RequestOutput) -> None:
        now = self.clock()
        for completion in output.outputs:
            if completion.token_ids:
                self._see_tokens(completion.index, len(completion.token_ids), now)
            if completion.finish_reason is not None and completion.index == 0:
                self.finish_reason = completion.finish_reason
                self.error = str(completion.stop_reason) if completion.finish_reason == "error" else None
        self.prompt_tokens = len(output.prompt_token_ids) or self.prompt_tokens
        self.metrics = output.metrics
        if self.keep_text:
            self.prompt = output.prompt if output.prompt is not None else self.prompt
            self.pieces += [completion.text for completion in output.outputs]
        if output.finished and output.embedding is not None:
            self.finish_reason = "stop"

    def _see_tokens(self, index: int, count: int, now: float) -> None:
        if not self.output_tokens:
            self.counts.first_token(now - self.arrived)
        before = self.latest.get(index)
        if before is not None:
            self.counts.next_tokens(now - before, count)
        self.latest[index] = now
        self.output_tokens += count

    def fail(self, error: Exception) -> None:
        self.finish_reason = "refused" if isinstance(error, RequestError | BusyError) else "error"
        self.error = str(error)

    def record(self) -> RequestRecord:
        return RequestRecord(
            id=self.id,
            caller=self.caller,
            model=self.model,
            params=self.params,
            prompt_tokens=self.prompt_tokens,
            output_tokens=self.output_tokens,
            finish_reason=self.finish_reason,
            error=self.error,
            started_at=self.started_at,
            latency=self.clock() - self.arrived,
            metrics=self.metrics,
            prompt=self.prompt,
            text="".join(self.pieces) if self.keep_text else None,
        )


@dataclass(frozen=True, slots=True)
class ObservedClient:
    """All verbs of ``client``, seen.

    Attributes:
        model: the name it is served under.
        sinks: each gets the record of each request that has ended.
        caller: who sends the requests; `of` gives a client for another one.
        keep_text: whether records have the prompt's and the answer's text.
    """

    client: EngineClient
    metrics: Metrics
    model: str
    sinks: Sequence[Sink] = ()
    caller: Caller = NOBODY
    keep_text: bool = False
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
        watch = self._watch(request_id, params, lora)
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

    async def embed(self, prompt: str | Sequence[int], *, request_id: str, **options: Any) -> RequestOutput:
        watch = self._watch(request_id, None, None)
        try:
            output = await self.client.embed(prompt, request_id=request_id, **options)
            watch.see(output)
            return output
        except Exception as error:
            watch.fail(error)
            raise
        finally:
            self._end(watch)

    def _watch(self, request_id: str, params: SamplingParams | None, lora: str | None) -> _Watch:
        model = lora or self.model
        return _Watch(request_id, self.caller, model, params, self.metrics, self.clock, self.keep_text)

    def _end(self, watch: _Watch) -> None:
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
