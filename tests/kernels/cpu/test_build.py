"""Compiling the C kernels: once, whole or not at all, and never a failure of the engine."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from octavo.kernels.cpu import build
from octavo.kernels.cpu.ops import CpuOps

SCRIPT = """
import logging
logging.basicConfig(format="%(message)s")
from octavo.kernels.cpu.build import load_library
print(load_library() is not None)
"""


def run(cache: Path, **env: str) -> tuple[bool, str]:
    """Whether a new process could load the library, and what it logged."""
    own = {**os.environ, "XDG_CACHE_HOME": str(cache), "OMP_NUM_THREADS": "1", **env}
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=own, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip() == "True", done.stderr


def compiler(folder: Path, body: str) -> str:
    """A program in ``folder`` that stands for the compiler."""
    path = folder / "my-cc"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def libraries(cache: Path) -> list[Path]:
    return sorted((cache / "octavo" / "native").glob("*.so"))


@pytest.mark.skipif(build.load_library() is None, reason="no C compiler")
def test_it_is_compiled_once(tmp_path):
    assert run(tmp_path) == (True, "")
    (library,) = libraries(tmp_path)
    made = library.stat().st_mtime_ns
    assert run(tmp_path) == (True, "")
    assert [path.stat().st_mtime_ns for path in libraries(tmp_path)] == [made]


def test_the_cache_can_be_put_elsewhere(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("OCTAVO_KERNEL_CACHE", raising=False)
    assert build.cache_folder() == tmp_path / "octavo" / "native"
    monkeypatch.setenv("OCTAVO_KERNEL_CACHE", str(tmp_path / "own"))
    assert build.cache_folder() == tmp_path / "own"


def test_without_a_compiler_it_says_what_is_lost(tmp_path):
    loaded, said = run(tmp_path, PATH=str(tmp_path))
    assert not loaded
    assert said.count("\n") == 1
    assert "no C compiler" in said


def test_a_compiler_that_fails_leaves_nothing(tmp_path):
    cc = compiler(
        tmp_path, 'case "$*" in *--version*) echo 1;; *) echo half > "$0.out"; echo "cannot do it" >&2; exit 1;; esac'
    )
    loaded, said = run(tmp_path, CC=cc)
    assert not loaded
    assert "cannot do it" in said
    assert "Traceback" not in said
    assert libraries(tmp_path) == []


def test_a_cache_that_cannot_be_written_is_no_failure(tmp_path):
    (tmp_path / "octavo").write_text("a file where the folder should be")
    loaded, said = run(tmp_path)
    assert not loaded
    assert said.count("\n") == 1


def test_it_can_be_switched_off(tmp_path):
    assert run(tmp_path, OCTAVO_NATIVE="0") == (False, "")
    assert libraries(tmp_path) == []


def test_the_backend_works_without_it(monkeypatch):
    monkeypatch.setattr("octavo.kernels.cpu.ops.load_library", lambda: None)
    assert CpuOps()._native is None
