"""``/v1/responses``: OpenAI's newer interface, as far as it needs no memory of earlier responses."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import msgspec
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from octavo.openai.metrics import metrics_of
from octavo.openai.response_items import ItemEvents
from octavo.openai.response_object import ResponseObject, end_of, new_response, response_usage
from octavo.openai.response_request import (
    ResponsesRequest,
    response_choice,
    response_messages,
    response_params,
    response_tools,
)
from octavo.openai.structured import CALLS
from octavo.openai.tools import tool_use
from octavo.outputs import CompletionOutput, RequestOutput
from octavo.server.asking import ask_of
from octavo.server.body import answer, read_body
from octavo.server.conversation import Conversation, Prepared, prepare
from octavo.server.errors import error_info
from octavo.server.run import Run
from octavo.server.state import Server, server_of
from octavo.server.stream import EventStream, unless_gone
from octavo.text.output.pieces import Piece, Reasoning

router = APIRouter()

_encode = msgspec.json.Encoder().encode


@router.post("/v1/responses")
async def create_response(request: Request) -> Response:
    server = server_of(request)
    body = await read_body(request, ResponsesRequest)
    served = server.names.find(body.model)
    params = response_params(body, server.client.info.generation)
    ask, form = ask_of(request, "resp_", served), CALLS if params.structured_outputs is None else "text"
    chat = await server.texts.run_for(request.receive, ask.deadline, prepare, server, _conversation(body), params)
    await server.forms.check(request, chat.params, form, ask.deadline)
    run = Run(server.client, server.live, ask, [chat.prompt], chat.params, form)
    told = _Told(server, chat, new_response(body, params, ask.id, int(time.time()), served.name))
    if body.stream:
        return EventStream(_events(run, told), server.options)
    (output,) = await unless_gone(request.receive, run.outputs())
    await server.texts.run_for(request.receive, None, told.take, output)
    await told.finish(output)
    return answer(told.response)


def _conversation(body: ResponsesRequest) -> Conversation:
    tools, choice = response_tools(body), response_choice(body)
    return Conversation(
        messages=response_messages(body),
        tools=None if choice == "none" else tools,
        use=tool_use(tools, choice, body.parallel_tool_calls is not False),
    )


@dataclass(slots=True)
class _Told:
    """A response while it is told."""

    server: Server
    chat: Prepared
    response: ResponseObject
    items: ItemEvents = field(default_factory=lambda: ItemEvents(lambda prefix: prefix + secrets.token_hex(12)))
    reader: Any = None
    written: int = 0
    thoughts: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.reader = self.chat.reader()

    def take(self, news: RequestOutput) -> list[dict[str, Any]]:
        """The events of what is new."""
        return [event for piece in news.outputs for event in self._take(piece)]

    async def finish(self, news: RequestOutput) -> None:
        """Make the response complete with its last news."""
        reason = news.outputs[0].finish_reason
        response = self.response
        response.status, response.incomplete_details = end_of(reason)
        response.output = self.items.items
        thought = await self.server.texts.run(self._count_thoughts)
        cached = news.metrics.num_cached_tokens
        response.usage = response_usage(len(self.chat.prompt), cached, self.written, thought)
        response.metrics = metrics_of([news])

    def _take(self, news: CompletionOutput) -> list[dict[str, Any]]:
        self.written += len(news.token_ids)
        pieces: Sequence[Piece] = self.reader.read(news.text, news.finished)
        self.thoughts += [piece.text for piece in pieces if isinstance(piece, Reasoning)]
        events = self.items.feed(pieces)
        return [*events, *self.items.finish(news.finish_reason == "length")] if news.finished else events

    def _count_thoughts(self) -> int:
        """Tokens of the reasoning, which the engine does not tell apart."""
        if not self.thoughts:
            return 0
        return len(self.server.need_tokenizer().encode("".join(self.thoughts), add_special_tokens=False))


async def _events(run: Run, told: _Told) -> AsyncGenerator[bytes, None]:
    """The official sequence: created, in progress, items and their parts, and the end. A failure is an event, too."""
    numbers = _Numbers()
    begun = False
    try:
        async with aclosing(run.news()) as all_news:
            async for _, news in all_news:
                events = [] if begun else [_state("created", told), _state("in_progress", told)]
                begun = True
                if lines := numbers.lines([*events, *told.take(news)]):
                    yield lines
                if news.finished:
                    await told.finish(news)
    except Exception as error:
        if not begun:
            raise  # it still becomes an error status
        told.response.status, told.response.error = "failed", error_info(error, "/v1/responses")
        yield numbers.lines([_state("failed", told)])
        return
    end = told.response.status
    yield numbers.lines([_state("incomplete" if end == "cancelled" else end, told)])


def _state(what: str, told: _Told) -> dict[str, Any]:
    return {"type": f"response.{what}", "response": told.response}


class _Numbers:
    """Numbers the events of a stream."""

    def __init__(self) -> None:
        self._next = 0

    def lines(self, events: Iterable[dict[str, Any]]) -> bytes:
        return b"".join([self._line(event) for event in events])

    def _line(self, event: dict[str, Any]) -> bytes:
        numbered = {**event, "sequence_number": self._next}
        self._next += 1
        return b"event: %s\ndata: %s\n\n" % (event["type"].encode(), _encode(numbered))
