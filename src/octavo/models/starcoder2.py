"""StarCoder 2 (arXiv:2402.19173)."""

from __future__ import annotations

from torch import nn

from octavo.config import ModelConfig
from octavo.layers.build import Build
from octavo.layers.mlp import MLP
from octavo.layers.norm import LayerNorm, Norm
from octavo.models.decoder import DecoderModel


class StarCoder2(DecoderModel):
    """Llama's attention, with biases, among an older Transformer's LayerNorms and feed-forward layers."""

    def mlp(self, build: Build, config: ModelConfig, index: int) -> nn.Module:
        return MLP(build, config)

    def norm(self, build: Build, config: ModelConfig) -> Norm:
        return LayerNorm(build, config.hidden_size, config.rms_norm_eps)
