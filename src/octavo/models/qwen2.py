"""Qwen 2 and 2.5 (arXiv:2407.10671, 2412.15115)."""

from __future__ import annotations

from torch import Tensor

from octavo.config import ModelConfig
from octavo.layers.attention import Attention
from octavo.layers.build import Build
from octavo.models.decoder import DecoderModel


class Qwen2(DecoderModel):
    """Llama with a bias on queries, keys and values."""

    def attention(self, build: Build, config: ModelConfig, cos_sin: Tensor, window: int | None) -> Attention:
        return Attention(build, config, cos_sin, window=window, qkv_bias=True)
