"""Families out of GGUF files, whose names, norms and metadata are llama.cpp's: the same logits as transformers'."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from helpers_gguf import permute, write_gguf
from helpers_models import VOCAB, PagedDriver, make_tiny
from octavo.errors import ModelError
from octavo.kernels import for_device
from octavo.layers.build import Build
from octavo.models.loading import load_weights
from octavo.models.registry import build_model
from octavo.weights.gguf import GGUFCheckpoint

PROMPT = torch.randint(0, VOCAB, (40,), generator=torch.Generator().manual_seed(1)).tolist()


def common(config: Any) -> dict[str, Any]:
    return {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.sliding_window": getattr(config, "sliding_window", None) or 0,
    }


def gemma(config: Any) -> dict[str, Any]:
    keys = {"attention.key_length": config.head_dim, "attention.value_length": config.head_dim}
    return common(config) | keys | {"attention.layer_norm_rms_epsilon": config.rms_norm_eps}


def gemma2(config: Any) -> dict[str, Any]:
    names = ("attn_logit_softcapping", "final_logit_softcapping")
    return gemma(config) | {name: getattr(config, name) for name in names} | {"rope.freq_base": 10000.0}


def gemma3(config: Any) -> dict[str, Any]:
    ropes = config.rope_parameters
    scaling = {"rope.scaling.type": "linear", "rope.scaling.factor": ropes["full_attention"]["factor"]}
    bases = {"rope.freq_base": ropes["full_attention"]["rope_theta"]}
    return gemma(config) | scaling | bases | {"rope.freq_base_swa": ropes["sliding_attention"]["rope_theta"]}


def phi3(config: Any) -> dict[str, Any]:
    rotated = int(config.hidden_size // config.num_attention_heads * config.rope_parameters["partial_rotary_factor"])
    original = {"rope.scaling.original_context_length": config.original_max_position_embeddings}
    eps = {"attention.layer_norm_rms_epsilon": config.rms_norm_eps}
    return common(config) | eps | original | {"rope.dimension_count": rotated}


def starcoder2(config: Any) -> dict[str, Any]:
    return common(config) | {"attention.layer_norm_epsilon": config.norm_epsilon}


def plain(config: Any) -> dict[str, Any]:
    """Of families whose heads have a size of their own."""
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    keys = {"attention.key_length": head_dim, "attention.value_length": head_dim}
    ropes = {"rope.freq_base": config.rope_parameters["rope_theta"]}
    return common(config) | keys | ropes | {"attention.layer_norm_rms_epsilon": config.rms_norm_eps}


def mixtral(config: Any) -> dict[str, Any]:
    return plain(config) | {"expert_count": config.num_local_experts, "expert_used_count": config.num_experts_per_tok}


def qwen3moe(config: Any) -> dict[str, Any]:
    sizes = {"expert_count": config.num_experts, "expert_used_count": config.num_experts_per_tok}
    return plain(config) | sizes | {"expert_feed_forward_length": config.moe_intermediate_size}


def gpt2(config: Any) -> dict[str, Any]:
    return {
        "block_count": config.n_layer,
        "context_length": config.n_positions,
        "embedding_length": config.n_embd,
        "feed_forward_length": 4 * config.n_embd,
        "attention.head_count": config.n_head,
        "attention.layer_norm_epsilon": config.layer_norm_epsilon,
    }


CASES = {
    "qwen2": (plain, {}),
    "qwen3": (plain, {}),
    "smollm3": (plain, {"num_hidden_layers": 5, "no_rope_layer_interval": 4, "no_rope_layers": None}),
    "llama": (plain, {}),
    "mixtral": (mixtral, {}),
    "qwen3-moe": (qwen3moe, {"mlp_only_layers": []}),
    "gpt2": (gpt2, {}),
    "gemma2": (gemma2, {"num_hidden_layers": 4, "query_pre_attn_scalar": 16}),
    "gemma3": (gemma3, {"num_hidden_layers": 7, "query_pre_attn_scalar": 16}),
    "phi3": (phi3, {}),
    "phi3-partial": (phi3, {}),
    "phi3-longrope": (phi3, {}),
    "starcoder2": (starcoder2, {}),
}


ARCHITECTURES = {"qwen3-moe": "qwen3moe", "mixtral": "llama"}
"""Names here -> llama.cpp's, where they differ."""


def converted(model: Any, architecture: str) -> Iterator[tuple[str, np.ndarray[Any, Any]]]:
    """A model's tensors as llama.cpp's converter changes them, still under Hugging Face's names."""
    config = model.config
    for name, tensor in model.state_dict().items():
        array = tensor.numpy().astype(np.float32)
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        if architecture.startswith("gemma") and name.endswith("norm.weight"):
            array = array + 1
        if architecture in ("llama", "smollm3") and name.endswith(("q_proj.weight", "k_proj.weight")):
            heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
            array = permute(array, heads)
        if name.endswith(("c_attn.weight", "c_fc.weight", "c_proj.weight")) and architecture == "gpt2":
            array = array.T
        if name.endswith(".experts.gate_up_proj"):
            gate, up = np.split(array, 2, axis=1)
            yield name.replace("gate_up_proj", "gate_proj.weight"), gate
            yield name.replace("gate_up_proj", "up_proj.weight"), up
        else:
            yield (f"{name}.weight" if name.endswith(".experts.down_proj") else name), array


