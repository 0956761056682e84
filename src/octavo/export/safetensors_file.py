"""Safetensors files written tensor by tensor: https://huggingface.co/docs/safetensors describes the format.

A file is a length (u64), a JSON header, and the raw arrays. The ``safetensors`` library writes a file from tensors that
are all in memory; here each is made when its turn comes, so that a model of any size can be written.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import torch
from torch import Tensor

from octavo.weights.shards import INDEX, SINGLE

KINDS = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.int8: "I8",
    torch.int32: "I32",
    torch.int64: "I64",
}


@dataclass(frozen=True, slots=True)
class Slot:
    """A tensor that a file is to hold."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class Item:
    """What is made together and stays in one file: ``make`` returns a tensor for each slot."""

    slots: tuple[Slot, ...]
    make: Callable[[], Sequence[Tensor]]

    @property
    def nbytes(self) -> int:
        return sum(slot.nbytes for slot in self.slots)


def write_folder(folder: Path, items: Iterable[Item], max_shard_size: int) -> list[Path]:
    """Write ``items`` to one file, or to several of at most ``max_shard_size`` bytes (if each item is smaller) and an
    index.
    """
    shards = list(split(items, max_shard_size))
    if len(shards) == 1:
        write_file(folder / SINGLE, shards[0])
        return [folder / SINGLE]
    names = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    for name, shard in zip(names, shards, strict=True):
        write_file(folder / name, shard)
    index = {slot.name: name for name, shard in zip(names, shards, strict=True) for i in shard for slot in i.slots}
    size = sum(item.nbytes for shard in shards for item in shard)
    text = json.dumps({"metadata": {"total_size": size}, "weight_map": index}, indent=2)
    (folder / INDEX).write_text(text + "\n", encoding="utf-8")
    return [*(folder / name for name in names), folder / INDEX]


def split(items: Iterable[Item], limit: int) -> Iterator[list[Item]]:
    """Items in order, in lists of at most ``limit`` bytes; an item that is larger has a list of its own."""
    shard: list[Item] = []
    size = 0
    for item in items:
        if shard and size + item.nbytes > limit:
            yield shard
            shard, size = [], 0
        shard.append(item)
        size += item.nbytes
    yield shard


def write_file(path: Path, items: Sequence[Item]) -> None:
    """Write one file, making one item at a time."""
    header, places = _layout([slot for item in items for slot in item.slots])
    with path.open("wb") as file:
        file.write(header)
        for item in items:
            for slot, tensor in zip(item.slots, item.make(), strict=True):
                if (tensor.dtype, tuple(tensor.shape)) != (slot.dtype, slot.shape):
                    raise TypeError(f"{slot.name} is {tensor.dtype} {tuple(tensor.shape)}, not as it was planned")
                file.seek(len(header) + places[slot.name])
                write_tensor(file, tensor)


def write_tensor(file: IO[bytes], tensor: Tensor) -> None:
    """The raw bytes, rows first."""
    file.write(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)


def _layout(slots: Sequence[Slot]) -> tuple[bytes, dict[str, int]]:
    """The header, and where each tensor begins behind it. Wide types come first, so that each is aligned to its own."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    places: dict[str, int] = {}
    end = 0
    for slot in sorted(slots, key=lambda slot: -slot.dtype.itemsize):
        places[slot.name] = end
        entries[slot.name] = {
            "dtype": KINDS[slot.dtype],
            "shape": list(slot.shape),
            "data_offsets": [end, end + slot.nbytes],
        }
        end += slot.nbytes
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, places
