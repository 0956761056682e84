"""The gated feed-forward layer (SwiGLU, arXiv:2002.05202)."""

from __future__ import annotations

from torch import Tensor, nn

from octavo.config import ModelConfig
from octavo.layers.build import Build
from octavo.layers.linear import GateUpLinear, RowLinear
from octavo.layers.norm import RMSNorm


class GatedMLP(nn.Module):
    """``down(silu(gate(y)) * up(y))`` of ``y = norm(x + residual)``: ``x [T, H] -> [T, H]``."""

    def __init__(self, build: Build, config: ModelConfig) -> None:
        super().__init__()
        hidden, size, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.gate_up_proj = GateUpLinear(build, hidden, size, bias=bias)
        self.down_proj = RowLinear(build, size, hidden, bias=bias)

    def forward(self, x: Tensor, residual: Tensor | None, norm: RMSNorm) -> tuple[Tensor, Tensor]:
        """The layer's result, and ``x + residual``."""
        gated, residual = self.gate_up_proj.after_norm(norm, x, residual)
        return self.down_proj(gated), residual
