"""Checkpoints of llama2.c (https://github.com/karpathy/llama2.c, ``export.py``), memory-mapped.

Three versions of one idea: a few numbers, and then the weights, one after the other, without names:

    0   header of 28 bytes, float32, the embedding first; the tables of rotary angles are in the file, too
    1   header of 256 bytes, float32, the norms first
    2   as 1, but matrices are int8, each followed by its float32 scales, one for every ``group_size`` numbers

Rows of query and key projections are in Meta's order, which is also llama.cpp's.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from octavo.config import ModelConfig
from octavo.errors import ModelError
from octavo.weights.checkpoint import ALL, Checkpoint, LazyTensor
from octavo.weights.mapped import MappedFile, releasing
from octavo.weights.row_order import unpermuted

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    from octavo.kernels.packed import PackedWeight

EXPECTED = "a llama2.c checkpoint"
MAGIC = b"24ka"
"""0x616b3432, little-endian; version 0 has none."""
VERSIONS = (1, 2)
LEGACY_BYTES, HEADER_BYTES = 28, 256
BOS, EOS = 1, 2
"""llama2.c's tokenizers all have them there. Models of stories write BOS, never EOS, when a story ends."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What a file says of itself. ``group_size``: int8 numbers that share a scale; 0: float32."""

    version: int
    dim: int
    hidden_dim: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    vocab_size: int
    max_seq_len: int
    shared_classifier: bool
    group_size: int = 0

    @property
    def nbytes(self) -> int:
        return HEADER_BYTES if self.version else LEGACY_BYTES


