"""Our C kernels: compiled by the system's compiler when they are first wanted, and kept in the user's cache.

They are made for the very processor that they run on, so the library's name holds a hash of the sources, the
compiler and what the processor can do. Without a compiler there are the libraries that came with the package, if it was
installed from a wheel that has them. Without these nothing is lost but speed.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import subprocess
from functools import cache
from pathlib import Path

from filelock import FileLock

from octavo.kernels.cpu.compiling import (
    COMPILE_SECONDS,
    FLAGS,
    SOURCES,
    compile_library,
    find_compiler,
    prebuilt_library,
)

log = logging.getLogger("octavo")


@cache
def load_library() -> ctypes.CDLL | None:
    """The compiled kernels; None, and one line in the log, if there are none and no way to compile them.

    ``OCTAVO_NATIVE=0`` in the environment leaves them out.
    """
    if os.environ.get("OCTAVO_NATIVE") == "0":
        return None
    compiler = find_compiler()
    if compiler is None:
        problem = "no C compiler was found"
    else:
        try:
            return ctypes.CDLL(str(_built(compiler)))
        except (OSError, subprocess.SubprocessError) as error:
            detail = (getattr(error, "stderr", None) or str(error)).strip().splitlines() or [""]
            problem = f"the C kernels could not be built ({detail[0]})"
    return _load_prebuilt(problem)


def _load_prebuilt(problem: str) -> ctypes.CDLL | None:
    """The library of the package for such a processor; None, and a line that begins with ``problem``."""
    library = prebuilt_library(_processor().split())
    if library is not None:
        try:
            return ctypes.CDLL(str(library))
        except OSError as error:
            problem += f", and {library.name} could not be loaded ({error})"
    log.warning("%s, so torch alone computes; with cc or gcc 2 to 3 x as fast", problem)
    return None


def _built(compiler: str) -> Path:
    """The library, compiled now unless it was before. Processes that want it at the same time wait for the first."""
    flags = (*FLAGS, *_march(compiler))
    folder = cache_folder()
    library = folder / f"{_fingerprint(compiler, flags)}.so"
    if not library.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(library.with_suffix(".lock")):
            if not library.exists():
                compile_library(compiler, flags, library)
    return library


def _march(compiler: str) -> tuple[str, ...]:
    """The flag for this processor's own instructions. ARM compilers call it -mcpu."""
    return ("-mcpu=native",) if platform.machine() in ("aarch64", "arm64") else ("-march=native",)


def _fingerprint(compiler: str, flags: tuple[str, ...]) -> str:
    version = subprocess.run([compiler, "--version"], check=True, capture_output=True, timeout=COMPILE_SECONDS).stdout
    parts = [version, " ".join(flags).encode(), _processor().encode()]
    parts += [path.read_bytes() for path in sorted(SOURCES.iterdir()) if path.suffix in (".c", ".h", ".inc")]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:24]


def _processor() -> str:
    """What this processor can do: a library made for another one may stop with an illegal instruction."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine() + platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.machine())


def cache_folder() -> Path:
    """``$OCTAVO_KERNEL_CACHE``, or ``$XDG_CACHE_HOME/octavo/native``, by default below ``~/.cache``.

    Raises:
        OSError: there is no home. A folder that others can write to would let them choose what is run.
    """
    own = os.environ.get("OCTAVO_KERNEL_CACHE")
    return Path(own) if own else user_cache("native")


def user_cache(name: str) -> Path:
    """A folder of ours below ``$XDG_CACHE_HOME``, by default ``~/.cache``. Raises ``OSError``: there is no home."""
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not base.is_absolute():
        try:
            base = Path.home() / ".cache"
        except RuntimeError:
            raise OSError("no home folder to keep them in; set XDG_CACHE_HOME to a folder") from None
    return base / "octavo" / name
