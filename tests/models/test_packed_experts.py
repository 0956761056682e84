"""Mixtures of experts that are quantized when they are loaded, or stay as the file has packed them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import helpers_models
import helpers_quantized as writers
from helpers_models import PagedDriver, make_tiny
from octavo.kernels import for_device
from octavo.kernels.packed import Fp8Weight, Int4Weight, Int8Weight, PackedWeight, PerExpert, StackedWeight
from octavo.kernels.packed_parts import take_expert
from octavo.kernels.reference.ops import ReferenceOps
from octavo.kernels.reference.quantized import dequantize
from octavo.layers.build import Build, Packing
from octavo.layers.experts import ExpertsMatrix
from octavo.models.loading import init_dummy, load_weights, pack_weights, param_bytes
from octavo.models.packing import describe_packing, loaded_bytes
from octavo.models.registry import build_model
from octavo.parallel import Shard
from octavo.quantization.pack import quantize
from octavo.quantization.schemes import SCHEMES
from octavo.weights.safetensors import SafetensorsCheckpoint

KEPT = Packing(keeps=lambda kind: True, must_keep=True)
TOKENS = {0: list(range(2, 20)), 1: [9, 5]}
SIZES = {
    "hidden_size": 64,
    "moe_intermediate_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}


def tiny(name: str, folder: Path) -> SafetensorsCheckpoint:
    """A mixture whose matrices have whole groups of 32."""
    kept = helpers_models.TINY[name]
    options = kept.to_dict() | SIZES | {"mlp_only_layers": []}
    helpers_models.TINY[name] = type(kept)(**options, attn_implementation="eager")
    try:
        return SafetensorsCheckpoint.open(make_tiny(name, folder)[1])
    finally:
        helpers_models.TINY[name] = kept


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    return tiny("qwen3-moe", tmp_path_factory.mktemp("qwen"))


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory):
    return tiny("mixtral", tmp_path_factory.mktemp("mixtral"))


def load(checkpoint, packing=None, shard=None, ops=None, dtype=torch.float32):
    build = Build(ops or ReferenceOps(), shard or Shard(), dtype=dtype, packing=packing or Packing())
    model = build_model(checkpoint.config, build, 64)
    load_weights(model, checkpoint.tensors())
    return model


def logits(model):
    return torch.cat(list(PagedDriver(model).step(TOKENS).values()))


def stacks(model):
    return {name: module for name, module in model.named_modules() if isinstance(module, ExpertsMatrix)}


def expanded(model):
    """The packed matrices as plain ones of the same values."""
    for module in model.modules():
        if isinstance(getattr(module, "packed", None), PackedWeight):
            module.packed = dequantize(module.packed, torch.float32)
    return model


@pytest.mark.parametrize("name", SCHEMES)
def test_each_experts_matrix_is_quantized_as_if_it_were_alone(qwen, name):
    model, plain = load(qwen, Packing(SCHEMES[name])), load(qwen)
    assert len(stacks(model)) == 4
    for path, module in stacks(model).items():
        whole = plain.get_submodule(path).weight.data
        assert module.weight.numel() == 0
        assert module.packed.nbytes < whole.nbytes / 2
        for e, one in enumerate(whole.chunk(module.count)):
            alone, mine = quantize(one, module.scheme), take_expert(module.packed, e, module.count)
            assert torch.equal(dequantize(mine, torch.float32), dequantize(alone, torch.float32))
    assert describe_packing(model, SCHEMES[name]) == ""


@pytest.mark.parametrize("name", ["int8", "w8a8", "int4-g32", "fp8-tensor", "fp8-w8a8"])
@pytest.mark.parametrize("device_ops", [ReferenceOps, lambda: for_device("cpu")], ids=["reference", "cpu"])
def test_the_model_computes_with_the_rounded_weights(mixtral, name, device_ops):
    model = load(mixtral, Packing(SCHEMES[name]), ops=device_ops())
    rounds, same = SCHEMES[name].quantizes_input, load(mixtral, Packing(SCHEMES[name]))
    expected = logits(same if rounds else expanded(same))
    pack_weights(model)
    actual = logits(model)
    # Where x is rounded, too, a last bit may take it to the next step of 8 bits.
    assert (actual - expected).norm() < (0.02 if rounds else 1e-4) * expected.norm()
    assert 1e-3 < (actual - logits(load(mixtral))).norm() / expected.norm() < 0.5


def test_a_cpu_has_each_expert_in_its_own_form(qwen):
    ops = for_device("cpu")
    for packing in (Packing(), Packing(SCHEMES["int4-g32"])):
        model = load(qwen, packing, ops=ops, dtype=torch.bfloat16)
        plain = load(qwen, packing, dtype=torch.bfloat16)
        pack_weights(model)
        for path, module in stacks(model).items():
            assert isinstance(module.packed, PerExpert)
            assert len(module.packed.parts) == 7
            assert module.packed.shape == plain.get_submodule(path).operand.shape
            assert module.weight.numel() == 0
        a, b = logits(model), logits(plain)
        assert (a - b).norm() < 0.03 * b.norm()


@pytest.mark.parametrize("name", SCHEMES)
def test_dummy_weights_have_the_same_forms(qwen, name):
    packing = Packing(SCHEMES[name])
    model = build_model(qwen.config, Build(ReferenceOps(), packing=packing), 64)
    init_dummy(model, 1)
    for path, real in stacks(load(qwen, packing)).items():
        dummy = model.get_submodule(path)
        assert (type(dummy.packed), dummy.packed.shape) == (type(real.packed), real.packed.shape)
        assert dummy.packed.nbytes == real.packed.nbytes
    assert logits(model).isfinite().all()


@pytest.mark.parametrize("name", [None, "int8", "int4", "fp8"])
def test_bytes_before_and_after(qwen, name):
    packing = Packing(SCHEMES[name] if name else None)
    build = Build(ReferenceOps(), device=torch.device("meta"), packing=packing)
    estimate, actual = (
        loaded_bytes(build_model(qwen.config, build, 1), packing),
        param_bytes(load(qwen, packing)),
    )
    largest = 4 * 7 * 64 * 64  # one layer's gates and values
    assert actual <= estimate <= 1.05 * actual + (largest if name else 0)


# ---------------------------------------------------------------- as the file has them

WRITERS = {
    "awq": (writers.awq(32), {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm"}, Int4Weight),
    "gptq": (writers.gptq(), {"quant_method": "gptq", "bits": 4, "group_size": 32}, Int4Weight),
    "act-order": (writers.gptq(act_order=True), {"quant_method": "gptq", "bits": 4, "desc_act": True}, StackedWeight),
    "fp8": (writers.fp8("tensor"), {"quant_method": "fp8"}, Fp8Weight),
    "fp8-block": (
        writers.fp8("block", scale="weight_scale_inv"),
        {"quant_method": "fp8", "weight_block_size": [32, 32], "activation_scheme": "dynamic"},
        Fp8Weight,
    ),
    "ct-int4": (writers.pack_quantized(), writers.compressed("pack-quantized", num_bits=4), Int4Weight),
    "ct-int8": (writers.pack_quantized(8, None), writers.compressed("pack-quantized"), Int8Weight),
    "ct-w8a8": (
        writers.int_quantized(),
        writers.compressed("int-quantized", {"num_bits": 8, "type": "int", "strategy": "token", "dynamic": True}),
        Int8Weight,
    ),
}
"""Name -> how a matrix is written, what the configuration says, and what a layer's experts become."""