@dataclass(frozen=True, slots=True)
class Entry:
    """One array of the file. ``name`` is Hugging Face's; None: no weight. ``group``: as ``Header.group_size``."""

    name: str | None
    shape: tuple[int, ...]
    group: int
    offset: int

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.size + 4 * (self.size // self.group) if self.group else 4 * self.size


def read_header(data: bytes, path: Path) -> Header:
    """Understand the first bytes of a file; ``ModelError`` if they cannot be a header."""
    header = _versioned(data, path) if data[:4] == MAGIC else _legacy(data)
    if header is None or not _is_plausible(header):
        raise ModelError(f"{path} is no llama2.c checkpoint: {header or 'its header'} makes no sense")
    return header


def is_llama2c(path: Path) -> bool:
    """Whether ``path`` begins like a checkpoint of llama2.c, whole or not."""
    try:
        with path.open("rb") as file:
            data = file.read(HEADER_BYTES)
    except OSError:
        return False
    header = _legacy(data)
    return data[:4] == MAGIC or (header is not None and _is_plausible(header))


def layout(header: Header) -> Iterator[Entry]:
    """All arrays in the order of the file. ``ModelError`` if the groups of scales do not come out even."""
    offset = header.nbytes
    for name, shape in _legacy_arrays(header) if header.version == 0 else _arrays(header):
        entry = Entry(name, shape, header.group_size if len(shape) == 2 else 0, offset)
        if entry.group and entry.size % entry.group:
            raise ModelError(f"groups of {entry.group} do not divide the {entry.size} numbers of {name}")
        yield entry
        offset += entry.nbytes


@dataclass(slots=True)
class Llama2cCheckpoint(Checkpoint):
    """A model in one ``.bin`` file."""

    file: MappedFile = field(kw_only=True)
    entries: list[Entry] = field(kw_only=True)

    @classmethod
    def open(cls, path: str | Path) -> Llama2cCheckpoint:
        """Read the header, and check that the file has the length that follows from it; ``ModelError`` if not."""
        file = MappedFile(Path(path), EXPECTED)
        header = read_header(bytes(file.view(0, HEADER_BYTES)), file.path)
        try:
            entries, config = list(layout(header)), _config(header)
        except ModelError as error:
            raise ModelError(f"{file.path}: {error}") from None
        end = entries[-1].offset + entries[-1].nbytes
        if end != len(file):
            raise ModelError(f"{file.path} has {len(file)} bytes; its header stands for {end} ({header})")
        return cls(file.path, config, file=file, entries=entries)

    def tensors(self) -> Iterator[LazyTensor]:
        return releasing(self._tensor(entry.name, entry) for entry in self.entries if entry.name is not None)

    def _tensor(self, name: str, entry: Entry) -> Llama2cTensor:
        heads = {"q_proj": self.config.num_heads, "k_proj": self.config.num_kv_heads}
        return Llama2cTensor(name, self.file, entry, heads.get(name.split(".")[-2]))


class Llama2cTensor(LazyTensor):
    """``heads``: over how many heads the rows are permuted, or None."""

    def __init__(self, name: str, file: MappedFile, entry: Entry, heads: int | None) -> None:
        self.name = name
        self.shape = entry.shape
        self.kind = "Q8" if entry.group else "F32"
        self.nbytes = entry.nbytes
        self._file, self._entry, self._heads = file, entry, heads

    def read(self, dtype: torch.dtype, rows: slice = ALL) -> torch.Tensor:
        import torch

        if not self._entry.group:
            return torch.from_numpy(self._rows(self._values().view(np.float32), rows)).to(dtype)
        if (packed := self.packed(rows)) is not None:
            from octavo.kernels.reference.quantized import dequantize

            return dequantize(packed, dtype)
        # Groups run over the whole array, whatever the length of its rows.
        numbers = self._values().view(np.int8).reshape(-1, self._entry.group) * self._scales()[:, None]
        return torch.from_numpy(self._rows(numbers, rows)).to(dtype)

    @property
    def packed_kind(self) -> str | None:
        return "int8" if self._entry.group and self.shape[-1] % self._entry.group == 0 else None

    def packed(self, rows: slice = ALL) -> PackedWeight | None:
        """The int8 numbers of some rows and their scales, unless a group reaches over the end of a row."""
        if self.packed_kind is None:
            return None
        import torch

        from octavo.kernels.packed import Int8Weight

        values, scales = (self._rows(all_of, rows) for all_of in (self._values().view(np.int8), self._scales()))
        return Int8Weight(values=torch.from_numpy(values), scales=torch.from_numpy(scales))

    def release(self, rows: slice = ALL) -> None:
        if rows == ALL:  # others are soon read
            self._file.release(self._entry.offset, self.nbytes)

    def _values(self) -> NDArray[np.uint8]:
        return self._file.view(self._entry.offset, self.nbytes - self._scale_bytes)

    def _scales(self) -> NDArray[np.float32]:
        # A copy: behind an odd number of int8 the floats are not aligned.
        data = self._file.view(self._entry.offset + self.nbytes - self._scale_bytes, self._scale_bytes)
        return np.frombuffer(data.tobytes(), np.float32).copy()

    @property
    def _scale_bytes(self) -> int:
        return 4 * (self._entry.size // self._entry.group) if self._entry.group else 0

    def _rows(self, numbers: NDArray[np.generic], wanted: slice) -> NDArray[np.generic]:
        """Some of ``numbers`` as rows in Hugging Face's order; writable, as torch wants it."""
        rows = numbers.reshape(self.shape[0], *([-1] if len(self.shape) == 2 else []))
        return np.array(rows[wanted]) if self._heads is None else unpermuted(rows, self._heads, wanted)


def _versioned(data: bytes, path: Path) -> Header | None:
    if len(data) < HEADER_BYTES:
        raise ModelError(f"{path} is cut off: it has {len(data)} bytes of a header of {HEADER_BYTES}")
    (version,) = struct.unpack_from("<i", data, 4)
    if version not in VERSIONS:
        raise ModelError(f"{path} is a llama2.c checkpoint of version {version}; accepted: 0, 1, 2")
    numbers = struct.unpack_from("<7i", data, 8)
    shared, group_size = struct.unpack_from("<Bi", data, 36)
    if shared > 1 or (version == 2 and group_size < 1):
        return None
    return _header(version, numbers, bool(shared), group_size if version == 2 else 0)


def _legacy(data: bytes) -> Header | None:
    if len(data) < LEGACY_BYTES:
        return None
    *shape, vocab_size, max_seq_len = struct.unpack_from("<7i", data)
    # A negative size of the vocabulary says that the classifier has weights of its own.
    return _header(0, (*shape, abs(vocab_size), max_seq_len), vocab_size > 0)


def _header(version: int, numbers: tuple[int, ...], shared: bool, group_size: int = 0) -> Header:
    dim, hidden_dim, layers, heads, kv_heads, vocab_size, max_seq_len = numbers
    return Header(
        version=version,
        dim=dim,
        hidden_dim=hidden_dim,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        vocab_size=vocab_size,
        max_seq_len=max_seq_len,
        shared_classifier=shared,
        group_size=group_size,
    )


def _is_plausible(header: Header) -> bool:
    """Whether these can be the sizes of a model: version 0 has nothing else to be known by."""
    limits = {"dim": 20, "hidden_dim": 20, "num_layers": 12, "num_heads": 14, "vocab_size": 24, "max_seq_len": 24}
    sizes = all(1 <= getattr(header, name) <= 1 << bits for name, bits in limits.items())
    return (
        sizes
        and 1 <= header.num_kv_heads <= header.num_heads
        and not header.num_heads % header.num_kv_heads
        and not header.dim % (2 * header.num_heads)
    )


def _config(header: Header) -> ModelConfig:
    eos = tuple(token for token in (EOS, BOS) if token < header.vocab_size)
    return ModelConfig(
        architecture="LlamaForCausalLM",
        vocab_size=header.vocab_size,
        hidden_size=header.dim,
        intermediate_size=header.hidden_dim,
        num_layers=header.num_layers,
        num_heads=header.num_heads,
        num_kv_heads=header.num_kv_heads,
        head_dim=header.dim // header.num_heads,
        max_position_embeddings=header.max_seq_len,
        rms_norm_eps=1e-5,
        tie_word_embeddings=header.shared_classifier,
        bos_token_id=BOS if header.vocab_size > BOS else None,
        eos_token_ids=eos,
    )


def _legacy_arrays(header: Header) -> Iterator[tuple[str | None, tuple[int, ...]]]:
    attention, mlp = _matrices(header)
    yield "model.embed_tokens.weight", (header.vocab_size, header.dim)
    yield from _each_layer(header, {"input_layernorm": (header.dim,)} | attention)
    yield from _each_layer(header, {"post_attention_layernorm": (header.dim,)} | mlp)
    yield "model.norm.weight", (header.dim,)
    yield None, (header.max_seq_len * header.dim // header.num_heads,)  # cosines and sines
    yield from _classifier(header)


def _arrays(header: Header) -> Iterator[tuple[str | None, tuple[int, ...]]]:
    attention, mlp = _matrices(header)
    yield from _each_layer(header, {"input_layernorm": (header.dim,), "post_attention_layernorm": (header.dim,)})
    yield "model.norm.weight", (header.dim,)
    yield "model.embed_tokens.weight", (header.vocab_size, header.dim)
    yield from _each_layer(header, attention | mlp)
    yield from _classifier(header)


def _matrices(header: Header) -> tuple[dict[str, tuple[int, ...]], dict[str, tuple[int, ...]]]:
    """Those of a layer's attention (wq, wk, wv, wo) and of its MLP (w1, w2, w3), in the order of the file."""
    dim, kv_dim = header.dim, header.dim // header.num_heads * header.num_kv_heads
    attention = {"q_proj": (dim, dim), "k_proj": (kv_dim, dim), "v_proj": (kv_dim, dim), "o_proj": (dim, dim)}
    up, down = (header.hidden_dim, dim), (dim, header.hidden_dim)
    mlp: dict[str, tuple[int, ...]] = {"mlp.gate_proj": up, "mlp.down_proj": down, "mlp.up_proj": up}
    return {f"self_attn.{name}": shape for name, shape in attention.items()}, mlp


def _each_layer(header: Header, parts: dict[str, tuple[int, ...]]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The first part of all layers, then the second of all layers, and so on."""
    for part, shape in parts.items():
        for layer in range(header.num_layers):
            yield f"model.layers.{layer}.{part}.weight", shape


def _classifier(header: Header) -> Iterator[tuple[str, tuple[int, ...]]]:
    if not header.shared_classifier:
        yield "lm_head.weight", (header.vocab_size, header.dim)
