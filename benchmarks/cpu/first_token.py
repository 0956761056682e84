"""From the start of ``octavo run`` to its first character, with cold and with warm caches.

    python benchmarks/cpu/first_token.py FILE.gguf --runs 5 --json benchmarks/results/cpu_start.json

cold   an empty cache folder: what is compiled or packed at the first start is made now; and the system has forgotten
       the model's file, so that it is read from the disk
warm   the starts after it

Python's own modules stay in the system's memory in both. The clock starts before the process does, and stops when the
first byte of the answer has come through a pipe; then the process is ended.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from decode import add_run
from machine import describe_machine

PROMPT = "Why is the sky blue?"


def first_token(model: Path, options: list[str], caches: str) -> float:
    """Seconds."""
    command = [sys.executable, "-m", "octavo", "run", str(model), PROMPT, "-n", "1", "-t", "0", *options]
    environment = {**os.environ, "XDG_CACHE_HOME": caches}
    start = time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment) as process:
        assert process.stdout is not None
        first = process.stdout.read(1)
        seconds = time.monotonic() - start
        process.kill()
    if not first.strip():
        raise RuntimeError(f"no answer came; run it alone: {' '.join(command)}")
    return seconds


def forget(file: Path) -> None:
    """Ask the system to drop what it has of a file in memory."""
    with file.open("rb") as opened:
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a file, as an alias is looked up in the cache folder")
    parser.add_argument("options", nargs="*", help="of `octavo run`, behind --")
    parser.add_argument("--runs", type=int, default=5, help="warm ones")
    parser.add_argument("--cold-runs", type=int, default=2)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    cold, warm = [], []
    for _ in range(args.cold_runs):
        with tempfile.TemporaryDirectory(prefix="octavo-caches-") as caches:
            forget(args.model)
            cold.append(first_token(args.model, args.options, caches))
            warm += [first_token(args.model, args.options, caches) for _ in range(-(-args.runs // args.cold_runs))]
    for name, values in (("cold", cold), ("warm", warm)):
        print(f"{name}: {statistics.median(values):.2f} s (" + ", ".join(f"{value:.2f}" for value in values) + ")")
    if args.json:
        seconds = {"cold, s": cold, "warm, s": warm}
        add_run(args.json, {**describe_machine(), "model": args.model.name, "options": args.options, **seconds})


if __name__ == "__main__":
    main()
