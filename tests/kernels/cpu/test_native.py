"""The C kernels against formulas in float64. What they cannot take must go to the reference, with the same result."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

from helpers_paged import PagedCase
from octavo.kernels.cpu import attention_plan
from octavo.kernels.cpu.attention_plan import num_parts
from octavo.kernels.cpu.build import load_library
from octavo.kernels.cpu.ops import CpuOps
from octavo.kernels.forward_batch import ForwardBatch, KVLayer
from octavo.kernels.reference.ops import ReferenceOps

pytestmark = pytest.mark.skipif(load_library() is None, reason="no C compiler")

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 1.6e-2}
RAGGED = [(1, 1), (1, 16), (1, 17), (5, 5), (1, 37), (3, 19), (1, 15), (8, 300), (1, 32), (40, 41), (1, 500), (2, 2)]


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def close(actual: Tensor, expected: Tensor, factor: float = 1.0) -> None:
    tolerance = TOLERANCE[actual.dtype] * factor
    torch.testing.assert_close(actual.double(), expected.double(), rtol=tolerance, atol=tolerance)


def paged(lens: list[tuple[int, int]], **options) -> PagedCase:
    """Only the kernel does not mind a NaN beyond the context; longer rows go to the reference, which does."""
    case = PagedCase(lens, **options)
    if max(queries for queries, _ in lens) > attention_plan.MAX_QUERIES:
        for tensor in case.cache.tensors:
            tensor.nan_to_num_(3000.0)
    return case


class Spy:
    """Stands for the library and counts the calls that reach it."""

    def __init__(self, ops: CpuOps) -> None:
        self.calls: list[str] = []
        self._native = ops._native

    def __getattr__(self, name: str):
        self.calls.append(name)
        return getattr(self._native, name)


def attend(case: PagedCase, ops: CpuOps | None = None, *, calls: bool = True, **options) -> Tensor:
    ops = ops or CpuOps()
    spy = ops._native = Spy(ops)
    out = ops.attention(case.q, case.cache, ops.plan_attention(case.batch), **options)
    assert spy.calls == ["attention"] * calls
    return out


@DTYPES
@pytest.mark.parametrize("window", [None, 1, 16, 21, 1000])
@pytest.mark.parametrize("block_size", [1, 4, 16, 32])
def test_ragged_rows(dtype, window, block_size):
    case = paged(RAGGED, hq=6, hk=2, d=64, block_size=block_size, dtype=dtype)
    close(attend(case, scale=0.125, window=window), case.expected(0.125, window), 5 if dtype == torch.float32 else 1)


@DTYPES
@pytest.mark.parametrize("d", [16, 32, 48, 64, 80, 96, 128, 256])
@pytest.mark.parametrize("share", [1, 2, 3, 4, 5, 7, 8])
def test_head_layouts(dtype, d, share):
    case = PagedCase([(1, 1), (1, 45), (2, 20)], hq=2 * share, hk=2, d=d, block_size=16, dtype=dtype, seed=d + share)
    close(attend(case, scale=d**-0.5), case.expected(d**-0.5), 5 if dtype == torch.float32 else 1)


@DTYPES
def test_soft_cap(dtype):
    case = paged(RAGGED, hq=4, hk=2, d=64, block_size=16, dtype=dtype)
    capped = attend(case, scale=0.5, soft_cap=1.5)
    close(capped, case.expected(0.5, soft_cap=1.5), 5 if dtype == torch.float32 else 1)
    assert not torch.allclose(capped, attend(case, scale=0.5), atol=1e-2)


@pytest.mark.parametrize("threads", [1, 2, 8])
@pytest.mark.parametrize("window", [None, 90])
def test_cut_contexts(threads, window, monkeypatch):
    monkeypatch.setattr(attention_plan, "MIN_PART", 7)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    case = PagedCase([(1, 300), (1, 2)], hq=3, hk=1, d=64, block_size=16)
    close(attend(case, scale=0.125, window=window), case.expected(0.125, window), 5)


@pytest.mark.parametrize("seed", range(10))
def test_random_batches(seed):
    rng = random.Random(seed)
    lens = []
    for _ in range(rng.randint(1, 12)):
        queries = rng.choice([1, 1, 1, 2, 3, rng.randint(1, 40)])
        lens.append((queries, queries + rng.choice([0, 1, rng.randint(0, 300)])))
    hk = rng.choice([1, 2, 3])
    case = paged(lens, hk=hk, hq=hk * rng.choice([1, 2, 3]), d=rng.choice([16, 64, 128]), block_size=16, seed=seed)
    window = rng.choice([None, rng.randint(1, 60)])
    calls = any(queries <= attention_plan.MAX_QUERIES for queries, _ in lens)
    close(attend(case, scale=0.2, window=window, calls=calls), case.expected(0.2, window), 5)


def test_large_scores_neither_overflow_nor_vanish():
    case = PagedCase([(1, 40), (1, 200)], hq=2, hk=1, d=64, block_size=16)
    out = attend(case, scale=1000.0)
    assert out.isfinite().all()
    close(out, case.expected(1000.0), 50)


def test_a_nan_in_a_context_reaches_that_row_alone():
    case = PagedCase([(1, 40), (1, 40)], hq=2, hk=1, d=64, block_size=16)
    case.cache.keys[case.batch.block_tables[1, 1].item(), 0, 3] = torch.nan
    out = attend(case, scale=0.125)
    assert out[0].isfinite().all()
    assert out[1].isnan().all()


@pytest.mark.parametrize(
    "options",
    [{"d": 40}, {"dtype": torch.float16}, {"dtype": torch.float32, "kv_dtype": torch.bfloat16}, {"hq": 33, "hk": 1}],
    ids=str,
)
def test_what_does_not_fit_goes_to_the_reference(options):
    case = paged([(1, 30), (12, 19)], **{"d": 64, "block_size": 16, **options})
    ops = CpuOps()
    spy = ops._native = Spy(ops)
    out = ops.attention(case.q, case.cache, ops.plan_attention(case.batch), scale=0.125)
    assert spy.calls == []
    torch.testing.assert_close(out.double(), case.expected(0.125), rtol=2e-2, atol=2e-2)


def test_a_plan_of_other_ops_is_refused():
    case = PagedCase([(1, 3)])
    with pytest.raises(TypeError, match="plan_attention"):
        CpuOps().attention(case.q, case.cache, ReferenceOps().plan_attention(case.batch), scale=1.0)


@pytest.mark.parametrize(("jobs", "longest"), [(1, 5000), (3, 640), (3, 100), (8, 1 << 20), (96, 5000)])
def test_the_number_of_parts_is_bounded(jobs, longest):
    parts = num_parts(jobs, longest, threads=64)
    assert 1 <= parts <= attention_plan.MAX_PARTS
    assert parts == 1 or longest // parts >= attention_plan.MIN_PART


@DTYPES
@pytest.mark.parametrize(("rows", "size"), [(1, 16), (3, 576), (70, 1024)])
def test_add_rms_norm(dtype, rows, size):
    x, weight = randn(rows, size, dtype=dtype) * 3, randn(size, seed=1, dtype=dtype)
    first, stream = randn(rows, size, seed=2, dtype=dtype), randn(rows, size, seed=3)
    for residual in (first, stream):
        total = x.float() + residual.float()
        ops = CpuOps()
        spy = ops._native = Spy(ops)
        normed, found = ops.add_rms_norm(x.clone(), residual.clone(), weight, 1e-5)
        assert spy.calls == ["add_rms_norm"]
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
def test_silu_mul(dtype, rows, size):
    gate_up = randn(rows, size, dtype=dtype) * 6
    gate_up[0, :8] = torch.tensor([0.0, -0.0, 100.0, -100.0, 1e30, -1e30, 88.5, -88.5]).to(dtype)
    gate, up = gate_up.double().chunk(2, dim=-1)
    ops = CpuOps()
    spy = ops._native = Spy(ops)
    found = ops.silu_mul(gate_up)
    assert spy.calls == ["silu_mul"]
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
def test_rotate_and_store(dtype, norm, hq, hk, d, fits):
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
            spy = ops._native = Spy(ops)
        plan = ops.plan_attention(batch)
        q = ops.rotate_and_store(qkv.clone(), plan, cos_sin, *norms, 1e-6, kv)
        results.append((q.clone(), *kv.tensors))
        if spy is not None:
            assert spy.calls == ["rotate_and_store"] * fits
    for expected, found in zip(*results, strict=True):
        assert found.shape == expected.shape
        close(found, expected, 2)
