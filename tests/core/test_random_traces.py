"""Random traces: many small worlds, all checked after each move. A failure names the seed."""

from __future__ import annotations

import tracemalloc
from collections import Counter
from random import Random

import pytest

from helpers_core_world import Setup, World, wander
from octavo import core


def run_traces(seed: int, num_steps: int) -> Counter[str]:
    """Run episodes until ``num_steps`` steps were planned; what happened how often."""
    seen: Counter[str] = Counter()
    number = 0
    while seen["plan"] < num_steps:
        name = f"{seed}/{number}"
        try:
            rng = Random(name)
            world = World(Setup.draw(rng))
            wander(world, rng, 400)
        except Exception as error:
            raise AssertionError(f"episode {name!r}: {error}") from error
        seen += world.seen
        number += 1
    return seen


def check_variety(seen: Counter[str], num_steps: int) -> None:
    """A trace in which nothing happens proves nothing."""
    rare = {"Preempted": 50, "Finished": 50, "abort": 200, "error": 2000, "fail_all": 20_000, "Waits": 20}
    for kind, per in rare.items():
        assert seen[kind] >= num_steps // per, f"{kind} came only {seen[kind]} times in {num_steps} steps"


def test_random_traces() -> None:
    check_variety(run_traces(seed=0, num_steps=200_000), 200_000)


@pytest.mark.slow
def test_five_million_random_steps() -> None:
    check_variety(run_traces(seed=1, num_steps=5_000_000), 5_000_000)


def test_memory_stays_flat() -> None:
    """After ten times the work, once all is over, the core holds no more than before."""
    rng, world = Random(5), World(Setup())
    here = tracemalloc.Filter(True, f"{core.__path__[0]}/*")
    sizes = []
    tracemalloc.start()
    try:
        for num_moves in (1000, 10_000):
            wander(world, rng, num_moves)
            snapshot = tracemalloc.take_snapshot().filter_traces([here])
            sizes.append(sum(trace.size for trace in snapshot.traces))
    finally:
        tracemalloc.stop()
    assert sizes[1] < sizes[0] + 4096, sizes
