"""The queries of rows cut into tiles: on the host, or on the device for a step that a CUDA graph repeats.

A tile is a row and the first of its queries; all tiles of a list have equally many queries, but a row's last one may
have fewer. Since a tile's work grows with its position, the longest come first, so that the short ones fill the gaps at
the end.

In a graph the rows' lengths are known on the device alone, and a list is as long as it can become: what is left over
names row -1, whose programs end at once.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from octavo.kernels.forward_batch import DeviceRows
from octavo.kernels.transfer import to_device

Kind = Literal["all", "several", "fresh", "cached"]
"""Which rows: all; those of several queries; of these, those without and those with a cached prefix."""


class HostTiles:
    """Cuts rows whose lengths the host knows.

    Args:
        queries, contexts: int32 ``[R]``: new tokens, and tokens in the cache after this step.
        device: of the lists.
    """

    def __init__(self, queries: np.ndarray, contexts: np.ndarray, device: torch.device) -> None:
        self._queries, self._contexts, self._device = queries, contexts, device

    def cut(self, size: int, kind: Kind, whole: int = 0) -> Tensor | None:
        """Tiles of ``size`` queries of the rows of one kind: int32 ``[tiles, 2]``; None if there are none.

        ``whole``: leave out as many whole multiples of so many queries, from the beginning of each row, as there are.
        """
        rows = np.flatnonzero(self._mask(kind))
        lens = self._queries[rows]
        skipped = lens // whole * whole if whole else np.zeros_like(lens)
        counts = -(-(lens - skipped) // size)
        row = np.repeat(rows, counts)
        index = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
        first = np.repeat(skipped, counts) + index * size
        position = self._contexts[row] - self._queries[row] + first
        tiles = np.stack([row, first], axis=1)[np.argsort(-position, kind="stable")]
        return upload(tiles, self._device) if len(tiles) else None

    def _mask(self, kind: Kind) -> np.ndarray:
        several, fresh = self._queries > 1, self._queries == self._contexts
        masks = {"all": self._queries > 0, "several": several, "fresh": several & fresh, "cached": several & ~fresh}
        return masks[kind]


class DeviceTiles:
    """Cuts rows whose lengths are on the device, by operations that a graph can repeat.

    Args:
        rows: the step's; one of no queries has no tiles.
        num_tokens: that the rows have together at most.
    """

    def __init__(self, rows: DeviceRows, num_tokens: int) -> None:
        self._contexts, self._num_tokens = rows.context_lens, num_tokens
        self._queries = rows.query_starts.diff()

    def cut(self, size: int, kind: Kind, whole: int = 0) -> Tensor:
        """As ``HostTiles.cut``, filled up to the longest that the list can be with tiles of row -1."""
        if whole:
            raise ValueError("a graph leaves no queries out: their number is not known")
        counts = torch.where(self._mask(kind), (self._queries + size - 1) // size, 0)
        ends = counts.cumsum(0)
        index = torch.arange(self._most(size, kind), device=counts.device)
        row = torch.searchsorted(ends, index, right=True)
        real = row < len(counts)
        row = row.clamp(max=len(counts) - 1)
        first = (index - (ends - counts)[row]) * size
        position = (self._contexts - self._queries)[row] + first
        order = torch.where(real, position, -1).argsort(descending=True, stable=True)
        return torch.stack([torch.where(real, row, -1), first], dim=1)[order].int()

    def _mask(self, kind: Kind) -> Tensor:
        several = self._queries > (0 if kind == "all" else 1)
        if kind in ("all", "several"):
            return several
        fresh = self._queries == self._contexts
        return several & (fresh if kind == "fresh" else ~fresh)

    def _most(self, size: int, kind: Kind) -> int:
        """Whole tiles, and one that is not whole for each row."""
        rows = min(len(self._queries), self._num_tokens // (1 if kind == "all" else 2))
        return self._num_tokens // size + rows


def upload(array: np.ndarray, device: torch.device) -> Tensor:
    """``array`` as int32 on the device; the host does not wait for the copy."""
    return to_device(array.astype(np.int32, copy=False), device)
