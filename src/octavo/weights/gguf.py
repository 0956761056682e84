"""A GGUF file as a `Checkpoint`: Hugging Face's names and row order over llama.cpp's."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from octavo.errors import ModelError
from octavo.ggml.block_types import BlockType, dequantize_chunks
from octavo.weights.checkpoint import ALL, Checkpoint, LazyTensor
from octavo.weights.gguf_config import ROPE_TENSORS, architecture_of, generation_defaults, model_config
from octavo.weights.gguf_cursor import short
from octavo.weights.gguf_file import GGUFFile, GGUFTensorInfo, open_gguf
from octavo.weights.gguf_names import ONE_PLUS, expert_names, hugging_face_name
from octavo.weights.mapped import releasing
from octavo.weights.row_order import unpermuted

if TYPE_CHECKING:
    import torch

    from octavo.kernels.packed import PackedWeight

PERMUTED = dict.fromkeys(("llama", "smollm3"), ("self_attn.q_proj", "self_attn.k_proj"))
"""Architecture -> projections whose rows llama.cpp keeps in another order."""

_DTYPE_OF_KIND = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


@dataclass(slots=True)
class GGUFCheckpoint(Checkpoint):
    """A model in one GGUF file. ``file.metadata`` has all that the file says, its tokenizer included."""

    file: GGUFFile = field(kw_only=True)

    @classmethod
    def open(cls, path: str | Path) -> GGUFCheckpoint:
        """Read and check the header; the weights stay on disk.

        Raises:
            ModelError: the file is damaged, or its architecture or one of its block types is not supported.
        """
        file = open_gguf(path)
        try:
            return cls(file.path, model_config(file), generation_defaults(file.metadata), file=file)
        except ModelError as error:
            raise ModelError(f"{file.path}: {error}") from None

    def tensors(self) -> Iterator[LazyTensor]:
        return releasing(self._tensors())

    def _tensors(self) -> Iterator[GGUFTensor]:
        architecture = architecture_of(self.file)
        permuted = PERMUTED.get(architecture, ())
        for info in sorted(self.file.tensors.values(), key=lambda info: info.offset):
            if info.name in ROPE_TENSORS:  # a part of the configuration, not a weight
                continue
            if (parts := self._experts(info)) is not None:
                yield from parts
                continue
            name = self._checked_name(info, architecture)
            kept_plus_one = architecture in ONE_PLUS and name.endswith("norm.weight")
            yield GGUFTensor(name, self.file, info, self._num_heads(name, permuted), kept_plus_one)

    def _experts(self, info: GGUFTensorInfo) -> Iterator[GGUFTensor] | None:
        """Each expert's matrix, if the tensor is a stack of them: they lie one behind the other."""
        experts = self.config.experts
        names = expert_names(info.name, 0 if experts is None else experts.count)
        if experts is None or names is None:
            return None
        if len(info.shape) != 3 or info.shape[0] != experts.count:
            raise ModelError(
                f"{self.path}: {info.name} has the shape {info.shape}; expected three dimensions, the first of them"
                f" {experts.count} experts"
            )
        each = info.nbytes // experts.count
        first = replace(info, shape=info.shape[1:], nbytes=each)
        return (
            GGUFTensor(name, self.file, replace(first, offset=info.offset + e * each)) for e, name in enumerate(names)
        )

    def _checked_name(self, info: GGUFTensorInfo, architecture: str) -> str:
        name = hugging_face_name(info.name, architecture)
        if name is None:
            raise ModelError(f"{self.path}: the tensor {short(info.name)} is unknown in {self.config.architecture}")
        return name

    def _num_heads(self, name: str, permuted: tuple[str, ...]) -> int | None:
        """How many heads the rows of a permuted tensor fall into, None for one that is not permuted."""
        projection = name.removesuffix(".weight").removesuffix(".bias")
        if not projection.endswith(permuted):
            return None
        return self.config.num_heads if projection.endswith("q_proj") else self.config.num_kv_heads


class GGUFTensor(LazyTensor):
    """A tensor in a GGUF file.

    Args:
        permuted_heads: over how many heads its rows are permuted, or None.
        kept_plus_one: the file has 1 more than the weight.
    """

    def __init__(
        self,
        name: str,
        file: GGUFFile,
        info: GGUFTensorInfo,
        permuted_heads: int | None = None,
        kept_plus_one: bool = False,
    ) -> None:
        self.name = name
        self.shape = info.shape
        self.kind = info.type.name
        self.nbytes = info.nbytes
        self._type = info.type
        self._file, self._info = file, info
        self._permuted_heads, self._kept_plus_one = permuted_heads, kept_plus_one

    def read(self, dtype: torch.dtype, rows: slice = ALL) -> torch.Tensor:
        import torch

        if rows != ALL and len(self.shape) == 1:  # its blocks are not rows
            return self.read(dtype)[rows]
        if self._kept_plus_one:
            return (self._read(torch.float32, rows) - 1).to(dtype)
        return self._read(dtype, rows)

    def _read(self, dtype: torch.dtype, rows: slice) -> torch.Tensor:
        import torch

        data = self._rows(rows)
        shape = (len(range(self.shape[0])[rows]), *self.shape[1:])
        with warnings.catch_warnings():  # that the file's pages are read-only is in the contract
            warnings.filterwarnings("ignore", message=".*not writable")
            if dtype is getattr(torch, _DTYPE_OF_KIND.get(self.kind, ""), None):
                return torch.from_numpy(data).view(dtype).view(shape)
            return _expand(data, self._type, dtype).view(shape)

    @property
    def packed_kind(self) -> str | None:
        plain = self.kind in _DTYPE_OF_KIND or len(self.shape) != 2 or self.shape[1] % self._type.block_size
        return None if plain else self.kind

    def packed(self) -> PackedWeight | None:
        if self.packed_kind is None:
            return None
        import torch

        from octavo.kernels.packed import BlockWeight

        with warnings.catch_warnings():  # that the file's pages are read-only is in the contract
            warnings.filterwarnings("ignore", message=".*not writable")
            blocks = torch.from_numpy(self._rows()).view(self.shape[0], -1)
        sizes = {"block_size": self._type.block_size, "type_size": self._type.type_size}
        return BlockWeight(kind=self.kind, blocks=blocks, **sizes)

    def release(self, rows: slice = ALL) -> None:
        self._file.release(self._info, ALL if self._permuted_heads else rows)

    def _rows(self, rows: slice = ALL) -> NDArray[np.uint8]:
        """The packed bytes, rows in Hugging Face's order: a view of the file if that is its order."""
        num_rows = self.shape[0]
        if self._permuted_heads is None:
            data = self._file.data(self._info)
            return data if rows == ALL else data.reshape(num_rows, -1)[rows].reshape(-1)
        if num_rows % (2 * self._permuted_heads) or (len(self.shape) == 1 and self._type.block_size > 1):
            raise ModelError(
                f"{self.name} has {num_rows} rows of {self.kind}; expected an even number for each of"
                f" {self._permuted_heads} heads"
            )
        return unpermuted(self._file.data(self._info).reshape(num_rows, -1), self._permuted_heads, rows).reshape(-1)


def _expand(data: NDArray[np.uint8], kind: BlockType, dtype: torch.dtype) -> torch.Tensor:
    """The weights in ``dtype``, flat; rounded chunk by chunk, so that no float32 copy of all is made."""
    import torch

    out = torch.empty(data.size // kind.type_size * kind.block_size, dtype=dtype)
    for where, weights in dequantize_chunks(data, kind):
        out[where] = torch.from_numpy(weights)
    return out
