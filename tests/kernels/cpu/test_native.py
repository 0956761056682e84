"""The C kernels for rows against formulas in float64. What they cannot take must go to the reference, with the same
result.
"""

from __future__ import annotations

import math

import pytest
import torch

from helpers_native import DTYPES, Spy, close, randn, spied
from octavo.kernels.cpu.build import load_library
from octavo.kernels.cpu.ops import CpuOps
from octavo.kernels.forward_batch import ForwardBatch, KVLayer
from octavo.kernels.reference.ops import ReferenceOps

pytestmark = pytest.mark.skipif(load_library() is None, reason="no C compiler")


@DTYPES
@pytest.mark.parametrize(("rows", "size"), [(1, 16), (3, 576), (70, 1024)])
def test_add_rms_norm(native, dtype, rows, size):
    x, weight = randn(rows, size, dtype=dtype) * 3, randn(size, seed=1, dtype=dtype)
    first, stream = randn(rows, size, seed=2, dtype=dtype), randn(rows, size, seed=3)
    for residual in (first, stream):
        total = x.float() + residual.float()
        ops, calls = spied(native)
        normed, found = ops.add_rms_norm(x.clone(), residual.clone(), weight, 1e-5)
        assert calls == ["add_rms_norm"]
        assert torch.equal(found, total)
        exact = total.double()
        exact = exact / torch.sqrt((exact * exact).mean(-1, keepdim=True) + 1e-5) * weight.double()
        close(normed, exact, 3)


def test_the_first_residual_is_left_as_it_was():
    embedding = randn(2, 32, dtype=torch.bfloat16)
    before = embedding.clone()
    CpuOps().add_rms_norm(randn(2, 32, seed=1, dtype=torch.bfloat16), embedding, randn(32).bfloat16(), 1e-5)
    assert torch.equal(embedding, before)


@DTYPES
@pytest.mark.parametrize(("rows", "size"), [(1, 32), (3, 3072), (60, 1536)])
def test_silu_mul(native, dtype, rows, size):
    gate_up = randn(rows, size, dtype=dtype) * 6
    gate_up[0, :8] = torch.tensor([0.0, -0.0, 100.0, -100.0, 1e30, -1e30, 88.5, -88.5]).to(dtype)
    gate, up = gate_up.double().chunk(2, dim=-1)
    ops, calls = spied(native)
    found = ops.silu_mul(gate_up)
    assert calls == ["gated"]
    close(found, (gate * torch.sigmoid(gate) * up), 2)


@DTYPES
def test_nan_stays_nan(dtype):
    gate_up = randn(2, 32, dtype=dtype)
    gate_up[1, 3] = torch.nan
    gated = CpuOps().silu_mul(gate_up)
    assert gated[0].isfinite().all()
    assert gated[1, 3].isnan()
    assert gated[1].isnan().sum() == 1
    x = randn(2, 32, dtype=dtype)
    x[1, 0] = torch.nan
    normed, total = CpuOps().add_rms_norm(x, randn(2, 32), randn(32, dtype=dtype), 1e-5)
    assert normed[0].isfinite().all()
    assert normed[1].isnan().all()
    assert total[1].isnan().sum() == 1


