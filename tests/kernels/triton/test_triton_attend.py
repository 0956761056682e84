"""Rotation, cache and attention together: the Triton backend against the reference."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from helpers_paged import PagedCase
from octavo.kernels.forward_batch import AttentionPlan, KVLayer
from octavo.kernels.reference.ops import ReferenceOps
from octavo.kernels.triton.attention_plan import Scores, TritonPlan
from octavo.kernels.triton.ops import TritonOps

TOLERANCE = {torch.float32: 2e-5, torch.float16: 5e-3, torch.bfloat16: 3e-2}
LENS = [(1, 1), (6, 6), (1, 30), (3, 19), (20, 20)]
DECODE = [(1, 1), (1, 30), (1, 9)]


@pytest.mark.parametrize("lens", [LENS, DECODE], ids=["mixed", "decode"])
@pytest.mark.parametrize(("window", "soft_cap"), [(None, None), (7, 2.0)])
def test_attend_as_the_reference_does(device, dtype, window, soft_cap, lens):
    case = PagedCase(lens, dtype=dtype, device=device)
    for tensor in case.cache.tensors:
        tensor.nan_to_num_()  # the reference masks whole blocks, so these must be finite
    spans = [range(context - queries, context) for queries, context in lens]
    positions = torch.tensor([p for span in spans for p in span], device=device)
    row = torch.tensor([r for r, span in enumerate(spans) for _ in span], device=device)
    slots = case.batch.block_tables[row, positions // 4].long() * 4 + positions % 4
    batch = replace(case.batch, positions=positions, slot_mapping=slots)
    cos_sin, norms = torch.rand(64, 16, device=device), torch.rand(2, 16, device=device).to(dtype)
    found = []
    for ops in (ReferenceOps(), TritonOps()):
        cache = KVLayer(case.cache.keys.clone(), case.cache.values.clone())
        plan = ops.plan_attention(batch)
        out = ops.attend(
            case.qkv.clone(), plan, cos_sin, *norms, 1e-6, cache, scale=0.4, window=window, soft_cap=soft_cap
        )
        found.append((out, *cache.tensors))
    for ours, theirs in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@pytest.mark.parametrize("lens", [LENS, [(40, 40)], [(1, 30), (2, 9)]], ids=["mixed", "one", "cached"])
@pytest.mark.parametrize("window", [None, 7])
def test_a_step_as_a_graph_sees_it(device, dtype, window, lens):
    """Lengths on the device alone; tokens and rows that are nobody's touch nothing."""
    case = PagedCase(lens, dtype=dtype, device=device)
    batch, ops = case.in_graph(), TritonOps()
    ops.plan_attention(batch)
    q = torch.cat([case.q, torch.full_like(case.q[:3], torch.nan)])
    qkv = torch.cat([case.qkv, torch.full_like(case.qkv[:3], torch.nan)])
    attention, plan = ops._attention, TritonPlan(batch)
    assert attention is not None
    for out in (
        attention.over_cache(q, case.cache, plan, Scores(0.4, window)),
        attention.over_new(q, qkv, case.cache, plan, Scores(0.4, window)),
    ):
        tolerance = TOLERANCE[dtype]
        found = out[: len(case.q)].double()
        torch.testing.assert_close(found, case.expected(0.4, window), rtol=tolerance, atol=tolerance)


def test_plan_of_another_backend_is_refused(device):
    case = PagedCase([(1, 1)], device=device)
    with pytest.raises(TypeError, match="plan_attention"):
        TritonOps().attention(case.q, case.cache, AttentionPlan(), scale=1.0)
