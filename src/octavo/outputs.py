"""What a caller gets back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal


@dataclass(slots=True)
class Logprob:
    """One token's log-probability (natural log) and its rank among the vocabulary (1 is the likeliest)."""

    logprob: float
    rank: int
    decoded_token: str | None = None


Logprobs = dict[int, Logprob]
"""Token id -> its log-probability: the chosen token and the likeliest alternatives at one position."""


@dataclass(slots=True)
class CompletionOutput:
    """One completion of a prompt.

    From ``LLM.generate`` and ``engine.step`` it is cumulative; from ``LLM.stream`` its ``text``, ``token_ids`` and
    ``logprobs`` hold only what is new.

    Attributes:
        index: which of the request's ``n`` completions this is.
        finish_reason: None while it grows; "stop" (EOS, stop token or stop string), "length", "abort", or "error".
        stop_reason: the stop string or stop token id that ended it, or what the error was; else None (EOS, too).
    """

    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[Logprobs] | None = None
    cumulative_logprob: float | None = None
    finish_reason: str | None = None
    stop_reason: str | int | None = None

    @property
    def finished(self) -> bool:
        return self.finish_reason is not None

    def append(self, piece: CompletionOutput) -> None:
        """Add what came later of the same completion."""
        self.text += piece.text
        self.token_ids += piece.token_ids
        if piece.logprobs is not None:
            self.logprobs = piece.logprobs if self.logprobs is None else self.logprobs + piece.logprobs
        self.cumulative_logprob = piece.cumulative_logprob
        self.finish_reason, self.stop_reason = piece.finish_reason, piece.stop_reason


@dataclass(slots=True)
class RequestMetrics:
    """Times of one request, in seconds of a monotonic clock, and what the cache and the pool did for it.

    ``num_cached_tokens`` are prompt tokens found in the prefix cache, ``num_blocks`` the most KV blocks held at once,
    ``waited_for`` the last reason why it had to wait before it first ran (empty: it never waited).
    """

    arrival_time: float = 0.0
    first_scheduled_time: float | None = None
    first_token_time: float | None = None
    finished_time: float | None = None
    num_cached_tokens: int = 0
    num_preemptions: int = 0
    num_blocks: int = 0
    waited_for: str = ""

    @property
    def time_to_first_token(self) -> float | None:
        return None if self.first_token_time is None else self.first_token_time - self.arrival_time


@dataclass(slots=True)
class RequestOutput:
    """The state of one request: its prompt and its completions so far.

    ``prompt`` is None when the prompt came as token ids. ``prompt_logprobs`` has one entry for each prompt token; the
    first is None, as nothing predicts it. ``embedding`` is the prompt's vector, where ``PoolingParams`` asked for one.
    ``metrics`` are complete when it is finished. ``refused`` says why a completion ended with "error" though its
    sender could mend that: the form (``structured_outputs``) cannot be used with this model, became too complex, or
    leaves no token that the other options allow; or these alone leave none. ``refused_kind`` says what is to blame:
    the "form", or a "request" without one.
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    finished: bool
    metrics: RequestMetrics
    prompt_logprobs: list[Logprobs | None] | None = None
    embedding: Sequence[float] | None = None
    refused: str | None = None
    refused_kind: Literal["request", "form"] = "request"
