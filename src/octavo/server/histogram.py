"""How often a value fell into which range."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import accumulate
from math import inf


class Histogram:
    """Counts values in buckets, each of which ends at a bound (included).

    Plain numbers without a lock: all is counted in one event loop. A gap between tokens is counted for each token of
    each stream, so one `observe` must stay below a microsecond.

    Attributes:
        total: the sum of all values.
        counts: how many values each bucket has; the last one is for values above all bounds.
    """

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.total = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        """Count ``value``, ``times`` times."""
        self.counts[bisect_left(self.bounds, value)] += times
        self.total += value * times

    def cumulative(self) -> Iterator[tuple[float, int]]:
        """Each bound and how many values reach up to it; the last bound is infinity."""
        return zip((*self.bounds, inf), accumulate(self.counts), strict=True)


def one_two_five(limit: int) -> tuple[int, ...]:
    """1, 2, 5, 10, 20, … up to ``limit``: the bounds of vLLM's histograms of token counts."""
    steps = (digit * 10**power for power in range(len(str(limit))) for digit in (1, 2, 5))
    return tuple(step for step in steps if step <= limit)
