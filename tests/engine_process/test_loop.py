"""The engine's loop, driven message by message in this process."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import zmq

from helpers_engine import tiny_llm
from helpers_grammar import ENGINE, TOO_COMPLEX, make_model
from helpers_lora import make_adapter
from helpers_models import make_tiny
from octavo import LLM, SamplingParams
from octavo.build_engine import build_engine
from octavo.client.wire import Abort, Answer, Call, Generate, Hello, Limits, News, Refused, Stop, ToEngine, encode
from octavo.config import BATCHED_TOKENS, SERVED_TOKENS, EngineConfig
from octavo.core.plan import Event, Finished, StepPlan
from octavo.engine_process.door import Door
from octavo.engine_process.inbox import Arrived, Inbox, Item
from octavo.engine_process.loop import MAX_FAILURES, EngineFailedError, EngineLoop, is_device_lost
from octavo.engine_process.meter import Meter
from octavo.engine_process.pace import Pace
from octavo.errors import RequestError
from octavo.grammar import compiler
from octavo.sampling_params import PoolingParams
from octavo.structured_outputs import StructuredOutputs

SIX = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tiny")


@pytest.fixture(scope="module")
def path(folder: Path) -> Path:
    return make_tiny("llama", folder)[1]


@pytest.fixture
def llm(path: Path) -> Iterator[LLM]:
    with tiny_llm(path, block_size=4) as llm:
        yield llm


class Script:
    """An inbox that hands out what was prepared, one list before each step, then ``late`` items that others put there,
    and then a `Stop`."""

    def __init__(self, *batches: list[Item], late: int = 0) -> None:
        self._batches, self._late = list(batches), late
        self._put: queue.SimpleQueue[Item] = queue.SimpleQueue()

    def put(self, item: Item) -> None:
        self._put.put(item)

    def take(self, *, wait: bool) -> list[Item]:
        if self._batches:
            return self._batches.pop(0)
        if self._late and (wait or not self._put.empty()):
            self._late -= 1
            return [self._put.get(timeout=20)]
        return [Stop()] if wait else []


def play(
    llm: LLM,
    *batches: list[Item],
    limits: Limits | None = None,
    late: int = 0,
    interval: float = 0.0,
    on_news: Callable[[News], None] = lambda news: None,
) -> list[News]:
    """All messages that the loop sends; ``on_news`` gets each one at once."""
    sent: list[News] = []

    def send(news: News) -> None:
        sent.append(news)
        on_news(news)

    door = Door(limits or Limits())
    inbox: Any = Script(*batches, late=late)
    EngineLoop(llm.engine, inbox, send, door, Meter(llm.engine, door), Pace(llm.engine, lambda streams: interval)).run()
    return sent


def request(key: int, tokens: list[int] | None = None, **options: Any) -> Arrived:
    tokens = tokens or [3 + key, 4, 5]
    params = options.pop("params", SIX)
    return Arrived(Generate(key, f"r{key}", tokens, params, **options), tokens, was_text=False)


def ends_of(sent: list[News]) -> dict[int, tuple[str | None, str | int | None]]:
    """Key -> why it ended: (finish reason, stop reason)."""
    pieces = [piece for news in sent for piece in news.pieces if piece.finish_reason is not None]
    assert {piece.key for piece in pieces} == {end.key for news in sent for end in news.ends}
    return {piece.key: (piece.finish_reason, piece.stop_reason) for piece in pieces}


def tokens_of(sent: list[News], key: int) -> list[int]:
    return [token for news in sent for piece in news.pieces if piece.key == key for token in piece.token_ids]


def fail_steps(llm: LLM, monkeypatch: pytest.MonkeyPatch, *errors: Exception | None) -> None:
    """Let the model's next steps fail with ``errors``, where these are not None."""
    model, coming = llm.engine._executor._runner.model, list(errors)  # type: ignore[attr-defined]
    forward = type(model).forward

    def failing(self: Any, batch: Any) -> Any:
        error = coming.pop(0) if coming else None
        if error is not None:
            raise error
        return forward(self, batch)

    monkeypatch.setattr(type(model), "forward", failing)


