"""The pieces of a completion as parts of a chat's message, whole or as news of a stream."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
from msgspec import UNSET, UnsetType

from octavo.text.output.pieces import Content, Piece, Reasoning, ToolArguments, ToolCallStart


class FunctionCall(msgspec.Struct):
    """``arguments`` are the text of a JSON object, as the model wrote it."""

    name: str
    arguments: str


class ToolCall(msgspec.Struct):
    id: str
    function: FunctionCall
    type: str = "function"


class FunctionDelta(msgspec.Struct, omit_defaults=True):
    arguments: str
    name: str | None = None


class ToolCallDelta(msgspec.Struct, omit_defaults=True):
    """News of the call ``index``: first its id and name, then more of its arguments."""

    index: int
    function: FunctionDelta
    id: str | None = None
    type: str | None = None


class MessageParts(msgspec.Struct):
    """What a message consists of. ``reasoning_content`` and ``reasoning``, vLLM's older and newer name, are the same.

    ``content`` is null where there are only calls.
    """

    content: str | None
    reasoning_content: str | UnsetType = UNSET
    reasoning: str | UnsetType = UNSET
    tool_calls: list[ToolCall] | UnsetType = UNSET


class DeltaParts(msgspec.Struct):
    """What is new of a message."""

    content: str | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET
    reasoning: str | UnsetType = UNSET
    tool_calls: list[ToolCallDelta] | UnsetType = UNSET

    @property
    def is_empty(self) -> bool:
        return self.content is UNSET and self.reasoning is UNSET and self.tool_calls is UNSET


def message_parts(pieces: Iterable[Piece]) -> MessageParts:
    """The parts of a whole message."""
    content, reasoning, calls = "", "", list[ToolCall]()
    for piece in pieces:
        if isinstance(piece, Content):
            content += piece.text
        elif isinstance(piece, Reasoning):
            reasoning += piece.text
        elif isinstance(piece, ToolCallStart):
            calls.append(ToolCall(piece.id, FunctionCall(piece.name, "")))
        elif isinstance(piece, ToolArguments):
            calls[-1].function.arguments += piece.text
    thought = reasoning or UNSET
    return MessageParts(content if content or not calls else None, thought, thought, calls or UNSET)


def delta_parts(pieces: Iterable[Piece]) -> DeltaParts:
    """The parts that are new; text of the same kind is joined, and so is what is new of a call."""
    content, reasoning, calls = "", "", list[ToolCallDelta]()
    for piece in pieces:
        if isinstance(piece, Content):
            content += piece.text
        elif isinstance(piece, Reasoning):
            reasoning += piece.text
        elif isinstance(piece, ToolCallStart):
            calls.append(ToolCallDelta(piece.index, FunctionDelta("", piece.name), piece.id, "function"))
        elif isinstance(piece, ToolArguments):
            if not calls or calls[-1].index != piece.index:
                calls.append(ToolCallDelta(piece.index, FunctionDelta("")))
            calls[-1].function.arguments += piece.text
    thought = reasoning or UNSET
    return DeltaParts(content or UNSET, thought, thought, calls or UNSET)


def finish_reason(reason: str | None, called: bool) -> str | None:
    """OpenAI's word for why a completion ended, which may have ``called``. One that was cut off keeps "length"."""
    return "tool_calls" if reason == "stop" and called else reason
