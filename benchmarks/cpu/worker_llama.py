"""llama.cpp's side of `decode.py`: ``llama-batched-bench``, one process a round.

Weights lie in huge pages, which makes it faster: without mmap, by glibc's malloc.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from worker_loop import Times, Work, serve

HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}


def command(tools: str, model: str, work: Work, threads: int) -> list[str]:
    context = work.sequences * (work.prompt + work.tokens)
    sizes = {"-c": context, "-b": 2048, "-ub": 512, "-npp": work.prompt, "-ntg": work.tokens, "-npl": work.sequences}
    options = {**sizes, "-t": threads, "-tb": threads, "-lm": "none", "--output-format": "jsonl"}
    return [str(Path(tools, "llama-batched-bench")), "-m", model, *(str(w) for pair in options.items() for w in pair)]


def start(model: str, tools: str, threads: int) -> tuple[Callable[[Work], Times], dict[str, Any]]:
    def run(work: Work) -> Times:
        environment = {**os.environ, **HUGE_PAGES}
        done = subprocess.run(
            command(tools, model, work, threads), env=environment, capture_output=True, text=True, check=True
        )
        found = next(json.loads(line) for line in done.stdout.splitlines() if line.startswith("{"))
        return Times(found["t_pp"], work.sequences * work.prompt, found["t_tg"], work.sequences * work.tokens)

    shown = " ".join(
        [*(f"{k}={v}" for k, v in HUGE_PAGES.items()), *command("", "MODEL", Work(1, 128, 128, 0), threads)]
    )
    return run, {"llama.cpp": _version(tools), "command": shown}


def _version(tools: str) -> str:
    said = subprocess.run([str(Path(tools, "llama-batched-bench")), "--version"], capture_output=True, text=True)
    return (said.stderr or said.stdout).strip().splitlines()[0]


if __name__ == "__main__":
    serve(start)
