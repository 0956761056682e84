"""GGUF files (version 3), written tensor by tensor. `octavo.weights.gguf_file` describes the format and reads it.

Our own writer, because the format is a table and the bytes behind it, and because the ``gguf`` package then stays what
it is here: an independent reader to test against.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo.ggml.block_types import BLOCK_TYPES
from octavo.weights.gguf_file import DEFAULT_ALIGNMENT, MAGIC

VERSION = 3

_U32, _I32, _F32, _BOOL, _STRING, _ARRAY, _U64 = 4, 5, 6, 7, 8, 9, 10


@dataclass(frozen=True, slots=True)
class GGUFItem:
    """A tensor to be: ``shape`` rows first, ``kind`` a name of `octavo.ggml.block_types`; ``make`` gives its bytes,
    piece by piece.
    """

    name: str
    shape: tuple[int, ...]
    kind: str
    make: Callable[[], Iterator[NDArray[np.uint8]]]

    @property
    def nbytes(self) -> int:
        kind = BLOCK_TYPES[self.kind]
        return math.prod(self.shape) // kind.block_size * kind.type_size


def write_gguf(path: Path, metadata: Mapping[str, Any], items: Sequence[GGUFItem]) -> None:
    """Write one file, making one piece of a tensor at a time.

    Whole numbers become u32 (i32 below zero), lists of them i32, other numbers f32: what llama.cpp expects of the keys
    that models have.
    """
    header = MAGIC + struct.pack("<IQQ", VERSION, len(items), len(metadata))
    header += b"".join(_string(key) + _value(value) for key, value in metadata.items())
    end = 0
    for item in items:
        header += _entry(item, end)
        end += _aligned(item.nbytes)
    with path.open("wb") as file:
        file.write(header + bytes(_aligned(len(header)) - len(header)))
        for item in items:
            written = sum(file.write(np.ascontiguousarray(piece).data) for piece in item.make())
            if written != item.nbytes:
                raise TypeError(f"{item.name} has {written} bytes, not {item.nbytes}")
            file.write(bytes(_aligned(written) - written))


def _entry(item: GGUFItem, offset: int) -> bytes:
    """A line of the table: dimensions begin with the fastest."""
    shape = struct.pack(f"<I{len(item.shape)}Q", len(item.shape), *reversed(item.shape))
    return _string(item.name) + shape + struct.pack("<IQ", BLOCK_TYPES[item.kind].ggml_id, offset)


def _aligned(size: int) -> int:
    return -(-size // DEFAULT_ALIGNMENT) * DEFAULT_ALIGNMENT


def _string(text: str) -> bytes:
    data = text.encode("utf-8")
    return struct.pack("<Q", len(data)) + data


def _value(value: Any) -> bytes:
    """Type and value."""
    if not isinstance(value, list | tuple):
        kind = _kind(value)
        return struct.pack("<I", kind) + _plain(value, kind)
    kind = _kind_of_items(value)
    return struct.pack("<IIQ", _ARRAY, kind, len(value)) + b"".join(_plain(item, kind) for item in value)


def _kind(value: Any) -> int:
    if isinstance(value, bool):
        return _BOOL
    if isinstance(value, int):
        return _I32 if value < 0 else _U32 if value < 1 << 32 else _U64
    if isinstance(value, float):
        return _F32
    if isinstance(value, str):
        return _STRING
    raise TypeError(f"GGUF metadata cannot hold a {type(value).__name__}")


def _kind_of_items(values: Sequence[Any]) -> int:
    kinds = {_kind(value) for value in values}
    if kinds <= {_U32, _I32}:
        return _I32
    if len(kinds) != 1:
        raise TypeError("the items of a GGUF array are of one type")
    return kinds.pop()


def _plain(value: Any, kind: int) -> bytes:
    if kind == _STRING:
        return _string(value)
    return struct.pack({_U32: "<I", _I32: "<i", _F32: "<f", _BOOL: "<?", _U64: "<Q"}[kind], value)
