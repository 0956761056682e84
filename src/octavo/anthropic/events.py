"""The events of a streamed message: content blocks that begin, grow and end one after the other."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from octavo.anthropic.answers import (
    AnthropicMessage,
    AnthropicUsage,
    TextBlock,
    ThinkingBlock,
    ToolUseBlock,
)
from octavo.openai.metrics import Metrics
from octavo.text.output.pieces import Content, Piece, Reasoning, ToolArguments, ToolCallStart

_encode = msgspec.json.Encoder().encode

PING = b'event: ping\ndata: {"type":"ping"}\n\n'
STOP = b'event: message_stop\ndata: {"type":"message_stop"}\n\n'


class MessageEvents:
    """Writes the events of one stream.

    Attributes:
        called: whether a tool call has begun.
    """

    def __init__(self) -> None:
        self.called = False
        self._index = -1
        self._open: type[Piece] | None = None

    def start(self, message: AnthropicMessage) -> bytes:
        """The first events, with the message while it is empty."""
        return event("message_start", {"message": message}) + PING

    def grow(self, pieces: Iterable[Piece]) -> bytes:
        """The events of what was said since the last time."""
        return b"".join([self._piece(piece) for piece in pieces])

    def end(self, reason: str | None, sequence: str | None, usage: AnthropicUsage, metrics: Metrics) -> bytes:
        """The last events."""
        delta = {"stop_reason": reason, "stop_sequence": sequence}
        last = event("message_delta", {"delta": delta, "usage": usage, "metrics": metrics})
        return self._close() + last + STOP

    def _piece(self, piece: Piece) -> bytes:
        if isinstance(piece, Content):
            return self._opened(Content, TextBlock("")) + self._delta({"type": "text_delta", "text": piece.text})
        if isinstance(piece, Reasoning):
            delta = {"type": "thinking_delta", "thinking": piece.text}
            return self._opened(Reasoning, ThinkingBlock("")) + self._delta(delta)
        if isinstance(piece, ToolCallStart):
            self.called = True
            return self._close() + self._opened(ToolArguments, ToolUseBlock(piece.id, piece.name, {}))
        if isinstance(piece, ToolArguments):
            return self._delta({"type": "input_json_delta", "partial_json": piece.text})
        return self._close()

    def _opened(self, kind: type[Piece], block: TextBlock | ThinkingBlock | ToolUseBlock) -> bytes:
        """The events that make ``block`` the open one; none if one of its kind is open."""
        if self._open is kind:
            return b""
        closed = self._close()
        self._open = kind
        self._index += 1
        return closed + event("content_block_start", {"index": self._index, "content_block": block})

    def _delta(self, delta: dict[str, str]) -> bytes:
        return event("content_block_delta", {"index": self._index, "delta": delta})

    def _close(self) -> bytes:
        if self._open is None:
            return b""
        signature = self._delta({"type": "signature_delta", "signature": ""}) if self._open is Reasoning else b""
        self._open = None
        return signature + event("content_block_stop", {"index": self._index})


def event(name: str, fields: dict[str, Any]) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (name.encode(), _encode({"type": name, **fields}))
