"""Which rows the decode kernel computes and how their contexts are cut; the others are grouped for torch."""

from __future__ import annotations

import numpy as np
import torch

from octavo.kernels.cpu.native import MAX_PARTS
from octavo.kernels.forward_batch import ForwardBatch
from octavo.kernels.reference.attention_plan import Group, GroupedPlan, Row, partition
from octavo.kernels.reference.workspace import Workspace

MAX_QUERIES = 8
"""Rows of at most so many queries are for the decode kernel, which reads the context once for each."""
JOBS_PER_THREAD = 4
"""Jobs that each thread should have to choose from, so that none waits long for another."""
MIN_PART = 128
"""A part of a context is at least so many positions, or cutting costs more than it gives."""


class CpuPlan(GroupedPlan):
    """`GroupedPlan` with jobs for the decode kernel.

    Attributes:
        positions, slots: ``[T]`` int64, of each token.
        tables: ``[R, max_blocks]`` int64, contiguous rows.
    """

    def __init__(self, batch: ForwardBatch, workspace: Workspace) -> None:
        super().__init__(batch, workspace)
        self.positions, self.slots = batch.positions.to(torch.int64), batch.slot_mapping.to(torch.int64)
        self.tables = self._block_tables.to(torch.int64).contiguous()
        self._jobs: dict[int | None, np.ndarray] = {}
        self._long: dict[int | None, list[Group]] = {}

    def jobs(self, window: int | None) -> np.ndarray:
        """Jobs of the short rows, longest first: int32 ``[N, parts, 5]``, as ``Native.attention`` wants them."""
        if window not in self._jobs:
            self._jobs[window] = self._make_jobs([row for row in self._rows(window) if is_short(row)], window)
        return self._jobs[window]

    def long_groups(self, window: int | None) -> list[Group]:
        """The groups of the rows that have no jobs."""
        if window not in self._long:
            rows = [row for row in self._rows(window) if not is_short(row)]
            self._long[window] = [self._group(group, window) for group in partition(rows)]
        return self._long[window]

    def _make_jobs(self, rows: list[Row], window: int | None) -> np.ndarray:
        queries = [
            (row.first_token + i, row.index, row.first_query + i + 1) for row in rows for i in range(row.num_queries)
        ]
        token, index, end = np.array(queries, dtype=np.int32).reshape(-1, 3).T
        order = np.argsort(-end, kind="stable")
        token, index, end = (x[order] for x in (token, index, end))
        begin = np.zeros_like(end) if window is None else np.maximum(end - window, 0)
        heads = self._num_kv_heads
        parts = num_parts(len(token) * heads, int((end - begin).max(initial=0)), torch.get_num_threads())
        length = -(-(end - begin) // parts)
        jobs = np.empty((len(token), heads, parts, 5), dtype=np.int32)
        jobs[..., 0], jobs[..., 1] = token[:, None, None], index[:, None, None]
        jobs[..., 2] = np.arange(heads)[:, None]
        cuts = begin[:, None] + np.arange(parts + 1) * length[:, None]
        cuts = np.minimum(cuts, end[:, None])[:, None]
        jobs[..., 3], jobs[..., 4] = cuts[..., :-1], cuts[..., 1:]
        return jobs.reshape(-1, parts, 5)


def is_short(row: Row) -> bool:
    """Whether the decode kernel computes it."""
    return row.num_queries <= MAX_QUERIES


def num_parts(jobs: int, longest: int, threads: int) -> int:
    """Into how many parts each context is cut, so that all threads have work until the end."""
    wanted = -(-JOBS_PER_THREAD * threads // max(1, jobs))
    return max(1, min(wanted, longest // MIN_PART, MAX_PARTS))
