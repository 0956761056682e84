"""How keys and values become the numbers of the cache, and numbers to compute with again.

A cache of the model's dtype keeps them as they are. In float8 (e4m3: 4 bits of exponent, 3 of mantissa) each is rounded
to the nearest of 254 values up to 448; keys and values of language models are far smaller. In int8 the numbers of one
token and head share a scale, their largest over 127 (as in KIVI's and vLLM's per-token schemes, arXiv:2402.02750).
"""

from __future__ import annotations

import torch
from torch import Tensor

from octavo.kernels.forward_batch import FP8, KVLayer
from octavo.kernels.packed import FP8_MAX
from octavo.kernels.reference.workspace import Workspace

INT8_MAX = 127


def store(kv: KVLayer, rows: Tensor, keys: Tensor, values: Tensor) -> None:
    """Write ``keys`` and ``values [T, Hk, D]`` into the cache's ``rows [T * Hk]``: ``(block * Hk + head) * block_size +
    offset``.
    """
    d = keys.shape[-1]
    for index, (cache, new) in enumerate(((kv.keys, keys), (kv.values, values))):
        numbers = new.reshape(-1, d)
        if kv.scales is not None:
            numbers, scales = quantize(numbers)
            kv.scales[index].view(-1).index_copy_(0, rows, scales)
        elif cache.dtype == FP8:
            numbers = numbers.float().clamp(-FP8_MAX, FP8_MAX).to(FP8).view(torch.uint8)
        target = cache.view(torch.uint8) if cache.dtype == FP8 else cache
        target.view(-1, d).index_copy_(0, rows, numbers.to(target.dtype))


def quantize(numbers: Tensor) -> tuple[Tensor, Tensor]:
    """int8 ``[N, D]`` and float32 scales ``[N]`` of ``numbers [N, D]``; halves are rounded up."""
    exact = numbers.float()
    scales = exact.abs().amax(dim=-1) / INT8_MAX
    steps = exact / torch.where(scales > 0, scales, 1.0)[:, None]
    return (steps + 0.5).floor().clamp(-INT8_MAX, INT8_MAX).to(torch.int8), scales


def gather(kv: KVLayer, index: int, cache_rows: Tensor, dtype: torch.dtype, workspace: Workspace) -> Tensor:
    """The keys (``index`` 0) or values (1) of whole blocks of one head each, in ``dtype``: ``[N, block_size, D]``.

    ``cache_rows [N]`` are rows of the cache seen as ``[num_blocks * Hk, block_size * D]``.
    """
    cache = kv.values if index else kv.keys
    raw = cache.view(torch.uint8) if cache.dtype == FP8 else cache
    num_blocks, hk, block_size, d = cache.shape
    out = workspace.take(f"gathered{index}", (len(cache_rows), block_size * d), raw)
    torch.index_select(raw.view(num_blocks * hk, block_size * d), 0, cache_rows, out=out)
    numbers = (out.view(FP8) if cache.dtype == FP8 else out).view(-1, block_size, d).to(dtype)
    if kv.scales is None:
        return numbers
    scales = kv.scales[index].view(-1, block_size).index_select(0, cache_rows)
    return (numbers * scales[:, :, None]).to(dtype)
