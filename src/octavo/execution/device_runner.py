"""Runs steps on a GPU without waiting for them: the tokens of a step are fetched while the next one runs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from octavo.core.plan import NewRow, RowStep, StepPlan, StepResult
from octavo.execution.current import current
from octavo.execution.device_state import DeviceState
from octavo.execution.fetch import Fetch
from octavo.execution.graphs import DecodeGraph, DecodeGraphs, prepare
from octavo.execution.kv_cache import clear_unfilled
from octavo.execution.prompt_scores import Scores, score_prompts
from octavo.execution.sampler import SampledTokens, Sampler
from octavo.execution.step_input import Rows, Shape, Staging, StepInput
from octavo.execution.step_result import step_result
from octavo.execution.transfer import to_device
from octavo.kernels.forward_batch import KVLayer
from octavo.kernels.ops import Ops
from octavo.models.decoder import DecoderModel


class PendingStep:
    """A step on its way. It may be asked for its result long after the next ones were launched."""

    def __init__(self, step: int, rows: Sequence[RowStep], sampled: Fetch | None, scores: Scores) -> None:
        self._step, self._rows, self._sampled, self._scores = step, rows, sampled, scores

    def result(self) -> StepResult:
        """Wait for the step, and for no later one."""
        if self._sampled is None:
            return StepResult(self._step, (), prompt_logprobs=self._scores)
        return step_result(self._step, self._rows, self._sampled.wait(), self._scores)


class DeviceRunner:
    """The model, its KV cache and the state of the batch, on one GPU. Launches steps in the order of their plans."""

    def __init__(
        self,
        model: DecoderModel,
        ops: Ops,
        kv_cache: Sequence[KVLayer],
        state: DeviceState,
        sampler: Sampler,
        graphs: DecodeGraphs | None,
    ) -> None:
        """Without ``graphs`` every step launches its kernels one by one."""
        self.model, self.kv_cache, self.state = model, kv_cache, state
        self._ops, self._sampler, self._graphs = ops, sampler, graphs
        self._staging = Staging(state.device)
        self._entered: dict[int, NewRow] = {}

    @torch.inference_mode()
    def warm_up(self) -> None:
        """Record all graphs, the largest first: the smaller ones then find room in its memory."""
        if self._graphs is not None:
            with current(self.state.device):
                for size in reversed(self._graphs.buckets):
                    self._graphs.get(size)

    def wait(self) -> None:
        """Wait until the device has nothing to do."""
        if self.state.device.type == "cuda":
            torch.cuda.synchronize(self.state.device)

    @torch.inference_mode()
    def launch(self, plan: StepPlan) -> PendingStep:
        """Start ``plan``. Its sampled tokens are then part of the device's state, and on their way to the host."""
        with current(self.state.device):
            try:
                return self._launch(plan)
            except BaseException:
                self.state.forget_changes()
                raise

    def _launch(self, plan: StepPlan) -> PendingStep:
        self.state.update(plan)
        for row in plan.entering:
            self._entered[row.slot] = row
            self._sampler.enter(row)
        rows = Rows.of(plan.rows)
        self.state.note_given_tokens(rows)
        self.state.send(self._staging)
        if not self._ops.reads_contexts_only:
            clear_unfilled(self.kv_cache, plan.rows, self.state.block_size)
        if self._graphs is not None and rows.decode:
            return PendingStep(plan.step, plan.rows, self._replay(rows, self._graphs.get(len(plan.rows))), {})
        return self._run(plan, rows)

    def _replay(self, decode: Rows, graph: DecodeGraph) -> Fetch:
        rows, shape = len(decode.slots), Shape(graph.rows, graph.rows, graph.rows)
        edits = self._sampler.needs_edits(decode.slots)
        filters = self._sampler.needs_filters(decode.slots)
        words = self._staging.take(shape.num_words)
        inputs = prepare(words.numpy(), shape)
        self.state.fill_decode(decode.slots, decode.starts, inputs)
        if not edits:
            self._sampler.fast_params(decode.slots, inputs.params[:rows])
        self._staging.send(words, graph.words)
        graph.replay()
        if edits:
            return self._sample_edited(graph.logits[:rows], decode.slots)
        if filters:
            own = StepInput.view(graph.words, shape)
            return Fetch.tokens(self.state.sample(self._ops, graph.logits[:rows], own, filters=True))
        return Fetch.tokens(graph.tokens[:rows])

    def _run(self, plan: StepPlan, rows: Rows) -> PendingStep:
        """A step of any kind, kernel by kernel."""
        slots = rows.slots[rows.samples]
        edits, filters = self._sampler.needs_edits(slots), self._sampler.needs_filters(slots)
        shape = Shape(int(rows.counts.sum()), len(plan.rows), len(slots))
        words = self._staging.take(shape.num_words)
        host = StepInput.view(words.numpy(), shape)
        unresolved = self.state.fill(rows, host)
        if not edits:
            self._sampler.fast_params(slots, host.params)
        inputs = StepInput.view(self._staging.send(words), shape)
        token_ids = self.state.resolve(inputs.token_ids) if unresolved else inputs.token_ids
        contexts = (rows.starts + rows.counts).tolist()
        batch = self.state.batch_of(inputs, token_ids, rows.counts.tolist(), contexts, self.kv_cache)
        batch.attention = self._ops.plan_attention(batch)
        hidden = self.model(batch)
        scores = score_prompts(self.model, plan.rows, self._entered, hidden)
        if not len(slots):
            return PendingStep(plan.step, plan.rows, None, scores)
        logits = self.model.raw_logits(hidden.index_select(0, inputs.logit_indices))
        if edits:
            return PendingStep(plan.step, plan.rows, self._sample_edited(logits, slots), scores)
        tokens = self.state.sample(self._ops, logits, inputs, filters=filters)
        return PendingStep(plan.step, plan.rows, Fetch.tokens(tokens), scores)

    def _sample_edited(self, logits: Tensor, slots: np.ndarray) -> Fetch:
        """Rows with penalties, biases, log-probabilities: the sampler's long way."""
        sampled: SampledTokens = self._sampler.sample(logits.to(torch.float32, copy=True), torch.from_numpy(slots))
        tokens = sampled.token_ids.to(torch.int32)
        self.state.last_tokens.index_copy_(0, to_device(slots, logits.device), tokens)
        return Fetch.of(sampled)
