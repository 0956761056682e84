"""Rotation, cache write and attention in one kernel, against the reference's separate steps in float32."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from helpers_paged import PagedCase
from octavo.kernels.forward_batch import ForwardBatch, KVLayer
from octavo.kernels.reference.ops import ReferenceOps
from octavo.kernels.triton import decode_fused
from octavo.kernels.triton.attention_plan import Scores, TritonPlan
from octavo.kernels.triton.decode_attention import DecodeSettings
from octavo.kernels.triton.decode_fused import FusedDecode

TOLERANCE = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
CONTEXTS = [1, 37, 130, 64, 65]
EPS = 1e-6


class Step:
    """Rows of one query, with what rotation needs. ``batch`` has its lengths on the device, in lines of a table."""

    def __init__(self, contexts: list[int], *, normed: bool = True, bound: int = 0, **options) -> None:
        self.case = PagedCase([(1, context) for context in contexts], **options)
        case, device = self.case, self.case.qkv.device
        generator = torch.Generator().manual_seed(1)
        angles = torch.arange(max(contexts))[:, None] * torch.logspace(0, -4, case.d // 2)
        self.cos_sin = torch.cat((angles.cos(), angles.sin()), dim=-1).to(device)
        weights = torch.randn(2, case.d, generator=generator).to(device, case.qkv.dtype)
        self.norms = list(weights) if normed else [None, None]
        positions = torch.tensor([context - 1 for context in contexts], device=device)
        size = case.batch.block_size
        table = case.batch.block_tables.gather(1, (positions // size)[:, None])[:, 0].long()
        where = {"positions": positions, "slot_mapping": table * size + positions % size}
        self.plain, self.batch = replace(case.batch, **where), replace(case.with_slots(bound), **where)
        slots = where["slot_mapping"]
        for part in case.cache.tensors:  # the new token is not there yet
            part[slots // size, :, slots % size] = torch.nan

    def cache(self, dtype: torch.dtype | None = None) -> KVLayer:
        return KVLayer(*(part.clone().to(dtype or part.dtype) for part in self.case.cache.tensors))

    def expected(self, scores: Scores) -> tuple[Tensor, KVLayer]:
        ops, cache = ReferenceOps(), self.cache(torch.float32)
        finite = KVLayer(*(part.nan_to_num() for part in cache.tensors))
        norms = [None if weight is None else weight.float() for weight in self.norms]
        out = ops.attend(
            self.case.qkv.float(),
            ops.plan_attention(self.plain),
            self.cos_sin,
            *norms,
            EPS,
            finite,
            scale=scores.scale,
            window=scores.window,
            soft_cap=scores.soft_cap,
        )
        return out, finite

    def run(
        self, scores: Scores, batch: ForwardBatch | None = None, chosen: DecodeSettings | None = None
    ) -> tuple[Tensor, KVLayer]:
        """Also checks that the counters are back at 0, and that another launch gives the same."""
        kernel, plan, qkv = FusedDecode(self.case.qkv.device), TritonPlan(batch or self.batch), self.case.qkv.clone()
        found = []
        for _ in range(2):
            cache = self.cache()
            found.append((kernel(qkv, cache, plan, self.cos_sin, *self.norms, EPS, scores, chosen=chosen), cache))
            assert not kernel._arrivals.any()
        assert torch.equal(found[0][0], found[1][0])
        assert torch.equal(qkv, self.case.qkv)
        return found[0]

    def check(self, scores: Scores, chosen: DecodeSettings | None = None) -> None:
        out, cache = self.run(scores, chosen=chosen)
        expected, written = self.expected(scores)
        tolerance = TOLERANCE[self.case.qkv.dtype]
        torch.testing.assert_close(out.float(), expected, rtol=tolerance, atol=tolerance)
        for ours, theirs, before in zip(cache.tensors, written.tensors, self.case.cache.tensors, strict=True):
            new = before.isnan() & ~ours.isnan()
            assert new.sum() == len(out) * self.case.hk * self.case.d  # the new tokens and nothing else
            torch.testing.assert_close(ours.float()[new], theirs[new], rtol=tolerance, atol=tolerance)
            assert torch.equal(ours[~before.isnan()], before[~before.isnan()])


@pytest.mark.parametrize("normed", [True, False])
@pytest.mark.parametrize(("window", "cap"), [(None, None), (1, None), (6, 2.0), (64, None), (1000, None)])
def test_windows_and_caps(device, dtype, window, cap, normed):
    Step(CONTEXTS, device=device, dtype=dtype, normed=normed).check(Scores(0.4, window, cap))


@pytest.mark.parametrize("count", [True, False])
@pytest.mark.parametrize(("tile", "splits", "min_split"), [(16, 3, 16), (16, 20, 16), (64, 2, 64), (32, 1, 512)])
def test_splits(device, tile, splits, min_split, count):
    step = Step([1, 17, 300, 33], device=device)
    step.check(Scores(0.4), DecodeSettings(tile, 4, 2, splits, min_split, count))
    step.check(Scores(0.4, 50), DecodeSettings(tile, 4, 2, splits, min_split, count))


@pytest.mark.parametrize(("hq", "hk", "d"), [(1, 1, 64), (6, 2, 80), (4, 4, 96), (8, 1, 128), (4, 1, 256), (24, 1, 8)])
def test_head_layouts(device, dtype, hq, hk, d):
    Step([70, 3], hq=hq, hk=hk, d=d, device=device, dtype=dtype).check(Scores(d**-0.5))


@pytest.mark.parametrize("block_size", [1, 16, 64])
def test_block_sizes(device, block_size):
    Step(CONTEXTS, device=device, block_size=block_size, bound=5000).check(Scores(0.4))


def test_rows_that_fill_up_a_graph(device):
    step = Step([5, 40], device=device, bound=100)
    alone = step.run(Scores(0.4))[0]
    step.batch.rows.context_lens[1] = 0
    step.batch.slot_mapping[1] = -1
    out, cache = step.run(Scores(0.4))
    assert torch.equal(out[0], alone[0])
    assert not out[1].any()
    for before, after in zip(step.case.cache.tensors, cache.tensors, strict=True):
        assert (before.isnan() & ~after.isnan()).sum() == step.case.hk * step.case.d


def test_which_steps_fit(device):
    def fits(lens: list[tuple[int, int]], **options) -> bool:
        case = PagedCase(lens, device=device, **options)
        return decode_fused.fits(case.qkv, case.cache, TritonPlan(case.batch))

    assert fits([(1, 9), (1, 30)])
    assert not fits([(1, 9), (2, 30)])
    assert not fits([(1, 9)], kv_dtype=torch.float16)
    assert not fits([(1, 9)] * 40)
    case = PagedCase([(1, 9)], device=device)
    assert not decode_fused.fits(case.qkv, case.cache, TritonPlan(case.batch, deterministic=True))


@pytest.mark.parametrize(("hq", "hk", "d"), [(16, 8, 128), (32, 8, 64), (32, 8, 128), (9, 3, 64), (8, 8, 96)])
@pytest.mark.parametrize("contexts", [[1], [512], [9000], [1025, 4097, 1, 2112]])
def test_large(device, dtype, interpreted, hq, hk, d, contexts):
    if interpreted:
        pytest.skip("needs a GPU")
    for normed in (True, False):
        Step(contexts, hq=hq, hk=hk, d=d, block_size=16, dtype=dtype, device=device, normed=normed).check(
            Scores(d**-0.5)
        )
