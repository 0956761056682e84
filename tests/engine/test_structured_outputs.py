"""Completions with a form: they keep it in any company, beside all other options, and fail alone."""

from __future__ import annotations

import json
import random
import threading
from typing import Any

import jsonschema_rs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helpers_engine import block_bytes
from helpers_grammar import END, ENGINE, FORMS, PERSON, TOO_COMPLEX, holds, keeps_form, make_model, mixed_requests
from helpers_models import make_tiny
from octavo import LLM, RequestError, SamplingParams
from octavo.core.plan import StepPlan, Waits
from octavo.errors import OctavoError
from octavo.grammar import compiler

GREEDY = {"temperature": 0, "max_tokens": 60}


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def llm(path):
    with LLM(str(path), **ENGINE) as llm:
        yield llm


def generate(llm: LLM, prompt: Any = "Hello", **options: Any) -> Any:
    return llm.generate([prompt], SamplingParams(**{"max_tokens": 80, **options}), use_tqdm=False)[0].outputs[0]


@pytest.mark.parametrize("form", FORMS, ids=lambda form: next(iter(form)))
@pytest.mark.parametrize("temperature", [0, 0.8, 2])
def test_a_completion_keeps_its_form_and_ends_with_the_end_token(llm, form, temperature):
    for seed in range(4):
        found = generate(llm, temperature=temperature, seed=seed, structured_outputs=form, max_tokens=200)
        assert holds(form, found.text) or (temperature == 0 and found.finish_reason == "length")
        if found.finish_reason == "stop":
            assert (found.token_ids[-1], found.stop_reason) == (END, None)


SCALARS: st.SearchStrategy[dict[str, Any]] = st.one_of(
    st.just({"type": "null"}),
    st.just({"type": "boolean"}),
    st.integers(-50, 50).map(lambda n: {"type": "integer", "minimum": n, "maximum": n + 60}),
    st.builds(lambda n: {"type": "string", "maxLength": n}, st.integers(0, 6)),
    st.builds(lambda n: {"type": "string", "pattern": f"^[a-c]{{1,{n}}}$"}, st.integers(1, 5)),
    st.lists(st.text(max_size=5) | st.integers() | st.none(), min_size=1, max_size=4).map(lambda v: {"enum": v}),
)


