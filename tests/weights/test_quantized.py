"""Quantized checkpoints of Hugging Face folders against the matrices that an independent writer says they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import helpers_quantized as by
from helpers_models import PagedDriver, load_tiny
from octavo.errors import ModelError
from octavo.kernels.packed import Fp8Weight, Int4Weight, Int8Weight
from octavo.kernels.reference.quantized import dequantize
from octavo.weights.quantized.scheme import parse_scheme, read_scheme
from octavo.weights.safetensors import SafetensorsCheckpoint

PER_TOKEN = {"num_bits": 8, "type": "int", "strategy": "token", "dynamic": True, "symmetric": True}
FLOAT_TOKEN = PER_TOKEN | {"type": "float"}
FLOAT_STATIC = FLOAT_TOKEN | {"strategy": "tensor", "dynamic": False}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": True, "desc_act": False}
GPTQ8 = GPTQ | {"bits": 8}
V2 = {"checkpoint_format": "gptq_v2"}
FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic"}
BLOCKS = FP8 | {"weight_block_size": [32, 32]}
STATIC = FP8 | {"activation_scheme": "static"}
CT4 = by.compressed("pack-quantized", num_bits=4, strategy="group", group_size=32)
CT4_OLD = {**CT4, "compression_version": "0.5"}
CT8 = by.compressed("pack-quantized", strategy="group", group_size=32)

CASES: dict[str, tuple[by.Writer, dict[str, Any], type | None]] = {
    "awq": (by.awq(32), AWQ, Int4Weight),
    "awq-16": (by.awq(16), AWQ | {"version": "GEMM", "modules_to_not_convert": ["lm_head"]}, Int4Weight),
    "gptq": (by.gptq(), GPTQ, Int4Weight),
    "gptq-v2": (by.gptq(version=2), GPTQ | V2, Int4Weight),
    "gptq-asymmetric": (by.gptq(symmetric=False), GPTQ, Int4Weight),
    "gptq-asymmetric-v2": (by.gptq(symmetric=False, version=2), GPTQ | V2, Int4Weight),
    "gptq-act-order": (by.gptq(act_order=True), GPTQ | {"desc_act": True}, Int4Weight),
    "gptq-one-group": (by.gptq(group=96), GPTQ | {"group_size": -1}, Int4Weight),
    "gptq-8": (by.gptq(8), GPTQ8, Int8Weight),
    "gptq-8-asymmetric": (by.gptq(8, symmetric=False), GPTQ8, None),
    "gptq-8-act-order": (by.gptq(8, act_order=True), GPTQ8, None),
    "fp8-blocks": (by.fp8("block", scale="weight_scale_inv"), BLOCKS, Fp8Weight),
    "fp8-tensor": (by.fp8("tensor", inputs="input_scale"), STATIC, Fp8Weight),
    "fp8-mistral": (by.fp8("tensor", scale="weight_scale_inv", inputs="activation_scale"), STATIC, Fp8Weight),
    "fp8-dynamic": (by.fp8("tensor"), FP8 | {"ignored_layers": ["lm_head"]}, Fp8Weight),
    "fbgemm": (by.fp8("channel"), {"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0}, Fp8Weight),
    "ct-int4": (by.pack_quantized(), CT4, Int4Weight),
    "ct-int4-asymmetric": (by.pack_quantized(symmetric=False), CT4, Int4Weight),
    "ct-int4-channel": (by.pack_quantized(group=None), CT4, Int4Weight),
    "ct-int4-act-order": (by.pack_quantized(act_order=True), CT4_OLD, Int4Weight),
    "ct-int8-packed": (by.pack_quantized(8), CT8, Int8Weight),
    "ct-int8-packed-asymmetric": (by.pack_quantized(8, symmetric=False), CT8, None),
    "ct-int8": (by.int_quantized(), by.compressed("int-quantized", PER_TOKEN), Int8Weight),
    "ct-int8-tensor": (by.int_quantized(per_tensor=True), by.compressed("int-quantized", PER_TOKEN), Int8Weight),
    "ct-int8-asymmetric": (by.int_quantized(symmetric=False), by.compressed("int-quantized"), None),
    "ct-fp8": (by.fp8("channel"), by.compressed("float-quantized", FLOAT_TOKEN, type="float"), Fp8Weight),
    "ct-fp8-static": (
        by.fp8("tensor", inputs="input_scale"),
        by.compressed("float-quantized", FLOAT_STATIC, type="float", strategy="tensor"),
        Fp8Weight,
    ),
    "ct-fp8-blocks": (
        by.fp8("block"),
        by.compressed("naive-quantized", FLOAT_TOKEN, type="float", strategy="block", block_structure=[32, 32]),
        Fp8Weight,
    ),
}
"""Name -> writer, configuration, and what a projection is packed as (None: it has no packed form)."""


@pytest.mark.parametrize("name", CASES)
def test_every_matrix_is_what_was_written(tmp_path: Path, name: str) -> None:
    writer, config, packed_as = CASES[name]
    expected = by.write_quantized(tmp_path, writer, config).state_dict()
    found = {tensor.name: tensor for tensor in SafetensorsCheckpoint.open(tmp_path).tensors()}
    assert found.keys() == expected.keys()
    for key, tensor in found.items():
        assert tensor.shape == tuple(expected[key].shape)
        torch.testing.assert_close(tensor.read(torch.float32), expected[key], atol=1e-6, rtol=1e-5)
        packed = tensor.packed()
        assert tensor.packed_kind == (None if packed is None else packed.kind)
        if "_proj" not in key or packed_as is None:
            assert packed is None
        else:
            assert type(packed) is packed_as
            assert packed.shape == tensor.shape
            torch.testing.assert_close(dequantize(packed, torch.float32), expected[key], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", ["awq", "gptq-act-order", "gptq-8-asymmetric", "fp8-blocks", "ct-int4-asymmetric"])
def test_logits_are_transformers_on_the_expanded_weights(tmp_path: Path, name: str) -> None:
    writer, config, _ = CASES[name]
    config = {**config, "activation_scheme": None} if name.startswith("fp8") else config
    theirs = by.write_quantized(tmp_path, writer, config)
    tokens = [1, 5, 95, 7, 7, 64, 2, 33]
    with torch.inference_mode():
        expected = theirs(torch.tensor([tokens])).logits[0]
    ours = PagedDriver(load_tiny(tmp_path)).step({0: tokens})[0]
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-4)


def projection(folder: Path, case: str, leaf: str = "o_proj") -> Any:
    writer, config, _ = CASES[case]
    by.write_quantized(folder, writer, config)
    tensors = SafetensorsCheckpoint.open(folder).tensors()
    return next(tensor.packed() for tensor in tensors if leaf in tensor.name)


@pytest.mark.parametrize("case", ["gptq", "gptq-v2", "ct-int4"])
def test_zeros_in_the_middle_are_not_kept(tmp_path: Path, case: str) -> None:
    assert projection(tmp_path, case).zeros is None


@pytest.mark.parametrize(
    ("case", "rounds", "static"),
    [
        ("fp8-blocks", True, False),
        ("fp8-tensor", True, True),
        ("fp8-dynamic", True, False),
        ("ct-fp8", True, False),
        ("ct-fp8-static", True, True),
        ("ct-int8", True, False),
    ],
)
def test_how_inputs_are_rounded(tmp_path: Path, case: str, rounds: bool, static: bool) -> None:
    packed = projection(tmp_path, case)
    assert packed.quantizes_input is rounds
    if isinstance(packed, Fp8Weight):
        assert (packed.input_scale is not None) is static
        assert not static or packed.input_scale.item() == pytest.approx(0.02)


def test_fixed_int8_inputs_are_left_alone(tmp_path: Path) -> None:
    inputs = PER_TOKEN | {"strategy": "tensor", "dynamic": False}
    by.write_quantized(tmp_path, by.int_quantized(), by.compressed("int-quantized", inputs))
    packed = [tensor.packed() for tensor in SafetensorsCheckpoint.open(tmp_path).tensors()]
    assert all(not weight.quantizes_input for weight in packed if weight is not None)


def test_act_order_sorts_the_columns_by_group(tmp_path: Path) -> None:
    packed = projection(tmp_path, "gptq-act-order")
    group_of = np.random.default_rng(64).permutation(np.arange(64) // 32)
    assert group_of[packed.order.numpy()].tolist() == [0] * 32 + [1] * 32


def test_ragged_groups_are_expanded(tmp_path: Path) -> None:
    """64 columns are no whole number of groups of 40."""
    expected = by.write_quantized(tmp_path, by.gptq(group=40), GPTQ | {"group_size": 40}).state_dict()
    for tensor in SafetensorsCheckpoint.open(tmp_path).tensors():
        assert tensor.packed() is None
        assert tensor.packed_kind is None
        torch.testing.assert_close(tensor.read(torch.float32), expected[tensor.name], atol=1e-6, rtol=1e-5)


def test_scales_of_the_cache_are_no_weights(tmp_path: Path) -> None:
    scales = {
        "model__layers__0__self_attn__k_scale": torch.ones(1),
        "model__layers__1__self_attn__v_scale": torch.ones(1),
    }
    expected = by.write_quantized(tmp_path, by.fp8("tensor"), FP8, **scales).state_dict()
    assert {tensor.name for tensor in SafetensorsCheckpoint.open(tmp_path).tensors()} == expected.keys()


def test_bytes_are_those_on_disk(tmp_path: Path) -> None:
    by.write_quantized(tmp_path, by.gptq(), GPTQ)
    total = sum(tensor.nbytes for tensor in SafetensorsCheckpoint.open(tmp_path).tensors())
    size = (tmp_path / "model.safetensors").stat().st_size
    assert size - 8192 < total < size


def test_the_older_places_of_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"compression_config": CT4}))
    assert read_scheme(tmp_path).kind == "CT"
    (tmp_path / "config.json").write_text("{}")
    assert read_scheme(tmp_path) is None
    (tmp_path / "quantize_config.json").write_text(json.dumps({"bits": 4, "group_size": 128, "desc_act": False}))
    assert read_scheme(tmp_path).kind == "GPTQ"


REFUSED = [
    ({}, "an unnamed method are not supported; accepted: awq, gptq, fp8"),
    ([], "an unnamed method"),
    ({"quant_method": "bitsandbytes"}, "'bitsandbytes' are not supported; accepted: awq"),
    ({"quant_method": 3}, "3 are not supported"),
    (AWQ | {"version": "gemv"}, "version 'gemv'"),
    (AWQ | {"bits": 3}, "bits 3"),
    (AWQ | {"zero_point": False}, "zero_point False"),
    (AWQ | {"bits": "4"}, "quantization_config of awq cannot be used: Expected `int`"),
    (GPTQ | {"bits": 3}, "bits 3"),
    (GPTQ | {"checkpoint_format": "marlin"}, "'marlin'"),
    (GPTQ | {"is_marlin_format": True}, "'marlin'"),
    (FP8 | {"activation_scheme": "sometimes"}, "'sometimes'"),
    (FP8 | {"weight_block_size": [128]}, r"weight_block_size \[128\]"),
    (FP8 | {"weight_block_size": [128, 0]}, r"weight_block_size \[128, 0\]"),
    (by.compressed("nvfp4-pack-quantized"), "'nvfp4-pack-quantized' is not supported; accepted: pack-quantized"),
    (by.compressed("pack-quantized", num_bits=3), "type 'int' with 3 bits"),
    (by.compressed("float-quantized", num_bits=4, type="float"), "type 'float' with 4 bits"),
    (CT8 | {"sparsity_config": {"format": "sparse-24-bitmask"}}, "'sparse-24-bitmask'"),
    (CT8 | {"transform_config": {"R1": {}}}, "transform_config"),
    (CT8 | {"config_groups": {"a": {"weights": {"num_bits": "x"}}}}, "Expected `int`"),
]


@pytest.mark.parametrize(("config", "reason"), REFUSED)
def test_what_is_not_supported_is_named(config: Any, reason: str) -> None:
    with pytest.raises(ModelError, match=reason) as error:
        parse_scheme(config)
    assert "\n" not in str(error.value)


DAMAGE = [
    ("gptq", "scales", None, "lacks scales"),
    ("gptq", "qzeros", None, "lacks qzeros"),
    ("gptq", "g_idx", torch.full((64,), 2, dtype=torch.int32), "numbers out of its 2 groups"),
    ("gptq", "g_idx", torch.zeros(63, dtype=torch.int32), r"g_idx has shape \[63\]; \[64\] was expected"),
    ("gptq", "qzeros", torch.zeros(2, 7, dtype=torch.int32), "7 words of zeros for 64 outputs"),
    ("gptq", "scales", torch.zeros(0, 64), r"qzeros has shape|no groups"),
    ("gptq", "scales", torch.zeros(64), "2 dimensions were expected"),
    ("awq", "qweight", torch.zeros(64, 8), "of kind F32; accepted: I32"),
    ("awq", "scales", torch.zeros(3, 64), "3 groups do not divide its 64 inputs"),
    ("awq", "scales", torch.zeros(0, 64), "0 groups"),
    (
        "fp8-blocks",
        "weight_scale_inv",
        torch.zeros(3, 3),
        "accepted: one number, one for each row, or one for each block",
    ),
    ("fp8-blocks", "weight_scale_inv", None, "lacks weight_scale_inv"),
    ("fp8-tensor", "input_scale", None, "lacks input_scale"),
    ("fp8-tensor", "input_scale", torch.zeros(2), "2 scales"),
    ("fp8-tensor", "weight", torch.zeros(64, 64).to(torch.float8_e5m2), "of kind F8_E5M2; accepted: F8_E4M3"),
    ("ct-int4", "weight_shape", torch.tensor([64, 65]), r"weight_shape is \[64, 65\]"),
    ("ct-int4", "weight_shape", torch.tensor([64]), "weight_shape has shape"),
    ("ct-int4", "weight_scale", torch.zeros(3, 2), "weight_scale has shape"),
    ("ct-int4-asymmetric", "weight_zero_point", torch.zeros(7, 2, dtype=torch.int32), "weight_zero_point has shape"),
    ("ct-int8", "weight", torch.zeros(64, 64, 1, dtype=torch.int8), "2 dimensions"),
    ("ct-int8", "weight_scale", torch.zeros(63, 1), "weight_scale has shape"),
]


def read_all(folder: Path) -> None:
    for tensor in SafetensorsCheckpoint.open(folder).tensors():
        tensor.packed()
        tensor.read(torch.float32)


@pytest.mark.parametrize(("case", "leaf", "replacement", "reason"), DAMAGE)
def test_damaged_parts_are_named(
    tmp_path: Path, case: str, leaf: str, replacement: torch.Tensor | None, reason: str
) -> None:
    from safetensors.torch import load_file

    writer, config, _ = CASES[case]
    by.write_quantized(tmp_path, writer, config)
    tensors = load_file(tmp_path / "model.safetensors")
    name = f"model.layers.0.self_attn.o_proj.{leaf}"
    del tensors[name]
    if replacement is not None:
        tensors[name] = replacement
    by.save_folder(tmp_path, json.loads((tmp_path / "config.json").read_text()), tensors)
    with pytest.raises(ModelError, match=reason) as error:
        read_all(tmp_path)
    assert "o_proj" in str(error.value)
    assert "\n" not in str(error.value)
