"""A request to the engine while it lives: counts its tokens, and becomes its record."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from octavo.client.verbs import BusyError
from octavo.errors import RequestError
from octavo.outputs import CompletionOutput, RequestMetrics, RequestOutput
from octavo.sampling_params import SamplingParams
from octavo.server.caller import Caller
from octavo.server.metrics import Metrics
from octavo.server.request_record import RequestRecord


@dataclass(slots=True)
class RequestWatch:
    """Sees the news of one request. The clock is the monotonic one, which the engine's metrics are of, too.

    Attributes:
        prompt_tokens: 0 while a prompt is text that the engine has not told the tokens of.
        prompt: its text, where the record shall have texts; then ``pieces`` are the completions', by index.
        latest: when a completion's newest tokens came, by index.
        written: how many tokens a completion has, by index.
    """

    id: str
    caller: Caller
    model: str
    params: SamplingParams | None
    counts: Metrics
    clock: Callable[[], float]
    prompt_tokens: int = 0
    prompt: str | None = None
    arrived: float = field(init=False)
    started_at: float = field(init=False)
    finish_reason: str = "abort"  # of a request that nobody read to its end
    error: str | None = None
    metrics: RequestMetrics = field(init=False)
    pieces: dict[int, list[str]] = field(default_factory=dict)
    latest: dict[int, float] = field(default_factory=dict)
    written: Counter[int] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.arrived, self.started_at = self.clock(), time.time()
        self.metrics = RequestMetrics(arrival_time=self.arrived)

    @property
    def output_tokens(self) -> int:
        return self.written.total()

    def see(self, output: RequestOutput) -> None:
        now = self.clock()
        for completion in output.outputs:
            if completion.token_ids and self.params is not None:  # a vector comes with a token that nobody gets
                self._see_tokens(completion.index, len(completion.token_ids), now)
            if completion.finish_reason is not None and completion.index == 0:
                self.finish_reason = completion.finish_reason
                self.error = _why(completion)
        self.prompt_tokens = len(output.prompt_token_ids) or self.prompt_tokens
        self.metrics = output.metrics
        if self.prompt is not None:
            for completion in output.outputs:
                self.pieces.setdefault(completion.index, []).append(completion.text)
        if output.finished and output.embedding is not None:
            self.finish_reason = "stop"

    def _see_tokens(self, index: int, count: int, now: float) -> None:
        if not self.written:
            self.counts.first_token(now - self.arrived)
        before = self.latest.get(index)
        if before is not None:
            self.counts.next_tokens(now - before, count)
        self.latest[index] = now
        self.written[index] += count

    def fail(self, error: Exception) -> None:
        never_ran = isinstance(error, RequestError | BusyError) and not self.written
        self.finish_reason = "refused" if never_ran else "error"
        self.error = str(error)

    def record(self) -> RequestRecord:
        return RequestRecord(
            id=self.id,
            caller=self.caller,
            model=self.model,
            params=self.params,
            prompt_tokens=self.prompt_tokens,
            output_tokens=self.output_tokens,
            longest_output=max(self.written.values(), default=0),
            finish_reason=self.finish_reason,
            error=self.error,
            started_at=self.started_at,
            latency=self.clock() - self.arrived,
            metrics=self.metrics,
            prompt=self.prompt,
            texts=None if self.prompt is None else tuple("".join(self.pieces[i]) for i in sorted(self.pieces)),
        )


def _why(completion: CompletionOutput) -> str | None:
    """What ended a completion that was not finished: an error's message, a deadline."""
    cut_off = completion.finish_reason in ("error", "abort")
    return str(completion.stop_reason) if cut_off and completion.stop_reason is not None else None
