"""Gemma 2 (arXiv:2408.00118) and the language models of Gemma 3 (arXiv:2503.19786)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from octavo.config import ModelConfig
from octavo.kernels.forward_batch import ForwardBatch, KVLayer
from octavo.layers.attention import Attention
from octavo.layers.build import Build
from octavo.layers.norm import OnePlusRMSNorm, RMSNorm
from octavo.models.decoder import DecoderModel
from octavo.models.tensors import NamedTensor, own_name

NAMES = {
    ".language_model.model.": ".model.",
    ".model.language_model.": ".model.",
    ".language_model.lm_head.": ".lm_head.",
}
"""Where checkpoints that also see images keep the language model."""

SIGHT = ("vision_tower.", "multi_modal_projector.", "model.vision_tower.", "model.multi_modal_projector.")


class GemmaLayer(nn.Module):
    """``h = x + norm(attention(norm(x)));  y = h + norm(mlp(norm(h)))``: a norm before each part, and one behind it."""

    def __init__(self, attention: Attention, mlp: nn.Module, norms: Iterator[RMSNorm]) -> None:
        super().__init__()
        self.self_attn, self.mlp = attention, mlp
        self.input_layernorm, self.post_attention_layernorm = next(norms), next(norms)
        self.pre_feedforward_layernorm, self.post_feedforward_layernorm = next(norms), next(norms)

    def forward(self, x: Tensor, residual: Tensor | None, batch: ForwardBatch, kv: KVLayer) -> tuple[Tensor, Tensor]:
        x, residual = self.self_attn(x, residual, self.input_layernorm, batch, kv)
        x = self.post_attention_layernorm(x)
        x, residual = self.mlp(x, residual, self.pre_feedforward_layernorm, batch.lora)
        return self.post_feedforward_layernorm(x), residual


class Gemma2(DecoderModel):
    """Windows in every other layer, soft caps on scores and logits, GeGLU, embeddings scaled by the root of their size.

    Windows and the scores' scale and cap are in the configuration.
    """

    def __init__(self, config: ModelConfig, build: Build, max_positions: int) -> None:
        super().__init__(config, build, max_positions)
        # The model was trained with a factor of its own precision.
        self.embedding_scale = torch.tensor(config.hidden_size**0.5, dtype=build.dtype).item()

    def layer(self, build: Build, config: ModelConfig, index: int, cos_sin: Tensor) -> nn.Module:
        attention = self.attention(build, config, cos_sin, config.sliding_windows[index])
        return GemmaLayer(attention, self.mlp(build, config, index), (self.norm(build, config) for _ in range(4)))

    def norm(self, build: Build, config: ModelConfig) -> RMSNorm:
        return OnePlusRMSNorm(build, config.hidden_size, config.rms_norm_eps)

    def embed(self, batch: ForwardBatch) -> Tensor:
        return super().embed(batch) * self.embedding_scale

    def logits(self, hidden: Tensor) -> Tensor:
        return self._capped(super().logits(hidden))

    def raw_logits(self, hidden: Tensor) -> Tensor:
        logits = super().raw_logits(hidden)
        return self._capped(logits.float()).to(logits.dtype)

    def _capped(self, logits: Tensor) -> Tensor:
        cap = self.config.logit_soft_cap
        return logits if cap is None else torch.tanh(logits / cap) * cap


class Gemma3(Gemma2):
    """Five layers with a window to one without, which have rotary angles of different bases; queries and keys are
    normalised, which makes the soft caps unnecessary.
    """

    def attention(self, build: Build, config: ModelConfig, cos_sin: Tensor, window: int | None) -> Attention:
        q_norm, k_norm = (OnePlusRMSNorm(build, config.head_dim, config.rms_norm_eps) for _ in range(2))
        bias = config.qkv_bias
        return Attention(build, config, cos_sin, window=window, qkv_bias=bias, q_norm=q_norm, k_norm=k_norm)

    def parts(self, tensor: NamedTensor) -> Iterator[NamedTensor]:
        if not tensor.name.startswith(SIGHT):
            yield own_name(tensor, NAMES)
