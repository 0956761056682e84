"""A GGUF file of a model: llama.cpp's names and order of rows, and its block types where it is quantized."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from octavo.config import ModelConfig
from octavo.errors import ModelError, UsageError
from octavo.export import gguf_metadata
from octavo.export.ggml_pack import BLOCK, pack
from octavo.export.gguf_file import GGUFItem, write_gguf
from octavo.export.gguf_tensors import Stored, stored_tensors
from octavo.export.gguf_tokenizer import tokenizer_metadata
from octavo.export.sources import KIND_OF_DTYPE, Source
from octavo.ggml.block_types import dequantize
from octavo.quantization.schemes import SCHEMES
from octavo.text.tokenizer import has_tokenizer
from octavo.weights.checkpoint import LazyTensor
from octavo.weights.row_order import permute

KINDS = {"int8": "Q8_0", "int4": "Q4_1", "q8_0": "Q8_0", "q4_0": "Q4_0", "q4_1": "Q4_1"}
"""What a user asks for -> block type of the layers' matrices, but for the ``SENSITIVE`` ones of small models, which
int4 keeps in 8 bits. Q4_1 has a scale and a floor for 32 weights, 5 bits each: SmolLM2, which comes in it, keeps its
perplexity, and Q4_0 (4.5 bits) makes that a third higher.
"""

SENSITIVE = ("attn_q", "attn_k", "attn_v", "attn_qkv", "ffn_down", "ffn_down_exps")
"""What `Scheme.for_sensitive` is meant for."""

VOCABULARY_KIND = "Q8_0"
"""The embedding and the head: all of a text goes through them, and four bits there cost more than elsewhere."""


def write(source: Source, path: Path, quantize: str | None) -> None:
    """Write the whole file.

    Raises:
        UsageError: there is no block type for what was asked. ModelError: the model has no place in GGUF.
    """
    if quantize is not None and quantize not in KINDS:
        raise UsageError(f"--quantize {quantize} has no block type in GGUF; accepted: {', '.join(KINDS)}")
    config = source.checkpoint.config
    architecture = gguf_metadata.architecture(config)
    kind = KIND_OF_DTYPE[source.dtype] if quantize is None else KINDS[quantize]
    sensitive = kind if quantize is None else _sensitive_kind(quantize, config.hidden_size)
    metadata = gguf_metadata.metadata(source.checkpoint, Path(source.report.model).name, kind)
    stored = stored_tensors(config, architecture, source.tensors())
    items = [
        *_rope_items(config),
        *(_item(source, tensor, sensitive if _is_sensitive(tensor) else kind) for tensor in stored),
    ]
    if (window := gguf_metadata.unheeded_window(config)) is not None:
        source.report.notes.append(f"llama.cpp has no sliding window ({window} tokens) in models of this architecture")
    write_gguf(path, metadata | _tokenizer(source), items)


def stored_kind(name: str, shape: Sequence[int], kind: str) -> str:
    """How the tensor ``name`` (GGUF's) is stored where matrices are of ``kind``. Vectors stay float32, as llama.cpp
    wants them; so do routers and tables of positions.
    """
    if len(shape) == 1 or name.endswith("ffn_gate_inp.weight") or name == "position_embd.weight":
        return "F32"
    if kind in KIND_OF_DTYPE.values():
        return kind
    if shape[-1] % BLOCK:
        return "F16"
    return VOCABULARY_KIND if name in ("token_embd.weight", "output.weight") else kind


def _sensitive_kind(quantize: str, hidden_size: int) -> str:
    """Block type of the matrices in ``SENSITIVE``."""
    how = SCHEMES.get(quantize)
    return KINDS[quantize if how is None else how.fitted(hidden_size).for_sensitive.name]


def _is_sensitive(tensor: Stored) -> bool:
    return tensor.name.removesuffix(".weight").rpartition(".")[2] in SENSITIVE


def _rope_items(config: ModelConfig) -> Iterator[GGUFItem]:
    for name, factors in gguf_metadata.rope_factors(config).items():
        yield GGUFItem(name, tuple(factors.shape), "F32", partial(iter, [_as_bytes(factors)]))


def _item(source: Source, tensor: Stored, kind: str) -> GGUFItem:
    own = stored_kind(tensor.name, tensor.shape, kind)
    return GGUFItem(tensor.name, tensor.shape, own, partial(_pieces, source, tensor, own))


def _pieces(source: Source, tensor: Stored, kind: str) -> Iterator[NDArray[np.uint8]]:
    for part in tensor.parts:
        rows = _bytes(source, part, kind).reshape(part.shape[0], -1)
        yield rows if tensor.heads is None else permute(rows, tensor.heads)


def _bytes(source: Source, tensor: LazyTensor, kind: str) -> NDArray[np.uint8]:
    """A tensor's bytes in the file, and its error in the report."""
    for dtype, name in KIND_OF_DTYPE.items():
        if kind == name:
            return _as_bytes(source.plain(tensor, dtype))
    weights = tensor.read(torch.float32)
    if not weights.isfinite().all():
        raise ModelError(f"{tensor.name} has a NaN or an infinity and cannot be quantized")
    data = pack(weights.numpy(), kind)
    source.compare(tensor, kind, data.nbytes, weights, torch.from_numpy(dequantize(data, kind)).view(weights.shape))
    return data


def _as_bytes(tensor: Tensor) -> NDArray[np.uint8]:
    return tensor.contiguous().view(-1).view(torch.uint8).numpy()


def _tokenizer(source: Source) -> dict[str, Any]:
    if not has_tokenizer(source.tokenizer):
        source.report.notes.append("the model has no tokenizer, so none was written: llama.cpp needs one")
        return {}
    try:
        return tokenizer_metadata(source.checkpoint, source.tokenizer)
    except ModelError as error:
        source.report.notes.append(f"the tokenizer was not written: {error}")
        return {}
