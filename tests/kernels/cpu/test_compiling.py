"""Which of the libraries that came with a wheel is loaded where there is no compiler."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import pytest

from octavo.kernels.cpu import build, compiling
from octavo.kernels.cpu.compiling import VARIANTS, compile_variants, prebuilt_library

V3 = {"avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe", "sse4_2"}
V4 = V3 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}


def libraries(folder: Path, names: list[str]) -> Path:
    for name in names:
        (folder / f"{name}.so").write_bytes(b"not a library")
    return folder


ALL = [variant.name for variant in VARIANTS]


@pytest.mark.parametrize(
    ("abilities", "there", "chosen"),
    [
        (V4 | {"avx512_vnni", "avx512_bf16"}, ALL, "x86-64-v4-vnni-bf16"),
        (V4 | {"avx512_vnni"}, ALL, "x86-64-v4"),
        (V4 | {"avx512_vnni", "avx512_bf16"}, ["x86-64-v3"], "x86-64-v3"),
        (V3, ALL, "x86-64-v3"),
        (V4 - {"avx512vl"}, ALL, "x86-64-v3"),
        (V3 - {"fma"}, ALL, None),
        ({"fp", "asimd"}, ALL, None),
        (V4, [], None),
    ],
)
def test_the_best_one_that_the_processor_can_run(tmp_path, abilities, there, chosen):
    found = prebuilt_library(sorted(abilities), libraries(tmp_path, there))
    assert found == (None if chosen is None else tmp_path / f"{chosen}.so")


def test_a_library_that_cannot_be_loaded_is_told_of_once(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(build, "prebuilt_library", lambda abilities: libraries(tmp_path, ALL) / f"{ALL[0]}.so")
    with caplog.at_level(logging.WARNING, "octavo"):
        assert build._load_prebuilt("no C compiler was found") is None
    (record,) = caplog.records
    assert record.getMessage().startswith(f"no C compiler was found, and {ALL[0]}.so could not be loaded (")
    assert record.getMessage().endswith("so torch alone computes; with cc or gcc 2 to 3 x as fast")


def test_what_the_compiler_does_not_know_is_left_out(tmp_path, monkeypatch):
    def compile_library(compiler, flags, library):
        if "-mavx512bf16" in flags:
            raise subprocess.CalledProcessError(1, compiler)
        library.write_bytes(b"")

    monkeypatch.setattr(compiling, "compile_library", compile_library)
    monkeypatch.setattr(compiling.platform, "system", lambda: "Linux")
    monkeypatch.setattr(compiling.platform, "machine", lambda: "x86_64")
    made = compile_variants("cc", tmp_path / "new")
    assert made == [tmp_path / "new" / f"{name}.so" for name in ("x86-64-v4", "x86-64-v3")]
    monkeypatch.setattr(compiling.platform, "machine", lambda: "aarch64")
    assert compile_variants("cc", tmp_path / "other") == []
    assert not (tmp_path / "other").exists()


ALONE = """
import sys
sys.path.insert(0, sys.argv[1])
import compiling
assert not {"torch", "octavo", "filelock"} & set(sys.modules)
"""


def test_it_needs_nothing_else():
    """As `setup.py` has it, in an environment in which nothing is installed."""
    folder = str(Path(compiling.__file__).parent)
    subprocess.run([sys.executable, "-I", "-S", "-c", ALONE, folder], check=True, timeout=60)
