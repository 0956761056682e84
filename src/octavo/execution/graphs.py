"""CUDA graphs of steps: a step recorded once and launched again by one call.

Launching its some 200 kernels one by one takes the host longer than the device takes to compute a small model's step. A
graph is recorded for so many tokens and rows and is read-only in all but what its input buffer, the block tables and
the cache hold; a step with fewer fills up with tokens and rows that are nobody's. Every graph ends with sampling, so
that the next step's tokens are on the device before the host knows them; a step whose sampling is not so simple takes
the logits and samples again.

There are two kinds. In one each row decodes: all its sizes are recorded before the first request. In the other rows
bring any number of tokens: there are too many sizes for that, so one is recorded when it is wanted for the second time,
and the one not used for longest makes room.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from octavo.execution.device_state import DeviceState
from octavo.execution.graph_sizes import decode_sizes, mixed_size
from octavo.execution.recorder import Recorder
from octavo.execution.step_input import Shape, StepInput
from octavo.kernels.forward_batch import KVLayer
from octavo.kernels.ops import Ops
from octavo.models.decoder import DecoderModel

MOST_MIXED = 64
"""Graphs of the second kind at once: each has some megabytes of its own on the device."""


@dataclass(frozen=True, slots=True)
class StepGraph:
    """A recorded step.

    Attributes:
        shape: its tokens and rows; each row samples.
        words: the input buffer that it reads, int32.
        logits: ``[rows, V]`` in the model's dtype, after ``replay`` and until the next graph's.
        tokens: int64 ``[rows]``, likewise; -1 where the logits could not be sampled from.
        replay: launches it.
    """

    shape: Shape
    words: Tensor
    logits: Tensor
    tokens: Tensor
    replay: Callable[[], None]


class StepGraphs:
    """The graphs of all sizes. They share their memory, so that the results of one last until the next one runs.

    Args:
        model, ops, state, kv_cache: what the steps compute with.
        max_num_seqs: rows of a step at most.
        max_model_len: context of a row at most.
        max_tokens: steps of more tokens have no graph.
        max_loras: LoRA adapters that the model has room for; 0: none.
    """

    def __init__(
        self,
        model: DecoderModel,
        ops: Ops,
        state: DeviceState,
        kv_cache: Sequence[KVLayer],
        *,
        max_num_seqs: int,
        max_model_len: int,
        max_tokens: int,
        max_loras: int = 0,
    ) -> None:
        self._max_loras = max_loras
        self._model, self._ops, self._state, self._kv_cache = model, ops, state, kv_cache
        self._max_num_seqs, self._max_model_len, self._max_tokens = max_num_seqs, max_model_len, max_tokens
        self._recorder = Recorder(state.device)
        self._sizes = decode_sizes(max_num_seqs)
        self._decode: dict[int, StepGraph] = {}
        self._mixed: OrderedDict[Shape, StepGraph] = OrderedDict()
        self._wanted: Counter[Shape] = Counter()
        most = max(Shape(n, max_num_seqs, max_num_seqs).num_words for n in (max_num_seqs, max_tokens))
        self._words = torch.zeros(most, dtype=torch.int32, device=state.device)

    def record_all(self, *, rehearsed: bool) -> None:
        """Record what needs most memory, then all decode steps: the later ones find room in the memory of the first.

        ``rehearsed``: all these steps were gone through before (`precompile`), so that only the first one, which is
        new to the stream, must run before it is recorded.
        """
        if self._max_tokens > self._max_num_seqs:
            self._record_mixed(mixed_size(self._max_tokens, self._max_num_seqs, self._max_num_seqs))
        for size in reversed(self._sizes):
            known = rehearsed and bool(self._mixed or self._decode)
            self._decode[size] = self._record(Shape(size, size, size), most_queries=1, rehearsed=known)

    def rehearse(self) -> None:
        """Go once through the steps that ``record_all`` records, and through a mixed one of few tokens."""
        for size in self._sizes:
            self._step(self._nobodys(Shape(size, size, size), 1), 1)
        for tokens, rows in [(16, 1), (self._max_tokens, self._max_num_seqs)] if self._max_tokens else []:
            shape = mixed_size(tokens, rows, self._max_num_seqs)
            self._step(self._nobodys(shape, shape.tokens), shape.tokens)

    def decode(self, rows: int) -> StepGraph:
        """The graph for ``rows`` rows of one token each, at most ``max_num_seqs``."""
        size = self._sizes[bisect_left(self._sizes, rows)]
        if size not in self._decode:
            self._decode[size] = self._record(Shape(size, size, size), most_queries=1)
        return self._decode[size]

    def mixed(self, tokens: int, rows: int) -> StepGraph | None:
        """The graph for a step in which some row has several tokens; None if there is none (yet)."""
        if tokens > self._max_tokens:
            return None
        shape = mixed_size(tokens, rows, self._max_num_seqs)
        if shape in self._mixed:
            self._mixed.move_to_end(shape)
            return self._mixed[shape]
        self._wanted[shape] += 1
        if self._wanted[shape] != 2:  # not again what found no memory
            return None
        try:
            return self._record_mixed(shape)
        except torch.OutOfMemoryError:
            return None

    def _record_mixed(self, shape: Shape) -> StepGraph:
        self._mixed[shape] = graph = self._record(shape, most_queries=shape.tokens)
        if len(self._mixed) > MOST_MIXED:  # now that the device has done all it had to: recording waits for that
            oldest, _ = self._mixed.popitem(last=False)
            del self._wanted[oldest]
        return graph

    def _record(self, shape: Shape, most_queries: int, rehearsed: bool = False) -> StepGraph:
        inputs = self._nobodys(shape, most_queries)
        (logits, tokens), replay = self._recorder.record(lambda: self._step(inputs, most_queries), rehearsed=rehearsed)
        return StepGraph(shape, self._words[: shape.num_words], logits, tokens, replay)

    def _nobodys(self, shape: Shape, most_queries: int) -> StepInput[Tensor]:
        """The input buffer with rows that are nobody's, to record with."""
        words = np.zeros(shape.num_words, dtype=np.int32)
        inputs = StepInput.view(words, shape)
        if most_queries == 1:
            prepare_decode(inputs)
            nothing = np.zeros(0, dtype=np.int64)
            self._state.fill_decode(nothing, nothing, inputs)
        else:
            self._state.fill_up(inputs, num_tokens=0, num_rows=0)
        self._words[: shape.num_words].copy_(torch.from_numpy(words))
        return StepInput.view(self._words[: shape.num_words], shape)

    def _step(self, inputs: StepInput[Tensor], most_queries: int) -> tuple[Tensor, Tensor]:
        """What is recorded: logits and tokens."""
        state, rows = self._state, len(inputs.table_rows)
        bounds = [most_queries] * rows, [self._max_model_len] * rows
        if most_queries == 1:
            token_ids = state.last_tokens.index_select(0, inputs.table_rows)
        else:
            token_ids = state.resolve(inputs.token_ids)
        batch = state.batch_of(inputs, token_ids, *bounds, self._kv_cache, bounds_only=True)
        batch.attention = self._ops.plan_attention(batch)
        if self._max_loras:
            batch.lora = self._ops.plan_lora(state.adapters_on_device(inputs), self._max_loras)
        hidden = self._model(batch)
        if most_queries > 1:
            hidden = hidden.index_select(0, inputs.logit_indices)
        logits = self._model.raw_logits(hidden)
        return logits, state.sample(self._ops, logits, inputs, filters=False)


def prepare_decode(inputs: StepInput[np.ndarray]) -> None:
    """Write what is the same in each decode step."""
    rows = len(inputs.table_rows)
    inputs.params[:] = 0
    inputs.token_ids[:] = 0
    inputs.query_starts[:] = np.arange(rows + 1)
    inputs.logit_indices[:] = np.arange(rows)
