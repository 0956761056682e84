"""The feed-forward layer, gated (SwiGLU and GeGLU, arXiv:2002.05202) and as it was before."""

from __future__ import annotations

from torch import Tensor, nn

from octavo.config import ModelConfig
from octavo.kernels.lora import LoraPlan
from octavo.layers.build import Build
from octavo.layers.linear import ColumnLinear, GateUpLinear, Output, RowLinear
from octavo.layers.norm import Norm


class GatedMLP(nn.Module):
    """``down(act(gate(y)) * up(y))`` of ``y = norm(x + residual)``: ``x [T, H] -> [T, H]``."""

    def __init__(self, build: Build, config: ModelConfig) -> None:
        super().__init__()
        hidden, size, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.gate_up_proj = GateUpLinear(build, hidden, size, bias=bias, activation=config.hidden_act)
        self.down_proj = RowLinear(build.for_sensitive, size, hidden, bias=bias)

    def forward(
        self, x: Tensor, residual: Tensor | None, norm: Norm, lora: LoraPlan | None = None
    ) -> tuple[Tensor, Tensor]:
        """The layer's result, and ``x + residual``."""
        gated, residual = self.gate_up_proj.after_norm(norm, x, residual, lora)
        return self.down_proj(gated, lora), residual


class MLP(nn.Module):
    """``project(gelu(expand(y)))`` of ``y = norm(x + residual)``: ``x [T, H] -> [T, H]`` (arXiv:1706.03762)."""

    def __init__(self, build: Build, config: ModelConfig) -> None:
        super().__init__()
        hidden, size, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        part = build.shard.part(size, "intermediate features")
        self.ops, self.approximate = build.ops, config.hidden_act == "gelu_tanh"
        self.c_fc = ColumnLinear(build, hidden, [Output("c_fc", size, part)], bias=bias)
        self.c_proj = RowLinear(build.for_sensitive, size, hidden, bias=bias)

    def forward(
        self, x: Tensor, residual: Tensor | None, norm: Norm, lora: LoraPlan | None = None
    ) -> tuple[Tensor, Tensor]:
        """The layer's result, and ``x + residual``."""
        wide, residual = self.c_fc.after_norm(norm, x, residual, lora)
        return self.c_proj(self.ops.gelu(wide, approximate=self.approximate), lora), residual
