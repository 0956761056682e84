"""The engine's verbs: what it refuses, aborts, survives, and what it reports."""

from __future__ import annotations

import json
import random
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from helpers_engine import block_bytes, tiny_llm
from helpers_models import VOCAB, make_tiny
from octavo import LLM, OutOfMemoryError, RequestError, SamplingParams, UsageError
from octavo.core.plan import PromptScored

GREEDY = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return make_tiny("llama", tmp_path_factory.mktemp("tiny"))[1]


@pytest.fixture
def llm(path):
    with tiny_llm(path, block_size=4) as llm:
        yield llm


def drain(llm: LLM) -> None:
    while llm.engine.has_unfinished_requests():
        llm.engine.step()


REFUSED = [
    ([], {}, "prompt is empty"),
    ([VOCAB], {}, f"whole numbers from 0 to {VOCAB - 1}"),
    ([-1], {}, "token id -1"),
    ([1.5], {}, "token id 1.5"),
    ([True], {}, "token id True"),
    ([3] * 300, {}, "at most 255 are accepted"),
    ([3] * 250, {"max_tokens": 10}, "max_tokens from 1 to 6 is accepted"),
    ([3], {"stop_token_ids": [VOCAB]}, "stop_token_ids"),
    ([3], {"logit_bias": {999: 1.0}}, "logit_bias"),
    ([3], {"allowed_token_ids": [500]}, "allowed_token_ids"),
    ([3], {"stop": ["x"]}, "without a tokenizer"),
    ([3], {"bad_words": ["x"]}, "without a tokenizer"),
    ("text", {}, "without a tokenizer"),
    (None, {}, "accepted: text, or a list of token ids"),
    (7, {}, "accepted: text, or a list of token ids"),
]


@pytest.mark.parametrize(("prompt", "options", "message"), REFUSED)
def test_a_request_that_cannot_be_served_is_refused_and_leaves_nothing(llm, prompt, options, message):
    with pytest.raises(RequestError, match=message):
        llm.engine.add_request(prompt, SamplingParams(**{"max_tokens": 2, **options}))
    assert not llm.engine.has_unfinished_requests()
    assert not llm.engine.scheduler.requests


def test_one_bad_prompt_among_many_starts_none_of_them(llm):
    with pytest.raises(RequestError, match="prompt 1: the prompt is empty"):
        llm.generate([[3, 4], [], [5]], GREEDY, use_tqdm=False)
    assert not llm.engine.has_unfinished_requests()
    assert len(llm.generate([[3, 4]], GREEDY, use_tqdm=False)[0].outputs[0].token_ids) == 6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_num_seq": 3}, "did you mean 'max_num_seqs'"),
        ({"dtype": "int7"}, "accepted: auto, float32"),
        ({"block_size": 0}, "positive whole number"),
        ({"gpu_memory_utilization": 1.5}, "at most 1"),
        ({"max_num_seqs": 100, "max_num_batched_tokens": 50}, "is less than max_num_seqs"),
        ({"device": "tpu"}, "accepted: auto, cpu"),
        ({"seed": "x"}, "whole number"),
        ({"max_num_seqs": 10**9, "max_num_batched_tokens": 10**9}, "up to 65536"),
        ({"enable_prefix_caching": "no"}, "accepted: True, False"),
        ({"async_scheduling": "x"}, "accepted: None, True, False"),
    ],
)
def test_wrong_arguments_name_what_is_accepted(path, options, message):
    with pytest.raises(UsageError, match=message):
        tiny_llm(path, **options)


def test_a_length_beyond_the_model_or_the_memory_is_refused(path):
    with pytest.raises(UsageError, match="at most 256"):
        tiny_llm(path, max_model_len=257)
    with pytest.raises(OutOfMemoryError, match="there is room for"):
        tiny_llm(path, max_model_len=256, kv_cache_memory=10_000)
    with pytest.raises(OutOfMemoryError, match="are free"):
        tiny_llm(path, kv_cache_memory=1 << 50)


def test_a_small_pool_shortens_the_longest_sequence(path):
    with tiny_llm(path, block_size=4) as llm:
        memory = 10 * block_bytes(llm)
    with tiny_llm(path, block_size=4, kv_cache_memory=memory) as llm:
        assert llm.engine.ledger.max_model_len == 40
        with pytest.raises(RequestError, match="at most 39"):
            llm.generate([[3] * 40], GREEDY, use_tqdm=False)
        output = llm.generate(
            [[3] * 34], SamplingParams(temperature=0, max_tokens=None, ignore_eos=True), use_tqdm=False
        )
        assert len(output[0].outputs[0].token_ids) == 6


