"""Hugging Face folders, read back by transformers, by Octavo, and by formulas."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, CompressedTensorsConfig

from helpers_export import export, logits, make_blocky, matrices, relative_rms, unpacked, weights
from helpers_gguf import write_llama
from helpers_models import make_tiny
from octavo.errors import ModelError, UsageError

NO_TOKENIZER = "the model has no tokenizer, so none was written"


@pytest.mark.parametrize("name", ["llama-tied", "qwen3", "gemma3", "gpt2"])
def test_a_folder_is_the_same_model_to_transformers(name: str, tmp_path: Path) -> None:
    model, path = make_tiny(name, tmp_path)
    report = export(path, tmp_path / "out")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out", attn_implementation="eager")
    assert again.dtype is torch.float32
    assert torch.equal(logits(again), logits(model))
    assert not any(tensor.relative_rms for tensor in report.tensors)


def test_another_dtype_and_its_error(tmp_path: Path) -> None:
    _, path = make_tiny("llama", tmp_path)
    report = export(path, tmp_path / "out", dtype="bfloat16")
    before, after = weights(path), weights(tmp_path / "out")
    assert all(torch.equal(after[name], before[name].bfloat16().float()) for name in before)
    error = next(tensor for tensor in report.tensors if tensor.name == "model.layers.1.mlp.up_proj.weight")
    assert error.kind == "BF16"
    assert error.relative_rms == pytest.approx(relative_rms(after[error.name], before[error.name]), rel=1e-6)
    assert error.largest == float((after[error.name] - before[error.name]).abs().max())
    assert json.loads((tmp_path / "out" / "config.json").read_text())["torch_dtype"] == "bfloat16"


def test_shards_and_their_index(tmp_path: Path) -> None:
    model, path = make_tiny("llama", tmp_path)
    report = export(path, tmp_path / "out", max_shard_size=40_000)
    shards = sorted(f for f in (tmp_path / "out").glob("*.safetensors"))
    assert len(shards) > 3
    assert all(shard.stat().st_size < 45_000 for shard in shards)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["weight_map"] == {name: shard.name for shard in shards for name in load_file(shard)}
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out", attn_implementation="eager")
    assert torch.equal(logits(again), logits(model))
    assert report.nbytes == sum(f.stat().st_size for f in (tmp_path / "out").iterdir())


@pytest.mark.parametrize("changes", [{}, {"rope__scaling__type": "linear", "rope__scaling__factor": 2.0}])
def test_from_gguf(tmp_path: Path, changes: dict[str, Any]) -> None:
    """Names, order of rows and configuration."""
    path, _ = write_llama(tmp_path / "a.gguf", **changes)
    export(path, tmp_path / "out", dtype="float32")
    folder = AutoModelForCausalLM.from_pretrained(tmp_path / "out", attn_implementation="eager")
    assert folder.config.rope_parameters["rope_theta"] == 50000.0
    assert folder.config.rope_parameters["rope_type"] == ("linear" if changes else "default")
    before, after = weights(path), weights(tmp_path / "out")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def expanded(tensors: dict[str, Tensor], base: str, config: dict[str, Any]) -> np.ndarray[Any, Any]:
    """A weight out of the layout of compressed-tensors, by its documentation."""
    args = config["config_groups"]["group_0"]["weights"]
    scale = tensors[f"{base}.weight_scale"].float().numpy()
    if config["format"] != "pack-quantized":
        values = tensors[f"{base}.weight"].float().numpy()
        if args["strategy"] == "block":
            rows, columns = args["block_structure"]
            scale = scale.repeat(rows, 0)[: len(values)].repeat(columns, 1)[:, : values.shape[1]]
        return values * scale
    k = int(tensors[f"{base}.weight_shape"][1])
    q = unpacked(tensors[f"{base}.weight_packed"].numpy(), args["num_bits"], k) - (1 << args["num_bits"] - 1)
    zero = np.zeros((len(q), scale.shape[1]))
    if not args["symmetric"]:
        zero = unpacked(tensors[f"{base}.weight_zero_point"].numpy().T, 4, len(q)).T - 8
    group = k // scale.shape[1]
    return (q - zero.repeat(group, 1)) * scale.repeat(group, 1)


@pytest.mark.parametrize(
    ("scheme", "limit"),
    [
        ("int8", 0.01),
        ("int8-g32", 0.01),
        ("w8a8", 0.01),
        ("int4", 0.1),
        ("int4-g32", 0.1),
        ("fp8", 0.04),
        ("fp8-tensor", 0.04),
        ("fp8-block", 0.04),
        ("fp8-w8a8", 0.04),
    ],
)
def test_quantized_as_compressed_tensors(scheme: str, limit: float, tmp_path: Path) -> None:
    _, path = make_blocky(tmp_path)
    report = export(path, tmp_path / "out", quantize=scheme, dtype="bfloat16")
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    tensors, before = load_file(tmp_path / "out" / "model.safetensors"), weights(path)
    assert config["quant_method"] == "compressed-tensors"
    assert set(config["ignore"]) == {"lm_head", "model.embed_tokens"}
    for error in matrices(report):
        back = torch.from_numpy(expanded(tensors, error.name.removesuffix(".weight"), config))
        assert relative_rms(back, before[error.name]) < limit
        assert relative_rms(back, before[error.name]) == pytest.approx(error.relative_rms, rel=1e-4)
    assert torch.equal(tensors["lm_head.weight"], before["lm_head.weight"].bfloat16())
    assert sum(1 for _ in matrices(report)) == 14


@pytest.mark.parametrize("scheme", ["int8", "int4", "fp8", "w8a8"])
def test_octavo_reads_what_it_quantized(scheme: str, tmp_path: Path) -> None:
    _, path = make_blocky(tmp_path)
    export(path, tmp_path / "out", quantize=scheme)
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    tensors, after = load_file(tmp_path / "out" / "model.safetensors"), weights(tmp_path / "out")
    for name in (f"model.layers.1.{part}_proj" for part in ("self_attn.q", "self_attn.k", "mlp.down")):
        torch.testing.assert_close(
            after[f"{name}.weight"], torch.from_numpy(expanded(tensors, name, config)).float(), rtol=1e-6, atol=1e-7
        )


@pytest.mark.parametrize("scheme", ["int8", "int4", "fp8", "w8a8"])
def test_transformers_reads_what_octavo_quantized(scheme: str, tmp_path: Path) -> None:
    pytest.importorskip("compressed_tensors")
    model, path = make_blocky(tmp_path, tie_word_embeddings=True)
    export(path, tmp_path / "out", quantize=scheme)
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    state = model.state_dict()
    for name in [name for name in state if name.endswith("_proj.weight")]:
        state[name].copy_(torch.from_numpy(expanded(tensors, name.removesuffix(".weight"), config)))
    # Without this, transformers 5.23 expects zero points that are not packed.
    how = {"quantization_config": CompressedTensorsConfig(dequantize=True)} if scheme == "int4" else {}
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out", attn_implementation="eager", **how)
    difference = float((logits(again) - logits(model)).abs().max())
    # Rounding each input to 8 bits is a part of w8a8, and not of the weights that are compared here.
    assert difference < (0.3 if scheme == "w8a8" else 1e-3) * float(logits(model).std())


def test_one_scheme_for_all_matrices_which_a_note_says_where_it_costs_more(tmp_path: Path) -> None:
    """transformers reads no other."""
    _, path = make_blocky(tmp_path)
    report = export(path, tmp_path / "out", quantize="int4")
    assert {error.kind for error in matrices(report)} == {"int4 g32"}
    assert sum("all matrices have 4 bits" in note for note in report.notes) == 1
    report = export(path, tmp_path / "same", quantize="int4-g32")
    assert not any("4 bits" in note for note in report.notes)


def test_star_coder(tmp_path: Path) -> None:
    """Its MLP has other names."""
    _, path = make_tiny("starcoder2", tmp_path)
    report = export(path, tmp_path / "out", quantize="int8")
    assert report.notes == [NO_TOKENIZER]
    before, after = weights(path), weights(tmp_path / "out")
    for name in (f"model.layers.1.mlp.{part}.weight" for part in ("c_fc", "c_proj")):
        assert 0 < relative_rms(after[name], before[name]) < 0.01


def test_what_cannot_be_quantized(tmp_path: Path) -> None:
    _, path = make_tiny("llama", tmp_path)  # 84 inputs: no group of 16 divides them
    with pytest.raises(UsageError, match=r"multiple of 16 inputs; these have 48, 84"):
        export(path, tmp_path / "out", quantize="int4")
    with pytest.raises(UsageError, match="accepted: int8"):
        export(path, tmp_path / "out", quantize="int3")
    assert not (tmp_path / "out").exists()


def test_weights_of_one_sign_in_four_bits(tmp_path: Path) -> None:
    """A zero point in this layout is one of the 16 levels."""
    model, path = make_blocky(tmp_path)
    for i, sign in enumerate((1, -1)):
        weight = model.model.layers[i].mlp.down_proj.weight.data
        weight.copy_(sign * (1.0 + 0.05 * torch.rand_like(weight)))
        weight[0] = 0.0
    model.save_pretrained(path)
    report = export(path, tmp_path / "out", quantize="int4")
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    tensors, before = load_file(tmp_path / "out" / "model.safetensors"), weights(path)
    errors = {error.name: error.relative_rms for error in report.tensors}
    for name in (f"model.layers.{i}.mlp.down_proj" for i in range(2)):
        back = torch.from_numpy(expanded(tensors, name, config))
        assert relative_rms(back, before[f"{name}.weight"]) < 0.03  # half a step: (1.05 / 15) / 2
        assert relative_rms(back, before[f"{name}.weight"]) == pytest.approx(errors[f"{name}.weight"], rel=1e-3)


def test_matrices_that_are_not_of_linear_layers_are_refused(tmp_path: Path) -> None:
    _, path = make_tiny("gpt2", tmp_path)
    with pytest.raises(ModelError, match=r"GPT2LMHeadModel keeps its matrices as \[inputs, outputs\]"):
        export(path, tmp_path / "out", quantize="int8")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("scheme", ["int8", "w8a8", "fp8"])
def test_experts_under_mixtrals_names(scheme: str, tmp_path: Path) -> None:
    """As llm-compressor names them, which vLLM reads; transformers 5.23 was seen to read the first and the last."""
    _, path = make_tiny("mixtral", tmp_path)
    report = export(path, tmp_path / "out", quantize=scheme)
    assert report.notes == [NO_TOKENIZER]
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert {name for name in config["ignore"] if "layers" in name} == {
        f"model.layers.{i}.block_sparse_moe.gate" for i in range(3)
    }
    tensors, before, after = load_file(tmp_path / "out" / "model.safetensors"), weights(path), weights(tmp_path / "out")
    for name in (f"model.layers.1.block_sparse_moe.experts.3.w{i}" for i in (1, 2, 3)):
        assert f"{name}.weight_scale" in tensors
        assert 0 < relative_rms(after[f"{name}.weight"], before[f"{name}.weight"]) < 0.04


def test_matrices_that_stay_plain_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("octavo.export.hugging_face.LINEAR", ("_proj.weight",))
    _, path = make_tiny("mixtral", tmp_path)
    (note,) = [note for note in export(path, tmp_path / "out", quantize="int8").notes if "not quantized" in note]
    assert "experts" in note
    assert "gate.weight" not in note
    _, path = make_tiny("llama", tmp_path)
    assert not any("not quantized" in note for note in export(path, tmp_path / "llama-out", quantize="int8").notes)


def test_a_nan_is_not_quantized(tmp_path: Path) -> None:
    model, path = make_blocky(tmp_path)
    model.model.layers[1].mlp.down_proj.weight.data[3, 5] = torch.nan
    model.save_pretrained(path)
    with pytest.raises(ModelError, match=r"layers\.1\.mlp\.down_proj\.weight: .* NaN"):
        export(path, tmp_path / "out", quantize="int8")
    assert sorted(f.name for f in tmp_path.iterdir()) == ["blocky"]
