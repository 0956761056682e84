"""The reference backend: the operations joined in one class, for other backends to inherit from."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from octavo.kernels.forward_batch import AttentionPlan, ForwardBatch, KVLayer, own_plan
from octavo.kernels.ops import Ops
from octavo.kernels.packed import Operand
from octavo.kernels.reference import attention, experts, norm, quantized, rotary, sampling
from octavo.kernels.reference.attention_plan import GroupedPlan
from octavo.kernels.reference.sample_rows import sample_rows
from octavo.kernels.reference.workspace import Workspace
from octavo.kernels.sampling import LastTokens, Logprobs, Sampled


class ReferenceOps(Ops):
    """`Ops` in plain torch, for any device. One object serves one thread."""

    def __init__(self) -> None:
        self._workspace = Workspace()

    def embedding(self, ids: Tensor, weight: Tensor) -> Tensor:
        return F.embedding(ids, weight)

    def pack_linear(self, weight: Operand) -> Operand:
        return weight

    def linear(self, x: Tensor, weight: Operand, bias: Tensor | None = None) -> Tensor:
        return quantized.linear(x, weight, bias)

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        return norm.rms_norm(x, weight, eps)

    def add_rms_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        total = residual.float().add_(x)  # in place, but for the first layer of a model in 16 bits
        return self.rms_norm(total, weight.float(), eps).to(x.dtype), total

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        gate, up = gate_up.chunk(2, dim=-1)
        return F.silu(gate) * up

    def gelu_mul(self, gate_up: Tensor, *, approximate: bool) -> Tensor:
        gate, up = gate_up.chunk(2, dim=-1)
        return self.gelu(gate, approximate=approximate) * up

    def gelu(self, x: Tensor, *, approximate: bool) -> Tensor:
        return F.gelu(x, approximate="tanh" if approximate else "none")

    def add_layer_norm(
        self, x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        return norm.add_layer_norm(x, residual, weight, bias, eps)

    def top_experts(self, logits: Tensor, k: int, *, normalise: bool) -> tuple[Tensor, Tensor]:
        return experts.top_experts(logits, k, normalise)

    def experts(self, x: Tensor, gate_up: Tensor, down: Tensor, weights: Tensor, ids: Tensor) -> Tensor:
        def expert(e: int, rows: Tensor) -> Tensor:
            return self.linear(self.silu_mul(self.linear(rows, gate_up[e])), down[e])

        return experts.experts(x, weights, ids, expert)

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
        tokens = own_plan(plan, GroupedPlan).tokens
        return rotary.rotate_and_store(qkv, tokens, cos_sin, q_norm, k_norm, eps, kv, self._workspace)

    def plan_attention(self, batch: ForwardBatch) -> AttentionPlan:
        return GroupedPlan(batch, self._workspace)

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
        return attention.attention(q, kv, own_plan(plan, GroupedPlan), scale, window, soft_cap)

    def sample(
        self, logits: Tensor, params: Tensor, last: LastTokens | None = None, *, filters: bool = True
    ) -> Sampled:
        return sample_rows(logits, params, last)

    def apply_token_bitmask(self, logits: Tensor, rows: Tensor, bitmask: Tensor) -> None:
        sampling.apply_token_bitmask(logits, rows, bitmask)

    def gather_logprobs(self, logits: Tensor, token_ids: Tensor, k: int) -> Logprobs:
        return sampling.gather_logprobs(logits, token_ids, k)
