"""The steps that were planned and have not come back, and what they keep from being used again.

Planning runs ahead of the device. A request that leaves the batch may still have a step on its way that reads
and writes its blocks and its row, so these are in limbo until the last such step has come back.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from octavo.core.blocks import BlockPool
from octavo.core.plan import StepPlan
from octavo.core.request import Request


@dataclass(frozen=True, slots=True)
class Flight:
    """A step on its way: its plan, and the requests of the plan's rows."""

    plan: StepPlan
    requests: Sequence[Request]

    def sampling(self) -> list[Request]:
        """The requests that a token is sampled for, in the plan's order."""
        return [request for row, request in zip(self.plan.rows, self.requests, strict=True) if row.samples]

    def by_slot(self) -> dict[int, Request]:
        return {row.slot: request for row, request in zip(self.plan.rows, self.requests, strict=True)}


@dataclass(frozen=True, slots=True)
class Limbo:
    """What a request that left still occupies until step ``step`` has come back."""

    step: int
    slot: int
    blocks: list[int]


class InFlight:
    """Planned steps, oldest first; the free slots of the batch; and what is in limbo."""

    def __init__(self, pool: BlockPool, max_num_seqs: int) -> None:
        self._pool = pool
        self._max_num_seqs = max_num_seqs
        self.reset()

    def reset(self) -> None:
        """No step is on its way, nothing is in limbo, all slots are free."""
        self.flights: deque[Flight] = deque()
        self.limbo: list[Limbo] = []
        self.free_slots = list(range(self._max_num_seqs - 1, -1, -1))

    def __len__(self) -> int:
        return len(self.flights)

    def launch(self, plan: StepPlan, requests: Sequence[Request]) -> None:
        self.flights.append(Flight(plan, requests))

    def land(self, step: int) -> Flight:
        """Take out the oldest step, which must be ``step``, and free what waited for it."""
        assert self.flights, f"step {step} came back, none was in flight"
        oldest = self.flights[0].plan.step
        assert oldest == step, f"step {step} came back, {oldest} was expected"
        self._free_limbo_until(step)
        return self.flights.popleft()

    def free_after(self, step: int, slot: int, blocks: list[int]) -> None:
        """Free a slot and a request's blocks once ``step``, the last to use them, is back: maybe now."""
        if self.flights and step >= self.flights[0].plan.step:
            self.limbo.append(Limbo(step, slot, blocks))
        else:
            self._free(slot, blocks)

    def num_blocks_coming(self) -> int:
        """How many blocks will become free when all steps have come back."""
        return self._pool.num_freed_by(block for limbo in self.limbo for block in limbo.blocks)

    def _free_limbo_until(self, step: int) -> None:
        leaving, self.limbo = self.limbo, []
        for limbo in leaving:
            if limbo.step <= step:
                self._free(limbo.slot, limbo.blocks)
            else:
                self.limbo.append(limbo)

    def _free(self, slot: int, blocks: list[int]) -> None:
        self._pool.release(blocks)
        self.free_slots.append(slot)
