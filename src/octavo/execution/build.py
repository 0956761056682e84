"""From a checkpoint to a runner: choose device and dtype, load the weights, size the KV cache."""

from __future__ import annotations

from dataclasses import replace

import torch
from tqdm import tqdm

from octavo.config import EngineConfig, ModelConfig
from octavo.errors import OutOfMemoryError
from octavo.execution.batch import BatchState
from octavo.execution.memory import Ledger, draw_up, free_memory, size_text
from octavo.execution.runner import Runner
from octavo.execution.sampler import Sampler
from octavo.kernels import for_device
from octavo.kernels.forward_batch import KVLayer
from octavo.kernels.ops import Ops
from octavo.layers.build import Build
from octavo.models.decoder import DecoderModel
from octavo.models.loading import init_dummy, load_weights, pack_weights, param_bytes
from octavo.models.registry import build_model
from octavo.weights.checkpoint import Checkpoint


def build_runner(config: EngineConfig, checkpoint: Checkpoint, progress: bool = False) -> tuple[Runner, Ledger]:
    """Load the model and set up all state that a step needs.

    Raises:
        ModelError: the checkpoint is damaged or of an unknown architecture.
        OutOfMemoryError: the weights, or the KV cache that was asked for, do not fit.
    """
    model_config, device = checkpoint.config, torch.device("cpu")
    dtype = choose_dtype(config.dtype, model_config.dtype, device)
    kv_dtype = dtype if config.kv_cache_dtype == "auto" else config.kv_cache_dtype
    ops = for_device(device)
    model = _build_model(config, checkpoint, Build(ops, dtype=getattr(torch, dtype), device=device), progress)
    ledger = draw_up(
        model_config, config, dtype=dtype, kv_dtype=kv_dtype, weights=param_bytes(model), free=free_memory()
    )
    return _assemble(config, model, ops, ledger, getattr(torch, kv_dtype), device), ledger


def choose_dtype(asked: str, stored: str, device: torch.device) -> str:
    """The dtype to compute in: the one asked for, or with "auto" what the device computes well.

    A CPU computes bfloat16 well if it has instructions for it; otherwise float32 is faster. No CPU kernel of torch
    computes float16 well, so that a float16 checkpoint is treated like a bfloat16 one.
    """
    if asked != "auto":
        return asked
    if device.type != "cpu":
        return stored
    if stored == "float32":
        return stored
    return "bfloat16" if torch.ops.mkldnn._is_mkldnn_bf16_supported() else "float32"


def _build_model(config: EngineConfig, checkpoint: Checkpoint, build: Build, progress: bool) -> DecoderModel:
    limit = checkpoint.config.max_position_embeddings
    length = min(config.max_model_len, limit) if config.max_model_len else limit
    _check_room(checkpoint.config, build, length)
    model = build_model(checkpoint.config, build, length)
    if config.load_format == "dummy":
        init_dummy(model, config.seed)
    else:
        _load(model, checkpoint, progress)
    pack_weights(model)
    return model.eval()


def _check_room(config: ModelConfig, build: Build, length: int) -> None:
    """Raise ``OutOfMemoryError`` before anything is allocated that does not fit: systems lend memory that they do not
    have, and kill whoever uses it.
    """
    try:
        weights = param_bytes(build_model(config, replace(build, device=torch.device("meta")), 1))
    except RuntimeError as error:  # a tensor with more bytes than an integer can count
        raise OutOfMemoryError(f"the weights do not fit in memory: {str(error).splitlines()[0]}") from None
    table = 4 * length * config.head_dim * 4  # of cosines and sines in float32, while it is made
    free = free_memory()
    if weights + table > free:
        raise OutOfMemoryError(
            f"the weights need {size_text(weights)} in {str(build.dtype).removeprefix('torch.')}, and rotary tables of "
            f"{length} positions {size_text(table)}; {size_text(free)} are free"
        )


def _load(model: DecoderModel, checkpoint: Checkpoint, progress: bool) -> None:
    tensors = list(checkpoint.tensors())
    total = sum(tensor.nbytes for tensor in tensors)
    bar = tqdm(
        total=total,
        desc="loading",
        unit="B",
        unit_scale=True,
        unit_divisor=1024,
        leave=False,
        disable=not progress,
    )
    with bar:
        load_weights(model, tensors, bar.update)


def _assemble(
    config: EngineConfig,
    model: DecoderModel,
    ops: Ops,
    ledger: Ledger,
    kv_dtype: torch.dtype,
    device: torch.device,
) -> Runner:
    try:
        kv_cache = allocate_kv_cache(model.config, ledger, kv_dtype, device)
        state = BatchState(config.max_num_seqs, ledger.max_model_len, ledger.block_size, device)
    except MemoryError:
        raise OutOfMemoryError(
            f"the state of {config.max_num_seqs} requests of up to {ledger.max_model_len} tokens does not fit; "
            f"lower max_model_len or max_num_seqs"
        ) from None
    return Runner(model, ops, kv_cache, state, Sampler(config.max_num_seqs, model.config.vocab_size, device))


def allocate_kv_cache(model: ModelConfig, ledger: Ledger, dtype: torch.dtype, device: torch.device) -> list[KVLayer]:
    """The blocks of all layers, as zeros. On a CPU they take memory only as they are written to."""
    return [
        KVLayer.zeros(ledger.num_blocks, ledger.block_size, model.num_kv_heads, model.head_dim, dtype, device)
        for _ in range(model.num_layers)
    ]
