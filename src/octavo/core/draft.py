"""A step while it is being planned."""

from __future__ import annotations

from collections.abc import Sequence

from octavo.core.plan import Admitted, Event, NewRow, RowStep, StepPlan, table_checksum
from octavo.core.request import Request


class Draft:
    """What the next step will do, as far as it was decided.

    Attributes:
        budget: tokens that may still be put into the step.
        promised: free blocks that are kept for requests which wait for blocks in limbo; no one behind them
            may take these.
        preempted: a request had to give up its blocks, so that no other is admitted in this step.
        events: what was decided, in order; those that come from an attempt which gave no step stand first.
        requests: parallel to ``rows``.
    """

    def __init__(self, step: int, budget: int, untold: Sequence[Event]) -> None:
        self.step = step
        self.budget = budget
        self.promised = 0
        self.preempted = False
        self.rows: list[RowStep] = []
        self.requests: list[Request] = []
        self.entering: list[NewRow] = []
        self.masked: list[tuple[int, str]] = []
        self.events: list[Event] = list(untold)

    def enter(self, request: Request) -> None:
        """Note that ``request`` enters the batch, with the blocks it found in the cache."""
        self.events.append(Admitted(request.id, request.slot, request.num_computed))
        self.entering.append(
            NewRow(
                slot=request.slot,
                request_id=request.id,
                token_bytes=request.tokens.tobytes(),
                num_prompt_tokens=request.num_prompt_tokens,
                params=request.params,
                seed=request.seed,
                eos_token_ids=request.eos_token_ids,
                bad_words=request.bad_words,
                block_ids=tuple(request.blocks),
            )
        )

    def freeze(self, *, with_checksum: bool) -> StepPlan:
        checksum = self._checksum() if with_checksum else None
        rows, entering, events = tuple(self.rows), tuple(self.entering), tuple(self.events)
        return StepPlan(self.step, rows, entering, events, tuple(self.masked), checksum)

    def _checksum(self) -> int:
        return table_checksum(sorted((r.slot, r.num_computed, r.blocks) for r in self.requests))
