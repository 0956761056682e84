"""A GGUF file's metadata as a `ModelConfig`.

GGUF says less than a Hugging Face configuration, and some of it between the lines: which biases and norms a
model has is seen from its tensors, and the size of the vocabulary from the rows of the embedding.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from typing import NoReturn

import numpy as np

from octavo.config import ExpertsConfig, ModelConfig, RopeScaling
from octavo.errors import ModelError
from octavo.ggml.block_types import dequantize
from octavo.weights.checkpoint import GenerationDefaults
from octavo.weights.gguf_cursor import Value, short
from octavo.weights.gguf_families import PARTLY_ROTATED, PATTERNS, family_fields
from octavo.weights.gguf_file import GGUFFile, GGUFTensorInfo

ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3": "Gemma3ForCausalLM",
    "phi3": "Phi3ForCausalLM",
    "starcoder2": "Starcoder2ForCausalLM",
    "smollm3": "SmolLM3ForCausalLM",
    "qwen3moe": "Qwen3MoeForCausalLM",
    "gpt2": "GPT2LMHeadModel",
}
"""GGUF's name of an architecture -> Hugging Face's name of its class. Mistral's models are "llama" here, and Mixtral's,
which have experts.
"""
WITH_EXPERTS = {"llama": "MixtralForCausalLM", "qwen3moe": "Qwen3MoeForCausalLM"}
"""The same for models with a mixture of experts."""

END_OF_TURN = frozenset({"<|im_end|>", "<|eot_id|>", "<|end|>", "<end_of_turn>"})
"""Tokens that end an assistant's turn: llama.cpp stops at them even if a file does not name them as such."""
CONTROL_TOKEN = 3
"""What ``tokenizer.ggml.token_type`` says of a token that never comes from plain text."""
ROPE_FACTORS = "rope_freqs.weight"
"""Divisors of the rotary frequencies, ``[head_dim / 2]``: where converters put Llama 3's scaling."""
LONG_FACTORS, SHORT_FACTORS = "rope_factors_long.weight", "rope_factors_short.weight"
"""The same for LongRoPE, one for each pair of rotated dimensions."""
MAX_FACTORS = 1 << 14
"""Far more pairs of dimensions than a head has."""
ROPE_TENSORS = (ROPE_FACTORS, LONG_FACTORS, SHORT_FACTORS)


def model_config(file: GGUFFile) -> ModelConfig:
    """The shape of the model in ``file``.

    Raises:
        ModelError: the architecture is not supported, or metadata are missing, of a wrong type, or
        contradictory.
    """
    architecture = architecture_of(file)
    fields = MetadataFields(file.metadata, architecture)
    experts = _experts(fields, architecture)
    _refuse_variants(fields, architecture)
    vocab_size = _tensor(file, "token_embd.weight").shape[0]
    num_layers = _num_layers(fields, file)
    head_dim = _head_dim(fields, partly_rotated=architecture in PARTLY_ROTATED)
    num_heads = fields.integer("attention.head_count")
    family = family_fields(architecture, fields, num_layers, head_dim)
    return ModelConfig(
        architecture=(ARCHITECTURES if experts is None else WITH_EXPERTS)[architecture],
        vocab_size=vocab_size,
        hidden_size=fields.integer("embedding_length"),
        intermediate_size=fields.integer("feed_forward_length"),
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=fields.integer("attention.head_count_kv", num_heads),
        head_dim=head_dim,
        max_position_embeddings=fields.integer("context_length"),
        rms_norm_eps=fields.number(family.eps_key),
        rope_theta=fields.number("rope.freq_base", 10000.0),
        rope_scaling=_rope_scaling(fields, file, head_dim),
        rotary_dim=family.rotary_dim,
        local_rope_theta=family.local_rope_theta,
        no_rope_layers=family.no_rope_layers,
        hidden_act=family.hidden_act,
        tie_word_embeddings="output.weight" not in file.tensors,
        qkv_bias=any(f"blk.0.{name}.bias" in file.tensors for name in ("attn_q", "attn_qkv")),
        o_bias="blk.0.attn_output.bias" in file.tensors,
        mlp_bias="blk.0.ffn_down.bias" in file.tensors,
        qk_norm="blk.0.attn_q_norm.weight" in file.tensors,
        sliding_windows=family.sliding_windows,
        attention_scale=family.attention_scale,
        attention_soft_cap=family.attention_soft_cap,
        logit_soft_cap=family.logit_soft_cap,
        experts=experts,
        dtype=_dtype(file),
        bos_token_id=next(_token_ids(file.metadata, vocab_size, "bos"), None),
        eos_token_ids=_eos_token_ids(file.metadata, vocab_size),
    )


def architecture_of(file: GGUFFile) -> str:
    """GGUF's name of the architecture. Raises ``ModelError`` unless it is one of ``ARCHITECTURES``."""
    name = file.metadata.get("general.architecture")
    if not isinstance(name, str) or name not in ARCHITECTURES:
        raise ModelError(f"architecture {short(name)} is not supported in GGUF; accepted: {', '.join(ARCHITECTURES)}")
    return name


