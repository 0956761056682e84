"""What chats of all interfaces have in common: a conversation becomes a prompt, and its completions are told apart."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from octavo.errors import RequestError
from octavo.openai.errors import FieldError
from octavo.sampling_params import SamplingParams
from octavo.server.prompts import check_template, encode, render, truncate
from octavo.server.state import Server
from octavo.structured_outputs import StructuredOutputs
from octavo.text.output.choice import ToolUse
from octavo.text.output.formats import OutputFormat, ToolFormat
from octavo.text.output.grammar import call_grammar
from octavo.text.output.lazy_grammar import lazy_call_grammar
from octavo.text.output.pieces import Content, Piece
from octavo.text.output.router import OutputRouter, begins_in_reasoning
from octavo.text.output.special import special_markers, with_markers

NO_TOOLS = ToolUse()


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """A chat to be continued, in OpenAI's shapes.

    Attributes:
        tools: definitions for the template; None where none may be seen.
        use: what may be called.
        options: further arguments of ``render_chat``.
        template: the request's own.
        add_special_tokens: though a template writes BOS itself.
        truncate: to so many last tokens.
    """

    messages: Sequence[Mapping[str, Any]]
    tools: Sequence[Mapping[str, Any]] | None = None
    use: ToolUse = NO_TOOLS
    options: Mapping[str, Any] = field(default_factory=dict)
    template: str | None = None
    add_special_tokens: bool = False
    truncate: int | None = None


class Reader:
    """Tells one completion's text apart; without a router all of it is content."""

    def __init__(self, router: OutputRouter | None = None) -> None:
        self._router = router

    def read(self, text: str, finished: bool) -> list[Piece]:
        """The pieces that are certain with ``text``; all that is left if the completion is ``finished``."""
        if self._router is None:
            return [Content(text)] if text else []
        pieces = self._router.feed(text)
        return pieces + self._router.finish() if finished else pieces


@dataclass(frozen=True, slots=True)
class Prepared:
    """A conversation on its way: the prompt, how to sample, and what reads a completion."""

    prompt: list[int]
    params: SamplingParams
    reader: Callable[[], Reader]


def prepare(server: Server, chat: Conversation, params: SamplingParams) -> Prepared:
    """Render and tokenize. Takes its time: not for the event loop.

    Raises:
        RequestError: the conversation is malformed, too long, or wants what the model's format cannot do.
    """
    text = render(server, chat.messages, check_template(server, chat.template), tools=chat.tools, **chat.options)
    prompt = truncate(encode(server, text, chat.add_special_tokens), chat.truncate)
    format = OutputFormat(server.format.reasoning, server.format.tools if chat.use.functions else None)
    if format.reasoning is None and format.tools is None:
        _check_free(chat.use, None)
        return Prepared(prompt, params, Reader)
    in_reasoning = begins_in_reasoning(text, format)
    params = with_markers(_held(server, chat.use, params, format, in_reasoning), format, server.need_tokenizer())
    return Prepared(prompt, params, _readers(chat.use, format, in_reasoning))


def _readers(use: ToolUse, format: OutputFormat, in_reasoning: bool) -> Callable[[], Reader]:
    def reader() -> Reader:
        return Reader(OutputRouter(format, use.functions, in_reasoning=in_reasoning, parallel=use.parallel))

    return reader


def _check_free(use: ToolUse, format: ToolFormat | None) -> None:
    """Raise ``FieldError`` where calls must be what no grammar can say for the model's format of them."""
    if use.required:
        message = "calls cannot be forced: no format of tool calls is known for this model; accepted: auto, none"
        raise FieldError(message, "tool_choice")
    if use.strict:
        why = "no format of its calls is known" if format is None else f"its calls ({format.name}) begin with no marker"
        accepted = "tools without strict" + ("" if format is None else ", or tool_choice required or a function's name")
        raise FieldError(f"tools: strict is not supported for this model, since {why}; accepted: {accepted}", "tools")


def _held(
    server: Server, use: ToolUse, params: SamplingParams, format: OutputFormat, in_reasoning: bool
) -> SamplingParams:
    """``params`` under which the completion must call, if it must, and calls as strict functions want."""
    if not (use.required or use.strict):
        return params
    special = special_markers(format, server.need_tokenizer())
    write = call_grammar if use.required else lazy_call_grammar
    grammar = write(format, use, special, in_reasoning=in_reasoning)
    if grammar is None:
        _check_free(use, format.tools)
        return params
    if params.structured_outputs is not None:
        what = "tool_choice forces a call" if use.required else "tools: a strict one says the form of calls"
        raise RequestError(f"{what}, which contradicts the form that the answer shall have")
    return replace(params, structured_outputs=StructuredOutputs(grammar=grammar))
