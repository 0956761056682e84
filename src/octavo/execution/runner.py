"""Runs one step on one device: update the state, run the model, sample, report."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from octavo.core.plan import NewRow, RowStep, StepPlan, StepResult, TokenMasks
from octavo.execution.batch import BatchState
from octavo.execution.kv_cache import clear_unfilled
from octavo.execution.pooling import pool, with_vectors
from octavo.execution.prompt_scores import score_prompts
from octavo.execution.sampler import HostSample, Sampler
from octavo.execution.step_result import step_result
from octavo.kernels.forward_batch import KVLayer
from octavo.kernels.ops import Ops
from octavo.models.decoder import DecoderModel


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
    def run(self, plan: StepPlan, masks: Callable[[], TokenMasks]) -> StepResult:
        """Run ``plan``; afterwards the sampled tokens are part of the state.

        ``masks`` waits for the masks of the plan's masked rows; it is called when the model has run.
        """
        self.state.update(plan)
        for row in plan.entering:
            self._entered[row.slot] = row
            self._sampler.enter(row)
        if not self._ops.reads_contexts_only:
            clear_unfilled(self.kv_cache, plan.rows, self.state.block_size)
        batch = self.state.forward_batch(plan.rows, self.kv_cache)
        batch.attention = self._ops.plan_attention(batch)
        hidden = self.model(batch)
        scores = score_prompts(self.model, plan.rows, self._entered, hidden)
        sampling = [row for row in plan.rows if row.samples]
        if not sampling:
            return StepResult(plan.step, (), prompt_logprobs=scores)
        logits = self.model.logits(hidden[batch.logit_indices])
        sampled = self._sample(sampling, logits, masks() if plan.masked else None)
        result = step_result(plan, sampled, scores)
        return with_vectors(result, pool(plan.rows, self._entered, hidden))

    def _sample(self, rows: Sequence[RowStep], logits: Tensor, masks: TokenMasks | None) -> HostSample:
        """Choose the next token of each of ``rows`` from ``logits [S, V]``."""
        sampled = self._sampler.sample(logits, torch.tensor([row.slot for row in rows]), masks).to_host()
        self.state.append(rows, sampled.token_ids)
        return sampled
