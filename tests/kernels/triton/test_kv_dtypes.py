"""Caches in fewer bits: the Triton backend against the reference."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from helpers_paged import PagedCase
from octavo.kernels.forward_batch import FP8, KVLayer
from octavo.kernels.reference.ops import ReferenceOps
from octavo.kernels.triton.ops import TritonOps

TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 6e-2}
PROMPTS = [(1, 1), (6, 6), (1, 1), (20, 20)]
NEXT = [(1, 2), (3, 9), (1, 2), (1, 21)]


def step(case: PagedCase, lens: list[tuple[int, int]], first: int):
    """The rows' tokens at these positions, as a batch, and their part of ``case.qkv``."""
    device = case.qkv.device
    spans = [range(context - queries, context) for queries, context in lens]
    positions = torch.tensor([p for span in spans for p in span], device=device)
    row = torch.tensor([r for r, span in enumerate(spans) for _ in span], device=device)
    slots = case.batch.block_tables[row, positions // 4].long() * 4 + positions % 4
    batch = replace(
        case.batch,
        token_ids=torch.zeros_like(positions),
        positions=positions,
        slot_mapping=slots,
        query_lens=[queries for queries, _ in lens],
        context_lens=[context for _, context in lens],
    )
    return batch, case.qkv[first : first + len(positions)].clone()


@pytest.mark.parametrize(
    "kv_dtype", [torch.int8, pytest.param(FP8, marks=pytest.mark.gpu)], ids=lambda dtype: str(dtype)[6:]
)
@pytest.mark.parametrize(("window", "soft_cap"), [(None, None), (7, 2.0)])
def test_prompts_then_decoding(device, dtype, kv_dtype, window, soft_cap):
    if kv_dtype == FP8 and torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("float8 needs compute capability 8.9")
    case = PagedCase([(q + n, c + n) for (q, c), (n, _) in zip(PROMPTS, NEXT, strict=True)], dtype=dtype, device=device)
    cos_sin = torch.rand(64, 16, device=device)
    blocks = len(case.cache.keys)
    found = []
    for ops in (ReferenceOps(), TritonOps()):
        cache = KVLayer.zeros(blocks, 4, 2, 16, kv_dtype, device)
        outs = []
        for lens, first in ((PROMPTS, 0), (NEXT, 28)):
            batch, qkv = step(case, lens, first)
            plan = ops.plan_attention(batch)
            out = ops.attend(qkv, plan, cos_sin, None, None, 1e-6, cache, scale=0.4, window=window, soft_cap=soft_cap)
            outs.append(out.clone())
        found.append((torch.cat(outs), cache))
    (ours, cache), (theirs, expected) = found[1], found[0]
    for a, b in ((cache.keys, expected.keys), (cache.values, expected.values)):
        difference = (a.float() - b.float()).abs()
        assert (difference > 0).float().mean() < 0.01  # a number that is rounded the other way
        assert difference.max() <= (1 if kv_dtype == torch.int8 else 0.07 * b.float().abs().max())
    if kv_dtype == torch.int8:
        torch.testing.assert_close(cache.scales, expected.scales, rtol=1e-2, atol=1e-6)
    torch.testing.assert_close(ours, theirs, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


def test_an_int8_cache_of_zeros_and_large_numbers(device):
    case = PagedCase([(2, 2)], device=device)
    case.qkv[0, 64:] = 0
    case.qkv[1, 64:] = 1e4
    cache = KVLayer.zeros(len(case.cache.keys), 4, 2, 16, torch.int8, device)
    batch, qkv = step(case, [(2, 2)], 0)
    ops = TritonOps()
    ops.attend(qkv, ops.plan_attention(batch), torch.rand(64, 16, device=device), None, None, 1e-6, cache, scale=0.1)
    block = int(case.batch.block_tables[0, 0])
    assert not cache.values[block, :, 0].any()
    assert (cache.values[block, :, 1] == 127).all()
    torch.testing.assert_close(cache.scales[1, block, :, 1], torch.full((2,), 1e4 / 127, device=device))
