"""What a GGUF file says of a model, besides its tensors and its tokenizer: llama.cpp's names for a `ModelConfig`."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from octavo.config import ModelConfig, RopeScaling
from octavo.errors import ModelError
from octavo.layers.rotary import inverse_frequencies
from octavo.weights.checkpoint import Checkpoint
from octavo.weights.gguf_config import ARCHITECTURES as READ
from octavo.weights.gguf_config import LONG_FACTORS, ROPE_FACTORS, SHORT_FACTORS, MetadataFields
from octavo.weights.gguf_families import PATTERNS, family_fields

ARCHITECTURES = {
    **{ours: theirs for theirs, ours in READ.items()},
    "MistralForCausalLM": "llama",
    "MixtralForCausalLM": "llama",
    "Gemma3ForConditionalGeneration": "gemma3",
}
"""Hugging Face's name of an architecture -> GGUF's."""

FILE_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "BF16": 32}
"""``general.file_type``: what most of the weights are stored as."""

AS_TENSORS = ("llama3", "factors", "longrope")
"""Kinds of rope scaling that are told by divisors of the frequencies: see `rope_factors`."""


def architecture(config: ModelConfig) -> str:
    """GGUF's name. Raises ``ModelError`` for a model that cannot be written so."""
    name = ARCHITECTURES.get(config.architecture)
    if name is None:
        raise ModelError(
            f"{config.architecture} cannot be exported to GGUF; accepted: {', '.join(ARCHITECTURES)}"
            " (--format safetensors takes all)"
        )
    return name


def metadata(checkpoint: Checkpoint, name: str, kind: str) -> dict[str, Any]:
    """All keys but the tokenizer's. ``name``: of the model; ``kind``: what most matrices are stored as.

    Raises:
        ModelError: the model has something that a reader of its architecture would take to be otherwise.
    """
    config = checkpoint.config
    prefix = architecture(config)
    found: dict[str, Any] = {
        "general.architecture": prefix,
        "general.type": "model",
        "general.name": name,
        "general.file_type": FILE_TYPES[kind],
        "general.quantization_version": 2,
    }
    found |= {f"{prefix}.{key}": value for key, value in model_keys(config).items()}
    return found | _sampling(checkpoint)


def model_keys(config: ModelConfig) -> dict[str, Any]:
    """The keys of the model's shape, without the architecture in front. Raises ``ModelError`` as ``metadata`` does."""
    found = _shape(config) | _experts(config) | _rope(config)
    _check_read_back(config, found)
    return found


def rope_factors(config: ModelConfig) -> dict[str, Tensor]:
    """Divisors of the rotary frequencies ``[rotary_dim / 2]`` float32 by the names of their tensors."""
    scaling = config.rope_scaling
    if scaling is None or scaling.kind not in AS_TENSORS:
        return {}
    if scaling.kind == "longrope":
        return {
            LONG_FACTORS: torch.tensor(scaling.long_factors or ()),
            SHORT_FACTORS: torch.tensor(scaling.factors or ()),
        }
    plain = 1.0 / config.rope_theta ** (torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim)
    return {ROPE_FACTORS: plain / inverse_frequencies(config)[0]}


def _check_read_back(config: ModelConfig, keys: dict[str, Any]) -> None:
    """Raise ``ModelError`` for what the architecture's readers would not see in ``keys``, or take for granted to be
    otherwise.
    """
    name = architecture(config)
    fields = MetadataFields({f"{name}.{key}": value for key, value in keys.items()}, name)
    read = family_fields(name, fields, config.num_layers, config.head_dim)
    if config.sliding_windows != read.sliding_windows:
        raise ModelError("this model's sliding windows are in other layers than GGUF takes for granted of its family")
    names = ("hidden_act", "rotary_dim", "no_rope_layers", "local_rope_theta", "attention_soft_cap", "logit_soft_cap")
    for field in names:
        _same(field, getattr(config, field), getattr(read, field))
    usual = config.head_dim**-0.5
    _same("attention_scale", config.attention_scale or usual, read.attention_scale or usual)
    if config.experts is not None:
        _same("experts.normalise", config.experts.normalise, True)
        _same("experts.dense_layers", config.experts.dense_layers, ())


