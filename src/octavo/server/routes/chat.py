"""``/v1/chat/completions``: conversations."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from octavo.openai.chunks import DONE, ChatChunkChoice, Chunks, Delta
from octavo.openai.logprobs import chat_logprobs
from octavo.openai.metrics import metrics_of
from octavo.openai.requests import check_stream, sampling_params
from octavo.openai.responses import Answered, Extras, chat_completion
from octavo.openai.schema import ChatCompletionRequest
from octavo.outputs import CompletionOutput
from octavo.server.asking import ask_of_body
from octavo.server.body import answer, read_body
from octavo.server.prompts import chat_prompt
from octavo.server.run import Run
from octavo.server.state import server_of
from octavo.server.stream import EventStream, unless_gone
from octavo.server.tally import Tally, wants_usage

router = APIRouter()


@router.post("/v1/chat/completions")
async def create_chat_completion(request: Request) -> Response:
    server = server_of(request)
    body = await read_body(request, ChatCompletionRequest)
    check_stream(body)
    served = server.names.find(body.model)
    params = sampling_params(body, server.client.info.generation)
    prompt = await server.texts.run(chat_prompt, server, body)
    ask = ask_of_body(request, "chatcmpl-", served, body)
    run = Run(server.client, server.live, ask, [prompt], params)
    by = server.answered(ask.id, served.name, as_ids=body.return_tokens_as_token_ids is True)
    if body.stream:
        return EventStream(_Stream(body, run, by).events(), server.options)
    outputs = await unless_gone(request.receive, run.outputs())
    extras = Extras(token_ids=body.return_token_ids is True)
    return answer(chat_completion(outputs[0], body.top_logprobs or 0, by, extras))


@dataclass(frozen=True, slots=True)
class _Stream:
    """A chat's way into events."""

    body: ChatCompletionRequest
    run: Run
    by: Answered

    async def events(self) -> AsyncGenerator[bytes, None]:
        """The events. News of several completions that came together leave together."""
        chunks, tally = Chunks("chat.completion.chunk", self.by), Tally(self.run.prompts)
        at_end, always = wants_usage(self.body)
        begun: set[int] = set()
        async with aclosing(self.run.news()) as all_news:
            async for _, news in all_news:
                tally.add(news)
                usage = tally.usage() if always else None
                last = metrics_of([news]) if news.finished else None
                choices = [choice for piece in news.outputs for choice in self._choices(piece, begun)]
                yield b"".join([chunks.choice(c, usage, last if c is choices[-1] else None) for c in choices])
        if at_end:
            yield chunks.usage(tally.usage())
        yield DONE

    def _choices(self, piece: CompletionOutput, begun: set[int]) -> list[ChatChunkChoice]:
        """News of one completion; before the first ones, who speaks."""
        choice = self._choice(piece)
        if piece.index in begun:
            return [choice]
        begun.add(piece.index)
        return [ChatChunkChoice(piece.index, Delta("assistant", "")), choice]

    def _choice(self, piece: CompletionOutput) -> ChatChunkChoice:
        choice = ChatChunkChoice(piece.index, Delta(content=piece.text), None, piece.finish_reason)
        if piece.logprobs is not None:
            top = self.body.top_logprobs or 0
            choice.logprobs = chat_logprobs(piece.token_ids, piece.logprobs, top, self.by.token_bytes)
        if piece.finish_reason is not None:
            choice.stop_reason = piece.stop_reason
        if self.body.return_token_ids:
            choice.token_ids = piece.token_ids
        return choice
