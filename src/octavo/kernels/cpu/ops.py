"""The CPU backend: weights laid out once for oneDNN, and C kernels for what torch does slowly.

``torch.nn.functional.linear`` brings a bfloat16 weight into oneDNN's blocked layout in every call. Done once, after
loading, the same kernel computes the same bits in about two thirds of the time (less for one row, or a wide head).

Decode attention in torch gathers the blocks of the context before it multiplies; the C kernel reads them where they
are. It, the norms, the activation and the rotation take what is left of a step to about a third. What a kernel cannot
take (odd sizes, float16, prompts' attention) goes to the reference.

Quantized weights are woven into panels (`panels.py`), which C kernels multiply with as they read them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from octavo.kernels.cpu import lora
from octavo.kernels.cpu.attention_plan import CpuPlan
from octavo.kernels.cpu.build import load_library
from octavo.kernels.cpu.lora import CpuLora, LoraTasks
from octavo.kernels.cpu.native import Native, fits_attention, fits_rows
from octavo.kernels.cpu.panels import AS_FAST, Panels
from octavo.kernels.cpu.quantized import QuantizedProducts
from octavo.kernels.cpu.recording import Pool, record
from octavo.kernels.cpu.rounded import RoundedPanels
from octavo.kernels.cpu.tasks import Tasks
from octavo.kernels.forward_batch import AttentionPlan, ForwardBatch, KVLayer, own_plan
from octavo.kernels.lora import LoraPlan, LoraStack, own_lora
from octavo.kernels.packed import (
    Fp8Weight,
    Int4Weight,
    Int8Weight,
    Operand,
    PackedWeight,
    PerExpert,
    StackedWeight,
)
from octavo.kernels.packed_form import PackedForms
from octavo.kernels.packed_parts import take_expert
from octavo.kernels.recording import Recording
from octavo.kernels.reference import attention as reference
from octavo.kernels.reference.ops import ReferenceOps

ROWS_HINT = 32
"""How many rows oneDNN is told to expect when it chooses the layout. Measured from 1 to 256, it makes no difference."""


class CpuOps(ReferenceOps):
    """`ReferenceOps` with packed weights and C kernels, as far as processor and compiler allow."""

    def __init__(self) -> None:
        super().__init__()
        library = load_library()
        self._tasks = tasks = None if library is None else Tasks(library)
        self._native = None if tasks is None else Native(tasks)
        self._lora = None if tasks is None else LoraTasks(tasks)
        self._quantized = None if library is None or tasks is None else QuantizedProducts(library, tasks)
        self._library = None if library is None else library._name
        self._packs = packs_weights()
        self._pool = Pool()

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
        if isinstance(weight, PackedWeight):
            return weight if self._quantized is None else self._quantized.pack(weight)
        if weight.dtype is not torch.bfloat16 or not self._packs:
            return weight
        packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), ROWS_HINT)
        return packed

    def pack_experts(self, weight: Operand, count: int, dtype: torch.dtype) -> Operand:
        """Each expert's matrix as any other: tokens are gathered, and go through one expert after the other."""
        return PerExpert(parts=tuple(self.pack_linear(take_expert(weight, e, count)) for e in range(count)))

    def packed_forms(self) -> PackedForms | None:
        classes = (Panels, RoundedPanels, Int8Weight, Int4Weight, Fp8Weight, StackedWeight, PerExpert)
        return None if self._library is None else PackedForms(classes, Path(self._library).stem)

    def multiplies(self, kind: str) -> bool:
        return self._quantized is not None and kind in AS_FAST

    def apply_token_bitmask(self, logits: Tensor, rows: Tensor, bitmask: Tensor) -> None:
        banned = np.unpackbits(~bitmask.numpy().view(np.uint8), axis=1, count=logits.shape[1], bitorder="little")
        for row, bits in zip(rows.tolist(), torch.from_numpy(banned.view(np.bool_)), strict=True):
            logits[row].masked_fill_(bits, -torch.inf)

    def linear(self, x: Tensor, weight: Operand, bias: Tensor | None = None) -> Tensor:
        if isinstance(weight, Panels | RoundedPanels) and self._quantized is not None:
            return self._quantized.linear(x, weight, bias)
        if isinstance(weight, StackedWeight):
            return self._stacked(x, weight, bias)
        if not isinstance(weight, Tensor) or not weight.is_mkldnn:
            return super().linear(x, weight, bias)
        product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
        return product

    def _stacked(self, x: Tensor, weight: StackedWeight, bias: Tensor | None) -> Tensor:
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

    def add_rms_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        if self._native is None or not fits_rows(x, weight):
            return super().add_rms_norm(x, residual, weight, eps)
        total = residual.to(torch.float32, copy=residual.dtype is not torch.float32 or not residual.is_contiguous())
        out = self._workspace.take("normed", tuple(x.shape), x)
        self._native.add_rms_norm(x, total, weight, eps, out)
        return out, total

    def add_norm(self, x: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        if residual is not None or self._native is None or not fits_rows(x, weight):
            return super().add_norm(x, residual, weight, eps)
        out, total = self._workspace.take("normed", tuple(x.shape), x), x.new_empty(x.shape, dtype=torch.float32)
        self._native.add_rms_norm(x, total, weight, eps, out, starts=True)
        return out, total

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        rows, size = gate_up.shape
        if self._native is None or not fits_rows(gate_up) or size % 32:
            return super().silu_mul(gate_up)
        out = self._workspace.take("gated", (rows, size // 2), gate_up)
        self._native.silu_mul(gate_up, out)
        return out

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
        return CpuPlan(batch, self._workspace)

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
        if self._native is None or not fits_attention(q, kv):
            return super().attention(q, kv, own, scale=scale, window=window, soft_cap=soft_cap)
        out = q.new_empty(q.shape[0], q.shape[1] * q.shape[2])
        work = own.work(window)
        if work.num_groups:
            size = own.most_jobs(q.shape[0]) * (q.shape[1] // kv.keys.shape[1]) * (q.shape[2] + 2)
            partials = self._workspace.take("partials", (size,), q, torch.float32)
            self._native.attention(q, kv, work, scale=scale, soft_cap=soft_cap, partials=partials, out=out)
        reference.attend_groups(q, kv, own, own.long_groups(window), scale, soft_cap, out)
        return out


def packs_weights() -> bool:
    """Whether this torch has the packed product and this CPU the instructions for it."""
    has_op = hasattr(torch.ops.mkldnn, "_linear_pointwise") and torch.backends.mkldnn.is_available()
    return has_op and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
