"""A LoRA adapter as PEFT saves it: a folder with ``adapter_config.json`` and ``adapter_model.safetensors``."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from octavo.errors import ModelError
from octavo.weights.checkpoint import LazyTensor
from octavo.weights.peft_config import AdapterConfig, read_adapter_config
from octavo.weights.safetensors_file import SafetensorsFile

TENSORS = "adapter_model.safetensors"
PICKLE = "adapter_model.bin"

MAX_TENSORS = 1 << 16
"""Twice seven in each of the most layers that a model may have are fewer."""

MAX_SECONDS = 10.0
"""For comparing all modules' names with the configuration's patterns, some of which are slow."""

_NAME = re.compile(r"(?:base_model\.model\.)?(.+)\.lora_([AB])\.weight")
_OTHER_KINDS = {
    "lora_embedding": "an adapter of an embedding",
    "lora_magnitude_vector": "DoRA",
    "modules_to_save": "modules_to_save",
    ".bias": "a bias",
}
"""What a tensor of another name is, if its name has this in it."""


@dataclass(frozen=True, slots=True)
class LoraModule:
    """What an adapter has for one linear layer of the base model: ``y += scale * (x @ a.T) @ b.T``.

    Attributes:
        name: the layer's name in the base model's checkpoint: "model.layers.0.self_attn.q_proj".
        a: ``[rank, in]``.
        b: ``[out, rank]``.
    """

    name: str
    a: LazyTensor
    b: LazyTensor
    scale: float

    @property
    def rank(self) -> int:
        return self.a.shape[0]


@dataclass(frozen=True, slots=True)
class PeftAdapter:
    """An adapter on disk; its tensors are mapped."""

    path: Path
    config: AdapterConfig
    modules: tuple[LoraModule, ...]

    @property
    def rank(self) -> int:
        """The largest of its modules' ranks."""
        return max(module.rank for module in self.modules)


def read_adapter(folder: Path) -> PeftAdapter:
    """Open an adapter.

    Raises:
        ModelError: it is not there, damaged, incomplete, or of a kind that is not supported.
    """
    try:
        is_folder = folder.is_dir()
    except OSError as error:  # the name is too long, or what is in front of it may not be looked into
        raise ModelError(f"{folder!s:.200} cannot be read: {error.strerror}") from None
    if not is_folder:
        raise ModelError(f"{folder} is not a folder; a LoRA adapter in PEFT's format was expected")
    config = read_adapter_config(folder)
    pairs = _pairs(_tensor_file(folder))
    if not pairs:
        raise ModelError(f"{folder / TENSORS} has no tensors; at least one lora_A and lora_B was expected")
    return PeftAdapter(folder, config, tuple(_modules(folder, config, pairs)))


def _tensor_file(folder: Path) -> Path:
    if (folder / TENSORS).exists():
        return folder / TENSORS
    if (folder / PICKLE).exists():
        raise ModelError(
            f"{folder / PICKLE} is a pickle, which may run code; accepted: {TENSORS}, which peft writes, too"
        )
    raise ModelError(f"{folder / TENSORS} is missing")


def _pairs(path: Path) -> dict[str, dict[str, LazyTensor]]:
    """For each layer its "A" and its "B", as far as they are there."""
    pairs: dict[str, dict[str, LazyTensor]] = {}
    for count, tensor in enumerate(SafetensorsFile(path).tensors(), 1):
        if count > MAX_TENSORS:
            raise ModelError(f"{path} has more than {MAX_TENSORS} tensors; so many are accepted")
        match = _NAME.fullmatch(tensor.name)
        if match is None:
            what = next((what for part, what in _OTHER_KINDS.items() if part in tensor.name), "not known")
            raise ModelError(
                f"{path}: {tensor.name} is {what}, which is not supported; accepted: lora_A and lora_B of linear layers"
            )
        pair = pairs.setdefault(match[1], {})
        if match[2] in pair:
            raise ModelError(f"{path}: {match[1]} has two lora_{match[2]}; one was expected")
        pair[match[2]] = tensor
    return pairs


def _modules(
    folder: Path, config: AdapterConfig, pairs: Mapping[str, Mapping[str, LazyTensor]]
) -> Iterator[LoraModule]:
    """Each layer's, unless the patterns take too long."""
    begin = time.monotonic()
    for name, pair in pairs.items():
        yield _module(folder, config, name, pair)
        if time.monotonic() - begin > MAX_SECONDS:
            raise ModelError(f"{folder}: the patterns of adapter_config.json take too long to compare with its tensors")


def _module(folder: Path, config: AdapterConfig, name: str, pair: Mapping[str, LazyTensor]) -> LoraModule:
    path = folder / TENSORS
    if len(pair) < 2:
        raise ModelError(f"{path}: {name} has no lora_{'A' if 'B' in pair else 'B'}; both were expected")
    if config.targets is not None and not config.wants(name):
        raise ModelError(f"{path}: {name} is not among the modules that adapter_config.json names")
    a, b, rank = pair["A"], pair["B"], config.rank_of(name)
    if len(a.shape) != 2 or len(b.shape) != 2 or not a.shape[0] == b.shape[1] == rank:
        raise ModelError(
            f"{path}: {name} has lora_A {list(a.shape)} and lora_B {list(b.shape)}; expected: [{rank}, in] and "
            f"[out, {rank}]"
        )
    return LoraModule(name, a, b, config.scale_of(name))
