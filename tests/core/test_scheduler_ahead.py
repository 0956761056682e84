"""Planning ahead of the device, and its consequences; ends of every kind."""

from __future__ import annotations

import pytest

from helpers_core import advance, make_request, make_scheduler, of_type, result_of
from octavo.core.plan import Finished, PromptScored, Sampled, StepPlan, StepResult, table_checksum
from octavo.core.scheduler import Scheduler
from octavo.outputs import Logprob
from octavo.sampling_params import SamplingParams
from octavo.structured_outputs import StructuredOutputs


def must_plan(scheduler: Scheduler) -> StepPlan:
    plan = scheduler.plan()
    assert plan is not None
    scheduler.check()
    return plan


def two_in_flight(*requests: object, **options: int) -> tuple[Scheduler, StepPlan, StepPlan]:
    scheduler = make_scheduler(max_in_flight=2, **options)
    for request in requests:
        scheduler.add(request)  # type: ignore[arg-type]
    return scheduler, must_plan(scheduler), must_plan(scheduler)


def test_a_step_is_planned_from_counts_before_the_tokens_are_known() -> None:
    scheduler, first, second = two_in_flight(make_request("a", 5))
    assert (first.rows[0].start, first.rows[0].num_tokens) == (0, 5)
    assert (second.rows[0].start, second.rows[0].num_tokens) == (5, 1)
    assert second.rows[0].samples
    assert scheduler.num_in_flight == 2
    assert scheduler.plan() is None, "two are in flight"


def test_steps_come_back_in_their_order() -> None:
    scheduler, _, second = two_in_flight(make_request("a", 5))
    with pytest.raises(AssertionError, match="step 1 came back, 0 was expected"):
        scheduler.apply(result_of(second))
    with pytest.raises(AssertionError, match="none was in flight"):
        make_scheduler().apply(StepResult(0, ()))


def test_the_token_after_a_late_stop_is_dropped() -> None:
    scheduler, first, second = two_in_flight(make_request("a", 5, eos_token_ids=(7,)))
    assert scheduler.apply(result_of(first, 7)) == [Sampled("a", 7), Finished("a", "stop")]
    assert scheduler.has_work(), "a step is still in flight"
    assert scheduler.apply(result_of(second, 8)) == []
    assert not scheduler.has_work()
    scheduler.check()


def test_no_step_is_planned_beyond_max_tokens() -> None:
    scheduler = make_scheduler(max_in_flight=2)
    scheduler.add(make_request("a", 5, 1))
    first = must_plan(scheduler)
    assert scheduler.plan() is None
    assert scheduler.apply(result_of(first)) == [Sampled("a", 7), Finished("a", "length")]


def test_a_request_with_a_grammar_is_planned_ahead_and_its_row_waits_for_a_mask_where_it_samples() -> None:
    form = SamplingParams(structured_outputs=StructuredOutputs(choice=["a"]))
    _, first, second = two_in_flight(
        make_request("grammar", 5, 3, params=form),
        make_request("plain", 5, 3),
        make_request("long", 60, 3, params=form),
    )
    slots = {new.request_id: new.slot for new in first.entering}
    assert first.masked == ((slots["grammar"], "grammar"),)
    assert second.masked == ((slots["grammar"], "grammar"), (slots["long"], "long"))
    assert len(second.rows) == 3


def test_a_held_request_lets_others_pass_and_takes_its_place_when_it_is_released() -> None:
    scheduler = make_scheduler(max_num_seqs=2)
    scheduler.add(make_request("held", 5, held="compiling"))
    assert scheduler.plan() is None
    assert scheduler.has_work()
    for name in ("a", "b", "c"):
        scheduler.add(make_request(name, 5, 1 if name == "a" else 4))
    plan, _ = advance(scheduler)
    assert [new.request_id for new in plan.entering] == ["a", "b"]
    assert scheduler.stats().waiting == 2
    scheduler.release("held")
    scheduler.check()
    plan, _ = advance(scheduler)
    assert [new.request_id for new in plan.entering] == ["held"], "it came before c"
    assert scheduler.requests["held"].metrics.waited_for == "compiling"


