"""Paged attention against a dense computation in float64, row by row and position by position."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

from octavo.kernels import for_device
from octavo.kernels.forward_batch import AttentionPlan, ForwardBatch, KVLayer
from octavo.kernels.reference import attention_plan
from octavo.kernels.reference.attention_plan import GroupedPlan, Row, partition
from octavo.kernels.reference.workspace import Workspace


def dense(q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None, soft_cap: float | None) -> Tensor:
    """One row: ``q [Q, Hq, D]`` are the last positions of ``k, v [N, Hk, D]``; result ``[Q, Hq * D]`` in
    float64.
    """
    q, k, v = q.double(), k.double(), v.double()
    out = torch.zeros_like(q)
    for i in range(len(q)):
        position = len(k) - len(q) + i
        first = 0 if window is None else max(0, position - window + 1)
        for head in range(q.shape[1]):
            kv_head = head // (q.shape[1] // k.shape[1])
            scores = k[first : position + 1, kv_head] @ q[i, head] * scale
            if soft_cap is not None:
                scores = soft_cap * torch.tanh(scores / soft_cap)
            out[i, head] = torch.softmax(scores, 0) @ v[first : position + 1, kv_head]
    return out.flatten(1)


class Case:
    """Random rows in a paged cache whose other slots, and whose table entries beyond the context, are
    poisoned.
    """

    def __init__(self, lens, *, hq=4, hk=2, d=8, block_size=4, dtype=torch.float32, kv_dtype=None, seed=0) -> None:
        g = torch.Generator().manual_seed(seed)
        rng = random.Random(seed)
        counts = [-(-context // block_size) for _, context in lens]
        num_blocks = sum(counts) + 3
        free = rng.sample(range(num_blocks), num_blocks)
        self.cache = KVLayer.zeros(num_blocks, block_size, hk, d, kv_dtype or dtype)
        for tensor in self.cache.tensors:
            tensor.fill_(3000.0)
        tables = torch.full((len(lens), max(counts) + 2), free[-1])
        self.q = torch.randn(sum(q for q, _ in lens), hq, d, generator=g).to(dtype)
        self.rows = []
        for r, (_, context) in enumerate(lens):
            k, v = (torch.randn(context, hk, d, generator=g).to(kv_dtype or dtype) for _ in range(2))
            tables[r, : counts[r]] = torch.tensor([free.pop(0) for _ in range(counts[r])])
            for position in range(context):
                block, offset = tables[r, position // block_size], position % block_size
                self.cache.keys[block, :, offset], self.cache.values[block, :, offset] = (
                    k[position],
                    v[position],
                )
            self.rows.append((k, v))
        tokens = torch.zeros(len(self.q), dtype=torch.int64)
        self.lens = lens
        self.batch = ForwardBatch(
            token_ids=tokens,
            positions=tokens,
            slot_mapping=tokens,
            query_lens=[q for q, _ in lens],
            context_lens=[context for _, context in lens],
            block_tables=tables,
            logit_indices=tokens,
            kv_cache=[self.cache],
            block_size=block_size,
        )

    def run(self, *, scale: float = 0.4, window: int | None = None, soft_cap: float | None = None) -> Tensor:
        ops = for_device("cpu")
        plan = ops.plan_attention(self.batch)
        return ops.attention(self.q, self.cache, plan, scale=scale, window=window, soft_cap=soft_cap)

    def expected(self, *, scale: float = 0.4, window: int | None = None, soft_cap: float | None = None) -> Tensor:
        queries = self.q.split([q for q, _ in self.lens])
        pairs = zip(queries, self.rows, strict=True)
        return torch.cat([dense(q, k, v, scale, window, soft_cap) for q, (k, v) in pairs])

    def check(self, tolerance: float = 2e-5, **options) -> None:
        torch.testing.assert_close(
            self.run(**options).double(), self.expected(**options), rtol=tolerance, atol=tolerance
        )


RAGGED = [(1, 1), (5, 5), (1, 37), (3, 19), (1, 4), (12, 12), (70, 75), (1, 5), (3, 20), (5, 60)]


@pytest.mark.parametrize("window", [None, 1, 4, 6, 33, 1000])
@pytest.mark.parametrize("block_size", [1, 4, 16])
def test_ragged_rows(window, block_size):
    Case(RAGGED, block_size=block_size).check(window=window)


@pytest.mark.parametrize(("hq", "hk", "d"), [(1, 1, 2), (3, 3, 64), (9, 3, 64), (8, 1, 16), (6, 2, 80)])
def test_head_layouts(hq, hk, d):
    Case([(1, 17), (1, 20), (7, 30), (4, 4)], hq=hq, hk=hk, d=d).check(scale=d**-0.5)


@pytest.mark.parametrize("seed", range(12))
def test_random_batches(seed):
    rng = random.Random(seed)
    lens = []
    for _ in range(rng.randint(1, 12)):
        queries = rng.choice([1, 1, 1, 2, 3, rng.randint(1, 40)])
        lens.append((queries, queries + rng.choice([0, 1, rng.randint(0, 80)])))
    hk, block_size = rng.choice([1, 2, 3]), rng.choice([1, 2, 8, 16])
    case = Case(lens, hk=hk, hq=hk * rng.choice([1, 2, 3]), d=8, block_size=block_size, seed=seed)
    case.check(window=rng.choice([None, rng.randint(1, 60)]), soft_cap=rng.choice([None, 2.0]))


def test_soft_cap_matters():
    case = Case(RAGGED)
    case.check(soft_cap=0.5)
    assert not torch.allclose(case.run(soft_cap=0.5), case.run(), atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    Case(RAGGED, dtype=dtype).check(tolerance=0.02, window=None)


def test_cache_of_another_dtype():
    Case(RAGGED, dtype=torch.float32, kv_dtype=torch.bfloat16).check()


def test_small_pieces_give_the_same(monkeypatch):
    case = Case(RAGGED)
    whole = case.run(window=9)
    monkeypatch.setattr(attention_plan, "MAX_PIECE_SCORES", 64)
    monkeypatch.setattr(attention_plan, "MAX_PIECE_QUERIES", 2)
    torch.testing.assert_close(case.run(window=9), whole, rtol=1e-5, atol=1e-5)
    case.check(window=9)


def test_blocks_of_a_passed_window_are_not_read():
    case = Case([(1, 60), (2, 50)], block_size=4)
    expected = case.run(window=5)
    for row, context in ((0, 60), (1, 50)):
        case.batch.block_tables[row, : (context - 2 - 5) // 4] = 10**9  # reading one would fail
    assert torch.equal(case.run(window=5), expected)


def test_extreme_scores_stay_finite():
    case = Case(RAGGED)
    assert case.run(scale=1e4).isfinite().all()


def test_a_row_does_not_depend_on_its_neighbours():
    case = Case([(1, 30), (1, 40), (1, 31)], seed=4)
    expected = case.run()
    for cache in case.cache.tensors:
        cache[case.batch.block_tables[1, :10]] = 7.0
    changed = case.run()
    assert torch.equal(changed[[0, 2]], expected[[0, 2]])
    assert not torch.equal(changed[1], expected[1])


def test_plan_of_another_backend_is_refused():
    case = Case([(1, 1)])
    with pytest.raises(TypeError, match="plan_attention"):
        for_device("cpu").attention(case.q, case.cache, AttentionPlan(), scale=1.0)


def rows(*lens: tuple[int, int]) -> list[Row]:
    return [Row(i, 0, q, context - q, 0) for i, (q, context) in enumerate(lens)]


def test_partition_keeps_every_row_once():
    rng = random.Random(0)
    given = rows(*((q, q + rng.randint(0, 900)) for q in rng.choices([1, 1, 1, 5, 300], k=200)))
    groups = partition(given)
    assert sorted(row.index for group in groups for row in group) == list(range(200))
    assert all(len({row.num_queries for row in group}) == 1 for group in groups)


def test_partition_bounds_padding_and_memory():
    rng = random.Random(1)
    given = rows(*((1, rng.randint(1, 20000)) for _ in range(300)))
    for group in partition(given):
        padded = len(group) * max(row.num_keys for row in group)
        needed = sum(row.num_keys for row in group)
        assert padded <= attention_plan.PADDING_SHARE * needed + attention_plan.PADDING_SLACK
        assert len(group) == 1 or padded <= attention_plan.MAX_GROUP_KEYS


def test_equal_rows_are_one_group_without_a_mask():
    plan = GroupedPlan(Case([(1, 24)] * 6).batch, Workspace())
    (group,) = plan.groups(None)
    assert group.pieces[0].mask is None
    assert group.tokens == slice(0, 6)


def test_masks_of_a_long_chunk_are_small():
    case = Case([(256, 4096)], hq=1, hk=1, d=2, block_size=64)
    (group,) = GroupedPlan(case.batch, Workspace()).groups(None)
    assert sum(piece.mask.numel() for piece in group.pieces) <= 256 * attention_plan.MAX_PIECE_QUERIES


def test_workspace_is_reused_in_and_out_of_inference_mode():
    workspace, like = Workspace(), torch.zeros(1)
    with torch.inference_mode():
        first = workspace.take("x", (3, 4), like)
    again = workspace.take("x", (2, 5), like).fill_(1)
    assert again.data_ptr() == first.data_ptr()
    assert workspace.take("y", (2, 5), like).data_ptr() != first.data_ptr()
    assert workspace.take("x", (2, 5), like.double()).dtype == torch.float64
    assert workspace.take("x", (90, 90), like).shape == (90, 90)
