"""Small GGUF files: whole ones through the gguf package's writer, and broken ones byte by byte."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np

Array = np.ndarray[Any, Any]

LLAMA_METADATA: dict[str, Any] = {
    "block_count": 2,
    "context_length": 128,
    "embedding_length": 64,
    "feed_forward_length": 96,
    "attention.head_count": 4,
    "attention.head_count_kv": 2,
    "attention.layer_norm_rms_epsilon": 1e-5,
    "rope.freq_base": 50000.0,
    "rope.dimension_count": 16,
}
"""A llama of two layers, without the prefix of its architecture. Rows are of whole blocks of 32."""


def write_gguf(
    path: Path,
    metadata: Mapping[str, Any],
    tensors: Mapping[str, tuple[Array, str]],
    architecture: str = "llama",
) -> Path:
    """Write a file. ``tensors``: name -> float32 array and the type to quantize it to."""
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in metadata.items():
        add_value(writer, key, value)
    for name, (array, kind) in tensors.items():
        number = gguf.GGMLQuantizationType[kind]
        writer.add_tensor(name, gguf.quants.quantize(array, number), raw_dtype=number)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def add_value(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, list):
        writer.add_array(key, value)
    elif isinstance(value, int) and not isinstance(value, bool):
        writer.add_uint32(key, value)
    else:
        writer.add_key_value(key, value, gguf.GGUFValueType.get_type(value))


def model_metadata(architecture: str = "llama", **changes: Any) -> dict[str, Any]:
    """`LLAMA_METADATA` under another prefix. ``changes``: with ``__`` for dots; None takes a key out."""
    fields = {**LLAMA_METADATA, **{key.replace("__", "."): value for key, value in changes.items()}}
    return {f"{architecture}.{key}": value for key, value in fields.items() if value is not None}


def hugging_face_arrays(rng: np.random.Generator, metadata: Mapping[str, Any], vocab_size: int) -> dict[str, Array]:
    """Random float32 weights of the model that ``metadata`` (all keys with one prefix) describes, under
    GGUF's names but with Hugging Face's order of rows."""
    field = {key.split(".", 1)[1]: value for key, value in metadata.items()}
    hidden, ffn, heads = (
        field["embedding_length"],
        field["feed_forward_length"],
        field["attention.head_count"],
    )
    head_dim = field.get("attention.key_length", hidden // heads)
    q_rows, kv_rows = heads * head_dim, field.get("attention.head_count_kv", heads) * head_dim
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (vocab_size, hidden),
        "output_norm.weight": (hidden,),
    }
    for layer in range(field["block_count"]):
        names = {
            "attn_norm": (hidden,), "attn_q": (q_rows, hidden), "attn_k": (kv_rows, hidden),
            "attn_v": (kv_rows, hidden), "attn_output": (hidden, q_rows), "ffn_norm": (hidden,),
            "ffn_gate": (ffn, hidden), "ffn_up": (ffn, hidden), "ffn_down": (hidden, ffn),
        }  # fmt: skip
        shapes |= {f"blk.{layer}.{name}.weight": shape for name, shape in names.items()}
    return {name: rng.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}


def permute(array: Array, num_heads: int) -> Array:
    """What llama.cpp's converter does to the rows of query and key projections: in each head, row
    ``half * d/2 + i`` goes to row ``2 * i + half``. A loop over rows, to check the library's reshaping
    against."""
    head_dim = len(array) // num_heads
    out = np.empty_like(array)
    for head in range(num_heads):
        for half in range(2):
            for i in range(head_dim // 2):
                source = head * head_dim + half * (head_dim // 2) + i
                out[head * head_dim + 2 * i + half] = array[source]
    return out


def as_llama_cpp(arrays: Mapping[str, Array], num_heads: int, num_kv_heads: int) -> dict[str, Array]:
    """``arrays`` with the query and key rows in llama.cpp's order for its "llama" architecture."""
    heads = {"attn_q": num_heads, "attn_k": num_kv_heads}
    return {
        name: permute(array, heads[part]) if (part := name.split(".")[-2]) in heads else array
        for name, array in arrays.items()
    }


def write_llama(path: Path, kind: str = "F32", vocab_size: int = 40, **changes: Any) -> tuple[Path, dict[str, Array]]:
    """A whole small llama file; matrices are of type ``kind``, vectors F32. Returns it with the weights in
    Hugging Face's order of rows."""
    metadata = model_metadata(**changes)
    arrays = hugging_face_arrays(np.random.default_rng(0), metadata, vocab_size)
    heads = metadata["llama.attention.head_count"]
    stored = as_llama_cpp(arrays, heads, metadata.get("llama.attention.head_count_kv", heads))
    tensors = {name: (array, kind if array.ndim == 2 else "F32") for name, array in stored.items()}
    return write_gguf(path, metadata, tensors), arrays


# Bytes of broken files


def u32(number: int) -> bytes:
    return struct.pack("<I", number)


def u64(number: int) -> bytes:
    return struct.pack("<Q", number)


def string(text: str | bytes, length: int | None = None) -> bytes:
    """A GGUF string, whose length may be a lie."""
    data = text.encode() if isinstance(text, str) else text
    return u64(len(data) if length is None else length) + data


def preamble(num_tensors: int, num_keys: int, version: int = 3, magic: bytes = b"GGUF") -> bytes:
    return magic + u32(version) + u64(num_tensors) + u64(num_keys)


def tensor_entry(
    name: str, dimensions: tuple[int, ...], kind: int = 0, offset: int = 0, num_dimensions: int | None = None
) -> bytes:
    """A line of the table of tensors. ``dimensions`` in the order of the file: the fastest first."""
    number = len(dimensions) if num_dimensions is None else num_dimensions
    return string(name) + u32(number) + b"".join(map(u64, dimensions)) + u32(kind) + u64(offset)


def with_tensors(*entries: bytes, data: int = 4096) -> bytes:
    """A file without metadata, with ``data`` zero bytes after the padding."""
    header = preamble(len(entries), 0) + b"".join(entries)
    return header + bytes(-len(header) % 32) + bytes(data)


def with_keys(*keys: bytes, tail: int = 64) -> bytes:
    """A file with metadata alone."""
    return preamble(0, len(keys)) + b"".join(keys) + bytes(tail)
