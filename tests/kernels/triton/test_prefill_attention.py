"""Attention of rows with several queries, from pages and from ``qkv``, against a dense computation in float64."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

from helpers_paged import PagedCase
from octavo.kernels.triton import fresh_attention, prefill_attention
from octavo.kernels.triton.attention import PagedAttention
from octavo.kernels.triton.attention_plan import Scores, TritonPlan
from octavo.kernels.triton.prefill_attention import PrefillSettings

TOLERANCE = {torch.float32: 2e-5, torch.float16: 3e-3, torch.bfloat16: 2e-2}
RAGGED = [(1, 1), (5, 5), (1, 37), (3, 19), (70, 75), (5, 60), (33, 33)]


def outputs(case: PagedCase, scores: Scores, *, slots: bool = False, deterministic: bool = False) -> list[Tensor]:
    """From pages, and from ``qkv`` where a row is fresh."""
    attention = PagedAttention(case.q.device)
    plan = TritonPlan(case.with_slots() if slots else case.batch, deterministic=deterministic)
    return [
        attention.over_cache(case.q, case.cache, plan, scores),
        attention.over_new(case.q, case.qkv, case.cache, plan, scores),
    ]


def check(case: PagedCase, scores: Scores, **options) -> None:
    tolerance, expected = TOLERANCE[case.q.dtype], case.expected(*scores)
    for out in outputs(case, scores, **options):
        torch.testing.assert_close(out.double(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("window", [None, 1, 6, 33, 64, 1000])
def test_ragged_rows(device, dtype, window):
    check(PagedCase(RAGGED, device=device, dtype=dtype), Scores(0.4, window))


@pytest.mark.parametrize("block_size", [1, 16, 64])
def test_block_sizes(device, block_size):
    check(PagedCase(RAGGED, device=device, block_size=block_size), Scores(0.4))


@pytest.mark.parametrize(
    ("hq", "hk", "d"), [(1, 1, 64), (6, 2, 80), (4, 4, 96), (8, 1, 128), (4, 1, 256), (7, 1, 8), (40, 1, 16)]
)
def test_head_layouts(device, dtype, hq, hk, d):
    check(PagedCase([(7, 40), (20, 20)], hq=hq, hk=hk, d=d, device=device, dtype=dtype), Scores(d**-0.5))


def test_soft_cap(device, dtype):
    check(PagedCase(RAGGED, device=device, dtype=dtype), Scores(2.0, None, 0.5))
    check(PagedCase([(30, 40)], device=device, dtype=dtype), Scores(0.4, 9, 1.0))


def test_lengths_on_the_device(device):
    check(PagedCase(RAGGED, device=device), Scores(0.4), slots=True)


def test_deterministic_is_right(device):
    check(PagedCase(RAGGED, device=device), Scores(0.4), deterministic=True)


def test_extreme_scores(device):
    check(PagedCase([(40, 90)], device=device), Scores(1e4))


def test_cache_of_another_dtype(device):
    check(PagedCase(RAGGED, device=device, kv_dtype=torch.float16), Scores(0.4))


@pytest.mark.parametrize("seed", range(4))
def test_random_batches(device, seed):
    rng = random.Random(seed)
    lens = []
    for _ in range(rng.randint(1, 8)):
        queries = rng.choice([1, 2, 3, rng.randint(1, 60)])
        lens.append((queries, queries + rng.choice([0, 1, rng.randint(0, 80)])))
    hk = rng.choice([1, 2, 3])
    case = PagedCase(lens, hk=hk, hq=hk * rng.choice([1, 2, 3]), device=device, seed=seed)
    check(case, Scores(0.4, rng.choice([None, rng.randint(1, 60)]), rng.choice([None, 2.0])), slots=seed % 2 == 0)


@pytest.mark.parametrize("window", [None, 20, 50])
@pytest.mark.parametrize(
    "chosen", [PrefillSettings(16, 16, 4, 1), PrefillSettings(64, 16, 4, 2), PrefillSettings(16, 64, 4, 2)]
)
def test_tile_shapes(device, monkeypatch, chosen, window):
    monkeypatch.setattr(prefill_attention, "settings", lambda *_: chosen)
    check(PagedCase([(50, 131), (70, 70)], device=device), Scores(0.4, window))


def test_descriptors(device, dtype, monkeypatch):
    chosen = PrefillSettings(64, 16, 4, 2, descriptors=True)
    monkeypatch.setattr(prefill_attention, "settings", lambda *_: chosen)
    check(PagedCase([(50, 50), (3, 9), (70, 70)], device=device, dtype=dtype), Scores(0.4))


def test_another_requests_nan_stays_there(device):
    case = PagedCase([(20, 20), (7, 7), (9, 40)], device=device)
    clean = outputs(case, Scores(0.4))
    case.qkv[20:27] = torch.nan
    for before, after in zip(clean, outputs(case, Scores(0.4)), strict=True):
        mine = [*range(20), *range(27, 36)]
        assert torch.equal(after[mine], before[mine])


def test_queries_of_any_layout(device):
    case = PagedCase(RAGGED, device=device)
    plan, attention = TritonPlan(case.batch), PagedAttention(case.q.device)
    expected = attention.over_cache(case.q, case.cache, plan, Scores(0.4))
    for q in (case.q.contiguous(), case.q.transpose(1, 2).contiguous().transpose(1, 2)):
        assert torch.equal(attention.over_cache(q, case.cache, plan, Scores(0.4)), expected)


LARGE = [(16, 8, 128), (32, 8, 64), (32, 8, 128), (9, 3, 64), (8, 8, 96), (4, 2, 256)]


@pytest.mark.parametrize(("hq", "hk", "d"), LARGE)
def test_large_batches(device, dtype, interpreted, hq, hk, d):
    if interpreted:
        pytest.skip("needs a GPU")
    lens = [(1, 900), (1500, 1500), (300, 2000), (1, 5), (700, 701), (20, 3000), (129, 129)]
    case = PagedCase(lens, hq=hq, hk=hk, d=d, block_size=16, dtype=dtype, device=device)
    check(case, Scores(d**-0.5))
    check(case, Scores(d**-0.5, 700, 20.0), slots=True)
    check(PagedCase([(4, 900), (2, 2)], hq=hq, hk=hk, d=d, dtype=dtype, device=device), Scores(d**-0.5))


def test_long_prompts_by_cudnn(device, interpreted):
    if interpreted or torch.cuda.get_device_capability()[0] != 9:
        pytest.skip("needs a Hopper GPU")
    lens = [(2500, 2500), (1, 30), (1024, 1024), (200, 200), (50, 700)]
    case = PagedCase(lens, hq=16, hk=8, d=128, block_size=16, dtype=torch.bfloat16, device=device)
    assert fresh_attention.is_supported(case.q, Scores(0.1))
    attention = PagedAttention(case.q.device, use_cudnn=True)
    out = attention.over_new(case.q, case.qkv, case.cache, TritonPlan(case.batch), Scores(0.1))
    torch.testing.assert_close(out.double(), case.expected(0.1), rtol=2e-2, atol=2e-2)
