"""vLLM's side of `decode.py`: its engine, step by step, on a folder of bfloat16 weights."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

from worker_loop import Times, Work, serve

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")


def start(model: str, **options: Any) -> tuple[Callable[[Work], Times], dict[str, Any]]:
    import vllm

    settings = {"dtype": "bfloat16", "max_model_len": 2048, "enable_prefix_caching": False, **options}
    engine = vllm.LLM(model, **settings).llm_engine
    vocab_size = engine.model_config.get_vocab_size()

    def run(work: Work) -> Times:
        params = vllm.SamplingParams(temperature=0, max_tokens=work.tokens, ignore_eos=True)
        begin = time.perf_counter()
        for i, ids in enumerate(work.prompts(vocab_size)):
            engine.add_request(f"{work.seed}-{i}", {"prompt_token_ids": ids}, params)
        came: dict[str, int] = {}
        while len(came) < work.sequences:
            _step(engine, came)
        first, until_first = time.perf_counter(), sum(came.values())
        while engine.has_unfinished_requests():
            _step(engine, came)
        decode = time.perf_counter() - first
        return Times(first - begin, work.sequences * work.prompt, decode, sum(came.values()) - until_first)

    return run, {"vllm": vllm.__version__, "settings": settings}


def _step(engine: Any, came: dict[str, int]) -> None:
    for output in engine.step():
        came[output.request_id] = len(output.outputs[0].token_ids)


if __name__ == "__main__":
    serve(start)
