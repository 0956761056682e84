"""Rotation and the write into the cache, against the reference (which is tested against complex numbers)."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from octavo.kernels.forward_batch import ForwardBatch, KVLayer
from octavo.kernels.reference.ops import ReferenceOps
from octavo.kernels.triton.rotary import rotate_and_store

TOLERANCE = {torch.float32: 3e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
LARGE = pytest.mark.gpu
HEADS = [(4, 1, 64), (3, 3, 80), (1, 1, 96), (8, 2, 128), (9, 3, 64), (2, 1, 256), (5, 1, 6)]
CASES = [(t, *heads) for t, heads in zip([1, 5, 7, 3, 2, 4, 6], HEADS, strict=True)]
CASES += [pytest.param(t, *heads, marks=LARGE) for t in (1, 1000) for heads in [(32, 8, 128), (32, 8, 64), (71, 1, 64)]]
EPS, BLOCK_SIZE = 1e-6, 16


class Step:
    """Random tokens at random positions, for any slots of a cache that holds random numbers already."""

    def __init__(self, t: int, hq: int, hk: int, d: int, dtype: torch.dtype, normed: bool) -> None:
        generator = torch.Generator().manual_seed(t * hq * d)
        self.blocks = -(-t // BLOCK_SIZE) + 2
        self.qkv = torch.randn(t, (hq + 2 * hk) * d, generator=generator).to(dtype)
        self.positions = torch.randint(0, 500, (t,), generator=generator)
        self.slots = torch.randperm(self.blocks * BLOCK_SIZE, generator=generator)[:t]
        angles = torch.arange(500)[:, None] * torch.logspace(0, -4, d // 2)
        self.cos_sin = torch.cat((angles.cos(), angles.sin()), dim=-1)
        self.norms = [torch.randn(d, generator=generator).to(dtype) if normed else None for _ in range(2)]
        self.cache = torch.randn(2, self.blocks, hk, BLOCK_SIZE, d, generator=generator).to(dtype)

    def kv(self, dtype: torch.dtype, device: str = "cpu") -> KVLayer:
        keys, values = self.cache.clone().to(device, dtype)
        return KVLayer(keys, values)

    def expected(self, kv: KVLayer, dtype: torch.dtype) -> Tensor:
        """The reference's queries, computed in ``dtype``."""
        t = len(self.qkv)
        batch = ForwardBatch(
            token_ids=torch.zeros(t, dtype=torch.int64),
            positions=self.positions,
            slot_mapping=self.slots,
            query_lens=[1] * t,
            context_lens=[1] * t,
            block_tables=torch.zeros(t, 1, dtype=torch.int64),
            logit_indices=torch.arange(0),
            kv_cache=[kv],
            block_size=BLOCK_SIZE,
        )
        norms = [None if weight is None else weight.to(dtype) for weight in self.norms]
        ops = ReferenceOps()
        return ops.rotate_and_store(self.qkv.to(dtype), ops.plan_attention(batch), self.cos_sin, *norms, EPS, kv)

    def run(self, device: str, kv: KVLayer, index: torch.dtype = torch.int64) -> tuple[Tensor, Tensor]:
        """Our queries, and ``qkv`` afterwards."""
        qkv = self.qkv.to(device, copy=True)
        norms = [None if weight is None else weight.to(device) for weight in self.norms]
        where = self.positions.to(device, index), self.slots.to(device, index)
        return rotate_and_store(qkv, *where, self.cos_sin.to(device), *norms, EPS, kv), qkv


@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize(("t", "hq", "hk", "d"), CASES)
def test_like_the_reference(device, dtype, t, hq, hk, d, normed):
    step = Step(t, hq, hk, d, dtype, normed)
    exact, kv = step.kv(torch.float32), step.kv(dtype, device)
    expected = step.expected(exact, torch.float32)
    q, qkv = step.run(device, kv)
    tolerance = {"rtol": TOLERANCE[dtype], "atol": TOLERANCE[dtype]}
    assert (q.shape, q.dtype) == ((t, hq, d), dtype)
    torch.testing.assert_close(q.cpu().float(), expected, **tolerance)
    torch.testing.assert_close(kv.keys.cpu().float(), exact.keys, **tolerance)
    assert torch.equal(kv.values.cpu().float(), exact.values)  # copied, and what was there before is still there

    heads = qkv.view(t, -1, d)
    block, offset = (step.slots // BLOCK_SIZE).to(device), (step.slots % BLOCK_SIZE).to(device)
    assert torch.equal(heads[:, :hq], q)
    assert torch.equal(heads[:, hq : hq + hk], kv.keys[block, :, offset])  # the same bits as in the cache
    assert torch.equal(heads[:, hq + hk :].cpu(), step.qkv.view(t, -1, d)[:, hq + hk :])


def test_a_cache_of_another_dtype(device):
    step = Step(5, 2, 1, 64, torch.float32, normed=False)
    exact, kv = step.kv(torch.float16), step.kv(torch.float16, device)
    step.expected(exact, torch.float32)
    step.run(device, kv)
    torch.testing.assert_close(kv.keys.cpu(), exact.keys, rtol=1e-3, atol=1e-3)
    assert torch.equal(kv.values.cpu(), exact.values)


def test_int32_indices_and_slots_of_padding(device, dtype):
    step = Step(6, 2, 1, 64, dtype, normed=True)
    wide, narrow = step.kv(dtype, device), step.kv(dtype, device)
    assert torch.equal(step.run(device, wide)[0], step.run(device, narrow, torch.int32)[0])
    assert torch.equal(wide.keys, narrow.keys)
    step.slots = torch.full_like(step.slots, -1)
    untouched = step.kv(dtype, device)
    step.run(device, untouched)
    assert torch.equal(untouched.keys.cpu(), step.cache[0])
    assert torch.equal(untouched.values.cpu(), step.cache[1])


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # the interpreter's numpy
def test_values_that_are_not_finite_are_copied_as_they_are(device):
    step = Step(1, 1, 1, 64, torch.float32, normed=True)
    step.qkv[0, -64:] = torch.tensor([torch.inf, -torch.inf]).repeat(32)
    kv = step.kv(torch.float32, device)
    q, _ = step.run(device, kv)
    assert q.isfinite().all()
    block, offset = divmod(int(step.slots[0]), BLOCK_SIZE)
    assert torch.equal(kv.values[block, 0, offset].cpu(), step.qkv[0, -64:])


def test_no_tokens(device):
    step = Step(1, 2, 1, 64, torch.float32, normed=False)
    step.qkv, step.positions, step.slots = step.qkv[:0], step.positions[:0], step.slots[:0]
    assert step.run(device, step.kv(torch.float32, device))[0].shape == (0, 2, 64)
