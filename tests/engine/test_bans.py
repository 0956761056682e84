"""Options that ban every token: their request ends, with the reason, and no other notices."""

from __future__ import annotations

from typing import Any

import pytest

from helpers_engine import block_bytes
from helpers_grammar import END, ENGINE, make_model
from octavo import LLM, SamplingParams
from octavo.outputs import RequestOutput

GREEDY = {"temperature": 0, "max_tokens": 20}
DRAWN = {"temperature": 1, "seed": 3, "max_tokens": 20}
NEIGHBOURS = [
    GREEDY,
    {**DRAWN, "n": 2, "logprobs": 2},
    {**DRAWN, "bad_words": ["7", "a"], "min_tokens": 5},
    {**DRAWN, "allowed_token_ids": [*range(10, 30), END], "min_tokens": 3},
    {**DRAWN, "structured_outputs": {"regex": "[a-f]{3}-[0-9]{2,9}"}},
]
PROMPTS = [[20 + i] * 6 for i in range(12)]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("bans"))


@pytest.fixture(scope="module")
def llm(path):
    with LLM(str(path), **ENGINE) as llm:
        yield llm


@pytest.fixture(scope="module")
def alone(llm):
    """What each neighbour writes without company."""
    prompts = PROMPTS[len(hopeless(llm)) :]
    pairs = zip(prompts, NEIGHBOURS, strict=False)
    return [values(llm.generate([prompt], SamplingParams(**kind), use_tqdm=False)[0]) for prompt, kind in pairs]


def id_of(llm: LLM, text: str) -> int:
    (token_id,) = llm.tokenizer.encode(text, add_special_tokens=False)
    return token_id


def hopeless(llm: LLM) -> list[tuple[dict[str, Any], int, str]]:
    """Options that leave no token, after how many they do, and which of them are to blame."""
    seven = id_of(llm, "7")
    stops = "min_tokens (no stop token before it)"
    return [
        ({"allowed_token_ids": [seven], "bad_words": ["7"]}, 0, "allowed_token_ids, bad_words"),
        ({"allowed_token_ids": [seven], "bad_words": ["7" * 9], "logprobs": 2}, 8, "allowed_token_ids, bad_words"),
        ({"allowed_token_ids": [END], "min_tokens": 4, "n": 2}, 0, f"allowed_token_ids, {stops}"),
        (
            {"allowed_token_ids": [END, seven], "min_tokens": 4, "bad_words": ["777"]},
            2,
            f"allowed_token_ids, bad_words, {stops}",
        ),
        ({"stop_token_ids": list(range(llm.tokenizer.vocab_size)), "min_tokens": 1}, 0, stops),
    ]


def values(output: RequestOutput) -> list[Any]:
    return [(c.token_ids, c.text, c.finish_reason, c.stop_reason) for c in output.outputs]


def check_refused(output: RequestOutput, num_tokens: int, names: str) -> None:
    assert output.finished
    assert output.refused == f"{names}: every token is banned; accepted: options that leave at least one"
    assert output.refused_kind == "request"
    for completion in output.outputs:
        assert (completion.finish_reason, completion.stop_reason) == ("error", output.refused)
        assert len(completion.token_ids) == num_tokens
        assert len(completion.logprobs or ()) in (0, num_tokens)


@pytest.mark.parametrize(
    "options",
    [{}, {"async_scheduling": False}, {"max_num_seqs": 4, "max_num_batched_tokens": 8, "enable_prefix_caching": False}],
    ids=str,
)
def test_such_a_request_fails_alone_and_its_neighbours_get_their_tokens(path, llm, alone, options):
    bad = hopeless(llm)
    kinds = [{**DRAWN, **kind} for kind, _, _ in bad] + NEIGHBOURS
    with LLM(str(path), **{**ENGINE, **options}) as busy:
        outputs = busy.generate(PROMPTS[: len(kinds)], [SamplingParams(**kind) for kind in kinds], use_tqdm=False)
        pool = busy.engine.scheduler.pool
        assert pool.num_free == pool.num_blocks
    for output, (_, num_tokens, names) in zip(outputs, bad, strict=False):
        check_refused(output, num_tokens, names)
    assert [values(output) for output in outputs[len(bad) :]] == alone


def test_options_that_leave_one_token_until_the_end_are_no_mistake(llm):
    seven = id_of(llm, "7")
    params = [
        SamplingParams(**GREEDY, allowed_token_ids=[END]),
        SamplingParams(**GREEDY, allowed_token_ids=[END, seven], min_tokens=4, bad_words=["77777"]),
        SamplingParams(temperature=0, max_tokens=8, allowed_token_ids=[seven], bad_words=["7" * 9]),
    ]
    first, second, third = llm.generate(PROMPTS[:3], params, use_tqdm=False)
    assert first.outputs[0].token_ids == [END]
    assert second.outputs[0].token_ids == [seven] * 4 + [END]
    assert (third.outputs[0].token_ids, third.outputs[0].finish_reason) == ([seven] * 8, "length")
    assert [output.refused for output in (first, second, third)] == [None] * 3


def test_requests_that_were_preempted_are_refused_at_the_same_token(path, llm):
    """They come back with the end of their output, which the bad word's beginning is told from."""
    seven = id_of(llm, "7")
    bad = SamplingParams(allowed_token_ids=[seven], bad_words=["7" * 30], max_tokens=50)
    params = [bad, SamplingParams(**{**DRAWN, "max_tokens": 50})] * 2
    alone = [values(llm.generate([p], q, use_tqdm=False)[0]) for p, q in zip(PROMPTS[:4], params, strict=True)]
    with LLM(str(path), **{**ENGINE, "kv_cache_memory": 20 * block_bytes(llm), "max_model_len": 64}) as small:
        outputs = small.generate(PROMPTS[:4], params, use_tqdm=False)
    assert sum(outputs[i].metrics.num_preemptions for i in (0, 2)) > 0
    assert [values(output) for output in outputs] == alone
    for output in outputs[::2]:
        check_refused(output, 29, "allowed_token_ids, bad_words")


@pytest.mark.parametrize("async_scheduling", [True, False])
def test_a_model_that_overflows_is_not_the_fault_of_who_bans_tokens(path, async_scheduling):
    """Broken weights and options that leave no token, side by side: each is told as what it is."""
    banned = {"allowed_token_ids": [END], "min_tokens": 2}
    params = [SamplingParams(**GREEDY, **options) for options in (banned, {"allowed_token_ids": [30]}, {}, banned)]
    with LLM(str(path), **ENGINE, async_scheduling=async_scheduling) as llm:
        llm.engine._executor._runner.model.model.embed_tokens.weight.data[300] = float("nan")
        *broken, refused = llm.generate([[4, 300], [5, 300], [6, 300], [4, 5]], params, use_tqdm=False)
    for output in broken:
        assert (output.outputs[0].finish_reason, output.refused) == ("error", None)
        assert output.outputs[0].stop_reason == "the logits have no finite maximum: the model overflowed"
    check_refused(refused, 0, "allowed_token_ids, min_tokens (no stop token before it)")


def test_a_stream_ends_with_the_reason_after_what_came_before(llm):
    options, num_tokens, names = hopeless(llm)[1]
    pieces = list(llm.stream("Hello", SamplingParams(**GREEDY, **options)))
    assert sum(len(piece.token_ids) for piece in pieces) == num_tokens
    assert pieces[-1].finish_reason == "error"
    assert pieces[-1].stop_reason.startswith(f"{names}: every token is banned")
