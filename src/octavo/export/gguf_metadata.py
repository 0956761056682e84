"""What a GGUF file says of a model, besides its tensors and its tokenizer: llama.cpp's names for a `ModelConfig`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from octavo.config import ModelConfig, RopeScaling
from octavo.errors import ModelError
from octavo.layers.rotary import inverse_frequencies
from octavo.weights.checkpoint import Checkpoint

ARCHITECTURES = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "llama",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
}
"""Hugging Face's name of an architecture -> GGUF's."""

FILE_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "BF16": 32}
"""``general.file_type``: what most of the weights are stored as."""


def architecture(config: ModelConfig) -> str:
    """GGUF's name. Raises ``ModelError`` for a model that cannot be written so."""
    name = ARCHITECTURES.get(config.architecture)
    if name is None:
        raise ModelError(
            f"{config.architecture} cannot be exported to GGUF; accepted: {', '.join(ARCHITECTURES)}"
            " (--format safetensors takes all)"
        )
    if len(set(config.sliding_windows)) > 1:
        raise ModelError("GGUF has one sliding window for all layers of this family; this model's layers differ")
    _check_known(config)
    return name


def _check_known(config: ModelConfig) -> None:
    """Raise ``ModelError`` for what a reader of these families would take to be otherwise, as GGUF cannot say it."""
    usual: dict[str, tuple[Any, ...]] = {
        "hidden_act": ("silu",),
        "attention_scale": (None, config.head_dim**-0.5),
        "attention_soft_cap": (None,),
        "logit_soft_cap": (None,),
        "rotary_dim": (None, config.head_dim),
        "local_rope_theta": (None,),
        "no_rope_layers": ((),),
        "experts": (None,),
    }
    for name, values in usual.items():
        if (value := getattr(config, name)) not in values:
            raise ModelError(f"GGUF cannot say of this family that {name} is {value}; accepted: {values[0]}")


def metadata(checkpoint: Checkpoint, name: str, kind: str) -> dict[str, Any]:
    """All keys but the tokenizer's. ``name``: of the model; ``kind``: what most matrices are stored as."""
    config = checkpoint.config
    prefix = architecture(config)
    found: dict[str, Any] = {
        "general.architecture": prefix,
        "general.type": "model",
        "general.name": name,
        "general.file_type": FILE_TYPES[kind],
        "general.quantization_version": 2,
    }
    found |= {f"{prefix}.{key}": value for key, value in (_shape(config) | _rope(config)).items()}
    return found | _sampling(checkpoint)


def rope_factors(config: ModelConfig) -> Tensor | None:
    """Divisors of the rotary frequencies ``[head_dim / 2]`` float32, where GGUF has a tensor for them, or None."""
    if config.rope_scaling is None or config.rope_scaling.kind not in ("llama3", "factors"):
        return None
    plain = 1.0 / config.rope_theta ** (torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim)
    return plain / inverse_frequencies(config)[0]


def _shape(config: ModelConfig) -> dict[str, Any]:
    window = config.sliding_windows[0]
    return {
        "block_count": config.num_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "vocab_size": config.vocab_size,
        "attention.head_count": config.num_heads,
        "attention.head_count_kv": config.num_kv_heads,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        **({} if window is None else {"attention.sliding_window": window}),
    }


def _rope(config: ModelConfig) -> dict[str, Any]:
    found: dict[str, Any] = {"rope.freq_base": float(config.rope_theta), "rope.dimension_count": config.head_dim}
    scaling = config.rope_scaling
    if scaling is None or scaling.kind in ("llama3", "factors"):  # a tensor: see rope_factors
        return found
    if scaling.kind not in ("linear", "yarn"):
        raise ModelError(f"rope scaling {scaling.kind!r} has no place in GGUF; accepted: linear, llama3, yarn, factors")
    found |= {"rope.scaling.type": scaling.kind, "rope.scaling.factor": float(scaling.factor)}
    return found | (_yarn(scaling, config) if scaling.kind == "yarn" else {})


def _yarn(scaling: RopeScaling, config: ModelConfig) -> dict[str, Any]:
    if scaling.attention_factor is not None or scaling.mscale is not None or not scaling.truncate:
        raise ModelError("a yarn with attention_factor, mscale or truncate=false has no place in GGUF")
    return {
        "rope.scaling.original_context_length": scaling.original_max_position or config.max_position_embeddings,
        "rope.scaling.yarn_beta_fast": float(scaling.beta_fast),
        "rope.scaling.yarn_beta_slow": float(scaling.beta_slow),
    }


def _sampling(checkpoint: Checkpoint) -> dict[str, Any]:
    keys = {"temperature": "temp", "repetition_penalty": "penalty_repeat"}
    suggested = checkpoint.generation.as_dict()
    return {
        f"general.sampling.{keys.get(name, name)}": int(value) if name == "top_k" else float(value)
        for name, value in suggested.items()
    }
