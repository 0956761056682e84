"""The JSON files of a Hugging Face folder: their schemas, and a reader that does not trust them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import UNSET, Meta, UnsetType

from octavo.config import MAX_LAYERS
from octavo.errors import ModelError
from octavo.weights.json_names import refuse_repeated_names

T = TypeVar("T")

Size = Annotated[int, Meta(ge=1, le=2**31 - 1)]
Positive = Annotated[float, Meta(gt=0, le=1e30)]
TokenIds = int | list[int] | None


class ConfigJson(msgspec.Struct):
    """``config.json``, as far as Octavo reads it. ``UNSET`` tells an absent key from null where that
    matters."""

    vocab_size: Size
    hidden_size: Size
    intermediate_size: Size
    num_hidden_layers: Annotated[int, Meta(ge=1, le=MAX_LAYERS)]
    num_attention_heads: Size
    num_key_value_heads: Size | UnsetType | None = UNSET
    head_dim: Size | UnsetType | None = UNSET
    max_position_embeddings: Size | UnsetType = UNSET
    rms_norm_eps: Annotated[float, Meta(ge=0, lt=1)] = 1e-6
    hidden_act: str | None = "silu"
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    rope_theta: Positive | None = None
    rope_scaling: dict[str, Any] | None = None
    rope_parameters: dict[str, Any] | None = None
    original_max_position_embeddings: Size | None = None
    partial_rotary_factor: Positive | None = None
    rope_local_base_freq: Positive | None = None
    no_rope_layers: list[int] | None = None
    no_rope_layer_interval: Size = 4
    sliding_window: Size | UnsetType | None = UNSET
    sliding_window_pattern: Size = 6
    use_sliding_window: bool | None = False
    max_window_layers: Annotated[int, Meta(ge=0)] | None = None
    layer_types: list[str] | None = None
    query_pre_attn_scalar: Positive | None = None
    attn_logit_softcapping: Positive | None = None
    final_logit_softcapping: Positive | None = None
    use_bidirectional_attention: bool | None = False
    scale_attn_weights: bool = True
    scale_attn_by_inverse_layer_idx: bool = False
    num_experts: Size | None = None
    num_experts_per_tok: Size | None = None
    moe_intermediate_size: Size | None = None
    norm_topk_prob: bool = False
    decoder_sparse_step: Size = 1
    mlp_only_layers: list[int] | None = None
    dtype: str | None = None
    torch_dtype: str | None = None
    bos_token_id: TokenIds | UnsetType = UNSET
    eos_token_id: TokenIds | UnsetType = UNSET


class ArchitectureJson(msgspec.Struct):
    """What ``config.json`` says about the kind of model; read first, as another kind has other keys."""

    architectures: list[str] | None = None
    model_type: str | None = None


class RopeJson(msgspec.Struct):
    """``rope_scaling`` (older files) or ``rope_parameters`` (transformers 5) of ``config.json``."""

    rope_type: str | None = None
    type: str | None = None
    rope_theta: Positive | None = None
    factor: Positive | None = None
    original_max_position_embeddings: Size | None = None
    low_freq_factor: Positive | None = None
    high_freq_factor: Positive | None = None
    beta_fast: Annotated[float, Meta(ge=0)] | None = None
    beta_slow: Annotated[float, Meta(ge=0)] | None = None
    attention_factor: Positive | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True
    partial_rotary_factor: Positive | None = None
    short_factor: list[Positive] | None = None
    long_factor: list[Positive] | None = None


class GenerationJson(msgspec.Struct):
    """``generation_config.json``, with the ranges that sampling accepts."""

    eos_token_id: TokenIds = None
    temperature: Annotated[float, Meta(ge=0, le=100)] | None = None
    top_k: Annotated[int, Meta(ge=-1, le=2**31 - 1)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Meta(gt=0, le=100)] | None = None


class AddedToken(msgspec.Struct):
    """One special token of a tokenizer."""

    content: str
    id: int | None = None


class TokenizerConfigJson(msgspec.Struct):
    """``tokenizer_config.json``: the names of the special tokens, and the chat template."""

    eos_token: str | AddedToken | None = None
    added_tokens_decoder: dict[str, AddedToken] | None = None
    chat_template: Any = None


class TokenizerJson(msgspec.Struct):
    """``tokenizer.json``: only its special tokens."""

    added_tokens: list[AddedToken] = []


class IndexJson(msgspec.Struct):
    """``model.safetensors.index.json``: tensor name -> file name."""

    weight_map: dict[str, str]


def read_json(path: Path, schema: type[T], max_bytes: int = 64 << 20, *, unique_names: bool = False) -> T:
    """Decode the JSON file ``path``, of at most ``max_bytes``, into ``schema``.

    Raises ``ModelError`` for a file that is missing, not a plain file, too large, not JSON, or not of the
    schema; with ``unique_names`` also for one in which an object has a name twice.
    """
    data = _read(path, max_bytes)
    try:
        found = msgspec.json.decode(data, type=schema)
        if unique_names:
            refuse_repeated_names(path, data)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} cannot be used: {error}") from None
    return found


def convert(what: str, value: Any, schema: type[T]) -> T:
    """Check a decoded JSON ``value`` against ``schema``; ``what`` names it in the ``ModelError``."""
    try:
        return msgspec.convert(value, type=schema)
    except msgspec.ValidationError as error:
        raise ModelError(f"{what} cannot be used: {error}") from None


def _read(path: Path, max_bytes: int) -> bytes:
    try:
        if not path.is_file():
            raise ModelError(f"{path} is missing, or is not a file")
        size = path.stat().st_size
        if size > max_bytes:
            raise ModelError(f"{path} has {size:,} bytes; at most {max_bytes:,} are accepted")
        return path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from error
