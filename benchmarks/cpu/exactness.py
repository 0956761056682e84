"""What the ways to compute a model cost in exactness, against float32 with the same weights.

    python benchmarks/cpu/exactness.py q8_0.gguf --reference float32.json --mode default --mode w8a8:quantization=w8a8 \
        --mode bfloat16:dtype=bfloat16,quantization=none --json benchmarks/results/cpu_exactness.json

The reference expands the file's weights to float32 and computes in it. What it says is kept in a file, so that modes
can be compared with it one by one, later. Two things are compared:

perplexity   of a text, in windows, each token with all before it in its window
agreement    how often the likeliest next token is the reference's, on answers that the reference itself has written
             greedily to the prompts of `QUESTIONS`. All modes are led through the reference's tokens, whatever they
             would have chosen: once as prompts, many tokens a step, and once a token a step, with 1, 8 and 16 rows
             a step, since other kernels compute these.

Each figure has its standard error, as if tokens were independent; perplexity's is that of the difference, token by
token, from the reference, which is far smaller than that of either.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
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
ALONE = 8
"""Sequences that are computed one by one."""
OPTIONS = {"kv_cache_memory": 1 << 30, "enable_prefix_caching": False}
FLOAT32 = {"dtype": "float32", "quantization": "none"}


class Answer(msgspec.Struct, frozen=True):
    """A chat prompt and the greedy answer to it, as one sequence. The answer begins at ``start``."""

    ids: list[int]
    start: int


class Reference(msgspec.Struct, frozen=True):
    """What float32 says: the log-probability of each token of each window of a text (the first has none), answers."""

    windows: list[list[int]]
    scores: list[float]
    answers: list[Answer]


def make_reference(model: str, text: str, text_tokens: int, window: int, answer_tokens: int) -> Reference:
    with LLM(model, **OPTIONS, **FLOAT32) as llm:
        ids = llm.tokenizer.encode(text)[:text_tokens]
        windows = [ids[i : i + window] for i in range(0, len(ids), window)]
        return Reference(windows, scores(llm, windows), answers(llm, answer_tokens))


def answers(llm: LLM, tokens: int) -> list[Answer]:
    params = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False)
    chats = [[{"role": "user", "content": question}] for question in QUESTIONS]
    found = llm.chat(chats, params, use_tqdm=False)
    return [Answer([*o.prompt_token_ids, *o.outputs[0].token_ids], len(o.prompt_token_ids)) for o in found]


def scores(llm: LLM, windows: list[list[int]]) -> list[float]:
    """The log-probability of each token."""
    params = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0, detokenize=False)
    found = []
    for output in llm.generate(windows, params, use_tqdm=False):
        entries = list(zip(output.prompt_token_ids, output.prompt_logprobs or (), strict=True))[1:]
        found += [entry[token].logprob for token, entry in entries if entry is not None]
    return found


def same_as_prompts(llm: LLM, sequences: Sequence[Answer]) -> list[bool]:
    """For each token of the answers, whether it is the one that would be chosen. Its rank does not say: equal logits,
    which are frequent in bfloat16, share one.
    """
    params = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=1, detokenize=False)
    same: list[bool] = []
    outputs = llm.generate([answer.ids for answer in sequences], params, use_tqdm=False)
    for output, answer in zip(outputs, sequences, strict=True):
        assert output.prompt_logprobs is not None
        likeliest = output.prompt_logprobs[answer.start :]
        same += [
            [*entry] == [token] for token, entry in zip(answer.ids[answer.start :], likeliest, strict=True) if entry
        ]
    return same


def same_step_by_step(bare: BareSteps, sequences: Sequence[Answer], rows: int) -> list[bool]:
    """``rows`` sequences at a time; each step computes one token of each, and what it would go on with is compared.
    Sequences that have ended go on with any token until the longest has ended.
    """
    chosen = sequences[: ALONE if rows == 1 else len(sequences)]
    same: list[bool] = []
    for i in range(0, len(chosen), rows):
        group = chosen[i : i + rows]
        length = max(len(answer.ids) for answer in group)
        padded = [answer.ids + [0] * (length - len(answer.ids)) for answer in group]
        for at, likeliest in enumerate(bare.led(padded), 1):
            asked = zip(likeliest, group, strict=True)
            same += [token == a.ids[at] for token, a in asked if a.start <= at < len(a.ids)]
    return same


def share(same: list[bool]) -> dict[str, float]:
    part = sum(same) / len(same)
    return {"share": round(part, 4), "error": round(math.sqrt(part * (1 - part) / len(same)), 4), "tokens": len(same)}


def compare_scores(found: list[float], expected: list[float]) -> dict[str, float]:
    """Perplexity, by which part it is above the reference's, and the standard error of that."""
    differences = [e - f for f, e in zip(found, expected, strict=True)]
    return {
        "tokens": len(found),
        "perplexity": round(math.exp(-statistics.fmean(found)), 4),
        "above float32": round(math.expm1(statistics.fmean(differences)), 5),
        "error": round(statistics.stdev(differences) / math.sqrt(len(differences)), 5),
    }


def perplexity(model: str, options: dict[str, Any], reference: Reference) -> dict[str, Any]:
    with LLM(model, **OPTIONS, **options) as llm:
        return {"perplexity": compare_scores(scores(llm, reference.windows), reference.scores)}


def agreement(model: str, options: dict[str, Any], reference: Reference) -> dict[str, Any]:
    with LLM(model, **OPTIONS, **options) as llm:
        found = {"agreement, prompts": share(same_as_prompts(llm, reference.answers))}
    del llm
    gc.collect()
    bare = BareSteps(model, **OPTIONS, **options)
    steps = {f"agreement, {rows} a step": share(same_step_by_step(bare, reference.answers, rows)) for rows in ROWS}
    return found | steps


PARTS = {"perplexity": perplexity, "agreement": agreement}


def parse_mode(text: str) -> tuple[str, dict[str, Any]]:
    """``NAME[:OPTION=VALUE,…]``."""
    name, _, options = text.partition(":")
    return name, dict(map(value_of, filter(None, options.split(","))))


def prose() -> str:
    """English of which there is some wherever there is Python: the descriptions of the language."""
    from pydoc_data.topics import topics

    wanted = ("execmodel", "types", "specialnames", "objects", "imports")
    return "\n".join(topics[name] for name in wanted if name in topics)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--reference", type=Path, required=True, help="what float32 says; made if it is not there")
    parser.add_argument("--mode", action="append", default=[], type=parse_mode, metavar="NAME[:OPTION=VALUE,…]")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="what to compare")
    parser.add_argument("--text", type=Path, help="a file; else Python's descriptions of itself")
    parser.add_argument("--text-tokens", type=int, default=4096)
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--answer-tokens", type=int, default=64)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if not args.reference.exists():
        text = args.text.read_text() if args.text else prose()
        made = make_reference(args.model, text, args.text_tokens, args.window, args.answer_tokens)
        args.reference.write_bytes(msgspec.json.encode(made))
    reference = msgspec.json.decode(args.reference.read_bytes(), type=Reference)
    for name, options in args.mode:
        found: dict[str, Any] = {}
        for part in args.parts:
            found |= PARTS[part](args.model, options, reference)
        print(f"{name:12}", json.dumps(found), flush=True)
        if args.json:
            run = {"model": Path(args.model).stem, "mode": name, "options": options, "exactness": found}
            add_run(args.json, {**describe_machine(), **run})


if __name__ == "__main__":
    main()
