"""GGUF checkpoints: names, row order and values, against transformers' own reading and a loop over rows."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers_gguf import hugging_face_arrays, model_metadata, permute, write_gguf, write_llama
from octavo.errors import ModelError
from octavo.weights.gguf import GGUFCheckpoint, hugging_face_name
from octavo.weights.gguf_file import GGUFFile
from octavo.weights.row_order import unpermute


def state(checkpoint: GGUFCheckpoint, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    return {tensor.name: tensor.read(dtype) for tensor in checkpoint.tensors()}


def transformers_state(path: Path, **changes: int) -> dict[str, torch.Tensor]:
    """``changes``: of the configuration; transformers has the vocabulary's size from the tokenizer alone."""
    from transformers import AutoConfig, AutoModelForCausalLM

    where = {"pretrained_model_name_or_path": path.parent, "gguf_file": path.name}
    config = AutoConfig.from_pretrained(**where, **changes)
    return dict(AutoModelForCausalLM.from_pretrained(**where, config=config, dtype=torch.float32).state_dict())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.gguf"


@pytest.fixture(scope="module")
def smollm2() -> Path:
    """The bundled model, if it has been fetched before."""
    from octavo.weights.bundled import BUNDLED, cache_folder

    model = BUNDLED["smollm2-135m"]
    file = cache_folder() / model.alias / model.file_name
    if not file.is_file():
        pytest.skip(f"{file} has not been fetched")
    return file


@pytest.mark.parametrize("kind", ["F32", "F16", "Q8_0", "Q4_1"])
def test_llama_equals_transformers(path: Path, kind: str) -> None:
    write_llama(path, kind)
    ours, theirs = state(GGUFCheckpoint.open(path)), transformers_state(path, vocab_size=40)
    assert ours.keys() == theirs.keys() - {"lm_head.weight"}  # tied
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=0, atol=0)


