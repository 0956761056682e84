"""How a request fared: a field of each answer beside ``usage``."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from octavo.outputs import RequestMetrics, RequestOutput


class Metrics(msgspec.Struct):
    """Times are in seconds. Of several prompts: of the one that took longest, and the sum of preemptions.

    Attributes:
        queue_time: from its arrival until its first step.
        waited_for: the last reason why it had to wait before that; null if it did not.
        time_to_first_token, total_time: since its arrival; null if there was none.
        cached_tokens: prompt tokens found in the prefix cache.
        preemptions: how often it lost its blocks to others and had to compute again.
    """

    queue_time: float | None
    waited_for: str | None
    time_to_first_token: float | None
    total_time: float | None
    cached_tokens: int
    preemptions: int


def metrics_of(outputs: Sequence[RequestOutput]) -> Metrics:
    """Of the finished requests of one answer; at least one."""
    all_ = [output.metrics for output in outputs]
    slowest = max(all_, key=lambda m: _since_arrival(m, m.finished_time) or 0.0)
    return Metrics(
        _since_arrival(slowest, slowest.first_scheduled_time),
        slowest.waited_for or None,
        _since_arrival(slowest, slowest.first_token_time),
        _since_arrival(slowest, slowest.finished_time),
        sum(m.num_cached_tokens for m in all_),
        sum(m.num_preemptions for m in all_),
    )


def _since_arrival(metrics: RequestMetrics, moment: float | None) -> float | None:
    return None if moment is None else round(moment - metrics.arrival_time, 6)
