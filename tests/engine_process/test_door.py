"""The limits of the queue, and how long a refused caller is told to wait."""

from __future__ import annotations

import pytest

from octavo.client.verbs import BusyError
from octavo.client.wire import Limits
from octavo.engine_process.door import Door, Rate


def enter(door: Door, count: int = 1, tokens: int = 10, **state: float) -> None:
    door.check(count, tokens, **{"waiting": 0, "rows": 0, "waiting_tokens": 0, "now": 0.0, **state})  # type: ignore[arg-type]


def refused(door: Door, count: int = 1, tokens: int = 10, **state: float) -> BusyError:
    with pytest.raises(BusyError) as caught:
        enter(door, count, tokens, **state)
    return caught.value


def test_without_limits_anything_goes() -> None:
    enter(Door(Limits()), 1000, 10**9, waiting=10**6, waiting_tokens=10**9)


def test_the_queue_is_what_the_batch_has_no_row_for() -> None:
    door = Door(Limits(max_queue=2))
    enter(door, waiting=1)
    enter(door, waiting=4, rows=3)  # a burst between two steps: three of the four are about to run
    assert "2 requests wait already; at most 2" in str(refused(door, waiting=2))
    assert "at most 2 are queued" in str(refused(door, waiting=5, rows=3))


def test_completions_of_one_prompt_count_each() -> None:
    door = Door(Limits(max_queue=2))
    enter(door, 5, rows=3)
    refused(door, 6, rows=3)


def test_no_queue_at_all_leaves_the_rows() -> None:
    door = Door(Limits(max_queue=0))
    enter(door, rows=1)
    refused(door, rows=0)


def test_tokens_are_limited_but_one_large_request_is_taken_alone() -> None:
    door = Door(Limits(max_queue_tokens=100))
    enter(door, tokens=5000, rows=3)
    enter(door, tokens=50, waiting=1, waiting_tokens=50)
    assert "60 tokens wait already" in str(refused(door, tokens=50, waiting=1, waiting_tokens=60, rows=3))


def test_the_wait_is_estimated_from_the_rate() -> None:
    door = Door(Limits(max_queue=2, max_queue_tokens=1000))
    for second in range(20):
        door.left_the_queue(100, float(second))  # one request and 100 tokens a second
    assert refused(door, waiting=5, now=20.0).retry_after == pytest.approx(4, rel=0.15)
    over = refused(door, tokens=500, waiting=1, waiting_tokens=1500, now=20.0)
    assert over.retry_after == pytest.approx(10, rel=0.15)


def test_the_wait_has_bounds() -> None:
    door = Door(Limits(max_queue=0))
    assert refused(door).retry_after == 60  # nothing has ever moved
    for _ in range(1000):
        door.left_the_queue(1, 0.0)
    assert refused(door, now=0.0).retry_after == 1


@pytest.mark.parametrize("per_second", [0.2, 5.0, 300.0])
@pytest.mark.parametrize("seconds", [3, 30, 300])
def test_a_steady_rate_is_found(per_second: float, seconds: int) -> None:
    rate = Rate()
    count = max(1, int(per_second * seconds))
    for i in range(count):
        rate.add(1, i / per_second)
    if count > 2:
        assert rate.per_second((count - 1) / per_second) == pytest.approx(per_second, rel=0.6 if count < 10 else 0.2)


def test_what_was_long_ago_counts_less() -> None:
    rate = Rate(half_life=10)
    assert rate.per_second(5.0) == 0
    for second in range(100):
        rate.add(10, float(second))
    assert rate.per_second(109.0) == pytest.approx(rate.per_second(99.0) / 2, rel=0.05)
