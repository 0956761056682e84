"""Requests with LoRA adapters: who gets a place, who waits for one, and that nobody finds another's blocks."""

from __future__ import annotations

import pytest

from helpers_core import advance, make_request, make_scheduler, of_type, result_of
from octavo.core.adapters import Adapter
from octavo.core.plan import AdapterLoad, Admitted, Waits
from octavo.core.scheduler import ADAPTER_PATIENCE, Scheduler

A, B, C = (Adapter(i, name) for i, name in enumerate(("a", "b", "c"), 1))


def test_adapters_are_loaded_when_they_are_first_needed() -> None:
    scheduler = make_scheduler(max_loras=2)
    for id_, adapter in (("x", A), ("y", B), ("z", A), ("plain", None)):
        scheduler.add(make_request(id_, 3, 2, adapter=adapter))
    plan, _ = advance(scheduler)
    assert plan.loads == (AdapterLoad(1, A.id), AdapterLoad(2, B.id))
    assert [row.adapter for row in plan.entering] == [1, 2, 1, 0]
    plan, _ = advance(scheduler)
    assert not plan.loads
    scheduler.add(make_request("again", 3, 2, adapter=B))
    plan, _ = advance(scheduler)
    assert not plan.loads  # it is still there


def test_a_request_waits_for_a_place_and_says_so() -> None:
    scheduler = make_scheduler(max_loras=1)
    first, second = make_request("x", 3, 3, adapter=A), make_request("y", 3, 3, adapter=B)
    scheduler.add(first)
    scheduler.add(second)
    scheduler.add(make_request("z", 3, 3))
    scheduler.add(make_request("w", 3, 6, adapter=A))
    plan, _ = advance(scheduler)
    assert of_type(Waits, plan.events) == [Waits("y", "needs adapter 'b', all 1 slots are in use")]
    assert len(plan.rows) == 3  # those behind it, who lack nothing, pass
    assert (len(scheduler.waiting), scheduler.waiting.num_tokens) == (1, 3)
    while scheduler.requests.get("w"):
        plan, _ = advance(scheduler)
        assert not of_type(Waits, plan.events)  # it is told once
    scheduler.add(make_request("late", 3, 3, adapter=A))
    plan, _ = advance(scheduler)
    assert plan.loads == (AdapterLoad(1, B.id),)
    assert [row.adapter for row in plan.entering] == [1]
    assert second.metrics.waited_for == "needs adapter 'b', all 1 slots are in use"
    run_out(scheduler)


def run_out(scheduler: Scheduler, most: int = 200) -> None:
    for _ in range(most):
        if not scheduler.has_work():
            break
        advance(scheduler)
    assert not scheduler.has_work()
    scheduler.check()


def admitted(scheduler: Scheduler, now: float) -> list[str]:
    """Who is admitted by a step at ``now``."""
    plan = scheduler.plan(now)
    assert plan is not None
    scheduler.check()
    scheduler.apply(result_of(plan), now)
    return [event.request_id for event in of_type(Admitted, plan.events)]


@pytest.mark.parametrize("policy", ["fcfs", "fair", "priority"])
def test_who_keeps_coming_does_not_starve_an_adapter_without_a_place(policy: str) -> None:
    """Each time that one ends another comes, so that the only place is never free by itself."""
    scheduler = make_scheduler(max_loras=1, policy=policy, num_blocks=40)
    scheduler.add(make_request("a0", 3, 4, adapter=A))
    scheduler.add(make_request("b", 3, 4, adapter=B))
    seen: list[str] = []
    for second in range(40):
        scheduler.add(make_request(f"a{second + 1}", 3, 4, adapter=A))
        seen += admitted(scheduler, float(second))
        if "b" in seen:
            break
    assert ADAPTER_PATIENCE < second < ADAPTER_PATIENCE + 6
    passed = [name for name in seen if name != "b"]
    assert len(passed) == ADAPTER_PATIENCE + 2  # those that came within its patience, and the one that was there
    run_out(scheduler)


