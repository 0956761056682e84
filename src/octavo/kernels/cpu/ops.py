"""The CPU backend: weights laid out once, and C kernels for what torch does slowly.

Attention in torch gathers the blocks of the context before it multiplies; the C kernels read them where they are. They,
the norms, the activation and the rotation take what is left of a step to about a third. What a kernel cannot take (odd
sizes, float16) goes to the reference.

Weights are woven into panels (`panels.py`), which one family of C kernels multiplies with as it reads them, and which
takes the norm before and the gate behind a product along (`products.py`). Without a compiler, bfloat16 weights are laid
out once for oneDNN (`onednn.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from octavo.kernels.cpu import lora, onednn
from octavo.kernels.cpu.attention_plan import CpuPlan, most_parts
from octavo.kernels.cpu.build import load_library
from octavo.kernels.cpu.lora import CpuLora, LoraTasks
from octavo.kernels.cpu.native import Native, fits_attention, fits_rows, fits_sampling
from octavo.kernels.cpu.panels import BLOCK_FORMS, Panels
from octavo.kernels.cpu.products import Normalization, Products, fits_gate, fits_norm
from octavo.kernels.cpu.recording import Pool, record
from octavo.kernels.cpu.tasks import Tasks
from octavo.kernels.forward_batch import AttentionPlan, ForwardBatch, KVLayer, own_plan
from octavo.kernels.lora import LoraPlan, LoraStack, own_lora
from octavo.kernels.packed import Fp8Weight, Int4Weight, Int8Weight, Operand, PerExpert, StackedWeight
from octavo.kernels.packed_form import PackedForms
from octavo.kernels.packed_parts import take_expert
from octavo.kernels.recording import Recording
from octavo.kernels.reference.ops import ReferenceOps
from octavo.kernels.reference.sample_rows import remember
from octavo.kernels.sampling import LastTokens, Sampled


class CpuOps(ReferenceOps):
    """`ReferenceOps` with packed weights and C kernels, as far as processor and compiler allow."""

    def __init__(self) -> None:
        super().__init__()
        library = load_library()
        self._tasks = tasks = None if library is None else Tasks(library)
        self._native = None if tasks is None else Native(tasks)
        self._lora = None if tasks is None else LoraTasks(tasks)
        self._library = None if library is None else library._name
        self._products = None if library is None or tasks is None else Products(library, tasks)
        self._pool = Pool()

    def ignores_nan_beyond_context(self, kv_cache: Sequence[KVLayer], num_heads: int, dtype: torch.dtype) -> bool:
        return self._native is not None and all(fits_attention(kv, num_heads, dtype) for kv in kv_cache)

    def record(self, batch: ForwardBatch, compute: Callable[[], Tensor]) -> tuple[Tensor, Recording | None]:
        if self._tasks is None:
            return compute(), None
        return record(self._tasks, self._pool, batch, compute)

    def embedding(self, ids: Tensor, weight: Tensor) -> Tensor:
        if self._native is None or ids.dtype is not torch.int64 or not fits_rows(weight) or not ids.is_contiguous():
            return super().embedding(ids, weight)
        out = weight.new_empty(len(ids), weight.shape[1])
        self._native.embedding(ids, weight, out)
        return out

    def pack_linear(self, weight: Operand) -> Operand:
        if isinstance(weight, StackedWeight):
            return StackedWeight(parts=tuple(self.pack_linear(part) for part in weight.parts))
        if self._products is not None:
            return self._products.pack(weight)
        return onednn.pack(weight)

    def pack_experts(self, weight: Operand, count: int, dtype: torch.dtype) -> Operand:
        """Each expert's matrix as any other: tokens are gathered, and go through one expert after the other."""
        return PerExpert(parts=tuple(self.pack_linear(take_expert(weight, e, count)) for e in range(count)))

    def packed_forms(self) -> PackedForms | None:
        classes = (Panels, Int8Weight, Int4Weight, Fp8Weight, StackedWeight, PerExpert)
        return None if self._library is None else PackedForms(classes, Path(self._library).stem)

    def multiplies(self, kind: str) -> bool:
        return self._products is not None and kind in BLOCK_FORMS

    def apply_token_bitmask(self, logits: Tensor, rows: Tensor, bitmask: Tensor) -> None:
        banned = np.unpackbits(~bitmask.numpy().view(np.uint8), axis=1, count=logits.shape[1], bitorder="little")
        for row, bits in zip(rows.tolist(), torch.from_numpy(banned.view(np.bool_)), strict=True):
            logits[row].masked_fill_(bits, -torch.inf)

    def linear(self, x: Tensor, weight: Operand, bias: Tensor | None = None) -> Tensor:
        if isinstance(weight, Panels) and self._products is not None:
            return self._products.linear(x, weight, bias)
        if isinstance(weight, StackedWeight):
            return self._stacked(x, weight, bias)
        if not isinstance(weight, Tensor) or not weight.is_mkldnn:
            return super().linear(x, weight, bias)
        return onednn.linear(x, weight, bias)

    def logits(self, x: Tensor, weight: Operand) -> Tensor:
        if isinstance(weight, Panels) and self._products is not None:
            return self._products.logits(x, weight)
        return super().logits(x, weight)

    def _stacked(self, x: Tensor, weight: StackedWeight, bias: Tensor | None) -> Tensor:
        fused = None if self._products is None else self._products.stacked(x, weight, bias)
        if fused is not None:
            return fused
        product = torch.cat([self.linear(x, part) for part in weight.parts], dim=-1)
        return product if bias is None else product + bias

    def plan_lora(self, numbers: Tensor, max_loras: int) -> LoraPlan | None:
        return CpuLora(numbers) if bool(numbers.any()) else None

    def lora_add(self, y: Tensor, x: Tensor, stack: LoraStack, plan: LoraPlan) -> Tensor:
        own = own_lora(plan, CpuLora)
        if self._lora is None or not lora.fits(y, x, stack):
            return super().lora_add(y, x, stack, own.grouped)
        self._lora.add(y, x, stack, own)
        return y

    def add_norm_linear(
        self,
        x: Tensor,
        residual: Tensor | None,
        norm_weight: Tensor,
        eps: float,
        weight: Operand,
        bias: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        found = self._after_norm(x, residual, norm_weight, eps, weight, bias, gated=False)
        return super().add_norm_linear(x, residual, norm_weight, eps, weight, bias) if found is None else found

    def add_norm_gate_up(
        self,
        x: Tensor,
        residual: Tensor | None,
        norm_weight: Tensor,
        eps: float,
        weight: Operand,
        bias: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        found = self._after_norm(x, residual, norm_weight, eps, weight, bias, gated=True)
        return super().add_norm_gate_up(x, residual, norm_weight, eps, weight, bias) if found is None else found

    def _after_norm(
        self,
        x: Tensor,
        residual: Tensor | None,
        norm_weight: Tensor,
        eps: float,
        weight: Operand,
        bias: Tensor | None,
        *,
        gated: bool,
    ) -> tuple[Tensor, Tensor] | None:
        """None: the kernel cannot take it."""
        if not isinstance(weight, Panels) or not fits_norm(x, residual, norm_weight, weight, bias):
            return None
        if gated and not fits_gate(weight):
            return None
        assert self._products is not None  # which made the panels
        total = x.new_empty(x.shape, dtype=torch.float32)
        norm = Normalization(norm_weight, residual, total, eps)
        return self._products.after_norm(x, norm, weight, bias, gated=gated), total

    def add_rms_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        if self._native is None or not fits_rows(x, weight):
            return super().add_rms_norm(x, residual, weight, eps)
        total = _summable(residual)
        out = self._workspace.take("normed", tuple(x.shape), x)
        self._native.add_rms_norm(x, total, weight, eps, out)
        return out, total

    def add_norm(self, x: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        if residual is not None or self._native is None or not fits_rows(x, weight):
            return super().add_norm(x, residual, weight, eps)
        out, total = self._workspace.take("normed", tuple(x.shape), x), x.new_empty(x.shape, dtype=torch.float32)
        self._native.add_rms_norm(x, total, weight, eps, out, starts=True)
        return out, total

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        if self._native is None or not fits_rows(x, weight):
            return super().rms_norm(x, weight, eps)
        out = x.new_empty(x.shape)
        self._native.rms_norm(x, weight, eps, out)
        return out

    def add_layer_norm(
        self, x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        if self._native is None or not fits_rows(x, weight, bias):
            return super().add_layer_norm(x, residual, weight, bias, eps)
        total = x.new_empty(x.shape, dtype=torch.float32) if residual is None else _summable(residual)
        out = self._workspace.take("normed", tuple(x.shape), x)
        self._native.add_layer_norm(x, total, weight, bias, eps, out, starts=residual is None)
        return out, total

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        gated = self._gated("silu", gate_up)
        return super().silu_mul(gate_up) if gated is None else gated

    def gelu_mul(self, gate_up: Tensor, *, approximate: bool) -> Tensor:
        gated = self._gated("gelu_tanh" if approximate else "gelu", gate_up)
        return super().gelu_mul(gate_up, approximate=approximate) if gated is None else gated

    def _gated(self, activation: str, gate_up: Tensor) -> Tensor | None:
        """None: the kernel cannot take it."""
        rows, size = gate_up.shape
        if self._native is None or not fits_rows(gate_up) or size % 32:
            return None
        out = self._workspace.take("gated", (rows, size // 2), gate_up)
        self._native.gated(activation, gate_up, out)
        return out

    def gelu(self, x: Tensor, *, approximate: bool) -> Tensor:
        if self._native is None or not fits_rows(x):
            return super().gelu(x, approximate=approximate)
        self._native.gelu(x, approximate=approximate)
        return x

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
        own, d = own_plan(plan, CpuPlan), kv.keys.shape[3]
        norms = [norm for norm in (q_norm, k_norm) if norm is not None]
        if self._native is None or not fits_rows(qkv, kv.keys, kv.values, *norms) or d % 32:
            return super().rotate_and_store(qkv, plan, cos_sin, q_norm, k_norm, eps, kv)
        self._native.rotate_and_store(qkv, own.places, cos_sin, q_norm, k_norm, eps, kv)
        return qkv.view(len(qkv), -1, d)[:, : -2 * kv.keys.shape[1]]

    def plan_attention(self, batch: ForwardBatch) -> AttentionPlan:
        return CpuPlan(batch, self._workspace, 1 if self._tasks is None else self._tasks.threads)

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
        own = own_plan(plan, CpuPlan)
        if self._native is None or not fits_attention(kv, q.shape[1], q.dtype):
            return super().attention(q, kv, own, scale=scale, window=window, soft_cap=soft_cap)
        if q.stride()[1:] != (q.shape[2], 1):
            # No model's q comes here. Of one that did, no step could be recorded, as this is torch's and no task.
            q = q.contiguous()
        out = q.new_empty(q.shape[0], q.shape[1] * q.shape[2])
        work = own.work(window)
        if work.num_groups:
            # When the step is replayed for longer contexts, there may be more parts than now.
            jobs = work.num_groups * most_parts(work.num_groups, own.threads)
            size = jobs * (q.shape[1] // kv.keys.shape[1]) * (q.shape[2] + 2)
            partials = self._workspace.take("partials", (size,), q, torch.float32)
            self._native.attention(q, kv, work, scale=scale, soft_cap=soft_cap, partials=partials, out=out)
        if work.num_stretches:
            self._native.prefill_attention(q, kv, work, scale=scale, soft_cap=soft_cap, out=out)
        return out

    def sample(
        self, logits: Tensor, params: Tensor, last: LastTokens | None = None, *, filters: bool = True
    ) -> Sampled:
        if self._native is None or not fits_sampling(logits, params):
            return super().sample(logits, params, last, filters=filters)
        tokens, bad = torch.empty(len(logits), dtype=torch.int64), torch.empty(len(logits), dtype=torch.bool)
        self._native.sample(logits, params, tokens, bad)
        remember(tokens, last)
        return Sampled(tokens, bad)


def _summable(residual: Tensor) -> Tensor:
    """The residual as kernels add to it: float32, contiguous."""
    return residual.to(torch.float32, copy=residual.dtype is not torch.float32 or not residual.is_contiguous())
