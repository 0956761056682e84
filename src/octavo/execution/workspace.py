"""What steps take beside weights and KV cache. Measured, not estimated: the largest that can come are run once."""

from __future__ import annotations

import gc
from collections.abc import Callable

import torch

from octavo.config import EngineConfig
from octavo.errors import OutOfMemoryError
from octavo.execution import scratch_step
from octavo.execution.graph_sizes import most_mixed_tokens
from octavo.execution.memory import size_text, tokens_per_step
from octavo.kernels.ops import Ops
from octavo.models.decoder import DecoderModel
from octavo.models.packing import num_params

MARGIN = 256 << 20
"""Bytes left for libraries that take memory when they are first used, and for fragmentation."""


def measure_workspace(
    config: EngineConfig, model: DecoderModel, ops: Ops, kv_dtype: torch.dtype, device: torch.device
) -> int:
    """Bytes that the largest steps take: one prompt of all tokens that a step may have, all requests sampling, and the
    largest of which there are graphs, which have their own memory.

    Raises:
        OutOfMemoryError: they do not fit.
    """

    def step(tokens: int) -> int:
        lens = whole_prompts(tokens, longest_request(config, model))
        cache = scratch_step.compute(model, ops, lens, config.block_size, kv_dtype, max_loras=config.lora_places)
        return sum(layer.nbytes for layer in cache)

    def sampling() -> int:
        scratch_step.sample(model, ops, config.max_num_seqs)
        return 0

    try:
        with torch.inference_mode():
            eager = max(_peak(device, lambda: step(tokens_per_step(config))), sample := _peak(device, sampling))
            most = most_graph_tokens(config, model)
            graphs = 0 if config.enforce_eager else max(_peak(device, lambda: step(most)) if most else 0, sample)
    except torch.OutOfMemoryError:
        raise does_not_fit(config) from None
    return eager + graphs + MARGIN


def does_not_fit(config: EngineConfig) -> OutOfMemoryError:
    """What to say if the largest step is too large."""
    return OutOfMemoryError(
        f"a step of {tokens_per_step(config)} tokens does not fit beside the weights; "
        f"{size_text(torch.cuda.mem_get_info()[0])} are free. Lower max_num_batched_tokens or max_num_seqs"
    )


def longest_request(config: EngineConfig, model: DecoderModel) -> int:
    """Tokens that a request can have, before it is known how many fit into the memory."""
    return min(config.max_model_len or model.config.max_position_embeddings, model.config.max_position_embeddings)


def most_graph_tokens(config: EngineConfig, model: DecoderModel) -> int:
    """How many tokens a step with prompts may have to take a graph; 0 if the smallest graph has more than any step."""
    return most_mixed_tokens(model.config.num_layers, num_params(model), tokens_per_step(config))


def whole_prompts(tokens: int, length: int) -> list[tuple[int, int]]:
    """Rows (queries, context) of as many prompts of ``length`` as are ``tokens``, and one of the rest."""
    lens = [length] * (tokens // length) + ([tokens % length] if tokens % length else [])
    return [(n, n) for n in lens]


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
