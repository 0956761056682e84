"""A Hugging Face folder of safetensors files, memory-mapped.

The format is a JSON header and the raw arrays (https://huggingface.co/docs/safetensors); the ``safetensors``
library reads it, and checks that the header's offsets cover the file exactly.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from octavo.errors import ModelError
from octavo.weights.checkpoint import Checkpoint, LazyTensor
from octavo.weights.hf_config import read_config
from octavo.weights.shards import find_shards

if TYPE_CHECKING:
    import torch

_DTYPES = {"F64": "float32", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


class SafetensorsFile:
    """One open file; the mapping lives as long as this or a tensor that was read from it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @cached_property
    def header(self) -> Any:
        """Names, shapes and kinds, without torch."""
        return _open(self.path, "np")

    @cached_property
    def data(self) -> Any:
        """The arrays as torch tensors that share the file's pages."""
        return _open(self.path, "pt")

    def tensors(self) -> Iterator[SafetensorsTensor]:
        for name in self.header.offset_keys():
            entry = self.header.get_slice(name)
            yield SafetensorsTensor(self, name, tuple(entry.get_shape()), str(entry.get_dtype()))


class SafetensorsTensor(LazyTensor):
    def __init__(self, file: SafetensorsFile, name: str, shape: tuple[int, ...], kind: str) -> None:
        self.file = file
        self.name = name
        self.shape = shape
        self.kind = kind
        self.nbytes = math.prod(shape) * _bits(kind) // 8

    def read(self, dtype: torch.dtype) -> torch.Tensor:
        if self.kind not in _DTYPES:
            raise ModelError(
                f"{self.file.path}: {self.name!r:.200} is of kind {self.kind}; accepted: {', '.join(_DTYPES)}"
            )
        return self.file.data.get_tensor(self.name).to(dtype)


@dataclass(slots=True)
class SafetensorsCheckpoint(Checkpoint):
    """A folder with ``config.json`` and safetensors files. Opening it reads the small files only."""

    @classmethod
    def open(cls, folder: Path, weights: bool = True) -> SafetensorsCheckpoint:
        """Read the config, and unless ``weights`` is False the weights' headers too.

        Raises ``ModelError`` for a folder that is damaged, incomplete or of a kind that Octavo does not know.
        """
        dtype = None
        if weights:
            kinds = [tensor.kind for tensor in _tensors(folder)]
            dtype = next((_DTYPES[kind] for kind in kinds if kind in _DTYPES), None)
        config, generation = read_config(folder, dtype)
        return cls(path=folder, config=config, generation=generation)

    def tensors(self) -> Iterator[LazyTensor]:
        return _tensors(self.path)


def _tensors(folder: Path) -> Iterator[SafetensorsTensor]:
    """All tensors of all files, each name once, and where the index says."""
    shards = find_shards(folder)
    seen: dict[str, str] = {}
    for file in shards.files:
        for tensor in SafetensorsFile(file).tensors():
            if tensor.name in seen:
                raise ModelError(f"{folder}: {tensor.name!r:.200} is both in {seen[tensor.name]} and {file.name}")
            seen[tensor.name] = file.name
            yield tensor
    for name, expected in shards.index.items():
        if seen.get(name) != expected:
            raise ModelError(f"{folder}: the index says that {name!r:.200} is in {expected}, which does not have it")


def _bits(kind: str) -> int:
    """Bits of one value; the kind's name has them ("BF16", "F8_E4M3"), except for "BOOL", which takes a
    byte."""
    digits = re.search(r"\d+", kind)
    return int(digits.group()) if digits else 8


def _open(path: Path, framework: str) -> Any:
    import safetensors

    try:
        return safetensors.safe_open(path, framework)
    except (safetensors.SafetensorError, OSError) as error:
        reason = str(error).removeprefix("Error while deserializing header: ").splitlines()[0]
        raise ModelError(f"{path} is not a whole safetensors file: {reason}") from error
