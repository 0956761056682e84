"""The prefix cache as the scheduler uses it."""

from __future__ import annotations

import pytest

from helpers_core import advance, counts, make_request, make_scheduler, result_of
from octavo.core.plan import StepResult
from octavo.core.scheduler import Scheduler
from octavo.sampling_params import SamplingParams

PROMPT = list(range(100, 112))  # three blocks of four


def warm(scheduler: Scheduler, prompt: list[int], **options: bytes) -> None:
    scheduler.add(make_request("warm", prompt, 1, **options))
    while scheduler.has_work():
        advance(scheduler)


def num_hits(scheduler: Scheduler, prompt: list[int], **options: object) -> int:
    """How many tokens of ``prompt`` the cache spares."""
    request = make_request("probe", prompt, 1, **options)
    scheduler.add(request)
    plan, _ = advance(scheduler)
    assert counts(plan) == [len(prompt) - request.metrics.num_cached_tokens]
    return request.metrics.num_cached_tokens


@pytest.mark.parametrize(
    ("probe", "hits"),
    [
        (PROMPT, 8),
        ([*PROMPT, 5], 12),
        ([*PROMPT[:11], 5], 8),
        (PROMPT[:9], 8),
        (PROMPT[:8], 4),
        (PROMPT[:4], 0),
        ([5, *PROMPT[1:]], 0),
        ([*PROMPT[:4], 5, *PROMPT[5:]], 4),
    ],
)
def test_full_blocks_of_an_equal_beginning_are_reused_but_never_the_last_token(probe: list[int], hits: int) -> None:
    scheduler = make_scheduler()
    warm(scheduler, PROMPT)
    assert num_hits(scheduler, probe) == hits


def test_a_fully_cached_prompt_computes_its_last_block_in_a_block_of_its_own() -> None:
    scheduler = make_scheduler()
    warm(scheduler, PROMPT)
    known = scheduler.pool.lookup(make_request("x", PROMPT).hashes(3, 4))
    scheduler.add(make_request("again", PROMPT, 2))
    plan, _ = advance(scheduler)
    assert plan.entering[0].block_ids == tuple(known[:2])
    assert plan.rows[0].start == 8
    assert plan.rows[0].new_blocks[0] not in known


@pytest.mark.parametrize("block_size", [1, 2, 3, 16])
def test_block_sizes(block_size: int) -> None:
    scheduler = make_scheduler(block_size=block_size)
    warm(scheduler, PROMPT)
    assert num_hits(scheduler, PROMPT) == 11 // block_size * block_size


def test_output_is_cached_too() -> None:
    scheduler = make_scheduler()
    scheduler.add(make_request("a", [1, 2, 3], 6))
    while scheduler.has_work():
        advance(scheduler, token=7)
    assert num_hits(scheduler, [1, 2, 3, 7, 7, 7, 7, 7, 8]) == 8


def test_salts_keep_tenants_apart() -> None:
    scheduler = make_scheduler()
    warm(scheduler, PROMPT, salt=b"mine")
    assert num_hits(scheduler, PROMPT, salt=b"yours") == 0
    assert num_hits(scheduler, PROMPT, salt=b"mine") == 8


def test_without_caching_all_is_computed() -> None:
    scheduler = make_scheduler(caching=False)
    warm(scheduler, PROMPT)
    assert num_hits(scheduler, PROMPT) == 0


def test_prompts_to_be_scored_are_computed_whole() -> None:
    scheduler = make_scheduler()
    warm(scheduler, PROMPT)
    assert num_hits(scheduler, PROMPT, params=SamplingParams(prompt_logprobs=1)) == 0


def test_equal_prompts_admitted_in_one_step_share_their_blocks() -> None:
    scheduler = make_scheduler()
    scheduler.add(make_request("a", PROMPT))
    scheduler.add(make_request("b", PROMPT))
    plan, _ = advance(scheduler)
    assert counts(plan) == [12, 4]
    assert plan.entering[1].block_ids == plan.rows[0].new_blocks[:2]


def test_only_what_is_computed_is_shared() -> None:
    scheduler = make_scheduler(max_num_batched_tokens=9, max_num_seqs=2)
    scheduler.add(make_request("a", PROMPT))
    scheduler.add(make_request("b", PROMPT))
    advance(scheduler)
    plan, _ = advance(scheduler)
    assert counts(plan) == [3, 4], "a's second chunk completes nothing that b could not have from the first"


def test_a_block_is_known_only_once_its_tokens_have_arrived() -> None:
    scheduler = make_scheduler(max_in_flight=2)
    scheduler.add(make_request("a", [1, 2, 3], 9))
    first, second = scheduler.plan(), scheduler.plan()
    assert first is not None
    assert second is not None
    assert scheduler.pool.num_cached == 0, "the fourth token is computed in step 2, but its value is not known"
    scheduler.check()
    scheduler.apply(result_of(first))
    assert scheduler.pool.num_cached == 1
    scheduler.apply(result_of(second))
    scheduler.check()


def test_what_a_failed_request_computed_is_not_found_by_the_next() -> None:
    scheduler = make_scheduler()
    scheduler.add(make_request("a", PROMPT))
    plan = scheduler.plan()
    assert plan is not None
    scheduler.apply(StepResult(plan.step, (0,), errors={plan.rows[0].slot: "NaN"}))
    assert num_hits(scheduler, PROMPT) == 0


def test_nor_if_it_was_aborted_before_its_failure_was_known() -> None:
    scheduler = make_scheduler()
    scheduler.add(make_request("a", PROMPT))
    plan = scheduler.plan()
    assert plan is not None
    scheduler.finish("a", "abort")
    assert scheduler.apply(StepResult(plan.step, (0,), errors={plan.rows[0].slot: "NaN"})) == []
    assert num_hits(scheduler, PROMPT) == 0


def test_cached_blocks_count_as_room_once() -> None:
    """Blocks that are free and cached cannot both be found and be given away."""
    scheduler = make_scheduler(num_blocks=4)
    warm(scheduler, PROMPT)
    scheduler.add(make_request("other", 4, 1))
    scheduler.add(make_request("again", [*PROMPT, 5], 1))
    plan, _ = advance(scheduler)
    assert [row.request_id for row in plan.entering] == ["other"]
    assert num_hits_of_next(scheduler) == 12


def num_hits_of_next(scheduler: Scheduler) -> int:
    plan, _ = advance(scheduler)
    return plan.rows[0].start
