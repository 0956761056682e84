"""A Hugging Face folder of safetensors files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from octavo.errors import ModelError
from octavo.weights.checkpoint import Checkpoint, LazyTensor
from octavo.weights.hf_config import read_config
from octavo.weights.mapped import releasing
from octavo.weights.quantized.parts import Scheme
from octavo.weights.quantized.scheme import read_scheme
from octavo.weights.quantized.tensor import quantized_tensors
from octavo.weights.safetensors_file import SafetensorsFile, SafetensorsTensor
from octavo.weights.shards import find_shards

_DTYPES = {"F64": "float32", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


@dataclass(slots=True)
class SafetensorsCheckpoint(Checkpoint):
    """A folder with ``config.json`` and safetensors files. Opening it reads the small files only.

    ``scheme``: how its weights are quantized, or None.
    """

    scheme: Scheme | None = None

    @classmethod
    def open(cls, folder: Path, weights: bool = True) -> SafetensorsCheckpoint:
        """Read the config, and unless ``weights`` is False the weights' headers too.

        Raises ``ModelError`` for a folder that is damaged, incomplete or of a kind that Octavo does not know.
        """
        dtype, scheme = None, None
        if weights:
            scheme = read_scheme(folder)
            kinds = [tensor.kind for tensor in _tensors(folder)]
            dtype = next((_DTYPES[kind] for kind in kinds if kind in _DTYPES), None)
        config, generation = read_config(folder, dtype)
        return cls(path=folder, config=config, generation=generation, scheme=scheme)

    def tensors(self) -> Iterator[LazyTensor]:
        stored = _tensors(self.path)
        return releasing(stored if self.scheme is None else quantized_tensors(stored, self.scheme))


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
