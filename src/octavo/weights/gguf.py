"""A GGUF file as a `Checkpoint`: Hugging Face's names and row order over llama.cpp's."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from octavo.errors import ModelError
from octavo.quantization.ggml import BlockType, dequantize_chunks
from octavo.weights.checkpoint import Checkpoint, LazyTensor
from octavo.weights.gguf_config import ROPE_FACTORS, architecture_of, generation_defaults, model_config
from octavo.weights.gguf_cursor import short
from octavo.weights.gguf_file import GGUFFile, GGUFTensorInfo

if TYPE_CHECKING:
    import torch

MODEL_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
"""GGUF's name -> Hugging Face's, of what a model has once."""

LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
"""The same for what each layer has: ``blk.0.attn_q`` is ``model.layers.0.self_attn.q_proj``."""

PERMUTED = {"llama": ("self_attn.q_proj", "self_attn.k_proj")}
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
        file = GGUFFile(path)
        try:
            return cls(file.path, model_config(file), generation_defaults(file.metadata), file=file)
        except ModelError as error:
            raise ModelError(f"{file.path}: {error}") from None

    def tensors(self) -> Iterator[LazyTensor]:
        permuted = PERMUTED.get(architecture_of(self.file), ())
        for info in sorted(self.file.tensors.values(), key=lambda info: info.offset):
            if info.name == ROPE_FACTORS:  # a part of the configuration, not a weight
                continue
            name = self._checked_name(info)
            yield GGUFTensor(name, info, self.file.data(info), self._num_heads(name, permuted))

    def _checked_name(self, info: GGUFTensorInfo) -> str:
        name = hugging_face_name(info.name)
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
    """A tensor in a GGUF file. ``permuted_heads``: over how many heads its rows are permuted, or None."""

    def __init__(
        self, name: str, info: GGUFTensorInfo, data: NDArray[np.uint8], permuted_heads: int | None = None
    ) -> None:
        self.name = name
        self.shape = info.shape
        self.kind = info.type.name
        self.nbytes = info.nbytes
        self._type = info.type
        self._data = data
        self._permuted_heads = permuted_heads

    def read(self, dtype: torch.dtype) -> torch.Tensor:
        import torch

        rows = self._rows()
        with warnings.catch_warnings():  # that the file's pages are read-only is in the contract
            warnings.filterwarnings("ignore", message=".*not writable")
            if dtype is getattr(torch, _DTYPE_OF_KIND.get(self.kind, ""), None):
                return torch.frombuffer(rows.data, dtype=dtype).view(self.shape)
            return _expand(rows, self._type, dtype).view(self.shape)

    def _rows(self) -> NDArray[np.uint8]:
        """The packed bytes, rows in Hugging Face's order: a view of the file if that is its order."""
        if self._permuted_heads is None:
            return self._data
        num_rows = self.shape[0]
        if num_rows % (2 * self._permuted_heads) or (len(self.shape) == 1 and self._type.block_size > 1):
            raise ModelError(
                f"{self.name} has {num_rows} rows of {self.kind}; expected an even number for each of"
                f" {self._permuted_heads} heads"
            )
        return unpermute(self._data.reshape(num_rows, -1), self._permuted_heads).reshape(-1)


def hugging_face_name(name: str) -> str | None:
    """``blk.0.attn_q.weight`` -> ``model.layers.0.self_attn.q_proj.weight``; None for an unknown name."""
    match name.split("."):
        case ["blk", index, part, ("weight" | "bias") as suffix] if part in LAYER_NAMES and index.isdecimal():
            return f"model.layers.{index}.{LAYER_NAMES[part]}.{suffix}"
        case [part, "weight"] if part in MODEL_NAMES:
            return f"{MODEL_NAMES[part]}.weight"
    return None


def unpermute(rows: NDArray[np.uint8], num_heads: int) -> NDArray[np.uint8]:
    """Put the rows of a query or key projection from llama.cpp's order into Hugging Face's.

    Rotary embeddings turn pairs of dimensions. Hugging Face pairs dimension i of a head with i + head_dim /
    2, llama.cpp's "llama" pairs neighbours, so its converter interleaves the two halves of each head. As
    whole rows move, this works on packed bytes.

    Args:
        rows: ``uint8[num_heads * head_dim, bytes of a row]``.
    """
    pairs = rows.reshape(num_heads, -1, 2, rows.shape[-1])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(rows.shape)


def _expand(data: NDArray[np.uint8], kind: BlockType, dtype: torch.dtype) -> torch.Tensor:
    """The weights in ``dtype``, flat; rounded chunk by chunk, so that no float32 copy of all is made."""
    import torch

    out = torch.empty(data.size // kind.type_size * kind.block_size, dtype=dtype)
    for where, weights in dequantize_chunks(data, kind):
        out[where] = torch.from_numpy(weights)
    return out
