"""``/v1/completions``: texts that go on."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace

from fastapi import APIRouter
from msgspec import UNSET
from starlette.requests import Request
from starlette.responses import Response

from octavo.openai.chunks import DONE, Chunks, CompletionChunkChoice
from octavo.openai.logprobs import CompletionLogprobs, completion_logprobs
from octavo.openai.metrics import metrics_of
from octavo.openai.requests import check_stream, prompts_of, sampling_params
from octavo.openai.responses import Answered, Extras, completion
from octavo.openai.schema import CompletionRequest
from octavo.openai.structured import form_field
from octavo.outputs import CompletionOutput, Logprobs, RequestOutput
from octavo.server.asking import ask_of_body
from octavo.server.body import answer, read_body
from octavo.server.prompts import are_light, completion_prompts
from octavo.server.run import Run
from octavo.server.state import Server, server_of
from octavo.server.stream import EventStream, unless_gone
from octavo.server.tally import Tally, wants_usage

router = APIRouter()


@router.post("/v1/completions")
async def create_completion(request: Request) -> Response:
    server = server_of(request)
    body = await read_body(request, CompletionRequest)
    check_stream(body)
    served = server.names.find(body.model)
    params = sampling_params(body, server.client.info.generation)
    ask, form = ask_of_body(request, "cmpl-", served, body), form_field(body)
    if are_light(body):
        prompts = completion_prompts(server, body)
    else:
        prompts = await server.texts.run_for(request.receive, ask.deadline, completion_prompts, server, body)
    await server.forms.check(request, params, form, ask.deadline)
    run = Run(server.client, server.live, ask, prompts, params, form)
    by = server.answered(ask.id, served.name, as_ids=body.return_tokens_as_token_ids is True)
    if body.stream:
        return EventStream(_Stream(server, body, run, by).events(), server.options)
    outputs = await unless_gone(request.receive, run.outputs())
    if body.max_tokens == 0:
        outputs = [_without_output(output) for output in outputs]
    extras = Extras(_echo(server, body, prompts), body.return_token_ids is True)
    return answer(completion(outputs, by, extras))


def _echo(server: Server, body: CompletionRequest, prompts: Sequence[Sequence[int]]) -> list[str] | None:
    """The prompts as texts: those of the body, or what its token ids stand for."""
    if not body.echo:
        return None
    given = prompts_of(body)
    if body.truncate_prompt_tokens is None and isinstance(given[0], str):
        return list(map(str, given))
    tokenizer = server.need_tokenizer()
    return [tokenizer.decode(prompt, skip_special_tokens=body.skip_special_tokens is not False) for prompt in prompts]


def _without_output(output: RequestOutput) -> RequestOutput:
    """For ``max_tokens=0``: without the one token that it cost to read the prompt."""
    return replace(output, outputs=[_emptied(c) for c in output.outputs])


def _emptied(c: CompletionOutput) -> CompletionOutput:
    reason = None if c.finish_reason is None else "length"
    return CompletionOutput(c.index, "", [], None if c.logprobs is None else [], 0.0, reason)


@dataclass(frozen=True, slots=True)
class _Stream:
    """A completion's way into events."""

    server: Server
    body: CompletionRequest
    run: Run
    by: Answered

    async def events(self) -> AsyncGenerator[bytes, None]:
        """The events. News of several completions that came together leave together."""
        chunks, tally = Chunks("text_completion", self.by), Tally(self.run.prompts)
        at_end, always = wants_usage(self.body)
        writer = _Writer(self)
        async with aclosing(self.run.news()) as all_news:
            async for i, news in all_news:
                shown = _without_output(news) if self.body.max_tokens == 0 else news
                tally.add(shown)
                usage = tally.usage() if always else None
                last = metrics_of([news]) if news.finished else None
                choices = writer.choices(i, shown)
                yield b"".join([chunks.choice(c, usage, last if c is choices[-1] else None) for c in choices])
        if at_end:
            yield chunks.usage(tally.usage())
        yield DONE


class _Writer:
    """Remembers which completions have begun, and how far their texts are."""

    def __init__(self, stream: _Stream) -> None:
        self._stream = stream
        self._echo = _echo(stream.server, stream.body, stream.run.prompts)
        self._offsets: dict[int, int] = {}

    def choices(self, i: int, news: RequestOutput) -> list[CompletionChunkChoice]:
        return [self._choice(i, news, piece) for piece in news.outputs]

    def _choice(self, i: int, news: RequestOutput, piece: CompletionOutput) -> CompletionChunkChoice:
        index = i * self._stream.run.params.n + piece.index
        first = index not in self._offsets
        text = self._echo[i] + piece.text if first and self._echo is not None else piece.text
        choice = CompletionChunkChoice(index, text, self._scores(i, news, piece, index), piece.finish_reason)
        if piece.finish_reason is not None:
            choice.stop_reason = piece.stop_reason
        if self._stream.body.return_token_ids:
            choice.token_ids = piece.token_ids
            choice.prompt_token_ids = list(self._stream.run.prompts[i]) if first else UNSET
        return choice

    def _scores(self, i: int, news: RequestOutput, piece: CompletionOutput, index: int) -> CompletionLogprobs | None:
        first, offset = index not in self._offsets, self._offsets.setdefault(index, 0)
        if piece.logprobs is None:
            return None
        ids, scores = list(piece.token_ids), list[Logprobs | None](piece.logprobs)
        if first and self._echo is not None:
            ids, scores = [*self._stream.run.prompts[i], *ids], [*(news.prompt_logprobs or []), *scores]
        written = completion_logprobs(ids, scores, self._stream.by.token_bytes, offset)
        self._offsets[index] = offset + sum(map(len, written.tokens))
        return written
