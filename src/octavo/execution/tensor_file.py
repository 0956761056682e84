"""A file of tensors that is mapped, not read: what it holds is there at once and shared by all processes that have it.

    tensors, each at a multiple of 64 bytes
    JSON: what was given with the tensors, where each lies, hashes of all chunks
    u64 length of the JSON, its hash, magic

The tensors come first, so that they begin where a huge page does. They are written in large pieces and the mapping
asks for huge pages: file systems with large folios (ext4 from Linux 6.16 on, XFS, Btrfs) then map the file in these.
Every byte is compared with its hash when the file is opened, at the speed of memory: a file that was half on the disk
when the power failed is noticed, and nothing has to wait for a disk when it is written.
"""

from __future__ import annotations

import json
import mmap
import struct
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
import xxhash
from torch import Tensor

from octavo.kernels.cpu.huge_pages import huge_pages, huge_pages_enabled, residence

MAGIC = b"octavo-tensors-1"
ALIGNMENT = 64
CHUNK = 16 << 20
WELL_MAPPED = 0.5
"""Share of a file in huge pages from which on it stays mapped."""
_END = struct.Struct("<Q16s16s")


class DamagedError(Exception):
    """The file is not what was written."""


@dataclass(frozen=True, slots=True)
class TensorFile:
    """A file that was opened.

    Attributes:
        tensors: read-only.
        info: what was given with them.
    """

    tensors: list[Tensor]
    info: Any


def write_tensors(file: IO[bytes], tensors: Sequence[Tensor], info: Any) -> None:
    """Write strided tensors on the CPU, and ``info``, which JSON knows. Raises ``OSError``."""
    hashes = []
    for chunk in _chunks(tensors):
        file.write(chunk)
        hashes.append(xxhash.xxh3_128_hexdigest(chunk))
    places = [(str(t.dtype).removeprefix("torch."), list(t.shape), at) for t, at in _placed(tensors)]
    header = json.dumps({"info": info, "tensors": places, "hashes": hashes}).encode()
    file.write(header)
    file.write(_END.pack(len(header), xxhash.xxh3_128_digest(header), MAGIC))


def open_tensors(path: Path, threads: int) -> TensorFile:
    """Map the file and compare it with its hashes, in ``threads`` threads.

    Raises:
        OSError: it cannot be mapped. DamagedError: it is not what was written.
    """
    with path.open("rb") as file:
        try:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError as error:
            raise DamagedError(str(error)) from None
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a system without them
            mapped.madvise(mmap.MADV_HUGEPAGE)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*not writable")  # nobody writes to a weight
        memory = torch.frombuffer(mapped, dtype=torch.uint8)
    header, size = _header(mapped)
    _compare(memoryview(mapped)[:size], header["hashes"], threads)
    memory = _fastest(memory)
    return TensorFile([_tensor(memory, *place) for place in header["tensors"]], header["info"])


def _fastest(mapped: Tensor) -> Tensor:
    """The mapping; or a copy in huge pages, if this system has them and did not use them for the file: to read from
    them all day is worth more than to share them.
    """
    if not huge_pages_enabled() or residence([mapped]).share > WELL_MAPPED:
        return mapped
    return huge_pages(len(mapped)).copy_(mapped)


def _placed(tensors: Sequence[Tensor]) -> Iterator[tuple[Tensor, int]]:
    """Each tensor, and where it begins."""
    at = 0
    for tensor in tensors:
        yield tensor, at
        at += -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT


def _chunks(tensors: Sequence[Tensor]) -> Iterator[memoryview]:
    """The tensors' bytes one behind the other, with the gaps between them, in equal pieces."""
    chunk, used = memoryview(bytearray(CHUNK)), 0
    for tensor in tensors:
        data = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data
        gap = -len(data) % ALIGNMENT
        for piece in (data, memoryview(bytes(gap))):
            while len(piece):
                size = min(len(piece), CHUNK - used)
                chunk[used : used + size] = piece[:size]
                piece, used = piece[size:], used + size
                if used == CHUNK:
                    yield chunk
                    used = 0
    if used:
        yield chunk[:used]


def _header(mapped: mmap.mmap) -> tuple[dict[str, Any], int]:
    """What is behind the tensors, and where that begins."""
    if len(mapped) < _END.size:
        raise DamagedError("it is too short")
    length, digest, magic = _END.unpack_from(mapped, len(mapped) - _END.size)
    size = len(mapped) - _END.size - length
    if magic != MAGIC or size < 0:
        raise DamagedError("it does not end as it should")
    text = mapped[size : size + length]
    if xxhash.xxh3_128_digest(text) != digest:
        raise DamagedError("its table is not what was written")
    return json.loads(text), size


def _compare(data: memoryview, hashes: Sequence[str], threads: int) -> None:
    chunks = [data[at : at + CHUNK] for at in range(0, len(data), CHUNK)]
    with ThreadPoolExecutor(threads) as pool:
        found = list(pool.map(xxhash.xxh3_128_hexdigest, chunks))
    if found != list(hashes):
        raise DamagedError("its tensors are not what was written")


def _tensor(memory: Tensor, dtype_name: str, shape: Sequence[int], at: int) -> Tensor:
    dtype: torch.dtype = getattr(torch, dtype_name)
    size = torch.Size(shape).numel() * dtype.itemsize
    return memory[at : at + size].view(dtype).view(list(shape))