def test_a_held_request_can_be_ended() -> None:
    scheduler = make_scheduler()
    scheduler.add(make_request("held", 5, held="compiling"))
    assert scheduler.finish("held", "abort") == Finished("held", "abort")
    scheduler.release("held")
    scheduler.check()
    assert not scheduler.has_work()
    scheduler.add(make_request("held", 5, held="compiling"))
    assert scheduler.fail_all() == [Finished("held", "error")]
    scheduler.check()


def test_blocks_and_slot_stay_in_limbo_until_the_last_step_is_back() -> None:
    scheduler, first, second = two_in_flight(make_request("a", 5, eos_token_ids=(7,)), num_blocks=3, max_num_seqs=1)
    scheduler.add(make_request("b", 5))
    scheduler.apply(result_of(first, 7))
    scheduler.check()
    assert scheduler.pool.num_free == 1
    assert scheduler.plan() is None
    assert scheduler.requests["b"].metrics.waited_for == "all 1 rows of the batch are taken"
    scheduler.apply(result_of(second))
    assert scheduler.pool.num_free == 3
    assert must_plan(scheduler).entering[0].request_id == "b"


def test_abort_while_waiting_while_running_and_twice() -> None:
    scheduler = make_scheduler(max_num_seqs=1)
    scheduler.add(make_request("a", 5))
    scheduler.add(make_request("b", 5))
    advance(scheduler)
    assert scheduler.finish("b", "abort") == Finished("b", "abort")
    scheduler.check()
    assert scheduler.finish("a", "abort") == Finished("a", "abort")
    scheduler.check()
    assert scheduler.finish("a", "abort") is None
    assert scheduler.finish("unknown", "abort") is None
    assert not scheduler.has_work()
    assert scheduler.pool.num_free == 100


def test_abort_in_flight_frees_when_the_step_is_back() -> None:
    scheduler, first, second = two_in_flight(make_request("a", 5))
    scheduler.finish("a", "abort")
    scheduler.check()
    assert scheduler.pool.num_free == 98
    assert scheduler.apply(result_of(first)) == []
    scheduler.check()
    assert scheduler.pool.num_free == 98
    assert scheduler.apply(result_of(second)) == []
    scheduler.check()
    assert scheduler.pool.num_free == 100


def test_an_id_may_be_used_again_while_the_old_step_is_in_flight() -> None:
    scheduler, first, second = two_in_flight(make_request("a", 5))
    scheduler.finish("a", "abort")
    scheduler.add(make_request("a", [1, 2], 2))
    assert scheduler.apply(result_of(first)) == []
    third = must_plan(scheduler)
    assert scheduler.apply(result_of(second)) == []
    assert scheduler.apply(result_of(third, 9)) == [Sampled("a", 9)]


def test_a_stop_string_ends_a_request_from_outside() -> None:
    scheduler = make_scheduler()
    request = make_request("a", 5)
    scheduler.add(request)
    advance(scheduler)
    assert scheduler.finish("a", "stop", 3.0, "###") == Finished("a", "stop", "###")
    assert request.metrics.finished_time == 3.0


def test_an_error_ends_its_request_and_no_other() -> None:
    scheduler, first, second = two_in_flight(make_request("a", 5), make_request("b", 5))
    slot = first.entering[0].slot
    events = scheduler.apply(result_of(first, errors={slot: "not a number"}))
    assert events == [Finished("a", "error", "not a number"), Sampled("b", 7)]
    scheduler.check()
    assert scheduler.apply(result_of(second, errors={slot: "not a number"})) == [Sampled("b", 7)]
    scheduler.check()
    assert list(scheduler.requests) == ["b"]


def test_what_its_options_refuse_ends_a_request_and_keeps_what_was_computed() -> None:
    scheduler = make_scheduler()
    scheduler.add(make_request("a", [9] * 20, params=SamplingParams(allowed_token_ids=[3]), bad_words=((3,),)))
    plan = must_plan(scheduler)
    (finished,) = scheduler.apply(result_of(plan, refused=(plan.rows[0].slot,)))
    assert finished == Finished("a", "refused", finished.stop_reason)
    assert finished.stop_reason.startswith("allowed_token_ids, bad_words: every token is banned")
    scheduler.check()
    scheduler.add(make_request("b", [9] * 20))
    (row,) = must_plan(scheduler).rows
    assert row.start == 16


