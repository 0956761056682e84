"""Vectors of prompts against transformers' hidden states, whatever else is in the batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from helpers_engine import tiny_llm
from helpers_models import make_tiny
from octavo import SamplingParams
from octavo.sampling_params import PoolingParams

PROMPTS = [[3, 17, 90, 4, 5], list(range(20, 60)), [50], [3, 17, 90, 4, 5], [7] * 16]


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return make_tiny("qwen3", tmp_path_factory.mktemp("embed"))


@torch.inference_mode()
def expected(theirs, prompt: list[int]) -> np.ndarray:
    state = theirs.model(torch.tensor([prompt])).last_hidden_state[0, -1].double()
    return (state / state.norm()).numpy()


def check(theirs, vectors: list[np.ndarray]) -> None:
    for prompt, vector in zip(PROMPTS, vectors, strict=True):
        assert vector.dtype == np.float32
        np.testing.assert_allclose(vector, expected(theirs, prompt), atol=1e-5)


@pytest.mark.parametrize(
    "options", [{}, {"max_num_seqs": 2, "max_num_batched_tokens": 3}, {"enable_prefix_caching": False}], ids=str
)
def test_vectors_are_those_of_transformers(pair, options):
    theirs, path = pair
    with tiny_llm(path, **options) as llm:
        check(theirs, llm.embed(PROMPTS, use_tqdm=False))
        check(theirs, llm.embed(PROMPTS, use_tqdm=False))  # from the prefix cache now


def test_one_prompt_is_a_list_of_one(pair):
    theirs, path = pair
    with tiny_llm(path) as llm:
        (vector,) = llm.embed(PROMPTS[0], use_tqdm=False)
    np.testing.assert_allclose(vector, expected(theirs, PROMPTS[0]), atol=1e-5)


def test_beside_completions(pair):
    """Both kinds of request in the same steps; completions have no vector, and their tokens are as they are alone."""
    theirs, path = pair
    greedy = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
    with tiny_llm(path) as llm:
        alone = llm.generate(PROMPTS, greedy, use_tqdm=False)
        params = [p for _ in PROMPTS for p in (greedy, PoolingParams())]
        mixed = llm.generate([p for prompt in PROMPTS for p in (prompt, prompt)], params, use_tqdm=False)
    assert [o.outputs[0].token_ids for o in mixed[::2]] == [o.outputs[0].token_ids for o in alone]
    assert all(output.embedding is None for output in mixed[::2])
    check(theirs, [np.asarray(output.embedding) for output in mixed[1::2]])


def test_a_model_without_finite_states_is_an_error(pair):
    with tiny_llm(pair[1]) as llm:
        llm.engine._executor._runner.model.model.norm.weight.data.fill_(torch.nan)
        outputs = llm.generate([[3, 4]], PoolingParams(), use_tqdm=False)
    assert outputs[0].outputs[0].finish_reason == "error"