@pytest.mark.parametrize("architecture", ["qwen2", "qwen3"])
def test_qwen_equals_transformers(path: Path, architecture: str) -> None:
    metadata = model_metadata(architecture, attention__key_length=32, attention__value_length=32)
    metadata[f"{architecture}.rope.dimension_count"] = 32
    if architecture == "qwen2":
        metadata = model_metadata(architecture)
    arrays = hugging_face_arrays(np.random.default_rng(1), metadata, vocab_size=40)
    for layer in range(2):
        extra = {"attn_q.bias": 64, "attn_k.bias": 32, "attn_v.bias": 32}
        extra = extra if architecture == "qwen2" else {"attn_q_norm.weight": 32, "attn_k_norm.weight": 32}
        arrays |= {f"blk.{layer}.{name}": np.arange(size, dtype=np.float32) for name, size in extra.items()}
    arrays["output.weight"] = arrays["token_embd.weight"][::-1].copy()
    write_gguf(path, metadata, {name: (array, "F32") for name, array in arrays.items()}, architecture)
    checkpoint = GGUFCheckpoint.open(path)
    ours, theirs = (
        state(checkpoint),
        transformers_state(path, vocab_size=40, head_dim=checkpoint.config.head_dim),
    )
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=0, atol=0)
    assert checkpoint.config.architecture == {"qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}[architecture]
    assert checkpoint.config.qkv_bias == (architecture == "qwen2")
    assert checkpoint.config.qk_norm == (architecture == "qwen3")
    assert checkpoint.config.head_dim == (16 if architecture == "qwen2" else 32)
    assert not checkpoint.config.tie_word_embeddings


@pytest.mark.parametrize("num_heads", [1, 2, 6])
def test_rows_come_back_in_order(num_heads: int) -> None:
    rows = np.random.default_rng(2).integers(0, 256, (num_heads * 8, 20), dtype=np.uint8)
    stored = permute(rows, num_heads)
    assert not np.array_equal(stored, rows)
    np.testing.assert_array_equal(unpermute(stored, num_heads), rows)


def test_llama_rows_and_biases_are_unpermuted(path: Path) -> None:
    metadata = model_metadata()
    arrays = hugging_face_arrays(np.random.default_rng(3), metadata, vocab_size=40)
    arrays["blk.0.attn_q.bias"] = np.arange(64, dtype=np.float32)
    arrays["blk.0.attn_k.bias"] = np.arange(32, dtype=np.float32)
    arrays["blk.0.attn_v.bias"] = np.arange(32, dtype=np.float32)
    heads = {"attn_q": 4, "attn_k": 2}
    stored = {
        name: permute(array, heads[part]) if (part := name.split(".")[-2]) in heads else array
        for name, array in arrays.items()
    }
    checkpoint = GGUFCheckpoint.open(write_gguf(path, metadata, {n: (a, "F32") for n, a in stored.items()}))
    ours = state(checkpoint)
    assert checkpoint.config.qkv_bias
    for name, array in arrays.items():
        np.testing.assert_array_equal(ours[hugging_face_name(name) or ""].numpy(), array)


def test_description_of_tensors(path: Path) -> None:
    write_llama(path, "Q4_0")
    tensors = {tensor.name: tensor for tensor in GGUFCheckpoint.open(path).tensors()}
    down = tensors["model.layers.1.mlp.down_proj.weight"]
    assert (down.shape, down.kind, down.nbytes) == ((64, 96), "Q4_0", 64 * 3 * 18)
    assert tensors["model.norm.weight"].kind == "F32"
    assert next(iter(tensors)) == "model.embed_tokens.weight"
    assert len(tensors) == 2 + 2 * 9


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q5_0"])
def test_reading_rounds_once(path: Path, kind: str, dtype: torch.dtype) -> None:
    write_llama(path, kind)
    checkpoint = GGUFCheckpoint.open(path)
    exact, rounded = state(checkpoint), state(checkpoint, dtype)
    for name, tensor in rounded.items():
        assert tensor.dtype == dtype
        assert tensor.shape == exact[name].shape
        assert torch.equal(tensor, exact[name].to(dtype))


@pytest.mark.parametrize(("kind", "dtype"), [("F32", torch.float32), ("F16", torch.float16), ("BF16", torch.bfloat16)])
def test_reading_without_conversion_copies_nothing(path: Path, kind: str, dtype: torch.dtype) -> None:
    write_llama(path, kind)
    tensors = {tensor.name: tensor for tensor in GGUFCheckpoint.open(path).tensors()}
    first, second = (tensors["model.embed_tokens.weight"].read(dtype) for _ in range(2))
    assert first.data_ptr() == second.data_ptr()


@pytest.mark.filterwarnings("error")
def test_reading_warns_of_nothing(path: Path) -> None:
    write_llama(path, "BF16")
    state(GGUFCheckpoint.open(path), torch.bfloat16)
    state(GGUFCheckpoint.open(path), torch.float32)


def test_tensors_outlive_the_checkpoint(path: Path) -> None:
    _, arrays = write_llama(path, "F32")
    tensors = state(GGUFCheckpoint.open(path))
    path.unlink()
    np.testing.assert_array_equal(tensors["model.embed_tokens.weight"].numpy(), arrays["token_embd.weight"])


def test_reading_from_several_threads(path: Path) -> None:
    write_llama(path, "Q8_0")
    checkpoint, states = GGUFCheckpoint.open(path), []
    threads = [threading.Thread(target=lambda: states.append(state(checkpoint))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(states) == 4
    for other in states[1:]:
        assert all(torch.equal(other[name], tensor) for name, tensor in states[0].items())


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("token_embd.weight", "model.embed_tokens.weight"),
        ("output.weight", "lm_head.weight"),
        ("blk.31.ffn_gate.weight", "model.layers.31.mlp.gate_proj.weight"),
        ("blk.0.attn_k.bias", "model.layers.0.self_attn.k_proj.bias"),
        ("blk.0.attn_k_norm.weight", "model.layers.0.self_attn.k_norm.weight"),
        ("blk.0.ffn_gate_exps.weight", None),
        ("blk.x.attn_k.weight", None),
        ("blk.0.attn_k.scale", None),
        ("output.bias", None),
        ("v.blk.0.attn_k.weight", None),
        ("", None),
    ],
)
def test_names(name: str, expected: str | None) -> None:
    assert hugging_face_name(name) == expected


def test_a_tensor_that_no_model_has(path: Path) -> None:
    metadata = model_metadata()
    arrays = hugging_face_arrays(np.random.default_rng(0), metadata, vocab_size=40)
    arrays["blk.1.ffn_exotic.weight"] = np.zeros((2, 32), np.float32)
    write_gguf(path, metadata, {name: (array, "F32") for name, array in arrays.items()})
    with pytest.raises(ModelError, match=r"'blk.1.ffn_exotic.weight' is unknown in LlamaForCausalLM"):
        list(GGUFCheckpoint.open(path).tensors())


@pytest.mark.parametrize("rows", [1, 30, 60])
def test_rows_that_heads_cannot_share(path: Path, rows: int) -> None:
    metadata = model_metadata()
    arrays = hugging_face_arrays(np.random.default_rng(0), metadata, vocab_size=40)
    arrays["blk.0.attn_q.weight"] = np.zeros((rows, 64), np.float32)
    write_gguf(path, metadata, {name: (array, "F32") for name, array in arrays.items()})
    (query,) = (t for t in GGUFCheckpoint.open(path).tensors() if t.name.endswith("0.self_attn.q_proj.weight"))
    with pytest.raises(ModelError, match=f"has {rows} rows"):
        query.read(torch.float32)


@pytest.mark.model
def test_smollm2_header(smollm2: Path) -> None:
    config = GGUFCheckpoint.open(smollm2).config
    assert (config.num_layers, config.num_heads, config.num_kv_heads, config.head_dim) == (30, 9, 3, 64)
    assert (config.hidden_size, config.intermediate_size, config.vocab_size) == (576, 1536, 49152)
    assert (config.rope_theta, config.rms_norm_eps, config.dtype) == (100000.0, 1e-5, "bfloat16")
    assert (config.bos_token_id, config.eos_token_ids, config.tie_word_embeddings) == (1, (2,), True)
    assert len(GGUFFile(smollm2).metadata["tokenizer.ggml.tokens"]) == 49152  # type: ignore[arg-type]


@pytest.mark.slow  # the oracle takes a minute
@pytest.mark.model
def test_smollm2_equals_transformers(smollm2: Path) -> None:
    ours, theirs = state(GGUFCheckpoint.open(smollm2)), transformers_state(smollm2)
    assert ours.keys() == theirs.keys() - {"lm_head.weight"}
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name
