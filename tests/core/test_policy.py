from __future__ import annotations

from random import Random

from helpers_core import make_request
from octavo.core.policy import WaitingQueue, fcfs, priority
from octavo.core.request import Request, Status


def numbered(sequence: int, priority_: int = 0) -> Request:
    return make_request(str(sequence), 1, sequence=sequence, priority=priority_)


def test_fcfs_is_by_arrival_alone() -> None:
    queue = WaitingQueue(fcfs)
    for sequence, urgency in [(2, 0), (0, 9), (1, 5)]:
        queue.push(numbered(sequence, urgency))
    assert [queue.pop().sequence for _ in range(3)] == [0, 1, 2]
    assert queue.first() is None


def test_priority_is_by_urgency_then_arrival() -> None:
    queue = WaitingQueue(priority)
    for sequence, urgency in [(0, 1), (1, 0), (2, -1), (3, 0)]:
        queue.push(numbered(sequence, urgency))
    assert [queue.pop().sequence for _ in range(4)] == [2, 1, 3, 0]


def test_finished_requests_are_skipped_and_not_counted() -> None:
    queue = WaitingQueue(fcfs)
    requests = [numbered(i) for i in range(4)]
    for request in requests:
        queue.push(request)
    for i in (0, 2):
        requests[i].status = Status.FINISHED
        queue.discard(requests[i])
    assert len(queue) == 2
    assert {r.sequence for r in queue} == {1, 3}
    assert queue.first() is requests[1]
    assert [queue.pop().sequence for _ in range(2)] == [1, 3]
    assert len(queue) == 0


def test_aborted_requests_behind_a_stuck_front_do_not_pile_up() -> None:
    queue = WaitingQueue(fcfs)
    queue.push(numbered(0))
    for sequence in range(1, 10_000):
        request = numbered(sequence)
        queue.push(request)
        request.status = Status.FINISHED
        queue.discard(request)
    assert len(queue) == 1
    assert len(queue._heap) < 50


def test_order_survives_the_sweep() -> None:
    rng, queue = Random(0), WaitingQueue(priority)
    requests = [numbered(i, rng.randrange(5)) for i in range(200)]
    for request in requests:
        queue.push(request)
    alive = set(rng.sample(range(200), 20))
    for request in requests:
        if request.sequence not in alive:
            request.status = Status.FINISHED
            queue.discard(request)
    expected = sorted((r for r in requests if r.sequence in alive), key=priority)
    assert [queue.pop() for _ in range(20)] == expected
