"""The C kernels compiled for several sets of instructions, and a spy that tells which of them were called."""

from __future__ import annotations

import ctypes
import platform
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from octavo.kernels.cpu import build
from octavo.kernels.cpu.native import Native
from octavo.kernels.cpu.ops import CpuOps
from octavo.kernels.cpu.tasks import Tasks

INSTRUCTION_SETS = ("native", "x86-64-v4", "x86-64-v3", "x86-64")
_NEEDS = {"x86-64-v4": "avx512dq", "x86-64-v3": "fma"}
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 1.6e-2}
DTYPES = pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)


def native_for(name: str, folder: Path) -> Native:
    """The kernels of `library_for`, but for the products."""
    files = ("attention.c", "prefill_attention.c", "elementwise.c", "sampling.c", "team.c")
    return Native(Tasks(library_for(name, folder, files)))


def library_for(name: str, folder: Path, files: Sequence[str]) -> ctypes.CDLL:
    """The library for the processor itself ("native"); or ``files`` of it as for an older one, or for any ("portable").
    Skips what cannot be run here.
    """
    if name == "native":
        return build.load_library()
    if name != "portable" and (platform.machine() != "x86_64" or _NEEDS.get(name, "") not in build._processor()):
        pytest.skip("another processor")
    made = folder / f"{name}.so"
    how = "-DOCTAVO_PORTABLE" if name == "portable" else f"-march={name}"
    flags = [flag for flag in build.FLAGS if flag != "-O3"]  # it would compile for ten seconds, to the same results
    sources = [build.SOURCES / file for file in files]
    command = [shutil.which("cc") or "gcc", "-O1", *flags, how, "-shared", "-o", made, *sources, "-lm", "-pthread"]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("the compiler does not know these instructions")
    return ctypes.CDLL(str(made))


class Spy:
    """Stands for the kernels and notes which are called."""

    def __init__(self, native: Native) -> None:
        self.calls: list[str] = []
        self._native = native

    def __getattr__(self, name: str):
        self.calls.append(name)
        return getattr(self._native, name)


def spied(native: Native | None = None) -> tuple[CpuOps, list[str]]:
    """The backend with these kernels, and the names of those that it calls."""
    ops = CpuOps()
    spy = ops._native = Spy(native or ops._native)
    return ops, spy.calls


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def close(actual: Tensor, expected: Tensor, factor: float = 1.0) -> None:
    """Equal but for ``factor`` times what rounding to the dtype of ``actual`` explains."""
    tolerance = TOLERANCE[actual.dtype] * factor
    torch.testing.assert_close(actual.double(), expected.double(), rtol=tolerance, atol=tolerance)
