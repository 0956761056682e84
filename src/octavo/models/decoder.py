"""The decoder-only transformer that all families share: norms before each part, residuals around it, one
stream.

The sum of a residual connection is computed together with the norm that follows it, so layers hand on both
the stream (``residual``) and what is yet to be added to it (``x``).
"""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor, nn

from octavo.config import ModelConfig
from octavo.kernels.forward_batch import ForwardBatch, KVLayer
from octavo.layers.attention import Attention
from octavo.layers.build import Build
from octavo.layers.embedding import Embedding, LMHead
from octavo.layers.mlp import GatedMLP
from octavo.layers.norm import RMSNorm
from octavo.layers.rotary import cos_sin_table


class DecoderLayer(nn.Module):
    """``h = x + attention(norm(x));  y = h + mlp(norm(h))``."""

    def __init__(self, build: Build, config: ModelConfig, attention: Attention) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(build, config.hidden_size, config.rms_norm_eps)
        self.self_attn = attention
        self.post_attention_layernorm = RMSNorm(build, config.hidden_size, config.rms_norm_eps)
        self.mlp = GatedMLP(build, config)

    def forward(self, x: Tensor, residual: Tensor | None, batch: ForwardBatch, kv: KVLayer) -> tuple[Tensor, Tensor]:
        x, residual = self.self_attn(x, residual, self.input_layernorm, batch, kv)
        return self.mlp(x, residual, self.post_attention_layernorm)


class Decoder(nn.Module):
    """Embedding, layers and the final norm."""

    def __init__(self, build: Build, config: ModelConfig, attentions: list[Attention]) -> None:
        super().__init__()
        self.embed_tokens = Embedding(build, config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(build, config, attention) for attention in attentions)
        self.norm = RMSNorm(build, config.hidden_size, config.rms_norm_eps)

    def forward(self, batch: ForwardBatch) -> Tensor:
        x = self.embed_tokens(batch.token_ids)
        residual: Tensor | None = None
        for layer, kv in zip(self.layers, batch.kv_cache, strict=True):
            x, residual = layer(x, residual, batch, kv)
        assert residual is not None  # a model has at least one layer
        return self.norm.add(x, residual)[0]


class DecoderModel(nn.Module):
    """A decoder and the head that makes logits of its output. A family says what its attention is.

    Args:
        max_positions: how long a request can grow; positions beyond have no rotary angles.
    """

    def __init__(self, config: ModelConfig, build: Build, max_positions: int) -> None:
        super().__init__()
        self.config, self.dtype = config, build.dtype
        cos_sin = cos_sin_table(config, max_positions, build.device)
        attentions = [self.attention(build, config, cos_sin, window) for window in config.sliding_windows]
        self.model = Decoder(build, config, attentions)
        if config.tie_word_embeddings:
            self.lm_head = LMHead.tied(build, self.model.embed_tokens)
        else:
            self.lm_head = LMHead(build, config.vocab_size, config.hidden_size)

    @abstractmethod
    def attention(self, build: Build, config: ModelConfig, cos_sin: Tensor, window: int | None) -> Attention:
        """The attention of one layer."""

    def forward(self, batch: ForwardBatch) -> Tensor:
        """Hidden states after the final norm, ``[T, H]``; writes the keys and values of the step into the
        cache.

        ``batch.attention`` must be set to ``ops.plan_attention(batch)``.
        """
        return self.model(batch)

    def logits(self, hidden: Tensor) -> Tensor:
        """Float32 logits ``[S, V]`` of those rows of ``forward``'s result that need them, ``[S, H]``."""
        return self.lm_head(hidden)

    def raw_logits(self, hidden: Tensor) -> Tensor:
        """The same in the model's dtype, which saves a copy where the sampler takes that."""
        return self.lm_head.product(hidden)
