"""One safetensors file, memory-mapped.

The format is a JSON header and the raw arrays (https://huggingface.co/docs/safetensors); the ``safetensors``
library checks the header, and that its offsets cover the file exactly.
"""

from __future__ import annotations

import re
import struct
import warnings
from collections.abc import Iterator
from functools import cached_property
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from octavo.errors import ModelError
from octavo.weights.checkpoint import ALL, LazyTensor
from octavo.weights.json_names import refuse_repeated_names
from octavo.weights.mapped import MappedFile

if TYPE_CHECKING:
    import torch

KINDS = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E8M0": "float8_e8m0fnu",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}
"""The header's name of a type -> torch's."""
MAX_NAME = 256
"""Characters in a tensor's name; real ones have fewer than 100."""
WEIGHTS = ("F64", "F32", "F16", "BF16")
"""Types that plain weights may have."""


class EntryJson(msgspec.Struct):
    """Where a tensor lies; offsets count from the end of the header."""

    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]


class SafetensorsFile:
    """An open file; its pages stay mapped as long as this, or a tensor that was read from it, lives."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @cached_property
    def mapped(self) -> MappedFile:
        return MappedFile(self.path, "a safetensors file")

    def tensors(self) -> Iterator[SafetensorsTensor]:
        """All tensors, in the order of their bytes. ``ModelError`` for a file that is damaged or cut off."""
        _check(self.path)
        (length,) = struct.unpack("<Q", self.mapped.view(0, 8).tobytes())
        text = self.mapped.view(8, length).tobytes()
        refuse_repeated_names(self.path, text)
        header = msgspec.json.decode(text, type=dict[str, msgspec.Raw])
        header.pop("__metadata__", None)
        entries = [(name, msgspec.json.decode(raw, type=EntryJson)) for name, raw in header.items()]
        for name, entry in sorted(entries, key=lambda item: item[1].data_offsets):
            _check_name(self.path, name)
            yield SafetensorsTensor(self, name, entry, 8 + length + entry.data_offsets[0])


class SafetensorsTensor(LazyTensor):
    def __init__(self, file: SafetensorsFile, name: str, entry: EntryJson, offset: int) -> None:
        self.name = name
        self.shape = tuple(entry.shape)
        self.kind = entry.dtype
        self.nbytes = prod(self.shape) * _bits(self.kind) // 8
        self._file, self._offset = file, offset

    def read(self, dtype: torch.dtype, rows: slice = ALL) -> torch.Tensor:
        if self.kind not in WEIGHTS:
            raise ModelError(
                f"{self._file.path}: {self.name!r:.200} is of kind {self.kind}; accepted: {', '.join(WEIGHTS)}"
            )
        raw = self.raw()
        return (raw if rows == ALL else raw[rows]).to(dtype)

    def raw(self) -> torch.Tensor:
        """The tensor as it is stored: a read-only view of the file's pages."""
        import torch

        if self.kind not in KINDS:
            raise ModelError(f"{self._file.path}: {self.name!r:.200} is of kind {self.kind}, which is not supported")
        dtype = getattr(torch, KINDS[self.kind])
        if not self.nbytes:
            return torch.empty(self.shape, dtype=dtype)
        with warnings.catch_warnings():  # that the file's pages are read-only is in the contract
            warnings.filterwarnings("ignore", message=".*not writable")
            view = self._file.mapped.view(self._offset, self.nbytes)
            return torch.frombuffer(view.data, dtype=dtype).view(self.shape)

    def release(self, rows: slice = ALL) -> None:
        self._file.mapped.release_rows(self._offset, self.nbytes, self.shape, rows)


def _bits(kind: str) -> int:
    """Bits of one value; the kind's name has them ("BF16", "F8_E4M3"), except for "BOOL", which takes a byte."""
    digits = re.search(r"\d+", kind)
    return int(digits.group()) if digits else 8


def _check_name(path: Path, name: str) -> None:
    """Names end up in messages: there they must not fill the screen, nor look like more than one line."""
    if len(name) > MAX_NAME or not name.isprintable():
        raise ModelError(f"{path} has a tensor {name!r:.200}; accepted: names of up to {MAX_NAME} printable characters")


def _check(path: Path) -> None:
    import safetensors

    try:
        safetensors.safe_open(path, "np")
    except (safetensors.SafetensorError, OSError) as error:
        reason = str(error).removeprefix("Error while deserializing header: ").splitlines()[0]
        raise ModelError(f"{path} is not a whole safetensors file: {reason}") from error
