"""Who gets how much of a step, who comes first, who waits and why, who is refused."""

from __future__ import annotations

import pytest

from helpers_core import advance, counts, make_request, make_scheduler, of_type, result_of
from octavo.core.plan import Admitted, Finished, Sampled, Waits
from octavo.core.scheduler import Stats
from octavo.errors import RequestError, UsageError


def test_a_request_runs_to_its_end() -> None:
    scheduler = make_scheduler()
    scheduler.add(make_request("a", 5, 3), now=1.0)
    plan, events = advance(scheduler)
    assert plan.events == (Admitted("a", plan.rows[0].slot, 0),)
    assert tuple(plan.entering[0].token_ids) == (1097,) * 5
    assert (plan.rows[0].start, plan.rows[0].num_tokens, len(plan.rows[0].new_blocks)) == (0, 5, 2)
    assert events == [Sampled("a", 7)]
    assert advance(scheduler)[0].rows[0].start == 5
    plan, events = advance(scheduler)
    assert plan.entering == ()
    assert events == [Sampled("a", 7), Finished("a", "length")]
    assert not scheduler.has_work()
    assert scheduler.plan() is None
    assert scheduler.stats() == Stats(0, 0, 100, 1, 100)


def test_a_long_prompt_is_computed_in_chunks_beside_those_that_run() -> None:
    scheduler = make_scheduler(max_num_batched_tokens=10, max_num_seqs=4)
    scheduler.add(make_request("a", 3, 20))
    scheduler.add(make_request("b", 25, 20))
    chunks = [counts(advance(scheduler)[0]) for _ in range(4)]
    assert chunks == [[3, 7], [1, 9], [1, 9], [1, 1]]


def test_only_the_last_chunk_samples() -> None:
    scheduler = make_scheduler(max_num_batched_tokens=8)
    scheduler.add(make_request("a", 20, 2))
    samples = [advance(scheduler)[0].rows[0].samples for _ in range(4)]
    assert samples == [False, False, True, True]


def test_each_running_request_gets_a_token_before_any_gets_more() -> None:
    scheduler = make_scheduler(max_num_batched_tokens=4, max_num_seqs=4, policy="priority")
    for name in "abc":
        scheduler.add(make_request(name, 1, 50))
    advance(scheduler)
    scheduler.add(make_request("long", 30, 2, priority=-1))
    plans = [advance(scheduler)[0] for _ in range(3)]
    assert counts(plans[0]) == [1, 1, 1, 1]
    assert counts(plans[1]) == [1, 1, 1, 1], "the urgent one comes first, but leaves one for each"
    assert plans[1].rows[0].slot == plans[0].entering[0].slot


def test_what_is_left_goes_to_the_first_in_order() -> None:
    scheduler = make_scheduler(max_num_batched_tokens=12, max_num_seqs=4)
    scheduler.add(make_request("a", 20))
    scheduler.add(make_request("b", 20))
    assert [counts(advance(scheduler)[0]) for _ in range(4)] == [[12], [8, 4], [1, 11], [1, 5]]


def test_the_budget_must_reach_for_all_rows() -> None:
    with pytest.raises(UsageError, match="max_num_batched_tokens=3 is less than max_num_seqs=4"):
        make_scheduler(max_num_batched_tokens=3, max_num_seqs=4)


def test_fcfs_admits_in_order_of_arrival_and_priority_by_urgency() -> None:
    for policy, order in (("fcfs", ["a", "b", "c"]), ("priority", ["b", "c", "a"])):
        scheduler = make_scheduler(policy=policy)
        for name, priority in (("a", 5), ("b", 1), ("c", 1)):
            scheduler.add(make_request(name, 3, priority=priority))
        plan = scheduler.plan()
        assert plan is not None
        assert [row.request_id for row in plan.entering] == order


def test_one_who_does_not_fit_is_not_overtaken() -> None:
    scheduler = make_scheduler(num_blocks=10)
    scheduler.add(make_request("a", 20, 20))
    advance(scheduler)
    scheduler.add(make_request("big", 30, 2))
    scheduler.add(make_request("small", 1, 2))
    plan, _ = advance(scheduler)
    assert plan.entering == ()
    assert of_type(Waits, plan.events)[0].request_id == "big"


# ---------------------------------------------------------------- why a request waits


def wait_reason(scheduler: object) -> str:
    plan, _ = advance(scheduler)  # type: ignore[arg-type]
    (wait,) = of_type(Waits, plan.events)
    return f"{wait.request_id}: {wait.reason}"


def test_reason_blocks() -> None:
    scheduler = make_scheduler(num_blocks=10)
    scheduler.add(make_request("a", 20, 20))
    scheduler.add(make_request("b", 30, 2))
    assert wait_reason(scheduler) == "b: needs 8 blocks, 5 free"


def test_reason_blocks_less_the_cached_ones() -> None:
    scheduler = make_scheduler(num_blocks=10)
    scheduler.add(make_request("a", [1] * 20, 20))
    scheduler.add(make_request("b", 4, 4))
    scheduler.add(make_request("c", [1] * 20 + [2] * 20, 1))
    assert wait_reason(scheduler) == "c: needs 5 blocks, 4 free"


