"""``config.json`` and ``generation_config.json`` of an exported folder: the model's own, or written from its shape."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch

from octavo.config import ModelConfig, RopeScaling
from octavo.errors import ModelError
from octavo.weights.checkpoint import Checkpoint

MODEL_TYPES = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "mistral",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
}
"""Architecture -> ``model_type``, for those whose configuration can be written from a `ModelConfig`."""

_OF_THE_FILE = ("quantization_config", "compression_config", "torch_dtype", "dtype")
"""Keys that say how weights are stored, not what the model is."""


def config_json(checkpoint: Checkpoint, dtype: torch.dtype, quantization: Mapping[str, Any] | None) -> dict[str, Any]:
    """The configuration, with the dtype and the quantization of the new weights.

    Raises:
        ModelError: the model did not come with one, and is not of a family that is known well enough to write one.
    """
    path = checkpoint.path / "config.json"
    own = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else from_model_config(checkpoint.config)
    kept = {key: value for key, value in own.items() if key not in _OF_THE_FILE}
    kept["torch_dtype"] = str(dtype).removeprefix("torch.")
    return kept if quantization is None else {**kept, "quantization_config": dict(quantization)}


def generation_json(checkpoint: Checkpoint) -> dict[str, Any]:
    """What the makers suggest for sampling, and the tokens that end an answer; empty if nothing is known."""
    path = checkpoint.path / "generation_config.json"
    if path.is_file():
        own: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return own
    found: dict[str, Any] = dict(checkpoint.generation.as_dict())
    if found:
        found["do_sample"] = True
    if checkpoint.config.bos_token_id is not None:
        found["bos_token_id"] = checkpoint.config.bos_token_id
    return {**found, **_eos(checkpoint.config)}


def from_model_config(config: ModelConfig) -> dict[str, Any]:
    """The configuration of a model that came without ``config.json``, in transformers' names."""
    architecture = config.architecture
    if architecture == "LlamaForCausalLM" and any(config.sliding_windows):
        architecture = "MistralForCausalLM"  # llama.cpp knows both by one name
    if architecture not in MODEL_TYPES:
        raise ModelError(
            f"a config.json for {architecture} cannot be written from another format;"
            f" accepted: {', '.join(MODEL_TYPES)}"
        )
    return {
        "architectures": [architecture],
        "model_type": MODEL_TYPES[architecture],
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.max_position_embeddings,
        "rms_norm_eps": config.rms_norm_eps,
        "hidden_act": config.hidden_act,
        "tie_word_embeddings": config.tie_word_embeddings,
        "bos_token_id": config.bos_token_id,
        **_rope(config),
        **_eos(config),
        **_biases(config, architecture),
        **_windows(config, architecture),
    }


def _eos(config: ModelConfig) -> dict[str, Any]:
    ids = list(config.eos_token_ids)
    return {"eos_token_id": None if not ids else ids[0] if len(ids) == 1 else ids}


def _biases(config: ModelConfig, architecture: str) -> dict[str, Any]:
    if architecture == "Qwen2ForCausalLM":  # queries, keys and values always have one there
        expressed = config.qkv_bias and not config.o_bias and not config.mlp_bias
        found: dict[str, Any] = {}
    elif architecture == "LlamaForCausalLM":
        expressed = config.qkv_bias == config.o_bias
        found = {"attention_bias": config.qkv_bias, "mlp_bias": config.mlp_bias}
    else:
        expressed = config.qkv_bias == config.o_bias and not config.mlp_bias
        expressed = expressed and (architecture == "Qwen3ForCausalLM" or not config.qkv_bias)
        found = {"attention_bias": config.qkv_bias} if architecture == "Qwen3ForCausalLM" else {}
    if not expressed:
        raise ModelError(f"a {architecture} with biases in some layers only cannot be written as a config.json")
    return found


def _windows(config: ModelConfig, architecture: str) -> dict[str, Any]:
    windows = set(config.sliding_windows)
    window = next((w for w in windows if w is not None), None)
    if architecture == "LlamaForCausalLM":
        return {}
    if architecture == "MistralForCausalLM":
        return {"sliding_window": window}
    kinds = ["full_attention" if w is None else "sliding_attention" for w in config.sliding_windows]
    slides = {"use_sliding_window": window is not None, "sliding_window": window}
    return {**slides, "layer_types": kinds, "max_window_layers": kinds.count("full_attention")}


def _rope(config: ModelConfig) -> dict[str, Any]:
    """Both spellings: ``rope_theta`` and ``rope_scaling``, which all versions of transformers read."""
    scaling = config.rope_scaling
    found: dict[str, Any] = {"rope_theta": config.rope_theta}
    return found if scaling is None else {**found, "rope_scaling": _scaling(scaling, config)}


def _scaling(scaling: RopeScaling, config: ModelConfig) -> dict[str, Any]:
    original = scaling.original_max_position or config.max_position_embeddings
    match scaling.kind:
        case "linear":
            return {"rope_type": "linear", "factor": scaling.factor}
        case "llama3":
            low, high = scaling.low_freq_factor, scaling.high_freq_factor
            factors = {"factor": scaling.factor, "low_freq_factor": low, "high_freq_factor": high}
            return {"rope_type": "llama3", **factors, "original_max_position_embeddings": original}
        case "yarn":
            return {"rope_type": "yarn", "original_max_position_embeddings": original, **_yarn(scaling)}
        case "factors":  # longrope has them for short and for long texts, and a factor that is 1 here
            factors_ = list(scaling.factors or ())
            both = {"short_factor": factors_, "long_factor": factors_, "factor": 1.0, "attention_factor": 1.0}
            return {"rope_type": "longrope", **both, "original_max_position_embeddings": config.max_position_embeddings}
    raise ModelError(f"rope scaling {scaling.kind!r} cannot be written as a config.json")


def _yarn(scaling: RopeScaling) -> dict[str, Any]:
    names = ("factor", "beta_fast", "beta_slow", "attention_factor", "mscale", "mscale_all_dim", "truncate")
    values = {name: getattr(scaling, name) for name in names}
    return {name: value for name, value in values.items() if value is not None}
