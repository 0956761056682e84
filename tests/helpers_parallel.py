"""Threads that stand for the devices of a model that is split over them."""

from __future__ import annotations

import threading

import torch

from octavo.parallel import Shard


class Ring:
    """Collective operations between threads."""

    def __init__(self, size: int) -> None:
        self.size, self.parts = size, [None] * size
        self.barrier = threading.Barrier(size, timeout=20)

    def shard(self, rank: int) -> Shard:
        return Shard(rank, self.size, lambda x: sum(self._all(rank, x)), lambda x: torch.cat(self._all(rank, x), -1))

    def _all(self, rank, x):
        self.parts[rank] = x
        self.barrier.wait()
        parts = list(self.parts)
        self.barrier.wait()
        return parts
