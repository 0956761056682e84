"""A request to the engine while it lives: counts its tokens, and becomes its record."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from octavo.client.verbs import BusyError
from octavo.errors import RequestError
from octavo.outputs import RequestMetrics, RequestOutput
from octavo.sampling_params import SamplingParams
from octavo.server.caller import Caller
from octavo.server.metrics import Metrics
from octavo.server.request_record import RequestRecord


@dataclass(slots=True)
class RequestWatch:
    """Sees the news of one request. The clock is the monotonic one, which the engine's metrics are of, too."""

    id: str
    caller: Caller
    model: str
    params: SamplingParams | None
    counts: Metrics
    clock: Callable[[], float]
    keep_text: bool
    arrived: float = field(init=False)
    started_at: float = field(init=False)
    prompt_tokens: int = 0
    output_tokens: int = 0
    finish_reason: str = "abort"  # of a request that nobody read to its end
    error: str | None = None
    metrics: RequestMetrics = field(init=False)
    prompt: str | None = None
    pieces: list[str] = field(default_factory=list)
    latest: dict[int, float] = field(default_factory=dict)
    """When a completion's newest tokens came, by its index."""

    def __post_init__(self) -> None:
        self.arrived, self.started_at = self.clock(), time.time()
        self.metrics = RequestMetrics(arrival_time=self.arrived)

    def see(self, output: RequestOutput) -> None:
        now = self.clock()
        for completion in output.outputs:
            if completion.token_ids:
                self._see_tokens(completion.index, len(completion.token_ids), now)
            if completion.finish_reason is not None and completion.index == 0:
                self.finish_reason = completion.finish_reason
                self.error = str(completion.stop_reason) if completion.finish_reason == "error" else None
        self.prompt_tokens = len(output.prompt_token_ids) or self.prompt_tokens
        self.metrics = output.metrics
        if self.keep_text:
            self.prompt = output.prompt if output.prompt is not None else self.prompt
            self.pieces += [completion.text for completion in output.outputs]
        if output.finished and output.embedding is not None:
            self.finish_reason = "stop"

    def _see_tokens(self, index: int, count: int, now: float) -> None:
        if not self.output_tokens:
            self.counts.first_token(now - self.arrived)
        before = self.latest.get(index)
        if before is not None:
            self.counts.next_tokens(now - before, count)
        self.latest[index] = now
        self.output_tokens += count

    def fail(self, error: Exception) -> None:
        self.finish_reason = "refused" if isinstance(error, RequestError | BusyError) else "error"
        self.error = str(error)

    def record(self) -> RequestRecord:
        return RequestRecord(
            id=self.id,
            caller=self.caller,
            model=self.model,
            params=self.params,
            prompt_tokens=self.prompt_tokens,
            output_tokens=self.output_tokens,
            finish_reason=self.finish_reason,
            error=self.error,
            started_at=self.started_at,
            latency=self.clock() - self.arrived,
            metrics=self.metrics,
            prompt=self.prompt,
            text="".join(self.pieces) if self.keep_text else None,
        )
