"""Counts what a streamed request has used so far."""

from __future__ import annotations

from collections.abc import Sequence

from octavo.openai.responses import Usage, used
from octavo.openai.schema import SamplingFields
from octavo.outputs import RequestOutput


class Tally:
    """Tokens of one stream. ``prompts`` are those of the request.

    Attributes:
        finished: the last news of each prompt that is done.
    """

    def __init__(self, prompts: Sequence[Sequence[int]]) -> None:
        self._read = sum(map(len, prompts))
        self._written = 0
        self.finished: list[RequestOutput] = []

    def add(self, news: RequestOutput) -> None:
        self._written += sum(len(piece.token_ids) for piece in news.outputs)
        if news.finished:
            self.finished.append(news)

    def usage(self) -> Usage:
        return used(self._read, self._written, sum(news.metrics.num_cached_tokens for news in self.finished))


def wants_usage(body: SamplingFields) -> tuple[bool, bool]:
    """Whether an event at the end, and whether each event, shall say what was used."""
    options = body.stream_options
    if options is None:
        return False, False
    return options.include_usage is True, options.include_usage is True and options.continuous_usage_stats is True
