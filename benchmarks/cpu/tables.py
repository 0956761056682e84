"""The results of a folder as Markdown tables: python benchmarks/cpu/tables.py benchmarks/results"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from results import Run, compared, latest, rates_of, runs_of, undisturbed

Row = Sequence[str]
ENGINES = {"octavo": "Octavo", "llama": "llama.cpp", "openvino": "OpenVINO"}


def peer_rows(runs: list[Run]) -> Iterator[Row]:
    """The whole comparison in short: a row for each case that Octavo and a peer have run."""
    for case, rates in compared(runs).items():
        what = f"a prompt of {case.prompt}" if case.measure == "prefill" else f"{case.sequences}"
        cells = [f"{rates[engine]:,.0f}" if engine in rates else "" for engine in ENGINES]
        peers = [rate for engine, rate in rates.items() if engine != "octavo"]
        yield case.weights, what, *cells, f"{rates.get('octavo', 0.0) / max(peers):.2f}"


def decode_rows(runs: list[Run]) -> Iterator[Row]:
    """Each run by itself: its rounds alternate, so its sides can be compared. The first one is, with the others."""
    for run in runs:
        work, rates = run["work"], rates_of(run)
        what = f"prompt of {work['prompt']}" if work["tokens"] == 1 else f"{work['sequences']}"
        first = statistics.median(next(iter(rates.values())) or [0.0])
        for side, values in rates.items():
            if values:
                median, spread = statistics.median(values), f"{min(values):,.0f} to {max(values):,.0f}"
                yield what, side, f"{median:,.0f}", spread, str(len(values)), f"{first / median:.2f}", run["commit"][:7]


def chat_rows(runs: list[Run]) -> Iterator[Row]:
    """Rounds of runs with the same work are put together."""
    keys = ("tokens/s", "first token p50, s", "first token p95, s", "gap p95, s")
    rounds: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        work = f"{run['work']['requests']} at {run['work']['rate']:g}/s"
        for result in undisturbed(run["rounds"]):
            rounds.setdefault((work, result["side"]), []).append(result)
    for (work, side), found in rounds.items():
        medians = (f"{statistics.median(result[key] for result in found):,.3g}" for key in keys)
        yield work, side, *medians, str(len(found))


def start_rows(runs: list[Run]) -> Iterator[Row]:
    for run in latest(runs, "model"):
        cells = (f"{statistics.median(run[key]):.2f} ({min(run[key]):.2f} to {max(run[key]):.2f})" for key in STARTS)
        yield run["model"], *cells


def bandwidth_rows(runs: list[Run]) -> Iterator[Row]:
    """One stream beside what the machine reads at best, in the same run."""
    for run in latest(runs, "model"):
        best = run["read bandwidth, GB/s"]["huge"]
        for point in run["points"]:
            if point["rows"] == 1:
                rates = f"{point['ms']:.2f}", f"{point['GB/s']:.1f}", f"{best:.1f}", f"{point['GB/s'] / best:.0%}"
                yield run["model"], f"{point['context']}", *rates


def exactness_rows(runs: list[Run]) -> Iterator[Row]:
    """A mode's parts may have been measured in several runs."""
    found: dict[tuple[str, str], Run] = {}
    for run in runs:
        found.setdefault((run["model"], run["mode"]), {}).update(run["exactness"])
    for (model, mode), parts in found.items():
        shares = [parts.get(f"agreement, {way}") for way in ("prompts", "1 a step", "8 a step", "16 a step")]
        scores = parts.get("perplexity")
        above = f"{scores['perplexity']:.2f}: {scores['above float32']:+.2%} ± {scores['error']:.2%}" if scores else ""
        yield model, mode, above, *(f"{s['share']:.1%} ± {s['error']:.1%}" if s else "" for s in shares)


STARTS = ("cold, s", "warm, s")
TABLES: tuple[tuple[str, Callable[[list[Run]], Iterator[Row]], Row], ...] = (
    ("cpu_decode.json", peer_rows, ("weights", "sequences", *ENGINES.values(), "× the best peer")),
    ("cpu_decode.json", decode_rows, ("sequences", "side", "tokens/s", "range", "rounds", "first / this", "commit")),
    (
        "cpu_chat.json",
        chat_rows,
        ("chats", "server", "tokens/s", "first token p50, s", "p95, s", "gap p95, s", "rounds"),
    ),
    ("cpu_start.json", start_rows, ("model", *STARTS)),
    ("cpu_growth.json", bandwidth_rows, ("model", "context", "ms", "GB/s", "read at best", "share")),
    ("cpu_exactness.json", exactness_rows, ("file", "mode", "perplexity", "prompts", "1 a step", "8", "16")),
)


def table(head: Row, rows: Sequence[Row]) -> str:
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, ["---"] * len(head), *rows))


def main(folder: Path) -> None:
    for name, rows_of, head in TABLES:
        if rows := list(rows_of(runs_of(folder, name))):
            print(table(head, rows) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
