"""The reference's small operations against the formulas, in float64 or plain Python."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from octavo.kernels import for_device
from octavo.kernels.forward_batch import ForwardBatch, KVLayer

OPS = for_device("cpu")
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 1.6e-2, torch.float16: 2e-3}
DTYPES = pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def close(actual: Tensor, expected: Tensor, factor: float = 1.0) -> None:
    tolerance = TOLERANCE[actual.dtype] * factor
    torch.testing.assert_close(actual.double(), expected.double(), rtol=tolerance, atol=tolerance)


def norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    x = x.double()
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + eps) * weight.double()


@DTYPES
def test_embedding_and_linear(dtype):
    weight, bias, ids = randn(7, 5, dtype=dtype), randn(7, seed=2, dtype=dtype), torch.tensor([6, 0, 0, 3])
    assert torch.equal(OPS.embedding(ids, weight), torch.stack([weight[i] for i in ids.tolist()]))
    x = randn(4, 5, seed=1, dtype=dtype)
    close(OPS.linear(x, weight), x.double() @ weight.double().T, 4)
    close(OPS.linear(x, weight, bias), x.double() @ weight.double().T + bias.double(), 4)


@DTYPES
def test_rms_norm(dtype):
    x, weight = randn(3, 6, dtype=dtype) * 9, randn(6, seed=1, dtype=dtype)
    close(OPS.rms_norm(x, weight, 1e-5), norm(x, weight, 1e-5))
    assert torch.equal(OPS.rms_norm(torch.zeros_like(x), weight, 1e-5), torch.zeros_like(x))


def test_rms_norm_of_large_half_precision_numbers_does_not_overflow():
    x = torch.full((1, 8), 3e4, dtype=torch.float16)
    close(OPS.rms_norm(x, torch.ones(8, dtype=torch.float16), 1e-6), torch.ones(1, 8))


@DTYPES
def test_add_rms_norm(dtype):
    x, residual, weight = (
        (randn(3, 6, seed=s, dtype=dtype) for s in range(2)),
        None,
        randn(6, seed=2, dtype=dtype),
    )
    x, residual = x
    total = x.float() + residual.float()
    normed, stream = OPS.add_rms_norm(x.clone(), residual.clone(), weight, 1e-6)
    assert torch.equal(stream, total)
    assert normed.dtype is dtype
    close(normed, norm(total.double(), weight, 1e-6).to(dtype))
    again, _ = OPS.add_rms_norm(x.clone(), total.clone(), weight, 1e-6)
    close(again, norm((total + x.float()).double(), weight, 1e-6).to(dtype))


@DTYPES
def test_silu_mul(dtype):
    gate_up = randn(5, 8, dtype=dtype) * 3
    gate, up = gate_up.double()[:, :4], gate_up.double()[:, 4:]
    close(OPS.silu_mul(gate_up), gate / (1 + torch.exp(-gate)) * up, 2)


@DTYPES
@pytest.mark.parametrize("approximate", [False, True])
def test_gelu(dtype, approximate):
    gate_up = randn(5, 8, dtype=dtype) * 3
    gate, up = gate_up.double()[:, :4], gate_up.double()[:, 4:]
    inner = math.sqrt(2 / math.pi) * (gate + 0.044715 * gate**3)
    share = (1 + torch.tanh(inner)) / 2 if approximate else (1 + torch.erf(gate / math.sqrt(2))) / 2
    close(OPS.gelu(gate_up[:, :4].clone(), approximate=approximate), gate * share, 2)
    close(OPS.gelu_mul(gate_up, approximate=approximate), gate * share * up, 4)


@DTYPES
@pytest.mark.parametrize("first", [True, False])
def test_add_layer_norm(dtype, first):
    x, residual = randn(3, 6, dtype=dtype) + 2, None if first else randn(3, 6, seed=1)
    weight, bias = randn(6, seed=2, dtype=dtype), randn(6, seed=3, dtype=dtype)
    total = x.double() + (0 if first else residual.double())
    normed, stream = OPS.add_layer_norm(x.clone(), None if first else residual.clone(), weight, bias, 1e-5)
    close(stream, total)
    spread = total - total.mean(-1, keepdim=True)
    close(normed, spread / (spread.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight.double() + bias.double(), 4)
    assert normed.dtype is dtype


def test_a_norm_whose_weights_are_float32_does_not_round_them():
    x, weight = randn(2, 6, dtype=torch.bfloat16), 1 + randn(6, seed=1) / 1000
    found = OPS.rms_norm(x, weight, 1e-6)
    assert torch.equal(found, norm(x, weight, 1e-6).bfloat16())
    again, total = OPS.add_rms_norm(x.clone(), torch.zeros(2, 6), weight, 1e-6)
    assert torch.equal(again, found)
    assert total.dtype is torch.float32


@pytest.mark.parametrize("normalise", [False, True])
def test_top_experts(normalise):
    logits = torch.tensor([[0.0, 3.0, 1.0, 2.0], [5.0, 0.0, 0.0, 4.0]])
    weights, ids = OPS.top_experts(logits, 2, normalise=normalise)
    assert ids.tolist() == [[1, 3], [0, 3]]
    for row, found in zip(logits.tolist(), weights.tolist(), strict=True):
        best = sorted((math.exp(x) for x in row), reverse=True)[:2]
        whole = sum(best) if normalise else sum(math.exp(x) for x in row)
        assert found == pytest.approx([x / whole for x in best])


@DTYPES
def test_experts(dtype):
    x, gate_up, down = (
        randn(4, 6, dtype=dtype),
        randn(3, 10, 6, seed=1, dtype=dtype),
        randn(3, 6, 5, seed=2, dtype=dtype),
    )
    ids, weights = torch.tensor([[0, 2], [2, 0], [0, 2], [2, 0]]), torch.rand(4, 2)  # nobody wants the second
    expected = torch.zeros(4, 6, dtype=torch.float64)
    for t in range(4):
        for p, e in zip(weights[t].double(), ids[t].tolist(), strict=True):
            gate, up = (gate_up[e].double() @ x[t].double()).chunk(2)
            expected[t] += p * (down[e].double() @ (gate / (1 + torch.exp(-gate)) * up))
    found = OPS.experts(x, gate_up.flatten(0, 1), down.flatten(0, 1), weights, ids)
    assert found.dtype is dtype
    assert (found.double() - expected).norm() < TOLERANCE[dtype] * 4 * expected.norm()


def angle_table(max_positions: int, d: int) -> Tensor:
    angles = torch.arange(max_positions)[:, None] * torch.linspace(1.0, 0.05, d // 2)
    return torch.cat((angles.cos(), angles.sin()), -1)


def turned(head: list[float], position: int, table: Tensor) -> list[float]:
    """Each pair (x[i], x[i + D/2]) as a complex number times e^(i * angle)."""
    half = len(head) // 2
    pairs = [
        complex(head[i], head[i + half]) * complex(table[position, i], table[position, i + half]) for i in range(half)
    ]
    return [z.real for z in pairs] + [z.imag for z in pairs]


def rotated(qkv, positions, table, slots, kv, norms=(None, None), eps=0.0) -> Tensor:
    """``rotate_and_store`` of tokens at any positions, written to any slots."""
    count = len(positions)
    batch = ForwardBatch(
        token_ids=torch.zeros(count, dtype=torch.int64),
        positions=positions,
        slot_mapping=slots,
        query_lens=[1] * count,
        context_lens=[1] * count,
        block_tables=torch.zeros(count, 1, dtype=torch.int64),
        logit_indices=torch.arange(0),
        kv_cache=[kv],
        block_size=kv.keys.shape[2],
    )
    return OPS.rotate_and_store(qkv, OPS.plan_attention(batch), table, *norms, eps, kv)


@DTYPES
@pytest.mark.parametrize("normed", [False, True])
def test_rotate_and_store(dtype, normed):
    t, hq, hk, d, block_size = 5, 4, 2, 6, 4
    qkv, table = randn(t, (hq + 2 * hk) * d, dtype=dtype), angle_table(50, d)
    positions, slots = torch.tensor([0, 1, 2, 49, 7]), torch.tensor([13, 3, 4, 0, 22])
    q_norm, k_norm = (randn(d, seed=s, dtype=dtype) if normed else None for s in (1, 2))
    kv = KVLayer.zeros(6, block_size, hk, d, dtype)
    heads = qkv.clone().view(t, -1, d)
    q = rotated(qkv, positions, table, slots, kv, (q_norm, k_norm), 1e-6)
    assert q.shape == (t, hq, d)
    for i in range(t):
        for h in range(hq + hk):
            weight = q_norm if h < hq else k_norm
            head = heads[i, h] if weight is None else norm(heads[i, h], weight, 1e-6)
            expected = torch.tensor(turned(head.tolist(), int(positions[i]), table))
            block, offset = divmod(int(slots[i]), block_size)
            close(q[i, h] if h < hq else kv.keys[block, h - hq, offset], expected, 4)
        block, offset = divmod(int(slots[i]), block_size)
        assert torch.equal(kv.values[block, :, offset], heads[i, hq + hk :])
    written = torch.zeros(6 * block_size, dtype=torch.bool)
    written[slots] = True
    by_slot = kv.keys.transpose(1, 2).flatten(0, 1).flatten(1)
    assert torch.equal(by_slot.ne(0).any(-1), written)


def test_cache_of_another_dtype_is_written_converted():
    kv = KVLayer.zeros(2, 4, 1, 2, torch.bfloat16)
    qkv = randn(1, 6)
    rotated(qkv, torch.tensor([0]), angle_table(2, 2), torch.tensor([5]), kv)
    assert torch.equal(kv.values[1, 0, 1], qkv[0, 4:].bfloat16())


def test_rotation_keeps_length_and_depends_on_distance_only():
    table, kv = angle_table(40, 8), KVLayer.zeros(40, 1, 1, 8, torch.float32)
    qkv = randn(1, 24).expand(40, 24).clone()
    everywhere = torch.arange(40)
    q = rotated(qkv, everywhere, table, everywhere, kv)[:, 0]
    close(q.norm(dim=-1), torch.full((40,), float(qkv[0, :8].norm())), 10)
    products = q @ kv.keys[:, 0, 0].T
    assert math.isclose(products[12, 5], products[37, 30], rel_tol=1e-4, abs_tol=1e-4)
