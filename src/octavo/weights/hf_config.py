"""``config.json`` of a Hugging Face folder -> ``ModelConfig``.

A key that is absent means what the family's configuration class in transformers defaults to.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msgspec import UNSET

from octavo.config import ModelConfig
from octavo.errors import ModelError
from octavo.weights.checkpoint import GenerationDefaults
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """How one architecture differs from the others, and its defaults for absent keys.

    ``num_kv_heads`` None: as many as query heads. ``head_dim`` None: ``hidden_size / num_heads``.
    ``windows``: "none", "all" (every layer slides) or "some" (``use_sliding_window`` and ``layer_types`` say
    which).
    """

    model_type: str
    max_position_embeddings: int
    num_kv_heads: int | None = None
    head_dim: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    windows: str = "none"
    attention_bias: bool = False
    mlp_bias: bool = False
    always_qkv_bias: bool = False
    qk_norm: bool = False


FAMILIES = {
    "LlamaForCausalLM": Family(
        model_type="llama",
        max_position_embeddings=2048,
        bos_token_id=1,
        eos_token_id=2,
        attention_bias=True,
        mlp_bias=True,
    ),
    "MistralForCausalLM": Family(
        model_type="mistral",
        max_position_embeddings=131072,
        num_kv_heads=8,
        bos_token_id=1,
        eos_token_id=2,
        windows="all",
    ),
    "Qwen2ForCausalLM": Family(
        model_type="qwen2",
        max_position_embeddings=32768,
        num_kv_heads=32,
        windows="some",
        always_qkv_bias=True,
    ),
    "Qwen3ForCausalLM": Family(
        model_type="qwen3",
        max_position_embeddings=32768,
        num_kv_heads=32,
        head_dim=128,
        windows="some",
        attention_bias=True,
        qk_norm=True,
    ),
}
"""Architecture -> family. ``attention_bias`` and ``mlp_bias`` say whether the key of that name is heeded."""


def read_config(folder: Path, weights_dtype: str | None = None) -> tuple[ModelConfig, GenerationDefaults]:
    """Read the JSON files of a Hugging Face ``folder``.

    ``weights_dtype`` is the stored tensors' dtype, for a config that names none. Raises ``ModelError`` for a
    file that is missing, damaged or contradictory, and for a model that Octavo does not support.
    """
    path = folder / "config.json"
    raw = read_json(path, dict[str, Any])
    architecture = _architecture(path, convert(str(path), raw, ArchitectureJson))
    config = convert(str(path), raw, ConfigJson)
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
    theta, scaling = rope(config, max_position)
    bos = known_tokens(config.vocab_size, _default(config.bos_token_id, family.bos_token_id))
    attention_bias = family.attention_bias and config.attention_bias
    return ModelConfig(
        architecture=architecture,
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_layers=config.num_hidden_layers,
        num_heads=config.num_attention_heads,
        num_kv_heads=_default(config.num_key_value_heads, family.num_kv_heads) or config.num_attention_heads,
        head_dim=_head_dim(config, family),
        max_position_embeddings=max_position,
        rms_norm_eps=config.rms_norm_eps,
        rope_theta=theta,
        rope_scaling=scaling,
        hidden_act="silu" if config.hidden_act == "swish" else config.hidden_act,
        tie_word_embeddings=config.tie_word_embeddings,
        qkv_bias=family.always_qkv_bias or attention_bias,
        o_bias=attention_bias,
        mlp_bias=family.mlp_bias and config.mlp_bias,
        qk_norm=family.qk_norm,
        sliding_windows=_sliding_windows(config, family),
        dtype=_dtype(config, weights_dtype),
        bos_token_id=bos[0] if bos else None,
        eos_token_ids=eos_ids,
    )


def _architecture(path: Path, config: ArchitectureJson) -> str:
    if config.quantization_config is not None:
        method = config.quantization_config.get("quant_method", "an unnamed method")
        raise ModelError(f"{path}: weights quantized by {method!r:.40} are not supported yet; accepted: plain weights")
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
    layers = config.num_hidden_layers
    window = _default(config.sliding_window, 4096)
    if family.windows == "none" or (family.windows == "some" and not config.use_sliding_window):
        return (None,) * layers
    if family.windows == "all":
        return (window,) * layers
    if config.layer_types is None:
        first = 28 if config.max_window_layers is None else config.max_window_layers
        return tuple(window if layer >= first else None for layer in range(layers))
    return tuple(window if kind == "sliding_attention" else None for kind in _layer_types(config))


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
