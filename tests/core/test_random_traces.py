"""Random traces: many small worlds, all checked after each move. A failure names the seed."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest

from helpers_core_world import episode


def run_traces(seed: int, num_steps: int) -> Counter[str]:
    """Run episodes until ``num_steps`` steps were planned; what happened how often."""
    seen: Counter[str] = Counter()
    number = 0
    while seen["plan"] < num_steps:
        name = f"{seed}/{number}"
        try:
            seen += episode(Random(name), num_moves=400).seen
        except Exception as error:
            raise AssertionError(f"episode {name!r}: {error}") from error
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
