"""``config.json`` -> ``ModelConfig``, with transformers' configuration classes and models as the oracle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM

from helpers_hf import TINY, write_json
from octavo.config import ModelConfig
from octavo.errors import ModelError
from octavo.weights.hf_config import FAMILIES, read_config

MODEL_TYPES = {family.model_type: name for name, family in FAMILIES.items() if family.model_type != "gemma3"}
SHAPE = {
    k: TINY[k] for k in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
}
HEADS = {
    "num_attention_heads": 32,
    "hidden_size": 128,
}  # as many as the Qwen classes' default of key/value heads


def read(folder: Path, config: Any) -> ModelConfig:
    write_json(folder / "config.json", config)
    return read_config(folder)[0]


def of_type(model_type: str, **config: Any) -> dict[str, Any]:
    """A config with only what must be there, and ``config``."""
    return {
        "architectures": [MODEL_TYPES[model_type]],
        "model_type": model_type,
        "pad_token_id": 0,
        **SHAPE,
        **HEADS,
        **config,
    }


def theirs(config: dict[str, Any]) -> Any:
    return AutoConfig.for_model(**json.loads(json.dumps(config)))


WITHOUT_WINDOWS = ("llama", "gpt2")
SAME_WINDOWS = ("mistral", "mixtral", "qwen3_moe", "phi3", "starcoder2")
LLAMA_NAMES = ("llama", "mistral", "smollm3", "qwen2", "qwen3", "gemma2", "gemma3_text")
"""Types whose checkpoints have Llama's names."""


def their_windows(config: Any) -> tuple[int | None, ...]:
    """How transformers' attention layers see ``sliding_window``."""
    if config.model_type in WITHOUT_WINDOWS:
        return (None,) * config.num_hidden_layers
    if config.model_type in SAME_WINDOWS:
        return (config.sliding_window,) * config.num_hidden_layers
    return tuple(config.sliding_window if t == "sliding_attention" else None for t in config.layer_types)


def their_thetas(config: Any) -> tuple[float | None, float | None]:
    """The bases of rotary angles: of most layers, and of those with a window if that is another."""
    ropes = getattr(config, "rope_parameters", None)
    if not ropes:
        return None, None
    if "full_attention" in ropes:
        return ropes["full_attention"]["rope_theta"], ropes["sliding_attention"]["rope_theta"]
    return ropes["rope_theta"], None


def their_eps(config: Any) -> float:
    return next(
        getattr(config, k) for k in ("rms_norm_eps", "norm_epsilon", "layer_norm_epsilon") if hasattr(config, k)
    )


def ids(value: int | list[int] | None) -> tuple[int, ...]:
    return () if value is None else (value,) if isinstance(value, int) else tuple(value)


