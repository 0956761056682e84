"""How the families' ``config.json`` differ: other names of keys, and what an absent key means.

An absent key means what the family's configuration class in transformers defaults to.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

Json = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """How one architecture differs from the others, and its defaults for absent keys.

    Attributes:
        num_kv_heads: None: as many as query heads.
        head_dim: None: ``hidden_size / num_heads``.
        windows: which layers slide: "none"; "all"; "switched" (all, or with ``use_sliding_window`` false none); "some"
            (``use_sliding_window`` and ``layer_types`` say which); "unrotated" (as "some", but without ``layer_types``
            those that do not rotate); "pattern" (``layer_types``, or all but each ``sliding_window_pattern``-th).
        attention_bias, mlp_bias: whether the keys of these names are heeded.
        rotates: whether positions are rotary.
        skips_rotation: whether ``no_rope_layers`` is heeded.
        partial_rotation: whether ``partial_rotary_factor`` is heeded.
        local_theta: the default base of layers with a window, where it is not that of the others.
        theta: the default base.
        expert_keys: whether a mixture of experts has ``moe_intermediate_size``, ``norm_topk_prob`` and dense layers.
        keys: a key of this family -> ours.
        defaults: of our keys.
        prepare: what else must be done with the decoded file.
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
    rotates: bool = True
    skips_rotation: bool = False
    partial_rotation: bool = False
    theta: float = 10000.0
    local_theta: float | None = None
    expert_keys: bool = False
    keys: Mapping[str, str] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    prepare: Callable[[Json], Json] = lambda raw: raw

    def in_our_keys(self, raw: Json) -> Json:
        """``config.json`` as `octavo.weights.hf_json.ConfigJson` has it."""
        raw = self.prepare(raw)
        renamed = {ours: raw[theirs] for theirs, ours in self.keys.items() if theirs in raw}
        return {**self.defaults, **raw, **renamed}


def _biased(raw: Json) -> Json:
    """One key for all biases."""
    bias = raw.get("use_bias", True)
    return {**raw, "attention_bias": bias, "mlp_bias": bias}


def _gpt2(raw: Json) -> Json:
    hidden = raw.get("n_embd", raw.get("hidden_size"))
    if raw.get("n_inner") is None and isinstance(hidden, int):
        raw = {**raw, "n_inner": 4 * hidden}
    return {**raw, "attention_bias": True, "mlp_bias": True}


def _language_part(raw: Json) -> Json:
    """What a model that also sees images says of its language model."""
    inner = raw.get("text_config")
    outer: Json = {key: raw[key] for key in ("eos_token_id", "bos_token_id", "dtype", "torch_dtype") if key in raw}
    return {**outer, **inner} if isinstance(inner, dict) else raw


_GEMMA: dict[str, Any] = {
    "model_type": "gemma2",
    "max_position_embeddings": 8192,
    "num_kv_heads": 4,
    "head_dim": 256,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "windows": "pattern",
    "attention_bias": True,
    "keys": {"hidden_activation": "hidden_act"},
    "defaults": {
        "hidden_act": "gelu_pytorch_tanh",
        "tie_word_embeddings": True,
        "query_pre_attn_scalar": 256,
        "sliding_window_pattern": 2,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
    },
}
_GEMMA3: dict[str, Any] = {
    **_GEMMA,
    "model_type": "gemma3_text",
    "max_position_embeddings": 131072,
    "theta": 1e6,
    "local_theta": 10000.0,
    "qk_norm": True,
    "defaults": {
        "vocab_size": 262208,
        "num_attention_heads": 8,
        "hidden_act": "gelu_pytorch_tanh",
        "tie_word_embeddings": True,
        "query_pre_attn_scalar": 256,
    },
}
_EXPERTS = {"num_local_experts": "num_experts"}

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
    "SmolLM3ForCausalLM": Family(
        model_type="smollm3",
        max_position_embeddings=32768,
        num_kv_heads=4,
        bos_token_id=128000,
        eos_token_id=128001,
        windows="unrotated",
        attention_bias=True,
        mlp_bias=True,
        skips_rotation=True,
        theta=2e6,
        defaults={"tie_word_embeddings": True, "sliding_window": None},
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
    "Qwen3MoeForCausalLM": Family(
        model_type="qwen3_moe",
        max_position_embeddings=32768,
        num_kv_heads=4,
        windows="switched",
        attention_bias=True,
        qk_norm=True,
        expert_keys=True,
        keys=_EXPERTS,
        defaults={"num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768},
    ),
    "MixtralForCausalLM": Family(
        model_type="mixtral",
        max_position_embeddings=131072,
        num_kv_heads=8,
        bos_token_id=1,
        eos_token_id=2,
        windows="all",
        theta=1e6,
        keys=_EXPERTS,
        defaults={"rms_norm_eps": 1e-5, "sliding_window": None, "num_experts": 8, "num_experts_per_tok": 2},
    ),
    "Gemma2ForCausalLM": Family(**_GEMMA),
    "Gemma3ForCausalLM": Family(**_GEMMA3),
    "Gemma3ForConditionalGeneration": Family(**{**_GEMMA3, "model_type": "gemma3", "prepare": _language_part}),
    "Phi3ForCausalLM": Family(
        model_type="phi3",
        max_position_embeddings=4096,
        bos_token_id=1,
        eos_token_id=32000,
        windows="all",
        partial_rotation=True,
        defaults={"rms_norm_eps": 1e-5, "sliding_window": None, "original_max_position_embeddings": 4096},
    ),
    "Starcoder2ForCausalLM": Family(
        model_type="starcoder2",
        max_position_embeddings=4096,
        num_kv_heads=2,
        bos_token_id=50256,
        eos_token_id=50256,
        windows="all",
        attention_bias=True,
        mlp_bias=True,
        keys={"norm_epsilon": "rms_norm_eps"},
        defaults={
            "rms_norm_eps": 1e-5,
            "hidden_act": "gelu_pytorch_tanh",
            "tie_word_embeddings": True,
            "sliding_window": None,
        },
        prepare=_biased,
    ),
    "GPT2LMHeadModel": Family(
        model_type="gpt2",
        max_position_embeddings=1024,
        bos_token_id=50256,
        eos_token_id=50256,
        attention_bias=True,
        mlp_bias=True,
        rotates=False,
        keys={
            "n_embd": "hidden_size",
            "n_layer": "num_hidden_layers",
            "n_head": "num_attention_heads",
            "n_inner": "intermediate_size",
            "n_positions": "max_position_embeddings",
            "activation_function": "hidden_act",
            "layer_norm_epsilon": "rms_norm_eps",
        },
        defaults={"rms_norm_eps": 1e-5, "hidden_act": "gelu_new", "tie_word_embeddings": True},
        prepare=_gpt2,
    ),
}
"""Architecture -> family."""
