"""When requests are sent: open loop, that is, whether or not the ones before have been answered."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from itertools import accumulate

PROCESSES = ("poisson", "gamma", "constant")


@dataclass(frozen=True, slots=True)
class Arrivals:
    """A stream of arrivals.

    Attributes:
        rate: requests a second, on average; infinity: all at once.
        process: "constant" gaps; "poisson": exponential ones, as of many independent users; "gamma" ones.
        burstiness: the shape of the gamma process: 1 is Poisson, less comes in bursts, more is more even.
        ramp: seconds over which the rate grows evenly from 0 to ``rate``.
    """

    rate: float = math.inf
    process: str = "poisson"
    burstiness: float = 1.0
    ramp: float = 0.0

    def times(self, rng: random.Random, count: int) -> list[float]:
        """Seconds from the start, ascending."""
        if math.isinf(self.rate):
            return [0.0] * count
        return [self._when(expected) for expected in accumulate(self._gap(rng) for _ in range(count))]

    def _gap(self, rng: random.Random) -> float:
        """In units of the mean gap."""
        if self.process == "constant":
            return 1.0
        shape = self.burstiness if self.process == "gamma" else 1.0
        return rng.gammavariate(shape, 1 / shape)

    def _when(self, expected: float) -> float:
        """The moment by which ``expected`` requests are expected: the inverse of the rate's integral.

        On the ramp the integral is rate * t^2 / (2 * ramp), afterwards rate * (t - ramp / 2).
        """
        if expected < self.rate * self.ramp / 2:
            return math.sqrt(2 * self.ramp * expected / self.rate)
        return expected / self.rate + self.ramp / 2
