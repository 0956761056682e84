"""The pieces of a completion as output items of ``/v1/responses``, whole or as the events of a stream."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from octavo.text.output.pieces import Content, Piece, Reasoning, ToolArguments, ToolCallEnd, ToolCallStart

Event = dict[str, Any]

_KINDS = {Reasoning: "reasoning", Content: "message", ToolCallStart: "function_call"}
_PREFIXES = {"reasoning": "rs_", "message": "msg_", "function_call": "fc_"}
_PARTS = {"reasoning": "reasoning_text", "message": "output_text"}


class ItemEvents:
    """Tells a completion's output items as events, in the official order; ``sequence_number`` is the caller's to add.

    A run of reasoning, a run of the answer's text and each call are one item.

    Args:
        new_id: makes an item's id of a prefix such as "msg_".

    Attributes:
        items: those that are complete, as ``response.completed`` has them.
    """

    def __init__(self, new_id: Callable[[str], str]) -> None:
        self._new_id = new_id
        self._item: dict[str, Any] | None = None
        self.items: list[dict[str, Any]] = []

    def feed(self, pieces: Iterable[Piece]) -> list[Event]:
        return [event for piece in pieces for event in self._events(piece)]

    def finish(self, incomplete: bool = False) -> list[Event]:
        """Close the last item; ``incomplete``: it was cut off by a limit."""
        return self._close("incomplete" if incomplete else "completed")

    def _events(self, piece: Piece) -> list[Event]:
        if isinstance(piece, ToolCallStart):
            return [*self._close(), *self._open("function_call", call_id=piece.id, name=piece.name, arguments="")]
        if isinstance(piece, ToolArguments):
            return [self._grow("arguments", "function_call_arguments", piece.text)]
        if isinstance(piece, ToolCallEnd):
            return self._close("completed" if piece.complete else "incomplete")
        kind = _KINDS[type(piece)]
        opened = [] if self._item and self._item["type"] == kind else [*self._close(), *self._open_text(kind)]
        return [*opened, self._grow("text", _PARTS[kind], piece.text)]

    def _open(self, kind: str, **fields: Any) -> list[Event]:
        self._item = {"type": kind, "id": self._new_id(_PREFIXES[kind]), "status": "in_progress", **fields}
        item = {**self._item, "content": []} if "content" in fields else dict(self._item)
        return [{"type": "response.output_item.added", "output_index": len(self.items), "item": item}]

    def _open_text(self, kind: str) -> list[Event]:
        part: dict[str, Any] = {"type": _PARTS[kind], "text": ""}
        part |= {"annotations": [], "logprobs": []} if kind == "message" else {}
        fields: dict[str, Any] = {"role": "assistant"} if kind == "message" else {"summary": []}
        added = self._open(kind, **fields, content=[part])
        return [*added, {"type": "response.content_part.added", **self._place(), "part": dict(part)}]

    def _grow(self, field: str, event: str, text: str) -> Event:
        item = self._current()
        target = item["content"][0] if field == "text" else item
        target[field] += text
        more: Event = {"logprobs": []} if event == "output_text" else {}
        return {"type": f"response.{event}.delta", **self._place(), "delta": text, **more}

    def _close(self, status: str = "completed") -> list[Event]:
        if self._item is None:
            return []
        item, place = self._item, self._place()
        item["status"] = status
        events = self._call_done(item, place) if item["type"] == "function_call" else self._text_done(item, place)
        events.append({"type": "response.output_item.done", "output_index": place["output_index"], "item": item})
        self.items.append(item)
        self._item = None
        return events

    def _call_done(self, item: dict[str, Any], place: Event) -> list[Event]:
        done = {"arguments": item["arguments"], "name": item["name"]}
        return [{"type": "response.function_call_arguments.done", **place, **done}]

    def _text_done(self, item: dict[str, Any], place: Event) -> list[Event]:
        part = item["content"][0]
        more: Event = {"logprobs": []} if item["type"] == "message" else {}
        return [
            {"type": f"response.{part['type']}.done", **place, "text": part["text"], **more},
            {"type": "response.content_part.done", **place, "part": part},
        ]

    def _place(self) -> Event:
        item = self._current()
        place = {"item_id": item["id"], "output_index": len(self.items)}
        return place if item["type"] == "function_call" else {**place, "content_index": 0}

    def _current(self) -> dict[str, Any]:
        assert self._item is not None
        return self._item
