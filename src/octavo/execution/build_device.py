"""A runner for a GPU: measure what a step takes, give the rest to the KV cache, record the graphs.

What steps take is measured before the cache is made. So the cache can take all that is left of the share that it may
have. Not in it: what penalties remember of long prompts.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from octavo.config import EngineConfig
from octavo.errors import OutOfMemoryError
from octavo.execution.adapters import AdapterStore
from octavo.execution.current import current
from octavo.execution.device_runner import DeviceRunner
from octavo.execution.device_state import DeviceState
from octavo.execution.graphs import StepGraphs
from octavo.execution.kv_cache import allocate_kv_cache
from octavo.execution.memory import Ledger, draw_up, size_text
from octavo.execution.precompile import precompile
from octavo.execution.sampler import Sampler
from octavo.execution.workspace import does_not_fit, longest_request, measure_workspace, most_graph_tokens
from octavo.kernels.forward_batch import KV_DTYPES
from octavo.kernels.ops import Ops
from octavo.models.decoder import DecoderModel
from octavo.models.loading import lora_bytes, param_bytes


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
        try:
            precompile(config, model, ops, KV_DTYPES[kv_dtype], device)
        except torch.OutOfMemoryError:
            raise does_not_fit(config) from None
        on_phase("kernels_compiled")
        workspace = measure_workspace(config, model, ops, KV_DTYPES[kv_dtype], device)
    on_phase("memory_measured")
    free, total = torch.cuda.mem_get_info(device)
    budget = int(total * config.gpu_memory_utilization) - (total - free) - workspace
    held = {"weights": param_bytes(model), "adapters": lora_bytes(model)}
    sizes = {**held, "free": free, "workspace": workspace, "budget": budget}
    ledger = draw_up(model.config, config, dtype=dtype, kv_dtype=kv_dtype, **sizes)
    try:
        runner = assemble(config, model, ops, ledger, KV_DTYPES[kv_dtype], device)
        on_phase("kv_cache_allocated")
        runner.warm_up(rehearsed=ledger.max_model_len == longest_request(config, model))
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
    tokens = most_graph_tokens(config, model)
    sizes = {"max_num_seqs": seqs, "max_model_len": length, "max_tokens": tokens}
    graphs = StepGraphs(model, ops, state, kv_cache, **sizes, max_loras=config.lora_places)
    sampler = Sampler(seqs, model.config.vocab_size, device, ops)
    eager = config.enforce_eager or (device.type == "cuda" and not ops.graph_safe)
    adapters = AdapterStore(model, config.max_loras) if config.enable_lora else None
    return DeviceRunner(model, ops, kv_cache, state, sampler, None if eager else graphs, adapters)
