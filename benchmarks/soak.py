"""Many requests of random shapes, some of which hang up or are wrong: none may be lost, no block, and no memory.

    python benchmarks/soak.py -- octavo serve smollm2-135m --debug-routes --kv-cache-memory 256M
    python benchmarks/soak.py --url http://HOST:PORT --pid PID

The first form starts the server and ends it. The cache should be so small that the first half of the load fills it: the
system gives its pages when they are first written. At the end the engine must be idle, its KV cache empty and sound
(`/debug/check`), and memory must not have grown by more than 5% over the last half. Otherwise the exit code is 1.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from octavo.bench.environment import describe_machine
from octavo.bench.serve.arrivals import Arrivals
from octavo.bench.serve.figures import Figures, figures_of
from octavo.bench.serve.processes import run_load
from octavo.bench.serve.prompts import Prefixes, plain_words
from octavo.bench.serve.server import describe_server
from octavo.bench.serve.target import Target
from octavo.bench.serve.text import figures_text
from octavo.bench.serve.workload import Workload
from octavo.bench.workload import LengthRange

MOST_GROWTH = 0.05


class Memory:
    """Samples the resident memory, in bytes, of a process and its children, from a thread of its own."""

    def __init__(self, pid: int, every: float) -> None:
        self.samples: list[int] = []
        self._process = psutil.Process(pid)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._sample, args=(every,), daemon=True)

    def __enter__(self) -> Memory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _sample(self, every: float) -> None:
        while not self._ended.wait(every):
            with suppress(psutil.NoSuchProcess):
                family = [self._process, *self._process.children(recursive=True)]
                self.samples.append(sum(process.memory_info().rss for process in family))


def growth(samples: Sequence[int]) -> float:
    """How much memory grew over the last half, as a share: medians of a tenth in the middle and of the last tenth."""
    tenth, half = max(len(samples) // 10, 1), len(samples) // 2
    return statistics.median(samples[-tenth:]) / statistics.median(samples[half : half + tenth]) - 1


def get(url: str, method: str = "GET") -> dict[str, Any]:
    """The JSON of an answer, whatever its status."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method=method), timeout=30) as answer:
            value: dict[str, Any] = json.load(answer)
    except urllib.error.HTTPError as error:
        value = {"status": error.code, "reason": error.read(500).decode(errors="replace")}
    return value


def wait(url: str, condition: str, wanted: Any, seconds: float) -> bool:
    """Whether a figure of ``/health`` has become ``wanted`` in time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with suppress(OSError, ValueError):
            if get(f"{url}/health").get(condition) == wanted:
                return True
        time.sleep(0.5)
    return False


def soak(url: str, args: argparse.Namespace) -> Figures:
    server = describe_server(url, None, None)
    workload = Workload(
        count=args.requests,
        input_len=LengthRange(1, args.input_len),
        output_len=LengthRange(1, args.output_len),
        arrivals=Arrivals(),
        prefixes=Prefixes(32, 8),
        disconnect=0.2,
        malformed=0.05,
    )
    plan = workload.plan(random.Random(args.seed), plain_words())
    driven = run_load(Target(url, server["served_model"]), plan, args.concurrency)
    return figures_of(driven.outcomes, {}, driven.busy)


def judge(url: str, figures: Figures, memory: Sequence[int]) -> dict[str, Any]:
    """What is wrong, and what was seen. Nothing is wrong if ``faults`` is empty."""
    idle = wait(url, "running", 0, 60) and wait(url, "waiting", 0, 60)
    health, check, grown = get(f"{url}/health"), get(f"{url}/debug/check", "POST"), growth(memory)
    faults = [f"{count} x {kind}" for kind, count in figures.errors.items()]
    faults += [] if idle and health.get("kv_cache_usage") == 0 else [f"the engine is not idle: {health}"]
    faults += [f"the check failed: {check}"] if "reason" in check or "error" in check else []
    faults += [f"memory grew by {grown:.1%} over the last half"] if grown > MOST_GROWTH else []
    lost = figures.requests - figures.completed - figures.left - figures.malformed - sum(figures.errors.values())
    faults += [f"{lost} requests were lost"] if lost else []
    return {"faults": faults, "growth": grown, "first": memory[0], "last": memory[-1], "check": check, "health": health}


def run(url: str, pid: int, args: argparse.Namespace) -> int:
    with Memory(pid, args.sample) as memory:
        figures = soak(url, args)
        verdict = judge(url, figures, memory.samples or [1])
    print(figures_text(figures), json.dumps(verdict, indent=2), sep="\n\n")
    if args.json:
        report = {"benchmark": "soak", "results": figures.as_values(), "verdict": verdict, "memory": memory.samples}
        args.json.write_text(json.dumps({**report, "environment": describe_machine()}, indent=2) + "\n")
    return 1 if verdict["faults"] else 0


def run_with_server(command: Sequence[str], args: argparse.Namespace) -> int:
    server = subprocess.Popen(command)
    try:
        if not wait(args.url, "status", "ok", args.start):
            print("the server did not become well", file=sys.stderr)
            return 1
        return run(args.url, server.pid, args)
    finally:
        server.terminate()
        try:
            server.wait(60)
        except subprocess.TimeoutExpired:
            server.kill()


def main() -> None:
    given = sys.argv[1:]
    own, command = (given[: given.index("--")], given[given.index("--") + 1 :]) if "--" in given else (given, [])
    parser = argparse.ArgumentParser(description="Requests of random shapes, with disconnects and wrong ones.")
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--pid", type=int, help="of a server that runs already")
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--input-len", type=int, default=200, help="longest prompt, in words")
    parser.add_argument("--output-len", type=int, default=64, help="longest answer, in tokens")
    parser.add_argument("--sample", type=float, default=1.0, help="seconds between two looks at the memory")
    parser.add_argument("--start", type=float, default=300.0, help="seconds for the server to start in")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    args = parser.parse_args(own)
    if args.pid is None and not command:
        parser.error("give --pid of a running server, or its command after --")
    sys.exit(run(args.url, args.pid, args) if args.pid else run_with_server(command, args))


if __name__ == "__main__":
    main()
