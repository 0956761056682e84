"""``config.json`` of a Hugging Face folder -> ``ModelConfig``.

A key that is absent means what the family's configuration class in transformers defaults to.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from msgspec import UNSET

from octavo.config import ExpertsConfig, ModelConfig
from octavo.errors import ModelError
from octavo.weights.checkpoint import GenerationDefaults
from octavo.weights.hf_families import FAMILIES, Family
from octavo.weights.hf_json import ArchitectureJson, ConfigJson, convert, read_json
from octavo.weights.hf_rope import rope
from octavo.weights.hf_tokens import (
    eos_token_ids,
    generation_defaults,
    known_tokens,
    read_generation,
    tokenizer_eos,
)

_DTYPES = {
    "float32": "float32",
    "float": "float32",
    "float64": "float32",
    "double": "float32",
    "float16": "float16",
    "half": "float16",
    "bfloat16": "bfloat16",
}


_ACTIVATIONS = {
    "swish": "silu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
}
"""transformers' names of activations -> ours, where they differ."""


def read_config(folder: Path, weights_dtype: str | None = None) -> tuple[ModelConfig, GenerationDefaults]:
    """Read the JSON files of a Hugging Face ``folder``.

    ``weights_dtype`` is the stored tensors' dtype, for a config that names none. Raises ``ModelError`` for a
    file that is missing, damaged or contradictory, and for a model that Octavo does not support.
    """
    path = folder / "config.json"
    raw = read_json(path, dict[str, Any])
    architecture = _architecture(path, convert(str(path), raw, ArchitectureJson))
    config = convert(str(path), FAMILIES[architecture].in_our_keys(raw), ConfigJson)
    generation = read_generation(folder)
    eos = _default(config.eos_token_id, FAMILIES[architecture].eos_token_id)
    ids = eos_token_ids(config.vocab_size, eos, generation.eos_token_id, tokenizer_eos(folder))
    try:
        return model_config(architecture, config, ids, weights_dtype), generation_defaults(generation)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from None


def model_config(
    architecture: str, config: ConfigJson, eos_ids: tuple[int, ...] = (), weights_dtype: str | None = None
) -> ModelConfig:
    """Translate one ``config.json`` into Octavo's names. Raises ``ModelError`` when it contradicts itself."""
    family = FAMILIES[architecture]
    max_position = _default(config.max_position_embeddings, family.max_position_embeddings)
    head_dim, scalar = _head_dim(config, family), config.query_pre_attn_scalar
    angles = rope(config, family, max_position, head_dim)
    bos = known_tokens(config.vocab_size, _default(config.bos_token_id, family.bos_token_id))
    attention_bias = family.attention_bias and config.attention_bias
    _refuse_variants(config)
    return ModelConfig(
        architecture=architecture,
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_layers=config.num_hidden_layers,
        num_heads=config.num_attention_heads,
        num_kv_heads=_default(config.num_key_value_heads, family.num_kv_heads) or config.num_attention_heads,
        head_dim=head_dim,
        max_position_embeddings=max_position,
        rms_norm_eps=config.rms_norm_eps,
        rope_theta=angles.theta,
        rope_scaling=angles.scaling,
        rotary_dim=angles.rotary_dim,
        local_rope_theta=angles.local_theta,
        no_rope_layers=_no_rope_layers(config, family),
        hidden_act=_ACTIVATIONS.get(config.hidden_act or "", config.hidden_act or "silu"),
        tie_word_embeddings=config.tie_word_embeddings,
        qkv_bias=family.always_qkv_bias or attention_bias,
        o_bias=attention_bias,
        mlp_bias=family.mlp_bias and config.mlp_bias,
        qk_norm=family.qk_norm,
        sliding_windows=_sliding_windows(config, family),
        attention_scale=scalar**-0.5 if scalar else None if config.scale_attn_weights else 1.0,
        attention_soft_cap=config.attn_logit_softcapping,
        logit_soft_cap=config.final_logit_softcapping,
        experts=_experts(config, family),
        dtype=_dtype(config, weights_dtype),
        bos_token_id=bos[0] if bos else None,
        eos_token_ids=eos_ids,
    )


def _architecture(path: Path, config: ArchitectureJson) -> str:
    by_type = {family.model_type: name for name, family in FAMILIES.items()}
    name = config.architectures[0] if config.architectures else by_type.get(config.model_type or "")
    if name not in FAMILIES:
        what = name or config.model_type or "(not named)"
        raise ModelError(f"{path}: architecture {what!r:.80} is not supported; accepted: {', '.join(FAMILIES)}")
    return name


