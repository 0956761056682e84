"""Normalisation: RMSNorm (arXiv:1910.07467), Gemma's variant of it, and LayerNorm (arXiv:1607.06450).

Every shard has all of a norm's weights.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace

import torch
from torch import Tensor, nn

from octavo.layers.build import Build
from octavo.layers.weight import Place, Weight


class Norm(nn.Module):
    """Brings each row ``[..., H]`` to one scale.

    Attributes:
        weight: what the scaled row is multiplied with, ``[H]``.
    """

    weight: Weight

    def __init__(self, build: Build, eps: float) -> None:
        super().__init__()
        self.ops, self.eps = build.ops, eps

    @abstractmethod
    def add(self, x: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        """``(norm(x + residual), x + residual)``; a ``residual`` of None is 0. May overwrite both inputs."""


class RMSNorm(Norm):
    """``x / rms(x) * weight``."""

    def __init__(self, build: Build, size: int, eps: float) -> None:
        super().__init__(build, eps)
        self.weight = Weight(build, (size,), [Place(shape=(size,))])

    def forward(self, x: Tensor) -> Tensor:
        return self.ops.rms_norm(x, self.weight, self.eps)

    def add(self, x: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        return self.ops.add_norm(x, residual, self.weight, self.eps)


class OnePlusWeight(Weight):
    """A weight w that is used as ``1 + w``: that is what it holds once loaded."""

    def load(self, place: Place, tensor: Tensor) -> None:
        super().load(place, tensor + 1)


class OnePlusRMSNorm(RMSNorm):
    """``x / rms(x) * (1 + weight)`` (Gemma, arXiv:2403.08295). The sum is kept in float32: it would lose bits in 16."""

    def __init__(self, build: Build, size: int, eps: float) -> None:
        super().__init__(build, size, eps)
        self.weight = OnePlusWeight(replace(build, dtype=torch.float32), (size,), [Place(shape=(size,))])


class LayerNorm(Norm):
    """``(x - mean(x)) / std(x) * weight + bias``."""

    def __init__(self, build: Build, size: int, eps: float) -> None:
        super().__init__(build, eps)
        self.weight = Weight(build, (size,), [Place(shape=(size,))])
        self.bias = Weight(build, (size,), [Place(shape=(size,))])

    def add(self, x: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        return self.ops.add_layer_norm(x, residual, self.weight, self.bias, self.eps)
