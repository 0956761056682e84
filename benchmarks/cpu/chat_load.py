"""Mixed real work: chats of ragged lengths that arrive over time, sent to servers one after the other.

    python benchmarks/cpu/chat_load.py octavo:smollm2-135m llama:q8_0.gguf,np=16 openvino:q8_0.gguf \\
        --llama-tools DIR --openvino-python ov/bin/python --json benchmarks/results/cpu_chat.json

Prompts have 20 to 800 tokens, most of them few (the logarithm is even), answers 16 to 256, and arrivals are Poisson's,
all from one seed, so that every server gets the same requests at the same times, greedy, streamed, and to be answered
in full length whatever the model would say. Each server may work at ``--at-once`` of them together, and keeps what
prompts begin with in common. The load is ``octavo bench serve`` in a process of its own, on the same cores. Each server
starts afresh in each round and gets one other request to warm up. Tokens a second are those of the answers, from the
first request's sending to the last one's end. ``others`` is the share of the processors that neither server nor load
took.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
from decode import add_peer_options, add_run
from machine import describe_machine
from servers import running_server, seconds_of, shown_command
from sides import Side, busy_seconds, others_share

PROMPT, ANSWER = (20, 800), (16, 256)


def write_trace(path: Path, model: str, count: int, rate: float, seed: int) -> int:
    """A line for each request, as ``octavo bench serve --trace`` reads them. Gives the tokens of all answers."""
    from octavo.bench.serve.arrivals import Arrivals
    from octavo.bench.serve.prompts import NO_PREFIX, exact_words
    from octavo.text.tokenizer import load_tokenizer
    from octavo.weights.source import resolve

    rng = random.Random(seed)
    low, high = map(math.log, PROMPT)
    lengths = [round(math.exp(rng.uniform(low, high))) for _ in range(count)]
    prompts = exact_words(load_tokenizer(resolve(model))).make(rng, lengths, NO_PREFIX)
    times = Arrivals(rate).times(rng, count)
    answers = [rng.randint(*ANSWER) for _ in range(count)]
    lines = [
        {"timestamp": 1000 * at, "prompt": prompt, "output_length": tokens}
        for at, prompt, tokens in zip(times, prompts, answers, strict=True)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return sum(answers)


def load(url: str, server: psutil.Process, trace: Path, count: int) -> dict[str, Any]:
    """The report of ``octavo bench serve``, and ``others``."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.json")
        fields = {"--api": "chat", "--trace": trace, "--num-prompts": count, "--warmup": 0, "--json": report}
        words = [str(w) for pair in fields.items() for w in pair] + ["--extra-body", '{"temperature": 0}']
        before, start = busy_seconds() - seconds_of(server), time.monotonic()
        command = [sys.executable, "-m", "octavo", "bench", "serve", url, *words]
        client = os.times().children_user + os.times().children_system
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        client = os.times().children_user + os.times().children_system - client
        busy, seconds = busy_seconds() - seconds_of(server) - before - client, time.monotonic() - start
        found: dict[str, Any] = json.loads(report.read_text())
    return {**found, "others": others_share(busy, seconds)}


def figures(side: Side, report: dict[str, Any]) -> dict[str, Any]:
    results = report["results"]
    return {
        "side": side.name,
        "prompt tokens": results["prompt_tokens"],
        "answer tokens": results["output_tokens"],
        "tokens/s": round(results["output_tokens_per_second"], 1),
        "first token p50, s": round(results["time_to_first_token"]["median"], 3),
        "first token p95, s": round(results["time_to_first_token"]["p95"], 3),
        "gap p95, s": round(results["inter_token"]["p95"], 4),
        "busy client": round(results["busy"], 3),
        "others": report["others"],
    }


def run_rounds(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The figures of each side in each round, in turn.

    Raises:
        RuntimeError: a server has not answered all requests in full length.
    """
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder, "requests.jsonl")
        tokens = write_trace(trace, args.tokenizer, args.requests, args.rate, args.seed)
        for side in args.sides * args.rounds:
            with running_server(side, args) as (url, server):
                report = load(url, server, trace, args.requests)
            found = figures(side, report)
            print(f"  {found}", file=sys.stderr, flush=True)
            if found["answer tokens"] != tokens:
                raise RuntimeError(
                    f"{side.name} gave not all of {tokens} tokens; errors: {report['results']['errors']}"
                )
            yield found


def show(rounds: list[dict[str, Any]]) -> None:
    for name in dict.fromkeys(r["side"] for r in rounds):
        of_side = [r for r in rounds if r["side"] == name]
        rate, first = (statistics.median(r[key] for r in of_side) for key in ("tokens/s", "first token p95, s"))
        print(f"{name:40} {rate:8.1f} tokens/s   first token p95 {first:7.3f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sides", nargs="+", type=Side.parse, metavar="ENGINE:MODEL[,OPTION=VALUE…]")
    parser.add_argument("--tokenizer", default="smollm2-135m", help="that all the models have")
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--rate", type=float, default=4.0, help="requests a second")
    parser.add_argument("--at-once", type=int, default=64, help="requests that a server may work at together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--json", type=Path)
    add_peer_options(parser)
    args = parser.parse_args()
    rounds = list(run_rounds(args))
    show(rounds)
    if args.json:
        sizes = {"prompt": PROMPT, "answer": ANSWER, "seed": args.seed}
        work = {"requests": args.requests, "rate": args.rate, "at once": args.at_once, **sizes}
        commands = {side.name: shown_command(side, args) for side in args.sides}
        add_run(args.json, {**describe_machine(), "servers": commands, "work": work, "rounds": rounds})


if __name__ == "__main__":
    main()
