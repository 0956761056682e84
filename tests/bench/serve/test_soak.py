"""The soak script, against the HTTP application over an engine that is sound, and one that is not."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from helpers_cli import environment
from helpers_client import FakeClient
from helpers_http import live_url, make, tokenizer
from octavo.client.verbs import Load

SCRIPT = Path(__file__).parents[3] / "benchmarks/soak.py"


class Engine(FakeClient):
    """Keeps ``kept`` blocks for ever."""

    kept = 0

    def load(self) -> Load:
        return Load(running=len(self.running), blocks_used=self.kept, at=time.monotonic())


def soak(engine: Engine, path: Path) -> tuple[int, dict[str, Any]]:
    app, _ = make(engine, debug_routes=True)
    size = ["--requests", "60", "--concurrency", "8", "--input-len", "20", "--output-len", "8", "--sample", "0.05"]
    with live_url(app) as url:
        where = ["--url", url, "--pid", str(os.getpid()), "--json", str(path)]
        command = [sys.executable, str(SCRIPT), *size, *where]
        done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=120)
    assert done.returncode in (0, 1), done.stderr
    return done.returncode, json.loads(path.read_text())


def test_a_sound_server_passes(tmp_path: Path) -> None:
    code, report = soak(Engine(tokenizer()), tmp_path / "report.json")
    results, faults = report["results"], report["verdict"]["faults"]
    assert code == bool(faults)
    assert [fault for fault in faults if not fault.startswith("memory")] == []  # that of the tests is not looked at
    assert results["completed"] + results["left"] + results["malformed"] == results["requests"] == 60
    assert results["left"] > 0
    assert results["malformed"] > 0


def test_a_leak_and_a_failure_are_found(tmp_path: Path) -> None:
    engine = Engine(tokenizer(), broken_after=3)
    engine.kept = 1
    code, report = soak(engine, tmp_path / "report.json")
    faults = " ".join(report["verdict"]["faults"])
    assert code == 1
    assert "the engine is not idle" in faults
    assert "an error in the stream" in faults


def test_growth_is_that_of_the_last_half() -> None:
    spec = importlib.util.spec_from_file_location("soak", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.growth([*range(1, 51), *[100] * 50]) == 0
    assert module.growth([100] * 60 + [110] * 40) == pytest.approx(0.1)
