"""GGUF files, read back by the gguf package, by transformers and by Octavo."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from helpers_export import IDS, export, logits, make_blocky, weights
from helpers_gguf import write_llama
from helpers_models import PagedDriver, make_tiny
from helpers_text import CORPUS, save_bpe, save_spm
from octavo.errors import ModelError, UsageError
from octavo.export.gguf_metadata import architecture
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
]


@pytest.mark.parametrize("name", FAMILIES)
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
    down = before["model.layers.1.mlp.down_proj.weight"].numpy()
    stored = tensors["blk.1.ffn_down.weight"]
    assert stored.tensor_type.name == kind
    assert np.array_equal(stored.data, gguf.quants.quantize(down, gguf.GGMLQuantizationType[kind]))
    assert tensors["token_embd.weight"].tensor_type.name == "Q8_0"
    assert tensors["output_norm.weight"].tensor_type.name == "F32"
    after = weights(tmp_path / "out.gguf")
    for error in report.tensors:
        assert float((after[error.name] - before[error.name]).abs().max()) == pytest.approx(error.largest)


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


def test_what_gguf_cannot_hold(tmp_path: Path) -> None:
    _, path = make_tiny("gpt2", tmp_path)
    with pytest.raises(ModelError, match="GPT2LMHeadModel cannot be exported to GGUF"):
        export(path, tmp_path / "out.gguf", format="gguf")
    _, path = make_tiny("llama", tmp_path)
    with pytest.raises(UsageError, match="fp8 has no block type in GGUF; accepted: int8, int4"):
        export(path, tmp_path / "out.gguf", format="gguf", quantize="fp8")
    _, path = make_tiny("llama-yarn-mscale", tmp_path)
    with pytest.raises(ModelError, match="yarn"):
        export(path, tmp_path / "out.gguf", format="gguf")
    config, _ = read_config(path)
    for name, value in {"hidden_act": "gelu", "attention_scale": 0.5, "logit_soft_cap": 30.0, "rotary_dim": 4}.items():
        with pytest.raises(ModelError, match=f"GGUF cannot say of this family that {name} is {value}"):
            architecture(replace(config, **{name: value}))
    _, path = make_tiny("llama", tmp_path)
    settings = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**settings, "hidden_act": "gelu"}))
    with pytest.raises(ModelError, match="hidden_act is gelu"):
        export(path, tmp_path / "out.gguf", format="gguf")
    assert not (tmp_path / "out.gguf").exists()