def test_max_tokens_none_fills_the_model(llm):
    output = llm.generate([[3] * 10], SamplingParams(temperature=0, max_tokens=None, ignore_eos=True), use_tqdm=False)[
        0
    ]
    assert len(output.outputs[0].token_ids) == 246
    assert output.outputs[0].finish_reason == "length"


def test_an_aborted_request_returns_what_it_has(llm):
    request_id = llm.engine.add_request([3, 4, 5], SamplingParams(max_tokens=100, ignore_eos=True))
    for _ in range(5):
        llm.engine.step()
    output = llm.engine.abort(request_id)
    assert output.finished
    assert output.outputs[0].finish_reason == "abort"
    assert 0 < len(output.outputs[0].token_ids) < 100
    assert llm.engine.abort(request_id) is None
    assert not llm.engine.has_unfinished_requests()
    llm.engine.abort_all()
    assert llm.engine.scheduler.pool.num_free == llm.engine.scheduler.pool.num_blocks


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"params": {"n": 1}}, "sampling_params of type dict"),
        ({"request_id": 5}, "request_id=5"),
        ({"request_id": ""}, "not empty"),
        ({"priority": None}, "priority=None"),
        ({"priority": 0.5}, "priority=0.5"),
        ({"cache_salt": 5}, "cache_salt=5"),
    ],
)
def test_a_request_with_an_argument_of_another_kind_is_refused_and_leaves_nothing(llm, options, message):
    with pytest.raises(RequestError, match=message):
        llm.engine.add_request([3], **options)
    assert not llm.engine.has_unfinished_requests()
    assert not llm.engine.scheduler.requests


def test_an_interrupt_while_a_request_is_queued_takes_it_back(llm, monkeypatch):
    add, added = llm.engine.scheduler.add, []

    def interrupted(request, now):
        if len(added) == 2:
            raise KeyboardInterrupt
        added.append(request)
        add(request, now)

    with monkeypatch.context() as patch:
        patch.setattr(llm.engine.scheduler, "add", interrupted)
        with pytest.raises(KeyboardInterrupt):
            llm.engine.add_request([3], SamplingParams(n=4))
    assert not llm.engine.scheduler.requests
    llm.engine.scheduler.check()
    assert len(llm.generate([[3]], SamplingParams(n=4), use_tqdm=False)[0].outputs) == 4


def test_weights_that_do_not_fit_are_refused_before_they_are_loaded(path, monkeypatch):
    monkeypatch.setattr("octavo.execution.build.free_memory", lambda: 100_000)
    monkeypatch.setattr("octavo.execution.build.load_and_pack", lambda *_: pytest.fail("loaded"))
    with pytest.raises(OutOfMemoryError, match=r"the weights need .* in float32.* are free"):
        tiny_llm(path)


def test_an_absurd_shape_is_refused_in_one_line(path, tmp_path):
    config = json.loads((path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"hidden_size": 2**30, "intermediate_size": 2**31 - 1}))
    with pytest.raises(OutOfMemoryError, match="the weights"):
        LLM(str(tmp_path), load_format="dummy")


def test_a_batch_whose_state_does_not_fit_is_refused_in_one_line(path, monkeypatch):
    def too_large(*_):
        raise MemoryError

    monkeypatch.setattr("octavo.execution.build.BatchState", too_large)
    with pytest.raises(OutOfMemoryError, match="256 requests of up to 256 tokens does not fit"):
        tiny_llm(path)


@pytest.mark.parametrize("async_scheduling", [True, False])
def test_a_request_that_failed_leaves_no_nan_for_the_next_ones(path, async_scheduling):
    with tiny_llm(path, block_size=4) as llm:
        memory = 16 * block_bytes(llm)
    with tiny_llm(path, block_size=4, kv_cache_memory=memory, async_scheduling=async_scheduling) as llm:
        expected = llm.generate([[3, 4, 5]], GREEDY, use_tqdm=False)[0].outputs[0].token_ids
        embedding = llm.engine._executor._runner.model.model.embed_tokens.weight
        embedding.data[77] = float("nan")
        assert llm.generate([[3, 77, 5] * 12], GREEDY, use_tqdm=False)[0].outputs[0].finish_reason == "error"
        outputs = llm.generate([[3, 4, 5], *([6 + i, 4, 5] for i in range(7))], GREEDY, use_tqdm=False)
    assert [output.outputs[0].finish_reason for output in outputs] == ["length"] * 8
    assert outputs[0].outputs[0].token_ids == expected


