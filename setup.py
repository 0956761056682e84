"""Puts the C kernels into a wheel, compiled for some kinds of processors, if there is a compiler. All else is said in
pyproject.toml. A wheel without them, an sdist and an editable install compile them on the user's machine.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from setuptools import setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

KERNELS = "octavo/kernels/cpu"


def load_compiling() -> ModuleType:
    """``octavo.kernels.cpu.compiling`` alone: the packages around it need torch."""
    path = Path(__file__).parent / "src" / KERNELS / "compiling.py"
    spec = importlib.util.spec_from_file_location("compiling", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["compiling"] = module
    spec.loader.exec_module(module)
    return module


class BuildWithKernels(build_py):
    """The Python files, and beside them the libraries."""

    def run(self) -> None:
        super().run()
        compiling = load_compiling()
        compiler = compiling.find_compiler()
        if not self.editable_mode and compiler is not None:
            compiling.compile_variants(compiler, Path(self.build_lib) / KERNELS / "prebuilt")


class PlatformWheel(bdist_wheel):
    """A wheel for any Python 3, but for one platform if there are libraries in it."""

    def get_tag(self) -> tuple[str, str, str]:
        libraries = Path(self.bdist_dir or "").glob(f"**/{KERNELS}/prebuilt/*.so")
        self.root_is_pure = not any(libraries)
        _, _, platform = super().get_tag()
        return "py3", "none", "any" if self.root_is_pure else platform


setup(cmdclass={"build_py": BuildWithKernels, "bdist_wheel": PlatformWheel})
