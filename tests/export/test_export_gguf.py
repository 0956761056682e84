"""GGUF files, read back by the gguf package, by transformers and by Octavo."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import helpers_models
from helpers_export import IDS, export, logits, make_blocky, matrices, weights
from helpers_gguf import write_llama
from helpers_models import PagedDriver, make_tiny
from helpers_text import CORPUS, save_bpe, save_spm
from octavo.errors import ModelError, UsageError
from octavo.export.gguf_metadata import architecture, model_keys
from octavo.kernels import for_device
from octavo.layers.build import Build
from octavo.models.loading import load_weights
from octavo.models.registry import build_model
from octavo.text.tokenizer import load_tokenizer
from octavo.weights.hf_config import read_config
from octavo.weights.open import open_checkpoint


def octavo_logits(path: Path) -> torch.Tensor:
    checkpoint = open_checkpoint(path)
    model = build_model(checkpoint.config, Build(for_device("cpu")), checkpoint.config.max_position_embeddings)
    load_weights(model, checkpoint.tensors())
    return PagedDriver(model).step({0: IDS[0].tolist()})[0]


FAMILIES = [
    "llama",
    "llama-tied",
    "llama-bias",
    "llama-head-dim",
    "llama-linear",
    "llama-llama3",
    "llama-yarn",
    "mistral",
    "qwen2",
    "qwen3",
    "qwen3-moe",
    "mixtral",
    "smollm3",
    "gemma2",
    "gemma3",
    "phi3",
    "phi3-partial",
    "phi3-longrope",
    "starcoder2",
    "gpt2",
]

FOR_LLAMA_CPP: dict[str, dict[str, Any]] = {
    "qwen3-moe": {"mlp_only_layers": []},
    "smollm3": {"num_hidden_layers": 5, "no_rope_layer_interval": 4, "no_rope_layers": None},
    "gemma2": {"query_pre_attn_scalar": 16},
    "gemma3": {"query_pre_attn_scalar": 16, "num_hidden_layers": 7},
}
"""What GGUF takes for granted of a family, where the tiny models are otherwise."""


@pytest.fixture
def as_gguf_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, changes in FOR_LLAMA_CPP.items():
        options = helpers_models.TINY[name].to_dict() | changes
        options.pop("layer_types", None)
        tiny = type(helpers_models.TINY[name])(**options, attn_implementation="eager")
        monkeypatch.setitem(helpers_models.TINY, name, tiny)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.usefixtures("as_gguf_has_it")
def test_the_same_logits(name: str, tmp_path: Path) -> None:
    """Order of rows, configuration and scaling: what comes back computes what went in."""
    model, path = make_tiny(name, tmp_path)
    export(path, tmp_path / "out.gguf", format="gguf")
    torch.testing.assert_close(octavo_logits(tmp_path / "out.gguf"), logits(model)[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["llama", "qwen2"])
def test_transformers_reads_it(name: str, tmp_path: Path) -> None:
    """Of Qwen 3, transformers passes over the size of a head in a GGUF file."""
    model, path = make_tiny(name, tmp_path)
    export(path, tmp_path / "out.gguf", format="gguf")
    again = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="out.gguf", attn_implementation="eager")
    torch.testing.assert_close(logits(again), logits(model), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("quantize", "kind"), [("int8", "Q8_0"), ("int4", "Q4_1"), ("q4_0", "Q4_0")])
def test_quantized_blocks_are_the_gguf_packages(quantize: str, kind: str, tmp_path: Path) -> None:
    _, path = make_blocky(tmp_path)
    report = export(path, tmp_path / "out.gguf", format="gguf", quantize=quantize)
    reader = gguf.GGUFReader(tmp_path / "out.gguf")
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    before = weights(path)
    up = before["model.layers.1.mlp.up_proj.weight"].numpy()
    stored = tensors["blk.1.ffn_up.weight"]
    assert stored.tensor_type.name == kind
    assert np.array_equal(stored.data, gguf.quants.quantize(up, gguf.GGMLQuantizationType[kind]))
    assert tensors["token_embd.weight"].tensor_type.name == "Q8_0"
    assert tensors["output_norm.weight"].tensor_type.name == "F32"
    after = weights(tmp_path / "out.gguf")
    for error in report.tensors:
        assert float((after[error.name] - before[error.name]).abs().max()) == pytest.approx(error.largest)


def test_sensitive_matrices_of_small_models_have_8_bits(tmp_path: Path) -> None:
    _, path = make_blocky(tmp_path)
    for quantize, kind in (("int4", "Q8_0"), ("q4_1", "Q4_1"), ("int8", "Q8_0")):
        report = export(path, tmp_path / f"{quantize}.gguf", format="gguf", quantize=quantize)
        kinds = {error.name.split(".")[-2]: error.kind for error in matrices(report)}
        assert {kinds[f"{part}_proj"] for part in ("q", "k", "v", "down")} == {kind}
        assert {kinds[f"{part}_proj"] for part in ("o", "gate", "up")} == {"Q8_0" if quantize == "int8" else "Q4_1"}


def test_rows_that_are_not_whole_blocks_are_not_quantized(tmp_path: Path) -> None:
    _, path = make_tiny("llama", tmp_path)
    report = export(path, tmp_path / "out.gguf", format="gguf", quantize="int8")
    assert {tensor.kind for tensor in report.tensors} == {"F16", "F32"}


def test_metadata_has_the_types_that_llama_cpp_expects(tmp_path: Path) -> None:
    _, path = make_blocky(tmp_path)
    save_bpe(path)
    report = export(path, tmp_path / "out.gguf", format="gguf", dtype="float16")
    assert "tokens, the model 131" in report.notes[0]
    fields = gguf.GGUFReader(tmp_path / "out.gguf").fields
    kind = gguf.GGUFValueType
    assert fields["llama.block_count"].types == [kind.UINT32]
    assert fields["llama.rope.freq_base"].types == [kind.FLOAT32]
    assert fields["general.file_type"].contents() == 1
    assert fields["llama.attention.head_count_kv"].contents() == 2


def save_legacy_spm(path: Path) -> None:
    """As llama.cpp reads all: a space before the text after each special token, too."""
    save_spm(path, legacy=True)


@pytest.mark.parametrize("save", [save_bpe, save_legacy_spm])
def test_the_tokenizer_comes_along(save: Callable[[Path], object], tmp_path: Path) -> None:
    _, path = make_blocky(tmp_path, vocab_size=640)
    save(path)
    report = export(path, tmp_path / "out.gguf", format="gguf")
    assert report.notes == []
    before, after = load_tokenizer(path), load_tokenizer(tmp_path / "out.gguf")
    assert (after.bos_token_id, after.eos_token_id) == (before.bos_token_id, before.eos_token_id)
    for text in [*CORPUS[:6], "", "a <s> b", " two  spaces"]:
        assert after.encode(text) == before.encode(text)
        assert after.decode(after.encode(text)) == before.decode(before.encode(text))
    fields = gguf.GGUFReader(tmp_path / "out.gguf").fields
    assert len(fields["tokenizer.ggml.tokens"].data) == 640
    assert fields["tokenizer.ggml.token_type"].types[1] == gguf.GGUFValueType.INT32
    assert fields["tokenizer.ggml.bos_token_id"].types == [gguf.GGUFValueType.UINT32]


@pytest.mark.parametrize("option", ["add_prefix_space", "add_bos_token", "add_eos_token"])
@pytest.mark.parametrize("value", [True, False])
def test_what_is_put_around_a_text(option: str, value: bool, tmp_path: Path) -> None:
    """In the keys that llama.cpp reads, and read back."""
    _, path = make_blocky(tmp_path, vocab_size=640)
    save_spm(path, **{option: value})
    export(path, tmp_path / "out.gguf", format="gguf")
    before, after = load_tokenizer(path), load_tokenizer(tmp_path / "out.gguf")
    assert [after.encode(text) for text in CORPUS[:6]] == [before.encode(text) for text in CORPUS[:6]]
    key = "add_space_prefix" if option == "add_prefix_space" else option
    field = gguf.GGUFReader(tmp_path / "out.gguf").fields[f"tokenizer.ggml.{key}"]
    assert field.types == [gguf.GGUFValueType.BOOL]
    assert field.contents() is value


def test_a_tokenizer_goes_from_gguf_to_a_folder_and_back(tmp_path: Path) -> None:
    _, path = make_blocky(tmp_path, vocab_size=640)
    for save in (save_bpe, save_spm):
        for name in ("tokenizer.json", "tokenizer.model", "tokenizer_config.json"):
            (path / name).unlink(missing_ok=True)
        save(path)
        export(path, tmp_path / "a.gguf", format="gguf", force=True)
        assert export(tmp_path / "a.gguf", tmp_path / "folder", force=True).notes == []
        assert export(tmp_path / "a.gguf", tmp_path / "b.gguf", format="gguf", force=True).notes == []
        before = load_tokenizer(tmp_path / "a.gguf")
        for copy in ("folder", "b.gguf"):
            after = load_tokenizer(tmp_path / copy)
            assert [after.encode(text) for text in CORPUS[:6]] == [before.encode(text) for text in CORPUS[:6]]


def test_a_model_without_tokenizer_says_so(tmp_path: Path) -> None:
    path, _ = write_llama(tmp_path / "a.gguf")
    assert "no tokenizer" in export(path, tmp_path / "b.gguf", format="gguf").notes[0]


@pytest.mark.parametrize("name", [*FOR_LLAMA_CPP, "phi3", "starcoder2", "gpt2", "mixtral"])
@pytest.mark.usefixtures("as_gguf_has_it")
def test_names_and_shapes_are_the_gguf_packages(name: str, tmp_path: Path) -> None:
    """Its tables of names are those of llama.cpp's own converter."""
    model, path = make_tiny(name, tmp_path)
    export(path, tmp_path / "out.gguf", format="gguf", dtype="float16")
    reader = gguf.GGUFReader(tmp_path / "out.gguf")
    architecture = reader.fields["general.architecture"].contents()
    number = next(arch for arch, known in gguf.MODEL_ARCH_NAMES.items() if known == architecture)
    names = gguf.get_tensor_name_map(number, model.config.num_hidden_layers)
    expected = {}
    for tensor_name, tensor in model.state_dict().items():
        fused = tensor_name.endswith(".gate_up_proj") and tensor.ndim == 3
        own = [tensor_name.replace("gate_up", part) for part in ("gate", "up")] if fused else [tensor_name]
        for each in own:
            stored = names.get_name(each, try_suffixes=(".weight", ".bias"))
            stored = stored if stored is None or stored.endswith(("weight", "bias")) else f"{stored}.weight"
            expected[stored] = tensor.numel() // len(own)
    if model.config.tie_word_embeddings:  # of Gemma 2 the tables have no head at all
        expected = {stored: size for stored, size in expected.items() if stored not in ("output.weight", None)}
    assert {tensor.name: tensor.n_elements for tensor in reader.tensors} == expected
    floats = {tensor.name for tensor in reader.tensors if tensor.tensor_type.name == "F32"}
    assert all(("inp" in each or "position" in each or "norm" in each or "bias" in each) for each in floats)


