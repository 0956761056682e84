"""Short ways to make requests and results for tests of the core."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from octavo.core.blocks import BlockPool, chain_hashes
from octavo.core.plan import Event, StepPlan, StepResult
from octavo.core.request import Request, token_array
from octavo.core.scheduler import Scheduler
from octavo.sampling_params import SamplingParams


def make_scheduler(num_blocks: int = 100, block_size: int = 4, caching: bool = True, **options: Any) -> Scheduler:
    options = {
        "max_model_len": 1000,
        "max_num_seqs": 8,
        "max_num_batched_tokens": 64,
        "max_in_flight": 1,
    } | options
    return Scheduler(BlockPool(num_blocks, block_size, caching), **options)


def chain_hash(parent: bytes, token_ids: Sequence[int]) -> bytes:
    """The hash of a block of these tokens."""
    return chain_hashes(parent, token_array(token_ids), len(token_ids))[0]


def make_request(id_: str, prompt: int | list[int], max_tokens: int = 4, **options: Any) -> Request:
    """A request with the given prompt, or with one of so many tokens that no other request's begins with."""
    tokens = prompt if isinstance(prompt, list) else [1000 + sum(map(ord, id_))] * prompt
    params = options.pop("params", SamplingParams())
    return Request(id_, token_array(tokens), params, max_tokens, **options)


def result_of(plan: StepPlan, token: int = 7, **options: Any) -> StepResult:
    """What comes back for ``plan`` when every row samples ``token``."""
    return StepResult(plan.step, (token,) * plan.num_sampled, **options)


def advance(scheduler: Scheduler, token: int = 7) -> tuple[StepPlan, list[Event]]:
    """Plan a step, let it come back at once, and check."""
    plan = scheduler.plan()
    assert plan is not None
    events = scheduler.apply(result_of(plan, token))
    scheduler.check()
    return plan, events


def counts(plan: StepPlan) -> list[int]:
    return [row.num_tokens for row in plan.rows]


def of_type(kind: type, events: Any) -> list[Any]:
    return [event for event in events if isinstance(event, kind)]
