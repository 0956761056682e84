"""How many threads an engine computes with."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from helpers_engine import tiny_llm
from helpers_models import make_tiny
from octavo import UsageError
from octavo.config import EngineConfig


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return make_tiny("llama", tmp_path_factory.mktemp("threads"))[1]


@pytest.fixture(autouse=True)
def same_threads_afterwards():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_as_many_as_asked_for(path, monkeypatch):
    most = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    monkeypatch.setenv("OCTAVO_NUM_THREADS", "1")
    for asked, expected in ((None, 1), (most, most), (1, 1)):
        with tiny_llm(path, num_threads=asked):
            assert torch.get_num_threads() == expected


def test_more_than_there_are_is_refused(path):
    with pytest.raises(UsageError, match=r"num_threads=4097: this process may use .* accepted: 1 to \d"):
        tiny_llm(path, num_threads=4097)


@pytest.mark.parametrize("number", [0, -2, 1.5, True, "2"])
def test_what_is_no_number_of_threads(number):
    with pytest.raises(UsageError, match=r"num_threads=.*; accepted: a positive whole number or None"):
        EngineConfig(model="m", num_threads=number)


def test_the_command_line_says_how_many_there_are(path):
    command = [sys.executable, "-m", "octavo", "run", str(path), "Hi", "--raw", "--threads", "4097"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr.startswith("octavo: num_threads=4097: this process may use ")
    assert "accepted: 1 to" in done.stderr
    assert done.stderr.count("\n") == 1
