"""Our C kernels: compiled by the system's compiler when they are first wanted, and kept in the user's cache.

They are made for the very processor that they run on, so the library's name holds a hash of the sources, the
compiler and what the processor can do. Without a compiler nothing is lost but speed.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

from filelock import FileLock

SOURCES = Path(__file__).parent / "native"

FLAGS = ("-O3", "-fPIC", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast", "-w")
"""No -ffast-math: a NaN in the logits must stay one, so that its request fails and no other."""

COMPILE_SECONDS = 120

log = logging.getLogger("octavo")


@cache
def load_library() -> ctypes.CDLL | None:
    """The compiled kernels; None, and one line in the log, if there is no way to compile them.

    ``OCTAVO_NATIVE=0`` in the environment leaves them out.
    """
    if os.environ.get("OCTAVO_NATIVE") == "0":
        return None
    compiler = shutil.which(os.environ.get("CC", "cc")) or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        log.warning("no C compiler was found, so torch alone computes; with cc or gcc 2 to 3 x as fast")
        return None
    try:
        return ctypes.CDLL(str(_built(compiler)))
    except (OSError, subprocess.SubprocessError) as error:
        detail = (getattr(error, "stderr", None) or str(error)).strip().splitlines() or [""]
        log.warning("the C kernels could not be built, so torch alone computes: %s", detail[0])
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
                _compile(compiler, flags, library)
    return library


def _compile(compiler: str, flags: tuple[str, ...], library: Path) -> None:
    """Compile beside the library's place, then rename: a file that looks whole is whole."""
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        made = Path(folder) / library.name
        sources = sorted(SOURCES.glob("*.c"))
        objects = [str(made.with_name(f"{source.stem}.o")) for source in sources]
        with ThreadPoolExecutor(os.cpu_count()) as pool:  # each a process of its own
            calls = [(compiler, *flags, "-c", "-o", o, str(s)) for s, o in zip(sources, objects, strict=True)]
            list(pool.map(_run, calls))
        _run((compiler, *flags, "-shared", "-o", str(made), *objects, "-lm", "-pthread"))
        made.replace(library)


def _run(command: Sequence[str]) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=COMPILE_SECONDS)


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
