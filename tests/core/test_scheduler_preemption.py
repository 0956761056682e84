"""When blocks run short: who loses them, what it is told, how it comes back."""

from __future__ import annotations

from helpers_core import advance, make_request, make_scheduler, of_type, result_of
from octavo.core.plan import Admitted, Finished, Preempted, Sampled, StepPlan, Waits
from octavo.core.scheduler import Scheduler


def crowded(policy: str = "fcfs", priorities: tuple[int, ...] = (0, 0, 0), **options: int) -> Scheduler:
    """Three requests that fill six blocks of four, and each need one more for their ninth token."""
    scheduler = make_scheduler(num_blocks=6, policy=policy, **options)
    for name, priority in zip("abc", priorities, strict=True):
        scheduler.add(make_request(name, 8, 8, priority=priority))
    return scheduler


def must_plan(scheduler: Scheduler) -> StepPlan:
    plan = scheduler.plan()
    assert plan is not None
    scheduler.check()
    return plan


def test_the_youngest_is_preempted() -> None:
    scheduler = crowded()
    advance(scheduler)
    plan, _ = advance(scheduler)
    assert of_type(Preempted, plan.events) == [Preempted("c", "a needs 1 more blocks, 0 free")]
    assert [r.id for r in scheduler.running] == ["a", "b"]


def test_the_least_urgent_is_preempted() -> None:
    scheduler = crowded("priority", (2, 0, 1))
    advance(scheduler)
    plan, _ = advance(scheduler)
    assert [event.request_id for event in of_type(Preempted, plan.events)] == ["a"]


def test_the_last_gives_way_itself_rather_than_those_before_it() -> None:
    scheduler = make_scheduler(num_blocks=4)
    scheduler.add(make_request("a", 5, 3))
    scheduler.add(make_request("b", 8, 3))
    advance(scheduler)
    plan, _ = advance(scheduler)
    assert of_type(Preempted, plan.events) == [Preempted("b", "b needs 1 more blocks, 0 free")]
    assert len(plan.rows) == 1


def test_a_preempted_request_comes_back_as_a_new_row_with_all_its_tokens() -> None:
    scheduler = crowded()
    seen: list[object] = []
    outputs: dict[str, int] = {"a": 0, "b": 0, "c": 0}
    while scheduler.has_work():
        plan, events = advance(scheduler)
        seen += [row for row in plan.entering if row.request_id == "c"]
        for event in of_type(Sampled, events):
            outputs[event.request_id] += 1
    assert outputs == {"a": 8, "b": 8, "c": 8}
    assert len(seen) == 2
    first, second = seen
    assert list(second.token_ids) == [*first.token_ids, 7]  # type: ignore[attr-defined]
    assert second.num_prompt_tokens == 8  # type: ignore[attr-defined]


def test_it_finds_what_is_left_of_its_blocks_in_the_cache() -> None:
    scheduler = make_scheduler(num_blocks=7)
    scheduler.add(make_request("a", 12, 2))
    scheduler.add(make_request("b", 16, 4))
    advance(scheduler)
    plan, _ = advance(scheduler)
    assert of_type(Preempted, plan.events)
    plan, _ = advance(scheduler)
    assert of_type(Admitted, plan.events) == [Admitted("b", plan.rows[0].slot, 12)]


def test_no_one_is_admitted_in_the_step_of_a_preemption() -> None:
    scheduler = crowded()
    advance(scheduler)
    scheduler.add(make_request("tiny", 1, 1))
    plan, _ = advance(scheduler)
    assert plan.entering == ()


def test_no_more_are_preempted_than_needed_while_their_blocks_are_in_limbo() -> None:
    scheduler = crowded(max_in_flight=2)
    first = must_plan(scheduler)
    assert scheduler.plan() is None, "c's blocks are in limbo: a and b wait for them"
    assert [r.id for r in scheduler.running] == ["a", "b"]
    events = scheduler.apply(result_of(first))
    assert of_type(Preempted, events) == [Preempted("c", "a needs 1 more blocks, 0 free")]
    plan = must_plan(scheduler)
    assert len(plan.rows) == 2
    assert of_type(Preempted, plan.events) == []


def test_one_who_waits_for_limbo_is_not_robbed_by_those_behind() -> None:
    """a needs two blocks; one is free, two are in limbo. b, which needs one, must not take the free one."""
    scheduler = make_scheduler(
        num_blocks=9,
        block_size=2,
        max_in_flight=2,
        max_num_batched_tokens=6,
        max_num_seqs=4,
        policy="priority",
    )
    scheduler.add(make_request("b", 2, 9, priority=2))
    scheduler.add(make_request("c", 1, 9, priority=3))
    first = must_plan(scheduler)
    scheduler.add(make_request("a", 12, 2, priority=1))
    second = must_plan(scheduler)
    assert [row.num_tokens for row in second.rows] == [1, 1, 4]
    scheduler.apply(result_of(first))
    third = must_plan(scheduler)
    scheduler.apply(result_of(second))
    scheduler.finish("c", "abort")
    assert (scheduler.pool.num_free, scheduler.in_flight.num_blocks_coming()) == (1, 2)
    assert scheduler.plan() is None
    scheduler.add(make_request("new", 1, 1))
    assert scheduler.plan() is None
    scheduler.apply(result_of(third))
    assert [len(row.new_blocks) for row in must_plan(scheduler).rows] == [2, 1]


def test_a_late_token_reaches_a_preempted_request() -> None:
    scheduler = crowded(max_in_flight=2)
    first = must_plan(scheduler)
    scheduler.plan()
    events = scheduler.apply(result_of(first))
    assert [event.request_id for event in of_type(Sampled, events)] == ["a", "b", "c"]
    assert scheduler.requests["c"].tokens[-1] == 7
    scheduler.check()


def test_a_late_token_may_end_a_preempted_request() -> None:
    scheduler = crowded(max_in_flight=2)
    scheduler.requests["c"].eos_token_ids = (7,)
    first = must_plan(scheduler)
    scheduler.plan()
    events = scheduler.apply(result_of(first))
    kinds = [type(event) for event in events if event.request_id == "c"]
    assert kinds == [Preempted, Sampled, Finished], "in the order in which it happened"
    assert not scheduler.waiting.first()
    scheduler.check()


def test_a_preempted_request_waits_for_its_last_token() -> None:
    scheduler = make_scheduler(num_blocks=5, max_in_flight=3)
    scheduler.add(make_request("a", 7, 9))
    scheduler.add(make_request("b", 7, 9))
    plans = [must_plan(scheduler) for _ in range(3)]
    assert of_type(Preempted, plans[2].events)
    scheduler.apply(result_of(plans[0]))
    plan = must_plan(scheduler)
    assert of_type(Waits, plan.events) == [Waits("b", "its last token is still on its way")]


def test_abort_of_a_preempted_request() -> None:
    scheduler = crowded(max_in_flight=2)
    first = must_plan(scheduler)
    scheduler.plan()
    assert scheduler.finish("c", "abort") == Finished("c", "abort")
    scheduler.check()
    events = scheduler.apply(result_of(first))
    assert [event for event in events if event.request_id == "c"] == [], "its end was the last word"
    scheduler.check()
