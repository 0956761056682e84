"""Draw the results of a folder: python benchmarks/cpu/chart.py benchmarks/results

cpu_decode.svg  tokens a second of each engine, for each number of sequences and each size of weights
cpu_growth.svg  milliseconds of a decode step over the context, a line for each number of rows, a panel for each model
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
from results import Case, Run, compared, latest, runs_of

matplotlib.use("agg")
from matplotlib import pyplot as plt
from matplotlib.ticker import LogLocator

COLORS = {"octavo": "#1f6f8b", "openvino": "#d9a441", "llama": "#a58bb5", "vllm": "#9aa5a6"}
NAMES = {"octavo": "Octavo", "openvino": "OpenVINO GenAI", "llama": "llama.cpp", "vllm": "vLLM"}
BLUES = ("#7fb8da", "#4292c6", "#2171b5", "#08306b")
STYLE = {
    "svg.hashsalt": "octavo",  # the same figures give the same file
    "figure.facecolor": "white",  # so that it can be read on a dark page, too
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#555555",
    "axes.axisbelow": True,
    "legend.frameon": False,
}


def draw_decode(runs: list[Run], target: Path) -> None:
    """Decoding on the left; prompts, whose rates are of another size, on the right."""
    cases = compared(runs)
    parts = [{c: rates for c, rates in cases.items() if c.measure == measure} for measure in ("decode", "prefill")]
    shown = [part for part in parts if part]
    if not shown:
        raise SystemExit("cpu_decode.json has no case that two engines have run undisturbed")
    widths = [max(len(part), 1.5) for part in shown]
    figure, panels = plt.subplots(1, len(shown), figsize=(9, 3.6), squeeze=False, width_ratios=widths)
    for axes, part in zip(panels[0], shown, strict=True):
        draw_bars(axes, part)
    panels[0][0].set_ylabel("tokens per second")
    handles = {
        label: handle for axes in panels[0] for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    panels[0][0].legend(handles.values(), handles.keys(), loc="upper left")
    figure.suptitle(f"SmolLM2-135M on {runs[-1]['cores']} cores of an {runs[-1]['processor']}", fontsize=10)
    save(figure, target)


def draw_bars(axes: Any, cases: Mapping[Case, Mapping[str, float]]) -> None:
    """Bars of a case stand side by side; an engine that has not run it leaves no gap."""
    width = 0.27
    for at, rates in enumerate(cases.values()):
        engines = [engine for engine in COLORS if engine in rates]
        for i, engine in enumerate(engines):
            place = at + (i - (len(engines) - 1) / 2) * width
            [bar] = axes.bar([place], [rates[engine]], width * 0.94, color=COLORS[engine], label=NAMES[engine])
            height = bar.get_height()
            axes.annotate(
                f"{height:,.0f}", (place, height), (0, 2), textcoords="offset points", ha="center", fontsize=7.5
            )
    axes.set_xticks(range(len(cases)), [f"{what(case)}\n{case.weights}" for case in cases])
    axes.tick_params(axis="x", length=0)
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.margins(x=0.5 / max(len(cases), 2), y=0.12)
    axes.grid(axis="y", color="#e4e4e4", linewidth=0.6)


def what(case: Case) -> str:
    if case.measure == "prefill":
        return f"prompt of {case.prompt}"
    return "one stream" if case.sequences == 1 else f"{case.sequences} at once"


def draw_growth(runs: list[Run], target: Path) -> None:
    """Models of which several batches were measured."""
    models = [run for run in latest(runs, "model") if len({point["rows"] for point in run["points"]}) > 1]
    size = (3.3 * len(models), 3.6)
    figure, panels = plt.subplots(1, len(models), figsize=size, squeeze=False, sharey=True)
    for axes, run in zip(panels[0], models, strict=True):
        draw_panel(axes, run)
    panels[0][0].set_ylabel("ms of a decode step")
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=len(labels), fontsize=8)
    save(figure, target, below=0.07)


def draw_panel(axes: Any, run: Run) -> None:
    for color, rows in zip(BLUES, sorted({point["rows"] for point in run["points"]}), strict=False):
        line = [(point["context"], point["ms"]) for point in run["points"] if point["rows"] == rows]
        label = "1 sequence" if rows == 1 else f"{rows} sequences"
        axes.loglog(*zip(*line, strict=True), marker="o", markersize=3.5, color=color, label=label)
    floor = run["weight bytes"] / run["read bandwidth, GB/s"]["huge"] / 1e6
    axes.axhline(floor, color="#c0392b", linewidth=1, linestyle=":", label="reading the weights once")
    axes.set_title(run["model"], fontsize=9)
    axes.set_xlabel("tokens of context, each")
    contexts = sorted({point["context"] for point in run["points"]})
    axes.set_xticks(contexts, [f"{context:,}" for context in contexts])
    axes.minorticks_off()
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 3)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.grid(color="#e4e4e4", linewidth=0.6)


def save(figure: Any, target: Path, below: float = 0.0) -> None:
    """``below``: the part of the height that is kept free for a legend."""
    figure.tight_layout(rect=(0, below, 1, 1))
    figure.savefig(target, metadata={"Date": None})


def main(folder: Path) -> None:
    plt.rcParams.update(STYLE)
    for name, draw in (("cpu_decode", draw_decode), ("cpu_growth", draw_growth)):
        if runs := runs_of(folder, f"{name}.json"):
            draw(runs, folder / f"{name}.svg")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
