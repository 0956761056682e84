"""What is known of a request when it has ended: the value that metrics, logs and traces are made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from octavo.outputs import RequestMetrics
from octavo.sampling_params import SamplingParams
from octavo.server.caller import Caller


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestRecord:
    """One request to the engine; an HTTP request may hold several prompts. Times are in seconds.

    Attributes:
        id: the engine's id of it.
        model: the served name, or the adapter's.
        output_tokens: of all completions.
        longest_output: tokens of the longest one.
        finish_reason: of the first completion: "stop", "length", "abort", "error"; "refused" if it
            was before its first token.
        error: why it ended so, where that is known.
        started_at: when it came, in seconds since 1970.
        latency: from its coming to its end.
        metrics: the engine's, of the monotonic clock, as complete as they are.
        prompt, texts: what was asked, and each completion; kept only where the operator wants it in the log.
    """

    id: str
    caller: Caller
    model: str
    params: SamplingParams | None
    prompt_tokens: int
    output_tokens: int
    longest_output: int
    finish_reason: str
    error: str | None
    started_at: float
    latency: float
    metrics: RequestMetrics
    prompt: str | None = None
    texts: tuple[str, ...] | None = None

    @property
    def queue_time(self) -> float | None:
        return _between(self.metrics.arrival_time, self.metrics.first_scheduled_time)

    @property
    def prefill_time(self) -> float | None:
        return _between(self.metrics.first_scheduled_time, self.metrics.first_token_time)

    @property
    def decode_time(self) -> float | None:
        return _between(self.metrics.first_token_time, self.metrics.finished_time)

    @property
    def inference_time(self) -> float | None:
        return _between(self.metrics.first_scheduled_time, self.metrics.finished_time)

    @property
    def time_per_output_token(self) -> float | None:
        """Of one completion, after its first token; None where there is no second one."""
        per_completion = self.output_tokens / (self.params.n if self.params else 1)
        decode = self.decode_time
        return decode / (per_completion - 1) if decode is not None and per_completion > 1 else None


def _between(start: float | None, end: float | None) -> float | None:
    return None if start is None or end is None else end - start


Sink = Callable[[RequestRecord], None]
"""Takes a request's record when it has ended. Must be quick and must not raise."""
