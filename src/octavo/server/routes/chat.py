"""``/v1/chat/completions``: conversations."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from octavo.openai.chunks import DONE, ChatChunkChoice, Chunks
from octavo.openai.logprobs import chat_logprobs
from octavo.openai.metrics import metrics_of
from octavo.openai.requests import check_stream, sampling_params, template_options
from octavo.openai.responses import Answered, Extras, chat_completion
from octavo.openai.schema import ChatCompletionRequest
from octavo.openai.spoken import Delta, chat_finish, deltas, spoken
from octavo.openai.structured import form_field
from octavo.openai.tools import tool_use
from octavo.outputs import CompletionOutput
from octavo.server.asking import ask_of_body
from octavo.server.body import answer, read_body
from octavo.server.conversation import Conversation, Reader, prepare
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
    ask, form = ask_of_body(request, "chatcmpl-", served, body), form_field(body)
    chat = await server.texts.run_for(request.receive, ask.deadline, prepare, server, conversation(body), params)
    await server.forms.check(request, chat.params, form, ask.deadline)
    run = Run(server.client, server.live, ask, [chat.prompt], chat.params, form)
    by = server.answered(ask.id, served.name, as_ids=body.return_tokens_as_token_ids is True)
    if body.stream:
        return EventStream(_Stream(body, run, by, chat.reader).events(), server.options)
    outputs = await unless_gone(request.receive, run.outputs())
    extras = Extras(None, body.return_token_ids is True, lambda text: spoken(chat.reader().read(text, True)))
    write = partial(chat_completion, outputs[0], body.top_logprobs or 0, by, extras)
    return answer(await server.texts.run_for(request.receive, None, write))


def conversation(body: ChatCompletionRequest) -> Conversation:
    """The body's conversation. Raises ``FieldError``."""
    options = template_options(body)
    return Conversation(
        messages=body.messages,
        tools=options.pop("tools"),
        use=tool_use(body.tools, body.tool_choice, body.parallel_tool_calls is not False),
        options=options,
        template=body.chat_template,
        add_special_tokens=body.add_special_tokens is True,
        truncate=body.truncate_prompt_tokens,
    )


@dataclass(slots=True)
class _Completion:
    """One completion of a stream: what reads it, and whether it has called."""

    reader: Reader
    called: bool = False


@dataclass(frozen=True, slots=True)
class _Stream:
    """A chat's way into events."""

    body: ChatCompletionRequest
    run: Run
    by: Answered
    reader: Callable[[], Reader]
    _completions: dict[int, _Completion] = field(default_factory=dict)

    async def events(self) -> AsyncGenerator[bytes, None]:
        """The events. News of several completions that came together leave together."""
        chunks, tally = Chunks("chat.completion.chunk", self.by), Tally(self.run.prompts)
        at_end, always = wants_usage(self.body)
        async with aclosing(self.run.news()) as all_news:
            async for _, news in all_news:
                tally.add(news)
                usage = tally.usage() if always else None
                last = metrics_of([news]) if news.finished else None
                choices = [choice for piece in news.outputs for choice in self._choices(piece)]
                if choices:
                    yield b"".join([chunks.choice(c, usage, last if c is choices[-1] else None) for c in choices])
        if at_end:
            yield chunks.usage(tally.usage())
        yield DONE

    def _choices(self, news: CompletionOutput) -> list[ChatChunkChoice]:
        """News of one completion; before the first ones, who speaks."""
        completion, choices = self._completions.get(news.index), []
        if completion is None:
            completion = self._completions[news.index] = _Completion(self.reader())
            choices.append(ChatChunkChoice(news.index, Delta("assistant", "")))
        said = deltas(completion.reader.read(news.text, news.finished))
        completion.called = completion.called or any(delta.tool_calls for delta in said)
        scored = news.logprobs is not None or self.body.return_token_ids is True
        if not said and (news.finished or (scored and news.token_ids)):
            said = [Delta()]
        choices += [ChatChunkChoice(news.index, delta) for delta in said]
        if said:
            self._complete(choices[-len(said)], choices[-1], news, completion)
        return choices

    def _complete(
        self, first: ChatChunkChoice, last: ChatChunkChoice, news: CompletionOutput, completion: _Completion
    ) -> None:
        """Scores and ids go with the first of the deltas that came together, the reason for the end with the last."""
        if news.logprobs is not None:
            top = self.body.top_logprobs or 0
            first.logprobs = chat_logprobs(news.token_ids, news.logprobs, top, self.by.token_bytes)
        if self.body.return_token_ids:
            first.token_ids = news.token_ids
        if news.finish_reason is not None:
            last.finish_reason = chat_finish(news.finish_reason, completion.called)
            last.stop_reason = news.stop_reason
