"""The scheduler: from the requests that exist, which tokens to compute in the next step.

There is one budget and there are no phases (after Sarathi-Serve, arXiv:2403.02310, and vLLM's V1 scheduler):
a step computes at most ``max_num_batched_tokens`` tokens. Every running request gets at least one; what is
left goes, in the policy's order, to those with more tokens to compute, and then to the requests that wait.
Prefill, chunked prefill, decode, recomputation after a preemption and a prefix-cache hit are all the same:
``num_computed`` moves towards ``num_tokens``.

Steps are planned ahead: while step n runs, step n + 1 is planned, from counts alone. So

- a stop is found one step late, and the token that was sampled meanwhile is dropped;
- a block is registered in the prefix cache only when its tokens have arrived;
- slots and blocks of a request that leaves are freed when the last step that it takes part in has come back
  (until then they are in limbo);
- a grammar's mask needs the value of the last token: it follows the plan (`TokenMasks`), and only the sampling of
  the row waits for it.

A block may be registered as soon as a planned step writes it, because steps run in the order of their
planning, and within a step each layer writes all keys and values before it reads any.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain

from octavo.core.batch import Batch
from octavo.core.blocks import BlockPool
from octavo.core.draft import Draft
from octavo.core.fair import FairQueue
from octavo.core.invariants import check_scheduler
from octavo.core.plan import (
    Embedded,
    Event,
    Finished,
    Preempted,
    PromptScored,
    RowStep,
    Sampled,
    StepPlan,
    StepResult,
    Waits,
)
from octavo.core.policy import POLICIES, WaitingQueue
from octavo.core.request import Request, Status
from octavo.core.waiting import Waiting
from octavo.errors import RequestError, UsageError

ADAPTER_PATIENCE = 5.0
"""Seconds that a request may be set aside, because its adapter finds no place, before those that came later and whose
adapters have one are set aside as well, so that one of these places becomes free."""


@dataclass(frozen=True, slots=True)
class Stats:
    """Counters of the moment: requests and blocks."""

    running: int
    waiting: int
    free_blocks: int
    cached_blocks: int
    num_blocks: int


class Scheduler:
    """Decides; does nothing. At most ``max_in_flight`` plans wait for being applied, in their order.

    Attributes:
        requests: all that are not finished, by id; each is in ``running``, in ``waiting``, or held.
        running: those that have a slot, in the policy's order.
    """

    def __init__(
        self,
        pool: BlockPool,
        *,
        max_model_len: int,
        max_num_seqs: int = 256,
        max_num_batched_tokens: int = 2048,
        policy: str = "fcfs",
        max_in_flight: int = 2,
        max_loras: int = 0,
        debug: bool = False,
    ) -> None:
        if max_num_batched_tokens < max_num_seqs:
            raise UsageError(
                f"max_num_batched_tokens={max_num_batched_tokens} is less than max_num_seqs={max_num_seqs}: "
                "each running request needs one token of a step"
            )
        self.pool = pool
        self.max_model_len = max_model_len
        self.max_num_seqs = max_num_seqs
        self.max_num_batched_tokens = max_num_batched_tokens
        self.max_in_flight = max_in_flight
        self.debug = debug
        self.policy = POLICIES[policy]
        self._is_fair = policy == "fair"
        self.requests: dict[str, Request] = {}
        self.batch = Batch(pool, max_num_seqs, self.policy, max_loras)
        self.running = self.batch.running
        self.in_flight = self.batch.in_flight
        self.waiting = self._new_queue()
        self._next_step = 0
        self._next_sequence = 0
        self._untold: list[Event] = []  # of attempts to plan that gave no step; they go out with the next events
        self._last_wait = (
            0,
            "",
        )  # requests of a sequence number below this one stood in the queue then, and why
        # A little room is kept for the requests that run, so that they do not preempt what was just admitted.
        self._headroom = pool.num_blocks // 100

    def _new_queue(self) -> Waiting:
        return Waiting(FairQueue() if self._is_fair else WaitingQueue(self.policy))

    # ---------------------------------------------------------------- requests

    def add(self, request: Request, now: float = 0.0) -> None:
        """Put a new request into the waiting queue; one that is ``held`` only once it is released.

        Raises:
            RequestError: it could never run to its end; the message says what would fit.
        """
        if request.id in self.requests:
            raise RequestError(f"there is an unfinished request {request.id!r} already; each needs an id of its own")
        request.check_fits(self.token_limit)
        request.sequence = self._next_sequence
        self._next_sequence += 1
        request.metrics.arrival_time = now
        self.requests[request.id] = request
        if request.held:
            request.metrics.waited_for = request.held
        else:
            self.waiting.push(request)

    def release(self, request_id: str) -> None:
        """Let a request that was held take its place in the queue, as if it had waited there; others may have gone on.

        Nothing happens if it is over.
        """
        request = self.requests.get(request_id)
        if request is not None and request.held:
            request.held = ""
            self.waiting.push(request)

    def finish(
        self, request_id: str, reason: str, now: float = 0.0, stop_reason: str | int | None = None
    ) -> Finished | None:
        """End a request from outside: an abort, or a stop string in its text. None: it is over already."""
        request = self.requests.get(request_id)
        return None if request is None else self._finish(request, reason, stop_reason, now)

    def has_work(self) -> bool:
        return bool(self.requests or self.in_flight)

    @property
    def num_in_flight(self) -> int:
        """Plans that have not been applied yet."""
        return len(self.in_flight)

    @property
    def token_limit(self) -> int:
        """Longest prompt plus output, by the model and by the pool (the last token is never computed)."""
        return min(self.max_model_len, self.pool.num_blocks * self.pool.block_size + 1)

    def uses_adapter(self, adapter_id: int) -> bool:
        """Whether an unfinished request, or a step in flight, has it."""
        flying = (request for flight in self.in_flight.flights for request in flight.requests)
        users = (request.adapter for request in chain(self.requests.values(), flying))
        return any(adapter is not None and adapter.id == adapter_id for adapter in users)

    def stats(self) -> Stats:
        pool = self.pool
        waiting = len(self.requests) - len(self.running)
        return Stats(len(self.running), waiting, pool.num_free, pool.num_cached, pool.num_blocks)

    def check(self) -> None:
        """Raise ``AssertionError`` if any invariant is broken. Costs O(blocks): for tests and debug mode."""
        check_scheduler(self)

    # ---------------------------------------------------------------- plan

    def plan(self, now: float = 0.0) -> StepPlan | None:
        """Plan the next step. None: nothing can be computed before a step in flight has come back."""
        if len(self.in_flight) >= self.max_in_flight:
            return None
        draft = Draft(self._next_step, self.max_num_batched_tokens, self._untold)
        self._continue_running(draft)
        self._admit_waiting(draft, now)
        if not draft.rows:
            self._check_for_deadlock(draft)
            self._untold = [event for event in draft.events if not isinstance(event, Waits)]
            return None
        self._untold = []
        self._next_step += 1
        plan = draft.freeze(with_checksum=self.debug)
        self.in_flight.launch(plan, draft.requests)
        return plan

    def _continue_running(self, draft: Draft) -> None:
        draft.budget -= len(self.running)  # one token for each; the rest is for those with more to compute
        for request in list(self.running):
            if request.status is not Status.RUNNING:
                continue
            count = min(request.num_remaining, 1 + draft.budget)
            if count == 0:
                continue
            need = self.batch.new_blocks_for(request, count)
            if need == 0 or self._make_room(request, need, draft):
                draft.budget -= count - 1
                self._schedule(request, count, need, draft)

    def _make_room(self, request: Request, need: int, draft: Draft) -> bool:
        """See that ``need`` blocks are free, preempting from the end if need be. False: not in this step."""
        while need > (free := self.pool.num_free - draft.promised):
            if need <= free + self.in_flight.num_blocks_coming():
                draft.promised += need
                return False
            victim = self.running[-1]
            self._preempt(victim, f"{request.id} needs {need} more blocks, {max(free, 0)} free", draft)
            if victim is request:
                return False
        return True

    def _preempt(self, victim: Request, reason: str, draft: Draft) -> None:
        self.batch.leave(victim)
        victim.status = Status.WAITING
        victim.metrics.num_preemptions += 1
        self.waiting.push(victim)
        draft.preempted = True
        draft.events.append(Preempted(victim.id, reason))

    def _admit_waiting(self, draft: Draft, now: float) -> None:
        if self.batch.adapters.has_idle:
            self.waiting.bring_back()
        while (request := self.waiting.first()) is not None:
            if lack := self._why_no_adapter(request, now):
                self._set_aside(request, lack, draft, now)
                continue
            cached: list[int] = []
            reason = self._why_no_row(request, draft)
            if not reason:
                cached = self.batch.cached_blocks(request)
                reason = self._why_no_blocks(request, cached, draft)
            if reason:
                self._note_wait(request, reason, draft)
                return
            self._admit(self.waiting.pop(), cached, draft, now)

    def _why_no_row(self, request: Request, draft: Draft) -> str:
        """Why the head of the queue cannot take part, whatever blocks are free; or an empty string."""
        if draft.preempted:
            return "the requests that run are short of blocks"
        if draft.budget <= 0:
            return f"the step's {self.max_num_batched_tokens} tokens are spent"
        if not self.in_flight.free_slots:
            return f"all {self.max_num_seqs} rows of the batch are taken"
        return "its last token is still on its way" if request.num_pending else ""

    def _why_no_blocks(self, request: Request, cached: list[int], draft: Draft) -> str:
        """Why there is no room for the known tokens of the head of the queue, or an empty string."""
        need = self.pool.blocks_for(len(request.tokens)) - len(cached)
        kept = draft.promised + (self._headroom if self.running else 0)
        free = max(0, self.pool.num_free - self.pool.num_free_among(cached) - kept)
        return f"needs {need} blocks, {free} free" if need > free else ""

    def _why_no_adapter(self, request: Request, now: float) -> str:
        """Why the head of the queue cannot have its adapter, so that others may pass it; or an empty string.

        Those whose adapter has a place could pass for ever, if they keep coming. So after a while they no longer do.
        """
        if request.adapter is None:
            return ""
        if not self.batch.adapters.has_room(request.adapter):
            return f"needs adapter {request.adapter.name!r}, all {self.batch.adapters.count} slots are in use"
        first = self.waiting.longest_aside
        if first is None or self.policy(request) < self.policy(first):
            return ""
        assert first.set_aside_at is not None
        impatient = now - first.set_aside_at > ADAPTER_PATIENCE
        return f"lets {first.id} go first, which waits for its adapter" if impatient else ""

    def _set_aside(self, request: Request, reason: str, draft: Draft, now: float) -> None:
        draft.events.append(Waits(request.id, reason))
        self.waiting.set_aside(now)
        if request.metrics.first_scheduled_time is None:
            request.metrics.waited_for = reason

    def _note_wait(self, head: Request, reason: str, draft: Draft) -> None:
        draft.events.append(Waits(head.id, reason))
        self._last_wait = (self._next_sequence, f"stood behind {head.id}: {reason}")
        if head.metrics.first_scheduled_time is None:
            head.metrics.waited_for = reason

    def _admit(self, request: Request, cached: list[int], draft: Draft, now: float) -> None:
        load = self.batch.enter(request, cached)
        if request.metrics.first_scheduled_time is None:
            self._note_first_run(request, now)
        draft.enter(request, load)
        count = min(request.num_remaining, draft.budget)
        draft.budget -= count
        self._schedule(request, count, self.batch.new_blocks_for(request, count), draft)

    def _note_first_run(self, request: Request, now: float) -> None:
        metrics = request.metrics
        metrics.first_scheduled_time = now
        metrics.num_cached_tokens = request.num_computed
        known_then, reason = self._last_wait
        if not metrics.waited_for and request.sequence < known_then:
            metrics.waited_for = reason

    def _schedule(self, request: Request, count: int, need: int, draft: Draft) -> None:
        """Put ``count`` tokens of a request into the step, with ``need`` new blocks, which are free."""
        start = request.num_computed
        new_blocks = self.batch.extend(request, count, need, draft.step)
        samples = start + count == len(request.tokens) + request.num_pending
        request.num_pending += samples
        self.waiting.charge(request, count)
        draft.rows.append(RowStep(request.slot, start, count, new_blocks, samples))
        if samples and request.params.structured_outputs is not None:
            draft.masked.append((request.slot, request.id))
        draft.requests.append(request)

    def _check_for_deadlock(self, draft: Draft) -> None:
        """Nothing to do with nothing in flight would mean to wait for ever: that must not happen."""
        if (self.running or self.waiting) and not self.in_flight:
            raise AssertionError(f"no request can go on: {self.stats()}, {draft.events}")

    # ---------------------------------------------------------------- apply

    def apply(self, result: StepResult, now: float = 0.0) -> list[Event]:
        """Take in what the oldest step in flight brought; free what waited for it."""
        flight = self.in_flight.land(result.step)
        events, self._untold = self._untold, []
        if result.prompt_logprobs or result.errors or result.vectors or result.refused:
            by_slot = flight.by_slot()
            events += self._prompt_scores(by_slot, result)
            events += self._vectors(by_slot, result)
            events += self._end_failed(by_slot, result, now)
        sampled = flight.sampling()
        logprobs = result.logprobs or (None,) * len(sampled)
        for request, token_id, logprob in zip(sampled, result.token_ids, logprobs, strict=True):
            request.num_pending -= 1
            if request.status is Status.FINISHED:
                continue  # it ended meanwhile, and this token is the extra one
            events.append(Sampled(request.id, token_id, logprob))
            if stop := self._take_token(request, token_id, now):
                events.append(self._finish(request, *stop, now))
        return events

    def _prompt_scores(self, by_slot: dict[int, Request], result: StepResult) -> list[Event]:
        scores = [(by_slot[slot], *scored) for slot, scored in result.prompt_logprobs.items()]
        return [PromptScored(r.id, start, lps) for r, start, lps in scores if r.status is not Status.FINISHED]

    def _vectors(self, by_slot: dict[int, Request], result: StepResult) -> list[Event]:
        vectors = [(by_slot[slot], vector) for slot, vector in result.vectors.items()]
        return [Embedded(request.id, v) for request, v in vectors if request.status is not Status.FINISHED]

    def _end_failed(self, by_slot: dict[int, Request], result: StepResult, now: float) -> list[Event]:
        """End the requests that have no token. What computed an error may be wrong: no one shall find it."""
        for slot in result.errors:
            self.pool.forget(by_slot[slot].block_hashes)
        failed = [(by_slot[slot], "error", why) for slot, why in result.errors.items()]
        failed += [(by_slot[slot], "refused", by_slot[slot].why_no_token()) for slot in result.refused]
        alive = [end for end in failed if end[0].status is not Status.FINISHED]
        return [self._finish(request, reason, why, now) for request, reason, why in alive]

    def _take_token(self, request: Request, token_id: int, now: float) -> tuple[str, int | None] | None:
        """Append a token that arrived; why the request ends with it, if it does."""
        request.tokens.append(token_id)
        if request.metrics.first_token_time is None:
            request.metrics.first_token_time = now
        if len(request.tokens) % self.pool.block_size == 0:
            self.batch.register_full_blocks(request)
        return request.stop_after(token_id)

    def _finish(self, request: Request, reason: str, stop_reason: str | int | None, now: float) -> Finished:
        waits = request.status is Status.WAITING
        if not waits:
            self.batch.leave(request)
        request.status = Status.FINISHED
        if waits and not request.held:
            self.waiting.discard(request)
        request.metrics.finished_time = now
        del self.requests[request.id]
        # Its end must be the last that is heard of it.
        self._untold = [event for event in self._untold if event.request_id != request.id]
        return Finished(request.id, reason, stop_reason)

    def fail_all(self, now: float = 0.0) -> list[Event]:
        """End every request with "error" and begin anew: the device lost its state, or planning was interrupted.

        Nothing here relies on the state being whole, and nothing of it is kept.
        """
        requests = list(self.requests.values())
        self.requests.clear()
        self.running.clear()
        self.waiting = self._new_queue()
        self._untold = []
        self.in_flight.reset()
        self.batch.adapters.reset()
        self.pool.reset()
        return [request.fail(now) for request in requests]
