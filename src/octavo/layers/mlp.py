"""The gated feed-forward layer (SwiGLU, arXiv:2002.05202)."""

from __future__ import annotations

from torch import Tensor, nn

from octavo.config import ModelConfig
from octavo.layers.build import Build
from octavo.layers.linear import GateUpLinear, RowLinear


class GatedMLP(nn.Module):
    """``down(silu(gate(x)) * up(x))``: ``x [T, H] -> [T, H]``."""

    def __init__(self, build: Build, config: ModelConfig) -> None:
        super().__init__()
        hidden, size, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.ops = build.ops
        self.gate_up_proj = GateUpLinear(build, hidden, size, bias=bias)
        self.down_proj = RowLinear(build, size, hidden, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.ops.silu_mul(self.gate_up_proj(x)))