def test_a_prompt_is_scored_once_for_all_of_its_completions(llm):
    heard = []
    llm.engine.listeners.append(lambda plan, events: heard.extend(e for e in events if isinstance(e, PromptScored)))
    params = SamplingParams(n=3, max_tokens=2, prompt_logprobs=1, ignore_eos=True)
    output = llm.generate([[3, 4, 5, 6, 7, 8]], params, use_tqdm=False)[0]
    assert sum(len(event.logprobs) for event in heard) == 5
    assert [entry is None for entry in output.prompt_logprobs] == [True] + [False] * 5


def test_two_unfinished_requests_need_two_ids(llm):
    llm.engine.add_request([3], GREEDY, request_id="a")
    with pytest.raises(RequestError, match="id of its own"):
        llm.engine.add_request([4], GREEDY, request_id="a")
    while llm.engine.has_unfinished_requests():
        llm.engine.step()
    llm.engine.add_request([4], GREEDY, request_id="a")


def test_a_given_id_never_meets_one_that_is_made_up(llm):
    taken = llm.engine.add_request([3], GREEDY)
    number = int(taken.rpartition("-")[2])
    llm.engine.add_request([4], GREEDY, request_id=f"request-{number + 1}")
    ids = {taken, f"request-{number + 1}", llm.engine.add_request([5], GREEDY)}
    assert len(ids) == 3


@pytest.mark.parametrize("async_scheduling", [True, False])
def test_a_failing_step_ends_all_requests_and_the_engine_goes_on(path, async_scheduling, monkeypatch):
    with tiny_llm(path, async_scheduling=async_scheduling) as llm:
        good = llm.generate([[3, 4, 5]], GREEDY, use_tqdm=False)[0].outputs[0].token_ids
        model = llm.engine._executor._runner.model
        with monkeypatch.context() as patch:
            patch.setattr(model, "raw_logits", lambda hidden: 1 / 0)
            llm.engine.add_request([3, 4, 5], GREEDY)
            with pytest.raises(ZeroDivisionError):
                drain(llm)
        assert not llm.engine.has_unfinished_requests()
        again = llm.generate([[3, 4, 5]], GREEDY, use_tqdm=False)[0]
        assert again.outputs[0].token_ids == good
        assert again.metrics.num_cached_tokens == 0


def test_a_step_that_fails_while_all_is_aborted_leaves_a_working_engine(path, monkeypatch):
    with tiny_llm(path, async_scheduling=True) as llm:
        good = llm.generate([[3, 4, 5]], GREEDY, use_tqdm=False)[0].outputs[0].token_ids
        model = llm.engine._executor._runner.model
        answers = iter([model.raw_logits])
        with monkeypatch.context() as patch:
            patch.setattr(model, "raw_logits", lambda hidden: next(answers, lambda _: 1 / 0)(hidden))
            llm.engine.add_request([3, 4, 5], GREEDY)
            llm.engine.step()
            with pytest.raises(ZeroDivisionError):
                llm.engine.abort_all()
        assert llm.engine.scheduler.num_in_flight == 0
        llm.engine.scheduler.check()
        assert llm.generate([[3, 4, 5]], GREEDY, use_tqdm=False)[0].outputs[0].token_ids == good


def test_logits_without_a_finite_maximum_fail_only_their_own_request(llm, monkeypatch):
    model = llm.engine._executor._runner.model
    whole = model.raw_logits

    def spoilt(hidden: torch.Tensor) -> torch.Tensor:
        logits = whole(hidden)
        logits[0] = float("nan")
        return logits

    monkeypatch.setattr(model, "raw_logits", spoilt)
    first, second = llm.generate([[3, 4], [5, 6]], GREEDY, use_tqdm=False)
    assert second.outputs[0].finish_reason is not None
    assert first.outputs[0].finish_reason == "error"
    assert "finite" in first.outputs[0].stop_reason


def test_the_same_seed_gives_the_same_tokens_in_any_company(llm):
    params = SamplingParams(temperature=1.0, seed=11, max_tokens=12, ignore_eos=True)
    others = [([9 + i] * (i + 1), SamplingParams(temperature=1.3, max_tokens=9 + i)) for i in range(5)]
    alone = llm.generate([[3, 4]], params, use_tqdm=False)[0]
    prompts = [[3, 4], *(prompt for prompt, _ in others)]
    company = llm.generate(prompts, [params, *(p for _, p in others)], use_tqdm=False)[0]
    assert company.outputs[0].token_ids == alone.outputs[0].token_ids


