"""What a decode step costs as contexts and batches grow, and how near one stream is to the memory's speed.

    python benchmarks/cpu/growth.py smollm2-135m --json benchmarks/results/cpu_growth.json
    python benchmarks/cpu/growth.py llama-1b --option load_format=dummy --option quantization=int8

Steps are bare (`bare_step.py`): the model and the sampler. A step must read all matrices once, and the keys and values
of every context; that many bytes over the step's time, beside what the machine reads at best (`machine.py`: huge
pages, all cores, the same run), say how good one stream is. Points that the KV cache has no room for are left out.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from pathlib import Path
from typing import Any

from bare_step import BareSteps
from decode import add_run
from machine import describe_machine, read_bandwidth
from sides import value_of

CONTEXTS = (128, 512, 2048, 8000)
ROWS = (1, 4, 16, 64)
SETTLE = 2
"""Steps before any is timed."""


def measure(bare: BareSteps, rows: int, context: int, steps: int) -> dict[str, Any]:
    seconds = statistics.median(bare.decode(rows, context, SETTLE + steps)[SETTLE:])
    read = bare.weight_bytes + rows * context * bare.kv_bytes_per_token
    point = {"rows": rows, "context": context, "ms": round(1000 * seconds, 3), "GB/s": round(read / seconds / 1e9, 2)}
    print(f"  {point}", file=sys.stderr, flush=True)
    return point


def possible(bare: BareSteps, contexts: list[int], batches: list[int], steps: int) -> list[tuple[int, int]]:
    longest = min(bare.longest, bare.config.max_position_embeddings)
    sizes = [(rows, context) for rows in batches for context in contexts]
    return [(r, c) for r, c in sizes if c + SETTLE + steps <= longest and bare.fits(r, c, SETTLE + steps)]


def print_points(points: list[dict[str, Any]], bandwidth: float) -> None:
    for point in points:
        step = f"{point['rows']:4} rows, context {point['context']:5} {point['ms']:9.2f} ms {point['GB/s']:6.1f} GB/s"
        share = f"{point['GB/s'] / bandwidth:6.0%} of {bandwidth} GB/s" if point["rows"] == 1 else ""
        print(step, share)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--name", help="for the record; else MODEL and the options")
    parser.add_argument("--option", action="append", default=[], metavar="NAME=VALUE", help="an argument of LLM")
    parser.add_argument("--contexts", type=int, nargs="+", default=CONTEXTS)
    parser.add_argument("--rows", type=int, nargs="+", default=ROWS)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--kv-cache-memory", type=int, default=4 << 30, metavar="BYTES")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    bare = BareSteps(args.model, kv_cache_memory=args.kv_cache_memory, **dict(map(value_of, args.option)))
    bandwidth = read_bandwidth(len(os.sched_getaffinity(0)))
    sizes = possible(bare, args.contexts, args.rows, args.steps)
    points = [measure(bare, rows, context, args.steps) for rows, context in sizes]
    run = {
        **describe_machine(),
        "model": args.name or " ".join([Path(args.model).stem, *args.option]),
        "weight bytes": bare.weight_bytes,
        "KV bytes a token": bare.kv_bytes_per_token,
        "read bandwidth, GB/s": bandwidth,
        "points": points,
    }
    print_points(points, bandwidth["huge"])
    if args.json:
        add_run(args.json, run)


if __name__ == "__main__":
    main()
