"""Draw the figures of `against_transformers.py`: python benchmarks/chart.py RESULT.json OUT.svg"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path

import matplotlib

matplotlib.use("agg")
from matplotlib import pyplot as plt

OWN, PEER = "#1f6f8b", "#c4a35a"


def main(source: Path, target: Path) -> None:
    result = json.loads(source.read_text())
    batch = {name: statistics.median(values) for name, values in result["batch, tokens/s"].items()}
    names = sorted(batch, key=lambda name: batch[name])
    plt.rcParams["svg.hashsalt"] = "octavo"  # the same figures give the same file
    figure, axes = plt.subplots(figsize=(8, 2.6))
    colors = [OWN if name.startswith("octavo") else PEER for name in names]
    bars = axes.barh(names, [batch[name] for name in names], color=colors)
    axes.bar_label(bars, fmt="%.0f", padding=4)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel("wanted output tokens per second")
    options = result["options"]
    axes.set_title(
        f"{options['requests']} requests of 64 to 512 tokens, {options['batch']} at once "
        f"(SmolLM2-135M, {options['dtype']}, {result['cores']} cores)",
        fontsize=10,
        loc="left",
    )
    figure.tight_layout()
    figure.savefig(target, metadata={"Date": None})


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
