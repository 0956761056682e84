"""Which kernel computes which rows: one query each, several over the cache, several whose context is all new."""

from __future__ import annotations

import torch
from torch import Tensor

from octavo.kernels.forward_batch import KVLayer
from octavo.kernels.triton import decode_fused, rotary
from octavo.kernels.triton import fresh_attention as cudnn
from octavo.kernels.triton import prefill_attention as prefill
from octavo.kernels.triton.attention_plan import Scores, TritonPlan
from octavo.kernels.triton.decode_attention import DecodeAttention


class PagedAttention:
    """Attention on one device. See ``Ops.attention`` for shapes.

    Args:
        device: of all tensors.
        use_cudnn: for long fresh prompts, where it is supported.
    """

    def __init__(self, device: torch.device, *, use_cudnn: bool = False) -> None:
        self._decode = DecodeAttention(device)
        self._fused = decode_fused.FusedDecode(device)
        self._use_cudnn = use_cudnn

    def turned(
        self,
        qkv: Tensor,
        kv: KVLayer,
        plan: TritonPlan,
        cos_sin: Tensor,
        q_norm: Tensor | None,
        k_norm: Tensor | None,
        eps: float,
        scores: Scores,
        *,
        pdl: bool = False,
    ) -> Tensor:
        """Rotation, cache write and attention: see ``Ops.attend``."""
        if decode_fused.fits(qkv, kv, plan):
            return self._fused(qkv, kv, plan, cos_sin, q_norm, k_norm, eps, scores, pdl=pdl)
        where = plan.positions, plan.slot_mapping
        q = rotary.rotate_and_store(qkv, *where, cos_sin, q_norm, k_norm, eps, kv, pdl=pdl)
        return self.over_new(q, qkv, kv, plan, scores, pdl=pdl)

    def over_cache(self, q: Tensor, kv: KVLayer, plan: TritonPlan, scores: Scores, *, pdl: bool = False) -> Tensor:
        """Attention of all rows over the cache: ``q [T, Hq, D]`` to ``[T, Hq * D]``."""
        return self._attend(q, None, kv, plan, scores, pdl)

    def over_new(
        self, q: Tensor, qkv: Tensor, kv: KVLayer, plan: TritonPlan, scores: Scores, *, pdl: bool = False
    ) -> Tensor:
        """The same, where rotated keys and values of the step's tokens also stand in ``qkv [T, (Hq + 2 Hk) * D]``.

        A cache of another dtype holds other numbers than ``qkv``; then it is read, so that results do not depend on
        how a prompt is cut into steps.
        """
        return self._attend(q, qkv if qkv.dtype == kv.keys.dtype else None, kv, plan, scores, pdl)

    def _attend(
        self, q: Tensor, qkv: Tensor | None, kv: KVLayer, plan: TritonPlan, scores: Scores, pdl: bool
    ) -> Tensor:
        q = q if q.stride()[1:] == (q.shape[2], 1) else q.contiguous()
        out = q.new_empty(q.shape[0], q.shape[1] * q.shape[2])
        if plan.num_decode_rows:
            self._decode(q, kv, out, plan, scores, pdl=pdl)
        if plan.num_prefill_rows:
            self._prefill(q, qkv, kv, out, plan, scores)
        return out

    def _prefill(
        self, q: Tensor, qkv: Tensor | None, kv: KVLayer, out: Tensor, plan: TritonPlan, scores: Scores
    ) -> None:
        group, d = q.shape[1] // kv.keys.shape[1], q.shape[2]
        chosen = prefill.settings(plan.max_queries, group, d, q.dtype, q.device, plan.deterministic)
        queries = prefill.queries_per_tile(chosen, group)
        if qkv is None or not plan.has_fresh:
            tiles = plan.tiles(queries)
            assert tiles is not None
            prefill.attend_pages(q, kv, out, plan, tiles, scores, chosen)
            return
        whole = cudnn.STEP if self._use_cudnn and not plan.deterministic and cudnn.is_supported(q, scores) else 0
        for row in plan.fresh_rows:
            if whole and row.num_tokens >= whole:
                cudnn.attend_whole(q, qkv, kv.keys.shape[1], out, row, scores.scale)
        fresh = plan.tiles(queries, "fresh", whole=whole)
        if fresh is not None:
            prefill.attend_fresh(q, qkv, kv, out, plan, fresh, scores, chosen)
        cached = plan.tiles(queries, "cached")
        if cached is not None:
            prefill.attend_pages(q, kv, out, plan, cached, scores, chosen)
