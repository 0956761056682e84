"""From a checkpoint to a runner: choose device and dtype, load the weights, size the KV cache."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from octavo.config import EngineConfig, ModelConfig
from octavo.errors import OutOfMemoryError, UsageError
from octavo.execution.adapters import AdapterStore
from octavo.execution.batch import BatchState
from octavo.execution.build_device import build_device_runner
from octavo.execution.device_runner import DeviceRunner
from octavo.execution.kv_cache import allocate_kv_cache
from octavo.execution.loading import load_and_pack
from octavo.execution.memory import Ledger, draw_up, free_memory, size_text
from octavo.execution.runner import Runner
from octavo.execution.sampler import Sampler
from octavo.execution.weight_cache import WeightCache, weight_cache
from octavo.kernels import for_device
from octavo.kernels.cpu.processors import num_threads
from octavo.kernels.forward_batch import KV_DTYPES
from octavo.kernels.huge_pages import residence
from octavo.kernels.lora import LoraSizes
from octavo.kernels.ops import Ops
from octavo.layers.build import Build, Packing
from octavo.models.decoder import DecoderModel
from octavo.models.loading import init_dummy, lora_bytes, pack_weights, param_bytes, weight_tensors
from octavo.models.packing import describe_packing, loaded_bytes
from octavo.models.registry import build_model
from octavo.quantization.schemes import scheme
from octavo.weights.checkpoint import Checkpoint, LazyTensor

log = logging.getLogger("octavo")

PRICE_OF_W8A8 = (
    "quantization='w8a8' rounds activations to 8 bits with one scale for a whole token: the fastest on a CPU, but on "
    "SmolLM2-135M only about 90% of greedy tokens are float32's ('int8': about 97%), and perplexity is 2 to 3% higher"
)
"""Greedy tokens by benchmarks/cpu/exactness.py; perplexity of three English texts of 1,023 tokens against bfloat16."""


def choose_device(asked: str) -> str:
    """The device to run on, as torch names it: with "auto" a GPU, if there is one.

    Raises:
        UsageError: there is no such GPU.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if asked == "auto":
        return "cuda:0" if count else "cpu"
    if asked == "cpu":
        return asked
    index = int(asked.partition(":")[2] or 0)
    if index >= count:
        there = ", ".join(["cpu", *(f"cuda:{i}" for i in range(count))])
        raise UsageError(f"device={asked!r}: there is no such GPU; accepted here: {there}")
    return f"cuda:{index}"


def build_runner(
    config: EngineConfig,
    checkpoint: Checkpoint,
    progress: bool = False,
    on_phase: Callable[[str], None] = lambda name: None,
    ops: Ops | None = None,
) -> tuple[Runner | DeviceRunner, Ledger]:
    """Load the model and set up all state that a step needs. ``config`` is fitted to its device. ``on_phase`` gets the
    name of each part when it is done. ``ops`` are the operations to use, None: the device's own.

    Raises:
        ModelError: the checkpoint is damaged or of an unknown architecture.
        UsageError: there are not so many processors.
        OutOfMemoryError: the weights, or the KV cache that was asked for, do not fit.
    """
    model_config, device = checkpoint.config, torch.device(config.device)
    dtype = choose_dtype(config.dtype, model_config.dtype, device)
    kv_dtype = dtype if config.kv_cache_dtype == "auto" else config.kv_cache_dtype
    _check_kv_dtype(kv_dtype, device)
    if device.type == "cpu":
        torch.set_num_threads(num_threads(config.num_threads))
    ops = ops or for_device(device, deterministic=config.deterministic)
    on_phase("kernels_loaded")
    packing = choose_packing(config, ops)
    if device.type == "cpu" and config.quantization == "w8a8":
        log.warning(PRICE_OF_W8A8)
    build = Build(ops, dtype=getattr(torch, dtype), device=device, packing=packing, lora=lora_sizes(config))
    model = _build_model(config, checkpoint, build, progress)
    on_phase("weights_loaded")
    if device.type == "cuda":
        return build_device_runner(config, model, ops, dtype, kv_dtype, device, on_phase)
    ledger = _cpu_ledger(config, model, dtype, kv_dtype)
    runner = _assemble(config, model, ops, ledger, KV_DTYPES[kv_dtype], device)
    on_phase("kv_cache_allocated")
    return runner, ledger


def _check_kv_dtype(name: str, device: torch.device) -> None:
    if name == "fp8" and device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 9):
        raise UsageError(
            "kv_cache_dtype='fp8' needs a GPU of compute capability 8.9 or later; "
            f"{torch.cuda.get_device_name(device)} is older. Accepted here: auto, int8, bfloat16, float16, float32"
        )


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


