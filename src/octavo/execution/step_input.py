"""What a step needs from the host, packed into one array, so that one copy brings it to the device.

Both sides see the same 32-bit words through the same views: the host fills them as numpy arrays in pinned memory, the
kernels read them as tensors. In a CUDA graph the tensors' addresses never change, only what the next copy puts there.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Generic, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from octavo.core.plan import RowStep
from octavo.kernels.sampling import PARAM_WORDS

Array = TypeVar("Array", np.ndarray, Tensor)


class Shape(NamedTuple):
    """How large a step is: T tokens of R rows, of which S sample."""

    tokens: int
    rows: int
    samples: int

    @property
    def parts(self) -> tuple[int, ...]:
        """Words of each part of `StepInput`, in order."""
        t, r, s = self
        return (PARAM_WORDS * s, t, t, t, r + 1, r, r, s, s)

    @property
    def num_words(self) -> int:
        return sum(self.parts)


class Rows(NamedTuple):
    """The rows of a plan as arrays ``[R]``, parallel to each other; see ``RowStep``."""

    slots: np.ndarray
    starts: np.ndarray
    counts: np.ndarray
    samples: np.ndarray

    @classmethod
    def of(cls, rows: Sequence[RowStep]) -> Rows:
        """The rows, in order; int64, but ``samples`` is bool."""
        slots = np.array([row.slot for row in rows], dtype=np.int64)
        starts = np.array([row.start for row in rows], dtype=np.int64)
        counts = np.array([row.num_tokens for row in rows], dtype=np.int64)
        return cls(slots, starts, counts, np.array([row.samples for row in rows], dtype=np.bool_))

    def tokens(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Where each row's tokens end among the step's ``[R]``; the slot and the position of each token ``[T]``."""
        ends = np.cumsum(self.counts)
        positions = np.arange(ends[-1]) + np.repeat(self.starts - (ends - self.counts), self.counts)
        return ends, np.repeat(self.slots, self.counts), positions

    @property
    def decode(self) -> bool:
        """Whether each row computes one token and samples: then a graph can do it."""
        return bool((self.counts == 1).all() and self.samples.all())


class StepInput(NamedTuple, Generic[Array]):
    """Views of one array of int32 words.

    Attributes:
        params: ``[S, PARAM_WORDS]``: records of `octavo.kernels.sampling.PARAMS`.
        token_ids: ``[T]``; ``-1 - slot`` stands for the token that ``slot`` sampled last, which the host may not know.
        positions, slot_mapping: ``[T]``; see ``ForwardBatch``.
        query_starts: ``[R + 1]``. context_lens, table_rows: ``[R]``; see ``DeviceRows``.
        logit_indices: ``[S]``: the token whose logits each sampling row samples from.
        sample_slots: ``[S]``: the row's slot; -1 for one that fills up a graph.
    """

    params: Array
    token_ids: Array
    positions: Array
    slot_mapping: Array
    query_starts: Array
    context_lens: Array
    table_rows: Array
    logit_indices: Array
    sample_slots: Array

    @classmethod
    def view(cls, words: Array, shape: Shape) -> StepInput[Array]:
        """The parts of ``words``, a one-dimensional array of at least ``shape.num_words``."""
        ends = accumulate(shape.parts, initial=0)
        parts = [words[start:end] for start, end in pairwise(ends)]
        return cls(parts[0].reshape(shape.samples, PARAM_WORDS), *parts[1:])


def smaller(inputs: StepInput[np.ndarray], shape: Shape) -> StepInput[np.ndarray]:
    """The input of a smaller step, at the beginning of each part."""
    t, r, s = shape
    return StepInput(*(part[:n] for part, n in zip(inputs, (s, t, t, t, r + 1, r, r, s, s), strict=True)))


_USUAL_WORDS = 1 << 16
"""Enough for a step of 16384 tokens: to allocate pinned memory takes long and may wait for the device."""


class Staging:
    """Pinned host memory that is filled anew for each step, a few buffers in turn: a copy from one may still be on its
    way while the next is filled.
    """

    def __init__(self, device: torch.device, depth: int = 3) -> None:
        self._device = device
        self._buffers = [_host_words(_USUAL_WORDS, device) for _ in range(depth)]
        self._copied: list[torch.cuda.Event | None] = [None] * depth
        self._turn = 0

    def take(self, num_words: int) -> Tensor:
        """An int32 host tensor of ``num_words``, free to be filled. Waits for the copy that used it last."""
        self._turn = (self._turn + 1) % len(self._buffers)
        event = self._copied[self._turn]
        if event is not None:
            event.synchronize()
        if len(self._buffers[self._turn]) < num_words:
            self._buffers[self._turn] = _host_words(2 * num_words, self._device)
        return self._buffers[self._turn][:num_words]

    def send(self, words: Tensor, out: Tensor | None = None) -> Tensor:
        """Start the copy of what ``take`` gave, to ``out`` or to new memory; the host does not wait."""
        out = torch.empty(len(words), dtype=torch.int32, device=self._device) if out is None else out
        out.copy_(words, non_blocking=True)
        if self._device.type == "cuda":
            event = self._copied[self._turn] or torch.cuda.Event()
            event.record()
            self._copied[self._turn] = event
        return out


def _host_words(count: int, device: torch.device) -> Tensor:
    return torch.empty(count, dtype=torch.int32, pin_memory=device.type == "cuda")
