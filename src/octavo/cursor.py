"""What is new in an output that grows, since one last looked."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from octavo.outputs import CompletionOutput

T = TypeVar("T")


class Cursor:
    """How far a reader has seen a completion.

    Attributes:
        num_tokens: how many of its tokens were seen.
        finished: whether its end was.
    """

    __slots__ = ("_text", "finished", "num_tokens")

    def __init__(self) -> None:
        self._text = 0
        self.num_tokens = 0
        self.finished = False

    def advance(self, whole: CompletionOutput, make: Callable[..., T]) -> T | None:
        """What is new in ``whole`` since the last call; None if nothing is.

        Args:
            make: is given the fields of a ``CompletionOutput``, in their order, with the new text, token ids and
                log-probabilities in place of all.
        """
        if self.finished or (len(whole.token_ids) == self.num_tokens and whole.finish_reason is None):
            return None
        piece = make(
            whole.index,
            whole.text[self._text :],
            whole.token_ids[self.num_tokens :],
            whole.logprobs[self.num_tokens :] if whole.logprobs is not None else None,
            whole.cumulative_logprob,
            whole.finish_reason,
            whole.stop_reason,
        )
        self._text, self.num_tokens = len(whole.text), len(whole.token_ids)
        self.finished = whole.finish_reason is not None
        return piece
