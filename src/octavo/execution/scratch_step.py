"""Steps of nobody, run before the first request: to see what they take, or to have their kernels compiled."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from octavo.execution.kv_cache import allocate_kv_cache
from octavo.kernels.forward_batch import ForwardBatch, KVLayer
from octavo.kernels.ops import Ops
from octavo.kernels.sampling import PARAMS
from octavo.models.decoder import DecoderModel


def compute(
    model: DecoderModel,
    ops: Ops,
    lens: Sequence[tuple[int, int]],
    block_size: int,
    kv_dtype: torch.dtype,
    *,
    max_loras: int = 0,
) -> Sequence[KVLayer]:
    """A step of rows of (queries, context) each, with a cache of its own, which is returned. ``max_loras``: LoRA
    adapters that the model has room for; if it has, all tokens have one.
    """
    device = model.model.norm.weight.device
    tables, num_blocks = _tables([context for _, context in lens], block_size)
    kv_cache = allocate_kv_cache(model.config, num_blocks, block_size, kv_dtype, device)
    positions = np.concatenate([np.arange(context - queries, context) for queries, context in lens])
    row = np.repeat(np.arange(len(lens)), [queries for queries, _ in lens])
    slots = tables[row, positions // block_size] * block_size + positions % block_size

    def on_device(values: np.ndarray) -> Tensor:
        return torch.from_numpy(values.astype(np.int32)).to(device)

    batch = ForwardBatch(
        token_ids=on_device(np.zeros(len(positions))),
        positions=on_device(positions),
        slot_mapping=on_device(slots),
        query_lens=[queries for queries, _ in lens],
        context_lens=[context for _, context in lens],
        block_tables=on_device(tables),
        logit_indices=on_device(np.zeros(1)),
        kv_cache=kv_cache,
        block_size=block_size,
    )
    batch.attention = ops.plan_attention(batch)
    if max_loras:
        batch.lora = ops.plan_lora(torch.ones(len(positions), dtype=torch.int32, device=device), max_loras)
    model(batch)
    return kv_cache


def sample(model: DecoderModel, ops: Ops, rows: int) -> None:
    """So many rows draw with filters from logits that are float32, as the edited ones are."""
    weight = model.model.norm.weight
    hidden = torch.zeros(rows, model.config.hidden_size, dtype=model.dtype, device=weight.device)
    params = np.zeros(rows, PARAMS)
    params["temperature"], params["top_k"], params["top_p"] = 1.0, 50, 0.9
    words = torch.from_numpy(params.view(np.int32).reshape(rows, -1)).to(weight.device)
    ops.sample(model.raw_logits(hidden).to(torch.float32, copy=True), words, filters=True)


def _tables(contexts: Sequence[int], block_size: int) -> tuple[np.ndarray, int]:
    """A block table for each row, whose blocks follow each other, and how many blocks these are."""
    counts = [-(-context // block_size) for context in contexts]
    firsts = np.cumsum([0, *counts])
    return firsts[:-1, None] + np.arange(max(counts)), int(firsts[-1]) + max(counts)
