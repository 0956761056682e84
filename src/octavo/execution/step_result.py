"""What came back from the device, as the core and the caller want it."""

from __future__ import annotations

import numpy as np

from octavo.core.plan import StepPlan, StepResult
from octavo.execution.logprobs import TokenLogprobs
from octavo.execution.sampler import HostSample
from octavo.outputs import Logprob, Logprobs

NO_TOKEN = "the logits have no finite maximum: the model overflowed"


def step_result(plan: StepPlan, sampled: HostSample, scores: dict[int, tuple[int, tuple[Logprobs, ...]]]) -> StepResult:
    """The result of ``plan``; ``sampled`` are those of its rows that sample."""
    asked = any(entry is not None for entry in sampled.logprobs)
    errors: dict[int, str] = {}
    refused: tuple[int, ...] = ()
    if sampled.bad.any():
        sampling = np.array([row.slot for row in plan.rows if row.samples])
        errors = dict.fromkeys(sampling[sampled.bad & ~sampled.banned].tolist(), NO_TOKEN)
        refused = tuple(sampling[sampled.banned].tolist())
    logprobs = tuple(entry and as_output(entry) for entry in sampled.logprobs) if asked else ()
    return StepResult(plan.step, tuple(sampled.token_ids.tolist()), logprobs, scores, errors, refused=refused)


def as_output(entry: TokenLogprobs) -> Logprobs:
    """The likeliest tokens, ranked from 1, and the chosen one, which may be among them."""
    ranked = enumerate(zip(entry.top_ids, entry.top_logprobs, strict=True), start=1)
    found = {token_id: Logprob(logprob, rank) for rank, (token_id, logprob) in ranked}
    return {entry.token_id: Logprob(entry.logprob, entry.rank)} | found
