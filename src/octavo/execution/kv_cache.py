"""The memory of the KV cache."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from octavo.config import ModelConfig
from octavo.core.plan import RowStep
from octavo.kernels.forward_batch import FP8, KVLayer


def allocate_kv_cache(
    model: ModelConfig, num_blocks: int, block_size: int, dtype: torch.dtype, device: torch.device
) -> list[KVLayer]:
    """The blocks of all layers, as zeros. On a CPU they take memory only as they are written to."""
    return [
        KVLayer.zeros(num_blocks, block_size, model.num_kv_heads, model.head_dim, dtype, device)
        for _ in range(model.num_layers)
    ]


def clear_unfilled(kv_cache: Sequence[KVLayer], rows: Sequence[RowStep], block_size: int) -> None:
    """Zero the new blocks that a step with these ``rows`` does not fill.

    Kernels that read whole blocks cannot hide by a mask a NaN that a request left there which had failed.
    """
    unfilled = [row.new_blocks[-1] for row in rows if row.new_blocks and (row.start + row.num_tokens) % block_size]
    if unfilled:
        blocks = torch.tensor(unfilled, device=kv_cache[0].keys.device)
        for layer in kv_cache:
            for tensor in (layer.keys, layer.values):
                (tensor.view(torch.uint8) if tensor.dtype == FP8 else tensor).index_fill_(0, blocks, 0)
            if layer.scales is not None:
                layer.scales.index_fill_(1, blocks, 0)