def _same(name: str, value: Any, read: Any) -> None:
    if value == read or (isinstance(value, float) and isinstance(read, float) and math.isclose(value, read)):
        return
    raise ModelError(f"GGUF cannot say of this family that {name} is {value}; accepted: {read}")


def _shape(config: ModelConfig) -> dict[str, Any]:
    caps = {"attn_logit_softcapping": config.attention_soft_cap, "final_logit_softcapping": config.logit_soft_cap}
    has_layer_norm = config.architecture in ("Starcoder2ForCausalLM", "GPT2LMHeadModel")
    eps = "attention.layer_norm_epsilon" if has_layer_norm else "attention.layer_norm_rms_epsilon"
    windows = [window for window in config.sliding_windows if window is not None]
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
        eps: float(config.rms_norm_eps),
        **({"attention.sliding_window": windows[0]} if windows else {}),
        **{key: float(value) for key, value in caps.items() if value is not None},
    }


def _experts(config: ModelConfig) -> dict[str, Any]:
    if (experts := config.experts) is None:
        return {}
    return {
        "expert_count": experts.count,
        "expert_used_count": experts.per_token,
        "expert_feed_forward_length": experts.size,
    }


def _rope(config: ModelConfig) -> dict[str, Any]:
    if len(config.no_rope_layers) == config.num_layers:
        return {}
    found: dict[str, Any] = {
        "rope.freq_base": float(config.rope_theta),
        "rope.dimension_count": config.rotary_dim or config.head_dim,
    }
    if config.local_rope_theta is not None:
        found["rope.freq_base_swa"] = float(config.local_rope_theta)
    scaling = config.rope_scaling
    if scaling is None:
        return found
    if scaling.kind in AS_TENSORS:
        return found | (_longrope(scaling, config) if scaling.kind == "longrope" else {})
    if scaling.kind not in ("linear", "yarn"):
        known = ", ".join(("linear", "yarn", *AS_TENSORS))
        raise ModelError(f"rope scaling {scaling.kind!r} has no place in GGUF; accepted: {known}")
    found |= {"rope.scaling.type": scaling.kind, "rope.scaling.factor": float(scaling.factor)}
    return found | (_yarn(scaling, config) if scaling.kind == "yarn" else {})


def _longrope(scaling: RopeScaling, config: ModelConfig) -> dict[str, Any]:
    """The factor of cosines and sines is told as it is: how llama.cpp and others reckon it differs."""
    return {
        "rope.scaling.original_context_length": scaling.original_max_position or config.max_position_embeddings,
        "rope.scaling.attn_factor": float(inverse_frequencies(config)[1]),
    }


def _yarn(scaling: RopeScaling, config: ModelConfig) -> dict[str, Any]:
    if scaling.attention_factor is not None or scaling.mscale is not None or not scaling.truncate:
        raise ModelError("a yarn with attention_factor, mscale or truncate=false has no place in GGUF")
    return {
        "rope.scaling.original_context_length": scaling.original_max_position or config.max_position_embeddings,
        "rope.scaling.yarn_beta_fast": float(scaling.beta_fast),
        "rope.scaling.yarn_beta_slow": float(scaling.beta_slow),
    }


def unheeded_window(config: ModelConfig) -> int | None:
    """The window that llama.cpp does not heed in the model's architecture, or None: it sees all positions instead."""
    windows = [window for window in config.sliding_windows if window is not None]
    return windows[0] if windows and architecture(config) not in PATTERNS else None


def _sampling(checkpoint: Checkpoint) -> dict[str, Any]:
    keys = {"temperature": "temp", "repetition_penalty": "penalty_repeat"}
    suggested = checkpoint.generation.as_dict()
    return {
        f"general.sampling.{keys.get(name, name)}": int(value) if name == "top_k" else float(value)
        for name, value in suggested.items()
    }
