"""Logits of steps in which each row has one token, on a backend that can record what it computes."""

from __future__ import annotations

from torch import Tensor

from octavo.kernels.forward_batch import ForwardBatch
from octavo.kernels.ops import Ops
from octavo.kernels.recording import Recording
from octavo.models.decoder import DecoderModel


class DecodeSteps:
    """Computes such steps; records the first of each size, with and without adapters, and replays it for the later
    ones.
    """

    def __init__(self, model: DecoderModel, ops: Ops) -> None:
        self._model, self._ops = model, ops
        self._recordings: dict[tuple[int, bool], Recording | None] = {}

    def logits(self, batch: ForwardBatch) -> Tensor:
        """Of each row, ``[R, V]`` in the model's dtype or float32; good until the next step."""
        size = len(batch.query_lens), batch.lora is not None
        if size not in self._recordings:
            logits, self._recordings[size] = self._ops.record(batch, lambda: self._compute(batch))
            return logits
        recording = self._recordings[size]
        return self._compute(batch) if recording is None else recording.replay(batch)

    def _compute(self, batch: ForwardBatch) -> Tensor:
        return self._model.raw_logits(self._model(batch))
