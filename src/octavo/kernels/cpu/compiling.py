"""How the C kernels are compiled: for the very processor when they are first wanted, for some kinds of it in a wheel.

This file needs nothing but Python, and nothing of the rest: `setup.py` loads it alone, where nothing is installed yet.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

SOURCES = Path(__file__).parent / "native"
PREBUILT = Path(__file__).parent / "prebuilt"
"""Where a wheel has the libraries, one for each of `VARIANTS`."""

FLAGS = ("-O3", "-fPIC", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast", "-w")
"""No -ffast-math: a NaN in the logits must stay one, so that its request fails and no other."""

COMPILE_SECONDS = 120

_V3 = ("avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe")
_V4 = (*_V3, "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl")


@dataclass(frozen=True, slots=True)
class Variant:
    """A kind of processor.

    Attributes:
        name: of the library's file.
        flags: for the compiler.
        needs: what the processor must have, as Linux calls it.
    """

    name: str
    flags: tuple[str, ...]
    needs: tuple[str, ...]


VARIANTS = (
    Variant(
        "x86-64-v4-vnni-bf16",
        ("-march=x86-64-v4", "-mavx512vnni", "-mavx512bf16"),
        (*_V4, "avx512_vnni", "avx512_bf16"),
    ),
    Variant("x86-64-v4", ("-march=x86-64-v4",), _V4),
    Variant("x86-64-v3", ("-march=x86-64-v3",), _V3),
)
"""The best one first."""


def find_compiler() -> str | None:
    """The system's C compiler, ``$CC`` before others; None if there is none."""
    return shutil.which(os.environ.get("CC", "cc")) or shutil.which("gcc") or shutil.which("clang")


def compile_library(compiler: str, flags: Sequence[str], library: Path) -> None:
    """Compile beside the library's place, then rename: a file that looks whole is whole.

    Raises:
        OSError, subprocess.SubprocessError: that did not work.
    """
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        made = Path(folder) / library.name
        sources = sorted(SOURCES.glob("*.c"))
        objects = [str(made.with_name(f"{source.stem}.o")) for source in sources]
        with ThreadPoolExecutor(os.cpu_count()) as pool:  # each a process of its own
            calls = [(compiler, *flags, "-c", "-o", o, str(s)) for s, o in zip(sources, objects, strict=True)]
            list(pool.map(_run, calls))
        _run((compiler, *flags, "-shared", "-o", str(made), *objects, "-lm", "-pthread"))
        made.replace(library)


def compile_variants(compiler: str, folder: Path) -> list[Path]:
    """The libraries for a wheel, in ``folder``: those that the compiler knows the instructions of. None on a machine
    other than Linux on x86-64.
    """
    if platform.system() != "Linux" or platform.machine() not in ("x86_64", "AMD64"):
        return []
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for variant in VARIANTS:
        library = folder / f"{variant.name}.so"
        try:
            compile_library(compiler, (*FLAGS, *variant.flags), library)
        except subprocess.CalledProcessError:
            continue
        made.append(library)
    return made


def prebuilt_library(abilities: Sequence[str], folder: Path = PREBUILT) -> Path | None:
    """The best library that came with the package for a processor that can do ``abilities``."""
    found = (folder / f"{v.name}.so" for v in VARIANTS if set(v.needs) <= set(abilities))
    return next((path for path in found if path.is_file()), None)


def _run(command: Sequence[str]) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=COMPILE_SECONDS)
