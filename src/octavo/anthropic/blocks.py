"""The pieces of a completion as content blocks of ``/v1/messages``, whole or as the events of a stream."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from octavo.text.output.pieces import Content, Piece, Reasoning, ToolArguments, ToolCallEnd, ToolCallStart

Event = dict[str, Any]

_STOP_REASONS = {"stop": "end_turn", "length": "max_tokens"}


class BlockEvents:
    """Tells a completion's content blocks as events: ``content_block_start``, its deltas, ``content_block_stop``.

    A run of reasoning, a run of the answer's text and each call are one block.
    """

    def __init__(self) -> None:
        self._index = -1
        self._open = ""

    def feed(self, pieces: Iterable[Piece]) -> list[Event]:
        return [event for piece in pieces for event in self._events(piece)]

    def finish(self) -> list[Event]:
        """Close the last block."""
        return self._close()

    def _events(self, piece: Piece) -> list[Event]:
        if isinstance(piece, Content):
            begun = self._continue("text", {"type": "text", "text": ""})
            return [*begun, self._delta({"type": "text_delta", "text": piece.text})]
        if isinstance(piece, Reasoning):
            begun = self._continue("thinking", {"type": "thinking", "thinking": "", "signature": ""})
            return [*begun, self._delta({"type": "thinking_delta", "thinking": piece.text})]
        if isinstance(piece, ToolCallStart):
            block = {"type": "tool_use", "id": piece.id, "name": piece.name, "input": {}}
            return [*self._close(), *self._begin("tool_use", block)]
        if isinstance(piece, ToolArguments):
            return [self._delta({"type": "input_json_delta", "partial_json": piece.text})]
        return self._close()

    def _continue(self, kind: str, block: dict[str, Any]) -> list[Event]:
        return [] if self._open == kind else [*self._close(), *self._begin(kind, block)]

    def _begin(self, kind: str, block: dict[str, Any]) -> list[Event]:
        self._index, self._open = self._index + 1, kind
        return [{"type": "content_block_start", "index": self._index, "content_block": block}]

    def _delta(self, delta: dict[str, Any]) -> Event:
        return {"type": "content_block_delta", "index": self._index, "delta": delta}

    def _close(self) -> list[Event]:
        if not self._open:
            return []
        self._open = ""
        return [{"type": "content_block_stop", "index": self._index}]


def content_blocks(pieces: Iterable[Piece]) -> list[dict[str, Any]]:
    """The content of a whole message.

    Arguments that are no JSON object, because they were cut off or are malformed, stand under ``INVALID_JSON``, which
    is what Anthropic suggests for them.
    """
    blocks, arguments = list[dict[str, Any]](), ""
    for piece in pieces:
        if isinstance(piece, Content):
            _extend(blocks, {"type": "text", "text": piece.text}, "text")
        elif isinstance(piece, Reasoning):
            _extend(blocks, {"type": "thinking", "thinking": piece.text, "signature": ""}, "thinking")
        elif isinstance(piece, ToolCallStart):
            blocks.append({"type": "tool_use", "id": piece.id, "name": piece.name, "input": {}})
            arguments = ""
        elif isinstance(piece, ToolArguments):
            arguments += piece.text
        elif isinstance(piece, ToolCallEnd):
            blocks[-1]["input"] = _object(arguments)
    return blocks


def stop_reason(reason: str | None, called: bool, stop_string: bool) -> str | None:
    """Anthropic's word for why a completion ended, which may have ``called``, or met a ``stop_string``."""
    if reason == "stop" and (called or stop_string):
        return "tool_use" if called else "stop_sequence"
    return _STOP_REASONS.get(reason or "", reason)


def _extend(blocks: list[dict[str, Any]], block: dict[str, Any], field: str) -> None:
    """Append a block, or lengthen the last one if it is of the same type."""
    if blocks and blocks[-1]["type"] == block["type"]:
        blocks[-1][field] += block[field]
    else:
        blocks.append(block)


def _object(arguments: str) -> dict[str, Any]:
    try:
        value = json.loads(arguments or "{}")
    except (ValueError, RecursionError):
        value = None
    return value if isinstance(value, dict) else {"INVALID_JSON": arguments}
