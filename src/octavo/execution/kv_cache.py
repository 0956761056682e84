"""The memory of the KV cache."""

from __future__ import annotations

import torch

from octavo.config import ModelConfig
from octavo.kernels.forward_batch import KVLayer


def allocate_kv_cache(
    model: ModelConfig, num_blocks: int, block_size: int, dtype: torch.dtype, device: torch.device
) -> list[KVLayer]:
    """The blocks of all layers, as zeros. On a CPU they take memory only as they are written to."""
    return [
        KVLayer.zeros(num_blocks, block_size, model.num_kv_heads, model.head_dim, dtype, device)
        for _ in range(model.num_layers)
    ]
