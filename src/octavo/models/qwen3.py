"""Qwen 3 (arXiv:2505.09388), dense models."""

from __future__ import annotations

from torch import Tensor

from octavo.config import ModelConfig
from octavo.layers.attention import Attention
from octavo.layers.build import Build
from octavo.models.decoder import DecoderModel


class Qwen3(DecoderModel):
    """Llama with each head of queries and keys normalised before it is rotated; a head's size is free."""

    def attention(self, build: Build, config: ModelConfig, cos_sin: Tensor, window: int | None) -> Attention:
        return Attention(build, config, cos_sin, window=window, qkv_bias=config.qkv_bias, qk_norm=True)
