"""The memory ledger: what the weights, the KV cache and the work of a step take, and how large the cache may be."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import psutil

from octavo.config import BATCHED_TOKENS, DTYPES, EngineConfig, ModelConfig
from octavo.errors import OutOfMemoryError, UsageError

GIB = 1 << 30
CPU_SHARE = 0.5
"""Of a computer's free memory, this much is the engine's to plan with: it is not the only program there."""

MAX_BLOCKS = 1 << 22
"""Each block has entries in the core's tables, some hundred bytes in all: more would cost more than they give."""

_CGROUPS = (
    ("/sys/fs/cgroup", "memory.max", "memory.current"),
    ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
)
"""Where control groups (version 2, version 1) are, and their files of the limit and of what is used."""


@dataclass(frozen=True, slots=True)
class Ledger:
    """Bytes, and what they hold.

    Attributes:
        free: bytes that were free when the ledger was drawn up, with the weights loaded.
        weights: parameters as they lie in memory.
        kv_cache: all blocks together.
        workspace: an estimate of what a step allocates.
        num_blocks, block_size: of the KV cache.
        max_model_len: the longest sequence that is accepted, in tokens.
        huge_pages: share of a CPU's weights that the system has given in huge pages; None: it does not say.
    """

    free: int
    weights: int
    kv_cache: int
    workspace: int
    num_blocks: int
    block_size: int
    max_model_len: int
    huge_pages: float | None = None

    @property
    def kv_tokens(self) -> int:
        return self.num_blocks * self.block_size

    def describe(self) -> str:
        """One line for people."""
        pages = "" if self.huge_pages is None else f" ({self.huge_pages:.0%} in huge pages)"
        return (
            f"weights {size_text(self.weights)}{pages}, KV cache {size_text(self.kv_cache)} "
            f"({self.num_blocks} blocks of {self.block_size}, {self.kv_tokens} tokens), "
            f"workspace about {size_text(self.workspace)}; longest sequence {self.max_model_len} tokens"
        )


def size_text(count: int) -> str:
    """A number of bytes for people."""
    return f"{count / GIB:.2f} GiB" if count >= GIB else f"{count / 2**20:.0f} MiB"


def free_memory() -> int:
    """Bytes that this process may still take: the machine's available memory, or what its control group leaves."""
    free = psutil.virtual_memory().available
    for folder, limit_file, used_file in _CGROUPS:
        try:
            limit = int(Path(folder, limit_file).read_text())
            used = int(Path(folder, used_file).read_text()) - _cached_files(Path(folder, "memory.stat"))
        except (OSError, ValueError):  # no such control group, or its limit is "max"
            continue
        free = min(free, max(limit - used, 0))
    return free


def _cached_files(stat: Path) -> int:
    """Bytes of files that a control group keeps in memory until it is needed: a model read from disk is among them."""
    lines = (line.split() for line in stat.read_text().splitlines())
    return sum(int(value) for name, value in lines if name in ("inactive_file", "active_file"))


def workspace_bytes(model: ModelConfig, engine: EngineConfig, dtype: str) -> int:
    """An estimate of what one step allocates besides weights and cache.

    The widest activations are the gate-up product and its inputs (counted thrice the width: they coexist with the
    residual and the query projections); logits are float32 and are copied about three times while sampling.
    """
    width = 3 * (2 * model.intermediate_size + 2 * model.hidden_size + 2 * model.num_heads * model.head_dim)
    activations = tokens_per_step(engine) * width * DTYPES[dtype]
    return activations + 3 * 4 * engine.max_num_seqs * model.vocab_size


def tokens_per_step(engine: EngineConfig) -> int:
    """Most tokens of a step; those of a CPU if the configuration was not fitted to a device yet."""
    return engine.max_num_batched_tokens or BATCHED_TOKENS["cpu"]


def kv_budget(model: ModelConfig, engine: EngineConfig, dtype: str, free: int) -> int:
    """Bytes for the KV cache of the ``free`` ones: ``gpu_memory_utilization`` of the engine's share of these, less the
    workspace. Negative if there is no room.
    """
    return int((free * CPU_SHARE - workspace_bytes(model, engine, dtype)) * engine.gpu_memory_utilization)


def draw_up(
    model: ModelConfig,
    engine: EngineConfig,
    *,
    dtype: str,
    kv_dtype: str,
    weights: int,
    free: int,
    workspace: int | None = None,
    budget: int | None = None,
) -> Ledger:
    """Decide the size of the KV cache and the longest sequence.

    The cache gets the ``budget``, but no more than ``max_num_seqs`` sequences of full length can use; or exactly
    ``kv_cache_memory``.

    Args:
        dtype, kv_dtype: of the model and of the cache.
        weights, free: bytes that the weights take, and that are free beside them.
        workspace: bytes that a step takes, if that was measured; None: an estimate.
        budget: bytes for the cache; None: what `kv_budget` says.

    Raises:
        UsageError: ``max_model_len`` is beyond the model's own.
        OutOfMemoryError: not even one sequence of the length that was asked for fits; the message says what would.
    """
    _check_length(model, engine)
    workspace = workspace_bytes(model, engine, dtype) if workspace is None else workspace
    block_bytes = engine.block_size * model.kv_bytes_per_token(kv_dtype)
    length = engine.max_model_len or model.max_position_embeddings
    blocks_per_sequence = -(-length // engine.block_size)
    if budget is None:
        budget = kv_budget(model, engine, dtype, free)
    budget = engine.kv_cache_memory or budget
    if engine.kv_cache_memory and engine.kv_cache_memory > free:
        raise OutOfMemoryError(f"kv_cache_memory is {size_text(engine.kv_cache_memory)}; {size_text(free)} are free")
    num_blocks = min(budget // block_bytes, blocks_per_sequence * engine.max_num_seqs, MAX_BLOCKS)
    fitting = max(num_blocks, 0) * engine.block_size
    if num_blocks < 1 or (engine.max_model_len and fitting < length):
        raise OutOfMemoryError(
            f"max_model_len={length} needs {size_text(blocks_per_sequence * block_bytes)} of KV cache; there is room "
            f"for {fitting} tokens ({size_text(max(budget, 0))}). Lower max_model_len, max_num_seqs or "
            f"max_num_batched_tokens, or set kv_cache_memory"
        )
    return Ledger(
        free,
        weights,
        num_blocks * block_bytes,
        workspace,
        num_blocks,
        engine.block_size,
        min(length, fitting),
    )


def _check_length(model: ModelConfig, engine: EngineConfig) -> None:
    if engine.max_model_len and engine.max_model_len > model.max_position_embeddings:
        raise UsageError(
            f"max_model_len={engine.max_model_len}: the model knows {model.max_position_embeddings} positions; "
            f"at most {model.max_position_embeddings} is accepted"
        )
