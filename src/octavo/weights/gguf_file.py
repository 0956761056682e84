"""GGUF files: metadata, and where each tensor's bytes lie in the memory-mapped file.

https://github.com/ggml-org/ggml/blob/master/docs/gguf.md describes the format. Versions 2 and 3,
little-endian:

    "GGUF", u32 version, u64 number of tensors, u64 number of keys
    for each key: string key, u32 value type, value
    for each tensor: string name, u32 number of dimensions, u64 dimensions, u32 block type, u64 offset
    padding, data of the tensors
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import NDArray

from octavo.ggml.block_types import BLOCK_TYPES, BLOCK_TYPES_BY_ID, UNREADABLE_TYPES, BlockType
from octavo.weights.gguf_cursor import Cursor, Value, short
from octavo.weights.mapped import MappedFile

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_DIMENSIONS = 4
DEFAULT_ALIGNMENT = 32
MAX_ALIGNMENT = 1 << 20
MAX_ENTRIES = 1 << 16
"""Tensors, and metadata keys, in a file: more than ten times what the largest models have."""


@dataclass(frozen=True, slots=True)
class GGUFTensorInfo:
    """Where a tensor lies.

    Attributes:
        name: GGUF's name (``blk.0.attn_q.weight``).
        shape: rows first: the reverse of the order in the file.
        type: how the weights are stored.
        offset: of its first byte, from the beginning of the file.
        nbytes: its size in the file.
    """

    name: str
    shape: tuple[int, ...]
    type: BlockType
    offset: int
    nbytes: int


class GGUFFile:
    """A GGUF file, memory-mapped; the header is read and checked, the tensors stay on disk.

    Attributes:
        path: the file.
        metadata: key -> number, bool, string or list of these, in the order of the file.
        tensors: name -> ``GGUFTensorInfo``, in the order of the table. All lie within the file, none overlap.

    Raises:
        ModelError: the path is not a file that can be read, or the file is damaged, or of an unsupported
        kind.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._file = MappedFile(self.path, "a GGUF file")
        cursor = Cursor(self._file.bytes.data, str(self.path))
        num_tensors, num_keys = _read_preamble(cursor)
        self.metadata: dict[str, Value] = _read_metadata(cursor, num_keys)
        _refuse_split(cursor, self.metadata)
        self.tensors: dict[str, GGUFTensorInfo] = _read_tensors(cursor, num_tensors, _alignment(cursor, self.metadata))
        _check_extents(cursor, self.tensors, len(self._file))

    def data(self, info: GGUFTensorInfo) -> NDArray[np.uint8]:
        """The packed bytes of a tensor: a read-only view ``uint8[nbytes]`` of the file's pages."""
        return self._file.view(info.offset, info.nbytes)

    def release(self, info: GGUFTensorInfo, rows: slice) -> None:
        """Let go of the pages of a tensor's rows; views of them stay valid."""
        self._file.release_rows(info.offset, info.nbytes, info.shape, rows)


_open_files: WeakValueDictionary[tuple[object, ...], GGUFFile] = WeakValueDictionary()


def open_gguf(path: str | Path) -> GGUFFile:
    """A `GGUFFile` that is open already, if the file has not changed since: a model and its tokenizer have one header,
    and reading a vocabulary takes a while. Not to be changed.
    """
    try:
        seen = os.stat(path)
    except OSError:
        return GGUFFile(path)  # which says what is wrong
    key = (os.fspath(path), seen.st_dev, seen.st_ino, seen.st_size, seen.st_mtime_ns)
    file = _open_files.get(key)
    if file is None:
        file = _open_files[key] = GGUFFile(path)
    return file


def _read_preamble(cursor: Cursor) -> tuple[int, int]:
    """Check magic and version; return the numbers of tensors and of metadata keys."""
    if bytes(cursor.view[:4]) != MAGIC:
        cursor.fail(f"it begins with {bytes(cursor.view[:4])!r}; expected {MAGIC!r}")
    cursor.take(4)
    version = cursor.u32()
    if version not in VERSIONS:
        _fail_on_version(cursor, version)
    num_tensors, num_keys = cursor.u64(), cursor.u64()
    for count, what in ((num_tensors, "tensors"), (num_keys, "metadata keys")):
        if count > MAX_ENTRIES:
            cursor.fail(f"it claims {count} {what}; at most {MAX_ENTRIES} were expected")
    return num_tensors, num_keys


