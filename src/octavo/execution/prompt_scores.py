"""Log-probabilities of prompt tokens, for the requests that ask for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from octavo.core.plan import NewRow, RowStep
from octavo.execution.logprobs import prompt_logprobs
from octavo.execution.step_result import as_output
from octavo.models.decoder import DecoderModel
from octavo.outputs import Logprobs

Scores = dict[int, tuple[int, tuple[Logprobs, ...]]]
"""Slot -> the first scored position, and the log-probabilities of the tokens from there on."""

LOGITS_ROWS = 128
"""Prompt tokens that are scored at a time: each takes a row of logits as wide as the vocabulary."""


def score_prompts(
    model: DecoderModel, rows: Sequence[RowStep], entered: Mapping[int, NewRow], hidden: Tensor
) -> Scores:
    """Scores of the prompt tokens that follow the ones computed in this step, whose states are ``hidden [T, H]``.

    ``entered`` are the requests by slot. Rows that did not ask cost nothing.
    """
    scores: Scores = {}
    offset = 0
    for row in rows:
        request = entered[row.slot]
        k = request.params.prompt_logprobs
        end = min(row.start + row.num_tokens, request.num_prompt_tokens - 1)
        if k is not None and end > row.start:
            targets = request.token_ids[row.start + 1 : end + 1]
            own = hidden[offset : offset + len(targets)]
            scores[row.slot] = (row.start + 1, _score(model, own, targets, k))
        offset += row.num_tokens
    return scores


def scores_wanted(rows: Sequence[RowStep], entered: Mapping[int, NewRow]) -> bool:
    """Whether ``score_prompts`` would find anything to do."""
    requests = ((row, entered[row.slot]) for row in rows)
    return any(r.params.prompt_logprobs is not None and row.start < r.num_prompt_tokens - 1 for row, r in requests)


def _score(model: DecoderModel, hidden: Tensor, targets: Sequence[int], k: int) -> tuple[Logprobs, ...]:
    found: list[Logprobs] = []
    target_ids = torch.tensor(targets, device=hidden.device)
    for part, ids in zip(hidden.split(LOGITS_ROWS), target_ids.split(LOGITS_ROWS), strict=True):
        found += map(as_output, prompt_logprobs(model.lm_head.ops, model.logits(part), ids, k))
    return tuple(found)