def test_the_engines_seed_makes_unseeded_requests_repeatable(path):
    params = SamplingParams(temperature=1.0, max_tokens=12, ignore_eos=True)
    runs = []
    for seed in (1, 1, 2):
        with tiny_llm(path, seed=seed) as llm:
            runs.append([o.outputs[0].token_ids for o in llm.generate([[3, 4], [3, 4]], params, use_tqdm=False)])
    assert runs[0] == runs[1] != runs[2]
    assert runs[0][0] != runs[0][1]


def test_logprobs_and_prompt_logprobs_are_those_of_the_model(tmp_path):
    model, path = make_tiny("qwen3", tmp_path)
    prompt = [3, 50, 60, 70, 80, 90, 100]
    with tiny_llm(path, max_num_batched_tokens=3, max_num_seqs=2) as llm:
        params = SamplingParams(temperature=0, max_tokens=5, ignore_eos=True, logprobs=4, prompt_logprobs=2)
        output = llm.generate([prompt], params, use_tqdm=False)[0]
    tokens = prompt + output.outputs[0].token_ids
    expected = model(torch.tensor([tokens])).logits[0].log_softmax(-1)
    assert output.prompt_logprobs[0] is None
    entries = output.prompt_logprobs[1:] + output.outputs[0].logprobs
    for position, entry in enumerate(entries):
        row, chosen = expected[position], tokens[position + 1]
        assert chosen in entry
        assert {t: e.logprob for t, e in entry.items()} == pytest.approx({t: row[t].item() for t in entry}, abs=1e-4)
        assert entry[chosen].rank == int((row > row[chosen]).sum()) + 1
        assert set(row.topk(4 if position >= len(prompt) - 1 else 2).indices.tolist()) <= set(entry)
    assert output.outputs[0].cumulative_logprob == pytest.approx(
        sum(expected[len(prompt) - 1 + i, t].item() for i, t in enumerate(output.outputs[0].token_ids)),
        abs=1e-3,
    )


def test_priority_decides_who_runs_first(path):
    with tiny_llm(path, max_num_seqs=1, scheduling_policy="priority") as llm:
        order = []
        ids = {llm.engine.add_request([3 + i], GREEDY, priority=p): p for i, p in enumerate([2, 0, 1])}
        while llm.engine.has_unfinished_requests():
            order += [ids[o.request_id] for o in llm.engine.step() if o.finished]
    assert order == [0, 1, 2]


def test_cache_salts_keep_tenants_apart(llm):
    for salt, cached in (("a", 0), ("b", 0), ("a", 8)):
        request_id = llm.engine.add_request(list(range(3, 14)), GREEDY, cache_salt=salt)
        outputs = {}
        while llm.engine.has_unfinished_requests():
            outputs |= {o.request_id: o for o in llm.engine.step()}
        assert outputs[request_id].metrics.num_cached_tokens == cached


def test_metrics_tell_why_a_request_waited(path):
    with tiny_llm(path, max_num_seqs=1) as llm:
        first, second = llm.generate([[3], [4]], GREEDY, use_tqdm=False)
    assert first.metrics.waited_for == ""
    assert second.metrics.waited_for == "all 1 rows of the batch are taken"
    m = second.metrics
    assert m.arrival_time <= m.first_scheduled_time <= m.first_token_time <= m.finished_time


def test_bfloat16_runs_and_stays_near_float32(path):
    with tiny_llm(path, dtype="bfloat16") as half, tiny_llm(path) as full:
        params = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0)
        a, b = (llm.generate([list(range(3, 40))], params, use_tqdm=False)[0] for llm in (half, full))
    pairs = zip(a.prompt_logprobs[1:], b.prompt_logprobs[1:], strict=True)
    for x, y in pairs:
        token = next(iter(y))
        assert x[token].logprob == pytest.approx(y[token].logprob, abs=0.15 + 0.05 * abs(y[token].logprob))


def test_a_dummy_model_needs_only_a_config(path, tmp_path):
    (tmp_path / "config.json").write_text((path / "config.json").read_text())
    with LLM(str(tmp_path), load_format="dummy", dtype="float32", kv_cache_memory=1 << 20) as llm:
        assert len(llm.generate([[3, 4]], GREEDY, use_tqdm=False)[0].outputs[0].token_ids) == 6


