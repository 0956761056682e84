"""A file as memory: its pages come from disk when they are touched, and all processes that map it share them.

Touched pages count as the process's own resident memory until the system takes them back. So that a model of 10 GB
does not seem to need 20 while it is loaded, a tensor's pages are let go as soon as the next one is asked for; they come
back by themselves (from the page cache, as a rule) where somebody still looks at them.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from octavo.errors import ModelError

AROUND = 1 << 20
"""Bytes: more than the system brings in around a page that is touched. Of many small tensors that was a quarter."""


class MappedFile:
    """A regular file's pages, read-only.

    Args:
        path: the file.
        expected: what it should be, for an error: "a GGUF file".

    Raises:
        ModelError: it cannot be mapped. A pipe is refused before it is opened, as opening it may wait for ever.
    """

    def __init__(self, path: Path, expected: str) -> None:
        self.path = path
        self._map = _map(path, expected)
        self.bytes: NDArray[np.uint8] = np.frombuffer(self._map, np.uint8)

    def __len__(self) -> int:
        return len(self.bytes)

    def view(self, offset: int, nbytes: int) -> NDArray[np.uint8]:
        """Bytes of the file without a copy: ``uint8[nbytes]``, read-only."""
        return self.bytes[offset : offset + nbytes]

    def release(self, offset: int, nbytes: int) -> None:
        """Let go of the pages that hold these bytes, and of those ``AROUND`` before them, which came back with the
        first of these. Views stay valid.
        """
        if nbytes and hasattr(mmap, "MADV_DONTNEED"):
            begin = max(offset - AROUND, 0) // mmap.PAGESIZE * mmap.PAGESIZE
            self._map.madvise(mmap.MADV_DONTNEED, begin, offset + nbytes - begin)

    def release_rows(self, offset: int, nbytes: int, shape: tuple[int, ...], rows: slice) -> None:
        """`release` for some rows of a tensor of ``shape`` that lies at ``offset``, one row behind the other."""
        first, last, _ = rows.indices(shape[0]) if shape else (0, 1, 1)
        each = nbytes // max(shape[0], 1) if shape else nbytes
        self.release(offset + first * each, max(last - first, 0) * each)


class Releasable(Protocol):
    def release(self) -> None: ...


T = TypeVar("T", bound=Releasable)


def releasing(tensors: Iterable[T]) -> Iterator[T]:
    """Yield each tensor, and let go of its pages when the next one is asked for."""
    for tensor in tensors:
        yield tensor
        tensor.release()


def _map(path: Path, expected: str) -> mmap.mmap:
    try:
        if path.is_dir():
            raise ModelError(f"{path} is a folder; {expected} was expected")
        if path.exists() and not path.is_file():
            raise ModelError(f"{path} is not a regular file; {expected} was expected")
        if path.stat().st_size == 0:
            raise ModelError(f"{path} is empty; {expected} was expected")
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ModelError(f"{str(path)!r} cannot be read: {reason}; {expected} was expected") from None
