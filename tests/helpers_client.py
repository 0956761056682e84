"""An engine to test servers with: deterministic, in process, without a model.

It answers a prompt with the prompt's own tokens, backwards, again and again, or with a script; one token a step.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from octavo.client.verbs import AdapterInfo, EngineInfo, Load
from octavo.errors import RequestError
from octavo.outputs import CompletionOutput, Logprob, Logprobs, RequestMetrics, RequestOutput
from octavo.sampling_params import SamplingParams
from octavo.text.tokenizer import Tokenizer

TOKEN_LIMIT = 4096
EMBEDDING = (0.6, 0.8, 0.0)


@dataclass
class FakeClient:
    """An ``EngineClient``.

    Attributes:
        gap: seconds between two tokens.
        hold: while set, no request gets on.
        fail_after, failure: after so many tokens this is raised.
        broken_after: after so many tokens a completion ends with finish reason "error".
        reason: why the engine aborts each request at its first token; None: it does not.
        script: token ids to answer with, in place of the prompt's.
        calls: what `generate` was asked.
        running: requests that are not finished, by id.
        ended_early: ids of requests whose iterator was left.
    """

    tokenizer: Tokenizer | None = None
    gap: float = 0.0
    fail_after: int = 0
    failure: Exception | None = None
    broken_after: int | None = None
    reason: str | None = None
    script: Sequence[int] | None = None
    calls: list[dict[str, Any]] = field(default_factory=list)
    running: dict[str, asyncio.Event] = field(default_factory=dict)
    ended_early: list[str] = field(default_factory=list)
    adapters: dict[str, AdapterInfo] = field(default_factory=dict)
    hold: asyncio.Event | None = None
    max_loras: int = 2
    policy: str = "priority"

    @property
    def info(self) -> EngineInfo:
        size = 1000 if self.tokenizer is None else self.tokenizer.vocab_size
        return EngineInfo(
            model="tiny",
            model_path="/models/tiny",
            version="1",
            vocab_size=size,
            token_limit=TOKEN_LIMIT,
            max_num_seqs=8,
            max_num_batched_tokens=512,
            num_blocks=64,
            block_size=16,
            dtype="float32",
            device="cpu",
            max_loras=self.max_loras,
            scheduling_policy=self.policy,
        )

    async def generate(
        self, prompt: str | Sequence[int], params: SamplingParams, *, request_id: str, **options: Any
    ) -> AsyncIterator[RequestOutput]:
        assert not isinstance(prompt, str)
        self.calls.append({"prompt": list(prompt), "params": params, "request_id": request_id, **options})
        if len(prompt) + (params.max_tokens or 1) > TOKEN_LIMIT:
            raise RequestError(f"the prompt has {len(prompt)} tokens; accepted: up to {TOKEN_LIMIT - 1}")
        aborted = self.running[request_id] = asyncio.Event()
        finished = False
        try:
            async for output in self._steps(list(prompt), params, request_id, aborted):
                finished = output.finished
                yield output
        finally:
            del self.running[request_id]
            if not finished:
                self.ended_early.append(request_id)

    async def _steps(
        self, prompt: list[int], params: SamplingParams, request_id: str, aborted: asyncio.Event
    ) -> AsyncIterator[RequestOutput]:
        arrival = time.monotonic()
        source = list(self.script) if self.script is not None else prompt[::-1]
        length = params.max_tokens or len(source)
        if self.script is not None:
            length = min(length, len(source))
        for step in range(length):
            await self._wait(aborted)
            if self.failure is not None and step >= self.fail_after:
                raise self.failure
            token = source[step % len(source)]
            reason = self._reason(step, length, token, params, aborted)
            now = time.monotonic()
            metrics = RequestMetrics(arrival, arrival + 0.25, now, now, num_cached_tokens=1, waited_for="needs blocks")
            pieces = [self._piece(i, token, step, params, reason) for i in range(params.n)]
            output = RequestOutput(request_id, None, prompt, pieces, reason is not None, metrics)
            if step == 0 and params.prompt_logprobs is not None:
                output.prompt_logprobs = [None, *(self._scores(t, params.prompt_logprobs) for t in prompt[1:])]
            yield output
            if reason is not None:
                return

    async def _wait(self, aborted: asyncio.Event) -> None:
        await asyncio.sleep(self.gap)
        while self.hold is not None and self.hold.is_set() and not aborted.is_set():
            await asyncio.sleep(0.001)

    def _reason(self, step: int, length: int, token: int, params: SamplingParams, aborted: asyncio.Event) -> str | None:
        if aborted.is_set() or self.reason is not None:
            return "abort"
        if self.broken_after is not None and step >= self.broken_after:
            return "error"
        if token in params.stop_token_ids or self._text(token) in params.stop:
            return "stop"
        if step == length - 1:
            return "length" if step + 1 == params.max_tokens else "stop"
        return None

    def _piece(self, index: int, token: int, step: int, params: SamplingParams, reason: str | None) -> CompletionOutput:
        stopped = reason == "stop" and (token in params.stop_token_ids or self._text(token) in params.stop)
        text = "" if stopped else self._text(token)
        scores = None if params.logprobs is None else [self._scores(token, params.logprobs)]
        why: str | int | None = self.reason if reason == "abort" else None
        if reason == "error":
            why = "the device is lost"
        elif stopped:
            why = self._text(token) if self._text(token) in params.stop else token
        return CompletionOutput(index, text, [token], scores, -0.5 * (step + 1) if scores else None, reason, why)

    def _text(self, token: int) -> str:
        return "" if self.tokenizer is None else self.tokenizer.decode([token], skip_special_tokens=False)

    def _scores(self, token: int, count: int) -> Logprobs:
        """The token is the likeliest one; those with the next ids follow."""
        size = self.info.vocab_size
        ids = [(token + i) % size for i in range(max(count, 1))]
        return {i: Logprob(-0.5 * rank, rank, self._text(i)) for rank, i in enumerate(ids, 1)}

    async def embed(self, prompt: str | Sequence[int], *, request_id: str, **options: Any) -> RequestOutput:
        assert not isinstance(prompt, str)
        self.calls.append({"prompt": list(prompt), "request_id": request_id, **options})
        metrics = RequestMetrics(num_cached_tokens=1)
        return RequestOutput(request_id, None, list(prompt), [], True, metrics, embedding=EMBEDDING)

    async def abort(self, request_id: str) -> bool:
        if request_id in self.running:
            self.running[request_id].set()
        return request_id in self.running

    def load(self) -> Load:
        return Load(running=len(self.running))

    async def wait_failed(self) -> str:
        await asyncio.Event().wait()
        raise AssertionError("unreachable")

    async def add_lora(self, name: str, path: str) -> AdapterInfo:
        if len(self.adapters) == self.max_loras:
            raise RequestError(f"{self.max_loras} adapters are loaded already, and max_loras is {self.max_loras}")
        info = self.adapters[name] = AdapterInfo(name, path, 8)
        return info

    async def remove_lora(self, name: str) -> None:
        if self.adapters.pop(name, None) is None:
            raise RequestError(f"there is no adapter {name!r}")

    def loras(self) -> Sequence[AdapterInfo]:
        return list(self.adapters.values())

    async def reset_prefix_cache(self) -> None: ...

    async def debug_check(self) -> dict[str, Any]:
        return {}

    async def shutdown(self, drain: float) -> None: ...