def test_a_step_is_one_message(llm: LLM) -> None:
    sent = play(llm, [request(i) for i in range(5)])
    assert [len(news.pieces) for news in sent] == [5] * 6
    assert all(news.load is not None for news in sent)
    expected = llm.generate([[3 + i, 4, 5] for i in range(5)], SIX, use_tqdm=False)
    assert [tokens_of(sent, i) for i in range(5)] == [output.outputs[0].token_ids for output in expected]


def test_tokens_of_several_steps_are_told_together_the_first_and_the_end_at_once(llm: LLM) -> None:
    sent = play(llm, [request(i) for i in range(5)], interval=60.0)
    assert [[len(piece.token_ids) for piece in news.pieces] for news in sent] == [[1] * 5, [5] * 5]
    expected = llm.generate([[3 + i, 4, 5] for i in range(5)], SIX, use_tqdm=False)
    assert [tokens_of(sent, i) for i in range(5)] == [output.outputs[0].token_ids for output in expected]


def test_nothing_is_held_back_while_a_prompt_is_read(llm: LLM) -> None:
    sent = play(llm, [request(1)], [], [], [request(2)], interval=60.0)
    keys = [sorted((piece.key, len(piece.token_ids)) for piece in news.pieces) for news in sent]
    assert keys == [[(1, 1)], [(1, 2)], [(1, 1), (2, 1)], [(1, 2)], [(2, 5)]]


def test_tokens_count_with_their_step_though_they_are_told_later(llm: LLM) -> None:
    """Else steps would seem to have had hardly any tokens, and a later one more than it has rows."""
    three = SamplingParams(temperature=0, max_tokens=3, ignore_eos=True)
    sent = play(llm, [request(1), request(2, params=three)], interval=60.0)
    loads = [(news.load.steps, news.load.generated_tokens) for news in sent if news.load is not None]
    assert loads == [(1, 2), (3, 6), (6, 9)]


def test_an_abort_tells_what_was_held_back(llm: LLM) -> None:
    sent = play(llm, [request(1)], [], [], [Abort(1)], interval=60.0)
    assert [len(piece.token_ids) for news in sent for piece in news.pieces] == [1, 2]
    assert ends_of(sent) == {1: ("abort", None)}


