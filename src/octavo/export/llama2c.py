"""A checkpoint of llama2.c: version 1 (float32), or version 2 (int8 in groups), and its ``tokenizer.bin``.

llama2.c knows one model: Llama 2 with the base 10000 for rotary angles and an epsilon of 1e-5. What is anything else
would be read as that and compute nonsense, so it is refused.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import IO

import torch
from torch import Tensor

from octavo.config import ModelConfig
from octavo.errors import ModelError, UsageError
from octavo.export.gguf_tokenizer import sentencepiece_pieces
from octavo.export.safetensors_file import write_tensor
from octavo.export.sources import Source
from octavo.text.spm_tokenizer import SentencePieceTokenizer
from octavo.text.tokenizer import has_tokenizer, load_tokenizer
from octavo.weights.checkpoint import LazyTensor
from octavo.weights.llama2c import HEADER_BYTES, MAGIC, Header, layout
from octavo.weights.row_order import permute

GROUP = 64
"""int8 numbers that share a scale, if all matrices' rows are of whole groups; else the largest half of it that fits."""

_EPSILON, _THETA = 1e-5, 10000.0


def write(source: Source, path: Path, quantize: str | None) -> None:
    """Write the whole file.

    Raises:
        UsageError: ``quantize`` is neither None nor "int8". ModelError: the model is not one that llama2.c computes.
    """
    if quantize not in (None, "int8"):
        raise UsageError(f"--quantize {quantize} is not in the layout of llama2.c; accepted: int8, or none (float32)")
    config = source.checkpoint.config
    check(config)
    tensors = {tensor.name: tensor for tensor in source.tensors()}
    header = header_of(config, 2 if quantize else 1)
    with path.open("wb") as file:
        file.write(_header_bytes(header))
        for entry in layout(header):
            tensor = tensors.pop(entry.name or "", None)
            if tensor is None:
                raise ModelError(f"{entry.name} is missing from the model")
            _write_tensor(source, file, tensor, entry.group)
    if tensors:
        raise ModelError(f"{next(iter(tensors))} has no place in llama2.c; accepted: a plain Llama without biases")


def check(config: ModelConfig) -> None:
    """Raise ``ModelError`` for a model that llama2.c would compute wrongly, with what it computes."""
    scaled = config.rope_scaling is not None
    wrong = {
        "architecture": (config.architecture not in ("LlamaForCausalLM", "MistralForCausalLM"), config.architecture),
        "rope_theta": (config.rope_theta != _THETA, config.rope_theta),
        "rope_scaling": (scaled, config.rope_scaling.kind if config.rope_scaling else None),
        "rms_norm_eps": (config.rms_norm_eps != _EPSILON, config.rms_norm_eps),
        "hidden_act": (config.hidden_act != "silu", config.hidden_act),
        "head_dim": (config.head_dim * config.num_heads != config.hidden_size, config.head_dim),
        "sliding_window": (any(config.sliding_windows), next(filter(None, config.sliding_windows), None)),
        "biases": (config.qkv_bias or config.o_bias or config.mlp_bias, True),
    }
    for name, (is_wrong, value) in wrong.items():
        if is_wrong:
            raise ModelError(
                f"llama2.c cannot compute this model ({name} is {value}); accepted: Llama with rope_theta {_THETA:g}"
                f" and rms_norm_eps {_EPSILON:g}, no scaling, windows or biases, head_dim = hidden_size / heads"
            )


def header_of(config: ModelConfig, version: int) -> Header:
    return Header(
        version=version,
        dim=config.hidden_size,
        hidden_dim=config.intermediate_size,
        num_layers=config.num_layers,
        num_heads=config.num_heads,
        num_kv_heads=config.num_kv_heads,
        vocab_size=config.vocab_size,
        max_seq_len=config.max_position_embeddings,
        shared_classifier=config.tie_word_embeddings,
        group_size=_group(config) if version == 2 else 0,
    )


def _group(config: ModelConfig) -> int:
    """llama2.c rounds activations in the same groups, so both sizes of a row must be of whole ones."""
    group = GROUP
    while config.hidden_size % group or config.intermediate_size % group:
        group //= 2
    return group


def _header_bytes(header: Header) -> bytes:
    sizes = (header.dim, header.hidden_dim, header.num_layers, header.num_heads, header.num_kv_heads)
    data = MAGIC + struct.pack("<8i", header.version, *sizes, header.vocab_size, header.max_seq_len)
    data += struct.pack("<B", header.shared_classifier)
    if header.version == 2:
        data += struct.pack("<i", header.group_size)
    return data.ljust(HEADER_BYTES, b"\0")


def _write_tensor(source: Source, file: IO[bytes], tensor: LazyTensor, group: int) -> None:
    if not group:
        write_tensor(file, _in_metas_order(source, tensor, source.plain(tensor, torch.float32)))
        return
    weight = tensor.read(torch.float32)
    if not weight.isfinite().all():
        raise ModelError(f"{tensor.name} has a NaN or an infinity and cannot be quantized")
    groups = weight.reshape(-1, group)
    scales = groups.abs().amax(1, keepdim=True) / 127
    values = (groups / torch.where(scales == 0, 1.0, scales)).round().to(torch.int8)
    source.compare(tensor, f"int8 g{group}", weight.numel() + scales.nbytes, weight, (values * scales).view_as(weight))
    write_tensor(file, _in_metas_order(source, tensor, values.view_as(weight)))
    write_tensor(file, _in_metas_order(source, tensor, scales.view(len(weight), -1)))


def _in_metas_order(source: Source, tensor: LazyTensor, rows: Tensor) -> Tensor:
    heads = {"q_proj": source.checkpoint.config.num_heads, "k_proj": source.checkpoint.config.num_kv_heads}
    count = heads.get(tensor.name.split(".")[-2])
    return rows if count is None else torch.from_numpy(permute(rows.contiguous().numpy(), count))


def can_write_tokenizer(tokenizer: Path) -> bool:
    """Whether the model's tokenizer is SentencePiece, which is all that llama2.c knows."""
    return has_tokenizer(tokenizer) and isinstance(load_tokenizer(tokenizer), SentencePieceTokenizer)


def write_tokenizer(tokenizer: Path, path: Path) -> None:
    """Write ``tokenizer.bin``: the length of the longest piece; of each piece its score, its length and its bytes."""
    found = load_tokenizer(tokenizer)
    assert isinstance(found, SentencePieceTokenizer)
    names = {found.bos_token_id: f"\n{found.bos_token}\n", found.eos_token_id: f"\n{found.eos_token}\n"}
    pieces = sentencepiece_pieces(found)
    texts = [names.get(i, piece.text.replace("▁", " ")).encode() for i, piece in enumerate(pieces)]
    parts = [struct.pack("<fi", p.score, len(t)) + t for p, t in zip(pieces, texts, strict=True)]
    path.write_bytes(struct.pack("<i", max(map(len, texts))) + b"".join(parts))
