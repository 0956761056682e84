"""Which rows are computed together, and which keys each query sees: the host's half of attention.

Rows with equally many queries and similarly many keys form a group: one gather of their blocks and one
batched matrix product, with little padding. A long row's queries are cut into pieces, so that neither scores
nor masks grow large.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from octavo.kernels.forward_batch import AttentionPlan, ForwardBatch
from octavo.kernels.reference.rotary import TokenPlan
from octavo.kernels.reference.workspace import Workspace

PADDING_SHARE = 1.1
"""A group may compute this much more than its rows need …"""
PADDING_SLACK = 2048
"""… plus so many scores of each head: about what one more group costs."""
MAX_GROUP_KEYS = 1 << 15
"""Keys gathered at once for several rows."""
MAX_PIECE_SCORES = 1 << 18
"""Scores of each head computed at once."""
MAX_PIECE_QUERIES = 64
"""Queries of a row computed at once: few, so that scores stay in the CPU's cache and few keys are from the
future.
"""


@dataclass(frozen=True, slots=True)
class Row:
    """One request's part of the step, in host integers. Positions count from the beginning of the request."""

    index: int
    first_token: int
    num_queries: int
    first_query: int
    first_key: int

    @property
    def num_keys(self) -> int:
        return self.first_query + self.num_queries - self.first_key


@dataclass(frozen=True, slots=True)
class Piece:
    """Some queries of each row of a group, and the keys that any of them sees.

    Attributes:
        queries: which of a row's queries.
        keys: which of a row's gathered keys.
        mask: float32 ``[B, 1, queries, 1, m]``, 0 or -inf, for the last m of ``keys``; every query sees the
            keys before them. None: every query sees every key.
    """

    queries: slice
    keys: slice
    mask: Tensor | None


@dataclass(frozen=True, slots=True)
class Group:
    """B rows of Q queries each, computed together.

    Attributes:
        tokens: which of the step's T tokens are the ``B * Q`` queries, row by row.
        cache_rows: ``[B * Hk * n]`` int64: rows of the cache seen as ``[num_blocks * Hk, block_size * D]``
            that hold, head by head, the n blocks of each row.
    """

    tokens: slice | Tensor
    num_rows: int
    num_queries: int
    cache_rows: Tensor
    pieces: list[Piece]


