"""Anthropic's ``/v1/messages`` and ``/v1/messages/count_tokens``."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from octavo.anthropic.answers import AnthropicMessage, TokenCount, anthropic_message, stop_reason, usage
from octavo.anthropic.conversation import choice_of, goes_on, messages_of, template_variables, tools_of
from octavo.anthropic.events import PING, MessageEvents
from octavo.anthropic.schema import CountTokensRequest, MessagesRequest, PromptFields
from octavo.client.verbs import FailedError
from octavo.openai.metrics import metrics_of
from octavo.openai.spoken import spoken
from octavo.openai.structured import CALLS
from octavo.openai.tools import tool_use
from octavo.outputs import RequestOutput
from octavo.sampling_params import SamplingParams
from octavo.server.asking import ask_of, deadline_of
from octavo.server.body import answer, read_body
from octavo.server.conversation import Conversation, Prepared, prepare
from octavo.server.errors import DeadlineError
from octavo.server.run import Run
from octavo.server.state import Server, server_of
from octavo.server.stream import EventStream, unless_gone

router = APIRouter()


@router.post("/v1/messages")
async def create_message(request: Request) -> Response:
    server = server_of(request)
    body = await read_body(request, MessagesRequest)
    served = server.names.find(body.model)
    ask, params = ask_of(request, "msg_", served), _params(server, body)
    chat = await server.texts.run_for(request.receive, ask.deadline, prepare, server, _conversation(body), params)
    await server.forms.check(request, chat.params, CALLS, ask.deadline)
    run = Run(server.client, server.live, ask, [chat.prompt], chat.params)
    if body.stream:
        return EventStream(_Stream(run, chat, served.name).events(), server.options, PING)
    (output,) = await unless_gone(request.receive, run.outputs())
    _check_not_aborted(output)
    return answer(await server.texts.run_for(request.receive, None, _message, output, chat, ask.id, served.name))


@router.post("/v1/messages/count_tokens")
async def count_tokens(request: Request) -> Response:
    server = server_of(request)
    body = await read_body(request, CountTokensRequest)
    server.names.find(body.model)
    deadline, conversation = deadline_of(request), _conversation(body)
    chat = await server.texts.run_for(request.receive, deadline, prepare, server, conversation, SamplingParams())
    return answer(TokenCount(len(chat.prompt)))


def _message(output: RequestOutput, chat: Prepared, name: str, model: str) -> AnthropicMessage:
    said = spoken(chat.reader().read(output.outputs[0].text, True))
    return anthropic_message(output, said, name, model)


def _conversation(body: PromptFields) -> Conversation:
    messages, tools = messages_of(body), tools_of(body)
    choice, parallel = choice_of(body)
    return Conversation(
        messages=messages,
        tools=None if choice == "none" else tools,
        use=tool_use(tools, choice, parallel),
        options={"chat_template_kwargs": template_variables(body), "continue_final_message": goes_on(messages)},
    )


def _params(server: Server, body: MessagesRequest) -> SamplingParams:
    """How the body wants to be sampled; the model's own defaults stand in for what it does not say."""
    given: dict[str, Any] = {"temperature": body.temperature, "top_k": body.top_k, "top_p": body.top_p}
    said = {name: value for name, value in given.items() if value is not None}
    defaults = dict(server.client.info.generation)
    return SamplingParams(**{**defaults, **said, "max_tokens": body.max_tokens, "stop": body.stop_sequences or []})


def _check_not_aborted(output: RequestOutput) -> None:
    """Anthropic's clients know no such end. Raises `DeadlineError`, or ``FailedError`` where somebody aborted it."""
    for completion in output.outputs:
        if completion.finish_reason == "abort" and completion.stop_reason == "deadline":
            raise DeadlineError("the time of the request has run out before its answer was complete")
        if completion.finish_reason == "abort":
            raise FailedError(f"the request was aborted: {completion.stop_reason or 'somebody asked for it'}")


@dataclass(frozen=True, slots=True)
class _Stream:
    """A message's way into events."""

    run: Run
    chat: Prepared
    model: str

    async def events(self) -> AsyncGenerator[bytes, None]:
        """The events; those that news bring leave together."""
        writer, reader, written, begun = MessageEvents(), self.chat.reader(), 0, False
        async with aclosing(self.run.news()) as all_news:
            async for _, news in all_news:
                _check_not_aborted(news)
                if not begun:
                    begun = True
                    yield writer.start(self._empty(news))
                for piece in news.outputs:
                    written += len(piece.token_ids)
                    body = writer.grow(reader.read(piece.text, piece.finished))
                    if body:
                        yield body
                    if piece.finished:
                        reason, sequence = stop_reason(piece, writer.called)
                        used = usage(news, len(self.chat.prompt), written)
                        yield writer.end(reason, sequence, used, metrics_of([news]))

    def _empty(self, news: RequestOutput) -> AnthropicMessage:
        """The message before its first word."""
        used = usage(news, len(self.chat.prompt), 0)
        return AnthropicMessage(self.run.ask.id, self.model, [], None, None, used)
