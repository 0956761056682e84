"""OpenVINO GenAI's side of `decode.py`: its continuous-batching pipeline, step by step, on a GGUF file."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import openvino
import openvino_genai as genai
from worker_loop import Times, Work, serve

SCHEDULER = {"cache_size": 2, "max_num_seqs": 256, "max_num_batched_tokens": 2048, "enable_prefix_caching": False}


def pipeline(model: str, scheduler: Mapping[str, Any], **properties: Any) -> Any:
    """``scheduler``: fields of its `SchedulerConfig`, over those of `SCHEDULER`. The cache's size is in GB."""
    config = genai.SchedulerConfig()
    for name, value in {**SCHEDULER, **scheduler}.items():
        setattr(config, name, value)
    return genai.ContinuousBatchingPipeline(model, config, "CPU", properties)


def greedy(tokens: int) -> Any:
    config = genai.GenerationConfig()
    config.max_new_tokens, config.ignore_eos, config.do_sample = tokens, True, False
    return config


def start(model: str, vocab_size: int = 49152, **properties: Any) -> tuple[Callable[[Work], Times], dict[str, Any]]:
    pipe = pipeline(model, {}, **properties)

    def run(work: Work) -> Times:
        prompts = [openvino.Tensor(np.array([ids], dtype=np.int64)) for ids in work.prompts(vocab_size)]
        begin = time.perf_counter()
        handles = [pipe.add_request(i, ids, greedy(work.tokens)) for i, ids in enumerate(prompts)]
        came = [0] * len(handles)
        while not all(came):
            _step(pipe, handles, came)
        first, until_first = time.perf_counter(), sum(came)
        while pipe.has_non_finished_requests():
            _step(pipe, handles, came)
        assert sum(came) == work.sequences * work.tokens, came
        decode = time.perf_counter() - first
        return Times(first - begin, work.sequences * work.prompt, decode, sum(came) - until_first)

    return run, {"openvino-genai": genai.__version__, "properties": properties}


def _step(pipe: Any, handles: list[Any], came: list[int]) -> None:
    pipe.step()
    for i, handle in enumerate(handles):
        while handle.can_read():
            came[i] += sum(len(output.generated_ids) for output in handle.read().values())


if __name__ == "__main__":
    serve(start)
