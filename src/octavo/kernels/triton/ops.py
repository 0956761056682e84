"""The Triton backend: which kernel does which operation."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from octavo.kernels.forward_batch import AttentionPlan, ForwardBatch, KVLayer, own_plan
from octavo.kernels.lora import LoraPlan, LoraStack, own_lora
from octavo.kernels.packed import Operand, PackedWeight
from octavo.kernels.reference.ops import ReferenceOps
from octavo.kernels.sampling import LastTokens, Logprobs, Sampled
from octavo.kernels.triton import (
    activations,
    compiling,
    embedding,
    experts,
    layer_norm,
    logprobs,
    lora,
    matvec,
    norm,
    quantized,
    quantized_blocks,
    quantized_experts,
    quantized_pack,
    rotary,
    routing,
    sampling,
    small_matmul,
    token_bitmask,
)
from octavo.kernels.triton.attention import PagedAttention
from octavo.kernels.triton.attention_plan import Scores, TritonPlan
from octavo.kernels.triton.pdl import use_pdl
from octavo.kernels.triton.small_matmul import SmallProducts

EARLY_NORMS = 128
"""For so many tokens the product behind a norm is better off loading weights before the norm has begun (measured on an
H100, in a layer's chain of kernels)."""


class TritonOps(ReferenceOps):
    """`Ops` in Triton kernels and cuBLAS products, for an NVIDIA GPU. One object serves one thread."""

    graph_safe = True

    def __init__(self) -> None:
        super().__init__()
        # Made with the first plan, which knows the device.
        self._attention: PagedAttention | None = None
        self._products: SmallProducts | None = None

    def ignores_nan_beyond_context(self, kv_cache: Sequence[KVLayer], num_heads: int, dtype: torch.dtype) -> bool:
        return True

    def compile_only(self, device: torch.device) -> AbstractContextManager[object]:
        return compiling.compile_only(device) if device.type == "cuda" else nullcontext()

    def embedding(self, ids: Tensor, weight: Tensor) -> Tensor:
        return embedding.embedding(ids, weight)

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        return norm.rms_norm(x, weight, eps, pdl=use_pdl(x.device), early=len(x) <= EARLY_NORMS)

    def add_rms_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        return norm.add_rms_norm(x, residual, weight, eps, pdl=use_pdl(x.device), early=len(x) <= EARLY_NORMS)

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        return activations.silu_mul(gate_up, pdl=use_pdl(gate_up.device))

    def pack_linear(self, weight: Operand) -> Operand:
        return quantized_pack.pack(weight)

    def multiplies(self, kind: str) -> bool:
        return kind in quantized_blocks.KINDS

    def linear(self, x: Tensor, weight: Operand, bias: Tensor | None = None) -> Tensor:
        if isinstance(weight, PackedWeight):
            return quantized.linear(x, weight, bias)
        if matvec.fits(x, weight):
            return matvec.linear(x, weight, bias)
        if self._products is not None and small_matmul.fits(x, weight):
            return self._products.linear(x, weight, bias)
        return super().linear(x, weight, bias)

    def plan_lora(self, numbers: Tensor, max_loras: int) -> LoraPlan | None:
        return lora.SortedLora(numbers, max_loras)

    def lora_add(self, y: Tensor, x: Tensor, stack: LoraStack, plan: LoraPlan) -> Tensor:
        return lora.lora_add(y, x, stack, own_lora(plan, lora.SortedLora))

    def add_norm_linear(
        self,
        x: Tensor,
        residual: Tensor | None,
        norm_weight: Tensor,
        eps: float,
        weight: Operand,
        bias: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        if isinstance(weight, PackedWeight):
            fused = quantized.add_norm_linear(x, residual, norm_weight, eps, weight, bias)
            return fused or super().add_norm_linear(x, residual, norm_weight, eps, weight, bias)
        if matvec.fits(x, weight, norm=True):
            return matvec.add_norm_linear(x, residual, norm_weight, eps, weight, bias)
        return super().add_norm_linear(x, residual, norm_weight, eps, weight, bias)

    def add_norm_gate_up(
        self,
        x: Tensor,
        residual: Tensor | None,
        norm_weight: Tensor,
        eps: float,
        weight: Operand,
        bias: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        if isinstance(weight, PackedWeight):
            fused = quantized.add_norm_gate_up(x, residual, norm_weight, eps, weight, bias)
            return fused or super().add_norm_gate_up(x, residual, norm_weight, eps, weight, bias)
        if matvec.fits(x, weight, norm=True):
            return matvec.add_norm_gate_up(x, residual, norm_weight, eps, weight, bias)
        if self._products is not None and small_matmul.fits(x, weight, gated=True):
            normed, residual = self.add_norm(x, residual, norm_weight, eps)
            return self._products.gate_up(normed, weight, bias), residual
        return super().add_norm_gate_up(x, residual, norm_weight, eps, weight, bias)

    def gelu_mul(self, gate_up: Tensor, *, approximate: bool) -> Tensor:
        return activations.gelu_mul(gate_up, approximate=approximate, pdl=use_pdl(gate_up.device))

    def add_layer_norm(
        self, x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        return layer_norm.add_layer_norm(x, residual, weight, bias, eps, pdl=use_pdl(x.device))

    def top_experts(self, logits: Tensor, k: int, *, normalise: bool) -> tuple[Tensor, Tensor]:
        return routing.top_experts(logits, k, normalise=normalise)

    def pack_experts(self, weight: Operand, count: int, dtype: torch.dtype) -> Operand:
        return quantized_experts.pack(weight, dtype)

    def experts(self, x: Tensor, gate_up: Operand, down: Operand, weights: Tensor, ids: Tensor) -> Tensor:
        return experts.experts(x, gate_up, down, weights, ids)

    def rotate_and_store(
        self,
        qkv: Tensor,
        plan: AttentionPlan,
        cos_sin: Tensor,
        q_norm: Tensor | None,
        k_norm: Tensor | None,
        eps: float,
        kv: KVLayer,
    ) -> Tensor:
        own, pdl = own_plan(plan, TritonPlan), use_pdl(qkv.device)
        return rotary.rotate_and_store(qkv, own.positions, own.slot_mapping, cos_sin, q_norm, k_norm, eps, kv, pdl=pdl)

    def plan_attention(self, batch: ForwardBatch) -> AttentionPlan:
        if self._attention is None:
            self._attention = PagedAttention(batch.token_ids.device)
            self._products = SmallProducts(batch.token_ids.device)
        return TritonPlan(batch)

    def attention(
        self,
        q: Tensor,
        kv: KVLayer,
        plan: AttentionPlan,
        *,
        scale: float,
        window: int | None = None,
        soft_cap: float | None = None,
    ) -> Tensor:
        own = own_plan(plan, TritonPlan)
        assert self._attention is not None  # there is a plan
        return self._attention.over_cache(q, kv, own, Scores(scale, window, soft_cap))

    def attend(
        self,
        qkv: Tensor,
        plan: AttentionPlan,
        cos_sin: Tensor,
        q_norm: Tensor | None,
        k_norm: Tensor | None,
        eps: float,
        kv: KVLayer,
        *,
        scale: float,
        window: int | None = None,
        soft_cap: float | None = None,
    ) -> Tensor:
        own, scores, pdl = own_plan(plan, TritonPlan), Scores(scale, window, soft_cap), use_pdl(qkv.device)
        assert self._attention is not None  # there is a plan
        return self._attention.turned(qkv, kv, own, cos_sin, q_norm, k_norm, eps, scores, pdl=pdl)

    def sample(
        self, logits: Tensor, params: Tensor, last: LastTokens | None = None, *, filters: bool = True
    ) -> Sampled:
        return sampling.sample(logits, params, last, filters)

    def apply_token_bitmask(self, logits: Tensor, rows: Tensor, bitmask: Tensor) -> None:
        token_bitmask.apply_token_bitmask(logits, rows, bitmask)

    def gather_logprobs(self, logits: Tensor, token_ids: Tensor, k: int) -> Logprobs:
        return logprobs.gather_logprobs(logits, token_ids, k)
