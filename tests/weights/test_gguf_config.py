"""A GGUF file's metadata as a `ModelConfig`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers_gguf import hugging_face_arrays, model_metadata, write_gguf, write_llama
from octavo.config import ModelConfig, RopeScaling
from octavo.errors import ModelError
from octavo.weights.checkpoint import GenerationDefaults
from octavo.weights.gguf import GGUFCheckpoint
from octavo.weights.gguf_config import model_config
from octavo.weights.gguf_file import GGUFFile


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.gguf"


def config(path: Path, **changes: Any) -> ModelConfig:
    """The configuration of a small llama with changes to its metadata."""
    return GGUFCheckpoint.open(write_llama(path, **changes)[0]).config


def open_with(path: Path, metadata: dict[str, Any], extra: dict[str, Any] | None = None) -> GGUFCheckpoint:
    """A small llama with more metadata, and more (or other) float32 tensors."""
    arrays = hugging_face_arrays(np.random.default_rng(0), model_metadata(), vocab_size=40) | (extra or {})
    tensors = {name: (np.asarray(array, np.float32), "F32") for name, array in arrays.items()}
    return GGUFCheckpoint.open(write_gguf(path, model_metadata() | metadata, tensors))


def test_all_fields(path: Path) -> None:
    assert config(path) == ModelConfig(
        architecture="LlamaForCausalLM",
        vocab_size=40,
        hidden_size=64,
        intermediate_size=96,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,
        max_position_embeddings=128,
        rms_norm_eps=1e-5,
        rope_theta=50000.0,
        tie_word_embeddings=True,
        dtype="float32",
    )


def test_defaults(path: Path) -> None:
    changes = {"attention__head_count_kv": None, "rope__freq_base": None, "rope__dimension_count": None}
    found = config(path, **changes)
    assert (found.num_kv_heads, found.rope_theta, found.head_dim) == (4, 10000.0, 16)


def test_agrees_with_transformers(path: Path) -> None:
    from transformers import AutoConfig

    write_llama(path)
    ours, theirs = (
        GGUFCheckpoint.open(path).config,
        AutoConfig.from_pretrained(path.parent, gguf_file=path.name),
    )
    assert ours.hidden_size == theirs.hidden_size
    assert ours.intermediate_size == theirs.intermediate_size
    assert ours.num_layers == theirs.num_hidden_layers
    assert (ours.num_heads, ours.num_kv_heads) == (theirs.num_attention_heads, theirs.num_key_value_heads)
    assert ours.max_position_embeddings == theirs.max_position_embeddings
    assert ours.rms_norm_eps == pytest.approx(theirs.rms_norm_eps)


@pytest.mark.parametrize(
    ("kind", "dtype"), [("F32", "float32"), ("F16", "float16"), ("BF16", "bfloat16"), ("Q4_1", "bfloat16")]
)
def test_dtype(path: Path, kind: str, dtype: str) -> None:
    assert config(path, kind=kind).dtype == dtype


def test_lists_with_an_entry_for_each_layer(path: Path) -> None:
    metadata = {"llama.attention.head_count_kv": [2, 2], "llama.feed_forward_length": [96, 96]}
    found = open_with(path, metadata).config
    assert (found.num_kv_heads, found.intermediate_size) == (2, 96)
    with pytest.raises(ModelError, match="the same for all layers"):
        open_with(path, {"llama.feed_forward_length": [96, 128]})


def test_sliding_window(path: Path) -> None:
    assert config(path, attention__sliding_window=64).sliding_windows == (64, 64)
    assert config(path, attention__sliding_window=0).sliding_windows == (None, None)


def test_biases_and_output_are_seen_from_tensors(path: Path) -> None:
    extra = {"blk.0.attn_output.bias": np.zeros(64), "blk.0.ffn_down.bias": np.zeros(64)}
    found = open_with(path, {}, {**extra, "output.weight": np.zeros((40, 64))}).config
    assert (found.o_bias, found.mlp_bias, found.qkv_bias, found.tie_word_embeddings) == (
        True,
        True,
        False,
        False,
    )


# Rotary embeddings


def test_linear_scaling(path: Path) -> None:
    scaling = config(path, rope__scaling__type="linear", rope__scaling__factor=4.0).rope_scaling
    assert scaling == RopeScaling(kind="linear", factor=4.0)
    assert config(path, rope__scale_linear=2.0).rope_scaling == RopeScaling(kind="linear", factor=2.0)


def test_yarn_scaling(path: Path) -> None:
    changes: dict[str, Any] = {"rope__scaling__type": "yarn", "rope__scaling__factor": 4.0}
    assert config(path, **changes).rope_scaling == RopeScaling(kind="yarn", factor=4.0, original_max_position=128)
    changes |= {
        "rope__scaling__original_context_length": 32,
        "rope__scaling__yarn_beta_fast": 16.0,
        "rope__scaling__yarn_beta_slow": 2.0,
        "rope__scaling__attn_factor": 0.5,
    }
    scaling = config(path, **changes).rope_scaling
    assert scaling is not None
    assert (scaling.original_max_position, scaling.beta_fast, scaling.beta_slow) == (32, 16.0, 2.0)
    assert scaling.attention_factor == pytest.approx(0.5 * (0.1 * math.log(4) + 1))


def test_factors_of_frequencies(path: Path) -> None:
    factors = np.array([1, 1, 1.5, 2, 4, 8, 8, 8], np.float32)
    checkpoint = open_with(path, {}, {"rope_freqs.weight": factors})
    assert checkpoint.config.rope_scaling == RopeScaling(kind="factors", factors=tuple(factors.tolist()))
    assert "rope" not in " ".join(tensor.name for tensor in checkpoint.tensors())
    assert open_with(path, {}, {"rope_freqs.weight": np.ones(8)}).config.rope_scaling is None


def test_factors_are_llama3s(path: Path) -> None:
    """Frequencies divided by what a converter writes for Llama 3.2 are those that transformers computes."""
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rope = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0, "low_freq_factor": 1.0}
    rope |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    theirs, _ = ROPE_INIT_FUNCTIONS["llama3"](
        LlamaConfig(hidden_size=64, num_attention_heads=4, head_dim=16, rope_parameters=rope), "cpu"
    )
    plain = 500000.0 ** -(np.arange(0, 16, 2) / 16)
    scaling = open_with(path, {}, {"rope_freqs.weight": plain / theirs.numpy()}).config.rope_scaling
    assert scaling is not None
    assert scaling.factors is not None
    assert max(scaling.factors) == pytest.approx(32)
    np.testing.assert_allclose(plain / np.array(scaling.factors), theirs.numpy(), rtol=1e-6)


@pytest.mark.parametrize(
    ("factors", "words"),
    [
        (np.ones(7), r"shape \(7,\); expected \(8,\)"),
        (np.ones((2, 4)), "expected"),
        (np.array([1, 1, 1, 1, 1, 1, 1, 0.0]), "expected numbers above 0"),
        (np.array([1, 1, 1, 1, 1, 1, 1, -2.0]), "expected numbers above 0"),
        (np.array([1, 1, 1, 1, 1, 1, 1, np.nan]), "expected numbers above 0"),
    ],
)
def test_factors_that_are_none(path: Path, factors: Any, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        open_with(path, {}, {"rope_freqs.weight": factors})


def test_factors_together_with_scaling(path: Path) -> None:
    with pytest.raises(ModelError, match=r"together with rope_freqs\.weight"):
        open_with(path, {"llama.rope.scaling.type": "yarn"}, {"rope_freqs.weight": np.full(8, 2.0)})


# The end of a completion


def test_end_tokens(path: Path) -> None:
    tokens = [f"t{i}" for i in range(40)]
    tokens[5:8] = ["<|im_end|>", "<|eot_id|>", "<end_of_turn>"]
    types = [1] * 40
    types[5] = types[6] = 3
    metadata: dict[str, Any] = {
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.eot_token_id": 6,
        "tokenizer.ggml.eom_token_id": 9,
    }
    found = open_with(path, metadata).config
    assert found.bos_token_id == 1
    assert found.eos_token_ids == (2, 6, 9, 5)  # 7 is text that only looks so


def test_end_tokens_outside_the_vocabulary(path: Path) -> None:
    ids = {f"tokenizer.ggml.{role}_token_id": 2**32 - 1 for role in ("bos", "eos", "eot")}
    found = open_with(path, ids).config
    assert (found.bos_token_id, found.eos_token_ids) == (None, ())


def test_vocabulary_is_as_large_as_the_embedding(path: Path) -> None:
    tokens = ["<|im_end|>"] * 60
    metadata = {
        "llama.vocab_size": 30,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3] * 60,
    }
    found = open_with(path, metadata).config
    assert found.vocab_size == 40
    assert max(found.eos_token_ids) == 39


def test_generation_defaults(path: Path) -> None:
    metadata = {"general.sampling.temp": 0.5, "general.sampling.top_k": 20, "general.sampling.top_p": 0.75}
    assert open_with(path, metadata).generation == GenerationDefaults(temperature=0.5, top_k=20, top_p=0.75)
    assert open_with(path, {"general.sampling.temp": "hot"}).generation == GenerationDefaults()


# Metadata that lie


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"block_count": None}, "llama.block_count is missing; expected a whole number"),
        ({"block_count": 3}, None),
        ({"embedding_length": "64"}, "llama.embedding_length is '64'; expected a whole number"),
        ({"attention__head_count": 0}, "cannot be divided into 0 heads"),
        ({"attention__head_count": 5}, "cannot be divided into 5 heads"),
        ({"attention__head_count_kv": 3}, "cannot share 3"),
        ({"attention__head_count_kv": 0}, "num_kv_heads is 0"),
        ({"attention__key_length": 15}, "expected 15, the size of a key"),
        ({"attention__value_length": 8}, "value_length is 8; expected 16"),
        ({"rope__dimension_count": 8}, "rope.dimension_count is 8; expected 16"),
        ({"context_length": 2.5}, "context_length is 2.5; expected a whole number"),
        ({"context_length": True}, "context_length is True; expected a whole number"),
        ({"context_length": 0}, "max_position_embeddings is 0"),
        (
            {"attention__layer_norm_rms_epsilon": None},
            "layer_norm_rms_epsilon is missing; expected a finite number",
        ),
        ({"attention__layer_norm_rms_epsilon": float("nan")}, "is nan; expected a finite number"),
        ({"rope__freq_base": float("inf")}, "is inf; expected a finite number"),
        ({"rope__freq_base": -1.0}, "rope_theta=-1.0"),
        ({"rope__scaling__type": "longrope"}, "'longrope' is not supported; accepted: none, linear, yarn"),
        ({"rope__scaling__type": 7}, "expected a string"),
        ({"rope__scaling__type": "linear", "rope__scaling__factor": 0.0}, "expected a number above 0"),
        ({"expert_count": 8}, "llama.expert_used_count is missing"),
        ({"attention__sliding_window_pattern": 6}, "sliding_window_pattern is not supported"),
    ],
)
def test_contradictions_are_refused(path: Path, changes: dict[str, Any], words: str | None) -> None:
    fields = model_metadata(**changes)
    arrays = hugging_face_arrays(np.random.default_rng(0), model_metadata(), vocab_size=40)
    write_gguf(path, fields, {name: (array, "F32") for name, array in arrays.items()})
    with pytest.raises(ModelError) as caught:
        GGUFCheckpoint.open(path)
    assert (words or "block_count is 3, and the file has tensors of 2 layers") in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("architecture", "num_layers"), [("gemma2", 46), ("gemma3", 62)])
def test_a_width_of_none(path: Path, architecture: str, num_layers: int) -> None:
    """Gemma's largest models scale scores by a power of it."""
    head = {"attention.head_count": 4, "attention.key_length": 16, "attention.value_length": 16}
    fields = {"block_count": num_layers, "embedding_length": 0, "context_length": 128, **head}
    one = (np.ones((1, 1), np.float32), "F32")
    tensors = {"token_embd.weight": one} | {f"blk.{layer}.attn_q.weight": one for layer in range(num_layers)}
    write_gguf(path, {f"{architecture}.{name}": value for name, value in fields.items()}, tensors, architecture)
    with pytest.raises(ModelError, match="0 hidden dimensions cannot be divided into 4 heads"):
        GGUFCheckpoint.open(path)
    file = GGUFFile(path)
    file.metadata[f"{architecture}.embedding_length"] = -64
    with pytest.raises(ModelError, match="-64 hidden dimensions cannot be divided into 4 heads"):
        model_config(file)


def test_a_number_of_layers_beyond_reason_costs_nothing(path: Path) -> None:
    with pytest.raises(ModelError, match="block_count is 2147483647"):
        open_with(path, {"llama.block_count": 2**31 - 1})


@pytest.mark.parametrize("architecture", ["mamba", "", "LLAMA", "x" * 1000])
def test_unknown_architectures(path: Path, architecture: str) -> None:
    write_gguf(path, {}, {"token_embd.weight": (np.ones((4, 32), np.float32), "F32")}, architecture)
    with pytest.raises(ModelError, match="accepted: llama, qwen2, qwen3") as caught:
        GGUFCheckpoint.open(path)
    assert len(str(caught.value)) < len(str(path)) + 250


def test_a_file_of_metadata_alone(path: Path) -> None:
    write_gguf(path, model_metadata(), {})
    assert GGUFFile(path).tensors == {}
    with pytest.raises(ModelError, match=r"token_embd\.weight is missing"):
        GGUFCheckpoint.open(path)
