"""Whole engines on a GPU: the tokens of a CPU in float32, whatever the way there."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from helpers_engine import tiny_llm
from helpers_models import TINY, make_tiny
from octavo import LLM, SamplingParams

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]

LENGTHS = (1, 5, 16, 17, 40, 100, 33, 64)
GREEDY = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True, detokenize=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("gpu")


def prompts(seed: int = 0) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(3, 131) for _ in range(length)] for length in LENGTHS]


def tokens(path: Path, params: SamplingParams = GREEDY, alone: bool = False, **options) -> list[list[int]]:
    with tiny_llm(path, **{"max_num_seqs": 8, "max_num_batched_tokens": 64, **options}) as llm:
        batches = [[prompt] for prompt in prompts()] if alone else [prompts()]
        outputs = [output for batch in batches for output in llm.generate(batch, params, use_tqdm=False)]
        return [list(output.outputs[0].token_ids) for output in outputs]


@pytest.mark.parametrize("name", list(TINY))
def test_the_tokens_of_a_cpu(folder, name):
    _, path = make_tiny(name, folder)
    expected = tokens(path, device="cpu")
    assert tokens(path, device="cuda") == expected


@pytest.mark.parametrize(
    "options",
    [
        {"enforce_eager": True},
        {"async_scheduling": False},
        {"enable_prefix_caching": False},
        {"block_size": 4},
        {"max_num_batched_tokens": 8},
        {"kv_cache_memory": 11 * 3 * 2 * 2 * 16 * 16 * 4},  # eleven blocks: requests are preempted
    ],
    ids=str,
)
def test_the_way_does_not_matter(folder, options):
    _, path = make_tiny("qwen3", folder)
    expected = tokens(path, device="cpu")
    assert tokens(path, device="cuda", **{"max_model_len": 144, **options}) == expected


@pytest.mark.parametrize(
    "rules", [{}, {"top_k": 9}, {"top_p": 0.8, "min_p": 0.02}, {"logprobs": 2}, {"frequency_penalty": 0.5}], ids=str
)
def test_a_seed_gives_the_same_tokens_alone_and_in_a_batch(folder, rules):
    _, path = make_tiny("llama", folder)
    params = SamplingParams(temperature=0.9, seed=11, max_tokens=30, ignore_eos=True, detokenize=False, **rules)
    assert tokens(path, params, device="cuda") == tokens(path, params, alone=True, device="cuda")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_stays_near(folder, dtype):
    _, path = make_tiny("llama", folder)
    params = SamplingParams(temperature=0, max_tokens=1, logprobs=5, detokenize=False)
    found = []
    for options in ({"device": "cpu", "dtype": "float32"}, {"device": "cuda", "dtype": dtype}):
        with tiny_llm(path, **options) as llm:
            outputs = llm.generate(prompts(), params, use_tqdm=False)
            found.append([next(iter(o.outputs[0].logprobs[0].values())).logprob for o in outputs])
    torch.testing.assert_close(torch.tensor(found[0]), torch.tensor(found[1]), rtol=0.1, atol=0.1)


@pytest.mark.model
def test_smollm2_in_float32():
    """The real model: the same greedy tokens as on a CPU."""
    texts = ["The capital of France is", "Once upon a time", "def fibonacci(n):", "Water boils at"]
    params = SamplingParams(temperature=0, max_tokens=64)
    found = []
    for device in ("cpu", "cuda"):
        llm = LLM("smollm2-135m", dtype="float32", device=device, kv_cache_memory=1 << 28)
        found.append([o.outputs[0].token_ids for o in llm.generate(texts, params, use_tqdm=False)])
        llm.engine.shutdown()
    assert found[0] == found[1]


def test_memory_is_left_for_the_largest_step(folder):
    """The share that was asked for is taken, and a step as large as can come does not run out."""
    _, path = make_tiny("llama", folder)
    with tiny_llm(path, device="cuda", kv_cache_memory=None, max_num_seqs=64, gpu_memory_utilization=0.5) as llm:
        free, total = torch.cuda.mem_get_info()
        assert free > 0.4 * total
        params = SamplingParams(temperature=0.8, top_p=0.9, logprobs=5, max_tokens=4, ignore_eos=True, detokenize=False)
        outputs = llm.generate([[5] * 200] * 64, params, use_tqdm=False)
        assert all(len(output.outputs[0].token_ids) == 4 for output in outputs)
