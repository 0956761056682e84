"""A request's tokens do not depend on how it was scheduled: batch, chunks, blocks, cache, preemption."""

from __future__ import annotations

import random
from typing import Any

import pytest

from helpers_engine import Job, Workload, block_bytes, run_alone, run_together, tiny_llm
from helpers_models import TINY, VOCAB, make_tiny
from octavo import LLM, SamplingParams

FAMILIES = ("llama", "mistral", "qwen2-windows", "qwen3")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("tiny")
    for name in FAMILIES:
        make_tiny(name, root)
    return root


@pytest.fixture(scope="module")
def plain(folder) -> dict[str, LLM]:
    """Engines without cache and plan-ahead, to run one request at a time."""
    options: dict[str, Any] = {"enable_prefix_caching": False, "async_scheduling": False}
    return {name: tiny_llm(folder / name, **options) for name in FAMILIES}


def random_settings(rng: random.Random) -> dict[str, Any]:
    seqs = rng.randint(1, 6)
    return {
        "block_size": rng.choice([1, 2, 3, 4, 8, 16]),
        "max_num_seqs": seqs,
        "max_num_batched_tokens": rng.choice([seqs, seqs + rng.randint(0, 8), 64]),
        "enable_prefix_caching": rng.random() < 0.7,
        "async_scheduling": rng.random() < 0.7,
        "scheduling_policy": rng.choice(["fcfs", "priority", "fair"]),
    }


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("seed", range(8))
def test_any_schedule_gives_the_tokens_of_each_request_alone(folder, plain, family, seed):
    rng = random.Random(seed * 31 + FAMILIES.index(family))
    settings = random_settings(rng)
    work = Workload(seed * 101 + FAMILIES.index(family))
    one_block = block_bytes(plain[family]) // plain[family].config.block_size * settings["block_size"]
    longest = max(len(job.prompt) + job.params.max_tokens for job in work.jobs)
    blocks = -(-longest // settings["block_size"]) + rng.randint(0, 6)
    print(f"family {family}, seed {seed}, {settings}, {blocks} blocks")
    with tiny_llm(folder / family, kv_cache_memory=blocks * one_block, **settings) as llm:
        for _ in range(2):  # the second time with a warm cache
            for job, output in zip(work.jobs, run_together(llm, work.jobs), strict=True):
                if output is not None:
                    assert [c.token_ids for c in output.outputs] == run_alone(plain[family], job)
        pool = llm.engine.scheduler.pool
        llm.engine.abort_all()
        assert pool.num_free == pool.num_blocks


def test_preemption_happens_and_changes_nothing(folder, plain):
    jobs = [Job([5 + i] * 6, SamplingParams(temperature=0, max_tokens=30, ignore_eos=True)) for i in range(4)]
    memory = 24 * block_bytes(plain["llama"]) // plain["llama"].config.block_size * 2
    with tiny_llm(folder / "llama", block_size=2, kv_cache_memory=memory) as llm:
        outputs = run_together(llm, jobs)
    assert sum(output.metrics.num_preemptions for output in outputs) > 0
    for job, output in zip(jobs, outputs, strict=True):
        assert [output.outputs[0].token_ids] == run_alone(plain["llama"], job)


@pytest.mark.parametrize("block_size", [1, 4, 16])
@pytest.mark.parametrize("length", [1, 15, 16, 17, 32, 48])
def test_a_fully_cached_prompt_gives_the_same_tokens_and_logprobs(folder, plain, block_size, length):
    rng = random.Random(length)
    prompt = [rng.randrange(3, VOCAB) for _ in range(length)]
    params = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True, logprobs=3)
    with tiny_llm(folder / "llama", block_size=block_size) as llm:
        cold, warm = (llm.generate([prompt], params, use_tqdm=False)[0] for _ in range(2))
    assert cold.metrics.num_cached_tokens == 0
    assert warm.metrics.num_cached_tokens == (length - 1) // block_size * block_size
    assert warm.outputs[0].token_ids == cold.outputs[0].token_ids == run_alone(plain["llama"], Job(prompt, params))[0]
    for a, b in zip(warm.outputs[0].logprobs, cold.outputs[0].logprobs, strict=True):
        assert {t: e.logprob for t, e in a.items()} == pytest.approx({t: e.logprob for t, e in b.items()}, abs=1e-4)


@pytest.mark.parametrize("chunk", [1, 2, 3, 5, 8, 13, 64])
def test_any_chunk_size_gives_the_same_tokens(folder, plain, chunk):
    job = Job([7 * i % 120 + 3 for i in range(40)], SamplingParams(temperature=0, max_tokens=12, ignore_eos=True))
    with tiny_llm(folder / "qwen3", max_num_seqs=1, max_num_batched_tokens=chunk) as llm:
        assert run_alone(llm, job) == run_alone(plain["qwen3"], job)


def test_completions_of_one_prompt_share_its_blocks(folder):
    prompt = list(range(3, 35))
    with tiny_llm(folder / "llama", block_size=4) as llm:
        most = []
        llm.engine.listeners.append(lambda *_: most.append(llm.engine.scheduler.pool.num_free))
        free = llm.engine.scheduler.pool.num_free
        output = llm.generate([prompt], SamplingParams(n=4, seed=1, max_tokens=4, ignore_eos=True), use_tqdm=False)[0]
        assert len({tuple(c.token_ids) for c in output.outputs}) > 1
        assert free - min(most) <= 7 + 4 * 2  # the shared full blocks once, then the ends of each
        again = llm.generate([prompt], SamplingParams(n=4, seed=1, max_tokens=4, ignore_eos=True), use_tqdm=False)[0]
    assert [c.token_ids for c in again.outputs] == [c.token_ids for c in output.outputs]


@pytest.mark.parametrize("name", sorted(TINY))
def test_greedy_tokens_are_those_of_transformers(tmp_path, name):
    import torch

    model, path = make_tiny(name, tmp_path)
    prompts = [[3, 17, 90, 4, 5, 6, 77, 8, 9, 10, 11, 12], [50], list(range(20, 60))]
    with tiny_llm(path) as llm:
        outputs = llm.generate(prompts, SamplingParams(temperature=0, max_tokens=24, ignore_eos=True), use_tqdm=False)
    for prompt, output in zip(prompts, outputs, strict=True):
        expected = model.generate(
            torch.tensor([prompt]), max_new_tokens=24, do_sample=False, eos_token_id=None, pad_token_id=0
        )[0, len(prompt) :].tolist()
        assert output.outputs[0].token_ids == expected
