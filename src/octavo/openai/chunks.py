"""The events of streamed chats and completions, as bytes.

What all events of a stream have in common is encoded once, so that a token costs one small encoding and one join.
"""

from __future__ import annotations

import msgspec
from msgspec import UNSET, UnsetType

from octavo.openai.logprobs import ChatLogprobs, CompletionLogprobs
from octavo.openai.metrics import Metrics
from octavo.openai.responses import Answered, Usage
from octavo.openai.spoken import Delta

DONE = b"data: [DONE]\n\n"

_encode = msgspec.json.Encoder().encode


class ChatChunkChoice(msgspec.Struct):
    index: int
    delta: Delta
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: str | int | UnsetType | None = UNSET
    token_ids: list[int] | UnsetType = UNSET


class CompletionChunkChoice(msgspec.Struct):
    """``prompt_token_ids`` come with the first one."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: str | int | UnsetType | None = UNSET
    token_ids: list[int] | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET


class Chunks:
    """Writes the events of one stream.

    Args:
        kind: the ``object`` of each event.
        by: who answers.
    """

    def __init__(self, kind: str, by: Answered) -> None:
        fields = {"id": by.id, "object": kind, "created": by.created, "model": by.model}
        self._head = b"data: " + _encode(fields)[:-1] + b',"choices":['

    def choice(
        self,
        choice: ChatChunkChoice | CompletionChunkChoice,
        usage: Usage | None = None,
        metrics: Metrics | None = None,
    ) -> bytes:
        """An event with news of one completion; its last one has the request's ``metrics``."""
        end = b"]}\n\n" if usage is None and metrics is None else self._tail(usage, metrics)
        return b"%s%s%s" % (self._head, _encode(choice), end)

    def usage(self, usage: Usage) -> bytes:
        """The event after the last choice, with what the whole request has used."""
        return self._head + self._tail(usage, None)

    def _tail(self, usage: Usage | None, metrics: Metrics | None) -> bytes:
        parts = [b"]"]
        if usage is not None:
            parts += [b',"usage":', _encode(usage)]
        if metrics is not None:
            parts += [b',"metrics":', _encode(metrics)]
        return b"".join([*parts, b"}\n\n"])