def generation_defaults(metadata: dict[str, Value]) -> GenerationDefaults:
    """What the file suggests for sampling, as ``general.sampling.*``. What is not a number is passed over."""

    def number(key: str) -> float | None:
        value = metadata.get(f"general.sampling.{key}")
        usable = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        return float(value) if usable else None  # type: ignore[arg-type]

    top_k = number("top_k")
    return GenerationDefaults(
        temperature=number("temp"),
        top_k=None if top_k is None else int(top_k),
        top_p=number("top_p"),
        min_p=number("min_p"),
        repetition_penalty=number("penalty_repeat"),
    )


class MetadataFields:
    """Typed access to the metadata of one architecture: "block_count" stands for ``llama.block_count``."""

    def __init__(self, metadata: dict[str, Value], architecture: str) -> None:
        self._metadata = metadata
        self._prefix = architecture + "."

    def __contains__(self, name: str) -> bool:
        return self._prefix + name in self._metadata

    def integer(self, name: str, default: int | None = None) -> int:
        """A whole number, or the one number that a list with an entry for each layer repeats."""
        value = self._metadata.get(self._prefix + name, default)
        if isinstance(value, list) and value and all(item == value[0] for item in value):
            value = value[0]
        if not isinstance(value, int) or isinstance(value, bool):
            self._fail(name, value, "a whole number, the same for all layers")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        value = self._metadata.get(self._prefix + name, default)
        if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
            self._fail(name, value, "a finite number")
        return _shortest(float(value))

    def text(self, name: str, default: str) -> str:
        value = self._metadata.get(self._prefix + name, default)
        if not isinstance(value, str):
            self._fail(name, value, "a string")
        return value

    def _fail(self, name: str, value: object, expected: str) -> NoReturn:
        found = "missing" if value is None else short(value)
        raise ModelError(f"{self._prefix}{name} is {found}; expected {expected}")


def _shortest(number: float) -> float:
    """The shortest decimal that rounds to the same float32: GGUF keeps 1e-5 as 9.999999747378752e-06."""
    with np.errstate(over="ignore"):
        single = np.float32(number)
    return float(str(single)) if single == number else number


def _refuse_variants(fields: MetadataFields, architecture: str) -> None:
    """Fail for models that share an architecture's name and are not it."""
    if "attention.sliding_window_pattern" in fields and architecture not in PATTERNS:
        raise ModelError(
            "sliding_window_pattern is not supported; accepted: one sliding window for all layers, or none"
        )


def _experts(fields: MetadataFields, architecture: str) -> ExpertsConfig | None:
    """In these architectures all layers have experts, and the weights of a token's experts always sum up to 1."""
    count = fields.integer("expert_count", 0)
    if not count:
        return None
    if architecture not in WITH_EXPERTS:
        raise ModelError(f"{architecture} with experts is not supported; accepted: {', '.join(WITH_EXPERTS)}")
    if "expert_shared_feed_forward_length" in fields or "expert_shared_count" in fields:
        raise ModelError("experts that all tokens go through are not supported; accepted: experts that are chosen")
    return ExpertsConfig(
        count=count,
        per_token=fields.integer("expert_used_count"),
        size=fields.integer("expert_feed_forward_length", fields.integer("feed_forward_length", 0)),
    )


def _tensor(file: GGUFFile, name: str) -> GGUFTensorInfo:
    if name not in file.tensors:
        raise ModelError(f"the tensor {name} is missing")
    return file.tensors[name]


def _num_layers(fields: MetadataFields, file: GGUFFile) -> int:
    """``block_count``, which must agree with the layers whose tensors are in the file."""
    claimed = fields.integer("block_count")
    found = {name.split(".")[1] for name in file.tensors if name.startswith("blk.")}
    if len(found) != claimed:
        raise ModelError(
            f"block_count is {claimed}, and the file has tensors of {len(found)} layers; expected the same"
        )
    return claimed


