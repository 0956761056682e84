"""Random rows in a paged cache, and attention over them in float64 without pages."""

from __future__ import annotations

import random
from dataclasses import replace

import torch
from torch import Tensor

from octavo.kernels.forward_batch import DeviceRows, ForwardBatch, KVLayer


def dense_attention(
    q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None = None, soft_cap: float | None = None
) -> Tensor:
    """One row: ``q [Q, Hq, D]`` are the last positions of ``k, v [N, Hk, D]``; ``[Q, Hq * D]`` in float64."""
    share = q.shape[1] // k.shape[1]
    keys, values = (x.double().repeat_interleave(share, dim=1).transpose(0, 1) for x in (k, v))
    scores = q.double().transpose(0, 1) @ keys.transpose(1, 2) * scale
    if soft_cap is not None:
        scores = soft_cap * torch.tanh(scores / soft_cap)
    position = torch.arange(len(k) - len(q), len(k), device=q.device)[:, None]
    key = torch.arange(len(k), device=q.device)[None, :]
    hidden = (key > position) | (key <= position - (len(k) if window is None else window))
    weights = torch.softmax(scores.masked_fill(hidden, -torch.inf), dim=-1)
    return (weights @ values).transpose(0, 1).flatten(1)


class PagedCase:
    """Rows of (queries, context) each; whatever is not part of a context is NaN in the cache.

    Attributes:
        qkv: ``[T, (Hq + 2 Hk) * D]`` with the step's queries, keys and values.
        batch: without ``rows``; ``with_slots`` is the same with ``rows``.
    """

    def __init__(
        self,
        lens: list[tuple[int, int]],
        *,
        hq: int = 4,
        hk: int = 2,
        d: int = 16,
        block_size: int = 4,
        dtype: torch.dtype = torch.float32,
        kv_dtype: torch.dtype | None = None,
        device: str = "cpu",
        seed: int = 0,
        spare_blocks: int = 3,
    ) -> None:
        self.lens, self.hk, self.d = lens, hk, d
        kv_dtype = kv_dtype or dtype
        g = torch.Generator(device).manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=g, device=device, dtype=torch.float32)

        counts = [-(-context // block_size) for _, context in lens]
        num_blocks = sum(counts) + spare_blocks
        free = random.Random(seed).sample(range(num_blocks), sum(counts))
        shape = (num_blocks, hk, block_size, d)
        self.cache = KVLayer(*(torch.full(shape, torch.nan, dtype=kv_dtype, device=device) for _ in range(2)))
        tables = torch.zeros(len(lens), max(counts) + 1, dtype=torch.int32, device=device)
        self.qkv = normal(sum(q for q, _ in lens), (hq + 2 * hk) * d).to(dtype)
        self.q = self.qkv[:, : hq * d].view(-1, hq, d)
        self.kv: list[tuple[Tensor, Tensor]] = []
        first = 0
        for row, (queries, context) in enumerate(lens):
            k, v = (normal(context, hk, d).to(kv_dtype) for _ in range(2))
            if kv_dtype == dtype and queries:
                new = self.qkv[first : first + queries, hq * d :].view(queries, 2, hk, d)
                k[context - queries :], v[context - queries :] = new[:, 0], new[:, 1]
            own = torch.tensor([free.pop() for _ in range(counts[row])], dtype=torch.int32, device=device)
            tables[row, : counts[row]] = own
            position = torch.arange(context, device=device)
            block, offset = own[position // block_size].long(), position % block_size
            self.cache.keys[block, :, offset], self.cache.values[block, :, offset] = k, v
            self.kv.append((k, v))
            first += queries
        tokens = torch.zeros(first, dtype=torch.int64, device=device)
        self.batch = ForwardBatch(
            token_ids=tokens,
            positions=tokens,
            slot_mapping=tokens,
            query_lens=[queries for queries, _ in lens],
            context_lens=[context for _, context in lens],
            block_tables=tables,
            logit_indices=tokens,
            kv_cache=[self.cache],
            block_size=block_size,
        )

    def with_slots(self, context_bound: int = 0) -> ForwardBatch:
        """The same rows in scattered lines of a larger table, lengths on the device, on the host an upper bound."""
        device = self.qkv.device
        num_rows = len(self.lens)
        lines = torch.tensor(random.Random(1).sample(range(num_rows + 4), num_rows), device=device)
        tables = torch.zeros(num_rows + 4, self.batch.block_tables.shape[1], dtype=torch.int32, device=device)
        tables[lines] = self.batch.block_tables
        starts = [sum(self.batch.query_lens[:r]) for r in range(num_rows + 1)]
        rows = DeviceRows(
            *(torch.as_tensor(x, dtype=torch.int32, device=device) for x in (starts, self.batch.context_lens, lines))
        )
        bound = [max(c, context_bound) if q == 1 else c for q, c in self.lens]
        return replace(self.batch, block_tables=tables, rows=rows, context_lens=bound)

    def in_graph(self, spare_tokens: int = 3, spare_rows: int = 2) -> ForwardBatch:
        """The same rows as a graph sees them: with tokens and rows that are nobody's, and bounds on the host."""
        batch = self.with_slots()
        assert batch.rows is not None
        starts, contexts, lines = batch.rows
        tokens, rows = len(self.qkv) + spare_tokens, len(self.lens) + spare_rows
        nobody = torch.zeros(spare_rows, dtype=torch.int32, device=self.qkv.device)
        return replace(
            batch,
            token_ids=torch.zeros(tokens, dtype=torch.int64, device=self.qkv.device),
            query_lens=[tokens] * rows,
            context_lens=[max(context for _, context in self.lens) + 9] * rows,
            rows=DeviceRows(
                torch.cat([starts, nobody + starts[-1]]), torch.cat([contexts, nobody]), torch.cat([lines, nobody])
            ),
            bounds_only=True,
        )

    def expected(self, scale: float, window: int | None = None, soft_cap: float | None = None) -> Tensor:
        """Float64 ``[T, Hq * D]``."""
        queries = self.q.split([queries for queries, _ in self.lens])
        rows = zip(queries, self.kv, strict=True)
        return torch.cat([dense_attention(q, k, v, scale, window, soft_cap) for q, (k, v) in rows])