def _default(value: Any, default: Any) -> Any:
    return default if value is UNSET else value


def _head_dim(config: ConfigJson, family: Family) -> int:
    head_dim = _default(config.head_dim, family.head_dim)
    if head_dim is not None:
        return head_dim
    if config.hidden_size % config.num_attention_heads:
        raise ModelError(
            f"hidden_size {config.hidden_size} is not a multiple of the {config.num_attention_heads} "
            f"attention heads, and there is no head_dim"
        )
    return config.hidden_size // config.num_attention_heads


def _sliding_windows(config: ConfigJson, family: Family) -> tuple[int | None, ...]:
    """One window for each layer. 4096 and 28 are what transformers takes where a config is silent."""
    window = _default(config.sliding_window, 4096)
    return tuple(window if slides else None for slides in _sliding_layers(config, family))


def _sliding_layers(config: ConfigJson, family: Family) -> list[bool]:
    layers = range(config.num_hidden_layers)
    if family.windows in ("none", "all"):
        return [family.windows == "all"] * len(layers)
    if family.windows != "pattern" and not config.use_sliding_window:
        return [False] * len(layers)
    if family.windows == "switched":
        return [True] * len(layers)
    if config.layer_types is not None:
        return [kind == "sliding_attention" for kind in _layer_types(config)]
    if family.windows == "pattern":
        return [(layer + 1) % config.sliding_window_pattern != 0 for layer in layers]
    if family.windows == "unrotated":
        return [layer in _no_rope_layers(config, family) for layer in layers]
    first = 28 if config.max_window_layers is None else config.max_window_layers
    return [layer >= first for layer in layers]


def _no_rope_layers(config: ConfigJson, family: Family) -> tuple[int, ...]:
    """A list in the file says 1 of a layer that rotates, 0 of one that does not."""
    layers = range(config.num_hidden_layers)
    if not family.rotates:
        return tuple(layers)
    if not family.skips_rotation:
        return ()
    if config.no_rope_layers is None:
        return tuple(layer for layer in layers if (layer + 1) % config.no_rope_layer_interval == 0)
    if len(config.no_rope_layers) < len(layers):
        raise ModelError(f"no_rope_layers has {len(config.no_rope_layers)} entries; {len(layers)} were expected")
    return tuple(layer for layer in layers if not config.no_rope_layers[layer])


def _experts(config: ConfigJson, family: Family) -> ExpertsConfig | None:
    if config.num_experts is None or config.num_experts_per_tok is None or "num_experts" not in family.defaults:
        return None
    if not family.expert_keys:
        return ExpertsConfig(
            count=config.num_experts, per_token=config.num_experts_per_tok, size=config.intermediate_size
        )
    only, step = set(config.mlp_only_layers or []), config.decoder_sparse_step
    return ExpertsConfig(
        count=config.num_experts,
        per_token=config.num_experts_per_tok,
        size=config.moe_intermediate_size or config.intermediate_size,
        normalise=config.norm_topk_prob,
        dense_layers=tuple(i for i in range(config.num_hidden_layers) if i in only or (i + 1) % step),
    )


def _refuse_variants(config: ConfigJson) -> None:
    """Fail for models that share an architecture's name and are computed in another way."""
    if config.use_bidirectional_attention:
        raise ModelError("use_bidirectional_attention is not supported; accepted: false (causal attention)")
    if config.scale_attn_by_inverse_layer_idx:
        raise ModelError("scale_attn_by_inverse_layer_idx is not supported; accepted: false")


def _layer_types(config: ConfigJson) -> list[str]:
    kinds, accepted = config.layer_types or [], ("full_attention", "sliding_attention")
    if len(kinds) != config.num_hidden_layers or any(kind not in accepted for kind in kinds):
        raise ModelError(
            f"layer_types needs one entry for each of the {config.num_hidden_layers} layers; "
            f"accepted: {', '.join(accepted)}"
        )
    return kinds


def _dtype(config: ConfigJson, weights_dtype: str | None) -> str:
    name = config.dtype or config.torch_dtype or weights_dtype or "float32"
    if name == "auto":
        name = weights_dtype or "float32"
    known = _DTYPES.get(name.removeprefix("torch."))
    if known is None:
        raise ModelError(f"dtype {name!r} is not supported; accepted: float32, float16, bfloat16")
    return known
