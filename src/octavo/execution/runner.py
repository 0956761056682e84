"""Runs one step on one device: update the state, run the model, sample, report."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from octavo.core.plan import NewRow, RowStep, StepPlan, StepResult
from octavo.execution.batch import BatchState
from octavo.execution.logprobs import TokenLogprobs, prompt_logprobs
from octavo.execution.sampler import HostSample, Sampler
from octavo.kernels.forward_batch import KVLayer
from octavo.kernels.ops import Ops
from octavo.models.decoder import DecoderModel
from octavo.outputs import Logprob, Logprobs

NO_TOKEN = "the logits have no finite maximum: the model overflowed, or the request's options ban every token"

PROMPT_LOGITS_ROWS = 128
"""Prompt tokens that are scored at a time: each takes a row of logits as wide as the vocabulary."""


class Runner:
    """The model, its KV cache and the state of the batch, on one device. Steps are run in the order of their plans."""

    def __init__(
        self, model: DecoderModel, ops: Ops, kv_cache: Sequence[KVLayer], state: BatchState, sampler: Sampler
    ) -> None:
        self.model = model
        self.kv_cache = kv_cache
        self.state = state
        self._ops = ops
        self._sampler = sampler
        self._entered: dict[int, NewRow] = {}

    @torch.inference_mode()
    def run(self, plan: StepPlan) -> StepResult:
        """Run ``plan``; afterwards the sampled tokens are part of the state."""
        self.state.update(plan)
        for row in plan.entering:
            self._enter(row)
        self._clear_unfilled(plan.rows)
        batch = self.state.forward_batch(plan.rows, self.kv_cache)
        batch.attention = self._ops.plan_attention(batch)
        hidden = self.model(batch)
        scores = self._score_prompts(plan.rows, hidden)
        sampling = [row for row in plan.rows if row.samples]
        if not sampling:
            return StepResult(plan.step, (), prompt_logprobs=scores)
        sampled = self._sample(sampling, hidden[batch.logit_indices])
        return _result(plan.step, sampling, sampled, scores)

    def _enter(self, row: NewRow) -> None:
        self._entered[row.slot] = row
        prompt, output = row.token_ids[: row.num_prompt_tokens], row.token_ids[row.num_prompt_tokens :]
        self._sampler.add(
            row.slot,
            row.params,
            prompt,
            output,
            seed=row.seed,
            eos_token_ids=row.eos_token_ids,
            bad_words_token_ids=row.bad_words,
        )

    def _clear_unfilled(self, rows: Sequence[RowStep]) -> None:
        """Zero the new blocks that this step does not fill.

        Attention reads whole blocks, and its mask cannot hide a NaN that a request left there which had failed.
        """
        unfilled = [r.new_blocks[-1] for r in rows if r.new_blocks and (r.start + r.num_tokens) % self.state.block_size]
        if unfilled:
            blocks = torch.tensor(unfilled, device=self.state.device)
            for layer in self.kv_cache:
                layer.keys.index_fill_(0, blocks, 0)
                layer.values.index_fill_(0, blocks, 0)

    def _sample(self, rows: Sequence[RowStep], hidden: Tensor) -> HostSample:
        """Choose the next token of each of ``rows``, whose last hidden states are ``hidden [S, H]``."""
        sampled = self._sampler.sample(self.model.logits(hidden), torch.tensor([row.slot for row in rows])).to_host()
        self.state.append(rows, sampled.token_ids)
        return sampled

    def _score_prompts(self, rows: Sequence[RowStep], hidden: Tensor) -> dict[int, tuple[int, tuple[Logprobs, ...]]]:
        """Log-probabilities of the prompt tokens that follow the computed ones, for the rows that asked for them."""
        scores = {}
        offset = 0
        for row in rows:
            entered = self._entered[row.slot]
            k = entered.params.prompt_logprobs
            end = min(row.start + row.num_tokens, entered.num_prompt_tokens - 1)
            if k is not None and end > row.start:
                targets = entered.token_ids[row.start + 1 : end + 1]
                own = hidden[offset : offset + len(targets)]
                scores[row.slot] = (row.start + 1, self._score(own, targets, k))
            offset += row.num_tokens
        return scores

    def _score(self, hidden: Tensor, targets: Sequence[int], k: int) -> tuple[Logprobs, ...]:
        found: list[Logprobs] = []
        target_ids = torch.tensor(targets, device=hidden.device)
        for part, ids in zip(hidden.split(PROMPT_LOGITS_ROWS), target_ids.split(PROMPT_LOGITS_ROWS), strict=True):
            found += map(_as_output, prompt_logprobs(self.model.logits(part), ids, k))
        return tuple(found)


def _result(
    step: int,
    rows: Sequence[RowStep],
    sampled: HostSample,
    scores: dict[int, tuple[int, tuple[Logprobs, ...]]],
) -> StepResult:
    asked = any(entry is not None for entry in sampled.logprobs)
    return StepResult(
        step,
        tuple(sampled.token_ids.tolist()),
        tuple(entry and _as_output(entry) for entry in sampled.logprobs) if asked else (),
        scores,
        {row.slot: NO_TOKEN for row, bad in zip(rows, sampled.bad, strict=True) if bad},
    )


def _as_output(entry: TokenLogprobs) -> Logprobs:
    """The likeliest tokens, ranked from 1, and the chosen one, which may be among them."""
    ranked = enumerate(zip(entry.top_ids, entry.top_logprobs, strict=True), start=1)
    found = {token_id: Logprob(logprob, rank) for rank, (token_id, logprob) in ranked}
    return {entry.token_id: Logprob(entry.logprob, entry.rank)} | found
