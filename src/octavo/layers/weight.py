"""Parameters that know which tensors of a checkpoint they are made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Self

import torch
from torch import Tensor, nn

from octavo.layers.build import Build

ALL = slice(None)


@dataclass(frozen=True, slots=True)
class Place:
    """Where one tensor of a checkpoint goes in a parameter.

    Attributes:
        shape: of the whole tensor in the checkpoint.
        source: what this shard takes of it, dimension by dimension.
        rows: of the parameter, that it fills.
        module: the checkpoint's name for the module, where it is not the module's own: "q_proj" for a part of
            "qkv_proj".
    """

    shape: tuple[int, ...]
    source: tuple[slice, ...] = (ALL,)
    rows: slice = field(default_factory=lambda: ALL)
    module: str | None = None


class Matrix(nn.Module):
    """A module that multiplies with a weight. Once loaded, the weight is packed into the form that the ops like best.

    Attributes:
        keep_plain: the weight is also used as plain rows (by a tied embedding), so packing makes a copy.
    """

    keep_plain = False

    def __init__(self, build: Build) -> None:
        super().__init__()
        self.ops, self.shard = build.ops, build.shard
        self.weight: Weight
        self.packed: Tensor | None = None

    def pack(self) -> None:
        """Pack the weight, and free the plain one unless it is needed elsewhere. Nothing can be loaded afterwards."""
        self.packed = self.ops.pack_linear(self.weight)
        if self.packed is not self.weight and not self.keep_plain:
            self.weight.data = self.weight.new_empty(0)

    @property
    def operand(self) -> Tensor:
        """What ``Ops.linear`` multiplies with: the packed weight, or the plain one until it is packed."""
        return self.weight if self.packed is None else self.packed

    def multiply(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        return self.ops.linear(x, self.operand, bias)


class Weight(nn.Parameter):
    """A parameter without gradient that is filled from the checkpoint, place by place."""

    places: Sequence[Place]

    def __new__(cls, build: Build, shape: tuple[int, ...], places: Sequence[Place]) -> Self:
        """Uninitialised memory of ``shape``, in the build's dtype and on its device."""
        data = torch.empty(shape, dtype=build.dtype, device=build.device)
        weight = torch.Tensor._make_subclass(cls, data, False)
        weight.places = places
        return weight

    def load(self, place: Place, tensor: Tensor) -> None:
        """Copy this shard's part of a checkpoint's ``tensor`` (of ``place.shape``) to where it belongs."""
        self.data[place.rows].copy_(tensor[place.source])
