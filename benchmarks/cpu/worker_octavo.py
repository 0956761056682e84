"""Octavo's side of `decode.py`: ``LLM.generate`` as anybody calls it, bare steps (``way=step``), or the model alone
(``way=model``). ``way=whole`` is ``generate`` with the prompts' time counted, too.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from worker_loop import Times, Work, serve

KV_CACHE = 2 << 30
"""Bytes: enough for the largest case, whatever else the machine's memory is used for."""


class StepClock:
    """Listens to an engine: when each step ended, whether all its rows decoded, and how many tokens it brought."""

    def __init__(self) -> None:
        self.steps: list[tuple[float, bool, int]] = []
        self._decodes: deque[bool] = deque()

    def __call__(self, plan: Any, events: Sequence[Any]) -> None:
        from octavo.core.plan import Sampled

        if plan is not None:
            self._decodes.append(all(row.num_tokens == 1 for row in plan.rows))
        elif self._decodes:
            tokens = sum(isinstance(event, Sampled) for event in events)
            self.steps.append((time.perf_counter(), self._decodes.popleft(), tokens))

    def times(self, start: float, prompt_tokens: int) -> Times:
        """The prompts are done with the last step that computed any."""
        last = max(i for i, (_, decodes, _) in enumerate(self.steps) if not decodes)
        begin, end = self.steps[last][0], self.steps[-1][0]
        return Times(begin - start, prompt_tokens, end - begin, sum(tokens for *_, tokens in self.steps[last + 1 :]))


def generate(model: str, options: dict[str, Any]) -> Callable[[Work], Times]:
    from octavo import LLM, SamplingParams

    llm = LLM(model, **{"kv_cache_memory": KV_CACHE, **options})
    vocab_size = llm.engine.model_config.vocab_size

    def run(work: Work) -> Times:
        prompts = work.prompts(vocab_size)
        params = SamplingParams(temperature=0, max_tokens=work.tokens, ignore_eos=True)
        clock = StepClock()
        llm.engine.listeners.append(clock)
        start = time.perf_counter()
        llm.generate(prompts, params, use_tqdm=False)
        llm.engine.listeners.remove(clock)
        return clock.times(start, work.sequences * work.prompt)

    return run


def whole(model: str, options: dict[str, Any]) -> Callable[[Work], Times]:
    run = generate(model, options)

    def run_whole(work: Work) -> Times:
        start = time.perf_counter()
        run(work)
        return Times(0.0, 0, time.perf_counter() - start, work.sequences * work.tokens)

    return run_whole


def step(model: str, options: dict[str, Any]) -> Callable[[Work], Times]:
    """The runner: the model and the sampler. The prompt is not computed, as its cost is not asked for here."""
    from bare_step import BareSteps

    bare = BareSteps(model, **{"kv_cache_memory": KV_CACHE, **options})

    def run(work: Work) -> Times:
        seconds = bare.decode(work.sequences, work.prompt + 1, work.tokens - 1)
        return Times(0.0, 0, sum(seconds), work.sequences * len(seconds))

    return run


def model_alone(model: str, options: dict[str, Any]) -> Callable[[Work], Times]:
    """With the context that a sequence has on average. A first step, which may be recorded, does not count."""
    from bare_step import BareSteps

    bare = BareSteps(model, **{"kv_cache_memory": KV_CACHE, **options})

    def run(work: Work) -> Times:
        seconds = bare.model(work.sequences, work.prompt + work.tokens // 2, work.tokens)[1:]
        return Times(0.0, 0, sum(seconds), work.sequences * len(seconds))

    return run


WAYS = {"generate": generate, "whole": whole, "step": step, "model": model_alone}


def start(model: str, way: str = "generate", **options: Any) -> tuple[Callable[[Work], Times], dict[str, Any]]:
    import torch

    from octavo.version import __version__

    return WAYS[way](model, options), {
        "octavo": __version__,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }


if __name__ == "__main__":
    serve(start)