@pytest.mark.parametrize("name", list(FOR_LLAMA_CPP))
def test_what_a_family_takes_for_granted_and_a_model_has_otherwise(name: str, tmp_path: Path) -> None:
    _, path = make_tiny(name, tmp_path)
    with pytest.raises(ModelError, match=r"GGUF cannot say of this family that|in other layers than GGUF takes"):
        export(path, tmp_path / "out.gguf", format="gguf")
    assert not (tmp_path / "out.gguf").exists()


def test_a_mixture_lacks_an_expert(tmp_path: Path) -> None:
    _, path = make_tiny("mixtral", tmp_path)
    tensors = load_file(path / "model.safetensors")
    del tensors["model.layers.1.block_sparse_moe.experts.3.w2.weight"]
    save_file(tensors, path / "model.safetensors")
    with pytest.raises(ModelError, match=r"layers.1.mlp.experts.down_proj has 4 experts' matrices; those of 5 were"):
        export(path, tmp_path / "out.gguf", format="gguf")


def test_windows_that_llama_cpp_does_not_heed_are_told(tmp_path: Path) -> None:
    _, path = make_tiny("mistral", tmp_path)
    report = export(path, tmp_path / "out.gguf", format="gguf")
    assert report.notes[0] == "llama.cpp has no sliding window (9 tokens) in models of this architecture"


