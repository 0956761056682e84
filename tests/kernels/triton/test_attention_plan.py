"""How a step's rows are cut into work."""

from __future__ import annotations

import random

import torch

from helpers_paged import PagedCase
from octavo.kernels.triton.attention_plan import FreshRow, TritonPlan

LENS = [(1, 1), (5, 5), (1, 37), (3, 19), (40, 40), (12, 90), (2, 2)]


def plan(lens: list[tuple[int, int]]) -> TritonPlan:
    return TritonPlan(PagedCase(lens).batch)


def covered(tiles: torch.Tensor | None, lens: list[tuple[int, int]], queries: int) -> list[tuple[int, int]]:
    pairs = [] if tiles is None else tiles.tolist()
    return [(r, i) for r, first in pairs for i in range(first, min(first + queries, lens[r][0]))]


def test_tiles_hold_every_query_of_the_longer_rows_once():
    lens = [(q, q + random.Random(q).randint(0, 50)) for q in (1, 2, 7, 8, 9, 1, 64)]
    for queries in (1, 3, 8, 100):
        found = covered(plan(lens).tiles(queries), lens, queries)
        assert sorted(found) == [(r, i) for r, (q, _) in enumerate(lens) if q > 1 for i in range(q)]


def test_longest_tiles_come_first():
    tiles = plan(LENS).tiles(8)
    positions = [LENS[r][1] - LENS[r][0] + first for r, first in tiles.tolist()]
    assert positions == sorted(positions, reverse=True)


def test_fresh_rows_apart_from_cached_ones():
    p = plan(LENS)
    assert p.fresh_rows == [FreshRow(1, 5), FreshRow(10, 40), FreshRow(62, 2)]
    assert {r for r, _ in p.tiles(8, "fresh").tolist()} == {1, 4, 6}
    assert {r for r, _ in p.tiles(8, "cached").tolist()} == {3, 5}
    assert plan([(4, 4), (1, 9)]).tiles(8, "cached") is None


def test_whole_multiples_are_left_out():
    found = covered(plan(LENS).tiles(8, "fresh", whole=16), LENS, 8)
    assert sorted(found) == sorted([(1, i) for i in range(5)] + [(4, i) for i in range(32, 40)] + [(6, 0), (6, 1)])
    assert plan([(32, 32)]).tiles(8, "fresh", whole=16) is None


def test_rows_with_one_query():
    p = plan(LENS)
    assert p.decode_rows.tolist() == [0, 2]
    assert (p.num_decode_rows, p.max_decode_context, p.num_prefill_rows, p.max_queries) == (2, 37, 5, 40)
    p = plan([(1, 3), (1, 9)])
    assert p.decode_rows is None
    assert (p.num_decode_rows, p.max_decode_context, p.num_prefill_rows) == (2, 9, 0)


def test_lengths_on_the_device():
    case = PagedCase(LENS)
    rows = TritonPlan(case.batch).rows
    assert rows.query_starts.tolist() == [0, 1, 6, 7, 10, 50, 62, 64]
    assert rows.context_lens.tolist() == [context for _, context in LENS]
    assert rows.table_rows.tolist() == list(range(len(LENS)))
    given = case.with_slots()
    p = TritonPlan(given)
    assert p.rows is given.rows
    assert p.decode_rows.tolist() == [0, 2]
