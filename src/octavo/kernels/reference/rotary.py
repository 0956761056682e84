"""Query/key normalisation, rotary embedding and the write into the paged cache."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from octavo.kernels.forward_batch import KVLayer


def rotate_and_store(
    qkv: Tensor,
    positions: Tensor,
    cos_sin: Tensor,
    q_norm: Tensor | None,
    k_norm: Tensor | None,
    eps: float,
    slot_mapping: Tensor,
    kv: KVLayer,
) -> Tensor:
    """See ``Ops.rotate_and_store``."""
    _, hk, _, d = kv.keys.shape
    heads = qkv.view(qkv.shape[0], -1, d)
    hq = heads.shape[1] - 2 * hk
    qk, values = heads[:, : hq + hk], heads[:, hq + hk :]
    if q_norm is not None and k_norm is not None:
        q, k = F.rms_norm(qk[:, :hq], (d,), q_norm, eps), F.rms_norm(qk[:, hq:], (d,), k_norm, eps)
        qk = torch.cat((q, k), dim=1)
    qk = rotate(qk, cos_sin.index_select(0, positions))
    store(kv, slot_mapping, qk[:, hq:], values)
    return qk[:, :hq]


def rotate(x: Tensor, cos_sin: Tensor) -> Tensor:
    """Turn each pair ``(x[i], x[i + D/2])`` of ``x [T, heads, D]`` by its angle in ``cos_sin [T, D]``, in float32.

    The other one of each pair is half a head away, so a roll brings it in place.
    """
    cos, sin = cos_sin[:, None].chunk(2, dim=-1)
    wide = x.float()
    other = wide.roll(x.shape[-1] // 2, dims=-1)
    return torch.addcmul(wide * torch.cat((cos, cos), -1), other, torch.cat((-sin, sin), -1)).to(x.dtype)


def store(kv: KVLayer, slot_mapping: Tensor, keys: Tensor, values: Tensor) -> None:
    """Write ``keys, values [T, Hk, D]`` into their slots."""
    block_size = kv.keys.shape[2]
    block = torch.div(slot_mapping, block_size, rounding_mode="floor")
    offset = slot_mapping - block * block_size
    kv.keys[block, :, offset] = keys.to(kv.keys.dtype)
    kv.values[block, :, offset] = values.to(kv.values.dtype)