def test_a_refusal_ends_its_request_and_no_other_while_the_next_step_runs() -> None:
    scheduler, first, second = two_in_flight(make_request("a", 5), make_request("b", 5))
    slot = first.entering[0].slot
    refused, told = scheduler.apply(result_of(first, refused=(slot,)))
    assert (refused.request_id, refused.reason, told) == ("a", "refused", Sampled("b", 7))
    scheduler.check()
    assert scheduler.apply(result_of(second, refused=(slot,))) == [Sampled("b", 7)]
    scheduler.check()
    assert list(scheduler.requests) == ["b"]


def test_an_error_in_a_chunk_that_samples_nothing_counts_too() -> None:
    scheduler = make_scheduler(max_num_batched_tokens=8)
    scheduler.add(make_request("a", 20))
    plan = must_plan(scheduler)
    assert scheduler.apply(result_of(plan, errors={plan.rows[0].slot: "bad"})) == [Finished("a", "error", "bad")]
    scheduler.check()


def test_after_fail_all_it_is_as_new() -> None:
    scheduler, *_ = two_in_flight(make_request("a", 5), make_request("b", 5), make_request("c", 5), max_num_seqs=2)
    events = scheduler.fail_all()
    assert events == [Finished(name, "error") for name in "abc"]
    scheduler.check()
    assert not scheduler.has_work()
    assert (scheduler.pool.num_free, scheduler.pool.num_cached) == (100, 0)
    scheduler.add(make_request("a", 5, 1))
    plan = must_plan(scheduler)
    assert plan.step == 2
    assert plan.rows[0].start == 0
    assert of_type(Finished, scheduler.apply(result_of(plan))) == [Finished("a", "length")]


def test_logprobs_go_with_their_tokens() -> None:
    scheduler = make_scheduler()
    scheduler.add(make_request("a", 5))
    scheduler.add(make_request("b", 6))
    plan = must_plan(scheduler)
    lps = {8: Logprob(-0.5, 1)}
    events = scheduler.apply(StepResult(plan.step, (7, 8), logprobs=(None, lps)))
    assert events == [Sampled("a", 7), Sampled("b", 8, lps)]


def test_scores_of_prompts_are_told_while_someone_listens() -> None:
    params = SamplingParams(prompt_logprobs=1)
    scheduler = make_scheduler(max_num_batched_tokens=8)
    scheduler.add(make_request("a", 12, params=params))
    plan = must_plan(scheduler)
    scores = (1, ({5: Logprob(-1.0, 2)},))
    result = result_of(plan, prompt_logprobs={plan.rows[0].slot: scores})
    assert scheduler.apply(result) == [PromptScored("a", *scores)]
    plan = must_plan(scheduler)
    scheduler.finish("a", "abort")
    assert scheduler.apply(result_of(plan, prompt_logprobs={plan.rows[0].slot: scores})) == []


def test_a_result_with_too_few_tokens_is_noticed() -> None:
    scheduler = make_scheduler()
    scheduler.add(make_request("a", 5))
    scheduler.add(make_request("b", 5))
    plan = must_plan(scheduler)
    with pytest.raises(ValueError, match="zip"):
        scheduler.apply(StepResult(plan.step, (7,)))


def test_the_checksum_is_of_the_rows_of_the_step() -> None:
    scheduler = make_scheduler(max_in_flight=2, debug=True)
    scheduler.add(make_request("idle", 5, 1))
    scheduler.add(make_request("a", 6, 3))
    first, second = must_plan(scheduler), must_plan(scheduler)
    tables = {row.slot: row.new_blocks for row in first.rows}
    rows = [(row.slot, row.num_tokens, tables[row.slot]) for row in first.rows]
    assert first.checksum == table_checksum(sorted(rows))
    (row,) = second.rows
    assert second.checksum == table_checksum([(row.slot, 7, tables[row.slot])])
    assert make_plan_without_debug().checksum is None


def make_plan_without_debug() -> StepPlan:
    scheduler = make_scheduler()
    scheduler.add(make_request("a", 5))
    return must_plan(scheduler)
