"""Deadlines come up in order, and those of requests that have ended are not kept."""

from __future__ import annotations

import random

from octavo.engine_process.deadlines import Deadlines


def test_they_come_up_in_order() -> None:
    moments = list(range(500))
    random.Random(0).shuffle(moments)
    deadlines = Deadlines(lambda key: True)
    for moment in moments:
        deadlines.add(moment, 1000 + moment)
    assert list(deadlines.overdue(99)) == list(range(1000, 1100))
    assert list(deadlines.overdue(99)) == []
    assert len(deadlines) == 400


def test_those_of_ended_requests_cost_no_memory() -> None:
    living: set[int] = set()
    deadlines = Deadlines(living.__contains__)
    for key in range(10_000):
        living.add(key)
        deadlines.add(1e9 - key, key)
        living.discard(key - 10)
        assert len(deadlines) <= 65
    assert set(deadlines.overdue(1e9)) >= living
