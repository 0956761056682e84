"""Has the kernels of all steps that can come compiled, side by side, before the first one runs.

Otherwise the first request of each kind would wait for its kernels, and the start for those of each graph in turn.
"""

from __future__ import annotations

from copy import copy
from dataclasses import replace

import torch
from torch import nn

from octavo.config import EngineConfig
from octavo.execution import scratch_step
from octavo.execution.device_state import DeviceState
from octavo.execution.graphs import StepGraphs
from octavo.execution.kv_cache import allocate_kv_cache
from octavo.execution.workspace import longest_request, most_graph_tokens
from octavo.kernels.ops import Ops
from octavo.layers.weight import Matrix
from octavo.models.decoder import DecoderModel

PROMPTS = (
    [(1024, 1024)],
    [(8, 8), (8, 40)],
    [(1, 1), (300, 300), (200, 1000), (1, 70)],
    [(200, 1000)],
    [(1, 40)],
    [(1, 40)] * 5,
    *([*[(1, context)] * rows, (40, 40)] for rows, context in ((1, 1000), (16, 50), (16, 1000), (64, 50), (255, 50))),
)
"""Steps without a graph: (queries, context) of their rows."""


@torch.inference_mode()
def precompile(
    config: EngineConfig, model: DecoderModel, ops: Ops, kv_dtype: torch.dtype, device: torch.device
) -> None:
    """Go through the steps that can come without launching a kernel of ours."""
    if device.type == "cuda" and not ops.graph_safe:  # plain torch: there is nothing to compile
        return
    length, size, seqs = longest_request(config, model), config.block_size, config.max_num_seqs
    tokens, model = most_graph_tokens(config, model), shallow(model)
    with ops.compile_only(device):
        if not config.enforce_eager:
            state = DeviceState(seqs, length, size, device, trash_block=0)
            kv_cache = allocate_kv_cache(model.config, 1, size, kv_dtype, device)
            sizes = {"max_num_seqs": seqs, "max_model_len": length, "max_tokens": tokens}
            StepGraphs(model, ops, state, kv_cache, **sizes).rehearse()
        for lens in PROMPTS:
            fitting = [(min(queries, length), min(context, length)) for queries, context in lens[-seqs:]]
            scratch_step.compute(model, ops, fitting, size, kv_dtype)
        for rows in {1, seqs}:
            scratch_step.sample(model, ops, rows)
        logits = torch.zeros(1, model.config.vocab_size, device=device)
        first = torch.zeros(1, dtype=torch.int64, device=device)
        ops.gather_logprobs(logits, first, 1)
        words = torch.zeros(1, -(-model.config.vocab_size // 32), dtype=torch.int32, device=device)
        ops.apply_token_bitmask(logits, first, words)


def shallow(model: DecoderModel) -> DecoderModel:
    """The model with few of its layers: the first two (the first is alone in having no residual), and of the others one
    of each kind of window, of parts and of packed weights. These take the kernels of all.
    """
    layers, windows = list(model.model.layers), model.config.sliding_windows
    kinds = [(window, _parts(layer)) for window, layer in zip(windows, layers, strict=True)]
    few = sorted({*range(min(2, len(layers))), *(kinds.index(kind) for kind in kinds)})
    twin, decoder = copy(model), copy(model.model)
    decoder._modules = {**decoder._modules, "layers": nn.ModuleList(layers[i] for i in few)}
    twin._modules = {**twin._modules, "model": decoder}
    twin.config = replace(model.config, num_layers=len(few), sliding_windows=tuple(windows[i] for i in few))
    return twin


def _parts(layer: nn.Module) -> tuple[tuple[str, str], ...]:
    """What a layer is made of: classes, and the kinds of packed weights."""
    weights = ((m, m.operand if isinstance(m, Matrix) else None) for m in layer.modules())
    return tuple((type(m).__name__, getattr(weight, "kind", "")) for m, weight in weights)