def test_patience_is_not_for_those_that_come_first_anyway() -> None:
    scheduler = make_scheduler(max_loras=1, policy="priority")
    scheduler.add(make_request("a", 3, 40, adapter=A))
    scheduler.add(make_request("b", 3, 4, adapter=B))
    assert admitted(scheduler, 0.0) == ["a"]
    for name, priority, adapter in (("urgent", -1, A), ("plain", 0, None), ("same", 0, A)):
        scheduler.add(make_request(name, 3, 4, adapter=adapter, priority=priority))
    assert admitted(scheduler, ADAPTER_PATIENCE + 1) == ["urgent", "plain"]
    run_out(scheduler)


def test_who_is_set_aside_can_be_aborted() -> None:
    scheduler = make_scheduler(max_loras=1, policy="fair")
    scheduler.add(make_request("a", 3, 4, adapter=A))
    for i in range(3):
        scheduler.add(make_request(f"b{i}", 3, 4, adapter=B, share_key=str(i)))
    assert admitted(scheduler, 0.0) == ["a"]
    for left in (2, 1, 0):
        scheduler.finish(f"b{2 - left}", "abort")
        scheduler.check()
        assert (len(scheduler.waiting), scheduler.waiting.num_tokens) == (left, 3 * left)
        assert (scheduler.waiting.longest_aside is None) == (left == 0)
    run_out(scheduler)


def test_blocks_are_not_shared_between_adapters() -> None:
    """Nor with requests without, nor with an adapter of the same name that was loaded again."""
    scheduler = make_scheduler(max_loras=4)
    prompt = list(range(100, 120))
    loaded_again = Adapter(9, A.name)
    cached = {}
    for id_, adapter in (("x", A), ("y", B), ("plain", None), ("new", loaded_again), ("x2", A), ("plain2", None)):
        request = make_request(id_, prompt, 1, adapter=adapter)
        scheduler.add(request)
        advance(scheduler)
        cached[id_] = request.metrics.num_cached_tokens
    assert cached == {"x": 0, "y": 0, "plain": 0, "new": 0, "x2": 16, "plain2": 16}


def test_a_callers_salt_cannot_reach_an_adapters_blocks() -> None:
    scheduler = make_scheduler(max_loras=1)
    prompt = list(range(100, 120))
    scheduler.add(make_request("x", prompt, 1, adapter=A, salt=b"s"))
    advance(scheduler)
    for id_, salt in (("s", b"s"), ("text", (A.salt + b"s").decode("latin-1").encode())):
        request = make_request(id_, prompt, 1, salt=salt)
        scheduler.add(request)
        advance(scheduler)
        assert request.metrics.num_cached_tokens == 0


def test_a_place_is_given_on_while_a_step_in_flight_still_reads_it() -> None:
    """The copy comes with the later step, and steps run in order."""
    scheduler = make_scheduler(max_loras=1, max_in_flight=2)
    scheduler.add(make_request("x", 3, 5, adapter=A))
    first = scheduler.plan()
    scheduler.finish("x", "abort")
    scheduler.add(make_request("y", 3, 5, adapter=B))
    second = scheduler.plan()
    scheduler.check()
    assert (first.loads, second.loads) == ((AdapterLoad(1, A.id),), (AdapterLoad(1, B.id),))
    assert scheduler.uses_adapter(A.id)  # by the step on its way
    scheduler.apply(result_of(first))
    assert not scheduler.uses_adapter(A.id)
    assert scheduler.uses_adapter(B.id)


def test_a_lost_device_gets_its_adapters_again() -> None:
    scheduler = make_scheduler(max_loras=1)
    scheduler.add(make_request("x", 3, 5, adapter=A))
    advance(scheduler)
    scheduler.fail_all()
    scheduler.check()
    scheduler.add(make_request("y", 3, 5, adapter=A))
    assert advance(scheduler)[0].loads == (AdapterLoad(1, A.id),)


@pytest.mark.parametrize("max_loras", [1, 2])
def test_a_preempted_request_gives_up_its_place(max_loras: int) -> None:
    scheduler = make_scheduler(num_blocks=6, max_loras=max_loras, block_size=4, max_model_len=20)
    for id_ in ("x", "y"):
        scheduler.add(make_request(id_, 8, 12, adapter=A))
    for _ in range(200):
        if not scheduler.has_work():
            break
        advance(scheduler)
    assert not scheduler.has_work()
    scheduler.batch.adapters.check([])
