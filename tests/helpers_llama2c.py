"""Writes what llama2.c's ``export.py`` and ``tokenizer.py`` write."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece

from helpers_gguf import permute

Array = np.ndarray[Any, Any]


def write_llama2c(path: Path, model: Any, version: int, group_size: int = 16) -> dict[str, Array]:
    """Write transformers' llama ``model``; return its weights, for version 2 rounded as the file has them."""
    config = model.config
    state = {name: value.detach().float().numpy() for name, value in model.state_dict().items()}
    shared = bool(config.tie_word_embeddings)
    if version == 2:
        state = {name: rounded(value, group_size) if value.ndim == 2 else value for name, value in state.items()}
    with path.open("wb") as file:
        file.write(header(config, version, shared, group_size))
        for name in names(config.num_hidden_layers, version, shared):
            array = angles(config) if name is None else meta_order(name, state[name], config)
            file.write(packed(array, group_size) if version == 2 and array.ndim == 2 else array.tobytes())
    return state


def header(config: Any, version: int, shared: bool, group_size: int) -> bytes:
    vocab_size = config.vocab_size if version or shared else -config.vocab_size
    numbers = struct.pack(
        "<7i",
        config.hidden_size,
        config.intermediate_size,
        config.num_hidden_layers,
        config.num_attention_heads,
        config.num_key_value_heads,
        vocab_size,
        config.max_position_embeddings,
    )
    if version == 0:
        return numbers
    out = struct.pack("<Ii", 0x616B3432, version) + numbers + struct.pack("<B", shared)
    out += struct.pack("<i", group_size) if version == 2 else b""
    return out.ljust(256, b"\0")


def names(layers: int, version: int, shared: bool) -> list[str | None]:
    def each(part: str) -> list[str | None]:
        return [f"model.layers.{layer}.{part}.weight" for layer in range(layers)]

    attention = [*each("self_attn.q_proj"), *each("self_attn.k_proj"), *each("self_attn.v_proj")]
    attention += each("self_attn.o_proj")
    mlp = [*each("mlp.gate_proj"), *each("mlp.down_proj"), *each("mlp.up_proj")]
    before, after = each("input_layernorm"), each("post_attention_layernorm")
    embedding, norm, head = "model.embed_tokens.weight", "model.norm.weight", [] if shared else ["lm_head.weight"]
    if version == 0:
        return [embedding, *before, *attention, *after, *mlp, norm, None, *head]
    return [*before, *after, norm, embedding, *attention, *mlp, *head]


def angles(config: Any) -> Array:
    """The cosines and sines that version 0 has between the norm and the classifier."""
    head_dim = config.hidden_size // config.num_attention_heads
    frequencies = 10000.0 ** (-np.arange(0, head_dim, 2) / head_dim)
    angle = np.outer(np.arange(config.max_position_embeddings), frequencies)
    return np.concatenate((np.cos(angle).reshape(-1), np.sin(angle).reshape(-1))).astype(np.float32)


def meta_order(name: str, array: Array, config: Any) -> Array:
    if "q_proj" in name:
        return permute(array, config.num_attention_heads)
    return permute(array, config.num_key_value_heads) if "k_proj" in name else array


def rounded(array: Array, group_size: int) -> Array:
    values, scales = quantize(array, group_size)
    return (values.astype(np.float32) * scales[:, None]).reshape(array.shape)


def packed(array: Array, group_size: int) -> bytes:
    values, scales = quantize(array, group_size)
    return values.tobytes() + scales.tobytes()


def quantize(array: Array, group_size: int) -> tuple[Array, Array]:
    groups = array.reshape(-1, group_size)
    scales = (np.abs(groups).max(1) / 127).astype(np.float32)
    return np.round(groups / scales[:, None]).astype(np.int8), scales


def write_tokenizer_bin(path: Path, model: sentencepiece.SentencePieceProcessor) -> Path:
    pieces = [piece_bytes(model, number) for number in range(model.get_piece_size())]
    out = struct.pack("<i", max(map(len, pieces)))
    for number, piece in enumerate(pieces):
        out += struct.pack("<fi", model.get_score(number), len(piece)) + piece
    path.write_bytes(out)
    return path


def piece_bytes(model: sentencepiece.SentencePieceProcessor, number: int) -> bytes:
    text = {model.bos_id(): "\n<s>\n", model.eos_id(): "\n</s>\n"}.get(number, model.id_to_piece(number))
    return text.replace("▁", " ").encode()


def plain(state: Mapping[str, Array]) -> dict[str, Any]:
    """``state`` for transformers' ``load_state_dict``."""
    import torch

    return {name: torch.from_numpy(np.array(value)) for name, value in state.items()}
