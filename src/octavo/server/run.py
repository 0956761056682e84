"""Runs the prompts of one HTTP request: starts them, joins their news, ends them when nobody listens."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, cast

from octavo.client.verbs import EngineClient, FailedError
from octavo.openai.structured import CALLS
from octavo.outputs import CompletionOutput, RequestOutput
from octavo.sampling_params import SamplingParams
from octavo.server.forms import blaming
from octavo.server.live import Live, Running

News = tuple[int, RequestOutput]
"""Which of the prompts, and what is new of it."""


@dataclass(frozen=True, slots=True)
class Ask:
    """What the engine is told about a request besides prompts and sampling; see ``EngineClient.generate``.

    Attributes:
        id: of the answer.
        names: by which the sender may abort it.
        deadline: when it ends at the latest, in seconds of the monotonic clock.
    """

    id: str
    names: tuple[str, ...]
    lora: str | None = None
    priority: int = 0
    share_key: str = ""
    deadline: float | None = None
    cache_salt: str = ""

    @property
    def timeout(self) -> float | None:
        """Seconds that are left now; none are left once it is 0."""
        return None if self.deadline is None else max(self.deadline - time.monotonic(), 0.0)


@dataclass(frozen=True, slots=True)
class Run:
    """Prompts of token ids to run together, all sampled the same way.

    Attributes:
        form: the field of the body that says the form of completions, to be blamed for one that cannot be used.
    """

    client: EngineClient
    live: Live
    ask: Ask
    prompts: Sequence[Sequence[int]]
    params: SamplingParams
    form: str = CALLS

    async def news(self) -> AsyncGenerator[News, None]:
        """What comes, as it comes. Closing the iterator aborts what still runs.

        Raises:
            FailedError: the engine failed at one of the prompts. FieldError: the form cannot be used. And what
                ``EngineClient.generate`` raises.
        """
        ids = [self.ask.id if i == 0 else f"{self.ask.id}-{i}" for i in range(len(self.prompts))]
        with self.live.entered(self.ask.names, Running(self.ask.share_key, ids)), blaming(self.form):
            async with aclosing(self._joined(ids)) as joined:
                async for i, output in joined:
                    check_finish(output)
                    yield i, output

    async def outputs(self) -> list[RequestOutput]:
        """The finished outputs, in the prompts' order. Raises what `news` does."""
        gathered = [_Gathered(prompt) for prompt in self.prompts]
        async with aclosing(self.news()) as news:
            async for i, output in news:
                gathered[i].add(output)
        return [one.output() for one in gathered]

    def _joined(self, ids: list[str]) -> AsyncGenerator[News, None]:
        streams = [self._start(name, prompt) for name, prompt in zip(ids, self.prompts, strict=True)]
        return _numbered(streams[0]) if len(streams) == 1 else _merged(streams)

    def _start(self, engine_id: str, prompt: Sequence[int]) -> AsyncIterator[RequestOutput]:
        ask = self.ask
        return self.client.generate(
            prompt,
            self.params,
            request_id=engine_id,
            lora=ask.lora,
            priority=ask.priority,
            share_key=ask.share_key,
            timeout=ask.timeout,
            cache_salt=ask.cache_salt,
        )


def check_finish(output: RequestOutput) -> None:
    """Raise ``FailedError`` if a completion ended by an error."""
    for completion in output.outputs:
        if completion.finish_reason == "error":
            raise FailedError(f"the model failed: {completion.stop_reason}")


async def _numbered(stream: AsyncIterator[RequestOutput]) -> AsyncGenerator[News, None]:
    async with aclosing(cast(Any, stream)):
        async for output in stream:
            yield 0, output


async def _merged(streams: Sequence[AsyncIterator[RequestOutput]]) -> AsyncGenerator[News, None]:
    """The news of several streams. Its queue is short: where the reader is slow, news are joined further back."""
    queue: asyncio.Queue[News | Exception | None] = asyncio.Queue(len(streams))
    pumps = [asyncio.create_task(_pump(i, stream, queue)) for i, stream in enumerate(streams)]
    left = len(pumps)
    try:
        while left:
            item = await queue.get()
            if item is None:
                left -= 1
            elif isinstance(item, Exception):
                raise item
            else:
                yield item
    finally:
        for pump in pumps:
            pump.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)


async def _pump(i: int, stream: AsyncIterator[RequestOutput], queue: asyncio.Queue[News | Exception | None]) -> None:
    try:
        async with aclosing(cast(Any, stream)):
            async for output in stream:
                await queue.put((i, output))
    except Exception as error:
        await queue.put(error)
    else:
        await queue.put(None)


class _Gathered:
    """News of one prompt, added up."""

    def __init__(self, prompt: Sequence[int]) -> None:
        self._prompt = list(prompt)
        self._last: RequestOutput | None = None
        self._scores: Any = None
        self._texts: dict[int, list[str]] = {}
        self._completions: dict[int, CompletionOutput] = {}

    def add(self, news: RequestOutput) -> None:
        self._last = news
        if news.prompt_logprobs is not None:
            self._scores = news.prompt_logprobs
        for piece in news.outputs:
            self._texts.setdefault(piece.index, []).append(piece.text)
            self._add(self._completions.setdefault(piece.index, CompletionOutput(piece.index)), piece)

    def output(self) -> RequestOutput:
        """The whole. Raises ``FailedError`` if its last news never came."""
        if self._last is None or not self._last.finished:
            raise FailedError("the engine ended a request without saying why")
        for index, texts in self._texts.items():
            self._completions[index].text = "".join(texts)
        completions = [self._completions[index] for index in sorted(self._completions)]
        last = self._last
        return RequestOutput(
            last.request_id, last.prompt, self._prompt, completions, True, last.metrics, self._scores, last.embedding
        )

    def _add(self, whole: CompletionOutput, piece: CompletionOutput) -> None:
        whole.token_ids += piece.token_ids
        if piece.logprobs is not None:
            whole.logprobs = [*(whole.logprobs or []), *piece.logprobs] if whole.logprobs else list(piece.logprobs)
        whole.cumulative_logprob = piece.cumulative_logprob
        if piece.finish_reason is not None:
            whole.finish_reason, whole.stop_reason = piece.finish_reason, piece.stop_reason
