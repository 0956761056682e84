"""The engines of a comparison: each in a process of its own, which stays for all rounds and waits meanwhile."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from argparse import ArgumentTypeError
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

HERE = Path(__file__).parent
ENGINES = ("octavo", "llama", "openvino", "vllm")
WARM_UP_TOKENS = 8


@dataclass(frozen=True)
class Side:
    """What is compared: an engine, its model, and the options of its worker.

    ``parse`` reads ``ENGINE:MODEL[,OPTION=VALUE…]``; values are JSON where they are, else text.
    """

    name: str
    engine: str
    model: str
    options: Mapping[str, Any]

    @classmethod
    def parse(cls, text: str) -> Side:
        """Raises ``ArgumentTypeError`` for an engine that is not known."""
        engine, _, rest = text.partition(":")
        model, *options = rest.split(",")
        if engine not in ENGINES or not model:
            accepted = f"ENGINE:MODEL[,OPTION=VALUE…] with one of {', '.join(ENGINES)}"
            raise ArgumentTypeError(f"{text!r}; accepted: {accepted}")
        name = " ".join([engine, Path(model).stem, *options])
        return cls(name, engine, model, dict(map(value_of, options)))


def value_of(text: str) -> tuple[str, Any]:
    """``NAME=VALUE``, where the value is JSON if it can be, else text."""
    name, _, value = text.partition("=")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


class Worker:
    """A side's process. It is started by ``with``, and ended by it."""

    def __init__(self, side: Side, pythons: Mapping[str, str], tools: str) -> None:
        """``pythons``: the interpreter of each engine that is not installed beside Octavo. ``tools``: llama.cpp's."""
        options = dict(side.options)
        if side.engine == "llama":
            options = {"tools": tools, "threads": len(os.sched_getaffinity(0)), **options}
        python = pythons.get(side.engine, sys.executable)
        self._command = [python, str(HERE / f"worker_{side.engine}.py"), side.model, json.dumps(options)]
        self.side = side

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self.facts = self._answer()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()

    def run(self, work: Mapping[str, int]) -> dict[str, Any]:
        """One round: tokens a second, and ``others``: the share of the processors' time that other processes took."""
        assert self._process.stdin is not None
        before, start = busy_seconds(), time.monotonic()
        self._process.stdin.write(json.dumps(work) + "\n")
        self._process.stdin.flush()
        found = self._answer()
        busy, seconds = busy_seconds() - before, time.monotonic() - start
        return {**found, "others": others_share(busy - found.pop("processor_seconds"), seconds)}

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            words = " ".join(self._command)
            raise RuntimeError(f"{self.side.name} ended with status {self._process.wait()}; run it alone: {words}")
        found: dict[str, Any] = json.loads(line)
        return found


def busy_seconds() -> float:
    """Of all processors, whoever used them."""
    times = psutil.cpu_times()
    return sum(times) - times.idle - times.iowait - times.guest - times.guest_nice


def others_share(busy: float, seconds: float) -> float:
    """What ``busy`` seconds of processors are of all that the machine has in so many seconds."""
    return round(max(busy / (seconds * (os.cpu_count() or 1)), 0.0), 3)


def alternate(workers: Sequence[Worker], work: Mapping[str, int], rounds: int) -> list[dict[str, Any]]:
    """Each side once a round, in turn. Before that, each warms up with a few tokens."""
    for worker in workers:
        worker.run({**work, "tokens": min(work["tokens"], WARM_UP_TOKENS), "seed": 0})
    found = []
    for i in range(rounds):
        for worker in workers:
            found.append({"side": worker.side.name, **worker.run({**work, "seed": i + 1})})
            print(f"  {found[-1]}", file=sys.stderr, flush=True)
    return found
