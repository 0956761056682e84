"""Many durations as a few numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Summary:
    """Of ``count`` durations, in seconds. Percentiles are interpolated linearly."""

    count: int
    mean: float
    median: float
    p90: float
    p95: float
    p99: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Summary | None:
        """None if there are none."""
        if not seconds:
            return None
        ordered = sorted(seconds)
        parts = (percentile(ordered, q) for q in (0.5, 0.9, 0.95, 0.99))
        return cls(len(ordered), sum(ordered) / len(ordered), *parts)


def percentile(ordered: Sequence[float], q: float) -> float:
    """The value below which a share ``q`` of the ascending values lies."""
    place = (len(ordered) - 1) * q
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)