def write(path: Path, model: Any, architecture: str, metadata: dict[str, Any], kind: str = "F32") -> Path:
    """Names are those that the gguf package gives. ``kind``: of matrices whose rows are of whole blocks of it."""
    number = next(arch for arch, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(number, model.config.num_hidden_layers)
    arrays = {}
    for name, array in converted(model, architecture):
        stored = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert stored is not None, name
        arrays[stored] = (np.ascontiguousarray(array), kind if array.ndim > 1 and array.shape[-1] % 32 == 0 else "F32")
    for factors in ("long", "short"):
        if numbers := (getattr(model.config, "rope_parameters", None) or {}).get(f"{factors}_factor"):
            arrays[f"rope_factors_{factors}.weight"] = (np.array(numbers, np.float32), "F32")
    return write_gguf(path, {f"{architecture}.{k}": v for k, v in metadata.items()}, arrays, architecture)


@pytest.mark.parametrize("name", CASES)
@torch.inference_mode()
def test_logits_are_those_of_transformers(tmp_path, monkeypatch, name):
    describe, changes = CASES[name]
    from helpers_models import TINY

    if changes:
        options = TINY[name].to_dict() | changes
        options.pop("layer_types", None)  # the pattern that llama.cpp takes for granted is transformers' default
        monkeypatch.setitem(TINY, name, type(TINY[name])(**options, attn_implementation="eager"))
    theirs, _ = make_tiny(name, tmp_path)
    architecture = ARCHITECTURES.get(name, name.partition("-")[0])
    checkpoint = GGUFCheckpoint.open(write(tmp_path / "x.gguf", theirs, architecture, describe(theirs.config)))
    model = build_model(checkpoint.config, Build(for_device("cpu")), checkpoint.config.max_position_embeddings)
    load_weights(model, checkpoint.tensors())
    expected = theirs(torch.tensor([PROMPT])).logits[0]
    torch.testing.assert_close(PagedDriver(model).step({0: PROMPT})[0], expected, rtol=1e-4, atol=1e-4)


def wide_experts(monkeypatch):
    """A Qwen 3 whose experts' rows are of whole blocks of 32."""
    from helpers_models import TINY

    sizes = {"hidden_size": 64, "moe_intermediate_size": 32, "mlp_only_layers": []}
    monkeypatch.setitem(TINY, "qwen3-moe", type(TINY["qwen3-moe"])(**TINY["qwen3-moe"].to_dict() | sizes))


@pytest.mark.parametrize("kind", ["F16", "Q8_0", "Q4_0"])
def test_each_experts_matrix_is_cut_out_of_the_stack(tmp_path, monkeypatch, kind):
    wide_experts(monkeypatch)
    theirs, _ = make_tiny("qwen3-moe", tmp_path)
    path = write(tmp_path / "x.gguf", theirs, "qwen3moe", qwen3moe(theirs.config), kind)
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    tensors = {tensor.name: tensor for tensor in GGUFCheckpoint.open(path).tensors()}
    for e in range(7):
        for part in ("gate", "up", "down"):
            stack = stored[f"blk.2.ffn_{part}_exps.weight"]
            expected = gguf.quants.dequantize(stack.data, stack.tensor_type)[e]
            mine = tensors[f"model.layers.2.mlp.experts.{e}.{part}_proj.weight"]
            assert mine.kind == kind
            assert np.array_equal(mine.read(torch.float32).numpy(), expected)
            if kind != "F16":
                assert np.array_equal(mine.packed().blocks.numpy(), stack.data[e])


def test_a_stack_of_another_number_of_experts(tmp_path, monkeypatch):
    wide_experts(monkeypatch)
    theirs, _ = make_tiny("qwen3-moe", tmp_path)
    changes = {"expert_count": 6}
    path = write(tmp_path / "x.gguf", theirs, "qwen3moe", qwen3moe(theirs.config) | changes)
    with pytest.raises(ModelError, match=r"ffn_.*_exps.weight has the shape \(7, .*\); expected three .* 6 experts"):
        list(GGUFCheckpoint.open(path).tensors())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"expert_shared_feed_forward_length": 8}, "experts that all tokens go through are not supported"),
        ({"expert_used_count": 9}, "9 of 5 experts"),
        ({"expert_count": 1 << 30, "expert_used_count": 2}, "at most 131072 in all"),
    ],
)
def test_mixtures_that_are_others(tmp_path, changes, message):
    theirs, _ = make_tiny("mixtral", tmp_path)
    path = write(tmp_path / "x.gguf", theirs, "llama", mixtral(theirs.config) | changes)
    with pytest.raises(ModelError, match=message):
        GGUFCheckpoint.open(path)


def test_experts_of_a_dense_family(tmp_path):
    theirs, _ = make_tiny("qwen2", tmp_path)
    path = write(tmp_path / "x.gguf", theirs, "qwen2", plain(theirs.config) | {"expert_count": 8})
    with pytest.raises(ModelError, match="qwen2 with experts is not supported; accepted: llama, qwen3moe"):
        GGUFCheckpoint.open(path)
