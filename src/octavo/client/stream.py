"""One request's news on this side: joined while nobody looks, handed over when somebody does."""

from __future__ import annotations

import asyncio
from array import array

from octavo.client.wire import End, Piece
from octavo.outputs import CompletionOutput, Logprobs, RequestMetrics, RequestOutput


class Stream:
    """What came for a request and was not read yet. One task reads it.

    Attributes:
        prompt_token_ids: as the engine has them, once it has told those of a text.
        over: nothing more will come.
    """

    def __init__(self, key: int, request_id: str, prompt: str | list[int], arrival_time: float) -> None:
        self.key = key
        self.request_id = request_id
        self.prompt = prompt if isinstance(prompt, str) else None
        self.prompt_token_ids = [] if isinstance(prompt, str) else prompt
        self.over = False
        self._metrics = RequestMetrics(arrival_time=arrival_time)
        self._pending: dict[int, CompletionOutput] = {}
        self._prompt_logprobs: list[Logprobs | None] | None = None
        self._embedding: array[float] | None = None
        self._error: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None

    # ---------------------------------------------------------------- what comes

    def take_piece(self, piece: Piece) -> None:
        new = CompletionOutput(
            piece.index,
            piece.text,
            piece.token_ids,
            piece.logprobs,
            piece.cumulative_logprob,
            piece.finish_reason,
            piece.stop_reason,
        )
        known = self._pending.setdefault(piece.index, new)
        if known is not new:
            known.append(new)
        self._wake()

    def take_scores(self, prompt_logprobs: list[Logprobs | None]) -> None:
        self._prompt_logprobs = prompt_logprobs

    def take_end(self, end: End) -> None:
        self._metrics = end.metrics
        if end.embedding is not None:
            self._embedding = array("f", end.embedding)
        self.over = True
        self._wake()

    def fail(self, error: Exception) -> None:
        """End it with an error, which comes after what has come before."""
        self._error = error
        self.over = True
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # ---------------------------------------------------------------- what is read

    async def next(self) -> RequestOutput:
        """All news since the last call, as soon as there are any. Raises the error that the stream ended with."""
        while not self._pending and not self.over:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        if self._error is not None and not self._pending:
            raise self._error
        pending, self._pending = self._pending, {}
        scores, self._prompt_logprobs = self._prompt_logprobs, None
        return RequestOutput(
            self.request_id,
            self.prompt,
            self.prompt_token_ids,
            list(pending.values()),
            self.over and self._error is None,
            self._metrics,
            scores,
            self._embedding,
        )
