"""Server-sent events of a streamed answer, as far as a benchmark looks into them."""

from __future__ import annotations

from typing import Any

import msgspec


class Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[msgspec.Raw] | None = None


class Choice(msgspec.Struct):
    text: str | None = None
    delta: Delta | None = None

    @property
    def has_news(self) -> bool:
        """Whether something of the answer is in it, and not only its beginning or end."""
        delta = self.delta
        if delta is None:
            return bool(self.text)
        return bool(delta.content or delta.reasoning_content or delta.reasoning or delta.tool_calls)


class Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int | None = 0


class Event(msgspec.Struct):
    """A ``data:`` line of ``/v1/completions`` or ``/v1/chat/completions``."""

    choices: list[Choice] = []
    usage: Usage | None = None
    error: Any = None


MOST_SAID = 200
"""Characters of an error's text that are kept."""


def error_text(body: bytes) -> str:
    """What a server says with an error status: the message in OpenAI's shape, else the body as it is; on one line."""
    try:
        said = str(msgspec.json.decode(body)["error"]["message"])
    except (ValueError, TypeError, KeyError, RecursionError):
        said = body.decode("utf-8", "replace")
    return " ".join(said.split())[:MOST_SAID]


class EventReader:
    """Cuts the bytes that come into events.

    Attributes:
        done: whether ``[DONE]`` has come.
    """

    def __init__(self) -> None:
        self.done = False
        self._rest = b""
        self._decode = msgspec.json.Decoder(Event).decode

    def feed(self, data: bytes) -> list[Event]:
        """The events that are complete now. Raises ``msgspec.MsgspecError`` for one that is no JSON of this kind."""
        *whole, self._rest = (self._rest + data).replace(b"\r\n", b"\n").split(b"\n\n")
        return [event for part in whole if (event := self._read(part)) is not None]

    def _read(self, part: bytes) -> Event | None:
        """None for a comment, which keeps a connection alive, and for the end."""
        for line in part.split(b"\n"):
            if line.startswith(b"data:"):
                data = line[5:].strip()
                if data != b"[DONE]":
                    return self._decode(data)
                self.done = True
        return None
