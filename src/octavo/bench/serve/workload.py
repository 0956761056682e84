"""What a load consists of, and the requests that it comes to."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from octavo.bench.serve.arrivals import Arrivals
from octavo.bench.serve.plan import Planned, make_plan
from octavo.bench.serve.prompts import NO_PREFIX, Prefixes, PromptMaker
from octavo.bench.serve.trace import Recorded
from octavo.bench.workload import LengthRange


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """The same workload, maker and seed make the same requests.

    Attributes:
        count: of requests; of a trace, at most.
        trace: recorded lengths, prompts and times, which come before all other ways to say them.
        disconnect, malformed: shares of requests that hang up, and that are wrong.
    """

    count: int
    input_len: LengthRange
    output_len: LengthRange
    arrivals: Arrivals
    trace: Sequence[Recorded] | None = None
    prefixes: Prefixes = NO_PREFIX
    disconnect: float = 0.0
    malformed: float = 0.0

    def plan(self, rng: random.Random, maker: PromptMaker) -> list[Planned]:
        """Raises ``UsageError`` for prompts that ``maker`` cannot make."""
        recorded = self._recorded(rng)
        made = maker.make(rng, [r.input_length or 0 for r in recorded if r.prompt is None], self.prefixes)
        rest = iter(made)
        prompts = [next(rest) if r.prompt is None else r.prompt for r in recorded]
        drawn = self.arrivals.times(rng, len(recorded))
        times = [at if r.timestamp is None else r.timestamp / 1000 for at, r in zip(drawn, recorded, strict=True)]
        lengths = [r.output_length for r in recorded]
        plan = make_plan(rng, times, prompts, lengths, self.disconnect, self.malformed)
        return sorted(plan, key=lambda planned: planned.at)

    def _recorded(self, rng: random.Random) -> Sequence[Recorded]:
        if self.trace is not None:
            return self.trace[: self.count]
        return [Recorded(self.output_len.draw(rng), self.input_len.draw(rng)) for _ in range(self.count)]
