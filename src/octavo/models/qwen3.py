"""Qwen 3 (arXiv:2505.09388), dense and with experts; its embedding models (arXiv:2506.05176) have the same layers."""

from __future__ import annotations

from torch import Tensor, nn

from octavo.config import ModelConfig
from octavo.layers.attention import Attention
from octavo.layers.build import Build
from octavo.layers.experts import ExpertsMLP
from octavo.layers.norm import RMSNorm
from octavo.models.decoder import DecoderModel


class Qwen3(DecoderModel):
    """Llama with each head of queries and keys normalised before it is rotated; a head's size is free."""

    def attention(self, build: Build, config: ModelConfig, cos_sin: Tensor, window: int | None) -> Attention:
        q_norm, k_norm = (RMSNorm(build, config.head_dim, config.rms_norm_eps) for _ in range(2))
        bias = config.qkv_bias
        return Attention(build, config, cos_sin, window=window, qkv_bias=bias, q_norm=q_norm, k_norm=k_norm)


class Qwen3MoE(Qwen3):
    """Qwen 3 with a mixture of experts in most layers."""

    def mlp(self, build: Build, config: ModelConfig, index: int) -> nn.Module:
        if config.experts is not None and index in config.experts.dense_layers:
            return super().mlp(build, config, index)
        return ExpertsMLP(build, config)