def _head_dim(fields: MetadataFields, *, partly_rotated: bool) -> int:
    """The size of a head. Raises ``ModelError`` if keys, values and rotary embeddings do not agree on it."""
    hidden, heads = fields.integer("embedding_length"), fields.integer("attention.head_count")
    if min(hidden, heads) < 1 or ("attention.key_length" not in fields and hidden % heads):
        raise ModelError(f"{hidden} hidden dimensions cannot be divided into {heads} heads")
    head_dim = fields.integer("attention.key_length", hidden // heads)
    for name in ("attention.value_length", *(() if partly_rotated else ("rope.dimension_count",))):
        if fields.integer(name, head_dim) != head_dim:
            raise ModelError(f"{name} is {fields.integer(name)}; expected {head_dim}, the size of a key")
    return head_dim


def _rope_scaling(fields: MetadataFields, file: GGUFFile, head_dim: int) -> RopeScaling | None:
    if LONG_FACTORS in file.tensors:
        return _longrope(fields, file)
    kind = fields.text("rope.scaling.type", "linear" if "rope.scale_linear" in fields else "none")
    factors = _rope_factors(file, head_dim)
    if kind == "none" or (factors and kind in ("llama3", "longrope")):
        return RopeScaling(kind="factors", factors=factors) if factors else None
    if kind not in ("linear", "yarn") or factors:
        with_factors = f", together with {ROPE_FACTORS}," if factors else ""
        raise ModelError(
            f"rope.scaling.type {short(kind)}{with_factors} is not supported; accepted: none, linear, yarn"
        )
    factor = fields.number("rope.scaling.factor", fields.number("rope.scale_linear", 1.0))
    if factor <= 0:
        raise ModelError(f"rope.scaling.factor is {factor}; expected a number above 0")
    return RopeScaling(kind="linear", factor=factor) if kind == "linear" else _yarn(fields, factor)


def _longrope(fields: MetadataFields, file: GGUFFile) -> RopeScaling:
    """The number of factors is checked where the angles are made."""
    long, short_ = (_read_factors(file, _tensor(file, name)) for name in (LONG_FACTORS, SHORT_FACTORS))
    length = fields.integer("context_length")
    original = fields.integer("rope.scaling.original_context_length", length)
    attention = fields.number("rope.scaling.attn_factor", 0.0)
    return RopeScaling(
        kind="longrope",
        factor=length / max(original, 1),
        original_max_position=original,
        attention_factor=attention or None,
        factors=short_,
        long_factors=long,
    )


def _yarn(fields: MetadataFields, factor: float) -> RopeScaling:
    """GGUF's attention factor multiplies the paper's 0.1 ln(factor) + 1, ours replaces it."""
    extra = fields.number("rope.scaling.yarn_attn_factor", fields.number("rope.scaling.attn_factor", 1.0))
    return RopeScaling(
        kind="yarn",
        factor=factor,
        original_max_position=fields.integer("rope.scaling.original_context_length", fields.integer("context_length")),
        beta_fast=fields.number("rope.scaling.yarn_beta_fast", 32.0),
        beta_slow=fields.number("rope.scaling.yarn_beta_slow", 1.0),
        attention_factor=None if extra == 1.0 else extra * (0.1 * math.log(max(factor, 1.0)) + 1.0),
    )


def _rope_factors(file: GGUFFile, head_dim: int) -> tuple[float, ...] | None:
    """The divisors of the rotary frequencies, or None where there are none or all are 1."""
    info = file.tensors.get(ROPE_FACTORS)
    if info is None:
        return None
    if info.shape != (head_dim // 2,):
        raise ModelError(f"{ROPE_FACTORS} has the shape {info.shape}; expected ({head_dim // 2},)")
    factors = _read_factors(file, info)
    return factors if any(factor != 1 for factor in factors) else None


def _read_factors(file: GGUFFile, info: GGUFTensorInfo) -> tuple[float, ...]:
    if math.prod(info.shape) > MAX_FACTORS:
        raise ModelError(f"{info.name} has the shape {info.shape}; expected at most {MAX_FACTORS} numbers")
    factors = tuple(dequantize(file.data(info), info.type).tolist())
    if not all(math.isfinite(factor) and factor > 0 for factor in factors):
        raise ModelError(f"{info.name} holds {short(factors)}; expected numbers above 0")
    return factors


def _dtype(file: GGUFFile) -> str:
    """float16 or float32 if most weights are stored so; otherwise bfloat16, whose range no scale exceeds."""
    weights: Counter[str] = Counter()
    for info in file.tensors.values():
        weights[info.type.name] += math.prod(info.shape)
    return {"F32": "float32", "F16": "float16"}.get(weights.most_common(1)[0][0], "bfloat16")


def _eos_token_ids(metadata: dict[str, Value], vocab_size: int) -> tuple[int, ...]:
    """All tokens that end a completion: the file's own, then those known to end a turn; each once."""
    named = _token_ids(metadata, vocab_size, "eos", "eot", "eom")
    return tuple(dict.fromkeys([*named, *_end_of_turn_ids(metadata, vocab_size)]))


def _token_ids(metadata: dict[str, Value], vocab_size: int, *roles: str) -> Iterator[int]:
    """The ids that the file gives to these roles. Some files say "none" by an id outside the vocabulary."""
    for role in roles:
        token = metadata.get(f"tokenizer.ggml.{role}_token_id")
        if isinstance(token, int) and not isinstance(token, bool) and 0 <= token < vocab_size:
            yield token


def _end_of_turn_ids(metadata: dict[str, Value], vocab_size: int) -> Iterator[int]:
    tokens, types = metadata.get("tokenizer.ggml.tokens"), metadata.get("tokenizer.ggml.token_type")
    if isinstance(tokens, list) and isinstance(types, list):
        for index, (token, kind) in enumerate(zip(tokens[:vocab_size], types, strict=False)):
            if kind == CONTROL_TOKEN and isinstance(token, str) and token in END_OF_TURN:
                yield index