def test_a_failure_tells_what_was_held_back(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_steps(llm, monkeypatch, None, None, None, RuntimeError("out of memory"))
    sent = play(llm, [request(1)], interval=60.0)
    assert [len(piece.token_ids) for news in sent for piece in news.pieces] == [1, 2]
    assert ends_of(sent) == {1: ("error", "the model failed: RuntimeError: out of memory")}


def test_refusals_do_not_wait_for_a_step(llm: LLM) -> None:
    sent = play(llm, [request(1), request(2, [500]), Refused(3, "no tokenizer")])
    assert [refused.key for refused in sent[0].refused] == [2, 3]
    assert not sent[0].pieces
    assert ends_of(sent) == {1: ("length", None)}


def test_an_abort_takes_effect_before_the_next_step(llm: LLM) -> None:
    sent = play(llm, [request(1), request(2)], [], [Abort(1), Abort(9)])
    assert ends_of(sent) == {1: ("abort", None), 2: ("length", None)}
    assert len(tokens_of(sent, 1)) == 2


def test_an_id_can_be_used_again_at_once(llm: LLM) -> None:
    again = Arrived(Generate(2, "r1", [9], SIX), [9], was_text=True)
    sent = play(llm, [request(1)], [Abort(1), again])
    assert ends_of(sent) == {1: ("abort", None), 2: ("length", None)}
    assert [begun.prompt_token_ids for news in sent for begun in news.begun] == [[9]]


def test_deadlines_that_have_passed(llm: LLM) -> None:
    now = time.monotonic()
    sent = play(llm, [request(1, deadline=now + 3600), request(2, deadline=now), request(3, deadline=now - 1)])
    assert ends_of(sent) == {1: ("length", None), 2: ("abort", "deadline"), 3: ("abort", "deadline")}
    assert not llm.engine.has_unfinished_requests()


def test_a_step_that_fails_ends_its_requests_and_no_others(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_steps(llm, monkeypatch, None, ValueError("a bad\nday"), ValueError("again"), None)
    sent = play(llm, [request(1)], [request(2)], [request(3)], [request(4)])
    failed = ("error", "the model failed: ValueError: a bad day")
    assert ends_of(sent) == {
        1: failed,
        2: failed,
        3: ("error", "the model failed: ValueError: again"),
        4: ("length", None),
    }
    llm.engine.scheduler.check()


def test_three_failures_in_a_row_are_the_end(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_steps(llm, monkeypatch, *[ValueError(str(i)) for i in range(9)])
    with pytest.raises(EngineFailedError, match=f"ValueError: {MAX_FAILURES - 1}"):
        play(llm, *[[request(i)] for i in range(9)])


def test_a_lost_device_is_the_end_at_once(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_steps(llm, monkeypatch, RuntimeError("CUDA error: an illegal memory access was encountered"))
    with pytest.raises(EngineFailedError, match="illegal memory access"):
        play(llm, [request(1)])


def test_which_errors_are_of_a_lost_device() -> None:
    assert is_device_lost(RuntimeError("CUDA error: device-side assert triggered"))
    assert not is_device_lost(RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"))
    assert not is_device_lost(ValueError("x"))


def test_calls_are_answered_and_wrong_ones_refused(llm: LLM) -> None:
    calls = [
        Call(1, "debug_check"),
        Call(2, "reset_prefix_cache"),
        Call(3, "shutdown"),
        Call(4, "add_lora", ("a", "b")),
    ]
    sent = play(llm, [*calls])
    answers = {answer.key: answer for news in sent for answer in news.answers}
    assert answers[1].value["num_blocks"] == llm.engine.ledger.num_blocks
    assert (answers[2].value, answers[2].error) == (None, None)
    assert "no verb 'shutdown'" in answers[3].error
    assert "started without LoRA adapters" in answers[4].error


def test_steps_go_on_while_an_adapter_is_read(folder: Path) -> None:
    """What reads it waits here until three steps have come back: were it the loop, there would be none."""
    base, path = make_tiny("llama", folder)
    adapter = str(make_adapter(base, "llama", folder / "adapter")[1])
    stepped = threading.Event()
    pieces: list[int] = []

    def see(news: News) -> None:
        pieces.extend(piece.key for piece in news.pieces)
        if len(pieces) >= 3:
            stepped.set()

    with tiny_llm(path, block_size=4, enable_lora=True) as llm:
        read = llm.engine.adapters.read
        waited: list[bool] = []

        def slow(path: str) -> Any:
            waited.append(stepped.wait(10))
            return read(path)

        llm.engine.adapters.read = slow  # type: ignore[method-assign]
        load = Call(1, "add_lora", ("a", adapter))
        twin = Call(2, "add_lora", ("a", adapter))
        sent = play(llm, [load, twin, request(3)], late=2, on_news=see)
        assert waited[0]
        answers = {answer.key: answer for news in sent for answer in news.answers}
        assert (answers[1].value.name, answers[1].value.rank) == ("a", 8)
        assert "'a' already" in answers[2].error  # of two that are read at once, one is kept
        assert not answers[2].failed
        again = play(llm, [request(4, lora="a"), Call(5, "add_lora", ("b", str(folder / "none")))], late=1)
        assert ends_of(again) == {4: ("length", None)}
        assert any("not a folder" in answer.error for news in again for answer in news.answers if answer.key == 5)


def test_what_nobody_has_thought_of_ends_one_request_or_call_and_not_the_engine(
    llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And it is told as a failure: who asked has done nothing wrong."""

    def fail(*_: Any, **__: Any) -> None:
        raise MemoryError("no room")

    hold = llm.engine._hold_for_grammar
    monkeypatch.setattr(llm.engine, "_hold_for_grammar", lambda r: fail() if r.id == "r1" else hold(r))
    monkeypatch.setattr(llm.engine.adapters, "check_room", lambda name: None)
    monkeypatch.setattr(llm.engine.adapters, "read", fail)
    sent = play(llm, [request(1), request(2), Call(3, "add_lora", ("a", "/b"))], late=1)
    assert sent[0].refused == [Refused(1, "the engine cannot take it: MemoryError: no room", kind="failure")]
    answers = [answer for news in sent for answer in news.answers]
    assert answers == [Answer(3, error="add_lora failed: MemoryError: no room", failed=True)]
    assert ends_of(sent) == {2: ("length", None)}
    llm.engine.scheduler.check()


def test_a_form_that_fails_while_it_is_followed_is_refused_and_ends_all_that_it_was_asked_for(folder: Path) -> None:
    several = SamplingParams(n=3, temperature=1, seed=1, max_tokens=80, structured_outputs=TOO_COMPLEX)
    steps: list[int] = []
    ends: list[str] = []

    def listen(plan: StepPlan | None, events: Sequence[Event]) -> None:
        steps.extend([len(plan.rows)] if plan else [])
        ends.extend(e.reason for e in events if isinstance(e, Finished) and e.request_id.startswith("r1"))

    with LLM(str(make_model(folder / "complex")), **ENGINE) as llm:
        llm.engine.listeners.append(listen)
        sent = play(llm, [request(1, params=several), request(2, params=replace(SIX, max_tokens=60))])
        (refused,) = [refused for news in sent for refused in news.refused]
        assert (refused.key, refused.kind) == (1, "form")
        assert "the grammar of structured_outputs cannot go on after what was written" in refused.message
        assert "\n" not in refused.message
        assert tokens_of(sent, 1), "the answer had begun"
        assert ends_of(sent) == {2: ("length", None)}
        assert sorted(ends) == ["abort", "abort", "refused"], "what others follow no more ends with the first"
        assert (steps[-1], llm.engine.has_unfinished_requests()) == (1, False)
        assert sent[-1].load is not None
        assert sent[-1].load.finished == {"error": 3, "length": 1}
        llm.engine.scheduler.check()


def test_options_that_leave_no_token_are_the_requests_mistake(llm: LLM) -> None:
    late = SamplingParams(n=2, max_tokens=9, allowed_token_ids=[7, 8], min_tokens=5, stop_token_ids=[7, 8])
    news = play(llm, [request(1, params=late), request(2)])
    (refused,) = [refused for each in news for refused in each.refused]
    assert (refused.key, refused.kind) == (1, "request")
    assert refused.message.startswith("allowed_token_ids, min_tokens (no stop token before it): every token is banned")
    assert ends_of(news) == {2: ("length", None)}
    assert tokens_of(news, 2) == tokens_of(play(llm, [request(2)]), 2)
    assert not llm.engine.has_unfinished_requests()
    llm.engine.scheduler.check()


def test_a_form_that_this_model_cannot_have_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "checked_grammar", lambda form, specials: form.grammar)  # as if it were good
    bad, good = (StructuredOutputs(grammar=f"start: {what}") for what in ("<|nowhere|>", "/[ab]{3}/"))
    several = SamplingParams(n=2, max_tokens=6, structured_outputs=bad)
    with LLM(str(make_model(folder / "forms")), **ENGINE) as llm:
        forms = [request(1, params=several), request(2, params=SamplingParams(structured_outputs=good))]
        sent = play(llm, forms)
        (refused,) = [refused for news in sent for refused in news.refused]
        assert (refused.key, refused.kind) == (1, "form")
        assert "the grammar of structured_outputs cannot be used with this model" in refused.message
        assert ends_of(sent) == {2: ("stop", None)}
        assert not llm.engine.has_unfinished_requests()


@pytest.mark.parametrize("serving", [True, False])
def test_an_engine_that_serves_keeps_steps_short_and_prepares_for_forms(
    folder: Path, monkeypatch: pytest.MonkeyPatch, serving: bool
) -> None:
    compiled: list[StructuredOutputs] = []
    compile = compiler.Compiler._compile
    monkeypatch.setattr(
        compiler.Compiler, "_compile", lambda self, form: (compiled.append(form), compile(self, form))[1]
    )
    config = EngineConfig.from_kwargs(str(make_model(folder / "expected")), **ENGINE)
    engine = build_engine(config, progress=False, serving=serving)
    engine.shutdown()
    assert bool(compiled) == serving
    assert engine.scheduler.max_num_batched_tokens == (SERVED_TOKENS if serving else BATCHED_TOKENS)["cpu"]


def test_what_is_cached_is_forgotten_when_asked(llm: LLM) -> None:
    prompt = list(range(3, 30))
    sent = play(llm, [request(1, prompt)], *[[]] * 6, [Call(9, "reset_prefix_cache"), request(2, prompt)])
    cached = {end.key: end.metrics.num_cached_tokens for news in sent for end in news.ends}
    assert cached == {1: 0, 2: 0}
    again = play(llm, [request(3, prompt)])
    assert again[-1].ends[0].metrics.num_cached_tokens == 24


def test_a_vector_is_no_generated_token(llm: LLM) -> None:
    sent = play(llm, [request(1, params=PoolingParams(), embed=True), request(2)])
    assert [end.key for news in sent for end in news.ends if end.embedding is not None] == [1]
    assert sent[-1].load is not None
    assert sent[-1].load.generated_tokens == 6


def test_the_door_sees_the_queue(llm: LLM) -> None:
    sent = play(llm, [request(i) for i in range(4)], limits=Limits(max_queue_tokens=6))
    assert [refused.key for refused in sent[0].refused] == [2, 3]
    assert sent[0].refused[0].retry_after is not None


# ---------------------------------------------------------------- the inbox


def items_of(messages: list[bytes], count: int) -> list[Item]:
    """What an inbox makes of bytes that are sent to it."""

    def tokenize(prompt: Any, add_special_tokens: bool) -> list[int]:
        if prompt == "bad":
            raise RequestError("a bad text")
        if prompt == "panic":
            raise BaseException("panicked")
        return [len(prompt), int(add_special_tokens)]

    context = zmq.Context()
    incoming, outgoing = context.socket(zmq.PULL), context.socket(zmq.PUSH)
    incoming.bind("inproc://requests")
    outgoing.connect("inproc://requests")
    items: list[Item] = []
    try:
        with Inbox(incoming) as inbox:
            for message in [encode(Hello()), *messages]:
                outgoing.send(message)
            inbox.start(tokenize)
            while len(items) < count:
                items += inbox.take(wait=True)
    finally:
        outgoing.close()
        context.term()
    return items


def test_the_inbox_tokenizes_and_keeps_the_order() -> None:
    messages: list[ToEngine] = [
        Generate(1, "a", "four", SIX),
        Abort(1),
        Generate(2, "b", [7, 8, 9], SIX, add_special_tokens=False),
        Generate(3, "c", "bad", SIX),
        Generate(4, "d", "panic", SIX),
        Call(5, "debug_check"),
    ]
    items = items_of([encode(message) for message in messages], 6)
    first, _, third, fourth, fifth, _ = items
    assert isinstance(first, Arrived)
    assert isinstance(third, Arrived)
    assert (first.token_ids, first.was_text) == ([4, 1], True)
    assert (third.token_ids, third.was_text) == ([3, 0], False)
    assert fourth == Refused(3, "a bad text")
    assert fifth == Refused(4, "the prompt cannot be tokenized: BaseException: panicked", kind="failure")
    assert (items[1], items[5]) == (messages[1], messages[5])


def test_a_message_that_makes_no_sense_is_refused_by_its_key_and_harms_no_other() -> None:
    damaged = encode(Generate(8, "a", [1], SIX)).replace(b"top_p", b"top_q").replace(b"\xa1n\x01", b"\xa1n\x00")
    items = items_of([b"", b"\xc1", damaged, encode(Abort(9))], 2)
    assert isinstance(items[0], Refused)
    assert items[0].key == 8
    assert "n=0 is out of range" in items[0].message
    assert items[1] == Abort(9)
