"""What one step costs the scheduler: `plan` and `apply`, without any device.

    python benchmarks/scheduler_step.py [--running 256] [--json FILE]

Two loads: 256 requests that all decode with contexts of about 1000 tokens, and a mixture in which requests come, are
prefilled in chunks with half of each prompt in the prefix cache, and end. Each with the policies "fcfs" and "fair", in
turns; with the latter 16 keys share the batch. Steps are planned one ahead, as when serving.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import statistics
import time
from collections import defaultdict, deque
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from random import Random

from octavo.core.blocks import BlockPool
from octavo.core.plan import StepPlan, StepResult
from octavo.core.request import Request, token_array
from octavo.core.scheduler import Scheduler
from octavo.sampling_params import SamplingParams

PARAMS = SamplingParams(temperature=0, max_tokens=None)


KEYS = 16
"""Whose the requests are, with the policy "fair"."""
ROUNDS = 3


def make_scheduler(running: int, policy: str) -> Scheduler:
    pool, tokens = BlockPool(running * 200, 16), max(running, 2048)
    return Scheduler(pool, max_model_len=4096, max_num_seqs=running, max_num_batched_tokens=tokens, policy=policy)


def make_request(rng: Random, name: int, prompt: list[int], output: int) -> Request:
    tokens = prompt + [rng.randrange(32_000) for _ in range(1000 - len(prompt))]
    return Request(str(name), token_array(tokens), PARAMS, output, eos_token_ids=(2,), share_key=f"key-{name % KEYS}")


class Timer:
    """Runs a scheduler with one step planned ahead; seconds of each plan and of each apply."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.flights: deque[StepPlan] = deque()
        self.num_rows: list[int] = []
        self.seconds: list[float] = []

    def step(self) -> None:
        start = time.perf_counter()
        plan = self.scheduler.plan()
        planned = time.perf_counter() - start
        if plan is not None:
            self.flights.append(plan)
        if len(self.flights) < 2:
            return
        result = StepResult(self.flights[0].step, (7,) * self.flights.popleft().num_sampled)
        start = time.perf_counter()
        self.scheduler.apply(result)
        self.seconds.append(planned + time.perf_counter() - start)
        self.num_rows.append(self.scheduler.stats().running)


def decode(running: int, steps: int, policy: str) -> Timer:
    """All requests run; each step computes one token of each."""
    rng, timer = Random(0), Timer(make_scheduler(running, policy))
    for i in range(running):
        timer.scheduler.add(make_request(rng, i, [], 2000))
    while len(timer.scheduler.running) < running or timer.scheduler.waiting:
        timer.step()
    timer.step()
    timer.seconds.clear()
    timer.num_rows.clear()
    for _ in range(steps):
        timer.step()
    return timer


def mixed(running: int, steps: int, policy: str) -> Timer:
    """Requests of 1000 prompt tokens, half of them a common beginning, and 20 to 200 of output; some always wait."""
    rng, timer = Random(0), Timer(make_scheduler(running, policy))
    common = [rng.randrange(32_000) for _ in range(500)]
    added = 0
    for _ in range(steps):
        while len(timer.scheduler.waiting) < 8:
            timer.scheduler.add(make_request(rng, added, common, rng.randint(20, 200)))
            added += 1
        timer.step()
    return timer


def summary(timers: Sequence[Timer]) -> dict[str, float]:
    """Microseconds of a step, and how many requests ran in it."""
    seconds = [s for timer in timers for s in timer.seconds]
    rows = [n for timer in timers for n in timer.num_rows]
    cuts = statistics.quantiles(seconds, n=100)
    return {
        "median_us": round(statistics.median(seconds) * 1e6, 1),
        "p99_us": round(cuts[98] * 1e6, 1),
        "mean_running": round(statistics.mean(rows), 1),
        "steps": len(seconds),
    }


def measure(running: int, steps: int) -> dict[str, dict[str, float]]:
    """Of each load with each policy. The policies take turns, as a machine's speed drifts."""
    timers: defaultdict[str, list[Timer]] = defaultdict(list)
    for load, run in {"decode": decode, "mixed": mixed}.items():
        for _, policy in itertools.product(range(ROUNDS), ("fcfs", "fair")):
            timers[f"{load}, {policy}"].append(run(running, steps // ROUNDS, policy))
    return {name: summary(each) for name, each in timers.items()}


def machine() -> dict[str, str]:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": models[0] if models else platform.processor(),
        "python": platform.python_version(),
        "msgspec": version("msgspec"),
        "xxhash": version("xxhash"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Microseconds that the scheduler takes for a step.")
    parser.add_argument("--running", type=int, default=256, help="requests that run at once")
    parser.add_argument("--steps", type=int, default=900)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    args = parser.parse_args()
    figures = measure(args.running, args.steps)
    report = {"benchmark": "scheduler_step", "running": args.running, "machine": machine(), "loads": figures}
    print(*(f"{key}: {value}" for key, value in machine().items()), sep="   ")
    for name, row in figures.items():
        print(f"{name:12}", *(f"{key} {value:>8}" for key, value in row.items()), sep="  ")
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
