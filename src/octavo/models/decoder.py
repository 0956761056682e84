"""The decoder-only transformer that all families share: norms before each part, residuals around it, one
stream.

The sum of a residual connection is computed together with the norm that follows it, so layers hand on both
the stream (``residual``) and what is yet to be added to it (``x``).

A family overrides what it does differently: how a layer's attention, feed-forward part and norms are made, how they
are joined, how tokens become vectors, and under which names its checkpoints keep the weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor, nn

from octavo.config import ModelConfig
from octavo.kernels.forward_batch import ForwardBatch, KVLayer
from octavo.layers.attention import Attention
from octavo.layers.build import Build
from octavo.layers.embedding import Embedding, LMHead
from octavo.layers.mlp import GatedMLP
from octavo.layers.norm import Norm, RMSNorm
from octavo.layers.rotary import layer_tables
from octavo.models.tensors import NamedTensor, own_name, rotated_first


class DecoderLayer(nn.Module):
    """``h = x + attention(norm(x));  y = h + mlp(norm(h))``."""

    def __init__(self, attention: Attention, mlp: nn.Module, attention_norm: Norm, mlp_norm: Norm) -> None:
        super().__init__()
        self.input_layernorm, self.self_attn = attention_norm, attention
        self.post_attention_layernorm, self.mlp = mlp_norm, mlp

    def forward(self, x: Tensor, residual: Tensor | None, batch: ForwardBatch, kv: KVLayer) -> tuple[Tensor, Tensor]:
        x, residual = self.self_attn(x, residual, self.input_layernorm, batch, kv)
        out: tuple[Tensor, Tensor] = self.mlp(x, residual, self.post_attention_layernorm, batch.lora)
        return out


class Decoder(nn.Module):
    """Embedding, layers and the final norm."""

    def __init__(self, embed_tokens: Embedding, layers: Sequence[nn.Module], norm: Norm) -> None:
        super().__init__()
        self.embed_tokens, self.layers, self.norm = embed_tokens, nn.ModuleList(layers), norm

    def forward(self, x: Tensor, batch: ForwardBatch) -> Tensor:
        """``x [T, H]``, the embedded tokens, to hidden states ``[T, H]``."""
        residual: Tensor | None = None
        for layer, kv in zip(self.layers, batch.kv_cache, strict=True):
            x, residual = layer(x, residual, batch, kv)
        return self.norm.add(x, residual)[0]


class DecoderModel(nn.Module):
    """A decoder and the head that makes logits of its output.

    Args:
        max_positions: how long a request can grow; positions beyond have no rotary angles.
    """

    def __init__(self, config: ModelConfig, build: Build, max_positions: int) -> None:
        super().__init__()
        self.config, self.dtype = config, build.dtype
        tables = layer_tables(config, max_positions, build.device)
        embedding = Embedding(build, config.vocab_size, config.hidden_size)
        layers = [self.layer(build, config, i, table) for i, table in enumerate(tables)]
        self.model = Decoder(embedding, layers, self.norm(build, config))
        if config.tie_word_embeddings:
            self.lm_head = LMHead.tied(build, embedding)
        else:
            self.lm_head = LMHead(build, config.vocab_size, config.hidden_size)

    def layer(self, build: Build, config: ModelConfig, index: int, cos_sin: Tensor) -> nn.Module:
        """Layer ``index``; ``cos_sin`` is its rotary table."""
        attention = self.attention(build, config, cos_sin, config.sliding_windows[index])
        mlp, norms = self.mlp(build, config, index), [self.norm(build, config) for _ in range(2)]
        return DecoderLayer(attention, mlp, *norms)

    def attention(self, build: Build, config: ModelConfig, cos_sin: Tensor, window: int | None) -> Attention:
        """The attention of one layer."""
        return Attention(build, config, cos_sin, window=window, qkv_bias=config.qkv_bias)

    def mlp(self, build: Build, config: ModelConfig, index: int) -> nn.Module:
        """The feed-forward part of layer ``index``."""
        return GatedMLP(build, config)

    def norm(self, build: Build, config: ModelConfig) -> Norm:
        """A norm of the stream."""
        return RMSNorm(build, config.hidden_size, config.rms_norm_eps)

    def embed(self, batch: ForwardBatch) -> Tensor:
        """The tokens of a step as vectors ``[T, H]``."""
        x: Tensor = self.model.embed_tokens(batch.token_ids)
        return x

    def forward(self, batch: ForwardBatch) -> Tensor:
        """Hidden states after the final norm, ``[T, H]``; writes the keys and values of the step into the
        cache.

        ``batch.attention`` must be set to ``ops.plan_attention(batch)``.
        """
        hidden: Tensor = self.model(self.embed(batch), batch)
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """Float32 logits ``[S, V]`` of those rows of ``forward``'s result that need them, ``[S, H]``."""
        logits: Tensor = self.lm_head(hidden)
        return logits

    def raw_logits(self, hidden: Tensor) -> Tensor:
        """The same in float32 or the model's dtype, which saves a copy where the sampler takes that."""
        return self.lm_head.product(hidden)

    def own_tensors(self, tensor: NamedTensor) -> Iterator[NamedTensor]:
        """A checkpoint's tensor as the model's parameters have it: under its name here, cut into the parts that are
        loaded on their own, rows in this model's order; nothing if no parameter is made of it.
        """
        for part in self.parts(tensor):
            yield rotated_first(part, self.config)

    def parts(self, tensor: NamedTensor) -> Iterator[NamedTensor]:
        """The same, but for the order of rows: what a family's checkpoints have in another way than Llama's."""
        yield own_name(tensor)
