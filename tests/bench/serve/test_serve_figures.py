"""Figures of outcomes whose times are known, and events from bytes."""

from __future__ import annotations

import dataclasses
import json
from itertools import pairwise

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.bench.serve.events import MOST_SAID, EventReader, error_text
from octavo.bench.serve.figures import figures_of, is_good, parse_bounds
from octavo.bench.serve.outcome import Outcome
from octavo.bench.serve.text import figures_text
from octavo.errors import UsageError


def outcome(sent: float, times: list[float], tokens: int | None = None, **more: object) -> Outcome:
    fields = {"due": sent - 0.25, "sent": sent, "times": times, "ended": (times or [sent])[-1] + 0.5, **more}
    return Outcome(prompt_tokens=3, output_tokens=len(times) if tokens is None else tokens, **fields)  # type: ignore[arg-type]


OUTCOMES = [
    outcome(10.0, [11.0, 11.5, 13.0]),
    outcome(10.5, [10.75], 1),
    outcome(12.0, [14.0, 15.0], 5),
    outcome(12.5, [12.75], left=True),
    outcome(12.5, [], malformed=True),
    outcome(13.0, [], error="HTTP 429"),
    outcome(13.0, [13.5], error="HTTP 429"),
    outcome(13.0, [], error="timeout"),
]


def test_figures() -> None:
    figures = figures_of(OUTCOMES, {"ttft": 1.5, "tpot": 1.0}, busy=0.5)
    assert (figures.requests, figures.completed, figures.left, figures.malformed) == (8, 3, 1, 1)
    assert figures.errors == {"HTTP 429": 2, "timeout": 1}
    assert (figures.seconds, figures.prompt_tokens, figures.output_tokens) == (5.5, 9, 9)
    assert figures.rates["output_tokens_per_second"] == pytest.approx(9 / 5.5)
    assert figures.rates["requests_per_second"] == pytest.approx(3 / 5.5)
    for summary, values in (
        (figures.time_to_first_token, [1.0, 0.25, 2.0]),
        (figures.inter_token, [0.5, 1.5, 1.0]),
        (figures.time_per_output_token, [1.0, 0.25]),
        (figures.end_to_end, [3.5, 0.75, 3.5]),
        (figures.lateness, [0.25] * 8),
    ):
        assert summary is not None
        expected = [len(values), np.mean(values), *np.quantile(values, [0.5, 0.9, 0.95, 0.99])]
        assert list(dataclasses.astuple(summary)) == pytest.approx(expected)
    assert figures.goodput == pytest.approx(2 / 5.5)


def test_nothing_but_errors_has_figures_too() -> None:
    figures = figures_of([outcome(1.0, [], error="timeout")], {})
    assert (figures.completed, figures.time_to_first_token, figures.goodput) == (0, None, None)
    assert "1 x timeout" in figures_text(figures)


@pytest.mark.parametrize(
    ("bounds", "good"),
    [
        ({}, True),
        ({"ttft": 1.0}, True),
        ({"ttft": 0.99}, False),
        ({"itl": 1.5}, True),
        ({"itl": 1.49}, False),
        ({"tpot": 1.0}, True),
        ({"tpot": 0.99}, False),
        ({"e2e": 3.5, "ttft": 5}, True),
        ({"e2e": 3.49, "ttft": 5}, False),
    ],
)
def test_a_good_request_keeps_all_bounds(bounds: dict[str, float], good: bool) -> None:
    assert is_good(OUTCOMES[0], bounds) == good


def test_bounds() -> None:
    assert parse_bounds("ttft:500 itl:50") == {"ttft": 0.5, "itl": 0.05}
    assert parse_bounds(" tpot:0.5,e2e:10 ") == {"tpot": 0.0005, "e2e": 0.01}
    for wrong in ("", "ttft", "ttft:", "ttft:-1", "speed:3", "ttft:1 x", "ttft=1"):
        with pytest.raises(UsageError, match="accepted: ttft:MS, itl:MS, tpot:MS, e2e:MS"):
            parse_bounds(wrong)


def test_a_table() -> None:
    text = figures_text(figures_of(OUTCOMES, {"ttft": 1.5}, busy=0.9))
    assert "errors               2 x HTTP 429, 1 x timeout" in text
    assert "goodput (ttft:1500)  " in text
    assert "time to first token" in text
    assert "The client may have been the limit" in text
    assert "The client" not in figures_text(figures_of(OUTCOMES, {}, busy=0.5))


STREAM = (
    'data: {"choices":[{"delta":{"role":"assistant","content":""}}]}\r\n\r\n'
    ': ping\n\nevent: x\ndata: {"choices":[{"text":"ü"}]}\n\n'
    'data:{"choices":[{"delta":{"reasoning_content":"hm"}}],"extra":[1]}\n\n'
    'data: {"choices":[{"delta":{"tool_calls":[{"index":0}]}}]}\n\n'
    'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":4,"other":{}}}\n\n'
    "data: [DONE]\n\n"
).encode()


@given(st.lists(st.integers(0, len(STREAM)), max_size=8))
def test_events_do_not_depend_on_how_the_bytes_come(cuts: list[int]) -> None:
    reader, events = EventReader(), []
    for start, end in pairwise([0, *sorted(cuts), len(STREAM)]):
        events += reader.feed(STREAM[start:end])
    assert [bool(e.choices) and e.choices[0].has_news for e in events] == [False, True, True, True, False]
    assert events[-1].usage is not None
    assert (events[-1].usage.prompt_tokens, events[-1].usage.completion_tokens) == (3, 4)
    assert reader.done


def test_an_error_is_seen_and_rubbish_raises() -> None:
    (event,) = EventReader().feed(b"data: " + json.dumps({"error": {"message": "x"}}).encode() + b"\n\n")
    assert event.error == {"message": "x"}
    with pytest.raises(msgspec.MsgspecError):
        EventReader().feed(b"data: {rubbish\n\n")


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b'{"error": {"message": "too\\nlong"}}', "too long"),
        (b'{"error": "no object"}', '{"error": "no object"}'),
        (b"[1]", "[1]"),
        (b"<h1>Bad\r\nGateway</h1>", "<h1>Bad Gateway</h1>"),
        (b"\xff", "\ufffd"),
        (b"", ""),
        (b"x" * 999, "x" * MOST_SAID),
    ],
)
def test_what_a_server_says_about_an_error_is_one_line(body: bytes, said: str) -> None:
    assert error_text(body) == said
