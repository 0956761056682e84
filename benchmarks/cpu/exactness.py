"""What the ways to compute a model cost in exactness, against float32 with the same weights.

    python benchmarks/cpu/exactness.py smollm2-135m --mode default --mode w8a8:quantization=w8a8 \\
        --mode bfloat16:dtype=bfloat16,quantization=none --json benchmarks/results/cpu_exactness.json

The reference expands the file's weights to float32 and computes in it. Two things are compared:

perplexity   of ``--text``, in windows, each token with all before it in its window
agreement    how often the likeliest next token is the reference's, on answers that the reference itself has written
             greedily to the prompts of `QUESTIONS`. All modes are led through the reference's tokens, whatever they
             would have chosen: once as prompts, many tokens a step, and once a token a step, with 1, 8 and 16 rows
             a step, since other kernels compute these.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bare_step import BareSteps
from decode import add_run
from machine import describe_machine
from sides import value_of

from octavo import LLM, SamplingParams

QUESTIONS = (
    "Why is the sky blue?",
    "Write a short story about a lighthouse keeper.",
    "Explain how a bicycle stays upright.",
    "What is the difference between a virus and a bacterium?",
    "Give me a recipe for vegetable soup.",
    "Write a Python function that reverses a list.",
    "Who was Marie Curie?",
    "How do I apologise to a friend?",
    "Describe the water cycle to a child.",
    "What happened in the year 1969?",
    "List five ways to save energy at home.",
    "Translate 'good morning' into French, Spanish and German.",
    "What are the rules of chess?",
    "Write a poem about autumn.",
    "How does a refrigerator work?",
    "Plan a weekend in Rome.",
)
ROWS = (1, 8, 16)
ALONE = 2
"""Sequences that are computed one by one."""
OPTIONS = {"kv_cache_memory": 1 << 30, "enable_prefix_caching": False}


def answers(llm: LLM, tokens: int) -> list[tuple[list[int], int]]:
    """Prompt and greedy answer of each question as one sequence, and the length of its prompt."""
    params = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False)
    chats = [[{"role": "user", "content": question}] for question in QUESTIONS]
    found = llm.chat(chats, params, use_tqdm=False)
    return [([*o.prompt_token_ids, *o.outputs[0].token_ids], len(o.prompt_token_ids)) for o in found]


def perplexity(llm: LLM, token_ids: list[int], window: int) -> float:
    params = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0, detokenize=False)
    windows = [token_ids[i : i + window] for i in range(0, len(token_ids), window)]
    scores = []
    for output in llm.generate(windows, params, use_tqdm=False):
        entries = list(zip(output.prompt_token_ids, output.prompt_logprobs or (), strict=True))[1:]
        scores += [entry[token].logprob for token, entry in entries if entry is not None]
    return math.exp(-math.fsum(scores) / len(scores))


def agreement_as_prompts(llm: LLM, sequences: list[tuple[list[int], int]]) -> float:
    params = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=1, detokenize=False)
    same: list[bool] = []
    outputs = llm.generate([ids for ids, _ in sequences], params, use_tqdm=False)
    for output, (ids, start) in zip(outputs, sequences, strict=True):
        assert output.prompt_logprobs is not None
        for token, entry in zip(ids[start:], output.prompt_logprobs[start:], strict=True):
            assert entry is not None
            same.append(entry[token].rank == 1)
    return sum(same) / len(same)


def agreement_step_by_step(bare: BareSteps, sequences: list[tuple[list[int], int]], rows: int) -> float:
    """``rows`` sequences at a time; each step computes one token of each, and what it would go on with is compared."""
    chosen = sequences[: ALONE if rows == 1 else len(sequences)]
    same: list[bool] = []
    for i in range(0, len(chosen), rows):
        group = chosen[i : i + rows]
        length = min(len(ids) for ids, _ in group)
        for at, likeliest in enumerate(bare.led([ids[:length] for ids, _ in group]), 1):
            same += [token == ids[at] for token, (ids, start) in zip(likeliest, group, strict=True) if at >= start]
    return sum(same) / len(same)


def measure(model: str, options: dict[str, Any], text: list[int], sequences: Any, window: int) -> dict[str, float]:
    llm = LLM(model, **OPTIONS, **options)
    found = {"perplexity": perplexity(llm, text, window), "agreement, prompts": agreement_as_prompts(llm, sequences)}
    llm.shutdown()
    del llm
    gc.collect()
    bare = BareSteps(model, **OPTIONS, **options)
    steps = {f"agreement, {rows} a step": agreement_step_by_step(bare, sequences, rows) for rows in ROWS}
    return {name: round(value, 4) for name, value in (found | steps).items()}


def parse_mode(text: str) -> tuple[str, dict[str, Any]]:
    """``NAME[:OPTION=VALUE,…]``."""
    name, _, options = text.partition(":")
    return name, dict(map(value_of, filter(None, options.split(","))))


def prose() -> str:
    """English of which there is some wherever there is Python: the descriptions of the language."""
    from pydoc_data.topics import topics

    wanted: Iterable[str] = ("execmodel", "types", "specialnames", "objects", "imports")
    return "\n".join(topics[name] for name in wanted if name in topics)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--mode", action="append", type=parse_mode, metavar="NAME[:OPTION=VALUE,…]")
    parser.add_argument("--text", type=Path, help="a file; else Python's descriptions of itself")
    parser.add_argument("--text-tokens", type=int, default=4096)
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--answer-tokens", type=int, default=128)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    reference = {"dtype": "float32", "quantization": "none"}
    with LLM(args.model, **OPTIONS, **reference) as llm:
        sequences = answers(llm, args.answer_tokens)
        text = llm.tokenizer.encode(args.text.read_text() if args.text else prose())[: args.text_tokens]
    modes = [("float32", reference), *(args.mode or [("default", {})])]
    found = {name: measure(args.model, options, text, sequences, args.window) for name, options in modes}
    for name, values in found.items():
        print(f"{name:12}", json.dumps(values), flush=True)
    if args.json:
        size = {"text tokens": len(text), "window": args.window, "answer tokens": args.answer_tokens * len(QUESTIONS)}
        run = {"model": Path(args.model).name, **size, "options": dict(modes), "modes": found}
        add_run(args.json, {**describe_machine(), **run})


if __name__ == "__main__":
    main()