def nest(inner: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    return st.one_of(
        st.builds(lambda item, n: {"type": "array", "items": item, "maxItems": n}, inner, st.integers(0, 3)),
        st.lists(inner, min_size=1, max_size=2).map(lambda options: {"anyOf": options}),
        st.dictionaries(st.text(max_size=4), inner, max_size=3).flatmap(
            lambda properties: st.builds(
                lambda required: {
                    "type": "object",
                    "properties": properties,
                    "required": required,
                    "additionalProperties": False,
                },
                st.lists(st.sampled_from(sorted(properties)), unique=True) if properties else st.just([]),
            )
        ),
    )


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(schema=st.recursive(SCALARS, nest, max_leaves=6), seed=st.integers(0, 9))
def test_random_schemas_are_kept(llm, schema, seed):
    form = {"json": schema, "disable_any_whitespace": True}
    found = generate(llm, temperature=1.0, seed=seed, structured_outputs=form, max_tokens=600)
    assert found.finish_reason == "stop", found
    assert jsonschema_rs.is_valid(schema, json.loads(found.text)), found.text


def as_values(outputs: list[Any]) -> list[Any]:
    return [[(c.token_ids, c.text, c.finish_reason) for c in output.outputs] for output in outputs]


def random_settings(rng: random.Random) -> dict[str, Any]:
    seqs = rng.randint(2, 6)
    return {
        "max_num_seqs": seqs,
        "max_num_batched_tokens": rng.choice([seqs, seqs + 3, 64]),
        "enable_prefix_caching": rng.random() < 0.7,
        "async_scheduling": rng.random() < 0.7,
    }


@pytest.mark.parametrize("seed", range(8))
def test_any_schedule_gives_the_tokens_of_each_request_alone(path, llm, seed):
    rng, work = random.Random(seed), mixed_requests(seed, 12)
    blocks = rng.choice([24, 40, 200])
    options = random_settings(rng)
    print(f"seed {seed}, {blocks} blocks, {options}")
    alone = as_values([llm.generate([prompt], params, use_tqdm=False)[0] for prompt, params in work])
    options |= {"kv_cache_memory": blocks * block_bytes(llm), "max_model_len": min(128, 4 * blocks)}
    with LLM(str(path), **{**ENGINE, **options}) as busy:
        prompts, params = zip(*work, strict=True)
        for _ in range(2):
            assert as_values(busy.generate(list(prompts), list(params), use_tqdm=False)) == alone
        busy.engine.abort_all()
        pool = busy.engine.scheduler.pool
        assert pool.num_free == pool.num_blocks
    for (_, params), completions in zip(work, alone, strict=True):
        form = params.structured_outputs
        for token_ids, text, reason in completions if form else ():
            given = next(f for f in FORMS if form.kind in f)
            assert holds(given, text) if reason == "stop" else token_ids[-1] != END


def test_preempted_requests_keep_their_place_in_the_grammar(path, llm):
    form = {"regex": "(ab|cd|[0-9]){30,}"}
    params = [SamplingParams(temperature=1, seed=i, max_tokens=50, structured_outputs=form) for i in range(4)]
    prompts = [[20 + i] * 6 for i in range(4)]
    alone = [llm.generate([p], q, use_tqdm=False)[0] for p, q in zip(prompts, params, strict=True)]
    options = {"kv_cache_memory": 20 * block_bytes(llm), "max_model_len": 64, "async_scheduling": True}
    with LLM(str(path), **{**ENGINE, **options}) as small:
        together = small.generate(prompts, params, use_tqdm=False)
    assert sum(output.metrics.num_preemptions for output in together) > 0
    assert as_values(together) == as_values(alone)


def test_several_completions_have_a_place_each(llm):
    params = SamplingParams(n=6, temperature=1.5, seed=3, max_tokens=60, structured_outputs=FORMS[1])
    completions = llm.generate(["Hello"], params, use_tqdm=False)[0].outputs
    assert all(keeps_form(FORMS[1], c) for c in completions)
    assert len({c.text for c in completions}) > 1


def test_steps_are_planned_ahead_and_no_request_sits_one_out(path):
    with LLM(str(path), **ENGINE, async_scheduling=True) as llm:
        warm = {"structured_outputs": {"regex": "[a-z]{20}"}, **GREEDY}
        generate(llm, **warm)
        plans: list[StepPlan] = []
        llm.engine.listeners.append(lambda plan, events: plans.append(plan) if plan else None)
        many = llm.generate(["Hello", "World"], [SamplingParams(**warm), SamplingParams(**GREEDY)], use_tqdm=False)
    lengths = [len(output.outputs[0].token_ids) for output in many]
    steps = [sum(slot == row.slot for plan in plans for row in plan.rows if row.samples) for slot in (0, 1)]
    assert len(plans) <= max(lengths) + 2
    assert sorted(steps) <= sorted(n + 1 for n in lengths)


# ---------------------------------------------------------------- beside other options


def token(llm: LLM, text: str) -> int:
    (found,) = llm.tokenizer.encode(text, add_special_tokens=False)
    return found


DIGITS = {"regex": "[0-9]{1,8}"}


def test_bias_penalties_and_allowed_tokens_choose_among_what_the_grammar_allows(llm):
    nine = token(llm, "9")
    four = {"regex": "[0-9]{4}"}
    biased = generate(llm, structured_outputs=four, temperature=0, logit_bias={nine: 100.0, 300: 100.0})
    assert biased.text == "9999"
    varied = generate(
        llm, structured_outputs={"regex": "[0-9]{3}"}, temperature=0, logit_bias={nine: 5.0}, presence_penalty=2,
        frequency_penalty=2, repetition_penalty=100,
    )  # fmt: skip
    assert len(varied.text) == 3
    assert varied.text != "999"
    some = [nine, token(llm, "x"), END]
    assert set(generate(llm, structured_outputs=DIGITS, allowed_token_ids=some, seed=1).text) == {"9"}


def test_bad_words_and_stops_hold_within_the_grammar(llm):
    words = [str(i) for i in range(9)]
    assert generate(llm, structured_outputs={"regex": "[0-9]"}, bad_words=words, **GREEDY).text == "9"
    likely = {"structured_outputs": {"regex": "[0-9]{40}"}, "logit_bias": {token(llm, "7"): 9.0}}
    stopped = generate(llm, stop=["7"], **likely)
    assert (stopped.finish_reason, stopped.stop_reason) == ("stop", "7")
    assert "7" not in stopped.text
    by_id = generate(llm, stop_token_ids=[token(llm, "7")], **likely)
    assert by_id.stop_reason == token(llm, "7")


def test_min_tokens_keeps_a_grammar_from_its_end_and_max_tokens_cuts_it_off(llm):
    bias = {END: 100.0}
    assert len(generate(llm, structured_outputs=DIGITS, logit_bias=bias, **GREEDY).token_ids) == 2
    late = generate(llm, structured_outputs=DIGITS, logit_bias=bias, min_tokens=5, **GREEDY)
    assert (len(late.token_ids), late.finish_reason) == (6, "stop")
    cut = generate(llm, structured_outputs={"regex": "[a-z]{50}"}, temperature=0, max_tokens=4)
    assert (len(cut.token_ids), cut.finish_reason) == (4, "length")


@pytest.mark.parametrize("async_scheduling", [True, False])
def test_options_that_leave_no_token_fail_their_request_alone(path, async_scheduling):
    impossible: list[dict[str, Any]] = [
        {"min_tokens": 20, "structured_outputs": {"choice": ["a", "b"]}},
        {"allowed_token_ids": [300], "structured_outputs": DIGITS},
        {"bad_words": [str(i) for i in range(10)], "structured_outputs": {"regex": "[0-9]"}},
    ]
    params = [SamplingParams(**GREEDY), *(SamplingParams(**{**GREEDY, **options}) for options in impossible)]
    with LLM(str(path), **ENGINE, async_scheduling=async_scheduling) as llm:
        good, *bad = llm.generate(["Hello"] * 4, params, use_tqdm=False)
    assert good.outputs[0].finish_reason in ("length", "stop")
    for output in bad:
        assert output.outputs[0].finish_reason == "error"
        assert "no token is left" in output.outputs[0].stop_reason
        assert output.refused == output.outputs[0].stop_reason


@pytest.mark.parametrize("async_scheduling", [True, False])
def test_a_model_that_overflows_is_not_the_fault_of_who_asks_for_a_form(path, async_scheduling):
    """Broken weights and options that leave no token, side by side: each is told as what it is."""
    banned = {"min_tokens": 20, "structured_outputs": {"choice": ["a", "b"]}}
    params = [SamplingParams(**GREEDY, **options) for options in ({"structured_outputs": DIGITS}, {}, banned)]
    with LLM(str(path), **ENGINE, async_scheduling=async_scheduling) as llm:
        llm.engine._executor._runner.model.model.embed_tokens.weight.data[300] = float("nan")
        with_form, plain, refused = llm.generate([[4, 300], [5, 300], [4, 5]], params, use_tqdm=False)
    for output in (with_form, plain):
        assert (output.outputs[0].finish_reason, output.refused) == ("error", None)
        assert "the model overflowed" in output.outputs[0].stop_reason
    assert refused.outputs[0].finish_reason == "error"
    assert refused.refused.startswith("no token is left: the request's other options")


@pytest.mark.parametrize("async_scheduling", [True, False])
def test_without_an_end_token_a_finished_grammar_ends_the_request(path, tmp_path, async_scheduling):
    endless = make_model(tmp_path, end=False)
    options = {**ENGINE, "async_scheduling": async_scheduling}
    for folder, extra in ((path, {"ignore_eos": True}), (endless, {})):
        with LLM(str(folder), **options) as llm:
            found = generate(llm, structured_outputs={"choice": ["yes", "no"]}, temperature=1, seed=2, **extra)
            assert (found.text in ("yes", "no"), found.finish_reason, found.stop_reason) == (True, "stop", None)
            assert END not in found.token_ids
            more = generate(llm, structured_outputs={"regex": "[0-9]+"}, temperature=1, max_tokens=9, **extra)
            assert (len(more.token_ids), more.finish_reason) == (9, "length")


def test_logprobs_are_of_the_raw_logits(llm):
    free = generate(llm, temperature=0, max_tokens=1, logprobs=3)
    bound = generate(llm, temperature=0, max_tokens=1, logprobs=3, structured_outputs={"regex": "[0-9]+"})
    first, best = bound.logprobs[0], free.logprobs[0]
    assert bound.token_ids != free.token_ids
    assert {t: e.rank for t, e in first.items() if e.rank <= 3} == {t: e.rank for t, e in best.items() if e.rank <= 3}
    assert first[bound.token_ids[0]].rank > 1


def test_streams_and_chats_keep_their_form_too(llm):
    params = SamplingParams(temperature=1, seed=1, max_tokens=80, structured_outputs=FORMS[0])
    pieces = list(llm.stream("Hello", params))
    assert holds(FORMS[0], "".join(piece.text for piece in pieces))
    chat = llm.chat([{"role": "user", "content": "Hi"}], params, use_tqdm=False)[0].outputs[0]
    assert holds(FORMS[0], chat.text)


# ---------------------------------------------------------------- compiling, and failing


@pytest.fixture
def gate(monkeypatch):
    """Holds up the compilation of each grammar until it is set."""
    gate, check = threading.Event(), compiler.checked_grammar

    def wait_and_check(form, specials):
        assert gate.wait(60)
        return check(form, specials)

    monkeypatch.setattr(compiler, "checked_grammar", wait_and_check)
    yield gate
    gate.set()


@pytest.mark.parametrize("async_scheduling", [True, False])
def test_others_go_on_while_a_grammar_is_compiled(path, gate, async_scheduling):
    heard = []
    with LLM(str(path), **ENGINE, async_scheduling=async_scheduling, max_num_seqs=2) as llm:
        engine = llm.engine
        engine.listeners.append(lambda plan, events: heard.extend(events))
        held = engine.add_request("Hello", SamplingParams(structured_outputs=FORMS[2], **GREEDY))
        assert Waits(held, "compiling its grammar") in heard
        assert engine.step() == [], "there is nothing to do but to wait"
        others = llm.generate(["World"] * 5, SamplingParams(**GREEDY), use_tqdm=False)
        assert all(output.finished for output in others)
        assert engine.output(held).outputs[0].token_ids == []
        gate.set()
        done = {}
        while engine.has_unfinished_requests():
            done |= {output.request_id: output for output in engine.step()}
        assert holds(FORMS[2], done[held].outputs[0].text)
        assert done[held].metrics.waited_for == "compiling its grammar"
        again = llm.generate(["Hello"], SamplingParams(structured_outputs=FORMS[2], **GREEDY), use_tqdm=False)[0]
        assert again.metrics.waited_for == "", "its grammar is known"


def test_a_request_can_be_aborted_while_its_grammar_is_compiled(path, gate):
    with LLM(str(path), **ENGINE) as llm:
        engine = llm.engine
        held = engine.add_request("Hello", SamplingParams(n=2, structured_outputs=FORMS[2], **GREEDY))
        assert [c.finish_reason for c in engine.abort(held).outputs] == ["abort"] * 2
        assert not engine.has_unfinished_requests()
        gate.set()
        assert engine.step() == []
        engine.scheduler.check()
        assert holds(FORMS[2], generate(llm, structured_outputs=FORMS[2], **GREEDY).text)


def test_an_engine_ends_while_a_grammar_is_compiled(path, gate):
    llm = LLM(str(path), **ENGINE)
    llm.engine.add_request("Hello", SamplingParams(structured_outputs=FORMS[2]))
    llm.shutdown()
    assert not llm.engine.has_unfinished_requests()


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ({"regex": "("}, "the regex of structured_outputs cannot be used"),
        ({"grammar": "start: start"}, "nothing can match it"),
        ({"json": {"$ref": "#"}}, "nothing can match it"),
        ({"grammar": "start: <|none|>"}, "unknown special token"),
    ],
)
def test_a_form_that_cannot_be_used_fails_its_request_alone(llm, form, message):
    params = [SamplingParams(structured_outputs=form, n=2), SamplingParams(**GREEDY)]
    bad, good = llm.generate(["Hello", "World"], params, use_tqdm=False)
    assert good.outputs[0].finish_reason in ("length", "stop")
    for completion in bad.outputs:
        assert completion.finish_reason == "error"
        assert message in completion.stop_reason
    assert bad.finished