def choose_packing(config: EngineConfig, ops: Ops) -> Packing:
    """What ``config.quantization`` makes of the model's matrices."""
    match config.quantization:
        case None if config.dtype == "auto" and not config.deterministic:
            return Packing(keeps=ops.multiplies)
        case None | "none":
            return Packing()
        case "file":
            return Packing(keeps=lambda kind: True, must_keep=True)
        case name:
            return Packing(scheme(name))


def lora_sizes(config: EngineConfig) -> LoraSizes | None:
    """The room for LoRA adapters that the model is to have, if any."""
    return LoraSizes(config.max_loras, config.max_lora_rank) if config.enable_lora else None


def _build_model(config: EngineConfig, checkpoint: Checkpoint, build: Build, progress: bool) -> DecoderModel:
    limit = checkpoint.config.max_position_embeddings
    length = min(config.max_model_len, limit) if config.max_model_len else limit
    tensors = [] if config.load_format == "dummy" else list(checkpoint.tensors())
    _check_room(checkpoint.config, build, length, tensors)
    model = build_model(checkpoint.config, build, length)
    if config.load_format == "dummy":
        init_dummy(model, config.seed)
        pack_weights(model)
    else:
        load_and_pack(model, tensors, _weight_cache(config, checkpoint, build), progress)
    if build.packing.scheme is not None and (note := describe_packing(model, build.packing.scheme)):
        warnings.warn(note, stacklevel=2)
    return model.eval()


def _check_room(config: ModelConfig, build: Build, length: int, tensors: Sequence[LazyTensor]) -> None:
    """Raise ``OutOfMemoryError`` before anything is allocated that does not fit: systems lend memory that they do not
    have, and kill whoever uses it. ``tensors``: what will be loaded.
    """
    try:
        empty = build_model(config, replace(build, device=torch.device("meta")), 1)
        weights = loaded_bytes(empty, build.packing, tensors) + lora_bytes(empty)
    except RuntimeError as error:  # a tensor with more bytes than an integer can count
        raise OutOfMemoryError(f"the weights do not fit in memory: {str(error).splitlines()[0]}") from None
    table = 4 * length * config.head_dim * 4  # of cosines and sines in float32, while it is made
    free = free_memory() if build.device.type == "cpu" else torch.cuda.mem_get_info(build.device)[0]
    if weights + table > free:
        raise OutOfMemoryError(
            f"the weights need {size_text(weights)} in {str(build.dtype).removeprefix('torch.')}, and rotary tables of "
            f"{length} positions {size_text(table)}; {size_text(free)} are free"
        )


def _weight_cache(config: EngineConfig, checkpoint: Checkpoint, build: Build) -> WeightCache | None:
    """Where the weights are kept in the form of the ops, if they are."""
    how = {"dtype": str(build.dtype), "quantization": config.quantization, "asked": config.dtype}
    return weight_cache(checkpoint.path, how, build.ops.packed_forms())


def _cpu_ledger(config: EngineConfig, model: DecoderModel, dtype: str, kv_dtype: str) -> Ledger:
    """The ledger of a CPU. Files that weights have mapped are free memory to the system, but not to us."""
    pages = residence(weight_tensors(model))
    free = max(free_memory() - pages.of_files, 0)
    sizes = {"weights": param_bytes(model), "adapters": lora_bytes(model), "free": free}
    ledger = draw_up(model.config, config, dtype=dtype, kv_dtype=kv_dtype, **sizes)
    return replace(ledger, huge_pages=pages.share if pages.resident else None)


def _assemble(
    config: EngineConfig,
    model: DecoderModel,
    ops: Ops,
    ledger: Ledger,
    kv_dtype: torch.dtype,
    device: torch.device,
) -> Runner:
    try:
        kv_cache = allocate_kv_cache(model.config, ledger.num_blocks, ledger.block_size, kv_dtype, device)
        state = BatchState(config.max_num_seqs, ledger.max_model_len, ledger.block_size, device)
    except MemoryError:
        raise OutOfMemoryError(
            f"the state of {config.max_num_seqs} requests of up to {ledger.max_model_len} tokens does not fit; "
            f"lower max_model_len or max_num_seqs"
        ) from None
    sampler = Sampler(config.max_num_seqs, model.config.vocab_size, device, ops)
    adapters = AdapterStore(model, config.max_loras) if config.enable_lora else None
    return Runner(model, ops, kv_cache, state, sampler, adapters)
