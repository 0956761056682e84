"""The C kernels of attention against a dense computation in float64."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

from helpers_native import DTYPES, close, spied
from helpers_paged import PagedCase
from octavo.kernels.cpu import attention_plan
from octavo.kernels.cpu.attention_plan import num_parts, stretch_length
from octavo.kernels.cpu.build import load_library
from octavo.kernels.cpu.native import Native
from octavo.kernels.cpu.ops import CpuOps
from octavo.kernels.reference.ops import ReferenceOps

pytestmark = pytest.mark.skipif(load_library() is None, reason="no C compiler")

RAGGED = [(1, 1), (1, 16), (1, 17), (5, 5), (1, 37), (3, 19), (1, 15), (8, 300), (1, 32), (40, 41), (1, 500), (2, 2)]
RAGGED += [(1, 64), (1, 65), (70, 129), (64, 64), (4, 70)]


def attend(case: PagedCase, native: Native | None = None, **options) -> Tensor:
    """By the kernels, each of which must have been called if there is work for it."""
    ops, calls = spied(native)
    out = ops.attention(case.q, case.cache, ops.plan_attention(case.batch), **options)
    assert ops.ignores_nan_beyond_context([case.cache], case.q.shape[1], case.q.dtype)  # all else in the cache is NaN
    few = [queries <= attention_plan.MAX_QUERIES for queries, _ in case.lens]
    assert calls == ["attention"] * any(few) + ["prefill_attention"] * (not all(few))
    return out


def check(case: PagedCase, native: Native | None = None, scale: float = 0.125, factor: float = 1, **options) -> None:
    found = attend(case, native, scale=scale, **options)
    close(found, case.expected(scale, **options), factor * (5 if found.dtype == torch.float32 else 1))


@DTYPES
@pytest.mark.parametrize("window", [None, 1, 16, 21, 1000])
@pytest.mark.parametrize("block_size", [1, 4, 16, 24, 32])
def test_ragged_rows(dtype, window, block_size):
    check(PagedCase(RAGGED, hq=6, hk=2, d=64, block_size=block_size, dtype=dtype), window=window)


@DTYPES
@pytest.mark.parametrize("window", [None, 33])
@pytest.mark.parametrize("soft_cap", [None, 1.5])
def test_sets_of_instructions(native, dtype, window, soft_cap):
    case = PagedCase(RAGGED, hq=10, hk=2, d=80, block_size=16, dtype=dtype, seed=3)
    check(case, native, window=window, soft_cap=soft_cap)


@DTYPES
@pytest.mark.parametrize("d", [16, 32, 48, 64, 80, 96, 128, 256])
@pytest.mark.parametrize("share", [1, 2, 3, 4, 5, 7, 8, 32])
def test_head_layouts(dtype, d, share):
    lens = [(1, 1), (1, 45), (2, 20), (9, 30), (67, 71)]
    check(PagedCase(lens, hq=2 * share, hk=2, d=d, block_size=16, dtype=dtype, seed=d + share), scale=d**-0.5)


@DTYPES
def test_soft_cap(dtype):
    case = PagedCase(RAGGED, hq=4, hk=2, d=64, block_size=16, dtype=dtype)
    check(case, scale=0.5, soft_cap=1.5)
    assert not torch.allclose(attend(case, scale=0.5, soft_cap=1.5), attend(case, scale=0.5), atol=1e-2)


@pytest.mark.parametrize("threads", [1, 2, 8])
@pytest.mark.parametrize("window", [None, 90])
def test_cut_contexts(threads, window, monkeypatch):
    monkeypatch.setattr(attention_plan, "MIN_PART", 7)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    check(PagedCase([(1, 300), (1, 2)], hq=3, hk=1, d=64, block_size=16), window=window)


@pytest.mark.parametrize("seed", range(12))
def test_random_batches(seed, monkeypatch):
    rng = random.Random(seed)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1 + seed % 4)
    lens = []
    for _ in range(rng.randint(1, 12)):
        queries = rng.choice([1, 1, 1, 2, 3, rng.randint(1, 40), rng.randint(1, 200)])
        lens.append((queries, queries + rng.choice([0, 1, rng.randint(0, 300)])))
    hk, dtype = rng.choice([1, 2, 3]), rng.choice([torch.float32, torch.bfloat16])
    sizes = {"hk": hk, "hq": hk * rng.choice([1, 2, 3, 9]), "d": rng.choice([16, 64, 128])}
    case = PagedCase(lens, block_size=rng.choice([8, 16]), seed=seed, dtype=dtype, **sizes)
    check(case, scale=0.2, window=rng.choice([None, rng.randint(1, 260)]))


@DTYPES
def test_long_contexts(dtype):
    case = PagedCase([(1, 8192), (20, 8200), (1, 8001)], hq=3, hk=1, d=64, block_size=16, dtype=dtype)
    check(case)
    check(case, window=4000)


def test_the_result_does_not_hang_on_the_number_of_threads(monkeypatch):
    case = PagedCase([(1, 60), (30, 90)], hq=6, hk=2, d=64, block_size=16, dtype=torch.bfloat16)
    monkeypatch.setattr(attention_plan, "MIN_STRETCH", attention_plan.MAX_STRETCH)
    found = []
    for threads in (1, 2, 5):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        found.append(attend(case, scale=0.125))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_every_row_of_the_result_is_written(monkeypatch):
    case = PagedCase(RAGGED, hq=6, hk=2, d=64, block_size=16)
    monkeypatch.setattr(Tensor, "new_empty", lambda self, *shape: self.new_full(shape, torch.nan))
    assert attend(case, scale=0.125).isfinite().all()


def test_large_scores_neither_overflow_nor_vanish():
    case = PagedCase([(1, 40), (1, 200), (30, 100)], hq=2, hk=1, d=64, block_size=16)
    check(case, scale=1000.0, factor=10)


@DTYPES
@pytest.mark.parametrize("which", ["keys", "values"])
def test_a_nan_in_a_context_reaches_that_row_alone(which, dtype):
    case = PagedCase([(1, 40), (1, 40), (20, 40), (20, 40)], hq=2, hk=1, d=64, block_size=16, dtype=dtype)
    for row in (1, 3):
        getattr(case.cache, which)[case.batch.block_tables[row, 1].item(), 0, 1] = torch.nan
    out = attend(case, scale=0.125)
    assert out[0].isfinite().all()
    assert out[1].isnan().any()
    assert out[2:22].isfinite().all()
    assert out[22:].isnan().any(dim=1).all()


def test_what_is_before_the_window_is_not_read():
    case = PagedCase([(1, 100), (3, 90), (20, 110)], hq=4, hk=2, d=64, block_size=16)
    expected = case.expected(0.125, 30)
    for row, before in enumerate((70, 58, 61)):
        for position in range(before):
            block = case.batch.block_tables[row, position // 16]
            case.cache.keys[block, :, position % 16] = torch.nan
            case.cache.values[block, :, position % 16] = torch.nan
    close(attend(case, scale=0.125, window=30), expected, 5)


@pytest.mark.parametrize(
    "options",
    [{"d": 40}, {"dtype": torch.float16}, {"dtype": torch.float32, "kv_dtype": torch.bfloat16}, {"hq": 33, "hk": 1}],
    ids=str,
)
def test_what_does_not_fit_goes_to_the_reference(options):
    case = PagedCase([(1, 30), (12, 19)], **{"d": 64, "block_size": 16, **options})
    for tensor in case.cache.tensors:
        tensor.nan_to_num_(3000.0)  # which minds a NaN beyond the context
    ops, calls = spied()
    out = ops.attention(case.q, case.cache, ops.plan_attention(case.batch), scale=0.125)
    assert calls == []
    assert not ops.ignores_nan_beyond_context([case.cache], case.q.shape[1], case.q.dtype)
    torch.testing.assert_close(out.double(), case.expected(0.125), rtol=2e-2, atol=2e-2)


def test_queries_may_lie_apart():
    case = PagedCase([(1, 30), (12, 19)], hq=4, hk=2, d=64, block_size=16)
    expected = case.expected(0.125)
    case.q = case.q.transpose(1, 2).contiguous().transpose(1, 2)
    close(attend(case, scale=0.125), expected, 5)


def test_a_plan_of_other_ops_is_refused():
    case = PagedCase([(1, 3)])
    with pytest.raises(TypeError, match="plan_attention"):
        CpuOps().attention(case.q, case.cache, ReferenceOps().plan_attention(case.batch), scale=1.0)


@pytest.mark.parametrize(("jobs", "longest"), [(1, 5000), (3, 640), (3, 100), (8, 1 << 20), (96, 5000)])
def test_the_number_of_parts_is_bounded(jobs, longest):
    parts = num_parts(jobs, longest, threads=64)
    assert 1 <= parts <= attention_plan.MAX_PARTS
    assert parts == 1 or longest // parts >= attention_plan.MIN_PART


def test_stretches_are_as_long_as_the_threads_allow():
    assert stretch_length(1, threads=2) == attention_plan.MIN_STRETCH
    assert stretch_length(10**6, threads=2) == attention_plan.MAX_STRETCH
    assert 240 // stretch_length(240, threads=2) >= 8