def test_a_grammar_that_becomes_too_complex_ends_its_request_in_bounded_steps(llm):
    """Deterministic automata of these are exponential; whoever follows one pays with an error, not the engine."""
    form = {"regex": "([ab]|[0-9])*a(([ab]|[0-9]){1,200}[x-z]){300}"}
    params = [SamplingParams(temperature=2, seed=1, max_tokens=200, structured_outputs=form), SamplingParams(**GREEDY)]
    bad, good = llm.generate(["Hello", "World"], params, use_tqdm=False)
    assert good.outputs[0].finish_reason in ("length", "stop")
    assert bad.outputs[0].finish_reason in ("length", "error")
    assert bad.outputs[0].finish_reason == "length" or "cannot go on" in bad.outputs[0].stop_reason


def test_a_grammar_that_fails_in_the_middle_of_an_answer_ends_its_completion_alone(llm):
    several = SamplingParams(n=2, temperature=1, seed=1, max_tokens=80, structured_outputs=TOO_COMPLEX)
    bad, good = llm.generate(["Hello", "World"], [several, SamplingParams(**GREEDY)], use_tqdm=False)
    assert good.outputs[0].finish_reason in ("length", "stop")
    assert good.refused is None
    for completion in bad.outputs:
        assert len(completion.text) >= 24
        assert completion.finish_reason == "error"
        assert completion.stop_reason == bad.refused
    assert bad.refused.startswith("the grammar of structured_outputs cannot go on after what was written: ")
    assert "\n" not in bad.refused


