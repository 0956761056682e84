"""Mixed real work: chats of ragged lengths that arrive over time, sent to servers one after the other.

    python benchmarks/cpu/chat_load.py octavo:smollm2-135m llama:q8_0.gguf,np=16 openvino:q8_0.gguf \\
        --llama-tools DIR --openvino-python ov/bin/python --json benchmarks/results/cpu_chat.json

Prompts have 20 to 800 tokens, most of them few (the logarithm is even), answers 16 to 256, and arrivals are Poisson's,
all from one seed, so that every server gets the same requests at the same times. The load is ``octavo bench serve`` in
a process of its own, on the same cores. Each server starts afresh in each round and gets one request to warm up. Tokens
a second are those of the answers, from the first request's sending to the last one's end.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from decode import add_peer_options, add_run
from machine import describe_machine
from sides import HERE, Side
from worker_llama import HUGE_PAGES

PROMPT, ANSWER = (20, 800), (16, 256)
CONTEXT = 1152
"""Tokens that one of llama.cpp's slots has: the longest prompt with its template, and the longest answer."""
PATIENCE = 120
"""Seconds that a server has to start in."""


def write_trace(path: Path, model: str, count: int, rate: float, seed: int) -> None:
    """A line for each request, as ``octavo bench serve --trace`` reads them."""
    from octavo.bench.serve.arrivals import Arrivals
    from octavo.bench.serve.prompts import NO_PREFIX, exact_words
    from octavo.text.tokenizer import load_tokenizer
    from octavo.weights.source import resolve

    rng = random.Random(seed)
    low, high = map(math.log, PROMPT)
    lengths = [round(math.exp(rng.uniform(low, high))) for _ in range(count)]
    prompts = exact_words(load_tokenizer(resolve(model))).make(rng, lengths, NO_PREFIX)
    times = Arrivals(rate).times(rng, count)
    lines = [
        {"timestamp": 1000 * at, "prompt": prompt, "output_length": rng.randint(*ANSWER)}
        for at, prompt in zip(times, prompts, strict=True)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def server_command(side: Side, port: int, args: argparse.Namespace) -> list[str]:
    """Options of a side are the server's own: ``octavo:…,quantize=int8``, ``llama:…,np=16``."""
    if side.engine == "octavo":
        words = [w for name, value in side.options.items() for w in (f"--{name}", str(value))]
        return [sys.executable, "-m", "octavo", "serve", side.model, "--port", str(port), *words]
    if side.engine == "openvino":
        options = json.dumps(dict(side.options))
        return [args.openvino_python, str(HERE / "openvino_server.py"), side.model, str(port), options]
    if side.engine == "llama":
        slots, threads = side.options.get("np", 16), len(os.sched_getaffinity(0))
        sizes = {"-np": slots, "-c": slots * CONTEXT, "-t": threads, "-tb": threads, "-lm": "none", "--port": port}
        return [f"{args.llama_tools}/llama-server", "-m", side.model, *(str(w) for pair in sizes.items() for w in pair)]
    raise SystemExit(f"{side.engine} has no server here; accepted: octavo, llama, openvino")


@contextmanager
def running_server(side: Side, args: argparse.Namespace) -> Iterator[str]:
    """The address of a server that answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, **(HUGE_PAGES if side.engine == "llama" else {})}
    command = server_command(side, port, args)
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, env=environment, **quiet)
    try:
        url = f"http://127.0.0.1:{port}"
        _wait_for(f"{url}/v1/models", process, command)
        yield url
    finally:
        process.terminate()
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()


def _wait_for(url: str, process: subprocess.Popen[bytes], command: list[str]) -> None:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(0.1)
    raise RuntimeError(f"no server: {' '.join(command)}")


def load(url: str, trace: Path, count: int) -> dict[str, Any]:
    """The report of ``octavo bench serve``."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.json")
        fields = {"--api": "chat", "--trace": trace, "--num-prompts": count, "--extra-body": '{"temperature": 0}'}
        words = [str(w) for pair in fields.items() for w in pair]
        command = [sys.executable, "-m", "octavo", "bench", "serve", url, *words, "--json", str(report)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        found: dict[str, Any] = json.loads(report.read_text())
    return found


def figures(side: Side, report: dict[str, Any]) -> dict[str, Any]:
    results = report["results"]
    return {
        "side": side.name,
        "completed": results["completed"],
        "errors": results["errors"],
        "prompt tokens": results["prompt_tokens"],
        "answer tokens": results["output_tokens"],
        "tokens/s": round(results["output_tokens_per_second"], 1),
        "first token p50, s": round(results["time_to_first_token"]["median"], 3),
        "first token p95, s": round(results["time_to_first_token"]["p95"], 3),
        "gap p95, s": round(results["inter_token"]["p95"], 4),
        "busy client": round(results["busy"], 3),
    }


def run_rounds(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The figures of each side in each round, in turn."""
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder, "requests.jsonl")
        write_trace(trace, args.tokenizer, args.requests, args.rate, args.seed)
        for side in args.sides * args.rounds:
            with running_server(side, args) as url:
                found = figures(side, load(url, trace, args.requests))
            print(f"  {found}", file=sys.stderr, flush=True)
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
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--json", type=Path)
    add_peer_options(parser)
    args = parser.parse_args()
    rounds = list(run_rounds(args))
    show(rounds)
    if args.json:
        work = {"requests": args.requests, "rate": args.rate, "prompt": PROMPT, "answer": ANSWER, "seed": args.seed}
        commands = {side.name: " ".join(map(str, server_command(side, 8000, args))) for side in args.sides}
        add_run(args.json, {**describe_machine(), "servers": commands, "work": work, "rounds": rounds})


if __name__ == "__main__":
    main()
