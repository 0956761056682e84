"""CUDA graphs of decode steps: a step recorded once and launched again by one call.

Launching its some 200 kernels one by one would take the host longer than the device takes to compute a small model's
step. A graph is recorded for a number of rows and read-only in all but what its input buffer, the block tables and the
cache hold; a step with fewer rows fills up with rows that are nobody's. Every graph ends with sampling, so that the
next step's tokens are on the device before the host knows them; a step whose sampling is not so simple takes the
logits and samples again.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from octavo.execution.device_state import DeviceState
from octavo.execution.step_input import Shape, StepInput
from octavo.kernels.forward_batch import KVLayer
from octavo.kernels.ops import Ops
from octavo.models.decoder import DecoderModel

_SMALL = (1, 2, 4, 8, 16, 32, 48, 64)
_STEP = 32


def buckets(max_num_seqs: int) -> list[int]:
    """For how many rows there are graphs: few enough to record all, close enough to waste little.

    From 64 on in steps of 32, from 256 on in steps of an eighth to a quarter.
    """
    sizes = list(_SMALL)
    while sizes[-1] < max_num_seqs:
        sizes.append(sizes[-1] + max(_STEP, (1 << sizes[-1].bit_length()) // 8))
    return [size for size in sizes if size < max_num_seqs] + [max_num_seqs]


@dataclass(frozen=True, slots=True)
class DecodeGraph:
    """A recorded decode step of so many rows.

    Attributes:
        words: the input buffer that it reads, int32.
        logits: ``[rows, V]`` in the model's dtype, after ``replay``.
        tokens: int64 ``[rows]``, after ``replay``; -1 where the logits could not be sampled from.
        replay: launches it.
    """

    rows: int
    words: Tensor
    logits: Tensor
    tokens: Tensor
    replay: Callable[[], None]


class DecodeGraphs:
    """The graphs of all sizes, recorded when first wanted or beforehand. They share the memory of all but their logits
    and tokens.
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
    ) -> None:
        self._model, self._ops, self._state, self._kv_cache = model, ops, state, kv_cache
        self._max_model_len = max_model_len
        self.buckets = buckets(max_num_seqs)
        largest = Shape(max_num_seqs, max_num_seqs, max_num_seqs)
        self._words = torch.zeros(largest.num_words, dtype=torch.int32, device=state.device)
        self._graphs: dict[int, DecodeGraph] = {}
        self._pool: Any = None  # of memory; known once there is a graph
        self._stream: torch.cuda.Stream | None = None

    def get(self, rows: int) -> DecodeGraph:
        """The graph for ``rows`` rows, at most ``max_num_seqs``."""
        size = self.buckets[bisect_left(self.buckets, rows)]
        if size not in self._graphs:
            self._graphs[size] = self._record(size)
        return self._graphs[size]

    def _record(self, rows: int) -> DecodeGraph:
        shape = Shape(rows, rows, rows)
        words = self._words[: shape.num_words]
        words.copy_(torch.from_numpy(self._nobodys(shape)))
        inputs = StepInput.view(words, shape)
        logits, tokens, replay = self._capture(lambda: self._step(inputs, rows))
        return DecodeGraph(rows, words, logits, tokens, replay)

    def _nobodys(self, shape: Shape) -> np.ndarray:
        """Input of rows that are nobody's, to record with."""
        words = np.zeros(shape.num_words, dtype=np.int32)
        nothing = np.zeros(0, dtype=np.int64)
        self._state.fill_decode(nothing, nothing, prepare(words, shape))
        return words

    def _step(self, inputs: StepInput[Tensor], rows: int) -> tuple[Tensor, Tensor]:
        """What is recorded: logits and tokens."""
        state = self._state
        token_ids = state.last_tokens.index_select(0, inputs.table_rows)
        batch = state.batch_of(inputs, token_ids, [1] * rows, [self._max_model_len] * rows, self._kv_cache)
        batch.attention = self._ops.plan_attention(batch)
        logits = self._model.raw_logits(self._model(batch))
        return logits, state.sample(self._ops, logits, inputs, filters=False)

    def _capture(self, step: Callable[[], tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor, Callable[[], None]]:
        """Record ``step``; its results, and a function that computes them again in the same place."""
        if self._state.device.type != "cuda":
            return _repeat(step)
        self._stream = stream = self._stream or torch.cuda.Stream()  # each has library workspaces of its own
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            step()  # compiles kernels, sets up libraries: not to be recorded
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=stream):
            logits, tokens = step()
        self._pool = self._pool or graph.pool()
        return logits, tokens, graph.replay


def prepare(words: np.ndarray, shape: Shape) -> StepInput[np.ndarray]:
    """Views of the host's words of a decode step, with what is the same in each."""
    inputs = StepInput.view(words, shape)
    inputs.params[:] = 0
    inputs.token_ids[:] = 0
    inputs.query_starts[:] = np.arange(shape.rows + 1)
    inputs.logit_indices[:] = np.arange(shape.rows)
    return inputs


def _repeat(step: Callable[[], tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor, Callable[[], None]]:
    """What stands for a graph where there are none: the step is simply run again."""
    results = step()

    def replay() -> None:
        for place, value in zip(results, step(), strict=True):
            place.copy_(value)

    return *results, replay