VARIANTS: list[dict[str, Any]] = [
    {},
    {"num_key_value_heads": 8},
    {"head_dim": 16, "tie_word_embeddings": True},
    {"max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "rope_theta": 500000.0},
    {"rope_theta": 10000, "rope_scaling": None},
    {"rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}},
    {"rope_theta": 5.0, "rope_parameters": {"rope_theta": 7.0, "rope_type": "default"}},
    {"rope_theta": 5.0, "rope_parameters": {"rope_type": "default"}},
    {"attention_bias": True, "mlp_bias": True},
    {"use_sliding_window": True, "sliding_window": 32, "max_window_layers": 1},
    {
        "use_sliding_window": True,
        "sliding_window": 32,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    {"use_sliding_window": False, "sliding_window": 32, "max_window_layers": 0},
    {"use_sliding_window": True, "sliding_window": None, "max_window_layers": 0},
    {"use_sliding_window": True, "num_hidden_layers": 30},
    {"bos_token_id": 5, "eos_token_id": [6, 7]},
    {"bos_token_id": None, "eos_token_id": None},
    {"dtype": "bfloat16"},
    {"torch_dtype": "float16"},
    {"dtype": "bfloat16", "torch_dtype": "float16"},
]


@pytest.mark.parametrize("model_type", MODEL_TYPES)
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_means_what_transformers_takes_it_to_mean(tmp_path: Path, model_type: str, variant: dict[str, Any]) -> None:
    if model_type == "gemma3_text" and "rope_type" in variant.get("rope_parameters", {}):
        pytest.skip("this family has two sets of them; transformers takes parts of a single one")
    config = of_type(model_type, **variant)
    ours, oracle = read(tmp_path, config), theirs(config)
    assert ours.architecture == MODEL_TYPES[model_type]
    assert ours.num_layers == oracle.num_hidden_layers
    assert ours.num_heads == oracle.num_attention_heads
    assert ours.num_kv_heads == getattr(oracle, "num_key_value_heads", oracle.num_attention_heads)
    assert ours.head_dim == (getattr(oracle, "head_dim", None) or oracle.hidden_size // oracle.num_attention_heads)
    assert ours.max_position_embeddings == oracle.max_position_embeddings
    assert ours.rms_norm_eps == their_eps(oracle)
    if model_type != "gpt2":
        assert (ours.rope_theta, ours.local_rope_theta) == their_thetas(oracle)
    assert ours.rope_scaling is None
    assert ours.tie_word_embeddings == oracle.tie_word_embeddings
    assert ours.sliding_windows == their_windows(oracle)
    assert ours.eos_token_ids == tuple(token for token in ids(oracle.eos_token_id) if token < oracle.vocab_size)
    assert ours.bos_token_id == next((token for token in ids(oracle.bos_token_id) if token < oracle.vocab_size), None)
    assert ours.dtype == str(oracle.dtype or torch.float32).removeprefix("torch.")


@pytest.mark.parametrize("model_type", LLAMA_NAMES)
@pytest.mark.parametrize("variant", [VARIANTS[0], VARIANTS[2], VARIANTS[8]], ids=str)
def test_promises_the_parameters_that_transformers_makes(
    tmp_path: Path, model_type: str, variant: dict[str, Any]
) -> None:
    config = of_type(model_type, **variant)
    ours = read(tmp_path, config)
    with torch.device("meta"):
        shapes = {k: tuple(v.shape) for k, v in AutoModelForCausalLM.from_config(theirs(config)).state_dict().items()}
    layer = "model.layers.0."
    assert shapes[f"{layer}self_attn.q_proj.weight"] == (ours.num_heads * ours.head_dim, ours.hidden_size)
    assert shapes[f"{layer}self_attn.k_proj.weight"] == (ours.num_kv_heads * ours.head_dim, ours.hidden_size)
    assert shapes[f"{layer}mlp.up_proj.weight"] == (ours.intermediate_size, ours.hidden_size)
    assert (f"{layer}self_attn.q_proj.bias" in shapes) == ours.qkv_bias
    assert (f"{layer}self_attn.o_proj.bias" in shapes) == ours.o_bias
    assert (f"{layer}mlp.down_proj.bias" in shapes) == ours.mlp_bias
    assert (f"{layer}self_attn.q_norm.weight" in shapes) == ours.qk_norm


LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
ROPES: list[dict[str, Any]] = [
    {"rope_scaling": {"type": "linear", "factor": 2}, "rope_theta": 1e5},
    {"rope_scaling": {"rope_type": "llama3", **LLAMA3}, "rope_theta": 5e5},
    {"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, **LLAMA3}},
    {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}},
    {"rope_scaling": {"type": "yarn", "factor": 4.0}},
    {"rope_scaling": {"type": "yarn", "factor": 4.0}, "original_max_position_embeddings": 77},
    {
        "rope_parameters": {
            "rope_type": "yarn",
            "factor": 40,
            "beta_fast": 16,
            "beta_slow": 2,
            "truncate": False,
        }
    },
    {"rope_parameters": {"rope_type": "yarn", "factor": 40, "mscale": 0.7, "mscale_all_dim": 1.0}},
    {"rope_parameters": {"rope_type": "yarn", "factor": 40, "attention_factor": 1.5, "beta_fast": None}},
    {
        "rope_theta": 5.0,
        "rope_parameters": {"rope_theta": 7.0, "rope_type": "default"},
        "rope_scaling": {"type": "linear", "factor": 2},
    },
]


@pytest.mark.parametrize("variant", ROPES, ids=str)
def test_rope_scaling_in_both_spellings(tmp_path: Path, variant: dict[str, Any]) -> None:
    config = of_type("llama", max_position_embeddings=256, **variant)
    ours, their_config = read(tmp_path, config), theirs(config)
    their_config.standardize_rope_params()  # as the rotary embedding does before it looks
    oracle = their_config.rope_parameters
    scaling = ours.rope_scaling
    assert scaling is not None
    assert (scaling.kind, scaling.factor) == (oracle["rope_type"], oracle["factor"])
    assert ours.rope_theta == oracle["rope_theta"]
    assert scaling.original_max_position == oracle.get("original_max_position_embeddings")
    for name in ("low_freq_factor", "high_freq_factor", "attention_factor", "mscale", "mscale_all_dim"):
        assert getattr(scaling, name) == oracle.get(name)
    assert (scaling.beta_fast, scaling.beta_slow) == (
        oracle.get("beta_fast") or 32,
        oracle.get("beta_slow") or 1,
    )
    assert scaling.truncate == oracle.get("truncate", True)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_reads_what_transformers_writes(tmp_path: Path, model_type: str) -> None:
    config = of_type(model_type, rope_theta=1e6, eos_token_id=[3, 4], num_key_value_heads=4)
    theirs(config).save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    ours = read(tmp_path, written | {"architectures": [MODEL_TYPES[model_type]]})
    assert (ours.rope_theta, ours.eos_token_ids, ours.num_kv_heads) == (1e6, (3, 4), 4)


def test_null_means_as_many_kv_heads_as_heads_and_a_head_of_hidden_over_heads(tmp_path: Path) -> None:
    for model_type in MODEL_TYPES:
        ours = read(tmp_path, of_type(model_type, num_key_value_heads=None, head_dim=None))
        assert (ours.num_kv_heads, ours.head_dim) == (32, 4)


def test_the_type_alone_names_the_architecture(tmp_path: Path) -> None:
    assert read(tmp_path, TINY | {"architectures": None}).architecture == "LlamaForCausalLM"


def test_a_config_that_names_no_dtype_takes_the_weights(tmp_path: Path) -> None:
    write_json(tmp_path / "config.json", {k: v for k, v in TINY.items() if k != "torch_dtype"})
    assert read_config(tmp_path, "bfloat16")[0].dtype == "bfloat16"


def test_ids_outside_the_vocabulary_can_never_come(tmp_path: Path) -> None:
    ours = read(tmp_path, TINY | {"bos_token_id": 151643, "eos_token_id": [-1, 7, 96]})
    assert (ours.bos_token_id, ours.eos_token_ids) == (None, (7,))


SLIDING = {"architectures": ["Qwen2ForCausalLM"], "use_sliding_window": True}
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"architectures": ["MambaForCausalLM"]}, "accepted: LlamaForCausalLM, MistralForCausalLM"),
    ({"architectures": None, "model_type": "bloom"}, "bloom"),
    ({"architectures": [], "model_type": None}, "accepted: LlamaForCausalLM"),
    ({"architectures": "LlamaForCausalLM"}, "architectures"),
    ({"rope_scaling": {"type": "magic", "factor": 2.0}}, "accepted: default, linear, dynamic, llama3, yarn, longrope"),
    ({"rope_scaling": {"type": "linear"}}, "factor"),
    ({"rope_scaling": {"type": "linear", "factor": -1}}, "factor"),
    ({"rope_scaling": {"type": "linear", "factor": "2"}}, "factor"),
    ({"rope_scaling": {"rope_type": "llama3", **LLAMA3, "low_freq_factor": 4.0}}, "low_freq_factor"),
    ({"rope_scaling": {"rope_type": "yarn", "factor": 2, "truncate": 3}}, "truncate"),
    ({"rope_parameters": {"full_attention": {"rope_theta": 1.0}}}, "layer"),
    ({"rope_scaling": [1]}, "rope_scaling"),
    ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    ({"rope_theta": 0}, "rope_theta"),
    ({"hidden_act": "relu"}, "silu, gelu"),
    ({"hidden_size": -1}, "hidden_size"),
    ({"hidden_size": 0}, "hidden_size"),
    ({"hidden_size": 64.0}, "hidden_size"),
    ({"hidden_size": "64"}, "hidden_size"),
    ({"hidden_size": [64]}, "hidden_size"),
    ({"hidden_size": True}, "hidden_size"),
    ({"hidden_size": None}, "hidden_size"),
    ({"hidden_size": 2**31}, "hidden_size"),
    ({"hidden_size": 10**40}, "hidden_size"),
    ({"hidden_size": 65}, "65"),
    ({"num_attention_heads": 4, "num_key_value_heads": 3}, "3 key/value heads"),
    ({"head_dim": 7}, "head_dim"),
    ({"num_hidden_layers": 2**30}, "num_hidden_layers"),
    ({"rms_norm_eps": -1e-5}, "rms_norm_eps"),
    ({"rms_norm_eps": None}, "rms_norm_eps"),
    ({"torch_dtype": "float8_e4m3fn"}, "accepted: float32"),
    ({"torch_dtype": 32}, "torch_dtype"),
    ({"eos_token_id": "</s>"}, "eos_token_id"),
    ({"eos_token_id": [2.5]}, "eos_token_id"),
    ({"tie_word_embeddings": "yes"}, "tie_word_embeddings"),
    ({"architectures": ["MistralForCausalLM"], "sliding_window": 0}, "sliding_window"),
    ({"architectures": ["Qwen3MoeForCausalLM"], "num_experts": 2**30}, "at most 131072"),
    ({"architectures": ["MixtralForCausalLM"], "num_local_experts": 3, "num_experts_per_tok": 4}, "4 of 3 experts"),
    ({"architectures": ["SmolLM3ForCausalLM"], "no_rope_layers": [1]}, "no_rope_layers has 1 entries"),
    ({"architectures": ["GPT2LMHeadModel"], "scale_attn_by_inverse_layer_idx": True}, "accepted: false"),
    ({"architectures": ["Gemma3ForCausalLM"], "use_bidirectional_attention": True}, "accepted: false"),
    ({"architectures": ["Gemma2ForCausalLM"], "query_pre_attn_scalar": 0}, "query_pre_attn_scalar"),
    ({"architectures": ["Phi3ForCausalLM"], "rope_scaling": {"type": "longrope"}}, "short_factor"),
    ({"architectures": ["Phi3ForCausalLM"], "partial_rotary_factor": 0.1}, "rotary_dim is 1"),
    ({**SLIDING, "layer_types": ["full_attention"]}, "2 layers"),
    ({**SLIDING, "layer_types": ["a", "b"]}, "full_attention"),
]


@pytest.mark.parametrize(("change", "says"), REFUSED, ids=str)
def test_a_config_that_cannot_be_run_is_refused_in_one_line(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    with pytest.raises(ModelError) as caught:
        read(tmp_path, TINY | change)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", SHAPE)
def test_a_missing_size_is_named(tmp_path: Path, key: str) -> None:
    with pytest.raises(ModelError, match=key):
        read(tmp_path, {k: v for k, v in TINY.items() if k != key})


@pytest.mark.parametrize(
    "data",
    [b"", b"[]", b"null", b'"x"', b"{", b"\xff", b'{"a": NaN}', b"[" * 10**6, b'{"a":' * 10**5, b"\0" * 99],
    ids=lambda data: repr(data[:12]),
)  # fmt: skip
def test_what_is_no_json_object_is_refused_in_one_line(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "config.json").write_bytes(data)
    with pytest.raises(ModelError, match=r"config\.json") as caught:
        read_config(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "config.json").open("wb") as file:
        file.truncate(1 << 30)  # sparse: it takes no room on the disk
    with pytest.raises(ModelError, match="1,073,741,824 bytes"):
        read_config(tmp_path)


def test_a_folder_or_nothing_in_its_place(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="missing"):
        read_config(tmp_path)
    (tmp_path / "config.json").mkdir()
    with pytest.raises(ModelError, match="not a file"):
        read_config(tmp_path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)
KEYS = [
    *TINY,
    "rope_scaling",
    "rope_parameters",
    "head_dim",
    "sliding_window",
    "layer_types",
    "eos_token_id",
    "rope_theta",
]


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.dictionaries(st.sampled_from(KEYS), JSON, max_size=3), type_=st.sampled_from([*FAMILIES]))
def test_any_value_anywhere_gives_a_config_or_a_model_error(
    tmp_path: Path, changes: dict[str, Any], type_: str
) -> None:
    message = ""
    try:
        config = read(tmp_path, TINY | {"architectures": [type_]} | changes)
    except ModelError as error:
        message = str(error)
    else:
        assert len(config.sliding_windows) == config.num_layers
    assert "\n" not in message
