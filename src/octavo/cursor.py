"""What is new in an output that grows, since one last looked."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from octavo.outputs import CompletionOutput

T = TypeVar("T")


class Cursor:
    """How far a reader has seen a completion."""

    __slots__ = ("_finished", "_text", "_tokens")

    def __init__(self) -> None:
        self._text = 0
        self._tokens = 0
        self._finished = False

    def advance(self, whole: CompletionOutput, make: Callable[..., T]) -> T | None:
        """What is new in ``whole`` since the last call; None if nothing is.

        Args:
            make: is given the fields of a ``CompletionOutput``, in their order, with the new text, token ids and
                log-probabilities in place of all.
        """
        if self._finished or (len(whole.token_ids) == self._tokens and whole.finish_reason is None):
            return None
        piece = make(
            whole.index,
            whole.text[self._text :],
            whole.token_ids[self._tokens :],
            whole.logprobs[self._tokens :] if whole.logprobs is not None else None,
            whole.cumulative_logprob,
            whole.finish_reason,
            whole.stop_reason,
        )
        self._text, self._tokens = len(whole.text), len(whole.token_ids)
        self._finished = whole.finish_reason is not None
        return piece