def requantized(checkpoint: SafetensorsCheckpoint, folder: Path, name: str) -> SafetensorsCheckpoint:
    """The same checkpoint with the experts' matrices and those of attention written in another way."""
    writer, config, _ = WRITERS[name]
    tensors = {}
    for key, tensor in load_file(checkpoint.path / "model.safetensors").items():
        if "experts" in key or "_proj" in key:
            base = key.removesuffix(".weight")
            tensors |= {f"{base}.{leaf}": part.contiguous() for leaf, part in writer(tensor.numpy())[0].items()}
        else:
            tensors[key] = tensor
    own = json.loads((checkpoint.path / "config.json").read_text()) | {"quantization_config": config}
    (folder / "config.json").write_text(json.dumps(own))
    save_file(tensors, folder / "model.safetensors")
    return SafetensorsCheckpoint.open(folder)


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("family", ["qwen", "mixtral"])
def test_packed_experts_of_a_file_stay_packed(family, name, tmp_path, request):
    checkpoint = requantized(request.getfixturevalue(family), tmp_path, name)
    kept, plain = load(checkpoint, KEPT), load(checkpoint)
    for path, module in stacks(kept).items():
        if name != "act-order" or path.endswith("gate_up_proj"):  # a single group has no order
            assert isinstance(module.packed, WRITERS[name][2])
        assert torch.equal(dequantize(module.packed, torch.float32), plain.get_submodule(path).weight.data)
    assert param_bytes(kept) < param_bytes(plain)
    a, b, rounds = logits(kept), logits(plain), name in ("ct-w8a8", "fp8", "fp8-block")  # x, too
    assert (a - b).norm() < (0.15 if rounds else 1e-4) * b.norm()
    on_cpu = load(checkpoint, KEPT, ops=for_device("cpu"))
    pack_weights(on_cpu)
    assert (logits(on_cpu) - a).norm() < (0.02 if rounds else 1e-4) * b.norm()
