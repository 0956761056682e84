"""Runs one step on one device: update the state, run the model, sample, report."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from octavo.core.plan import NewRow, RowStep, StepPlan, StepResult, TokenMasks
from octavo.execution.adapters import AdapterStore
from octavo.execution.batch import BatchState
from octavo.execution.decode_steps import DecodeSteps
from octavo.execution.kv_cache import clear_unfilled
from octavo.execution.pooling import pool, pools, with_vectors
from octavo.execution.prompt_scores import score_prompts, scores_wanted
from octavo.execution.sampler import HostSample, Sampler
from octavo.execution.step_result import step_result
from octavo.kernels.forward_batch import KVLayer
from octavo.kernels.ops import Ops
from octavo.models.decoder import DecoderModel


class Runner:
    """The model, its KV cache and the state of the batch, on one device. Steps are run in the order of their plans."""

    def __init__(
        self,
        model: DecoderModel,
        ops: Ops,
        kv_cache: Sequence[KVLayer],
        state: BatchState,
        sampler: Sampler,
        adapters: AdapterStore | None = None,
    ) -> None:
        """``adapters``: of a model that was built with room for them."""
        self.model = model
        self.kv_cache = kv_cache
        self.state = state
        self.adapters = adapters
        self._ops = ops
        self._sampler = sampler
        self._decode = DecodeSteps(model, ops)
        self._entered: dict[int, NewRow] = {}
        self._clears_blocks = not ops.ignores_nan_beyond_context(kv_cache, model.config.num_heads, model.dtype)

    @torch.inference_mode()
    def run(self, plan: StepPlan, masks: Callable[[], TokenMasks]) -> StepResult:
        """Run ``plan``; afterwards the sampled tokens are part of the state.

        ``masks`` waits for the masks of the plan's masked rows; it is called when the model has run.
        """
        if self.adapters is not None:
            self.adapters.load(plan.loads)
        self.state.update(plan)
        for row in plan.entering:
            self._entered[row.slot] = row
            self._sampler.enter(row)
        if self._clears_blocks:
            clear_unfilled(self.kv_cache, plan.rows, self.state.block_size)
        batch = self.state.forward_batch(plan.rows, self.kv_cache)
        batch.attention = self._ops.plan_attention(batch)
        if self.adapters is not None and (numbers := self.state.adapters_of(plan.rows)) is not None:
            batch.lora = self._ops.plan_lora(numbers, self.adapters.max_loras)
        if self._only_decodes(plan):
            logits = self._decode.logits(batch)
            return step_result(plan, self._sample(plan.rows, logits, masks() if plan.masked else None), {})
        hidden = self.model(batch)
        scores = score_prompts(self.model, plan.rows, self._entered, hidden)
        sampling = [row for row in plan.rows if row.samples]
        if not sampling:
            return StepResult(plan.step, (), prompt_logprobs=scores)
        logits = self.model.raw_logits(hidden[batch.logit_indices])
        sampled = self._sample(sampling, logits, masks() if plan.masked else None)
        result = step_result(plan, sampled, scores)
        return with_vectors(result, pool(plan.rows, self._entered, hidden))

    def _only_decodes(self, plan: StepPlan) -> bool:
        """Whether each row computes one token, samples, and wants nothing else."""
        rows = plan.rows
        return (
            bool(rows)
            and all(row.num_tokens == 1 and row.samples for row in rows)
            and not pools(rows, self._entered)
            and not scores_wanted(rows, self._entered)
        )

    def _sample(self, rows: Sequence[RowStep], logits: Tensor, masks: TokenMasks | None) -> HostSample:
        """Choose the next token of each of ``rows`` from ``logits [S, V]`` in the model's dtype or float32."""
        slots = np.array([row.slot for row in rows])
        if masks or self._sampler.needs_edits(slots):
            sampled = self._sampler.sample(logits.to(torch.float32, copy=True), torch.from_numpy(slots), masks)
        else:
            sampled = self._sampler.sample_plain(logits, slots)
        on_host = sampled.to_host()
        self.state.append(rows, on_host.token_ids)
        return on_host
