"""What all layers of a step share: where its tokens stand, and how its rows are cut into pieces of work.

Rows with one query are decoded (`decode_attention`). The queries of the others are cut into tiles of equal size
(`prefill_attention`); since a tile's work grows with its position, the longest come first, so that the short ones fill
the gaps at the end. A row is fresh if all its context is new: its keys and values need not be read from the cache.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from octavo.kernels.forward_batch import AttentionPlan, DeviceRows, ForwardBatch


class Scores(NamedTuple):
    """How scores are made of products: see ``Ops.attention``."""

    scale: float
    window: int | None = None
    soft_cap: float | None = None


class FreshRow(NamedTuple):
    """A row without a cached prefix: tokens ``first_token`` to ``first_token + num_tokens - 1`` of the step."""

    first_token: int
    num_tokens: int


class TritonPlan(AttentionPlan):
    """The plan of one step.

    Attributes:
        positions: ``[T]`` int, on the device: where each token stands in its request.
        slot_mapping: ``[T]`` int, on the device: ``block * block_size + offset`` of each token's K and V.
        block_tables: int32 or int64 ``[lines, max_blocks]``.
        block_size: tokens in a block.
        rows: where each row's tokens, lengths and blocks are, on the device.
        decode_rows: int32 ``[num_decode_rows]``, on the device: the rows with one query. None: all rows are.
        num_decode_rows: how many these are.
        max_decode_context: no context of these is longer, in this step or in any replay of its graph.
        fresh_rows: rows of several queries without a cached prefix.
        deterministic: whether a row's bits must not depend on the rest of the batch.
    """

    def __init__(self, batch: ForwardBatch, *, deterministic: bool = False) -> None:
        self.positions = batch.positions
        self.slot_mapping = batch.slot_mapping
        self.block_tables = batch.block_tables
        self.block_size = batch.block_size
        self.deterministic = deterministic
        self._device = batch.token_ids.device
        self._queries = np.asarray(batch.query_lens, dtype=np.int32)
        self._contexts = np.asarray(batch.context_lens, dtype=np.int32)
        self._tiles: dict[tuple[int, bool | None, int], Tensor] = {}

        decode = np.flatnonzero(self._queries == 1).astype(np.int32)
        self._prefill = np.flatnonzero(self._queries > 1).astype(np.int32)
        self.num_decode_rows = len(decode)
        self.max_decode_context = int(self._contexts[decode].max(initial=0))
        self.rows, self.decode_rows = self._on_device(batch.rows, decode if len(self._prefill) else None)
        self._fresh = self._queries == self._contexts
        starts = np.cumsum(self._queries) - self._queries
        self.fresh_rows = [FreshRow(int(starts[r]), int(self._queries[r])) for r in self._prefill if self._fresh[r]]

    def _on_device(self, rows: DeviceRows | None, decode: np.ndarray | None) -> tuple[DeviceRows, Tensor | None]:
        """Whatever of the two is not on the device yet, in one copy."""
        parts = [] if decode is None else [decode]
        if rows is None:
            starts = np.concatenate(([0], np.cumsum(self._queries)))
            parts += [starts, self._contexts, np.arange(len(self._queries))]
        uploaded = list(upload(np.concatenate(parts), self._device).split([len(p) for p in parts])) if parts else []
        decode_rows = None if decode is None else uploaded.pop(0)
        return rows or DeviceRows(*uploaded), decode_rows

    @property
    def num_prefill_rows(self) -> int:
        """Rows with several queries."""
        return len(self._prefill)

    @property
    def max_queries(self) -> int:
        """Queries of the row that has most."""
        return int(self._queries.max(initial=0))

    def tiles(self, queries: int, *, fresh: bool | None = None, whole: int = 0) -> Tensor | None:
        """Tiles of ``queries`` queries of the rows that have several: int32 ``[tiles, 2]``, row and first query.

        Args:
            queries: of each tile; a row's last tile may have fewer.
            fresh: take only rows that are fresh (True) or not (False). None: all.
            whole: leave out as many whole multiples of so many queries, from the beginning of each row, as there are.

        Returns:
            None if there are none.
        """
        key = (queries, fresh, whole)
        if key not in self._tiles:
            rows = self._prefill if fresh is None else self._prefill[self._fresh[self._prefill] == fresh]
            self._tiles[key] = upload(self._cut(rows, queries, whole), self._device)
        return self._tiles[key] if len(self._tiles[key]) else None

    def _cut(self, rows: np.ndarray, queries: int, whole: int) -> np.ndarray:
        lens = self._queries[rows]
        skipped = lens // whole * whole if whole else np.zeros_like(lens)
        counts = -(-(lens - skipped) // queries)
        row = np.repeat(rows, counts)
        index = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
        first = np.repeat(skipped, counts) + index * queries
        position = self._contexts[row] - self._queries[row] + first
        return np.stack([row, first], axis=1)[np.argsort(-position, kind="stable")]


def upload(array: np.ndarray, device: torch.device) -> Tensor:
    """``array`` as int32 on the device; the host does not wait for the copy."""
    tensor = torch.from_numpy(np.ascontiguousarray(array, dtype=np.int32))
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor
