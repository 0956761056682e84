"""A checkpoint's tensors under the model's names: renamed, cut into parts, turned, with rows in another order.

Nothing is read until it is loaded, and a part that is a view of a mapped file stays one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from octavo.config import ModelConfig
from octavo.kernels.packed import PackedWeight
from octavo.kernels.packed_parts import take_rows
from octavo.layers.rotary import rotated_pairs_first

WHOLE = slice(None)


class NamedTensor(Protocol):
    """What is needed of a tensor in a checkpoint: see ``octavo.weights.checkpoint.LazyTensor``."""

    @property
    def name(self) -> str: ...

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def nbytes(self) -> int: ...

    def read(self, dtype: torch.dtype, rows: slice = WHOLE) -> Tensor: ...

    @property
    def packed_kind(self) -> str | None: ...

    def packed(self) -> PackedWeight | None: ...

    def release(self, rows: slice = WHOLE) -> None: ...


@dataclass(slots=True)
class Part:
    """Rows of a tensor, under another name.

    Attributes:
        rows: a slice, or the rows in the order wanted.
        transposed: rows are the tensor's columns.
    """

    name: str
    whole: NamedTensor
    rows: slice | Sequence[int] = field(default_factory=lambda: WHOLE)
    transposed: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        shape = self.whole.shape[::-1] if self.transposed else self.whole.shape
        if not shape:
            return ()
        rows = range(shape[0])[self.rows] if isinstance(self.rows, slice) else self.rows
        return (len(rows), *shape[1:])

    @property
    def nbytes(self) -> int:
        return self.whole.nbytes * self.shape[0] // max(self.whole.shape[0], 1) if self.shape else self.whole.nbytes

    def read(self, dtype: torch.dtype, rows: slice = WHOLE) -> Tensor:
        if self.transposed or not self.shape:
            tensor = self.whole.read(dtype)
            return (tensor.T if self.transposed else tensor)[self.rows][rows]
        wanted = (range(self.whole.shape[0])[self.rows] if isinstance(self.rows, slice) else self.rows)[rows]
        if isinstance(wanted, range):
            return self.whole.read(dtype, slice(wanted.start, wanted.stop))
        first = min(wanted, default=0)  # those that are out of order are near each other
        near = self.whole.read(dtype, slice(first, max(wanted, default=-1) + 1))
        return near[[row - first for row in wanted]]

    @property
    def packed_kind(self) -> str | None:
        return None if self.transposed or not isinstance(self.rows, slice) else self.whole.packed_kind

    def packed(self) -> PackedWeight | None:
        """What the file has packed, if these are rows of it in their order; else None."""
        if self.transposed or not isinstance(self.rows, slice):
            return None
        packed = self.whole.packed()
        if packed is None:
            return None
        part = take_rows(packed, self.rows)
        return part if isinstance(part, PackedWeight) else None

    def release(self, rows: slice = WHOLE) -> None:
        if rows == WHOLE:
            self.whole.release()
        elif isinstance(self.rows, slice) and not self.transposed:
            mine = range(self.whole.shape[0])[self.rows][rows]
            self.whole.release(slice(mine.start, mine.stop))


def own_name(tensor: NamedTensor, names: Mapping[str, str] | None = None) -> NamedTensor:
    """The tensor with each key of ``names`` replaced in its name. A checkpoint of a model without its head lacks the
    "model." in front of all names.

    Keys are whole parts of a name with the dots around them: ".w1." is not in "layers.0.w10.weight".
    """
    name = renamed(tensor.name, names or {})
    return tensor if name == tensor.name else Part(name, tensor)


def renamed(name: str, names: Mapping[str, str]) -> str:
    """What `own_name` makes of a name."""
    name = f".{name}"
    for old, new in names.items():
        name = name.replace(old, new)
    return f"model{name}" if name.startswith((".embed_tokens.", ".layers.", ".norm.")) else name[1:]


def split(tensor: NamedTensor, sizes: Mapping[str, int], transposed: bool = False) -> Iterator[NamedTensor]:
    """The layers that a fused one is made of: "x.qkv_proj.weight" gives "x.q_proj.weight" and so on.

    ``sizes``: name and rows of each, in order; the last one gets all that is left.
    """
    module, _, leaf = tensor.name.rpartition(".")
    parent, last = module.rpartition(".")[0], len(sizes) - 1
    first = 0
    for i, (name, size) in enumerate(sizes.items()):
        rows = slice(first, None if i == last else first + size)
        yield Part(f"{parent}.{name}.{leaf}", tensor, rows, transposed and len(tensor.shape) == 2)
        first += size


def rotated_first(tensor: NamedTensor, config: ModelConfig) -> NamedTensor:
    """Rows of queries and keys in the order of `rotated_pairs_first`, if only a part of each head is rotated."""
    d, module = config.head_dim, tensor.name.rpartition(".")[0]
    if config.rotary_dim in (None, d) or not module.endswith((".q_proj", ".k_proj", ".q_norm", ".k_norm")):
        return tensor
    order, rows = rotated_pairs_first(d, config.rotary_dim or d), tensor.shape[0] if tensor.shape else 0
    return Part(tensor.name, tensor, [head + i for head in range(0, rows - d + 1, d) for i in order])
