"""The tensors that stand for one matrix, and what a method of quantization has to say about them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from octavo.errors import ModelError
from octavo.weights.safetensors_file import SafetensorsTensor

if TYPE_CHECKING:
    import torch

    from octavo.kernels.packed import Operand

FLOATS = ("F32", "F16", "BF16")


@dataclass(frozen=True, slots=True)
class Parts:
    """The tensors of one module by their last name, as "scales" of ``model.layers.0.mlp.up_proj.scales``."""

    module: str
    tensors: Mapping[str, SafetensorsTensor]

    def __contains__(self, leaf: str) -> bool:
        return leaf in self.tensors

    def first(self, *leaves: str) -> str | None:
        """Which of several names for the same thing is used."""
        return next((leaf for leaf in leaves if leaf in self.tensors), None)

    def shape(self, leaf: str, rank: int | None = None) -> tuple[int, ...]:
        shape = self._find(leaf).shape
        if rank is not None and len(shape) != rank:
            raise ModelError(f"{self.module}.{leaf} has shape {list(shape)}; {rank} dimensions were expected")
        return shape

    def read(self, leaf: str, kinds: Sequence[str], shape: tuple[int, ...] | None = None) -> torch.Tensor:
        """The tensor ``leaf`` as it is stored, a read-only view; ``ModelError`` if it is not as it should be."""
        tensor = self._find(leaf)
        if tensor.kind not in kinds:
            raise ModelError(f"{tensor.name} is of kind {tensor.kind}; accepted: {', '.join(kinds)}")
        if shape is not None and tensor.shape != shape:
            raise ModelError(f"{tensor.name} has shape {list(tensor.shape)}; {list(shape)} was expected")
        return tensor.raw()

    def fail(self, problem: str) -> ModelError:
        return ModelError(f"{self.module}: {problem}")

    def _find(self, leaf: str) -> SafetensorsTensor:
        if leaf not in self.tensors:
            raise ModelError(f"{self.module} has {', '.join(sorted(self.tensors))}, and lacks {leaf}")
        return self.tensors[leaf]


class Scheme(ABC):
    """One method of quantization, with its settings.

    Attributes:
        kind: what a tensor of it is called where its kind is shown.
        leaves: last names of all tensors that belong to a quantized matrix, whether or not they are needed.
    """

    kind: str
    leaves: frozenset[str]

    @abstractmethod
    def is_quantized(self, parts: Parts) -> bool:
        """Whether these tensors are a quantized matrix, not a plain one in the same checkpoint."""

    @abstractmethod
    def shape(self, parts: Parts) -> tuple[int, int]:
        """N, K of the matrix, from the headers alone."""

    @abstractmethod
    def packed_kind(self, parts: Parts) -> str | None:
        """The ``kind`` of what ``unpack`` gives, None for plain numbers; from the headers, and from tensors that are
        small beside the matrix.
        """

    @abstractmethod
    def unpack(self, parts: Parts) -> Operand:
        """The matrix in a form of `octavo.kernels.packed`; where none can say it, its numbers in float32.

        Raises:
            ModelError: a tensor is missing, or of another shape or kind than the method has.
        """
