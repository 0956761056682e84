"""Draw the results: python benchmarks/cpu/chart.py FOLDER, which has cpu_decode.json and cpu_growth.json

cpu_decode.svg  tokens a second for each number of sequences, every side with its best weights
cpu_growth.svg  milliseconds of a decode step over the context, a line for each number of rows, a panel for each model
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any

import matplotlib
from tables import rates_of

matplotlib.use("agg")
from matplotlib import pyplot as plt

COLORS = {"octavo": "#1f6f8b", "openvino": "#c4a35a", "llama": "#8f6f9f", "vllm": "#7f8c8d"}
NAMES = {"octavo": "Octavo", "openvino": "OpenVINO GenAI", "llama": "llama.cpp", "vllm": "vLLM"}
BLUES = ("#9ecae1", "#5aa5cf", "#2b7bba", "#0b4083")


def best_rates(runs: list[dict[str, Any]]) -> dict[str, dict[int, float]]:
    """Engine -> sequences -> tokens a second of its best side. Bare steps do not count."""
    best: dict[str, dict[int, float]] = {}
    for run in runs:
        if run["work"]["tokens"] == 1:
            continue
        for side, values in rates_of(run).items():
            if values and "way=" not in side:
                engine, count = side.split()[0], run["work"]["sequences"]
                rates = best.setdefault(engine, {})
                rates[count] = max(rates.get(count, 0.0), statistics.median(values))
    return best


def draw_decode(runs: list[dict[str, Any]], target: Path) -> None:
    best = best_rates(runs)
    counts = sorted({count for rates in best.values() for count in rates})
    engines = [engine for engine in COLORS if engine in best]
    figure, axes = plt.subplots(figsize=(8, 3.4))
    width = 0.8 / len(engines)
    for i, engine in enumerate(engines):
        places = [at + (i - (len(engines) - 1) / 2) * width for at in range(len(counts))]
        heights = [best[engine].get(count, 0.0) for count in counts]
        bars = axes.bar(places, heights, width, label=NAMES[engine], color=COLORS[engine])
        axes.bar_label(bars, [f"{height:.0f}" if height else "" for height in heights], fontsize=8, padding=2)
    axes.set_xticks(range(len(counts)), [f"{count} at once" if count > 1 else "one stream" for count in counts])
    axes.set_ylabel("decoded tokens per second")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    axes.set_title(
        f"SmolLM2-135M, prompts of 128, {runs[-1]['cores']} cores of an {runs[-1]['processor']}", fontsize=10
    )
    save(figure, target)


def draw_growth(runs: list[dict[str, Any]], target: Path) -> None:
    latest = {run["model"]: run for run in runs}
    figure, panels = plt.subplots(1, len(latest), figsize=(3.6 * len(latest), 3.4), squeeze=False)
    for axes, (model, run) in zip(panels[0], latest.items(), strict=True):
        draw_panel(axes, model, run)
    panels[0][0].set_ylabel("ms of a decode step")
    save(figure, target)


def draw_panel(axes: Any, model: str, run: dict[str, Any]) -> None:
    for color, rows in zip(BLUES, sorted({point["rows"] for point in run["points"]}), strict=False):
        line = [(p["context"], p["ms"]) for p in run["points"] if p["rows"] == rows]
        axes.loglog(*zip(*line, strict=True), marker="o", markersize=3, color=color, label=f"{rows} rows")
    floor = run["weight bytes"] / run["read bandwidth, GB/s"]["huge"] / 1e6
    axes.axhline(floor, color="#c0392b", linewidth=0.8, linestyle=":", label="weights at bandwidth")
    axes.set_title(model, fontsize=9)
    axes.set_xlabel("tokens of context")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=7)


def save(figure: Any, target: Path) -> None:
    figure.tight_layout()
    figure.savefig(target, metadata={"Date": None})


def main(folder: Path) -> None:
    plt.rcParams["svg.hashsalt"] = "octavo"  # the same figures give the same file
    draw_decode(json.loads((folder / "cpu_decode.json").read_text())["runs"], folder / "cpu_decode.svg")
    draw_growth(json.loads((folder / "cpu_growth.json").read_text())["runs"], folder / "cpu_growth.svg")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
