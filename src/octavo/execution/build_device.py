"""A runner for a GPU: measure what a step takes, give the rest to the KV cache, record the graphs.

Memory is measured, not estimated: the largest step that can come is run once before the cache is made. So the cache can
take all that is left of the share that it may have. Not in it: what penalties remember of long prompts.
"""

from __future__ import annotations

import gc
from collections.abc import Callable

import numpy as np
import torch

from octavo.config import EngineConfig
from octavo.errors import OutOfMemoryError
from octavo.execution.current import current
from octavo.execution.device_runner import DeviceRunner
from octavo.execution.device_state import DeviceState
from octavo.execution.graphs import DecodeGraphs, buckets
from octavo.execution.kv_cache import allocate_kv_cache
from octavo.execution.memory import Ledger, draw_up, size_text, tokens_per_step
from octavo.execution.sampler import Sampler
from octavo.kernels.forward_batch import ForwardBatch
from octavo.kernels.ops import Ops
from octavo.kernels.sampling import PARAMS
from octavo.models.decoder import DecoderModel
from octavo.models.loading import param_bytes

MARGIN = 256 << 20
"""Bytes left for libraries that take memory when they are first used, and for fragmentation."""


def build_device_runner(
    config: EngineConfig,
    model: DecoderModel,
    ops: Ops,
    dtype: str,
    kv_dtype: str,
    device: torch.device,
    on_phase: Callable[[str], None] = lambda name: None,
) -> tuple[DeviceRunner, Ledger]:
    """Everything but the weights, which are loaded. ``on_phase`` gets the name of each part when it is done.

    Raises:
        OutOfMemoryError: a step, or the KV cache that was asked for, does not fit.
    """
    with current(device):
        workspace = measure_workspace(config, model, ops, getattr(torch, kv_dtype), device)
    on_phase("memory_measured")
    free, total = torch.cuda.mem_get_info(device)
    budget = int(total * config.gpu_memory_utilization) - (total - free) - workspace
    sizes = {"weights": param_bytes(model), "free": free, "workspace": workspace, "budget": budget}
    ledger = draw_up(model.config, config, dtype=dtype, kv_dtype=kv_dtype, **sizes)
    try:
        runner = assemble(config, model, ops, ledger, getattr(torch, kv_dtype), device)
        on_phase("kv_cache_allocated")
        runner.warm_up()
    except (torch.OutOfMemoryError, MemoryError):
        raise OutOfMemoryError(
            f"the KV cache of {size_text(ledger.kv_cache)} and the state of {config.max_num_seqs} requests of up to "
            f"{ledger.max_model_len} tokens do not fit beside the weights; lower kv_cache_memory, max_num_seqs or "
            "max_model_len"
        ) from None
    if not config.enforce_eager:
        on_phase("graphs_recorded")
    return runner, ledger


def assemble(
    config: EngineConfig, model: DecoderModel, ops: Ops, ledger: Ledger, kv_dtype: torch.dtype, device: torch.device
) -> DeviceRunner:
    """The runner with its cache, which has one block more than the ledger says: nobody's."""
    kv_cache = allocate_kv_cache(model.config, ledger.num_blocks + 1, ledger.block_size, kv_dtype, device)
    length, seqs = ledger.max_model_len, config.max_num_seqs
    state = DeviceState(seqs, length, ledger.block_size, device, trash_block=ledger.num_blocks)
    graphs = DecodeGraphs(model, ops, state, kv_cache, max_num_seqs=seqs, max_model_len=length)
    sampler = Sampler(seqs, model.config.vocab_size, device, ops)
    eager = config.enforce_eager or (device.type == "cuda" and not ops.graph_safe)
    return DeviceRunner(model, ops, kv_cache, state, sampler, None if eager else graphs)


def measure_workspace(
    config: EngineConfig, model: DecoderModel, ops: Ops, kv_dtype: torch.dtype, device: torch.device
) -> int:
    """Bytes that the largest steps take beside weights and cache: one prompt of all tokens that a step may have, and
    all requests sampling.
    """
    longest = min(config.max_model_len or model.config.max_position_embeddings, model.config.max_position_embeddings)
    tokens = min(tokens_per_step(config), longest)
    try:
        with torch.inference_mode():
            prefill = _peak(device, lambda: _prefill(config, model, ops, kv_dtype, tokens, device))
            sampling = _peak(device, lambda: _sample(config, model, ops, device))
    except torch.OutOfMemoryError:
        free = torch.cuda.mem_get_info(device)[0]
        raise OutOfMemoryError(
            f"a step of {tokens_per_step(config)} tokens does not fit beside the weights; {size_text(free)} are free. "
            "Lower max_num_batched_tokens or max_num_seqs"
        ) from None
    graphs = 0 if config.enforce_eager else sampling + graph_logits_bytes(config, model)
    return max(prefill, sampling) + graphs + MARGIN


def graph_logits_bytes(config: EngineConfig, model: DecoderModel) -> int:
    """What the graphs of all sizes do not share."""
    itemsize = model.model.norm.weight.element_size()
    return sum(buckets(config.max_num_seqs)) * model.config.vocab_size * itemsize


def _peak(device: torch.device, work: Callable[[], int]) -> int:
    """Bytes that ``work`` needed at most, less those that it says do not count."""
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    beside = work()
    torch.cuda.synchronize(device)
    peak = torch.cuda.max_memory_allocated(device) - before - beside
    torch.cuda.empty_cache()
    return peak


def _prefill(
    config: EngineConfig, model: DecoderModel, ops: Ops, kv_dtype: torch.dtype, length: int, device: torch.device
) -> int:
    """A step of as many whole prompts of ``length`` tokens as fit into it. Returns the bytes of its KV cache."""
    budget, size = tokens_per_step(config), config.block_size
    lens = [length] * (budget // length) + ([budget % length] if budget % length else [])
    per_row = -(-length // size)
    kv_cache = allocate_kv_cache(model.config, per_row * len(lens), size, kv_dtype, device)
    positions = np.concatenate([np.arange(n) for n in lens])
    row = np.repeat(np.arange(len(lens)), lens)
    tables = torch.arange(per_row * len(lens), dtype=torch.int32, device=device).view(len(lens), per_row)
    batch = ForwardBatch(
        token_ids=torch.zeros(budget, dtype=torch.int32, device=device),
        positions=torch.from_numpy(positions).to(device, torch.int32),
        slot_mapping=torch.from_numpy(row * per_row * size + positions).to(device, torch.int32),
        query_lens=lens,
        context_lens=lens,
        block_tables=tables,
        logit_indices=torch.zeros(1, dtype=torch.int32, device=device),
        kv_cache=kv_cache,
        block_size=size,
    )
    batch.attention = ops.plan_attention(batch)
    model(batch)
    return sum(tensor.nbytes for layer in kv_cache for tensor in layer)


def _sample(config: EngineConfig, model: DecoderModel, ops: Ops, device: torch.device) -> int:
    """All requests draw with filters from logits that are float32, as the edited ones are."""
    rows = config.max_num_seqs
    hidden = torch.zeros(rows, model.config.hidden_size, dtype=model.model.norm.weight.dtype, device=device)
    params = np.zeros(rows, PARAMS)
    params["temperature"], params["top_k"], params["top_p"] = 1.0, 50, 0.9
    words = torch.from_numpy(params.view(np.int32).reshape(rows, -1)).to(device)
    ops.sample(model.raw_logits(hidden).to(torch.float32, copy=True), words, filters=True)
    return 0
