"""Memory in huge pages, and how much of it the system has given in these: asking for them is no more than a wish.

A core reads up to twice as fast from them: it looks up an address 512 times less often.
"""

from __future__ import annotations

import mmap
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

ENABLED = Path("/sys/kernel/mm/transparent_hugepage/enabled")
SMAPS = Path("/proc/self/smaps")
_MAPPING = re.compile(r"([0-9a-f]+)-([0-9a-f]+) ")
_AMOUNT = re.compile(r"(\w+):\s+(\d+) kB")
_HUGE = ("AnonHugePages", "FilePmdMapped", "ShmemPmdMapped")


@dataclass(frozen=True, slots=True)
class Residence:
    """Where some memory is: bytes of it that are there at all, in huge pages, and of mapped files, which the system
    counts as memory that it may take for others.
    """

    resident: int
    huge: int
    of_files: int

    @property
    def share(self) -> float:
        return self.huge / self.resident if self.resident else 0.0


def huge_pages(size: int) -> Tensor:
    """New memory, uint8 ``[size]``, in huge pages where the system has them. Raises ``MemoryError``."""
    try:
        if not hasattr(mmap, "MAP_PRIVATE"):  # Windows
            return torch.empty(size, dtype=torch.uint8)
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # shared memory gets none
    except OSError as error:
        raise MemoryError(str(error)) from None
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a system without them
            memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.uint8)


def huge_pages_enabled(path: Path = ENABLED) -> bool:
    """Whether this system gives huge pages to who asks for them."""
    try:
        return "[never]" not in path.read_text()
    except OSError:
        return False


def residence(tensors: Iterable[Tensor], smaps: Path = SMAPS) -> Residence:
    """Of the mappings that hold a byte of one of ``tensors``; nothing where the system does not tell."""
    ranges = sorted((t.data_ptr(), t.data_ptr() + t.nbytes) for t in tensors if t.nbytes)
    try:
        lines = smaps.read_text().splitlines() if ranges else []
    except OSError:
        lines = []
    return _count(lines, ranges)


def _count(lines: Iterable[str], ranges: Sequence[tuple[int, int]]) -> Residence:
    resident = huge = anonymous = 0
    inside = False
    for line in lines:
        if mapping := _MAPPING.match(line):
            begin, end = (int(text, 16) for text in mapping.groups())
            inside = any(first < end and last > begin for first, last in ranges)
        elif inside and (amount := _AMOUNT.match(line)):
            size = int(amount[2]) << 10
            resident += size if amount[1] == "Rss" else 0
            anonymous += size if amount[1] == "Anonymous" else 0
            huge += size if amount[1] in _HUGE else 0
    return Residence(resident, huge, resident - anonymous)
