"""The CPU backend against the reference."""

from __future__ import annotations

import pytest
import torch

from helpers_models import PagedDriver, load_tiny, make_tiny
from octavo.kernels.cpu.onednn import packs_weights
from octavo.kernels.cpu.ops import CpuOps
from octavo.kernels.cpu.panels import Panels
from octavo.kernels.reference.ops import ReferenceOps
from octavo.models.loading import pack_weights, param_bytes

pytestmark = pytest.mark.skipif(not packs_weights(), reason="this CPU has no bfloat16 instructions")


@pytest.mark.parametrize("rows", [1, 2, 7, 32, 130])
@pytest.mark.parametrize(("outputs", "inputs"), [(5, 3), (96, 48), (257, 576)])
@pytest.mark.parametrize("with_bias", [False, True])
def test_a_packed_product_is_the_plain_one(rows, outputs, inputs, with_bias):
    generator = torch.Generator().manual_seed(rows * outputs)
    x, weight, bias = (
        torch.randn(shape, generator=generator).bfloat16() for shape in ((rows, inputs), (outputs, inputs), (outputs,))
    )
    ops = CpuOps()
    packed = ops.pack_linear(weight)
    assert isinstance(packed, Panels)
    found = ops.linear(x, packed, bias if with_bias else None)
    exact = x.double() @ weight.double().T + (bias.double() if with_bias else 0)
    # one rounding of the sum to bfloat16, and one more with a bias
    assert (found.double() - exact).abs().max() <= exact.abs().max() * 2**-7
    assert torch.allclose(found, ReferenceOps().linear(x, weight, bias if with_bias else None), rtol=2**-7, atol=1e-2)


def test_without_a_compiler_onednn_lays_weights_out(monkeypatch):
    monkeypatch.setattr("octavo.kernels.cpu.ops.load_library", lambda: None)
    ops, x, weight = CpuOps(), torch.randn(3, 48).bfloat16(), torch.randn(96, 48).bfloat16()
    packed = ops.pack_linear(weight)
    assert packed.is_mkldnn
    assert torch.allclose(ops.linear(x, packed), ReferenceOps().linear(x, weight), rtol=2**-7, atol=1e-2)
    assert ops.pack_linear(weight.float()).dtype is torch.float32


@pytest.mark.parametrize("name", ["llama-bias", "llama-tied", "qwen3"])
def test_a_packed_model_computes_the_same_and_holds_each_weight_once(tmp_path, name):
    _, path = make_tiny(name, tmp_path)
    plain = load_tiny(path, dtype=torch.bfloat16, ops=ReferenceOps())
    packed = load_tiny(path, dtype=torch.bfloat16, ops=CpuOps())
    before = param_bytes(packed)
    pack_weights(packed)
    copy_of_head = plain.lm_head.weight.nbytes if name == "llama-tied" else 0
    assert before + copy_of_head <= param_bytes(packed) < 1.5 * before + copy_of_head  # panels are padded
    rows = {0: [5, 6, 7, 8], 1: [9]}
    with torch.inference_mode():
        a, b = (PagedDriver(model).step(rows) for model in (plain, packed))
    for request in rows:
        assert torch.allclose(a[request], b[request], rtol=0.05, atol=0.05 * a[request].abs().max().item())
