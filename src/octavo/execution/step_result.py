"""What came back from the device, as the core and the caller want it."""

from __future__ import annotations

from collections.abc import Sequence

from octavo.core.plan import RowStep, StepResult
from octavo.execution.logprobs import TokenLogprobs
from octavo.execution.sampler import HostSample
from octavo.outputs import Logprob, Logprobs

NO_TOKEN = "the logits have no finite maximum: the model overflowed, or the request's options ban every token"


def step_result(
    step: int,
    rows: Sequence[RowStep],
    sampled: HostSample,
    scores: dict[int, tuple[int, tuple[Logprobs, ...]]],
) -> StepResult:
    """The result of ``step`` with these ``rows``, those of ``sampled`` being the ones that sample."""
    asked = any(entry is not None for entry in sampled.logprobs)
    errors = {}
    if sampled.bad.any():
        sampling = [row for row in rows if row.samples]
        errors = {row.slot: NO_TOKEN for row, bad in zip(sampling, sampled.bad, strict=True) if bad}
    logprobs = tuple(entry and as_output(entry) for entry in sampled.logprobs) if asked else ()
    return StepResult(step, tuple(sampled.token_ids.tolist()), logprobs, scores, errors)


def as_output(entry: TokenLogprobs) -> Logprobs:
    """The likeliest tokens, ranked from 1, and the chosen one, which may be among them."""
    ranked = enumerate(zip(entry.top_ids, entry.top_logprobs, strict=True), start=1)
    found = {token_id: Logprob(logprob, rank) for rank, (token_id, logprob) in ranked}
    return {entry.token_id: Logprob(entry.logprob, entry.rank)} | found
