"""Engines on tiny random models, and random workloads for them."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from helpers_models import VOCAB
from octavo import LLM, LoRARequest, SamplingParams
from octavo.outputs import RequestOutput

KV_BYTES = 4 << 20


def tiny_llm(path: Path, **options: Any) -> LLM:
    """A float32 engine that checks itself after each step."""
    return LLM(str(path), **{"dtype": "float32", "debug": True, "kv_cache_memory": KV_BYTES, **options})


def block_bytes(llm: LLM) -> int:
    """Bytes of one KV block, to ask for a pool of so many."""
    return llm.engine.ledger.kv_cache // llm.engine.ledger.num_blocks


@dataclass
class Job:
    """A request of a workload: when it comes (in steps), when it is aborted, if it is, and its LoRA adapter."""

    prompt: list[int]
    params: SamplingParams
    arrives: int = 0
    aborted: int | None = None
    lora: str | None = None


@dataclass
class Workload:
    """Random requests, many of which begin alike, from one seed."""

    seed: int
    max_prompt: int = 24
    max_output: int = 16
    jobs: list[Job] = field(init=False)

    def __post_init__(self) -> None:
        rng = random.Random(self.seed)
        stems = [[rng.randrange(3, VOCAB) for _ in range(rng.randint(4, 16))] for _ in range(3)]
        self.jobs = [self._job(rng, stems) for _ in range(rng.randint(3, 10))]

    def _job(self, rng: random.Random, stems: list[list[int]]) -> Job:
        stem = rng.choice([[], *stems])
        tail = [rng.randrange(3, VOCAB) for _ in range(rng.randint(0 if stem else 1, self.max_prompt - len(stem)))]
        aborted = rng.randint(1, 20) if rng.random() < 0.15 else None
        return Job(stem + tail, self._params(rng), rng.choice([0, 0, rng.randint(0, 20)]), aborted)

    def _params(self, rng: random.Random) -> SamplingParams:
        params = SamplingParams(
            temperature=0, max_tokens=rng.randint(1, self.max_output), ignore_eos=rng.random() < 0.5
        )
        if rng.random() < 0.4:
            params = replace(params, temperature=1.0, seed=rng.randrange(100), top_p=rng.choice([1.0, 0.9]))
        if rng.random() < 0.3:
            params = replace(params, presence_penalty=0.5, repetition_penalty=1.2)
        if rng.random() < 0.2:
            params = replace(params, n=rng.randint(2, 3), temperature=0.8, seed=rng.randrange(100))
        return params


def run_alone(llm: LLM, job: Job) -> list[list[int]]:
    """The tokens of each completion of ``job`` with nothing else in the engine."""
    lora = None if job.lora is None else LoRARequest(job.lora)
    output = llm.generate([job.prompt], job.params, use_tqdm=False, lora_request=lora)[0]
    return [completion.token_ids for completion in output.outputs]


def run_together(llm: LLM, jobs: list[Job], max_steps: int = 5000) -> list[RequestOutput | None]:
    """Run a workload step by step; the outputs of the aborted ones are None."""
    ids: dict[str, int] = {}
    done: list[RequestOutput | None] = [None] * len(jobs)
    for step in range(max_steps):
        for i, job in enumerate(jobs):
            if job.arrives == step:
                ids[llm.engine.add_request(job.prompt, job.params, lora=job.lora)] = i
            elif job.aborted is not None and job.arrives + job.aborted == step:
                llm.engine.abort(next(name for name, j in ids.items() if j == i))
        for output in llm.engine.step():
            if output.finished:
                done[ids[output.request_id]] = output
        if len(ids) == len(jobs) and not llm.engine.has_unfinished_requests():
            return done
    raise AssertionError(f"not finished after {max_steps} steps: {llm.engine.scheduler.stats()}")
