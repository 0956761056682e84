"""Weights in the backend's own form, kept in a file for the next start.

To bring weights into that form takes longer than to read them: each number is unpacked and woven anew, or quantized. So
what comes of it is written once, below the user's cache folder, and mapped from then on (`tensor_file.py`). A file is
known by a hash of all that it depends on: the checkpoint's files, how they are to be packed, the kernels and our code.

``OCTAVO_WEIGHT_CACHE`` in the environment is another folder, or 0 for none. What was not used for the longest time goes
when there are more than `MAX_BYTES`. Nothing that goes wrong here is more than a line in the log.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

import octavo
from octavo.execution.tensor_file import DamagedError, open_tensors, write_tensors
from octavo.kernels.cpu.build import user_cache
from octavo.kernels.packed import Operand
from octavo.kernels.packed_form import PackedForms, UnknownFormError

MIN_BYTES = 16 << 20
"""A model with less is packed before anybody notices."""
MAX_BYTES = 16 << 30
"""Of all files together."""
LEFT_FREE = 0.1
"""Share of the disk that is left to others."""
STALE_SECONDS = 3600
"""A file that has been written to for so long has no writer any more."""

_SAMPLES, _SAMPLE = 64, 1 << 14
_CODE = ("kernels", "quantization", "ggml", "layers", "models", "weights")
"""The rooms whose code decides what bytes a weight becomes."""

log = logging.getLogger("octavo")


@dataclass(frozen=True, slots=True)
class WeightCache:
    """The place of one model's weights.

    Attributes:
        path: of the file, whether it is there or not.
        forms: of the backend.
    """

    path: Path
    forms: PackedForms

    def load(self) -> dict[str, Operand] | None:
        """The weights, by their modules' names; None if they are not there, or not whole."""
        try:
            file = open_tensors(self.path, torch.get_num_threads())
            found = {n: self.forms.restore(d, file.tensors.__getitem__) for n, d in file.info.items()}
        except FileNotFoundError:
            return None
        except (OSError, DamagedError, ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            log.warning("packed weights in %s cannot be used (%s), so they are made again", self.path, error)
            return None
        with suppress(OSError):  # a folder that cannot be written to
            os.utime(self.path)  # used now
        return found

    def store(self, weights: Mapping[str, Operand]) -> None:
        """Keep what can be kept of ``weights``, if that is worth it and there is room."""
        tensors: list[Tensor] = []
        info = {name: described for name, w in weights.items() if (described := self._describe(w, tensors)) is not None}
        size = sum(tensor.nbytes for tensor in tensors)
        if size < MIN_BYTES or size > MAX_BYTES:
            return
        try:
            self._write(tensors, info)
            make_room(self.path.parent, self.path)
        except OSError as error:
            why = error.strerror or str(error)
            log.warning("packed weights cannot be kept in %s (%s), so each start makes them", self.path.parent, why)

    def _describe(self, weight: Operand, tensors: list[Tensor]) -> object:
        """None for a weight of a form that cannot be kept."""
        own: list[Tensor] = []

        def put(tensor: Tensor) -> int:
            own.append(tensor)
            return len(tensors) + len(own) - 1

        try:
            described = self.forms.describe(weight, put)
        except UnknownFormError:
            return None
        tensors += own
        return described

    def _write(self, tensors: list[Tensor], info: Mapping[str, object]) -> None:
        """Beside the file's place, then renamed: a file under its name is whole."""
        folder = self.path.parent
        folder.mkdir(parents=True, exist_ok=True)
        disk = os.statvfs(folder) if hasattr(os, "statvfs") else None
        needed = sum(tensor.nbytes for tensor in tensors)
        if disk is not None and disk.f_bavail * disk.f_frsize - needed < LEFT_FREE * disk.f_blocks * disk.f_frsize:
            raise OSError(f"the disk would be {1 - LEFT_FREE:.0%} full")
        descriptor, name = tempfile.mkstemp(prefix=".new-", dir=folder)
        try:
            with open(descriptor, "wb") as file:
                write_tensors(file, tensors, info)
            os.replace(name, self.path)
        except BaseException:
            with suppress(OSError):
                os.unlink(name)
            raise


def weight_cache(source: Path, how: Mapping[str, object], forms: PackedForms | None) -> WeightCache | None:
    """The place for the weights of a checkpoint, or None where they are not to be kept.

    Args:
        source: the checkpoint's file or folder.
        how: all that decides what becomes of its tensors.
        forms: of the backend.
    """
    asked = os.environ.get("OCTAVO_WEIGHT_CACHE")
    if forms is None or asked == "0":
        return None
    try:
        folder = Path(asked) if asked else user_cache("weights")
        known = [fingerprint(source), forms.version, _code_version(), json.dumps(how, sort_keys=True)]
    except OSError:
        return None
    return WeightCache(folder / f"{hashlib.sha256('|'.join(known).encode()).hexdigest()[:32]}.weights", forms)


def fingerprint(source: Path) -> str:
    """A hash of a model's files: of their sizes and times, their beginnings and ends, and samples between. A path is no
    part of it, so that a folder may be moved. Raises ``OSError``.
    """
    found = hashlib.sha256()
    files = sorted(path for path in source.iterdir() if path.is_file()) if source.is_dir() else [source]
    for path in files:
        seen = path.stat()
        found.update(f"{seen.st_size} {seen.st_mtime_ns} ".encode())
        with path.open("rb") as file:
            found.update(file.read(1 << 20))
            for i in range(1, _SAMPLES + 1):
                file.seek(max(seen.st_size - _SAMPLE, 0) * i // _SAMPLES)
                found.update(file.read(_SAMPLE))
    return found.hexdigest()


@cache
def _code_version() -> str:
    """A hash of the code that decides what bytes a weight becomes."""
    found = hashlib.sha256()
    for room in _CODE:
        for path in sorted((Path(octavo.__file__).parent / room).rglob("*")):
            if path.suffix in (".py", ".c", ".h"):
                found.update(path.read_bytes())
    return found.hexdigest()


def make_room(folder: Path, keep: Path, most: int = MAX_BYTES) -> None:
    """Remove the files that were not used for the longest time, beyond ``most`` bytes, and what dead writers left.

    A process that has one mapped keeps it: its pages stay until nobody has them.
    """
    for path in folder.glob(".new-*"):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > STALE_SECONDS:
                path.unlink()
    total = 0
    for path, seen in sorted(_sizes(folder), key=lambda found: (found[0] != keep, -found[1].st_mtime)):
        total += seen.st_size
        if total > most and path != keep:
            with suppress(OSError):
                path.unlink()


def _sizes(folder: Path) -> list[tuple[Path, os.stat_result]]:
    found = []
    for path in folder.glob("*.weights"):
        with suppress(OSError):  # another process removed it
            found.append((path, path.stat()))
    return found
