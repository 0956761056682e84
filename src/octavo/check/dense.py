"""The reference operations, and beside them attention without any cache: what paging is compared with.

A step must hold whole sequences. Their keys and values are kept in the order of the tokens, and each sequence is
attended to by itself, so that neither blocks nor tables nor chunks have a part in the result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from octavo.kernels.forward_batch import AttentionPlan, ForwardBatch, KVLayer, own_plan
from octavo.kernels.ops import Ops
from octavo.kernels.packed import Operand
from octavo.kernels.reference import rotary
from octavo.kernels.reference.attention_plan import host_context_lens, host_query_lens
from octavo.kernels.reference.ops import ReferenceOps
from octavo.kernels.reference.rotary import TokenPlan

HEAD_ROWS = 8192
"""Rows of the head that are in float32 at a time: 128 MiB of 4,096 inputs."""


class DensePlan(AttentionPlan):
    """Which tokens of a step are which sequence's."""

    def __init__(self, batch: ForwardBatch, lengths: Sequence[int]) -> None:
        total = len(batch.token_ids)
        in_order = torch.arange(total, device=batch.token_ids.device)
        num_kv_heads = batch.kv_cache[0].keys.shape[1]
        self.tokens = TokenPlan(replace(batch, slot_mapping=in_order, block_size=total), num_kv_heads)
        self.total = total
        ends = torch.tensor(lengths).cumsum(0).tolist()
        self.rows = [slice(end - length, end) for end, length in zip(ends, lengths, strict=True)]


class DenseOps(ReferenceOps):
    """`ReferenceOps`; while ``dense`` is True, steps that hold whole sequences are computed without the cache.

    Attributes:
        dense: whether to do so.
        paged_steps: steps since this was last set to 0 that could not be computed so.
    """

    def __init__(self, like: Ops | None = None) -> None:
        """``like``: the operations that are to be compared with these; what they keep packed stays packed here."""
        super().__init__()
        self._like = like
        self.dense = False
        self.paged_steps = 0
        self._layer: KVLayer | None = None

    def multiplies(self, kind: str) -> bool:
        return self._like is not None and self._like.multiplies(kind)

    def logits(self, x: Tensor, weight: Operand) -> Tensor:
        """In float32: what the backend's own are compared with should be rounded no more than these."""
        if not isinstance(weight, Tensor):
            return self.linear(x.float(), weight)
        return torch.cat([self.linear(x.float(), rows.float()) for rows in weight.split(HEAD_ROWS)], dim=-1)

    def plan_attention(self, batch: ForwardBatch) -> AttentionPlan:
        lengths = host_query_lens(batch)
        if self.dense and lengths == host_context_lens(batch):
            return DensePlan(batch, lengths)
        self.paged_steps += 1
        return super().plan_attention(batch)

    def rotate_and_store(
        self,
        qkv: Tensor,
        plan: AttentionPlan,
        cos_sin: Tensor,
        q_norm: Tensor | None,
        k_norm: Tensor | None,
        eps: float,
        kv: KVLayer,
    ) -> Tensor:
        if not isinstance(plan, DensePlan):
            return super().rotate_and_store(qkv, plan, cos_sin, q_norm, k_norm, eps, kv)
        _, heads, _, size = kv.keys.shape
        self._layer = KVLayer.zeros(1, plan.total, heads, size, qkv.dtype, qkv.device)
        return rotary.rotate_and_store(qkv, plan.tokens, cos_sin, q_norm, k_norm, eps, self._layer, self._workspace)

    def attention(
        self,
        q: Tensor,
        kv: KVLayer,
        plan: AttentionPlan,
        *,
        scale: float,
        window: int | None = None,
        soft_cap: float | None = None,
    ) -> Tensor:
        if not isinstance(plan, DensePlan):
            return super().attention(q, kv, plan, scale=scale, window=window, soft_cap=soft_cap)
        assert self._layer is not None
        keys, values = (tensor[0].float() for tensor in (self._layer.keys, self._layer.values))
        own = own_plan(plan, DensePlan)
        parts = [_attend(q[r].float(), keys[:, r], values[:, r], scale, window, soft_cap) for r in own.rows]
        return torch.cat(parts).to(q.dtype)


def _attend(q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None, soft_cap: float | None) -> Tensor:
    """One sequence: ``q [n, Hq, D]`` over ``k, v [Hk, n, D]`` to ``[n, Hq * D]``, as the formula has it."""
    n, heads, _ = q.shape
    share = heads // len(k)
    k, v = k.repeat_interleave(share, dim=0), v.repeat_interleave(share, dim=0)
    scores = torch.einsum("nhd,hmd->hnm", q, k) * scale
    if soft_cap is not None:
        scores = soft_cap * torch.tanh(scores / soft_cap)
    position = torch.arange(n, device=q.device)
    hidden = position[None, :] > position[:, None]
    if window is not None:
        hidden = hidden | (position[None, :] <= position[:, None] - window)
    weights = torch.softmax(scores.masked_fill(hidden, -torch.inf), dim=-1)
    return torch.einsum("hnm,hmd->nhd", weights, v).reshape(n, -1)
