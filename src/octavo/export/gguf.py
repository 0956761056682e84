"""A GGUF file of a model: llama.cpp's names and order of rows, and its block types where it is quantized."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from octavo.errors import ModelError, UsageError
from octavo.export import gguf_metadata
from octavo.export.ggml_pack import BLOCK, pack
from octavo.export.gguf_file import GGUFItem, write_gguf
from octavo.export.gguf_tokenizer import tokenizer_metadata
from octavo.export.sources import KIND_OF_DTYPE, Source
from octavo.ggml.block_types import dequantize
from octavo.text.tokenizer import has_tokenizer
from octavo.weights.checkpoint import LazyTensor
from octavo.weights.gguf import PERMUTED
from octavo.weights.gguf_config import ROPE_FACTORS
from octavo.weights.gguf_names import LAYER_NAMES, MODEL_NAMES
from octavo.weights.row_order import permute

KINDS = {"int8": "Q8_0", "int4": "Q4_1", "q8_0": "Q8_0", "q4_0": "Q4_0", "q4_1": "Q4_1"}
"""What a user asks for -> block type of the layers' matrices. Q4_1 has a scale and a floor for 32
weights, 5 bits each: SmolLM2, which comes in it, keeps its perplexity, and Q4_0 (4.5 bits) makes that a third higher.
"""

VOCABULARY_KIND = "Q8_0"
"""The embedding and the head: all of a text goes through them, and four bits there cost more than elsewhere."""

_TO_LAYER = {name: gguf for gguf, name in LAYER_NAMES.items()}
_TO_MODEL = {name: gguf for gguf, name in MODEL_NAMES.items()}


def write(source: Source, path: Path, quantize: str | None) -> None:
    """Write the whole file.

    Raises:
        UsageError: there is no block type for what was asked. ModelError: the model has no place in GGUF.
    """
    if quantize is not None and quantize not in KINDS:
        raise UsageError(f"--quantize {quantize} has no block type in GGUF; accepted: {', '.join(KINDS)}")
    architecture = gguf_metadata.architecture(source.checkpoint.config)
    kind = KIND_OF_DTYPE[source.dtype] if quantize is None else KINDS[quantize]
    items = [*_rope_item(source), *(_item(source, tensor, architecture, kind) for tensor in source.tensors())]
    metadata = gguf_metadata.metadata(source.checkpoint, Path(source.report.model).name, kind)
    write_gguf(path, metadata | _tokenizer(source), items)


def gguf_name(name: str) -> str:
    """``model.layers.0.self_attn.q_proj.weight`` -> ``blk.0.attn_q.weight``. Raises ``ModelError`` for another name."""
    stem, _, suffix = name.rpartition(".")
    if stem in _TO_MODEL:
        return f"{_TO_MODEL[stem]}.{suffix}"
    match stem.split(".", 3):
        case ["model", "layers", index, part] if part in _TO_LAYER:
            return f"blk.{index}.{_TO_LAYER[part]}.{suffix}"
    raise ModelError(f"the tensor {name!r:.120} has no name in GGUF")


def stored_kind(tensor: LazyTensor, kind: str) -> str:
    """How a tensor is stored where matrices are of ``kind``: vectors stay float32, as llama.cpp wants them."""
    if len(tensor.shape) == 1:
        return "F32"
    if kind in KIND_OF_DTYPE.values():
        return kind
    if tensor.shape[-1] % BLOCK:
        return "F16"
    return VOCABULARY_KIND if tensor.name in ("model.embed_tokens.weight", "lm_head.weight") else kind


def _rope_item(source: Source) -> Iterator[GGUFItem]:
    factors = gguf_metadata.rope_factors(source.checkpoint.config)
    if factors is not None:
        yield GGUFItem(ROPE_FACTORS, tuple(factors.shape), "F32", lambda: factors.numpy().view(np.uint8))


def _item(source: Source, tensor: LazyTensor, architecture: str, kind: str) -> GGUFItem:
    own = stored_kind(tensor, kind)
    make = partial(_bytes, source, tensor, own, _permuted_heads(source, tensor.name, architecture))
    return GGUFItem(gguf_name(tensor.name), tuple(tensor.shape), own, make)


def _permuted_heads(source: Source, name: str, architecture: str) -> int | None:
    projection = name.rpartition(".")[0]
    if not projection.endswith(PERMUTED.get(architecture, ())):
        return None
    config = source.checkpoint.config
    return config.num_heads if projection.endswith("q_proj") else config.num_kv_heads


def _bytes(source: Source, tensor: LazyTensor, kind: str, heads: int | None) -> NDArray[np.uint8]:
    """A tensor's bytes in the file, and its error in the report."""
    for dtype, name in KIND_OF_DTYPE.items():
        if kind == name:
            plain = source.plain(tensor, dtype)
            rows = plain.contiguous().view(torch.uint8).view(plain.shape[0], -1).numpy()
            return (rows if heads is None else permute(rows, heads)).reshape(-1)
    weights = tensor.read(torch.float32)
    if not weights.isfinite().all():
        raise ModelError(f"{tensor.name} has a NaN or an infinity and cannot be quantized")
    data = pack(weights.numpy(), kind)
    source.compare(tensor, kind, data.nbytes, weights, torch.from_numpy(dequantize(data, kind)).view(weights.shape))
    rows = data.reshape(weights.shape[0], -1)
    return (rows if heads is None else permute(rows, heads)).reshape(-1)


def _tokenizer(source: Source) -> dict[str, Any]:
    if not has_tokenizer(source.tokenizer):
        source.report.notes.append("the model has no tokenizer, so none was written: llama.cpp needs one")
        return {}
    try:
        return tokenizer_metadata(source.checkpoint, source.tokenizer)
    except ModelError as error:
        source.report.notes.append(f"the tokenizer was not written: {error}")
        return {}
