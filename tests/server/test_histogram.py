"""Counting in buckets, against prometheus_client's own histogram."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import Histogram as Oracle

from octavo.server.histogram import Histogram, one_two_five

BOUNDS = (0.5, 1, 2.5, 10)


@given(st.lists(st.tuples(st.floats(0, 20), st.integers(1, 5))))
def test_counts_are_prometheus_clients(values: list[tuple[float, int]]) -> None:
    ours, oracle = Histogram(BOUNDS), Oracle("name", "text", buckets=BOUNDS, registry=None)
    for value, times in values:
        ours.observe(value, times)
        for _ in range(times):
            oracle.observe(value)
    samples = next(iter(oracle.collect())).samples
    expected = [s.value for s in samples if s.name == "name_bucket"]
    assert [count for _, count in ours.cumulative()] == expected
    assert ours.total == pytest.approx(next(s.value for s in samples if s.name == "name_sum"))


def test_a_bound_belongs_to_its_bucket() -> None:
    histogram = Histogram(BOUNDS)
    for bound in BOUNDS:
        histogram.observe(bound)
    assert histogram.counts == [1, 1, 1, 1, 0]


@pytest.mark.parametrize("limit", [1, 4, 5, 99, 100, 8192, random.Random(0).randrange(10**6)])
def test_one_two_five(limit: int) -> None:
    steps = one_two_five(limit)
    assert steps == tuple(i for i in range(1, limit + 1) if str(i).rstrip("0") in {"1", "2", "5"})