@DTYPES
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize(
    ("hq", "hk", "d", "fits"), [(9, 3, 64, True), (4, 1, 32, True), (2, 2, 128, True), (2, 1, 48, False)]
)
def test_rotate_and_store(native, dtype, norm, hq, hk, d, fits):
    tokens, block_size, blocks = 5, 16, 4
    qkv = randn(tokens, (hq + 2 * hk) * d, dtype=dtype)
    positions = torch.tensor([0, 7, 8, 40, 3])
    slots = torch.tensor([63, 0, 17, 16, 5])
    angles = torch.arange(50)[:, None] * torch.linspace(1.0, 0.05, d // 2)
    cos_sin = torch.cat((angles.cos(), angles.sin()), -1)
    norms = [randn(d, seed=s, dtype=dtype) if norm else None for s in (5, 6)]
    results = []
    for ops in (ReferenceOps(), CpuOps()):
        kv = KVLayer.zeros(blocks, block_size, hk, d, dtype)
        batch = ForwardBatch(
            token_ids=positions,
            positions=positions,
            slot_mapping=slots,
            query_lens=[1] * tokens,
            context_lens=[1] * tokens,
            block_tables=torch.zeros(tokens, 1, dtype=torch.int64),
            logit_indices=positions,
            kv_cache=[kv],
            block_size=block_size,
        )
        spy = None
        if isinstance(ops, CpuOps):
            spy = ops._native = Spy(native)
        plan = ops.plan_attention(batch)
        q = ops.rotate_and_store(qkv.clone(), plan, cos_sin, *norms, 1e-6, kv)
        results.append((q.clone(), *kv.tensors))
        if spy is not None:
            assert spy.calls == ["rotate_and_store"] * fits
    for expected, found in zip(*results, strict=True):
        assert found.shape == expected.shape
        close(found, expected, 2)


@DTYPES
@pytest.mark.parametrize(("rows", "size"), [(1, 16), (3, 576), (70, 1024)])
@pytest.mark.parametrize("threads", [1, 3])
def test_rms_norm(native, dtype, rows, size, threads, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    x, weight = randn(rows, size, dtype=dtype) * 30, randn(size, seed=1, dtype=dtype)
    ops, calls = spied(native)
    found = ops.rms_norm(x, weight, 1e-5)
    assert calls == ["rms_norm"]
    exact = x.double()
    close(found, exact / torch.sqrt((exact * exact).mean(-1, keepdim=True) + 1e-5) * weight.double(), 3)
    assert torch.equal(ops.rms_norm(x[:, None], weight, 1e-5)[:, 0], found)


@DTYPES
@pytest.mark.parametrize(("rows", "size"), [(1, 16), (5, 576)])
@pytest.mark.parametrize("starts", [False, True])
def test_add_layer_norm(native, dtype, rows, size, starts):
    x, residual = randn(rows, size, dtype=dtype) * 3 + 5, None if starts else randn(rows, size, seed=3) * 4
    weight, bias = randn(size, seed=1, dtype=dtype), randn(size, seed=2, dtype=dtype)
    total = x.float() if residual is None else x.float() + residual
    ops, calls = spied(native)
    normed, found = ops.add_layer_norm(x, residual, weight, bias, 1e-5)
    assert calls == ["add_layer_norm"]
    assert torch.equal(found, total)
    exact = torch.nn.functional.layer_norm(total.double(), (size,), weight.double(), bias.double(), 1e-5)
    close(normed, exact, 3)


HARD = [0.0, -0.0, 100.0, -100.0, 1e30, -1e30, 88.5, -88.5, 1e-20, -1e-20, 13.0, -13.0, 0.5, -3.0, 4.0, -5.5]


def gelu(x: torch.Tensor, approximate: bool) -> torch.Tensor:
    if approximate:
        return x * 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return x * 0.5 * torch.erfc(-x / math.sqrt(2))


@DTYPES
@pytest.mark.parametrize("approximate", [False, True])
def test_gelu(native, dtype, approximate):
    gate_up = randn(3, 96, dtype=dtype) * 4
    gate_up[0, :16] = torch.tensor(HARD).to(dtype)
    gate, up = gate_up.double().chunk(2, dim=-1)
    ops, calls = spied(native)
    close(ops.gelu_mul(gate_up, approximate=approximate), gelu(gate, approximate) * up, 4)
    close(ops.gelu(gate_up.clone(), approximate=approximate), gelu(gate_up.double(), approximate), 4)
    assert calls == ["gated", "gelu"]


def test_nan_stays_nan_in_its_place(native):
    x = randn(2, 64)
    x[1, 3] = torch.nan
    ops, _ = spied(native)
    for found in (ops.gelu_mul(x, approximate=True), ops.gelu_mul(x, approximate=False), ops.silu_mul(x)):
        assert found[1, 3].isnan()
        assert found.isnan().sum() == 1
    weight = torch.ones(64)
    for found in (ops.rms_norm(x, weight, 1e-5), ops.add_layer_norm(x, None, weight, weight, 1e-5)[0]):
        assert found[0].isfinite().all()
        assert found[1].isnan().all()


def test_rows_that_do_not_fit_go_to_the_reference():
    ops, calls = spied()
    x, half, odd = randn(2, 32), randn(2, 32, dtype=torch.float16), randn(2, 12)
    expected = ReferenceOps()
    assert torch.equal(ops.gelu(half.clone(), approximate=True), expected.gelu(half, approximate=True))
    assert torch.equal(ops.gelu_mul(odd, approximate=False), expected.gelu_mul(odd, approximate=False))
    for given, weight in ((odd, odd[0]), (x.bfloat16(), x[0]), (half, half[0])):
        assert torch.equal(ops.rms_norm(given, weight, 1e-5), expected.rms_norm(given, weight, 1e-5))
        found = ops.add_layer_norm(given, None, weight, weight, 1e-5)[0]
        assert torch.equal(found, expected.add_layer_norm(given, None, weight, weight, 1e-5)[0])
    assert calls == []
