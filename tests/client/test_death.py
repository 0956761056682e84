"""Either process dies: the other one knows at once, and nothing is left behind."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from helpers_cli import environment
from helpers_models import make_tiny
from helpers_remote import read_all, start
from octavo import SamplingParams
from octavo.client.lifeline import LastWords, make_lifeline, read_last_words
from octavo.client.process import reason_of
from octavo.client.verbs import EngineDeadError
from octavo.errors import ModelError

LONG = SamplingParams(temperature=0, max_tokens=250, ignore_eos=True)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny("llama", tmp_path_factory.mktemp("tiny"))[1]


@pytest.mark.parametrize(
    ("number", "reason"), [(signal.SIGKILL, "because memory ran out"), (signal.SIGSEGV, "killed by SIGSEGV")]
)
def test_the_engine_dies_mid_stream(path, tmp_path, monkeypatch, number, reason):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    async def run() -> None:
        engine = await start(path)
        assert not list(tmp_path.iterdir()), "the sockets' folder is gone once both sides are connected"
        tasks = [asyncio.create_task(read_all(engine, [3 + i], LONG, request_id=str(i))) for i in range(20)]
        call = asyncio.create_task(engine.wait_failed())
        await asyncio.sleep(0.1)
        os.kill(engine.pid, number)
        killed = time.monotonic()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert time.monotonic() - killed < 1
        assert all(isinstance(r, EngineDeadError) and reason in str(r) for r in results), results
        assert reason in await call
        with pytest.raises(EngineDeadError, match=reason):
            await read_all(engine, [3], LONG)
        with pytest.raises(EngineDeadError, match=reason):
            await engine.debug_check()
        assert not await engine.abort("0")
        assert not psutil.pid_exists(engine.pid), "a zombie is left"
        await engine.shutdown(5)

    asyncio.run(asyncio.wait_for(run(), 60))


PARENT = """
import asyncio, os, sys
from octavo import EngineConfig, SamplingParams
from octavo.client.remote import RemoteEngine

async def main():
    engine = await RemoteEngine.start(EngineConfig(model=sys.argv[1], dtype="float32", kv_cache_memory=4 << 20))
    async for _ in engine.generate([3], SamplingParams(max_tokens=250, ignore_eos=True), request_id="a"):
        print(engine.pid, flush=True)
        {end}

asyncio.run(main())
"""


@pytest.mark.parametrize("end", ["await asyncio.sleep(60)", "os._exit(3)"])
def test_the_parent_dies_and_the_engine_follows(path, tmp_path, end):
    command = [sys.executable, "-c", PARENT.format(end=end), str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment(TMPDIR=str(tmp_path))) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        engine = psutil.Process(pid)
        parent.kill()
        engine.wait(timeout=5)
    assert not [entry for entry in tmp_path.iterdir() if entry.name.startswith("octavo-")]


def test_it_outlives_the_signals_that_are_for_its_parent(path):
    async def run() -> None:
        engine = await start(path)
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(engine.pid, number)
        outputs = await read_all(engine, [3], SamplingParams(max_tokens=5, ignore_eos=True))
        assert outputs[-1].finished
        assert os.getsid(engine.pid) == engine.pid, "Ctrl-C in the terminal would reach it"
        await engine.shutdown(0)
        assert not psutil.pid_exists(engine.pid)

    asyncio.run(asyncio.wait_for(run(), 60))


@pytest.mark.parametrize(
    ("code", "words", "expected"),
    [
        (0, None, "exit code 0"),
        (3, None, "exit code 3"),
        (None, None, "closed its connection"),
        (-signal.SIGKILL, None, "memory ran out"),
        (-signal.SIGABRT, None, "SIGABRT"),
        (1, LastWords("ValueError: x"), "ValueError: x"),
    ],
)
def test_reasons_are_named(code, words, expected):
    assert expected in reason_of(code, words)


def test_last_words_become_the_error_they_were():
    assert isinstance(LastWords("m", "ModelError").as_error(), ModelError)
    assert LastWords("m", "annotations").as_error() is None
    assert LastWords("m", "Path").as_error() is None
    assert LastWords("m").as_error() is None


@pytest.mark.parametrize("data", [b"", b"\x00", b"\xff" * 100, b"\x82\xa7message"])
def test_last_words_may_be_none(data):
    ours, theirs = make_lifeline()
    with ours, theirs:
        theirs.sendall(data)
        theirs.close()
        assert read_last_words(ours) is None
