"""The runs of `decode.py` and `chat_load.py` as Markdown tables: python benchmarks/cpu/tables.py RESULT.json…

A rate is the median of all rounds that were not disturbed: in which other processes took at most a twentieth of the
machine. Sides are compared within a run only, whose rounds alternate.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from decode import measured

MOST_FOR_OTHERS = 0.05


def rates_of(run: dict[str, Any]) -> dict[str, list[float]]:
    """The undisturbed rounds' tokens a second of each side of a decode run."""
    key = measured(run["work"])
    kept = [result for result in run["rounds"] if result["others"] <= MOST_FOR_OTHERS]
    return {side: [r[key] for r in kept if r["side"] == side] for side in run["sides"]}


def decode_rows(run: dict[str, Any]) -> Iterator[Sequence[str]]:
    """The first side is the one that the others are compared with."""
    work, rates = run["work"], rates_of(run)
    what = f"prompt of {work['prompt']}" if measured(work) == "prefill" else f"{work['sequences']}"
    first = statistics.median(next(iter(rates.values())) or [0.0])
    for side, values in rates.items():
        if values:
            median = statistics.median(values)
            spread = f"{min(values):,.0f} to {max(values):,.0f}"
            yield what, side, f"{median:,.0f}", spread, str(len(values)), f"{first / median:.2f}", run["commit"][:7]


def chat_rows(run: dict[str, Any]) -> Iterator[Sequence[str]]:
    keys = ("tokens/s", "first token p50, s", "first token p95, s")
    for side in run["servers"]:
        rounds = [r for r in run["rounds"] if r["side"] == side]
        medians = (f"{statistics.median(r[key] for r in rounds):,.2f}" for key in keys)
        yield f"{run['work']['rate']:g}/s", side, *medians, str(len(rounds)), run["commit"][:7]


HEADS = {
    "sides": ("sequences", "side", "tokens/s", "range", "rounds", "first / this", "commit"),
    "servers": ("arrivals", "server", "tokens/s", "first token p50, s", "p95, s", "rounds", "commit"),
}
ROWS = {"sides": decode_rows, "servers": chat_rows}


def table(runs: Sequence[dict[str, Any]], kind: str) -> str:
    rows = [row for run in runs if kind in run for row in ROWS[kind](run)]
    lines = [HEADS[kind], ["---"] * len(HEADS[kind]), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main(files: Sequence[str]) -> None:
    for file in files:
        runs = json.loads(Path(file).read_text())["runs"]
        for kind in ROWS:
            if any(kind in run for run in runs):
                print(table(runs, kind) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
