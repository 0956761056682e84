"""The pieces of a completion, in the order in which they were written."""

from __future__ import annotations

import msgspec


class Reasoning(msgspec.Struct, frozen=True):
    """More of what the model thinks before it answers."""

    text: str


class Content(msgspec.Struct, frozen=True):
    """More of the answer."""

    text: str


class ToolCallStart(msgspec.Struct, frozen=True):
    """A call begins: its arguments follow. ``index`` counts the calls of a completion from 0."""

    index: int
    id: str
    name: str


class ToolArguments(msgspec.Struct, frozen=True):
    """More of a call's arguments, which all together are the text of a JSON object."""

    index: int
    text: str


class ToolCallEnd(msgspec.Struct, frozen=True):
    """A call is over. ``complete`` is false if its arguments broke off: the JSON text has no end."""

    index: int
    complete: bool


Piece = Reasoning | Content | ToolCallStart | ToolArguments | ToolCallEnd


def joined(pieces: list[Piece], piece: Piece) -> None:
    """Append ``piece``, or lengthen the last one if it goes on with that."""
    if not pieces:
        pieces.append(piece)
        return
    last = pieces[-1]
    if isinstance(piece, Reasoning | Content) and type(last) is type(piece):
        pieces[-1] = type(piece)(last.text + piece.text)
    elif isinstance(piece, ToolArguments) and isinstance(last, ToolArguments):
        pieces[-1] = ToolArguments(last.index, last.text + piece.text)
    else:
        pieces.append(piece)