def _fail_on_version(cursor: Cursor, version: int) -> NoReturn:
    accepted = " and ".join(map(str, VERSIONS))
    if version & 0xFFFF == 0 and version:
        cursor.fail("it is big-endian; accepted: little-endian")
    cursor.fail(f"its version is {version}; accepted: {accepted}")


def _read_metadata(cursor: Cursor, count: int) -> dict[str, Value]:
    metadata: dict[str, Value] = {}
    for _ in range(count):
        key = cursor.string()
        if key in metadata:
            cursor.fail(f"the metadata key {short(key)} is there twice")
        metadata[key] = cursor.value(cursor.u32())
    return metadata


def _refuse_split(cursor: Cursor, metadata: dict[str, Value]) -> None:
    count = metadata.get("split.count", 1)
    if isinstance(count, int) and count > 1:
        cursor.fail(f"it is one of {count} parts of a model; accepted: one whole file (llama-gguf-split --merge)")


def _alignment(cursor: Cursor, metadata: dict[str, Value]) -> int:
    alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or not 8 <= alignment <= MAX_ALIGNMENT or alignment & (alignment - 1):
        cursor.fail(f"general.alignment is {short(alignment)}; expected a power of two from 8 to {MAX_ALIGNMENT}")
    return alignment


def _read_tensors(cursor: Cursor, count: int, alignment: int) -> dict[str, GGUFTensorInfo]:
    """Read the table of tensors; the data section begins at the next aligned byte after it."""
    relative: dict[str, GGUFTensorInfo] = {}
    for _ in range(count):
        info = _read_tensor(cursor)
        if info.name in relative:
            cursor.fail(f"the tensor {short(info.name)} is there twice")
        if info.offset % alignment:
            cursor.fail(f"the tensor {short(info.name)} lies at {info.offset}; expected a multiple of {alignment}")
        relative[info.name] = info
    base = -(-cursor.position // alignment) * alignment
    return {
        name: GGUFTensorInfo(name, info.shape, info.type, base + info.offset, info.nbytes)
        for name, info in relative.items()
    }


def _read_tensor(cursor: Cursor) -> GGUFTensorInfo:
    """One entry of the table; its offset counts from the beginning of the data section."""
    name = cursor.string()
    num_dimensions = cursor.u32()
    if not 1 <= num_dimensions <= MAX_DIMENSIONS:
        cursor.fail(f"the tensor {short(name)} has {num_dimensions} dimensions; expected 1 to {MAX_DIMENSIONS}")
    shape = tuple(cursor.u64() for _ in range(num_dimensions))[::-1]
    if 0 in shape:
        cursor.fail(f"the tensor {short(name)} has the shape {shape}; expected no zero")
    kind = _read_type(cursor, name)
    if shape[-1] % kind.block_size:
        cursor.fail(
            f"the tensor {short(name)} of type {kind.name} has rows of {shape[-1]} weights;"
            f" expected a multiple of {kind.block_size}"
        )
    nbytes = math.prod(shape) // kind.block_size * kind.type_size
    return GGUFTensorInfo(name, shape, kind, cursor.u64(), nbytes)


def _read_type(cursor: Cursor, name: str) -> BlockType:
    number = cursor.u32()
    if number not in BLOCK_TYPES_BY_ID:
        what = UNREADABLE_TYPES.get(number, f"number {number}")
        cursor.fail(f"the tensor {short(name)} is of type {what}; accepted: {', '.join(BLOCK_TYPES)}")
    return BLOCK_TYPES_BY_ID[number]


def _check_extents(cursor: Cursor, tensors: dict[str, GGUFTensorInfo], file_size: int) -> None:
    """Fail unless all tensors lie within the file, one after the other."""
    end = 0
    for info in sorted(tensors.values(), key=lambda info: info.offset):
        if info.offset < end:
            cursor.fail(f"the tensor {short(info.name)} at byte {info.offset} overlaps another, which ends at {end}")
        end = info.offset + info.nbytes
        if end > file_size:
            cursor.fail(f"the tensor {short(info.name)} ends at byte {end}, the file at {file_size}: it is cut off")
