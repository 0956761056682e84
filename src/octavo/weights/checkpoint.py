"""What a model on disk looks like to the rest of Octavo, whichever format it is in.

A reader of a format (`safetensors`, `gguf`) subclasses `Checkpoint`; nothing outside this room asks which one it is.
Tensors carry the names and the row order that Hugging Face gives them (``model.layers.0.self_attn.q_proj.weight``), so
that a model file knows one set of names.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from octavo.config import ModelConfig

if TYPE_CHECKING:
    import torch

    from octavo.kernels.packed import PackedWeight


ALL = slice(None)


class LazyTensor(ABC):
    """A named array that stays on disk (memory-mapped) until it is read.

    Attributes:
        name: the Hugging Face name.
        shape: rows first, as torch has it.
        kind: how it is stored: "F32", "BF16", "Q4_1", …
        nbytes: bytes on disk.
    """

    name: str
    shape: tuple[int, ...]
    kind: str
    nbytes: int

    @abstractmethod
    def read(self, dtype: torch.dtype, rows: slice = ALL) -> torch.Tensor:
        """Return the values as a CPU tensor of ``shape`` in ``dtype`` (dequantized if need be); or some of its rows,
        in a step of 1, without reading the others.

        Without conversion it may be a read-only view of the file's pages: copy before writing to it.
        """

    @property
    def packed_kind(self) -> str | None:
        """The ``kind`` of what ``packed`` gives, or None where that is None. The matrix itself is not read for it."""
        return None

    def packed(self) -> PackedWeight | None:
        """The same matrix in the few bits that the file has, or None where it has plain numbers, or a form that
        ``octavo.kernels.packed`` does not know.
        """
        return None

    def release(self, rows: slice = ALL) -> None:  # noqa: B027 (nothing to do for who maps no file)
        """Let go of the file's pages, which count as resident memory since they were read. Views stay valid. Of
        ``rows`` only, where they lie together.
        """


@dataclass(frozen=True, slots=True)
class GenerationDefaults:
    """What the model's makers suggest for sampling; None where they say nothing."""

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None

    def as_dict(self) -> dict[str, float]:
        """Only what is said, under the names of ``SamplingParams``."""
        return {name: value for name in self.__slots__ if (value := getattr(self, name)) is not None}


@dataclass(slots=True)
class Checkpoint(ABC):
    """One model on disk. ``config.eos_token_ids`` already joins what config, generation config and tokenizer say."""

    path: Path
    config: ModelConfig
    generation: GenerationDefaults = field(default_factory=GenerationDefaults)

    @abstractmethod
    def tensors(self) -> Iterator[LazyTensor]:
        """All weights, in the order they lie on disk. Raises ``ModelError`` for a damaged file."""
