"""What all formats ask of the model that is exported: its tensors, and where its other files are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from octavo.export.report import ExportReport, TensorError, tensor_error
from octavo.weights.checkpoint import Checkpoint, LazyTensor

KIND_OF_DTYPE = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


@dataclass(slots=True)
class Source:
    """A model to be written in another form.

    Attributes:
        checkpoint: the model on disk.
        tokenizer: where its tokenizer is.
        dtype: to write in what is not quantized.
        report: grows as tensors are written.
        progress: called with the bytes of each tensor of the checkpoint that is done.
    """

    checkpoint: Checkpoint
    tokenizer: Path
    dtype: torch.dtype
    report: ExportReport
    progress: Callable[[int], Any] = field(default=lambda nbytes: None)

    def tensors(self) -> Iterator[LazyTensor]:
        """All that a model of this configuration is made of: not the copy of a tied head, nor buffers."""
        tied = self.checkpoint.config.tie_word_embeddings
        for tensor in self.checkpoint.tensors():
            if not (tensor.name.endswith("rotary_emb.inv_freq") or (tied and tensor.name == "lm_head.weight")):
                yield tensor

    def plain(self, tensor: LazyTensor, dtype: torch.dtype) -> Tensor:
        """``tensor`` in ``dtype``, noted in the report."""
        written = tensor.read(dtype)
        nbytes = written.nbytes
        if tensor.kind == KIND_OF_DTYPE[dtype]:
            self.add(tensor, TensorError(tensor.name, tensor.kind, tensor.shape, nbytes, 0.0, 0.0))
        else:
            self.compare(tensor, KIND_OF_DTYPE[dtype], nbytes, tensor.read(torch.float32), written)
        return written

    def compare(self, tensor: LazyTensor, kind: str, nbytes: int, original: Tensor, written: Tensor) -> None:
        """Note in the report how far ``written`` is from ``original``."""
        self.add(tensor, tensor_error(tensor.name, kind, nbytes, original, written))

    def add(self, tensor: LazyTensor, error: TensorError) -> None:
        self.report.tensors.append(error)
        tensor.release()
        self.progress(tensor.nbytes)
