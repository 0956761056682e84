"""Memory for weights, in huge pages where the system has them.

A core reads 1.7 times as fast from them: it looks up an address 512 times less often. A matrix of a small model is
smaller than one of them, so that matrices share.
"""

from __future__ import annotations

import torch
from torch import Tensor

from octavo.kernels.cpu.huge_pages import huge_pages

CHUNK = 64 << 20
"""Bytes asked of the system at once. What nobody has written to takes no memory."""

ALIGNMENT = 64


class Arena:
    """Gives stretches of large pieces of memory. A piece goes back to the system when none of its tensors is left."""

    def __init__(self) -> None:
        self._rest = torch.empty(0, dtype=torch.uint8)

    def take(self, size: int) -> Tensor:
        """uint8 ``[size]``, aligned to a cache line. Raises ``MemoryError``."""
        padded = -(-size // ALIGNMENT) * ALIGNMENT
        if padded > len(self._rest):
            self._rest = huge_pages(max(padded, CHUNK))
        taken, self._rest = self._rest[:size], self._rest[padded:]
        return taken


class Scratch:
    """Memory that is used again in each call, grows and is kept. It serves one thread."""

    def __init__(self) -> None:
        self._memory = torch.empty(0, dtype=torch.uint8)

    def take(self, size: int) -> Tensor:
        """uint8 ``[at least size]``, aligned to a cache line; what was there before is lost."""
        if size > len(self._memory):
            memory = torch.empty(size + size // 4 + ALIGNMENT, dtype=torch.uint8)
            self._memory = memory[-memory.data_ptr() % ALIGNMENT :]
        return self._memory
