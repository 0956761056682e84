"""What a model is, and how much of it fits in this machine's memory: figures only, nothing is printed or
loaded."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from math import prod
from typing import Any

from octavo.config import DTYPES, EngineConfig, ModelConfig
from octavo.execution.memory import kv_budget
from octavo.text.tokenizer_config import read_tokenizer_config
from octavo.weights.checkpoint import Checkpoint

CONTEXTS = (1024, 4096)
"""Lengths, in tokens, of the requests that are counted beside those of the model's full context."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """What fits in memory when the model runs in ``dtype``.

    Attributes:
        weights_bytes: all weights, expanded to ``dtype``.
        kv_bytes_per_token: keys and values of one token, over all layers.
        kv_tokens: tokens that the KV cache can hold, in whole blocks; 0 when the weights alone do not fit.
        requests: length in tokens -> how many requests of that length fit at once.
    """

    dtype: str
    weights_bytes: int
    kv_bytes_per_token: int
    kv_tokens: int
    requests: dict[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelReport:
    """What is known of a model before it is loaded.

    ``bytes_by_kind`` maps how tensors are stored ("BF16", "Q4_1") to bytes on disk; ``memory_available`` is
    in bytes.
    """

    path: str
    config: ModelConfig
    num_parameters: int
    num_tensors: int
    bytes_by_kind: dict[str, int]
    chat_template: bool
    memory_available: int
    fits: list[Fit]


def inspect_model(checkpoint: Checkpoint, memory_available: int) -> ModelReport:
    """Describe ``checkpoint`` from its headers, and what ``memory_available`` bytes hold of it.

    Raises ``ModelError`` for a damaged file.
    """
    num_parameters = num_tensors = 0
    bytes_by_kind: dict[str, int] = defaultdict(int)
    for tensor in checkpoint.tensors():
        num_tensors += 1
        num_parameters += prod(tensor.shape)
        bytes_by_kind[tensor.kind] += tensor.nbytes
    config = checkpoint.config
    return ModelReport(
        path=str(checkpoint.path),
        config=config,
        num_parameters=num_parameters,
        num_tensors=num_tensors,
        bytes_by_kind=dict(sorted(bytes_by_kind.items(), key=lambda item: -item[1])),
        chat_template=has_chat_template(checkpoint),
        memory_available=memory_available,
        fits=[fit(config, dtype, num_parameters, memory_available) for dtype in ("bfloat16", "float32")],
    )


def fit(config: ModelConfig, dtype: str, num_parameters: int, memory_available: int) -> Fit:
    """Divide memory as the engine does by default: the weights, then a share of what is left for the KV cache.

    The engine reserves no more than ``max_num_seqs`` sequences can use; here it is what memory could hold.
    """
    weights = num_parameters * DTYPES[dtype]
    engine = EngineConfig(model="")
    block_size = engine.block_size
    per_token = config.kv_bytes_per_token(dtype)
    num_blocks = max(0, kv_budget(config, engine, dtype, memory_available - weights)) // (per_token * block_size)
    lengths = sorted({*(n for n in CONTEXTS if n < config.max_position_embeddings), config.max_position_embeddings})
    return Fit(
        dtype=dtype,
        weights_bytes=weights,
        kv_bytes_per_token=per_token,
        kv_tokens=num_blocks * block_size,
        requests={length: num_blocks // -(-length // block_size) for length in lengths},
    )


def has_chat_template(checkpoint: Checkpoint) -> bool:
    """Whether the model says how a chat is to be written for it."""
    from octavo.weights.gguf import GGUFCheckpoint

    if isinstance(checkpoint, GGUFCheckpoint):
        return bool(checkpoint.file.metadata.get("tokenizer.chat_template"))
    return bool(read_tokenizer_config(checkpoint.path).chat_template)


def to_dict(report: ModelReport) -> dict[str, Any]:
    """The report as JSON has it."""
    import msgspec

    return msgspec.to_builtins(report, str_keys=True)
