"""Engines whose cache holds fewer bits than the model computes with."""

from __future__ import annotations

import pytest

from helpers_engine import tiny_llm
from helpers_models import make_tiny
from octavo import SamplingParams

PARAMS = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True, logprobs=1)
PROMPTS = [[5, 9, 20] * 11, [7], list(range(3, 60))]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return make_tiny("qwen3", tmp_path_factory.mktemp("kv"))[1]


def first_logprobs(path, **options) -> list[float]:
    with tiny_llm(path, **options) as llm:
        outputs = llm.generate(PROMPTS, PARAMS, use_tqdm=False)
    return [
        entry[token].logprob
        for o in outputs
        for token, entry in [(o.outputs[0].token_ids[0], o.outputs[0].logprobs[0])]
    ]


@pytest.mark.parametrize(("kv_cache_dtype", "error"), [("bfloat16", 0.02), ("fp8", 0.1), ("int8", 0.03)])
def test_near_the_full_cache(path, kv_cache_dtype, error):
    exact = first_logprobs(path)
    assert first_logprobs(path, kv_cache_dtype=kv_cache_dtype) == pytest.approx(exact, abs=error)


@pytest.mark.parametrize("kv_cache_dtype", ["fp8", "int8"])
def test_the_way_does_not_matter(path, kv_cache_dtype):
    """Cut prompts, small pools and cached prefixes read the same numbers as whole prompts."""
    options = {"kv_cache_dtype": kv_cache_dtype, "max_model_len": 80}
    with tiny_llm(path, **options) as llm:
        expected = [o.outputs[0].token_ids for o in llm.generate(PROMPTS, PARAMS, use_tqdm=False)]
        assert [o.outputs[0].token_ids for o in llm.generate(PROMPTS, PARAMS, use_tqdm=False)] == expected
    blocks = 6 * 16 * 3 * 2 * 2 * (16 + 4)
    for other in ({"max_num_batched_tokens": 7, "max_num_seqs": 3}, {"kv_cache_memory": blocks}):
        with tiny_llm(path, **options, **other) as llm:
            assert [o.outputs[0].token_ids for o in llm.generate(PROMPTS, PARAMS, use_tqdm=False)] == expected


def test_half_the_memory_holds_twice_the_tokens(path):
    counts = {}
    for name in ("bfloat16", "fp8"):
        with tiny_llm(path, kv_cache_dtype=name, kv_cache_memory=1 << 18, max_num_seqs=64) as llm:
            counts[name] = llm.engine.ledger.num_blocks
    assert counts["fp8"] // 2 == counts["bfloat16"]
