"""An engine that answers by script, and a clock that stands still: what operation is tested with."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from octavo.client.verbs import AdapterInfo, EngineInfo, Load
from octavo.outputs import CompletionOutput, RequestMetrics, RequestOutput
from octavo.sampling_params import SamplingParams

INFO = EngineInfo(
    model="tiny",
    model_path="/models/tiny",
    version="0",
    vocab_size=100,
    token_limit=300,
    max_num_seqs=4,
    max_num_batched_tokens=64,
    num_blocks=50,
    block_size=16,
    dtype="float32",
    device="cpu",
)


@dataclass
class Clock:
    """Says the time that it was told."""

    now: float = 100.0

    def __call__(self) -> float:
        return self.now


@dataclass
class News:
    """What a request hears: tokens, so long after the news before."""

    after: float
    tokens: int = 1
    text: str = ""
    finish_reason: str | None = None
    index: int = 0
    metrics: RequestMetrics = field(default_factory=RequestMetrics)
    stop_reason: str | None = None


@dataclass
class ScriptedEngine:
    """Each request hears ``script``, on ``clock``'s time, and then what ``failure`` says.

    Attributes:
        state: the snapshot; ``looks`` counts how often it was asked for.
        asked: the options of each request.
        left: how many requests have ended.
    """

    clock: Clock = field(default_factory=Clock)
    script: Sequence[News] = ()
    failure: Exception | None = None
    state: Load = field(default_factory=Load)
    info: EngineInfo = INFO
    asked: list[dict[str, Any]] = field(default_factory=list)
    left: int = 0
    looks: int = 0
    died: asyncio.Future[str] | None = None

    async def generate(self, prompt: Any, params: SamplingParams, **options: Any) -> AsyncIterator[RequestOutput]:
        self.asked.append(options)
        ids = [] if isinstance(prompt, str) else list(prompt)
        text = prompt if isinstance(prompt, str) else None
        try:
            for i, news in enumerate(self.script):
                self.clock.now += news.after
                await asyncio.sleep(0)
                completion = CompletionOutput(
                    news.index,
                    news.text,
                    [7] * news.tokens,
                    finish_reason=news.finish_reason,
                    stop_reason=news.stop_reason,
                )
                last = i == len(self.script) - 1 and self.failure is None
                yield RequestOutput(options["request_id"], text, ids, [completion], last, news.metrics)
            if self.failure is not None:
                raise self.failure
        finally:
            self.left += 1

    async def embed(self, prompt: Any, **options: Any) -> RequestOutput:
        self.asked.append(options)
        if self.failure is not None:
            raise self.failure
        last = [CompletionOutput(0, "", [7], finish_reason="length")]  # the model's step samples, whatever it is for
        return RequestOutput(options["request_id"], None, list(prompt), last, True, RequestMetrics(), embedding=[1.0])

    async def abort(self, request_id: str) -> bool:
        return False

    def load(self) -> Load:
        self.looks += 1
        return self.state

    async def wait_failed(self) -> str:
        if self.died is None:
            self.died = asyncio.get_running_loop().create_future()
        return await self.died

    async def add_lora(self, name: str, path: str) -> AdapterInfo:
        return AdapterInfo(name, path, 8)

    async def remove_lora(self, name: str) -> None: ...

    def loras(self) -> Sequence[AdapterInfo]:
        return ()

    async def reset_prefix_cache(self) -> None: ...

    async def debug_check(self) -> dict[str, Any]:
        return {"blocks": self.info.num_blocks}

    async def shutdown(self, drain: float) -> None: ...
