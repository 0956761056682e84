"""What must be true of the core between any two calls."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

from octavo.core.request import Request, Status

if TYPE_CHECKING:
    from octavo.core.scheduler import Scheduler


def check_scheduler(scheduler: Scheduler) -> None:
    """Raise ``AssertionError`` if any invariant is broken. Costs O(blocks + requests)."""
    running, limbo = scheduler.running, scheduler.in_flight.limbo
    scheduler.pool.check([r.blocks for r in running] + [entry.blocks for entry in limbo])
    _check_slots(scheduler)
    _check_membership(scheduler)
    _check_pending(scheduler)
    keys = [scheduler.policy(r) for r in running]
    assert keys == sorted(keys), "the running list is out of order"
    for request in running:
        _check_running(request, scheduler)
    on_the_way = {flight.plan.step for flight in scheduler.in_flight.flights}
    assert {entry.step for entry in limbo} <= on_the_way, "something is in limbo that no step uses"


def _check_slots(scheduler: Scheduler) -> None:
    flying = scheduler.in_flight
    slots = [r.slot for r in scheduler.running] + [entry.slot for entry in flying.limbo] + flying.free_slots
    assert sorted(slots) == list(range(scheduler.max_num_seqs)), f"slots are lost or doubled: {slots}"


def _check_membership(scheduler: Scheduler) -> None:
    """Each request that exists runs, waits or is held, once; and each of those exists."""
    running, waiting = scheduler.running, list(scheduler.waiting)
    held = [r for r in scheduler.requests.values() if r.held]
    assert len(waiting) == len(scheduler.waiting), f"{len(waiting)} requests wait, {len(scheduler.waiting)} are counted"
    ids = sorted(r.id for r in [*running, *waiting, *held])
    assert ids == sorted(scheduler.requests), f"a request is lost or doubled: {ids}"
    assert all(r.status is Status.RUNNING for r in running), "one who does not run is in the running list"
    assert not any(r.blocks or r.num_computed or r.slot >= 0 for r in waiting), "one who waits holds something"


def _check_pending(scheduler: Scheduler) -> None:
    sampling = Counter(r.id for flight in scheduler.in_flight.flights for r in _alive(flight.sampling()))
    for request in scheduler.requests.values():
        awaited = sampling[request.id]
        assert request.num_pending == awaited, (
            f"{request.id}: {request.num_pending} tokens pending, {awaited} on the way"
        )


def _alive(requests: Iterable[Request]) -> list[Request]:
    return [r for r in requests if r.status is not Status.FINISHED]


def _check_running(request: Request, scheduler: Scheduler) -> None:
    """Blocks match tokens; none that is yet to be written, or whose tokens are unknown, is shared."""
    pool = scheduler.pool
    assert len(request.blocks) == pool.blocks_for(request.num_computed), f"{request.id}: blocks do not match"
    assert request.num_computed <= request.num_tokens, f"{request.id}: computed more than there is"
    full = min(request.num_computed, len(request.tokens)) // pool.block_size
    assert request.num_registered == full or not pool.enable_caching, f"{request.id}: a full block is not known"
    assert request.num_tokens <= scheduler.token_limit, f"{request.id}: longer than the limit"
    for block in request.blocks[full:]:
        assert not pool.is_shared(block), f"{request.id} will write to block {block}, which is shared"
        assert not pool.is_registered(block), f"{request.id} will write to block {block}, which is registered"
