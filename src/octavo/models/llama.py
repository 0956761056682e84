"""Llama 1, 2 and 3 (arXiv:2302.13971, 2307.09288, 2407.21783) and Mistral (arXiv:2310.06825), which adds a
window.

TinyLlama, SmolLM2 and many others are of this family.
"""

from __future__ import annotations

from torch import Tensor

from octavo.config import ModelConfig
from octavo.layers.attention import Attention
from octavo.layers.build import Build
from octavo.models.decoder import DecoderModel


class Llama(DecoderModel):
    """Rotary positions, grouped key/value heads, RMSNorm before each part, a gated MLP."""

    def attention(self, build: Build, config: ModelConfig, cos_sin: Tensor, window: int | None) -> Attention:
        return Attention(build, config, cos_sin, window=window, qkv_bias=config.qkv_bias)
