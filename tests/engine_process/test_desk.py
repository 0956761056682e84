"""What the desk counts of requests that are refused in the middle of an answer."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from octavo.client.wire import Refused
from octavo.engine_process.desk import Desk
from octavo.engine_process.meter import Meter
from octavo.outputs import CompletionOutput, RequestMetrics, RequestOutput


def make_meter() -> Meter:
    engine: Any = SimpleNamespace(scheduler=None, listeners=[])
    door: Any = None
    return Meter(engine, door)


def follow(desk: Desk, *completions: CompletionOutput) -> RequestOutput:
    output = RequestOutput("r", None, [3], list(completions), False, RequestMetrics(0.0))
    desk.follow(7, output, tell_prompt=False)
    return output


def test_completions_that_were_under_way_end_with_an_error_and_those_that_had_ended_count_once() -> None:
    meter = make_meter()
    desk = Desk(meter)
    output = follow(desk, *(CompletionOutput(i, "a", [5]) for i in range(3)))
    output.outputs[0].finish_reason = "length"
    assert desk.tell([output]) == []
    output.outputs[1].finish_reason, output.refused, output.refused_kind = "error", "too complex", "form"
    assert desk.tell([output]) == ["r"]
    assert dict(meter.finished) == {"length": 1, "error": 2}
    assert desk.take().refused == [Refused(7, "too complex", kind="form")]
    assert desk.tell([output]) == [], "nobody follows it any more"


def test_what_was_held_back_is_told_before_the_refusal_and_ends_count_as_they_were() -> None:
    meter = make_meter()
    desk = Desk(meter)
    output = follow(desk, *(CompletionOutput(i, "a", [5]) for i in range(3)))
    desk.tell([output])
    assert len(desk.take().pieces) == 3
    for completion in output.outputs[:2]:
        completion.text, completion.token_ids = "abc", [5, 6, 7]
    output.outputs[0].finish_reason = "length"
    desk.tell([output])
    assert (desk.num_grown, desk.take().pieces) == (1, [])
    output.outputs[1].finish_reason, output.refused = "error", "too complex"
    assert desk.tell([output]) == ["r"]
    news = desk.take()
    told = [(piece.index, piece.text, piece.token_ids, piece.finish_reason) for piece in news.pieces]
    assert told == [(0, "bc", [6, 7], "length"), (1, "bc", [6, 7], None)]
    assert (news.refused[0].message, desk.num_grown) == ("too complex", 0)
    assert dict(meter.finished) == {"length": 1, "error": 2}


def test_what_is_refused_before_its_first_token_was_told_has_not_run() -> None:
    meter = make_meter()
    desk = Desk(meter)
    output = follow(desk, CompletionOutput(0, "", [], finish_reason="error"))
    output.refused, output.finished = "cannot be used", True
    assert desk.tell([output]) == []
    assert dict(meter.finished) == {}
    assert desk.take().refused == [Refused(7, "cannot be used", kind="request")]