def test_two_engines_live_in_one_process(path):
    with tiny_llm(path) as a, tiny_llm(path) as b:
        ids = [llm.engine.add_request([3, 4, 5], GREEDY) for llm in (a, b)]
        last = {}
        while a.engine.has_unfinished_requests() or b.engine.has_unfinished_requests():
            for name, llm in (("a", a), ("b", b)):
                for output in llm.engine.step():
                    last[name] = output.outputs[0].token_ids
    assert len(ids) == 2
    assert last["a"] == last["b"]


@pytest.mark.parametrize("async_scheduling", [True, False])
def test_a_real_interrupt_at_any_moment_leaves_a_working_engine(path, async_scheduling):
    rng = random.Random(5)
    with tiny_llm(path, block_size=4, async_scheduling=async_scheduling) as llm:
        prompts = [[3 + i, 9, 9, 4] for i in range(6)]
        params = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True)
        expected = [o.outputs[0].token_ids for o in llm.generate(prompts, params, use_tqdm=False)]
        interrupted = 0
        for _ in range(40):
            try:
                with interrupt_after(rng.uniform(0.0005, 0.08)):
                    llm.generate(prompts, params, use_tqdm=False)
            except KeyboardInterrupt:
                interrupted += 1
            assert not llm.engine.has_unfinished_requests()
            llm.engine.abort_all()
            llm.engine.scheduler.check()
        assert interrupted > 10
        assert [o.outputs[0].token_ids for o in llm.generate(prompts, params, use_tqdm=False)] == expected


@contextmanager
def interrupt_after(seconds: float) -> Iterator[None]:
    """Ctrl-C after some time, unless the block has ended by then."""
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_a_name_that_meets_a_completion_of_another_request_is_refused_whole(llm):
    llm.engine.add_request([3], GREEDY, request_id="x/1")
    with pytest.raises(RequestError, match="id of its own"):
        llm.engine.add_request([4], SamplingParams(n=3), request_id="x")
    assert set(llm.engine.scheduler.requests) == {"x/1"}


def test_listeners_hear_every_event_in_order(path):
    with tiny_llm(path, block_size=4, max_num_seqs=2, async_scheduling=True) as llm:
        heard: list[object] = []
        llm.engine.listeners.append(lambda plan, events: heard.extend(events))
        ids = [llm.engine.add_request([3 + i], GREEDY) for i in range(3)]
        llm.engine.step()
        llm.engine.abort(ids[0])
        drain(llm)
    for request_id in ids:
        own = [type(event).__name__ for event in heard if event.request_id == request_id]
        assert own[-1] == "Finished"
        assert own.count("Finished") == own.count("Admitted") == 1


def test_a_second_thread_is_refused_while_one_is_at_work(llm, monkeypatch):
    model = llm.engine._executor._runner.model
    inside, go_on = threading.Event(), threading.Event()
    whole = model.raw_logits

    def slow(hidden: torch.Tensor) -> torch.Tensor:
        inside.set()
        go_on.wait(10)
        return whole(hidden)

    monkeypatch.setattr(model, "raw_logits", slow)
    request_id = llm.engine.add_request([3, 4], GREEDY)
    worker = threading.Thread(target=llm.engine.step)
    worker.start()
    try:
        assert inside.wait(10)
        for call in (
            llm.engine.step,
            lambda: llm.engine.add_request([5], GREEDY),
            lambda: llm.engine.abort(request_id),
        ):
            with pytest.raises(UsageError, match="another thread is using this engine"):
                call()
    finally:
        go_on.set()
        worker.join()
    drain(llm)


def test_prompts_in_vllms_form_are_taken(llm):
    plain = llm.generate([[3, 4, 5]], GREEDY, use_tqdm=False)[0].outputs[0].token_ids
    forms = [{"prompt_token_ids": [3, 4, 5]}, [{"prompt_token_ids": [3, 4, 5]}]]
    for form in forms:
        assert llm.generate(form, GREEDY, use_tqdm=False)[0].outputs[0].token_ids == plain
    for wrong in ({"prompt_token_ids": [3], "multi_modal_data": 1}, {"text": "x"}, {}):
        with pytest.raises(RequestError, match="accepted: either prompt or prompt_token_ids"):
            llm.generate([wrong], GREEDY, use_tqdm=False)