def test_what_gguf_cannot_hold(tmp_path: Path) -> None:
    config, _ = read_config(make_tiny("llama", tmp_path)[1])
    with pytest.raises(ModelError, match="FalconForCausalLM cannot be exported to GGUF; accepted: LlamaForCausalLM"):
        architecture(replace(config, architecture="FalconForCausalLM"))
    _, path = make_tiny("llama", tmp_path)
    with pytest.raises(UsageError, match="fp8 has no block type in GGUF; accepted: int8, int4"):
        export(path, tmp_path / "out.gguf", format="gguf", quantize="fp8")
    _, path = make_tiny("llama-yarn-mscale", tmp_path)
    with pytest.raises(ModelError, match="yarn"):
        export(path, tmp_path / "out.gguf", format="gguf")
    for name, value in {"hidden_act": "gelu", "attention_scale": 0.5, "logit_soft_cap": 30.0, "rotary_dim": 4}.items():
        with pytest.raises(ModelError, match=f"GGUF cannot say of this family that {name} is {value}"):
            model_keys(replace(config, **{name: value}))
    _, path = make_tiny("llama", tmp_path)
    settings = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**settings, "hidden_act": "gelu"}))
    with pytest.raises(ModelError, match="hidden_act is gelu"):
        export(path, tmp_path / "out.gguf", format="gguf")
    assert not (tmp_path / "out.gguf").exists()
