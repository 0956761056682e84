"""A step's work for the C kernels of attention: what they are given to do, and how it is cut.

Rows of few queries go to decode attention, one job for each query and key/value head; a context that is long beside the
number of jobs is cut into parts. The queries of other rows are cut into stretches.
"""

from __future__ import annotations

import ctypes

import numpy as np
import torch

from octavo.kernels.cpu.native import LANES, MAX_PARTS, AttentionWork
from octavo.kernels.forward_batch import ForwardBatch
from octavo.kernels.reference.attention_plan import GroupedPlan, Row
from octavo.kernels.reference.workspace import Workspace

MAX_QUERIES = 3
"""Rows of at most so many queries are for decode attention, which reads the context once for each; to pack keys for so
few would take longer."""
JOBS_PER_THREAD = 4
"""Jobs that each thread should have to choose from, so that none waits long for another."""
MIN_PART = 64
"""A part of a context is at least so many positions, or cutting costs more than it gives."""
MIN_STRETCH, MAX_STRETCH = 8, 64
"""Queries of a stretch: each packs the keys that it sees, so that few are dear; many leave threads without work."""
NO_WINDOW = 1 << 30
"""Longer than any context, and far from where 32 bits overflow."""

_NOTHING = np.empty((0, 0, 5), dtype=np.int32)


class CpuPlan(GroupedPlan):
    """`GroupedPlan` with work for the kernels.

    Attributes:
        threads: how many do the work.
        places: where tokens stand and belong; there is nothing to do in it. It stays where it is, as what ``work``
            gives.
    """

    def __init__(self, batch: ForwardBatch, workspace: Workspace, threads: int) -> None:
        """``threads``: how many will do the work."""
        super().__init__(batch, workspace)
        self.threads = threads
        self._positions, self._slots = batch.positions.to(torch.int64), batch.slot_mapping.to(torch.int64)
        self._tables = self._block_tables.to(torch.int64).contiguous()
        self.places = self._work_of(_NOTHING, _NOTHING, NO_WINDOW)
        self._works: dict[int | None, tuple[AttentionWork, np.ndarray, np.ndarray]] = {}
        self._followed: CpuPlan | None = None

    def work(self, window: int | None) -> AttentionWork:
        """What the kernels read of this step, what takes longest first."""
        if window not in self._works:
            rows = list(self._rows(window))
            jobs = self._make_jobs([row for row in rows if is_short(row)], window)
            stretches = self._make_stretches([row for row in rows if not is_short(row)])
            work = self._work_of(jobs, stretches, NO_WINDOW if window is None else window)
            self._works[window] = work, jobs, stretches
        return self._works[window][0]

    def _work_of(self, jobs: np.ndarray, stretches: np.ndarray, window: int) -> AttentionWork:
        return AttentionWork(
            *(tensor.data_ptr() for tensor in (self._positions, self._slots, self._tables)),
            *(self._tables.stride(0), jobs.ctypes.data, *jobs.shape[:2]),
            *(stretches.ctypes.data, len(stretches), window),
        )

    def follow(self, later: CpuPlan) -> None:
        """Become the plan of a later step with as many rows of one token each. Kernels that were recorded with this
        plan then do that step, for ``places`` and what ``work`` gave say so, where they are.
        """
        self._followed = later  # it owns the memory
        ctypes.pointer(self.places)[0] = later.places
        for window, (work, *_) in self._works.items():
            ctypes.pointer(work)[0] = later.work(window)

    def _make_jobs(self, rows: list[Row], window: int | None) -> np.ndarray:
        queries = [
            (row.first_token + i, row.index, row.first_query + i + 1) for row in rows for i in range(row.num_queries)
        ]
        token, index, end = np.array(queries, dtype=np.int32).reshape(-1, 3).T
        order = np.argsort(-end, kind="stable")
        token, index, end = (x[order] for x in (token, index, end))
        begin = np.zeros_like(end) if window is None else np.maximum(end - window, 0)
        heads = self._num_kv_heads
        parts = num_parts(len(token) * heads, int((end - begin).max(initial=0)), self.threads)
        length = -(-(end - begin) // (parts * LANES)) * LANES
        jobs = np.empty((len(token), heads, parts, 5), dtype=np.int32)
        jobs[..., 0], jobs[..., 1] = token[:, None, None], index[:, None, None]
        jobs[..., 2] = np.arange(heads)[:, None]
        cuts = begin[:, None] + np.arange(parts + 1) * length[:, None]
        cuts = np.minimum(cuts, end[:, None])[:, None]
        jobs[..., 3], jobs[..., 4] = cuts[..., :-1], cuts[..., 1:]
        return jobs.reshape(-1, parts, 5)

    def _make_stretches(self, rows: list[Row]) -> np.ndarray:
        """int32 ``[N, 5]``: first token, row, key/value head, the first query's position, how many queries."""
        heads = self._num_kv_heads
        length = stretch_length(sum(row.num_queries for row in rows) * heads, self.threads)
        cuts = [
            (row.first_token + i, row.index, head, row.first_query + i, min(length, row.num_queries - i))
            for row in rows
            for i in range(0, row.num_queries, length)
            for head in range(heads)
        ]
        return np.array(sorted(cuts, key=lambda cut: -(cut[3] + cut[4]) * cut[4]), dtype=np.int32).reshape(-1, 5)


def is_short(row: Row) -> bool:
    """Whether decode attention computes it."""
    return row.num_queries <= MAX_QUERIES


def num_parts(groups: int, longest: int, threads: int) -> int:
    """Into how many parts each context is cut, so that all threads have work until the end."""
    return max(1, min(most_parts(groups, threads), longest // MIN_PART))


def most_parts(groups: int, threads: int) -> int:
    """Into how many parts contexts are cut if they are long, where so many queries' heads are computed."""
    return max(1, min(-(-JOBS_PER_THREAD * threads // max(1, groups)), MAX_PARTS))


def stretch_length(queries: int, threads: int) -> int:
    """Queries of a stretch, where there are so many in all, each key/value head's counted."""
    return max(MIN_STRETCH, min(queries // (JOBS_PER_THREAD * threads), MAX_STRETCH))
