"""Runs steps on a GPU without waiting for them: the tokens of a step are fetched while the next one runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from octavo.core.plan import NewRow, StepPlan, StepResult, TokenMasks
from octavo.execution.adapters import AdapterStore
from octavo.execution.current import current
from octavo.execution.device_state import DeviceState
from octavo.execution.fetch import Fetch
from octavo.execution.graphs import StepGraph, StepGraphs, prepare_decode
from octavo.execution.kv_cache import clear_unfilled
from octavo.execution.pooling import Vectors, pool, pools, with_vectors
from octavo.execution.prompt_scores import Scores, score_prompts, scores_wanted
from octavo.execution.sampler import SampledTokens, Sampler
from octavo.execution.step_input import Rows, Shape, Staging, StepInput
from octavo.execution.step_result import step_result
from octavo.kernels.forward_batch import KVLayer
from octavo.kernels.ops import Ops
from octavo.kernels.transfer import to_device
from octavo.models.decoder import DecoderModel

Later = Callable[[TokenMasks], Fetch]
"""Samples a step whose masks have come."""


class PendingStep:
    """A step on its way. It may be asked for its result long after the next ones were launched."""

    def __init__(
        self, plan: StepPlan, sampled: Fetch | Later | None, scores: Scores, vectors: Vectors | None = None
    ) -> None:
        """Without ``sampled`` no row samples."""
        self._plan, self._sampled, self._scores = plan, sampled, scores
        self._vectors = vectors or {}

    def mask(self, masks: TokenMasks) -> None:
        """Launch the sampling, which waited for these. Must come before the launch of the next step but one."""
        assert callable(self._sampled), "the step does not wait for masks"
        self._sampled = self._sampled(masks)

    def result(self) -> StepResult:
        """Wait for the step, and for no later one."""
        if self._sampled is None:
            return StepResult(self._plan.step, (), prompt_logprobs=self._scores)
        assert isinstance(self._sampled, Fetch), "the step still waits for masks"
        return with_vectors(step_result(self._plan, self._sampled.wait(), self._scores), self._vectors)


class DeviceRunner:
    """The model, its KV cache and the state of the batch, on one GPU. Launches steps in the order of their plans."""

    def __init__(
        self,
        model: DecoderModel,
        ops: Ops,
        kv_cache: Sequence[KVLayer],
        state: DeviceState,
        sampler: Sampler,
        graphs: StepGraphs | None,
        adapters: AdapterStore | None = None,
    ) -> None:
        """Without ``graphs`` every step launches its kernels one by one. ``adapters``: of a model that was built with
        room for them.
        """
        self.model, self.kv_cache, self.state = model, kv_cache, state
        self.adapters = adapters
        self._ops, self._sampler, self._graphs = ops, sampler, graphs
        self._staging = Staging(state.device)
        self._entered: dict[int, NewRow] = {}
        self._clears_blocks = not ops.ignores_nan_beyond_context(kv_cache, model.config.num_heads, model.dtype)

    @torch.inference_mode()
    def warm_up(self, *, rehearsed: bool = False) -> None:
        """Record the graphs that are wanted for certain. ``rehearsed``: see ``StepGraphs.record_all``."""
        if self._graphs is not None:
            with current(self.state.device):
                self._graphs.record_all(rehearsed=rehearsed)

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
        if self.adapters is not None:
            self.adapters.load(plan.loads)
        self.state.update(plan)
        for row in plan.entering:
            self._entered[row.slot] = row
            self._sampler.enter(row)
        rows = Rows.of(plan.rows)
        self.state.note_given_tokens(rows)
        self.state.send(self._staging)
        if self._clears_blocks:
            clear_unfilled(self.kv_cache, plan.rows, self.state.block_size)
        graph = self._graph(plan, rows)
        if graph is None:
            return self._run(plan, rows)
        return PendingStep(plan, self._replay(plan, rows, graph), {})

    def _graph(self, plan: StepPlan, rows: Rows) -> StepGraph | None:
        """What computes this step, if a graph does."""
        if self._graphs is None or pools(plan.rows, self._entered):
            return None
        if rows.decode:
            return self._graphs.decode(len(plan.rows))
        tokens = int(rows.counts.sum())
        # One query each, but not all sample: rare, and the plan of a graph of one row relies on several queries.
        if tokens == len(plan.rows) or scores_wanted(plan.rows, self._entered):
            return None
        return self._graphs.mixed(tokens, len(plan.rows))

    def _replay(self, plan: StepPlan, rows: Rows, graph: StepGraph) -> Fetch | Later | None:
        slots = rows.slots[rows.samples]
        edits, filters = self._needs_edits(plan, slots), self._sampler.needs_filters(slots)
        words = self._staging.take(graph.shape.num_words)
        inputs = StepInput.view(words.numpy(), graph.shape)
        if rows.decode:
            prepare_decode(inputs)
            self.state.fill_decode(rows.slots, rows.starts, inputs)
        else:
            self.state.fill_mixed(rows, inputs)
        self._fill_params(rows, inputs.params[: len(rows.slots)], known=not edits)
        self._staging.send(words, graph.words)
        graph.replay()
        if not len(slots):
            return None
        return self._sampled(plan, rows, graph, edits, filters)

    def _needs_edits(self, plan: StepPlan, slots: np.ndarray) -> bool:
        return bool(plan.masked) or self._sampler.needs_edits(slots)

    def _fill_params(self, rows: Rows, out: np.ndarray, *, known: bool) -> None:
        """Parameters of the rows that sample; of the others, and of all if they are not ``known`` yet, zeros."""
        if known and rows.samples.all():
            self._sampler.fast_params(rows.slots, out)
            return
        out[:] = 0
        if known:
            params = np.empty((int(rows.samples.sum()), out.shape[1]), out.dtype)
            self._sampler.fast_params(rows.slots[rows.samples], params)
            out[rows.samples] = params

    def _sampled(self, plan: StepPlan, rows: Rows, graph: StepGraph, edits: bool, filters: bool) -> Fetch | Later:
        """The tokens that the graph, or whoever takes its logits, sampled."""
        logits, tokens = graph.logits[: len(rows.slots)], graph.tokens[: len(rows.slots)]
        if edits:
            if not rows.samples.all():
                logits = logits.index_select(0, to_device(np.flatnonzero(rows.samples), logits.device))
            return self._sample_edited(plan, logits, rows.slots[rows.samples])
        if filters:
            own = StepInput.view(graph.words, graph.shape)
            tokens = self.state.sample(self._ops, logits, own, filters=True)
        return Fetch.tokens(tokens, rows.samples)

    def _run(self, plan: StepPlan, rows: Rows) -> PendingStep:
        """A step of any kind, kernel by kernel."""
        slots = rows.slots[rows.samples]
        edits, filters = self._needs_edits(plan, slots), self._sampler.needs_filters(slots)
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
        if self.adapters is not None:
            numbers = self.state.adapters_on_device(inputs)
            batch.lora = self._ops.plan_lora(numbers, self.adapters.max_loras)
        hidden = self.model(batch)
        scores = score_prompts(self.model, plan.rows, self._entered, hidden)
        if not len(slots):
            return PendingStep(plan, None, scores)
        vectors = pool(plan.rows, self._entered, hidden)
        logits = self.model.raw_logits(hidden.index_select(0, inputs.logit_indices))
        if edits:
            return PendingStep(plan, self._sample_edited(plan, logits, slots), scores, vectors)
        tokens = self.state.sample(self._ops, logits, inputs, filters=filters)
        return PendingStep(plan, Fetch.tokens(tokens), scores, vectors)

    def _sample_edited(self, plan: StepPlan, logits: Tensor, slots: np.ndarray) -> Fetch | Later:
        """Rows with penalties, biases, log-probabilities: the sampler's long way; later if masks are to come."""
        if plan.masked:
            return partial(self._sample_masked, logits, slots)
        return self._sample(logits, slots, None)

    @torch.inference_mode()
    def _sample_masked(self, logits: Tensor, slots: np.ndarray, masks: TokenMasks) -> Fetch:
        """It is called when the step was launched long ago."""
        with current(self.state.device):
            return self._sample(logits, slots, masks)

    def _sample(self, logits: Tensor, slots: np.ndarray, masks: TokenMasks | None) -> Fetch:
        raw = logits.to(torch.float32, copy=True)
        sampled: SampledTokens = self._sampler.sample(raw, torch.from_numpy(slots), masks)
        tokens = sampled.token_ids.to(torch.int32)
        self.state.last_tokens.index_copy_(0, to_device(slots, logits.device), tokens)
        return Fetch.of(sampled)
