"""What goes out: the requests that somebody follows, and what is new in them.

Beginnings and ends are noted at once. What comes between them is told when `Desk.tell_all` says so, all of it together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial

import msgspec
import numpy as np

from octavo.client.wire import Begun, End, News, Piece, Refused, Scored
from octavo.cursor import Cursor
from octavo.engine_process.meter import Meter
from octavo.outputs import CompletionOutput, RequestOutput


@dataclass(slots=True)
class Followed:
    """A request: its output, which grows as the engine steps, and how much of it was told."""

    key: int
    output: RequestOutput
    make_piece: Callable[..., Piece] = field(init=False)
    completions: list[tuple[CompletionOutput, Cursor]] = field(init=False)
    scores_told: bool = field(init=False)

    def __post_init__(self) -> None:
        self.make_piece = partial(Piece, self.key)
        self.completions = [(completion, Cursor()) for completion in self.output.outputs]
        self.scores_told = self.output.prompt_logprobs is None

    @property
    def begun(self) -> bool:
        """Whether a token of it was told."""
        return any(cursor.num_tokens for _, cursor in self.completions)


class Desk:
    """Collects news until they are taken away."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self._followed: dict[str, Followed] = {}
        self._ids: dict[int, str] = {}
        self._grown: dict[str, Followed] = {}
        self.news = News()

    def take(self) -> News:
        """What has been collected, and begin anew."""
        news, self.news = self.news, News()
        return news

    def has_news(self) -> bool:
        news = self.news
        return bool(news.pieces or news.ends or news.refused or news.answers or news.begun)

    def follow(self, key: int, output: RequestOutput, *, tell_prompt: bool) -> None:
        """Tell all that becomes of a request from now on, and its prompt's tokens where ``tell_prompt``."""
        self._followed[output.request_id] = Followed(key, output)
        self._ids[key] = output.request_id
        if tell_prompt:
            self.news.begun.append(Begun(key, output.prompt_token_ids))

    def id_of(self, key: int) -> str | None:
        """The id of a request that has not ended."""
        return self._ids.get(key)

    def tell(self, outputs: Iterable[RequestOutput]) -> list[str]:
        """Note what is new in ``outputs``, or that they have grown; those that nobody follows are passed over.

        Returns:
            The ids of requests that are refused, while completions of theirs still run for nobody.
        """
        left = []
        for output in outputs:
            followed = self._followed.get(output.request_id)
            if followed is None:
                continue
            if output.refused is not None:
                self._refuse(followed, output.refused)
                left += [] if output.finished else [output.request_id]
            elif output.finished or not followed.begun:
                self._tell(followed)
            else:
                self._grown[output.request_id] = followed
        return left

    @property
    def num_grown(self) -> int:
        """Requests that have grown since they were told."""
        return len(self._grown)

    def tell_all(self) -> None:
        """Note what is new in all that have grown."""
        grown, self._grown = self._grown, {}
        for followed in grown.values():
            self._tell(followed)

    def _refuse(self, followed: Followed, why: str) -> None:
        if followed.begun:  # else it is as if it had never been queued
            self._tell_written(followed)
            self._meter.finished["error"] += sum(not cursor.finished for _, cursor in followed.completions)
        self._forget(followed)
        self.news.refused.append(Refused(followed.key, why, kind=followed.output.refused_kind))

    def _tell_written(self, followed: Followed) -> None:
        """What a request wrote before it was refused, without the end that this gives its completions."""
        for completion, cursor in followed.completions:
            piece = cursor.advance(completion, followed.make_piece)
            if piece is not None and piece.finish_reason == "error":
                cursor.finished = False
                piece = msgspec.structs.replace(piece, finish_reason=None, stop_reason=None)
            if piece is not None and (piece.token_ids or piece.finish_reason):
                self._note(piece)

    def tell_failure(self, reason: str) -> None:
        """The engine has ended all requests with an error: say so, and why."""
        for followed in list(self._followed.values()):
            for completion in followed.output.outputs:
                if completion.finish_reason == "error" and completion.stop_reason is None:
                    completion.stop_reason = reason
            self._tell(followed)

    def _tell(self, followed: Followed) -> None:
        if not followed.scores_told:
            self._tell_scores(followed)
        for completion, cursor in followed.completions:
            piece = cursor.advance(completion, followed.make_piece)
            if piece is not None:
                self._note(piece)
        if followed.output.finished:
            self._end(followed)

    def _note(self, piece: Piece) -> None:
        self.news.pieces.append(piece)
        if piece.finish_reason is not None:
            self._meter.finished[piece.finish_reason] += 1

    def _tell_scores(self, followed: Followed) -> None:
        """They come in pieces, and all before the first token of the completion that they were computed for."""
        first, scores = followed.output.outputs[0], followed.output.prompt_logprobs
        if scores is not None and (first.token_ids or first.finished):
            self.news.scored.append(Scored(followed.key, scores))
            followed.scores_told = True

    def _end(self, followed: Followed) -> None:
        output = followed.output
        vector = output.embedding
        data = None if vector is None else np.asarray(vector, np.float32).tobytes()
        self.news.ends.append(End(followed.key, output.metrics, data))
        self._forget(followed)

    def _forget(self, followed: Followed) -> None:
        self._grown.pop(followed.output.request_id, None)
        del self._followed[followed.output.request_id]
        del self._ids[followed.key]