def test_a_model_without_tokenizer_refuses_forms(tmp_path):
    with LLM(str(make_tiny("llama", tmp_path)[1]), **ENGINE) as llm:
        with pytest.raises(RequestError, match="came without a tokenizer; structured_outputs need one"):
            llm.generate([[3]], SamplingParams(structured_outputs=FORMS[0]), use_tqdm=False)
        assert not llm.engine.has_unfinished_requests()


@pytest.mark.parametrize("async_scheduling", [True, False])
def test_a_step_that_fails_ends_requests_that_wait_for_masks(path, monkeypatch, async_scheduling):
    with LLM(str(path), **ENGINE, async_scheduling=async_scheduling) as llm:
        good = generate(llm, structured_outputs=FORMS[1], **GREEDY)
        with monkeypatch.context() as patch:
            patch.setattr(llm.engine._executor._runner.model, "raw_logits", lambda hidden: 1 / 0)
            for _ in range(3):
                llm.engine.add_request("Hello", SamplingParams(structured_outputs=FORMS[1], **GREEDY))
            with pytest.raises(ZeroDivisionError):
                drain(llm)
        assert not llm.engine.has_unfinished_requests()
        assert generate(llm, structured_outputs=FORMS[1], **GREEDY).token_ids == good.token_ids


def drain(llm: LLM) -> None:
    while llm.engine.has_unfinished_requests():
        llm.engine.step()


def test_the_forms_name_themselves_in_errors():
    with pytest.raises(OctavoError, match="structured_outputs has json, choice"):
        SamplingParams(structured_outputs={"json": PERSON, "choice": ["a"]})
