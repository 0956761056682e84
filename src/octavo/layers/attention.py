"""Self-attention with grouped key/value heads (arXiv:2305.13245) over the paged cache."""

from __future__ import annotations

from torch import Tensor, nn

from octavo.config import ModelConfig
from octavo.kernels.forward_batch import ForwardBatch, KVLayer
from octavo.layers.build import Build
from octavo.layers.linear import QKVLinear, RowLinear
from octavo.layers.norm import Norm, RMSNorm


class Attention(nn.Module):
    """Attention over ``norm(x + residual)``: ``x [T, H] -> [T, H]``.

    Args:
        cos_sin: the layer's rotary table, ``[max_positions, D]`` float32.
        window: how many positions a token sees, itself included; None: all.
        qkv_bias: whether queries, keys and values have a bias.
        q_norm, k_norm: by which each head of queries and keys is normalised before it is rotated, or both None.
    """

    def __init__(
        self,
        build: Build,
        config: ModelConfig,
        cos_sin: Tensor,
        *,
        window: int | None = None,
        qkv_bias: bool = False,
        q_norm: RMSNorm | None = None,
        k_norm: RMSNorm | None = None,
    ) -> None:
        super().__init__()
        heads, hidden, d = config.num_heads, config.hidden_size, config.head_dim
        self.ops, self.cos_sin, self.window = build.ops, cos_sin, window
        self.scale = config.attention_scale or d**-0.5
        self.soft_cap = config.attention_soft_cap
        self.qkv_proj = QKVLinear(build.for_sensitive, hidden, heads, config.num_kv_heads, d, bias=qkv_bias)
        self.o_proj = RowLinear(build, heads * d, hidden, bias=config.o_bias)
        self.eps, self.q_norm, self.k_norm = config.rms_norm_eps, q_norm, k_norm

    def forward(
        self, x: Tensor, residual: Tensor | None, norm: Norm, batch: ForwardBatch, kv: KVLayer
    ) -> tuple[Tensor, Tensor]:
        """The attention's result, and ``x + residual``."""
        if batch.attention is None:
            raise TypeError("batch.attention is not set; plan_attention of the model's ops makes it")
        qkv, residual = self.qkv_proj.after_norm(norm, x, residual, batch.lora)
        x = self.ops.attend(
            qkv,
            batch.attention,
            self.cos_sin,
            self.q_norm.weight if self.q_norm else None,
            self.k_norm.weight if self.k_norm else None,
            self.eps,
            kv,
            scale=self.scale,
            window=self.window,
            soft_cap=self.soft_cap,
        )
        return self.o_proj(x, batch.lora), residual
