"""Families out of GGUF files, whose names, norms and metadata are llama.cpp's: the same logits as transformers'."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from helpers_gguf import write_gguf
from helpers_models import VOCAB, PagedDriver, make_tiny
from octavo.kernels import for_device
from octavo.layers.build import Build
from octavo.models.loading import load_weights
from octavo.models.registry import build_model
from octavo.weights.gguf import GGUFCheckpoint
from octavo.weights.gguf_names import LAYER_NAMES, MODEL_NAMES, OTHER_NAMES

PROMPT = torch.randint(0, VOCAB, (40,), generator=torch.Generator().manual_seed(1)).tolist()


def common(config: Any) -> dict[str, Any]:
    return {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.sliding_window": config.sliding_window or 0,
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


CASES = {
    "gemma2": (gemma2, {"num_hidden_layers": 4, "query_pre_attn_scalar": 16}),
    "gemma3": (gemma3, {"num_hidden_layers": 7, "query_pre_attn_scalar": 16}),
    "phi3": (phi3, {}),
    "phi3-partial": (phi3, {}),
    "phi3-longrope": (phi3, {}),
    "starcoder2": (starcoder2, {}),
}


def llama_cpp_name(name: str, architecture: str) -> str:
    """The inverse of the library's tables."""
    parts = {hf: ours for ours, hf in (LAYER_NAMES | OTHER_NAMES[architecture]).items()}
    module, _, leaf = name.rpartition(".")
    if not module.startswith("model.layers."):
        return f"{ {hf: ours for ours, hf in MODEL_NAMES.items()}[module] }.{leaf}"
    _, _, index, part = module.split(".", 3)
    return f"blk.{index}.{parts[part]}.{leaf}"


def write(path: Path, model: Any, architecture: str, metadata: dict[str, Any]) -> Path:
    arrays = {}
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and model.config.tie_word_embeddings:
            continue
        array = tensor.numpy().astype(np.float32)
        if architecture.startswith("gemma") and name.endswith("norm.weight"):
            array = array + 1  # as its converter does
        arrays[llama_cpp_name(name, architecture)] = (array, "F32")
    rope = model.config.rope_parameters
    for kind in ("long", "short"):
        if factors := rope.get(f"{kind}_factor"):
            arrays[f"rope_factors_{kind}.weight"] = (np.array(factors, np.float32), "F32")
    return write_gguf(path, {f"{architecture}.{k}": v for k, v in metadata.items()}, arrays, architecture)


@pytest.mark.parametrize("name", CASES)
@torch.inference_mode()
def test_logits_are_those_of_transformers(tmp_path, monkeypatch, name):
    describe, changes = CASES[name]
    from helpers_models import TINY

    if changes:
        options = TINY[name].to_dict() | changes
        del options["layer_types"]  # the pattern that llama.cpp takes for granted is transformers' default
        monkeypatch.setitem(TINY, name, type(TINY[name])(**options, attn_implementation="eager"))
    theirs, _ = make_tiny(name, tmp_path)
    architecture = name.partition("-")[0]
    checkpoint = GGUFCheckpoint.open(write(tmp_path / "x.gguf", theirs, architecture, describe(theirs.config)))
    model = build_model(checkpoint.config, Build(for_device("cpu")), checkpoint.config.max_position_embeddings)
    load_weights(model, checkpoint.tensors())
    expected = theirs(torch.tensor([PROMPT])).logits[0]
    torch.testing.assert_close(PagedDriver(model).step({0: PROMPT})[0], expected, rtol=1e-4, atol=1e-4)
