"""What the result files of a folder say, read for `tables.py` and `chart.py`.

A rate is the median of all rounds that were not disturbed: in which other processes took at most a twentieth of the
machine. Rounds of runs of the same work count as one run's.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from decode import measured

MOST_FOR_OTHERS = 0.05
Run = dict[str, Any]


@dataclass(frozen=True, order=True)
class Case:
    """What engines are compared at: ``measure`` is "decode" or "prefill"; bits are those of most weights."""

    measure: str
    sequences: int
    prompt: int
    bits: int

    @property
    def weights(self) -> str:
        return {4: "4 bits", 8: "8 bits", 16: "bfloat16"}.get(self.bits, f"{self.bits} bits")


def runs_of(folder: Path, name: str) -> list[Run]:
    """Of a file, which need not be there."""
    file = folder / name
    found: list[Run] = json.loads(file.read_text())["runs"] if file.exists() else []
    return found


def undisturbed(rounds: Sequence[Run]) -> list[Run]:
    return [result for result in rounds if result["others"] <= MOST_FOR_OTHERS]


def rates_of(run: Run) -> dict[str, list[float]]:
    """The undisturbed rounds' tokens a second of each side of a decode run."""
    key, kept = measured(run["work"]), undisturbed(run["rounds"])
    return {side: [result[key] for result in kept if result["side"] == side] for side in run["sides"]}


def bits_of(side: str) -> int:
    """Of the weights of ``ENGINE FILE …``, by the file's name: q4_1 has 4, f16 has 16."""
    digits = [int(part) for part in side.split()[1].replace("f", "_").replace("q", "_").split("_") if part.isdigit()]
    return digits[0]


def compared(runs: Sequence[Run]) -> Mapping[Case, Mapping[str, float]]:
    """For each case that several engines have run: each engine's rate, with its best file of so many bits."""
    values: dict[Case, dict[str, list[float]]] = {}
    for run in runs:
        work = run["work"]
        for side, rates in rates_of(run).items():
            if "way=" not in side:
                case = Case(measured(work), work["sequences"], work["prompt"], bits_of(side))
                values.setdefault(case, {}).setdefault(side, []).extend(rates)
    best = {case: _best_of_each_engine(of_sides) for case, of_sides in sorted(values.items())}
    return {case: of_engines for case, of_engines in best.items() if len(of_engines) > 1}


def _best_of_each_engine(of_sides: Mapping[str, list[float]]) -> dict[str, float]:
    best: dict[str, float] = {}
    for side, rates in of_sides.items():
        if rates:
            engine = side.split()[0]
            best[engine] = max(best.get(engine, 0.0), statistics.median(rates))
    return best


def latest(runs: Sequence[Run], *keys: str) -> list[Run]:
    """The last run of each value of ``keys``, in the order in which the values came first."""
    return list({tuple(run[key] for key in keys): run for run in runs}.values())
