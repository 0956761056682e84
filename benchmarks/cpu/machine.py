"""What the figures were measured on: the machine, the commit, and how fast the machine reads memory."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from octavo.bench import environment

HERE = Path(__file__).parent


def describe_machine() -> dict[str, Any]:
    """Processor, cores, versions, date, and the commit of the Octavo that runs, as plain values."""
    return {**environment.describe_machine(), "torch": version("torch")}


def read_bandwidth(threads: int, mebibytes: int = 512, rounds: int = 9) -> dict[str, float]:
    """GB/s that ``threads`` threads read from memory, each one stretch of its own: the best of ``rounds``, which no
    kernel can pass. First with huge pages, then with 4K pages.

    Raises:
        RuntimeError: there is no C compiler.
    """
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise RuntimeError("the bandwidth probe needs a C compiler; accepted: cc, gcc or clang in PATH")
    with tempfile.TemporaryDirectory() as folder:
        probe = str(Path(folder, "read_bandwidth"))
        source = str(HERE / "read_bandwidth.c")
        subprocess.run([compiler, "-O3", "-march=native", "-pthread", source, "-o", probe], check=True)
        command = [probe, str(threads), str(mebibytes), str(rounds)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found
