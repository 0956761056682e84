"""Which rows the decode kernel computes and how their contexts are cut; the others are grouped for torch."""

from __future__ import annotations

import ctypes

import numpy as np
import torch

from octavo.kernels.cpu.native import MAX_PARTS, AttentionWork
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
        places: where tokens stand and belong; it has no jobs. It stays where it is, as what ``work`` gives.
    """

    def __init__(self, batch: ForwardBatch, workspace: Workspace) -> None:
        super().__init__(batch, workspace)
        self._positions, self._slots = batch.positions.to(torch.int64), batch.slot_mapping.to(torch.int64)
        self._tables = self._block_tables.to(torch.int64).contiguous()
        self.places = self._work_of(np.empty((0, 0, 5), dtype=np.int32))
        self._works: dict[int | None, tuple[AttentionWork, np.ndarray]] = {}
        self._long: dict[int | None, list[Group]] = {}
        self._followed: CpuPlan | None = None

    def work(self, window: int | None) -> AttentionWork:
        """What the kernel reads of this step: jobs of the short rows, longest first."""
        if window not in self._works:
            jobs = self._make_jobs([row for row in self._rows(window) if is_short(row)], window)
            self._works[window] = self._work_of(jobs), jobs
        return self._works[window][0]

    def _work_of(self, jobs: np.ndarray) -> AttentionWork:
        return AttentionWork(
            *(tensor.data_ptr() for tensor in (self._positions, self._slots, self._tables)),
            *(self._tables.stride(0), jobs.ctypes.data, *jobs.shape[:2]),
        )

    def follow(self, later: CpuPlan) -> None:
        """Become the plan of a later step with as many rows of one token each. Kernels that were recorded with this
        plan then do that step, for ``places`` and what ``work`` gave say so, where they are.
        """
        self._followed = later  # it owns the memory
        ctypes.pointer(self.places)[0] = later.places
        for window, (work, _) in self._works.items():
            ctypes.pointer(work)[0] = later.work(window)

    def most_jobs(self, queries: int) -> int:
        """No step with so many short rows' queries has more jobs than this, however long its contexts are."""
        groups = queries * self._num_kv_heads
        return groups * min(wanted_parts(groups, torch.get_num_threads()), MAX_PARTS)

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
    return max(1, min(wanted_parts(jobs, threads), longest // MIN_PART, MAX_PARTS))


def wanted_parts(jobs: int, threads: int) -> int:
    """Into how many parts contexts would be cut if they were long enough."""
    return max(1, -(-JOBS_PER_THREAD * threads // max(1, jobs)))