class GroupedPlan(AttentionPlan):
    """A step's groups, made when a layer first asks for its window, then reused by the other layers."""

    def __init__(self, batch: ForwardBatch, workspace: Workspace) -> None:
        self.workspace = workspace
        self._query_lens = host_query_lens(batch)
        self._context_lens = host_context_lens(batch)
        self._block_tables = block_tables_of_rows(batch)
        self._block_size = batch.block_size
        self._num_kv_heads = batch.kv_cache[0].keys.shape[1]
        self._device = batch.token_ids.device
        self._groups: dict[int | None, list[Group]] = {}
        self._batch = batch

    @cached_property
    def tokens(self) -> TokenPlan:
        """Where the step's tokens are written and how they are turned; made when it is first asked for."""
        return TokenPlan(self._batch, self._num_kv_heads)

    def groups(self, window: int | None) -> list[Group]:
        """The groups for layers whose queries see ``window`` positions (None: all)."""
        if window not in self._groups:
            self._groups[window] = [self._group(rows, window) for rows in partition(list(self._rows(window)))]
        return self._groups[window]

    def _rows(self, window: int | None) -> Iterator[Row]:
        token = 0
        for index, (queries, context) in enumerate(zip(self._query_lens, self._context_lens, strict=True)):
            first_query = context - queries
            first_key = 0 if window is None else max(0, first_query - window + 1)
            if queries:  # none: the row fills up a graph
                yield Row(index, token, queries, first_query, first_key - first_key % self._block_size)
            token += queries

    def _group(self, rows: list[Row], window: int | None) -> Group:
        return Group(
            tokens=self._tokens(rows),
            num_rows=len(rows),
            num_queries=rows[0].num_queries,
            cache_rows=self._cache_rows(rows),
            pieces=[self._piece(rows, queries, window) for queries in _cut(rows)],
        )

    def _tokens(self, rows: list[Row]) -> slice | Tensor:
        q = rows[0].num_queries
        firsts = [row.first_token for row in rows]
        if firsts == list(range(firsts[0], firsts[0] + len(rows) * q, q)):
            return slice(firsts[0], firsts[0] + len(rows) * q)
        return (torch.tensor(firsts)[:, None] + torch.arange(q)).flatten().to(self._device)

    def _cache_rows(self, rows: list[Row]) -> Tensor:
        """Blocks of the group's rows, spread over heads. A shorter row repeats its last block, which the mask
        hides.
        """
        size, table = self._block_size, self._block_tables
        first = torch.tensor([[row.first_key // size] for row in rows])
        last = torch.tensor([[(row.first_key + row.num_keys - 1) // size] for row in rows])
        columns = torch.minimum(first + torch.arange(self._blocks(rows)), last).to(table.device)
        index = torch.tensor([[row.index] for row in rows], device=table.device)
        blocks = table[index, columns].to(self._device, torch.int64)
        heads = torch.arange(self._num_kv_heads, device=self._device)
        return (blocks[:, None, :] * self._num_kv_heads + heads[:, None]).flatten()

    def _piece(self, rows: list[Row], queries: slice, window: int | None) -> Piece:
        """Which of the gathered keys (counted from each row's first one) these queries need, and how
        masked.
        """
        firsts = [row.first_query + queries.start - row.first_key for row in rows]
        lasts = [row.first_query + queries.stop - 1 - row.first_key for row in rows]
        start, stop = 0, self._blocks(rows) * self._block_size
        if queries.stop - queries.start < rows[0].num_queries:
            start = 0 if window is None else max(0, min(firsts) - window + 1)
            stop = max(lasts) + 1
        begins_hidden = window is not None and max(lasts) - window >= start
        masked = start if begins_hidden else min(firsts) + 1
        mask = _mask(firsts, queries, range(masked, stop), window).to(self._device) if masked < stop else None
        return Piece(queries, slice(start, stop), mask)

    def _blocks(self, rows: list[Row]) -> int:
        """How many blocks of each of the rows are gathered."""
        return max(-(-row.num_keys // self._block_size) for row in rows)


def host_query_lens(batch: ForwardBatch) -> list[int]:
    """New tokens of each row as they really are; where only the device knows them, it is waited for."""
    if not batch.bounds_only or batch.rows is None:
        return [int(n) for n in batch.query_lens]
    counts: list[int] = batch.rows.query_starts.diff().tolist()
    return counts


def host_context_lens(batch: ForwardBatch) -> list[int]:
    """Context lengths as they really are; on a device they are waited for."""
    return [int(n) for n in (batch.context_lens if batch.rows is None else batch.rows.context_lens.tolist())]


def block_tables_of_rows(batch: ForwardBatch) -> Tensor:
    """``[R, max_blocks]``: line r is row r's."""
    return batch.block_tables if batch.rows is None else batch.block_tables[batch.rows.table_rows.long()]


def partition(rows: Sequence[Row]) -> list[list[Row]]:
    """Split rows into groups of equally many queries and similarly many keys."""
    groups: list[list[Row]] = []
    needed = 0
    for row in sorted(rows, key=lambda row: (row.num_queries, row.num_keys)):
        needed += row.num_keys
        if not (groups and _joins(row, groups[-1], needed)):
            groups.append([])
            needed = row.num_keys
        groups[-1].append(row)
    return groups


def _joins(row: Row, group: list[Row], needed: int) -> bool:
    """Whether a group may take a row that has at least as many keys as its others; they then need ``needed``
    keys.
    """
    keys, q = (len(group) + 1) * row.num_keys, row.num_queries
    return (
        q == group[0].num_queries
        and keys <= MAX_GROUP_KEYS
        and keys * q <= MAX_PIECE_SCORES
        and keys * q <= PADDING_SHARE * needed * q + PADDING_SLACK
    )


def _cut(rows: list[Row]) -> Iterator[slice]:
    """Cut the queries of a group's rows into pieces of bounded size."""
    keys = len(rows) * max(row.num_keys for row in rows)
    step = max(1, min(MAX_PIECE_QUERIES, MAX_PIECE_SCORES // keys))
    for start in range(0, rows[0].num_queries, step):
        yield slice(start, min(start + step, rows[0].num_queries))


def _mask(firsts: list[int], queries: slice, keys: range, window: int | None) -> Tensor:
    """``[B, 1, queries, 1, keys]``: 0 where query ``firsts[b] + i`` sees the key, -inf elsewhere."""
    q = torch.tensor(firsts)[:, None, None] + torch.arange(queries.stop - queries.start)[:, None]
    k = torch.arange(keys.start, keys.stop)
    hidden = k > q if window is None else (k > q) | (k <= q - window)
    return torch.zeros(hidden.shape).masked_fill_(hidden, -torch.inf)[:, None, :, None, :]