def test_reason_rows() -> None:
    scheduler = make_scheduler(max_num_seqs=2)
    for name in "abc":
        scheduler.add(make_request(name, 2))
    assert wait_reason(scheduler) == "c: all 2 rows of the batch are taken"


def test_reason_tokens() -> None:
    scheduler = make_scheduler(max_num_batched_tokens=8)
    scheduler.add(make_request("a", 8))
    scheduler.add(make_request("b", 2))
    assert wait_reason(scheduler) == "b: the step's 8 tokens are spent"


def test_reason_preemption() -> None:
    scheduler = make_scheduler(num_blocks=4)
    scheduler.add(make_request("a", 8, 8))
    scheduler.add(make_request("b", 8, 8))
    advance(scheduler)
    assert wait_reason(scheduler) == "b: the requests that run are short of blocks"


def test_the_reason_stays_with_the_request() -> None:
    scheduler = make_scheduler(max_num_seqs=1)
    first, second, third = (make_request(name, 2, 2) for name in "abc")
    scheduler.add(first)
    scheduler.add(second)
    scheduler.add(third)
    while scheduler.has_work():
        advance(scheduler)
    assert first.metrics.waited_for == ""
    assert second.metrics.waited_for == "all 1 rows of the batch are taken"
    assert third.metrics.waited_for == "all 1 rows of the batch are taken"


def test_one_behind_the_head_knows_for_whom_it_waited() -> None:
    scheduler = make_scheduler(num_blocks=10)
    scheduler.add(make_request("a", 20, 2))
    head, behind = make_request("head", 30, 2), make_request("behind", 1, 2)
    scheduler.add(head)
    scheduler.add(behind)
    while scheduler.has_work():
        advance(scheduler)
    assert behind.metrics.waited_for == "stood behind head: needs 8 blocks, 4 free"
    late = make_request("late", 1, 1)
    scheduler.add(late)
    advance(scheduler)
    assert late.metrics.waited_for == ""


def test_the_first_reason_survives_a_preemption() -> None:
    scheduler = make_scheduler(num_blocks=5)
    request = make_request("b", 8, 8)
    scheduler.add(make_request("a", 8, 8))
    scheduler.add(request)
    while scheduler.has_work():
        advance(scheduler)
    assert request.metrics.num_preemptions == 1
    assert request.metrics.waited_for == ""


def test_room_is_kept_for_those_that_run() -> None:
    scheduler = make_scheduler(num_blocks=200, max_num_batched_tokens=1000)
    scheduler.add(make_request("a", 4, 20))
    scheduler.add(make_request("b", 4 * 199, 4))
    assert wait_reason(scheduler) == "b: needs 199 blocks, 197 free"
    scheduler.finish("a", "abort")
    plan, _ = advance(scheduler)
    assert [row.request_id for row in plan.entering] == ["b"], "alone it may have all"


# ---------------------------------------------------------------- the door


def test_the_limit_is_the_models_or_the_pools() -> None:
    assert make_scheduler(num_blocks=10, max_model_len=30).token_limit == 30
    assert make_scheduler(num_blocks=10, max_model_len=300).token_limit == 41


def test_a_request_as_long_as_the_pool_runs_to_its_end_and_one_more_token_is_refused() -> None:
    scheduler = make_scheduler(num_blocks=3)
    with pytest.raises(RequestError, match="need 14 tokens, of 13; max_tokens from 1 to 8 is accepted"):
        scheduler.add(make_request("a", 5, 9))
    with pytest.raises(RequestError, match="the prompt has 13 tokens; at most 12 are accepted"):
        scheduler.add(make_request("a", 13, 1))
    assert not scheduler.has_work()
    scheduler.add(make_request("a", 5, 8))
    ends = [end for _ in range(8) for end in of_type(Finished, advance(scheduler)[1])]
    assert ends == [Finished("a", "length")]


def test_an_id_is_taken_until_its_request_is_over() -> None:
    scheduler = make_scheduler()
    scheduler.add(make_request("a", 3, 1))
    with pytest.raises(RequestError, match="unfinished request 'a' already"):
        scheduler.add(make_request("a", 3, 1))
    advance(scheduler)
    scheduler.add(make_request("a", 3, 1))


def test_times_are_noted_as_they_are_given() -> None:
    scheduler = make_scheduler()
    request = make_request("a", 5, 2)
    scheduler.add(request, now=1.0)
    for now in (2.0, 4.0):
        plan = scheduler.plan(now)
        assert plan is not None
        scheduler.apply(result_of(plan), now + 1.0)
    metrics = request.metrics
    assert (metrics.arrival_time, metrics.first_scheduled_time) == (1.0, 2.0)
    assert (metrics.first_token_time, metrics.finished_time) == (3.0, 5.0)
    assert metrics.num_blocks == 2
