"""Attention of rows with one query against a dense computation in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from helpers_paged import PagedCase, dense_attention
from octavo.kernels.forward_batch import ForwardBatch
from octavo.kernels.triton.attention_plan import Scores, TritonPlan
from octavo.kernels.triton.decode_attention import DecodeAttention, DecodeSettings, settings

TOLERANCE = {torch.float32: 2e-5, torch.float16: 3e-3, torch.bfloat16: 2e-2}
CONTEXTS = [1, 37, 4, 130, 64, 65]


def run(
    case: PagedCase,
    scores: Scores,
    batch: ForwardBatch | None = None,
    chosen: DecodeSettings | None = None,
    deterministic: bool = False,
    times: int = 1,
) -> Tensor:
    """``[T, Hq * D]``; also checks that the counters are back at 0, and that another launch gives the same."""
    kernel = DecodeAttention(case.q.device)
    plan = TritonPlan(batch or case.batch, deterministic=deterministic)
    outs = []
    for _ in range(times):
        out = torch.empty(len(case.q), case.q.shape[1] * case.d, dtype=case.q.dtype, device=case.q.device)
        kernel(case.q, case.cache, out, plan, scores, chosen=chosen)
        assert not kernel._arrivals.any()
        outs.append(out)
    assert all(torch.equal(out, outs[0]) for out in outs[1:])
    return outs[0]


def check(case: PagedCase, scores: Scores, **options) -> None:
    tolerance = TOLERANCE[case.q.dtype]
    out = run(case, scores, **options).double()
    torch.testing.assert_close(out, case.expected(*scores), rtol=tolerance, atol=tolerance)


def rows(contexts: list[int], **options) -> PagedCase:
    return PagedCase([(1, context) for context in contexts], **options)


@pytest.mark.parametrize("window", [None, 1, 6, 64, 1000])
def test_windows(device, dtype, window):
    check(rows(CONTEXTS, device=device, dtype=dtype), Scores(0.4, window))


@pytest.mark.parametrize("block_size", [1, 16, 64])
def test_block_sizes(device, block_size):
    check(rows(CONTEXTS, device=device, block_size=block_size), Scores(0.4))


@pytest.mark.parametrize(("hq", "hk", "d"), [(1, 1, 64), (6, 2, 80), (4, 4, 96), (8, 1, 128), (4, 1, 256), (24, 1, 8)])
def test_head_layouts(device, dtype, hq, hk, d):
    check(rows([70, 3], hq=hq, hk=hk, d=d, device=device, dtype=dtype), Scores(d**-0.5))


def test_soft_cap(device, dtype):
    check(rows(CONTEXTS, device=device, dtype=dtype), Scores(2.0, None, 0.5))
    check(rows([20], device=device, dtype=dtype), Scores(1e4, None, 30.0))


def test_extreme_scores(device):
    check(rows([90], device=device), Scores(1e4))


@pytest.mark.parametrize("count", [True, False])
@pytest.mark.parametrize(("tile", "splits", "min_split"), [(16, 3, 16), (16, 20, 16), (64, 2, 64), (32, 2, 512)])
def test_splits(device, tile, splits, min_split, count):
    chosen = DecodeSettings(tile, 4, 2, splits, min_split, count)
    case = rows([1, 17, 300], device=device)
    check(case, Scores(0.4), chosen=chosen, times=2)
    check(case, Scores(0.4, 50), chosen=chosen)


def test_lengths_on_the_device_and_a_bound_on_the_host(device):
    case = rows(CONTEXTS, device=device)
    check(case, Scores(0.4), batch=case.with_slots(context_bound=5000))


def test_rows_of_a_mixed_batch(device):
    case = PagedCase([(1, 9), (5, 5), (1, 100), (3, 20), (1, 1)], device=device)
    for batch in (case.batch, case.with_slots(200)):
        out, expected = run(case, Scores(0.4), batch).double(), case.expected(0.4)
        decoded = [0, 6, 10]
        torch.testing.assert_close(out[decoded], expected[decoded], rtol=2e-5, atol=2e-5)
        others = [i for i in range(len(out)) if i not in decoded]
        assert out[others].isnan().all()  # as they were


def test_rows_that_fill_up_a_graph_are_zero(device):
    case = rows([5, 40], device=device)
    batch = case.with_slots(context_bound=100)
    batch.rows.context_lens[1] = 0
    out = run(case, Scores(0.4), batch)
    assert not out[1].any()
    torch.testing.assert_close(out[:1].double(), case.expected(0.4)[:1], rtol=2e-5, atol=2e-5)


def test_cache_of_another_dtype(device):
    check(rows(CONTEXTS, device=device, kv_dtype=torch.float16), Scores(0.4))


def test_deterministic_rows_do_not_depend_on_the_batch(device):
    contexts = [700, 3, 1300]
    case = rows(contexts, device=device, hq=2, hk=1)
    together = run(case, Scores(0.4), deterministic=True)
    bounded = run(case, Scores(0.4), case.with_slots(context_bound=4000), deterministic=True)
    assert torch.equal(together, bounded)
    for row in range(3):
        alone = case.with_slots()
        alone.rows.context_lens[[r for r in range(3) if r != row]] = 0
        assert torch.equal(run(case, Scores(0.4), alone, deterministic=True)[row], together[row])


def test_settings_fill_the_device_and_bound_the_splits():
    assert settings(1, 8, 2, 256, 512, False).splits == 8
    assert settings(1, 8, 2, 256, 100_000, False).splits * 8 >= 264
    assert settings(256, 8, 2, 256, 40, False).splits == 1
    assert settings(1, 8, 2, 256, 0, False).splits == 1
    long = settings(3, 8, 2, 256, 100_000, True)
    assert long.splits * long.min_split >= 100_000
    for rows_ in (1, 2, 4, 8, 16, 32, 33, 64, 128, 512):
        s = settings(rows_, 8, 2, 128, 9000, False)
        assert s.min_split % s.tile == 0
        assert 4 <= s.splits <= 33


def test_a_batch_that_fills_the_device_splits_only_long_rows():
    chosen = settings(64, 8, 2, 256, 32768, False)
    assert chosen.min_split >= 2048
    assert chosen.splits * chosen.min_split >= 32768


LARGE = [(16, 8, 128), (32, 8, 64), (32, 8, 128), (9, 3, 64), (8, 8, 96)]


@pytest.mark.parametrize(("hq", "hk", "d"), LARGE)
@pytest.mark.parametrize("num_rows", [1, 9, 200])
def test_large_batches(device, dtype, interpreted, hq, hk, d, num_rows):
    if interpreted:
        pytest.skip("needs a GPU")
    contexts = [1 + (977 * row) % 2100 for row in range(num_rows)]
    case = rows(contexts, hq=hq, hk=hk, d=d, block_size=16, dtype=dtype, device=device)
    check(case, Scores(d**-0.5))
    check(case, Scores(d**-0.5), batch=case.with_slots(4096))
    check(case, Scores(d**-0.5, 700, 20.0), deterministic=True)


def test_one_long_row(device, dtype, interpreted):
    if interpreted:
        pytest.skip("needs a GPU")
    check(rows([131_072, 17], d=64, block_size=16, dtype=dtype, device=device), Scores(0.125))


def test_a_cache_of_more_than_2_31_numbers(device, interpreted):
    if interpreted:
        pytest.skip("needs a GPU")
    spare = 2**31 // (8 * 16 * 128) + 5000
    case = rows([900] * 40, hq=8, hk=8, d=128, block_size=16, dtype=torch.bfloat16, device=device, spare_blocks=spare)
    assert int(case.batch.block_tables.max()) * 8 * 16 * 128 > 2**31
    check(case, Scores(0.1))


def test_a_graph_reads_lengths_on_the_device(device, interpreted):
    if interpreted:
        pytest.skip("needs a GPU")
    case = rows([2000, 30, 600], d=64, block_size=16, dtype=torch.bfloat16, device=device)
    kernel, batch = DecodeAttention(case.q.device), case.with_slots(context_bound=4096)
    full = batch.rows.context_lens.clone()
    plan, out = TritonPlan(batch), torch.empty(3, 4 * 64, dtype=torch.bfloat16, device=device)
    kernel(case.q, case.cache, out, plan, Scores(0.1))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kernel(case.q, case.cache, out, plan, Scores(0.1))
    for shorter in (0, 1, 17, 29):
        batch.rows.context_lens.copy_(full - shorter)
        out.fill_(torch.nan)
        graph.replay()
        lens = [(1, context - shorter) for _, context in case.lens]
        kv = [(k[:n], v[:n]) for (k, v), (_, n) in zip(case.kv, lens, strict=True)]
        expected = torch.cat([dense_attention(q[None], k, v, 0.1) for q, (k, v) in zip(case.q, kv, strict=True)])
        torch.testing.assert_close(out.double(), expected, rtol=2e-2, atol=2e-2)
