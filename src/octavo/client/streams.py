"""The requests under way on this side: whose the news are that come."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence

from octavo.client.stream import Stream
from octavo.client.verbs import BusyError, EngineDeadError, FailedError
from octavo.client.wire import News, Refused
from octavo.errors import FormError, OctavoError, RequestError


class Streams:
    """Streams that are not over, by key and by the id of their request."""

    def __init__(self) -> None:
        self._by_key: dict[int, Stream] = {}
        self._key_of: dict[str, int] = {}
        self._empty = asyncio.Event()

    def add(self, stream: Stream) -> None:
        self._by_key[stream.key] = stream
        self._key_of[stream.request_id] = stream.key

    def forget(self, stream: Stream) -> None:
        self._by_key.pop(stream.key, None)
        self._key_of.pop(stream.request_id, None)
        if not self._by_key:
            self._empty.set()

    @property
    def keys(self) -> Sequence[int]:
        return list(self._by_key)

    def key_of(self, request_id: str) -> int | None:
        """None if there is no such request under way."""
        return self._key_of.get(request_id)

    def take(self, news: News) -> None:
        """Hand out what came; news of a stream that was left are passed over."""
        streams = self._by_key
        for begun in news.begun:
            if (stream := streams.get(begun.key)) is not None:
                stream.prompt_token_ids = begun.prompt_token_ids
        for scored in news.scored:
            if (stream := streams.get(scored.key)) is not None:
                stream.take_scores(scored.prompt_logprobs)
        for piece in news.pieces:
            if (stream := streams.get(piece.key)) is not None:
                stream.take_piece(piece)
        for end in news.ends:
            if (stream := streams.get(end.key)) is not None:
                stream.take_end(end)
                self.forget(stream)
        for refusal in news.refused:
            if (stream := streams.get(refusal.key)) is not None:
                self._fail(stream, _as_error(refusal))

    def fail(self, reason: str) -> None:
        """No news come any more: all streams end with ``EngineDeadError``, after what has come before."""
        for stream in list(self._by_key.values()):
            self._fail(stream, EngineDeadError(reason))

    async def until_empty(self, seconds: float) -> None:
        """Wait until all are over, or so long."""
        if self._by_key and seconds > 0:
            self._empty.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._empty.wait(), seconds)

    def _fail(self, stream: Stream, error: Exception) -> None:
        stream.fail(error)
        self.forget(stream)


def _as_error(refused: Refused) -> OctavoError:
    if refused.retry_after is not None:
        return BusyError(refused.message, refused.retry_after)
    kinds = {"request": RequestError, "form": FormError, "failure": FailedError}
    return kinds[refused.kind](refused.message)
