"""Root mean square normalisation (arXiv:1910.07467)."""

from __future__ import annotations

from torch import Tensor, nn

from octavo.layers.build import Build
from octavo.layers.weight import Place, Weight


class RMSNorm(nn.Module):
    """``x / rms(x) * weight`` over the last dimension; every shard has all of it."""

    def __init__(self, build: Build, size: int, eps: float) -> None:
        super().__init__()
        self.ops, self.eps = build.ops, eps
        self.weight = Weight(build, (size,), [Place(shape=(size,))])

    def forward(self, x: Tensor) -> Tensor:
        return self.ops.rms_norm(x, self.weight, self.eps)

    def add(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """``(norm(x + residual), x + residual)``."""
        return self.ops.add_rms_norm(x, residual, self.weight, self.eps)
