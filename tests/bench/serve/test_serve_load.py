"""A load on a server whose delays and faults are known."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from helpers_fake_openai import FakeOpenAI, serving
from octavo.bench.serve.outcome import Outcome
from octavo.bench.serve.plan import Planned
from octavo.bench.serve.processes import run_load
from octavo.bench.serve.server import describe_server
from octavo.bench.serve.target import Target
from octavo.errors import OctavoError, UsageError


def load(fake: FakeOpenAI, plan: list[Planned], concurrency: int | None = None, **options: Any) -> list[Outcome]:
    with serving(fake) as url:
        return run_load(Target(url, "fake-1", **options), plan, concurrency).outcomes


def many(count: int, output_len: int = 5, **options: Any) -> list[Planned]:
    return [Planned(0.0, f"prompt {i}", output_len, **options) for i in range(count)]


@pytest.mark.parametrize("api", ["completions", "chat"])
def test_times_are_the_servers_delays(api: str) -> None:
    """Never shorter than the delays; longer by whatever this machine does besides, which nothing is said of."""
    first, gap = 0.15, 0.05
    outcomes = load(FakeOpenAI(first, gap), many(4), api=api)
    for outcome in outcomes:
        assert outcome.complete
        assert (outcome.prompt_tokens, outcome.output_tokens, len(outcome.times)) == (7, 5, 5)
        assert outcome.time_to_first_token is not None
        assert first <= outcome.time_to_first_token <= outcome.end_to_end
        assert sum(outcome.gaps) >= 4 * gap * 0.9
        assert outcome.time_per_output_token == pytest.approx(sum(outcome.gaps) / 4)


def test_requests_are_sent_when_they_are_due_and_not_when_others_have_ended() -> None:
    outcomes = load(FakeOpenAI(gather=4), [Planned(0.1 * i, "p", 1) for i in range(4)], timeout=60)
    assert all(o.complete for o in outcomes)  # none is answered before all have come
    start = outcomes[0].due
    assert [o.due - start for o in outcomes] == pytest.approx([0.0, 0.1, 0.2, 0.3])
    assert all(o.sent >= o.due - 0.002 for o in outcomes)  # uvloop's timers are of whole milliseconds


def test_no_more_at_once_than_the_concurrency() -> None:
    fake = FakeOpenAI(first=0.02)
    assert all(o.complete for o in load(fake, many(12), concurrency=3))
    assert fake.most_active == 3


def test_without_the_servers_count_pieces_are_counted() -> None:
    (outcome,) = load(FakeOpenAI(usage=False), many(1))
    assert (outcome.prompt_tokens, outcome.output_tokens) == (0, 5)


def test_an_answer_of_tokens_without_text_is_an_answer() -> None:
    (outcome,) = load(FakeOpenAI(manner="silent"), many(1))
    assert (outcome.error, outcome.output_tokens, outcome.times) == (None, 5, [])
    assert outcome.time_to_first_token is outcome.time_per_output_token is None


@pytest.mark.parametrize(
    ("manner", "error"),
    [
        ("status", "HTTP 429"),
        ("break", "the stream broke off"),
        ("error event", "an error in the stream"),
        ("rubbish", "an event that is no JSON"),
    ],
)
def test_faults_of_the_server_have_names(manner: str, error: str) -> None:
    assert [o.error for o in load(FakeOpenAI(manner=manner), many(3))] == [error] * 3


def test_a_request_that_takes_too_long() -> None:
    (outcome,) = load(FakeOpenAI(first=30), many(1), timeout=0.1)
    assert outcome.error == "timeout"


def test_a_server_that_is_not_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
    (outcome,) = run_load(Target(url, "m"), many(1)).outcomes
    assert outcome.error is not None
    assert outcome.error.startswith("cannot connect: ")
    with pytest.raises(OctavoError, match=f"no server at {url}"):
        describe_server(url, None, None)


def test_who_hangs_up_is_gone_for_the_server_too() -> None:
    fake = FakeOpenAI(gap=0.05)
    plan = [*many(2, 40, leave_after=3), *many(1, 40, leave_after=0), *many(1, 3)]
    outcomes = load(fake, plan)
    assert [o.left for o in outcomes] == [True, True, True, False]
    assert all(o.error is None for o in outcomes)
    assert all(3 <= len(o.times) < 40 for o in outcomes[:2])
    assert fake.left == 3


def test_what_is_malformed_must_be_refused() -> None:
    kinds = ["empty", "cut", "no UTF-8", "no object", "wrong type", "out of range", "no prompt", "wrong prompt"]
    plan = [Planned(0.0, "p", 3, malformed=kind) for kind in kinds]
    assert [(o.malformed, o.error) for o in load(FakeOpenAI(), plan)] == [(True, None)] * len(kinds)
    (accepted, *_) = load(FakeOpenAI(manner="accepts all"), plan[:1])
    assert (accepted.malformed, accepted.error) == (False, "malformed (empty): HTTP 200")


def test_several_processes_share_the_load() -> None:
    fake = FakeOpenAI(first=0.05)
    with serving(fake) as url:
        driven = run_load(Target(url, "fake-1"), many(9), concurrency=3, processes=2)
    assert len(driven.outcomes) == 9
    assert all(o.complete for o in driven.outcomes)
    assert len({body["prompt"] for body in fake.bodies}) == 9
    assert fake.most_active <= 3
    assert driven.busy > 0


def test_what_a_server_says_of_itself() -> None:
    with serving(FakeOpenAI(api_key="k")) as url:
        assert describe_server(url + "/", "k", None) == {"server": url, "served_model": "fake-1"}
        assert describe_server(url, "k", "fake-2")["served_model"] == "fake-2"
        with pytest.raises(UsageError, match="no model 'x'; accepted: fake-1, fake-2"):
            describe_server(url, "k", "x")
        with pytest.raises(OctavoError, match="status 401; give --api-key"):
            describe_server(url, None, None)
