"""What all layers of a step share: where its tokens stand, and how its rows are cut into pieces of work.

Rows with one query are decoded (`decode_attention`). The queries of the others are cut into tiles (`attention_tiles`,
`prefill_attention`). A row is fresh if all its context is new: its keys and values need not be read from the cache.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from octavo.kernels.forward_batch import AttentionPlan, DeviceRows, ForwardBatch
from octavo.kernels.triton.attention_tiles import DeviceTiles, HostTiles, Kind, upload


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
    """The plan of one step, or of all steps that a CUDA graph is replayed for (``ForwardBatch.bounds_only``).

    Attributes:
        positions: ``[T]`` int, on the device: where each token stands in its request.
        slot_mapping: ``[T]`` int, on the device: ``block * block_size + offset`` of each token's K and V.
        block_tables: int32 or int64 ``[lines, max_blocks]``.
        block_size: tokens in a block.
        rows: where each row's tokens, lengths and blocks are, on the device.
        decode_rows: int32 ``[num_decode_rows]``, on the device: the rows with one query; -1 for one that has not, in a
            graph. None: all rows are.
        num_decode_rows: how many these are at most.
        max_decode_context: no context of these is longer, in this step or in any replay of its graph.
        num_prefill_rows: rows with several queries, at most.
        max_queries: of a row, at most.
        fresh_rows: rows of several queries without a cached prefix, as far as the host knows them.
        has_fresh: whether there may be such rows.
        deterministic: whether a row's bits must not depend on the rest of the batch.
    """

    rows: DeviceRows
    decode_rows: Tensor | None

    def __init__(self, batch: ForwardBatch, *, deterministic: bool = False) -> None:
        self.positions, self.slot_mapping = batch.positions, batch.slot_mapping
        self.block_tables, self.block_size = batch.block_tables, batch.block_size
        self.deterministic = deterministic
        self.max_queries = max(batch.query_lens, default=0)
        self._cut: HostTiles | DeviceTiles
        self._lists: dict[tuple[int, Kind, int], Tensor | None] = {}
        if batch.bounds_only and self.max_queries > 1:
            self._plan_on_device(batch)
        else:
            self._plan_on_host(batch)

    def _plan_on_host(self, batch: ForwardBatch) -> None:
        device = batch.token_ids.device
        queries = np.asarray(batch.query_lens, dtype=np.int32)
        contexts = np.asarray(batch.context_lens, dtype=np.int32)
        self._cut = HostTiles(queries, contexts, device)
        decode, prefill = np.flatnonzero(queries == 1), np.flatnonzero(queries > 1)
        self.num_decode_rows, self.num_prefill_rows = len(decode), len(prefill)
        self.max_decode_context = int(contexts[decode].max(initial=0))
        self.rows, self.decode_rows = _on_device(
            batch.rows, queries, contexts, decode if len(prefill) else None, device
        )
        starts = np.cumsum(queries) - queries
        fresh = prefill[queries[prefill] == contexts[prefill]]
        self.fresh_rows = [FreshRow(int(starts[r]), int(queries[r])) for r in fresh]
        self.has_fresh = bool(self.fresh_rows)

    def _plan_on_device(self, batch: ForwardBatch) -> None:
        assert batch.rows is not None  # lengths that only the device knows are there
        self.rows, count = batch.rows, len(batch.query_lens)
        self._cut = DeviceTiles(self.rows, len(batch.token_ids))
        queries = self.rows.query_starts.diff()
        line = torch.arange(count, dtype=torch.int32, device=queries.device)
        self.decode_rows = torch.where(queries == 1, line, -1)
        # A step of one row is in such a graph only if it has several queries.
        self.num_decode_rows, self.num_prefill_rows = (count if count > 1 else 0), count
        self.max_decode_context = max(batch.context_lens)
        self.fresh_rows, self.has_fresh = [], True

    def tiles(self, queries: int, kind: Kind = "several", *, whole: int = 0) -> Tensor | None:
        """Tiles of ``queries`` queries: int32 ``[tiles, 2]``, row and first query; row -1 is none. See `HostTiles`."""
        key = (queries, kind, whole)
        if key not in self._lists:
            self._lists[key] = self._cut.cut(queries, kind, whole)
        return self._lists[key]


def _on_device(
    rows: DeviceRows | None,
    queries: np.ndarray,
    contexts: np.ndarray,
    decode: np.ndarray | None,
    device: torch.device,
) -> tuple[DeviceRows, Tensor | None]:
    """``rows`` and ``decode``, whatever of the two is not on the device yet, in one copy."""
    parts = [] if decode is None else [decode]
    if rows is None:
        starts = np.concatenate(([0], np.cumsum(queries)))
        parts += [starts, contexts, np.arange(len(queries))]
    uploaded = list(upload(np.concatenate(parts), device).split([len(p) for p in parts])) if parts else []
    decode_rows = None if decode is None else uploaded.pop(0)
    return rows or DeviceRows(*uploaded), decode_rows
