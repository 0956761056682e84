"""The wheel: what is in it, and that it computes where there is no compiler."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest
import torch

from helpers_smollm2 import smollm2_path

ROOT = Path(__file__).parents[1]
KERNELS = "octavo/kernels/cpu"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler"),
    pytest.mark.skipif(sys.platform != "linux", reason="there are libraries for Linux only"),
]

ANSWER = """
import logging, sys
logging.basicConfig(format="%(message)s")
import octavo
from octavo.kernels.cpu.build import load_library
library = load_library()
llm = octavo.LLM(sys.argv[1], kv_cache_memory=32 << 20, max_model_len=64)
params = octavo.SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
print(octavo.__file__)
print(library and library._name)
print(llm.generate("The capital of France is", params, use_tqdm=False)[0].outputs[0].token_ids)
"""


def build_wheel(folder: Path, **env: str) -> Path:
    """A wheel of a copy of this tree: a build leaves things behind."""
    tree = folder / "tree"
    shutil.copytree(ROOT / "src", tree / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", str(folder), str(tree)]
    done = subprocess.run(command, env={**os.environ, **env}, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    (wheel,) = folder.glob("*.whl")
    return wheel


def names_in(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    return build_wheel(tmp_path_factory.mktemp("wheel"))


def test_sources_and_libraries_are_in_it(wheel):
    names = names_in(wheel)
    sources = {f"{KERNELS}/native/{path.name}" for path in (ROOT / "src" / KERNELS / "native").iterdir()}
    assert sources <= names
    if os.uname().machine == "x86_64":
        assert "py3-none-linux_x86_64" in wheel.name
        assert {f"{KERNELS}/prebuilt/{n}.so" for n in ("x86-64-v4-vnni-bf16", "x86-64-v4", "x86-64-v3")} <= names


def test_without_a_compiler_it_is_for_any_platform(tmp_path):
    wheel = build_wheel(tmp_path, PATH=str(tmp_path))
    assert wheel.name.endswith("-py3-none-any.whl")
    assert not [name for name in names_in(wheel) if name.endswith(".so")]


@pytest.mark.model
def test_installed_without_a_compiler_it_says_the_same(wheel, tmp_path):
    """In an environment of its own, with the packages of this one behind it."""
    model = str(smollm2_path())
    venv.create(tmp_path / "venv", with_pip=False)
    python = tmp_path / "venv" / "bin" / "python"
    site = next((tmp_path / "venv").glob("lib/python*/site-packages"))
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    (site / "others.pth").write_text(str(Path(torch.__file__).parents[1]))
    bare = {"PATH": str(tmp_path), "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    given = [str(python), "-c", ANSWER, model]
    done = subprocess.run(given, env=bare, capture_output=True, text=True, timeout=200, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    place, library, tokens = done.stdout.splitlines()
    assert place.startswith(str(site))
    assert library.startswith(str(site / KERNELS / "prebuilt"))
    assert "compiler" not in done.stderr

    ours = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    here = subprocess.run([sys.executable, *given[1:]], env=ours, capture_output=True, text=True, timeout=200)
    assert here.stdout.splitlines()[2] == tokens
    assert str(site) not in here.stdout
