"""How long an engine takes to start: from the start of a process to its first token, part by part.

Each run is a process of its own (`octavo.bench.startup_run`), which says on a pipe when a part is done; this process
alone looks at the clock. The first run finds no compiled kernels: those of all runs are kept in a temporary folder, so
that the user's own stay as they are. Files that the system keeps in memory, and Python's compiled modules, are not
thrown out.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from statistics import median
from typing import IO, Any

from octavo.errors import OctavoError, UsageError

FIRST_TOKEN = "first_token"
_CACHES = {
    "OCTAVO_KERNEL_CACHE": "native",
    "OCTAVO_WEIGHT_CACHE": "weights",
    "TRITON_CACHE_DIR": "triton",
    "CUDA_CACHE_PATH": "cuda",
}
"""Environment variables that say where compiled kernels are kept, and our folders for them."""


@dataclass(frozen=True, slots=True)
class Startup:
    """One run: the seconds that each part took, in order, from the start of the process."""

    phases: dict[str, float]

    @property
    def totals(self) -> dict[str, float]:
        """Seconds from the start of the process until the engine was ready, and until the first token was there."""
        ends = dict(zip(self.phases, accumulate(self.phases.values()), strict=True))
        return {"until_ready": ends["ready"], "until_first_token": ends[FIRST_TOKEN]}

    @property
    def all(self) -> dict[str, float]:
        return {**self.phases, **self.totals}


@dataclass(frozen=True, slots=True)
class Startups:
    """The run without compiled kernels, those with them, and what the last one said that it ran on."""

    cold: Startup
    warm: tuple[Startup, ...]
    environment: dict[str, Any]

    @property
    def warm_median(self) -> dict[str, float]:
        """Of each part and total by itself; empty without a warm run."""
        return {name: median(run.all[name] for run in self.warm) for name in self.cold.all} if self.warm else {}


def measure_startup(
    model: str,
    options: dict[str, Any],
    runs: int,
    report: Callable[[], None] = lambda: None,
    clock: Callable[[], float] = time.perf_counter,
) -> Startups:
    """Start ``runs`` processes one after the other. The model must be on this machine already, or its download counts.

    Args:
        options: of ``EngineConfig``, as plain values.
        report: called after each run.

    Raises:
        OctavoError: what went wrong in the process.
    """
    done: list[Startup] = []
    environment: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="octavo-", ignore_cleanup_errors=True) as folder:
        for _ in range(runs):
            run, environment = _run({"model": model, **options}, Path(folder), clock)
            done.append(run)
            report()
    return Startups(done[0], tuple(done[1:]), environment)


def _run(arguments: dict[str, Any], caches: Path, clock: Callable[[], float]) -> tuple[Startup, dict[str, Any]]:
    command = [sys.executable, "-P", "-m", "octavo.bench.startup_run", json.dumps(arguments)]
    own = {name: str(caches / folder) for name, folder in _CACHES.items()}
    path = os.pathsep.join(entry for entry in sys.path if entry)
    environment = {**os.environ, **own, "PYTHONPATH": path}
    with tempfile.TemporaryFile() as said:
        start = clock()
        with subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=said, env=environment
        ) as process:
            try:
                assert process.stdout is not None
                phases, ran_on = _follow(process.stdout, start, clock)
            except BaseException:  # Ctrl-C included: no process stays behind
                process.kill()
                raise
        if process.returncode or ran_on is None:
            raise OctavoError(f"the process ended with status {process.returncode}: {_last_line(said)}")
    return Startup(phases), ran_on


def _follow(
    lines: Iterable[bytes], start: float, clock: Callable[[], float]
) -> tuple[dict[str, float], dict[str, Any] | None]:
    """The parts' seconds, and what the process ran on: None if it ended too early to say so."""
    phases: dict[str, float] = {}
    for line in lines:
        now = clock()
        message = json.loads(line)
        if "error" in message:
            raise (UsageError if message["exit_code"] == UsageError.exit_code else OctavoError)(message["error"])
        if "environment" in message:
            return phases, message["environment"]
        phases[message["phase"]] = now - start
        start = now
    return phases, None


def _last_line(said: IO[bytes]) -> str:
    said.seek(0)
    return (said.read().decode(errors="replace").strip().splitlines() or ["it said nothing"])[-1]


def startup_columns(result: Startups) -> list[Sequence[str]]:
    """The lines of the table, with its head."""
    warm = result.warm_median
    head = ["", "no kernels cached", *([f"cached (median of {len(result.warm)})"] if warm else [])]
    return [
        head,
        *([_label(name), _text(cold), *([_text(warm[name])] if warm else [])] for name, cold in _rows(result)),
    ]


def _rows(result: Startups) -> Iterable[tuple[str, float]]:
    return result.cold.all.items()


def _label(name: str) -> str:
    return name.replace("_", " ")


def _text(seconds: float) -> str:
    return f"{seconds:.3f} s"


def startup_results(result: Startups) -> dict[str, Any]:
    """Plain values, in seconds."""
    return {"cold": result.cold.all, "warm": [run.all for run in result.warm], "warm_median": result.warm_median}
