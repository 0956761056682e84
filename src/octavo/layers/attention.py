"""Self-attention with grouped key/value heads (arXiv:2305.13245) over the paged cache."""

from __future__ import annotations

from torch import Tensor, nn

from octavo.config import ModelConfig
from octavo.kernels.forward_batch import ForwardBatch, KVLayer
from octavo.layers.build import Build
from octavo.layers.linear import QKVLinear, RowLinear
from octavo.layers.norm import RMSNorm


class Attention(nn.Module):
    """Attention over ``norm(x + residual)``: ``x [T, H] -> [T, H]``.

    Args:
        cos_sin: the rotary table, ``[max_positions, D]`` float32, shared by all layers.
        window: how many positions a token sees, itself included; None: all.
        qkv_bias: whether queries, keys and values have a bias.
        qk_norm: whether each head of queries and keys is normalised before it is rotated.
    """

    def __init__(
        self,
        build: Build,
        config: ModelConfig,
        cos_sin: Tensor,
        *,
        window: int | None = None,
        qkv_bias: bool = False,
        qk_norm: bool = False,
    ) -> None:
        super().__init__()
        heads, hidden, d = config.num_heads, config.hidden_size, config.head_dim
        self.ops, self.cos_sin, self.window, self.scale = build.ops, cos_sin, window, d**-0.5
        self.qkv_proj = QKVLinear(build, hidden, heads, config.num_kv_heads, d, bias=qkv_bias)
        self.o_proj = RowLinear(build, heads * d, hidden, bias=config.o_bias)
        self.eps = config.rms_norm_eps
        self.q_norm = RMSNorm(build, d, self.eps) if qk_norm else None
        self.k_norm = RMSNorm(build, d, self.eps) if qk_norm else None

    def forward(
        self, x: Tensor, residual: Tensor | None, norm: RMSNorm, batch: ForwardBatch, kv: KVLayer
    ) -> tuple[Tensor, Tensor]:
        """The attention's result, and ``x + residual``."""
        if batch.attention is None:
            raise TypeError("batch.attention is not set; plan_attention of the model's ops makes it")
        qkv, residual = self.qkv_proj.after_norm(norm, x, residual)
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
        )
        return self.o_proj(x), residual
