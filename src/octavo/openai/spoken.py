"""What a completion says, told apart, and how OpenAI's chats write it down: whole, and in deltas."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import msgspec
from msgspec import UNSET, UnsetType

from octavo.text.output.pieces import Content, Piece, Reasoning, ToolArguments, ToolCallStart


@dataclass(slots=True)
class Call:
    """A tool call; its ``arguments`` are JSON, unless the completion broke off within them."""

    id: str
    name: str
    arguments: str = ""


@dataclass(slots=True)
class Spoken:
    """A whole completion: what was thought, what was said, what shall be called."""

    reasoning: str
    content: str
    calls: list[Call]


def spoken(pieces: Iterable[Piece]) -> Spoken:
    """All pieces of a completion, put together."""
    reasoning: list[str] = []
    content: list[str] = []
    calls: list[Call] = []
    for piece in pieces:
        if isinstance(piece, Reasoning):
            reasoning.append(piece.text)
        elif isinstance(piece, Content):
            content.append(piece.text)
        elif isinstance(piece, ToolCallStart):
            calls.append(Call(piece.id, piece.name))
        elif isinstance(piece, ToolArguments):
            calls[piece.index].arguments += piece.text
    return Spoken("".join(reasoning), "".join(content), calls)


class FunctionCall(msgspec.Struct):
    name: str
    arguments: str


class ToolCall(msgspec.Struct):
    id: str
    function: FunctionCall
    type: str = "function"


class ChatMessage(msgspec.Struct):
    """An assistant's message. Reasoning has both of the names under which clients look for it."""

    content: str | None
    role: str = "assistant"
    refusal: None = None
    reasoning_content: str | UnsetType = UNSET
    reasoning: str | UnsetType = UNSET
    tool_calls: list[ToolCall] | UnsetType = UNSET


class FunctionDelta(msgspec.Struct, omit_defaults=True):
    name: str | None = None
    arguments: str | None = None


class ToolCallDelta(msgspec.Struct, omit_defaults=True):
    """``id``, ``type`` and the function's name come with the first one of a call."""

    index: int
    function: FunctionDelta
    id: str | None = None
    type: str | None = None


class Delta(msgspec.Struct, omit_defaults=True):
    """What is new of a message."""

    role: str | None = None
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[ToolCallDelta] | None = None


def message(said: Spoken) -> ChatMessage:
    """The message; without content only if it is all calls."""
    written = ChatMessage(said.content if said.content or not said.calls else None)
    if said.reasoning:
        written.reasoning_content = written.reasoning = said.reasoning
    if said.calls:
        written.tool_calls = [ToolCall(call.id, FunctionCall(call.name, call.arguments)) for call in said.calls]
    return written


def deltas(pieces: Sequence[Piece]) -> list[Delta]:
    """What each piece adds to the message, where it adds something."""
    return [delta for piece in pieces if (delta := _delta(piece)) is not None]


def chat_finish(reason: str | None, calls: bool) -> str | None:
    """The finish reason of a chat: one that ended by itself, with calls, ended for these."""
    return "tool_calls" if calls and reason == "stop" else reason


def _delta(piece: Piece) -> Delta | None:
    if isinstance(piece, Content):
        return Delta(content=piece.text)
    if isinstance(piece, Reasoning):
        return Delta(reasoning_content=piece.text, reasoning=piece.text)
    if isinstance(piece, ToolCallStart):
        call = ToolCallDelta(piece.index, FunctionDelta(piece.name, ""), piece.id, "function")
        return Delta(tool_calls=[call])
    if isinstance(piece, ToolArguments):
        return Delta(tool_calls=[ToolCallDelta(piece.index, FunctionDelta(arguments=piece.text))])
    return None
