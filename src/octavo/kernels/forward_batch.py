"""What one step hands to the model: the tokens, where they stand, and the KV cache."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import torch

from octavo.kernels.huge_pages import huge_pages
from octavo.kernels.lora import LoraPlan

FP8 = torch.float8_e4m3fn

KV_DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "fp8": FP8,
    "int8": torch.int8,
}
"""The configuration's names for what a cache can hold."""


class KVLayer(NamedTuple):
    """One layer's part of the paged KV cache: keys and values, each ``[num_blocks, num_kv_heads, block_size,
    head_dim]``.

    An int8 cache has ``scales``, float32 ``[2, num_blocks, num_kv_heads, block_size]``: by which the keys (0) and
    values (1) of a token and head are multiplied.

    A block is head-major, so that the keys of one head are gathered in one piece. Both are contiguous and
    begin as zeros: kernels read whole blocks and mask what is not part of the context, and a mask cannot hide
    a NaN. So a block is also zeroed before it goes to another request, where that does not fill it at once, unless the
    kernels ignore even a NaN beyond a context (``Ops.ignores_nan_beyond_context``).
    """

    keys: torch.Tensor
    values: torch.Tensor
    scales: torch.Tensor | None = None

    @property
    def tensors(self) -> list[torch.Tensor]:
        """All that it is made of."""
        return [tensor for tensor in self if tensor is not None]

    @property
    def nbytes(self) -> int:
        """Bytes of all of it."""
        return sum(tensor.nbytes for tensor in self.tensors)

    @classmethod
    def zeros(
        cls,
        num_blocks: int,
        block_size: int,
        num_kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
    ) -> KVLayer:
        """An empty cache of ``num_blocks`` blocks. On a CPU it takes memory only as it is written to."""
        shape = (num_blocks, num_kv_heads, block_size, head_dim)
        keys, values = (_zeros(shape, dtype, torch.device(device)) for _ in range(2))
        if dtype != torch.int8:
            return cls(keys, values)
        return cls(keys, values, _zeros((2, *shape[:3]), torch.float32, torch.device(device)))


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Zeros. ``torch.zeros`` writes them at once on a CPU; the system gives pages that are zero when touched.

    Huge pages are asked for: blocks are read here and there, and each small page would cost a walk of the page table.
    """
    size = math.prod(shape) * dtype.itemsize
    if device.type != "cpu" or not size:
        return torch.zeros(shape, dtype=dtype, device=device)
    return huge_pages(size).view(dtype).view(shape)


class AttentionPlan:
    """The index arithmetic of one step, done once by ``Ops.plan_attention`` and read by every layer. Opaque:
    each backend has its own."""


Plan = TypeVar("Plan", bound=AttentionPlan)


def own_plan(plan: AttentionPlan, kind: type[Plan]) -> Plan:
    """``plan``, which must be of a backend's own ``kind``. Raises ``TypeError``."""
    if not isinstance(plan, kind):
        raise TypeError("the plan is not from plan_attention of the same ops")
    return plan


class DeviceRows(NamedTuple):
    """The rows' lengths on the device: kernels that read them there run again unchanged in a CUDA graph.

    Attributes:
        query_starts: ``[R + 1]`` int32: row r's tokens are ``query_starts[r]`` to ``query_starts[r + 1] - 1``.
        context_lens: ``[R]`` int32.
        table_rows: ``[R]`` int32: which line of ``block_tables`` is row r's.
    """

    query_starts: torch.Tensor
    context_lens: torch.Tensor
    table_rows: torch.Tensor


@dataclass(slots=True, kw_only=True)
class ForwardBatch:
    """One step's input: R rows (one for each request) with T tokens in all.

    Row r brings ``query_lens[r] >= 1`` new tokens. They are consecutive among the T tokens, rows in order,
    and stand at positions ``context_lens[r] - query_lens[r]`` to ``context_lens[r] - 1`` of their request;
    keys and values of the positions before them are in the cache. Any mixture of lengths is one batch: there
    is no prefill and no decode here.

    Attributes:
        token_ids: ``[T]`` int64 (with ``rows``, int32), on the device; so are the next two.
        positions: ``[T]``.
        slot_mapping: ``[T]``: ``block * block_size + offset`` where the token's K and V
            are written.
        query_lens: R host integers: new tokens of each row.
        context_lens: R host integers: tokens in the cache after this step, the row's new ones included.
        block_tables: ``[R, max_blocks]`` int32 or int64; entry ``[r, i]`` is the block with positions ``i *
            block_size`` onwards of row r. Entries beyond a row's context name some block; they never influence a
            result.
        logit_indices: ``[S]`` integers, on the device: which of the T hidden rows are to become logits.
        kv_cache: one ``KVLayer`` for each layer.
        block_size: tokens in a block.
        rows: the rows' lengths on the device. If it is given, ``block_tables`` has a line for each slot of the engine
            instead of for each row. None: lengths are as on the host, line r of ``block_tables`` is row r's.
        bounds_only: the step is recorded in a graph: ``query_lens`` and ``context_lens`` are only what is not exceeded
            when it runs again, and the lengths on the device (``rows``) count. There a row may have no token, and the
            last of the T tokens may belong to no row: what becomes of them is nobody's. Where no row can have more than
            one query, each has one.
        attention: ``Ops.plan_attention(batch)``; set before the model runs.
        lora: ``Ops.plan_lora`` of the tokens' adapters; None: no token has one.
    """

    token_ids: torch.Tensor
    positions: torch.Tensor
    slot_mapping: torch.Tensor
    query_lens: Sequence[int]
    context_lens: Sequence[int]
    block_tables: torch.Tensor
    logit_indices: torch.Tensor
    kv_cache: Sequence[KVLayer]
    block_size: int
    rows: DeviceRows | None = None
    bounds_only: bool = False
    attention: AttentionPlan | None = None
    lora: LoraPlan | None = None
