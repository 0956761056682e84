"""``AsyncLLM``: a model in a process of its own, with `LLM`'s verbs for an event loop."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo.client.remote import RemoteEngine
from octavo.client.verbs import AdapterInfo, EngineInfo
from octavo.client.wire import Limits
from octavo.config import EngineConfig
from octavo.errors import RequestError
from octavo.intake import Prompt, as_token_ids, check_params, unwrap
from octavo.outputs import CompletionOutput, RequestOutput
from octavo.sampling_params import SamplingParams
from octavo.text.chat import render_chat
from octavo.text.tokenizer import Tokenizer, load_tokenizer

Message = Mapping[str, Any]


class AsyncLLM:
    """A model in another process, so that nothing that this one does delays a step.

    Its process starts when it is first used, or at ``await llm.start()``, or at ``async with``; and ends with
    `shutdown`, with the block, or with this process. It belongs to the event loop that it was first used in.

    Args:
        model: an alias (``"smollm2-135m"``), a hub repository, a folder, or a ``.gguf`` file.
        max_queue, max_queue_tokens: requests, and tokens of requests, that may wait; more are refused with `BusyError`.
        stream_interval_ms: how often an output grows: tokens of several steps come together. 0: after each step.
            None: 0 on a GPU; on a CPU, where to hand over a token takes time from the model, 3 for each stream, up
            to 200.
        kwargs: the fields of `octavo.config.EngineConfig`; an unknown one is an error that names the nearest.

    Attributes:
        config: as it was asked for.
    """

    def __init__(
        self,
        model: str,
        *,
        max_queue: int | None = None,
        max_queue_tokens: int | None = None,
        stream_interval_ms: float | None = None,
        **kwargs: Any,
    ) -> None:
        self.config = EngineConfig.from_kwargs(model, **kwargs)
        self._limits = Limits(max_queue, max_queue_tokens, stream_interval_ms)
        self._ids = itertools.count()
        self._starting: asyncio.Task[RemoteEngine] | None = None
        self._tokenizer: Tokenizer | None = None

    # ---------------------------------------------------------------- life

    async def start(self) -> RemoteEngine:
        """Wait until the model is loaded. Raises what loading it in this process would have raised."""
        if self._starting is None:
            self._starting = asyncio.create_task(self._start())
        return await asyncio.shield(self._starting)

    async def _start(self) -> RemoteEngine:
        engine = await RemoteEngine.start(self.config, self._limits)
        try:
            if engine.info.tokenizer_path:
                self._tokenizer = await asyncio.to_thread(load_tokenizer, engine.info.tokenizer_path)
        except BaseException:
            await engine.shutdown(0)
            raise
        return engine

    async def info(self) -> EngineInfo:
        """What does not change while the engine lives."""
        return (await self.start()).info

    async def shutdown(self, drain: float = 0.0) -> None:
        """Let requests finish for ``drain`` seconds, abort the rest, and end the engine, if it has started."""
        if self._starting is not None:
            await asyncio.wait([self._starting])
            if not self._starting.cancelled() and self._starting.exception() is None:
                await self._starting.result().shutdown(drain)

    async def __aenter__(self) -> AsyncLLM:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.shutdown()

    # ---------------------------------------------------------------- verbs

    async def generate(
        self,
        prompt: Prompt,
        sampling_params: SamplingParams | None = None,
        request_id: str | None = None,
        **options: Any,
    ) -> AsyncGenerator[RequestOutput, None]:
        """Complete a prompt, and yield its output whenever it has grown: all of it so far, as vLLM does.

        The same object is yielded again, grown. Leaving the loop early aborts the request, at once if the iterator is
        closed.

        Args:
            sampling_params: None: the model's defaults.
            request_id: a name of the caller's own, for `abort`; no unfinished request may have it.
            options: ``priority``, ``cache_salt``, ``lora``, ``share_key``, ``timeout``, ``add_special_tokens``; see
                `octavo.client.verbs.EngineClient.generate`.

        Raises:
            RequestError: it can never be served, or its options leave no token to go on with. BusyError: the queue is
                full. EngineDeadError: there is no engine.
        """
        whole: RequestOutput | None = None
        async with aclosing(self._news(prompt, sampling_params, request_id, options)) as outputs:
            async for news in outputs:
                whole = news if whole is None else grown(whole, news)
                yield whole

    async def stream(
        self,
        prompt: Prompt | Sequence[Message],
        sampling_params: SamplingParams | None = None,
        request_id: str | None = None,
        **options: Any,
    ) -> AsyncIterator[CompletionOutput]:
        """Complete one prompt (or conversation) and yield what is new, piece by piece, as ``LLM.stream`` does."""
        one: Any = prompt
        if isinstance(prompt, list | tuple) and prompt and isinstance(prompt[0], Mapping):
            one, options = await self.render(prompt), {"add_special_tokens": False, **options}
        async with aclosing(self._news(one, sampling_params, request_id, options)) as outputs:
            async for news in outputs:
                for piece in news.outputs:
                    yield piece

    async def chat(
        self,
        messages: Sequence[Message],
        sampling_params: SamplingParams | None = None,
        request_id: str | None = None,
        *,
        chat_template: str | None = None,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> AsyncGenerator[RequestOutput, None]:
        """Answer a conversation of ``{"role": …, "content": …}``; outputs and errors as in `generate`."""
        prompt = await self.render(
            messages,
            chat_template=chat_template,
            add_generation_prompt=add_generation_prompt,
            tools=tools,
            **(chat_template_kwargs or {}),
        )
        options = {"add_special_tokens": False, **options}
        async with aclosing(self.generate(prompt, sampling_params, request_id, **options)) as outputs:
            async for output in outputs:
                yield output

    async def embed(self, prompt: Prompt, request_id: str | None = None, **options: Any) -> NDArray[np.float32]:
        """A vector of length 1 for a prompt, ``[hidden_size]`` float32.

        Args:
            options: ``priority``, ``share_key``, ``timeout``.

        Raises:
            RequestError: it was aborted, or its state is not finite; and what `generate` raises.
        """
        engine = await self.start()
        output = await engine.embed(_plain(prompt), request_id=self._name(request_id), **options)
        if output.embedding is None:
            reason = output.outputs[0].stop_reason if output.outputs else None
            raise RequestError(f"the prompt: {reason or 'there is no vector of it'}")
        return np.asarray(output.embedding, np.float32)

    async def abort(self, request_id: str) -> bool:
        """End a request: its iterator yields a last output with reason "abort". False if there is none."""
        return await (await self.start()).abort(request_id)

    async def add_lora(self, name: str, path: str) -> AdapterInfo:
        """Load a LoRA adapter, a folder in PEFT's format, for requests to ask for: ``generate(…, lora=name)``.

        Raises:
            RequestError: it does not suit, or there are too many.
        """
        return await (await self.start()).add_lora(name, str(path))

    async def remove_lora(self, name: str) -> None:
        """Forget an adapter; requests that have it are finished first. ``RequestError``: there is none."""
        await (await self.start()).remove_lora(name)

    async def loras(self) -> Sequence[AdapterInfo]:
        """The adapters that requests may ask for."""
        return (await self.start()).loras()

    async def render(self, messages: Any, *, chat_template: str | None = None, **kwargs: Any) -> str:
        """The prompt that the chat template makes of a conversation."""
        await self.start()
        tokenizer = self._tokenizer
        template = chat_template or self.config.chat_template or (tokenizer.chat_template if tokenizer else None)
        if tokenizer is None or template is None:
            raise RequestError("the model has no chat template; use generate, or give chat_template=")
        kwargs = {"bos_token": tokenizer.bos_token, "eos_token": tokenizer.eos_token, **kwargs}
        kwargs.setdefault("add_generation_prompt", True)
        return await asyncio.to_thread(render_chat, template, messages, **kwargs)

    async def get_default_sampling_params(self) -> SamplingParams:
        """What the model's makers suggest, where they suggest something."""
        suggested: dict[str, Any] = dict((await self.info()).generation)
        return SamplingParams(**suggested)

    async def _news(
        self, prompt: Prompt, params: SamplingParams | None, request_id: str | None, options: dict[str, Any]
    ) -> AsyncGenerator[RequestOutput, None]:
        engine = await self.start()
        chosen = await self.get_default_sampling_params() if params is None else check_params(params)
        stream = engine.generate(_plain(prompt), chosen, request_id=self._name(request_id), **options)
        async with aclosing(stream) as outputs:
            async for output in outputs:
                yield output

    def _name(self, request_id: str | None) -> str:
        return f"request-{next(self._ids)}" if request_id is None else request_id


def _plain(prompt: Prompt) -> str | list[int]:
    """Text, or a list of token ids."""
    prompt = unwrap(prompt)
    return prompt if isinstance(prompt, str) else as_token_ids(prompt)


def grown(whole: RequestOutput, news: RequestOutput) -> RequestOutput:
    """``whole``, with ``news`` added to it."""
    known = {completion.index: completion for completion in whole.outputs}
    for piece in news.outputs:
        if piece.index in known:
            known[piece.index].append(piece)
        else:
            whole.outputs.append(piece)
    whole.outputs.sort(key=lambda completion: completion.index)
    whole.prompt_token_ids, whole.metrics, whole.finished = news.prompt_token_ids, news.metrics, news.finished
    whole.prompt_logprobs = news.prompt_logprobs or whole.prompt_logprobs
    return whole
