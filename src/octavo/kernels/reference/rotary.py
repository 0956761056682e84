"""Query/key normalisation, rotary embedding and the write into the paged cache."""

from __future__ import annotations

import torch
from torch import Tensor

from octavo.kernels.forward_batch import ForwardBatch, KVLayer
from octavo.kernels.reference.kv_numbers import store
from octavo.kernels.reference.norm import rms_norm
from octavo.kernels.reference.workspace import Workspace


class TokenPlan:
    """Where a step's tokens are written and by which angles they are turned: worked out once, used by all layers."""

    def __init__(self, batch: ForwardBatch, num_kv_heads: int) -> None:
        self._positions = batch.positions
        self._angles: dict[int, tuple[Tensor, Tensor]] = {}
        block = torch.div(batch.slot_mapping, batch.block_size, rounding_mode="floor")
        offset = batch.slot_mapping - block * batch.block_size
        heads = torch.arange(num_kv_heads, device=block.device)
        # Rows of a cache seen as [num_blocks * Hk * block_size, D], token by token and head by head.
        self.cache_rows = ((block[:, None] * num_kv_heads + heads) * batch.block_size + offset[:, None]).flatten()

    def angles(self, cos_sin: Tensor) -> tuple[Tensor, Tensor]:
        """Of each token: its cosines for both halves of a head, ``[T, 1, D]``, and its sines, ``[T, 1, D/2]``."""
        if id(cos_sin) not in self._angles:
            cos, sin = cos_sin.index_select(0, self._positions)[:, None].chunk(2, dim=-1)
            self._angles[id(cos_sin)] = torch.cat((cos, cos), dim=-1), sin.contiguous()
        return self._angles[id(cos_sin)]


def rotate_and_store(
    qkv: Tensor,
    plan: TokenPlan,
    cos_sin: Tensor,
    q_norm: Tensor | None,
    k_norm: Tensor | None,
    eps: float,
    kv: KVLayer,
    workspace: Workspace,
) -> Tensor:
    """See ``Ops.rotate_and_store``."""
    _, hk, _, d = kv.keys.shape
    heads = qkv.view(qkv.shape[0], -1, d)
    hq = heads.shape[1] - 2 * hk
    qk, values = heads[:, : hq + hk], heads[:, hq + hk :]
    if q_norm is not None and k_norm is not None:
        q, k = rms_norm(qk[:, :hq], q_norm, eps), rms_norm(qk[:, hq:], k_norm, eps)
        qk = torch.cat((q, k), dim=1)
    qk = rotate(qk, *plan.angles(cos_sin), workspace)
    store(kv, plan.cache_rows, qk[:, hq:], values)
    return qk[:, :hq]


def rotate(x: Tensor, cos: Tensor, sin: Tensor, workspace: Workspace) -> Tensor:
    """Turn each pair ``(x[i], x[i + D/2])`` of ``x [T, heads, D]`` by its angle, in float32."""
    (low, high), turned = x.chunk(2, dim=-1), workspace.take("turned", tuple(x.shape), x, torch.float32)
    torch.mul(x, cos, out=turned)
    new_low, new_high = turned.chunk(2, dim=-1)
    new_low.addcmul_(high, sin, value=-1)
    new_high.addcmul_(low, sin)
    return workspace.take("rotated", tuple(x.shape), x).copy_(turned)
