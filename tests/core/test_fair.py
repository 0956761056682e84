"""Fair shares between keys: nobody is delayed by how much another one sends."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest

from helpers_core import advance, make_request, make_scheduler, of_type
from octavo.core.fair import _SPARE_COUNTERS, FairQueue
from octavo.core.plan import Preempted, StepPlan
from octavo.core.request import Request, Status
from octavo.core.scheduler import Scheduler

SEQS, PROMPT, OUTPUT = 3, 12, 10


def numbered(sequence: int, key: str, priority: int = 0) -> Request:
    return make_request(str(sequence), 1, sequence=sequence, share_key=key, priority=priority)


def charge(queue: FairQueue, request: Request, count: int) -> None:
    request.num_computed += count
    queue.charge(request, count)


def test_keys_take_turns_and_each_is_first_come_first_served() -> None:
    queue = FairQueue()
    for sequence, key in enumerate("aaabbc"):
        queue.push(numbered(sequence, key))
    assert (len(queue), len(list(queue))) == (6, 6)
    assert [queue.pop().sequence for _ in range(6)] == [0, 3, 5, 1, 4, 2]
    assert (len(queue), queue.first()) == (0, None)


def test_within_a_key_the_urgent_come_first() -> None:
    queue = FairQueue()
    for sequence, key, priority in [(0, "a", 1), (1, "a", -1), (2, "b", 9), (3, "a", 0)]:
        queue.push(numbered(sequence, key, priority))
    assert [queue.pop().sequence for _ in range(4)] == [1, 2, 3, 0]


def test_whoever_had_less_computed_comes_first() -> None:
    queue = FairQueue()
    for sequence, key in enumerate("aabb"):
        queue.push(numbered(sequence, key))
    charge(queue, queue.pop(), 5)
    second = queue.pop()
    assert second.share_key == "b"
    charge(queue, second, 9)
    assert queue.pop().share_key == "a"


def test_a_pause_saves_up_no_claim() -> None:
    queue = FairQueue()
    queue.push(numbered(0, "late"))
    charge(queue, queue.pop(), 1)
    for sequence in range(1, 6):
        queue.push(numbered(sequence, "busy"))
        charge(queue, queue.pop(), 100)
    queue.push(numbered(6, "busy"))
    queue.push(numbered(7, "late"))
    queue.push(numbered(8, "late"))
    assert queue.pop().share_key == "busy"  # it has waited longer, and they are equal
    assert queue.pop().share_key == "late"


def test_what_is_computed_again_is_not_charged_again() -> None:
    queue = FairQueue()
    a, b = numbered(0, "a"), numbered(1, "b")
    for request in (a, b):
        queue.push(request)
        charge(queue, queue.pop(), 10)
    b.num_computed = 0  # it was preempted
    queue.push(b)
    charge(queue, queue.pop(), 10)
    queue.push(numbered(2, "b"))
    queue.push(numbered(3, "a"))
    assert queue.pop().share_key == "b"


def test_tokens_from_the_cache_are_not_charged() -> None:
    scheduler = make_scheduler(policy="fair", max_num_seqs=1, block_size=4)
    prompt = list(range(1, 34))
    for name, key in [("cold", "a"), ("warm", "a"), ("other", "b")]:
        scheduler.add(make_request(name, prompt if key == "a" else [9, *prompt], 1, share_key=key))
    while scheduler.has_work():
        advance(scheduler)
    assert scheduler.waiting._queue._counters == {"a": 33 + 1, "b": 34}


def test_finished_requests_leave_the_queue() -> None:
    queue = FairQueue()
    requests = [numbered(i, "ab"[i % 2]) for i in range(6)]
    for request in requests:
        queue.push(request)
    for i in (0, 1, 3, 5):
        requests[i].status = Status.FINISHED
        queue.discard(requests[i])
    assert len(queue) == 2
    assert [queue.pop().sequence for _ in range(2)] == [2, 4]
    queue.push(numbered(7, "b"))
    assert queue.pop().sequence == 7


def test_any_number_of_keys_leaves_no_counters_behind() -> None:
    queue = FairQueue()
    for sequence in range(5 * _SPARE_COUNTERS):
        queue.push(numbered(sequence, f"key {sequence}"))
        charge(queue, queue.pop(), 3)
        queue.push(numbered(sequence, "always"))
        charge(queue, queue.pop(), 3)
    assert len(queue._counters) < 2 * _SPARE_COUNTERS
    assert len(queue._heap) <= 2


@pytest.mark.parametrize("policy", ["fcfs", "fair"])
def test_a_thousand_requests_of_one_key_delay_another_by_a_batch(policy: str) -> None:
    scheduler = make_scheduler(500, policy=policy, max_num_seqs=8)
    for i in range(1000):
        scheduler.add(make_request(f"many {i}", 8, 4, share_key="many"))
    for _ in range(20):
        advance(scheduler)
    scheduler.add(make_request("one", 8, 4, share_key="one"))
    steps = 0
    while "one" in scheduler.requests:
        advance(scheduler)
        steps += 1
    assert (steps < 20) == (policy == "fair")  # in order of arrival it waits for some hundred others


class Shares:
    """Counts from the plans, and from nothing else, how many tokens were computed for each key."""

    def __init__(self) -> None:
        self.served: Counter[str] = Counter()
        self.preemptions = 0
        self._slots: dict[int, str] = {}
        self._computed: Counter[str] = Counter()

    def hear(self, plan: StepPlan) -> None:
        self._slots |= {new.slot: new.request_id for new in plan.entering}
        self.preemptions += len(of_type(Preempted, plan.events))
        for row in plan.rows:
            name, end = self._slots[row.slot], row.start + row.num_tokens
            self.served[name.split()[0]] += max(0, min(row.num_tokens, end - self._computed[name]))
            self._computed[name] = max(self._computed[name], end)


def top_up(scheduler: Scheduler, key: str, rng: Random, sizes: tuple[int, int], at_least: int) -> None:
    """See that ``key`` has requests waiting, of random sizes up to ``sizes`` (prompt, output)."""
    for _ in range(at_least - sum(r.share_key == key for r in scheduler.waiting)):
        prompt, output = (rng.randint(1, most) for most in sizes)
        name = f"{key} {rng.getrandbits(64)}"
        scheduler.add(make_request(name, [rng.randint(1, 50)] * prompt, output, share_key=key))


@pytest.mark.parametrize("seed", range(12))
def test_shares_of_busy_keys_differ_by_a_batch_at_most(seed: int) -> None:
    """The paper's theorem: keys that have requests waiting all the time get equal amounts of work, up to twice what the
    batch holds. Here with preemptions, a prefix cache, and a third key that comes and goes.
    """
    rng, shares = Random(seed), Shares()
    blocks, budget = (11, 40)[seed % 2], (SEQS, 8, 40)[seed % 3]
    scheduler = make_scheduler(blocks, 2, seed % 4 < 2, policy="fair", max_num_seqs=SEQS, max_num_batched_tokens=budget)
    for _ in range(1500):
        top_up(scheduler, "small", rng, (2, 1), SEQS + 1)
        top_up(scheduler, "large", rng, (PROMPT, OUTPUT), SEQS + 1)
        top_up(scheduler, "visitor", rng, (PROMPT, 1), rng.random() < 0.1)
        shares.hear(advance(scheduler)[0])
        assert abs(shares.served["small"] - shares.served["large"]) <= 2 * SEQS * (PROMPT + OUTPUT)
    assert min(shares.served["small"], shares.served["large"]) > 1000, shares.served
    assert shares.preemptions or blocks == 40 or budget == SEQS
